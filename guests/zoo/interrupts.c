/*
 * What goes to KVM and not to the VMM: hypercalls, and the local APIC's interrupts, each taken
 * before the next is asked for, so that N of them are N.
 */
#include "zoo.h"

#define APIC 0xFEE00000UL
#define SVR_ENABLED 0x100
#define SELF 0x40000
#define ASSERT 0x4000
#define NMI_DELIVERY 0x400
/* KVM_HC_VAPIC_POLL_IRQ: does nothing and returns 0. */
#define POLL_IRQ 1
/* Nanoseconds, where KVM's own APIC runs at 1 GHz. */
#define TIMER_TICKS 50000
#define REST_TICKS 10000000
/* About a second to ten on any host. */
#define PATIENCE 10000000000UL

enum {
	ID = 0x020,
	EOI = 0x0B0,
	SVR = 0x0F0,
	ICR_LOW = 0x300,
	ICR_HIGH = 0x310,
	LVT_TIMER = 0x320,
	TIMER_INITIAL = 0x380,
	TIMER_DIVIDE = 0x3E0,
};

#define PERIODIC (1 << 17)

enum { NMI = 2, TIMER_VECTOR = 40, IPI_VECTOR = 41, SPURIOUS_VECTOR = 47 };

static volatile u64 nmis, timers, ipis;
static volatile bool nmis_expected;

bool interrupt_taken(u64 vector)
{
	switch (vector) {
	case NMI:
		nmis++;
		return nmis_expected;
	case TIMER_VECTOR:
		timers++;
		write32(APIC + EOI, 0);
		return true;
	case IPI_VECTOR:
		ipis++;
		write32(APIC + EOI, 0);
		return true;
	default:
		return vector >= 32;
	}
}

static void apic_enabled(void)
{
	interrupts_masked();
	write32(APIC + SVR, SVR_ENABLED | SPURIOUS_VECTOR);
}

static void say(const char *what, u64 count)
{
	put(what);
	put(" ok ");
	put_number(count);
}

/* Waits until the handler has counted up to `count`. */
static bool reaches(volatile u64 *counter, u64 count, const char *what)
{
	u64 start = rdtsc();

	while (*counter < count) {
		asm volatile("pause");
		if (rdtsc() - start > PATIENCE) {
			put("zoo: of ");
			put_number(count);
			put(what);
			put(" came ");
			put_number(*counter);
			put("\n");
			return false;
		}
	}
	return true;
}

void rest(u64 milliseconds)
{
	apic_enabled();
	write32(APIC + TIMER_DIVIDE, 0xB);
	write32(APIC + LVT_TIMER, TIMER_VECTOR);
	for (u64 i = 0; i < (milliseconds + 9) / 10; i++) {
		timers = 0;
		write32(APIC + TIMER_INITIAL, REST_TICKS);
		while (!timers)
			asm volatile("sti; hlt; cli" : : : "memory");
	}
}

bool command_rest(struct text fields)
{
	rest(field(&fields, 1000));
	return true;
}

bool command_timer_hlt(struct text fields)
{
	u64 count = field(&fields, 1), halts = 0;

	apic_enabled();
	write32(APIC + TIMER_DIVIDE, 0xB);
	write32(APIC + LVT_TIMER, TIMER_VECTOR);
	timers = 0;
	for (u64 i = 0; i < count; i++) {
		write32(APIC + TIMER_INITIAL, TIMER_TICKS);
		/* STI lets nothing in before HLT is executed, so each is awaited in at least one. */
		for (; timers <= i; halts++)
			asm volatile("sti; hlt; cli" : : : "memory");
	}
	say("timer_hlt", timers);
	put(" halts=");
	put_number(halts);
	put("\n");
	return true;
}

static void timer_armed(u32 mode, u64 microseconds)
{
	apic_enabled();
	write32(APIC + TIMER_DIVIDE, 0xB);
	write32(APIC + LVT_TIMER, mode | TIMER_VECTOR);
	write32(APIC + TIMER_INITIAL, (u32)(microseconds * 1000));
}

