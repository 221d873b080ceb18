/* What the zoo can be told to do. */
#include "zoo.h"

extern char zoo_end[];

static bool pio_write(struct text fields)
{
	u16 port = (u16)field(&fields, 0x80);
	u64 count = field(&fields, 1);
	u8 value = (u8)field(&fields, 0);

	while (count--)
		outb(port, value);
	return true;
}

static bool pio_read(struct text fields)
{
	u16 port = (u16)field(&fields, 0x80);

	for (u64 count = field(&fields, 1); count; count--)
		inb(port);
	return true;
}

static bool mmio_read(struct text fields)
{
	u64 address = field(&fields, VIRTIO_MMIO);

	for (u64 count = field(&fields, 1); count; count--)
		read32(address);
	return true;
}

static bool mmio_write(struct text fields)
{
	u64 address = field(&fields, VIRTIO_MMIO);
	u64 count = field(&fields, 1);
	u32 value = (u32)field(&fields, 0);

	while (count--)
		write32(address, value);
	return true;
}

static bool loop_pio(struct text fields)
{
	u16 port = (u16)field(&fields, 0x80);

	for (;;)
		inb(port);
	return true;
}

static bool print(struct text fields)
{
	put_text(fields);
	put("\n");
	return true;
}

static bool echo(struct text fields)
{
	char c;

	(void)fields;
	do {
		while (!(inb(SERIAL + 5) & 1))
			asm volatile("pause");
		c = (char)inb(SERIAL);
		put_char(c);
	} while (c != 'q');
	put("\n");
	return true;
}

static bool sti_hlt(struct text fields)
{
	(void)fields;
	interrupts_masked();
	asm volatile("sti; hlt; cli" : : : "memory");
	return true;
}

static bool cli_hlt(struct text fields)
{
	(void)fields;
	stop_here();
}

static bool spin(struct text fields)
{
	(void)fields;
	asm volatile("cli; 1: jmp 1b" : : : "memory");
	return true;
}

static bool spin_sti(struct text fields)
{
	(void)fields;
	interrupts_masked();
	asm volatile("sti; 1: jmp 1b" : : : "memory");
	return true;
}

/* Goes on at that address, whatever is there. */
static bool jump(struct text fields)
{
	u64 address = field(&fields, 0);

	asm volatile("cli; jmp *%0" : : "r"(address) : "memory");
	return true;
}

static bool wait_million(struct text fields)
{
	for (u64 n = field(&fields, 1) * 1000000; n; n--)
		asm volatile("");
	return true;
}

static bool tsc(struct text fields)
{
	(void)fields;
	put("tsc ");
	put_number(rdtsc());
	put("\n");
	return true;
}

/* The end of the highest RAM that the loader's map shows, and of the highest below 4 GiB. */
static u64 ram_top(bool below_4g)
{
	u64 at, top = 0;
	u32 entries, bytes;

	if (boot.pvh) {
		at = *(const volatile u64 *)(boot.info + 40);
		entries = *(const volatile u32 *)(boot.info + 48);
		bytes = 24;
	} else {
		at = boot.info + 0x2D0;
		entries = *(const volatile u8 *)(boot.info + 0x1E8);
		bytes = 20;
	}
	for (; entries; entries--, at += bytes) {
		u64 end = *(const volatile u64 *)at + *(const volatile u64 *)(at + 8);

		if (below_4g && end > 1UL << 32)
			continue;
		if (*(const volatile u32 *)(at + 16) == 1 && end > top)
			top = end;
	}
	return top;
}

static bool mem(struct text fields)
{
	(void)fields;
	put("mem ");
	put_hex(ram_top(false));
	put("\n");
	return true;
}

