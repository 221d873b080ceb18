/* Exceptions, NMIs and interrupts, and the ways to stop. */
#include "zoo.h"

#define VECTORS 48

struct gate {
	u16 offset_low;
	u16 selector;
	u16 flags;
	u16 offset_middle;
	u32 offset_high;
	u32 reserved;
};

struct frame {
	u64 vector;
	u64 error;
	u64 rip;
};

struct __attribute__((packed)) pointer {
	u16 limit;
	u64 base;
};

extern const char trap_stubs[];
static struct gate gates[VECTORS];

void zoo_trap(const struct frame *frame);

void trap_init(void)
{
	struct pointer pointer = { sizeof(gates) - 1, (u64)gates };
	u64 stub = (u64)trap_stubs;

	for (int i = 0; i < VECTORS; i++, stub += 16) {
		gates[i].offset_low = (u16)stub;
		gates[i].selector = 0x08;
		gates[i].flags = 0x8E00;
		gates[i].offset_middle = (u16)(stub >> 16);
	}
	asm volatile("lidt %0" : : "m"(pointer) : "memory");
}

/* The old interrupt controllers are not set up: mask them before interrupts are let in. */
void interrupts_masked(void)
{
	outb(0x21, 0xFF);
	outb(0xA1, 0xFF);
}

void power_off(void)
{
	outb(POWER, 5 << 2 | 1 << 5);
	stop_here();
}

void stop_here(void)
{
	for (;;)
		asm volatile("cli; hlt" : : : "memory");
}

void zoo_trap(const struct frame *frame)
{
	u64 cr2;

	if (interrupt_taken(frame->vector))
		return;
	if (frame->vector == 2) {
		put("zoo: nmi\n");
		return;
	}
	asm volatile("movq %%cr2, %0" : "=r"(cr2));
	put("zoo: exception ");
	put_number(frame->vector);
	put(" error ");
	put_hex(frame->error);
	put(" rip ");
	put_hex(frame->rip);
	put(" cr2 ");
	put_hex(cr2);
	put("\n");
	outl(DEBUG_EXIT, 0xEE);
	stop_here();
}
