/* A virtio device behind either transport, with all its queues. */
#ifndef DEVICE_H
#define DEVICE_H

#include "zoo.h"

#define RING_SIZE 16
#define MAX_QUEUES 5
#define MAX_DEVICES 8
#define BUFFER_BYTES 4096
#define SECTOR_BYTES 512

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum { NET = 1, BLOCK = 2, RNG = 4, BALLOON = 5, VSOCK = 19 };

struct desc {
	u64 address;
	u32 bytes;
	u16 flags;
	u16 next;
};

struct ring {
	struct desc desc[RING_SIZE] __attribute__((aligned(4096)));
	struct desc table[RING_SIZE];
	struct {
		u16 flags;
		volatile u16 index;
		u16 ring[RING_SIZE];
		u16 used_event;
	} avail __attribute__((aligned(64)));
	struct {
		u16 flags;
		volatile u16 index;
		struct {
			u32 id;
			u32 bytes;
		} ring[RING_SIZE];
		u16 avail_event;
	} used __attribute__((aligned(64)));
	u8 head[64] __attribute__((aligned(64)));
	volatile u8 tail[64];
	u8 data[BUFFER_BYTES] __attribute__((aligned(4096)));
};

/* Where the driver says that a ring is; a fault may say something else. */
struct layout {
	u32 size;
	u64 desc;
	u64 avail;
	u64 used;
};

struct device {
	u32 slot;
	u32 type;
	bool pci;
	/* The window, or the BAR. */
	u64 base;
	/* On PCI: the configuration space, and where in it and in the BAR things are. */
	u64 space;
	u64 bar_register;
	u64 common;
	u64 notify;
	u32 notify_bytes;
	u64 own;
	u64 msix;
	u32 queues;
	u64 features;
	struct ring *rings;
	struct layout layout[MAX_QUEUES];
};

static inline u8 read8(u64 address)
{
	u8 value;
	asm volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
	return value;
}

static inline void write8(u64 address, u8 value)
{
	asm volatile("movb %0, (%1)" : : "q"(value), "r"(address) : "memory");
}

static inline u16 read16(u64 address)
{
	u16 value;
	asm volatile("movw (%1), %0" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void write16(u64 address, u16 value)
{
	asm volatile("movw %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

static inline void write64(u64 address, u64 value)
{
	asm volatile("movq %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

/* device.c */
extern struct device devices[MAX_DEVICES];
extern u32 device_count;
/* Finds them all, in order, behind the transport that there is; false if there are none. */
bool devices_found(void);
u8 device_status(const struct device *device);
void device_set_status(const struct device *device, u8 status);
/* Writes 0 to the status until it is 0; false if that does not come. */
bool device_reset(const struct device *device);
/* Rings that are empty and lie where they should. */
void device_fresh(struct device *device);
/* From reset to DRIVER_OK with the layout that there is. */
bool device_begin(struct device *device);
void device_kick(const struct device *device, u32 queue);
/* Makes the chain at descriptor 0 of a queue available. No kick. */
void device_offer(struct device *device, u32 queue);
/* A well-formed request of a queue, as its device wants it; the number of its descriptors. */
u32 device_request(struct device *device, u32 queue, u64 sector);
/* Waits until the queue has given back as many. */
bool device_answers(const struct device *device, u32 queue, u16 count);
/* From reset on: one request that has to be answered, and well. */
bool device_works(struct device *device, u64 sector);
/* True until a long time has passed since `start`. */
bool is_early(u64 start);

/* faults.c */
struct fault {
	const char *name;
	/* Breaks the queue before the device begins, or its ring after that. */
	void (*before)(struct device *device, u32 queue);
	void (*after)(struct device *device, u32 queue);
	/* Done to the device, which stays whole. */
	bool (*deed)(struct device *device);
};
extern const struct fault faults[];
extern const u32 fault_count;
/* Whether it breaks the ring of any device: what else is done is for the device to judge. */
bool fault_breaks(const struct fault *fault);
/* Does it to a device that was reset: to one queue, or to all of them (MAX_QUEUES). */
bool fault_done(const struct fault *fault, struct device *device, u32 queue);

/* abuse.c: what can be done to a device beside its rings. */
bool deed_read_only(struct device *device);
bool deed_status(struct device *device);
bool deed_no_queue(struct device *device);
bool deed_storm(struct device *device);
bool deed_reset(struct device *device);
bool deed_bar(struct device *device);
bool deed_decoding(struct device *device);
bool deed_messages(struct device *device);
bool deed_window(struct device *device);
bool deed_widths(struct device *device);

#endif