/* Writes a word to each page from 4 MiB (or where we end) on, up to the end of RAM. */
static bool memtouch(struct text fields)
{
	u64 at = 4UL << 20, top = ram_top(true), bytes = field(&fields, 1UL << 20), touched = 0;

	if ((u64)zoo_end > at)
		at = ((u64)zoo_end + 4095) & ~4095UL;
	for (; touched < bytes && at + 4096 <= top; at += 4096, touched += 4096)
		*(volatile u64 *)at = at;
	put("memtouch ");
	put_number(touched);
	put("\n");
	return true;
}

/* For ever: one word to each page of so many bytes. */
static bool loop_memtouch(struct text fields)
{
	u64 from = 4UL << 20, top = ram_top(true), bytes = field(&fields, 1UL << 20);

	if ((u64)zoo_end > from)
		from = ((u64)zoo_end + 4095) & ~4095UL;
	for (;;)
		for (u64 at = from; at < from + bytes && at + 4096 <= top; at += 4096)
			*(volatile u64 *)at = at;
	return true;
}

static bool reset(struct text fields)
{
	static const struct __attribute__((packed)) {
		u16 limit;
		u64 base;
	} nothing;

	if (same(fields, "acpi"))
		outb(POWER + 2, 0x06);
	else if (same(fields, "triple"))
		asm volatile("lidt %0; ud2" : : "m"(nothing) : "memory");
	else
		outb(I8042_COMMAND, 0xFE);
	stop_here();
}

static bool exit_with(struct text fields)
{
	outl(DEBUG_EXIT, (u32)field(&fields, 0));
	stop_here();
}

static bool poweroff(struct text fields)
{
	(void)fields;
	power_off();
}

static bool entry(struct text fields)
{
	(void)fields;
	put(boot.pvh ? "entry pvh\n" : "entry linux64\n");
	return true;
}

static bool cmdline(struct text fields)
{
	(void)fields;
	put("cmdline ");
	put(boot.cmdline);
	put("\n");
	return true;
}

static const struct {
	const char *name;
	bool (*run)(struct text fields);
} commands[] = {
	{ "print", print },
	{ "pio_write", pio_write },
	{ "pio_read", pio_read },
	{ "mmio_read", mmio_read },
	{ "mmio_write", mmio_write },
	{ "kick", command_kick },
	{ "blk_read", command_blk_read },
	{ "blk_write", command_blk_write },
	{ "loop_blk", command_loop_blk },
	{ "bad_ring", command_bad_ring },
	{ "hostile", command_hostile },
	{ "hostile_storm", command_hostile_storm },
	{ "key", command_key },
	{ "late_kick", command_late_kick },
	{ "lost_kick", command_lost_kick },
	{ "not_reaping", command_not_reaping },
	{ "hypercall", command_hypercall },
	{ "rest", command_rest },
	{ "timer_hlt", command_timer_hlt },
	{ "naps", command_naps },
	{ "spin_timer", command_spin_timer },
	{ "spin_held", command_spin_held },
	{ "busy", command_busy },
	{ "self_ipi", command_self_ipi },
	{ "nmi", command_nmi },
	{ "hlt", sti_hlt },
	{ "cli_hlt", cli_hlt },
	{ "dead_hlt", command_dead_hlt },
	{ "jump", jump },
	{ "spin", spin },
	{ "spin_sti", spin_sti },
	{ "loop_pio", loop_pio },
	{ "ctr", tsc },
	{ "memtouch", memtouch },
	{ "loop_memtouch", loop_memtouch },
	{ "reset", reset },
	{ "poweroff", poweroff },
	{ "exit", exit_with },
	{ "mem", mem },
	{ "cmdline", cmdline },
	{ "entry", entry },
	{ "echo", echo },
	{ "wait", wait_million },
};

bool run_command(struct text word, bool quiet)
{
	struct text fields = word, name = take(&fields, '=');

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!same(name, commands[i].name))
			continue;
		bool done = commands[i].run(fields);
		if (!done || !quiet) {
			put("zoo: ");
			put_text(word);
			put(done ? " done\n" : " failed\n");
		}
		return true;
	}
	return false;
}
