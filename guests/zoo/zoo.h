/* The zoo's own small world: ports, text, and what the files share. */
#ifndef ZOO_H
#define ZOO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define SERIAL 0x3F8
#define I8042_COMMAND 0x64
#define DEBUG_EXIT 0xF4
#define POWER 0x600
#define VIRTIO_MMIO 0xD0000000UL
#define VIRTIO_MMIO_BYTES 0x1000UL

static inline void outb(u16 port, u8 value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outl(u16 port, u32 value)
{
	asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 inb(u16 port)
{
	u8 value;
	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* One plain mov each: the emulator of a host without virtualisation knows it. */
static inline u32 read32(u64 address)
{
	u32 value;
	asm volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void write32(u64 address, u32 value)
{
	asm volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

static inline u64 rdtsc(void)
{
	u32 low, high;
	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static inline void barrier(void)
{
	asm volatile("" : : : "memory");
}

/* Stores before it are seen before loads after it. A locked add, as MFENCE is not emulated. */
static inline void full_barrier(void)
{
	asm volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc");
}

/* text.c */
struct text {
	const char *at;
	const char *end;
};
void put_char(char c);
void put(const char *string);
void put_text(struct text text);
void put_hex(u64 value);
void put_number(u64 value);
bool same(struct text text, const char *string);
/* Takes what comes before the first separator; the rest stays in `from`. */
struct text take(struct text *from, char separator);
/* Decimal or 0x..., with K, M or G; false if it is none. */
bool number(struct text text, u64 *value);
/* The next field between colons as a number, or `otherwise` when there is none. */
u64 field(struct text *fields, u64 otherwise);

/* trap.c */
void trap_init(void);
void interrupts_masked(void);
void power_off(void) __attribute__((noreturn));
void stop_here(void) __attribute__((noreturn));

/* virtio.c: false when the command failed; why is printed. */
bool command_kick(struct text fields);
bool command_blk_read(struct text fields);
bool command_blk_write(struct text fields);
bool command_loop_blk(struct text fields);
bool command_bad_ring(struct text fields);
bool command_late_kick(struct text fields);
bool command_lost_kick(struct text fields);
bool command_not_reaping(struct text fields);

/* hostile.c */
bool command_hostile(struct text fields);
bool command_hostile_storm(struct text fields);
bool command_key(struct text fields);

/* interrupts.c */
/* Counts it; true if it was an interrupt, or an NMI that somebody awaits. */
bool interrupt_taken(u64 vector);
/* Halts for so many milliseconds, a hundred times a second at most. */
void rest(u64 milliseconds);
bool command_rest(struct text fields);
bool command_timer_hlt(struct text fields);
bool command_naps(struct text fields);
bool command_spin_timer(struct text fields);
bool command_spin_held(struct text fields);
bool command_dead_hlt(struct text fields);
bool command_busy(struct text fields);
bool command_self_ipi(struct text fields);
bool command_nmi(struct text fields);
bool command_hypercall(struct text fields);

/* commands.c */
struct boot {
	bool pvh;
	u64 info;
	const char *cmdline;
};
extern struct boot boot;
/* Runs one word of the command line; false when it is not one of ours. */
bool run_command(struct text word, bool quiet);

#endif