/* Halts for ever, and is woken each time by a timer of so many milliseconds. */
bool command_naps(struct text fields)
{
	u64 milliseconds = field(&fields, 1000);

	for (;;) {
		timer_armed(0, milliseconds * 1000);
		asm volatile("sti; hlt; cli" : : : "memory");
	}
	return true;
}

static void say_where(u64 address)
{
	put("at ");
	put_hex(address);
	put("\n");
}

/* One instruction for ever, while a timer interrupts it a thousand times a second. */
bool command_spin_timer(struct text fields)
{
	u64 here;

	(void)fields;
	asm volatile("leaq 1f(%%rip), %0\n\tjmp 2f\n1:\tjmp 1b\n2:" : "=r"(here));
	say_where(here);
	timer_armed(PERIODIC, 1000);
	asm volatile("sti; jmp *%0" : : "r"(here) : "memory");
	return true;
}

/* The same with interrupts off, while one waits. */
bool command_spin_held(struct text fields)
{
	u64 here;

	(void)fields;
	asm volatile("leaq 1f(%%rip), %0\n\tjmp 2f\n1:\tjmp 1b\n2:" : "=r"(here));
	say_where(here);
	asm volatile("cli" : : : "memory");
	timer_armed(0, 1000);
	asm volatile("jmp *%0" : : "r"(here) : "memory");
	return true;
}

/* Halts with interrupts off, where it says. */
bool command_dead_hlt(struct text fields)
{
	u64 here;

	(void)fields;
	asm volatile("leaq 1f(%%rip), %0\n\tjmp 2f\n1:\thlt\n\tjmp 1b\n2:" : "=r"(here));
	say_where(here);
	asm volatile("cli; jmp *%0" : : "r"(here) : "memory");
	return true;
}

/* Writes memory again and again, in one function and with interrupts off: work, and no loop that waits. */
bool command_busy(struct text fields)
{
	static u64 room[8192];
	u64 value = 0;

	(void)fields;
	for (;;) {
		u64 *to = room;
		u64 count = sizeof(room) / sizeof(room[0]);

		value++;
		asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
	}
	return true;
}

bool command_self_ipi(struct text fields)
{
	u64 count = field(&fields, 1);
	bool all = true;

	apic_enabled();
	ipis = 0;
	asm volatile("sti" : : : "memory");
	for (u64 i = 1; i <= count && all; i++) {
		write32(APIC + ICR_LOW, SELF | ASSERT | IPI_VECTOR);
		all = reaches(&ipis, i, " interrupts");
	}
	asm volatile("cli" : : : "memory");
	if (!all)
		return false;
	say("self_ipi", ipis);
	put("\n");
	return true;
}

bool command_nmi(struct text fields)
{
	u64 count = field(&fields, 1);
	bool all = true;

	apic_enabled();
	nmis = 0;
	nmis_expected = true;
	for (u64 i = 1; i <= count && all; i++) {
		/* By its id: the shorthand for oneself goes with fixed delivery alone. */
		write32(APIC + ICR_HIGH, read32(APIC + ID));
		write32(APIC + ICR_LOW, NMI_DELIVERY | ASSERT);
		all = reaches(&nmis, i, " NMIs");
	}
	nmis_expected = false;
	if (!all)
		return false;
	say("nmi", nmis);
	put("\n");
	return true;
}

/* Whether the CPU calls itself AMD's (or Hygon's), whose instruction is VMMCALL. */
static bool is_amd(void)
{
	u32 a = 0, b, c, d;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
	return b == 0x68747541 || b == 0x6F677948;
}

bool command_hypercall(struct text fields)
{
	u64 result, count = field(&fields, 1);
	bool amd = is_amd();

	for (u64 i = 0; i < count; i++) {
		if (amd)
			asm volatile("vmmcall" : "=a"(result) : "a"(POLL_IRQ) : "memory");
		else
			asm volatile("vmcall" : "=a"(result) : "a"(POLL_IRQ) : "memory");
		if (result) {
			put("zoo: the hypercall returned ");
			put_hex(result);
			put("\n");
			return false;
		}
	}
	say("hypercall", count);
	put("\n");
	return true;
}
