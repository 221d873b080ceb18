// SPDX-License-Identifier: GPL-2.0
/*
 * Brings a Linux guest's CPU into an endless loop, for the tests of the verdicts about it:
 *
 *   insmod vitrine_stuck.ko how=spin_irqs_off
 *
 * never returns. See guests/module/README.md.
 */
#include <linux/delay.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/processor.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *how = "";
module_param(how, charp, 0);
MODULE_PARM_DESC(how, "spin, spin_irqs_off, delay_irqs_off or lock_irqs_off");

static noinline void vitrine_spin(void)
{
	for (;;)
		cpu_relax();
}

static noinline void vitrine_spin_irqs_off(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

/* In the kernel's own delay loop, again and again. */
static noinline void vitrine_delay_irqs_off(void)
{
	local_irq_disable();
	for (;;)
		mdelay(5);
}

/* Waits for a lock that it has itself. */
static noinline void vitrine_lock_irqs_off(void)
{
	static DEFINE_RAW_SPINLOCK(lock);
	unsigned long flags;

	raw_spin_lock_irqsave(&lock, flags);
	raw_spin_lock(&lock);
	raw_spin_unlock(&lock);
	raw_spin_unlock_irqrestore(&lock, flags);
}

static int __init vitrine_stuck_init(void)
{
	if (!strcmp(how, "spin"))
		vitrine_spin();
	else if (!strcmp(how, "spin_irqs_off"))
		vitrine_spin_irqs_off();
	else if (!strcmp(how, "delay_irqs_off"))
		vitrine_delay_irqs_off();
	else if (!strcmp(how, "lock_irqs_off"))
		vitrine_lock_irqs_off();
	return -EINVAL;
}
module_init(vitrine_stuck_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Endless loops on demand");
