/* How a driver breaks a ring: where it lies, and what its descriptors say. */
#include "device.h"

/* Longer than any chain may be. */
#define LONG_CHAIN 1100
#define NOWHERE 0xFFFFFFFFFFFFF000UL

/* For reading, and for writing. */
static struct desc long_tables[2][LONG_CHAIN] __attribute__((aligned(16)));

/* Queue layouts, before the device begins. */

static void no_size(struct device *device, u32 queue)
{
	device->layout[queue].size = 0;
}

static void odd_size(struct device *device, u32 queue)
{
	device->layout[queue].size = RING_SIZE - 1;
}

static void large_size(struct device *device, u32 queue)
{
	device->layout[queue].size = 1 << 15;
}

static void unaligned(struct device *device, u32 queue)
{
	device->layout[queue].desc += 8;
}

static void table_nowhere(struct device *device, u32 queue)
{
	device->layout[queue].desc = NOWHERE;
}

static void avail_nowhere(struct device *device, u32 queue)
{
	device->layout[queue].avail = device->base;
}

static void used_nowhere(struct device *device, u32 queue)
{
	device->layout[queue].used = 1UL << 40;
}

/* Chains, once the device has begun: a well-formed request is in the ring, and not offered. */

static struct desc *first(struct device *device, u32 queue)
{
	return device->rings[queue].desc;
}

/* Two descriptors of the kind that the device takes first. */
static struct desc *two(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];
	u16 flags = (u16)(ring->desc[0].flags & WRITE);

	ring->desc[0] = (struct desc){ (u64)ring->data, 16, (u16)(flags | NEXT), 1 };
	ring->desc[1] = (struct desc){ (u64)ring->data, 16, flags, 0 };
	return ring->desc;
}

static void loop(struct device *device, u32 queue)
{
	two(device, queue)[1].flags |= NEXT;
}

static void overlong(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];
	u16 flags = (u16)(ring->desc[0].flags & WRITE);
	struct desc *table = long_tables[flags != 0];

	for (u32 i = table[0].bytes ? LONG_CHAIN : 0; i < LONG_CHAIN; i++) {
		u16 more = i + 1 < LONG_CHAIN ? NEXT : 0;

		table[i] = (struct desc){ (u64)ring->data, 16, (u16)(flags | more), (u16)(i + 1) };
	}
	ring->desc[0] = (struct desc){ (u64)table, sizeof(long_tables[0]), INDIRECT, 0 };
}

static void nowhere(struct device *device, u32 queue)
{
	two(device, queue)[0].address = NOWHERE;
}

static void registers(struct device *device, u32 queue)
{
	two(device, queue)[1].address = devices[0].base;
}

/* Begins in memory and ends behind it: nothing is that large. */
static void edge(struct device *device, u32 queue)
{
	two(device, queue)[0].bytes = 0xFFFFFFF0;
}

static void zero(struct device *device, u32 queue)
{
	first(device, queue)[0].bytes = 0;
}

static void nested(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];

	ring->desc[0] = (struct desc){ (u64)ring->table, sizeof(struct desc), INDIRECT, 0 };
	ring->table[0] = (struct desc){ (u64)ring->table, sizeof(struct desc), INDIRECT, 0 };
}

static void misshapen(struct device *device, u32 queue)
{
	nested(device, queue);
	first(device, queue)[0].bytes = sizeof(struct desc) + 1;
}

static void indirect_nowhere(struct device *device, u32 queue)
{
	nested(device, queue);
	first(device, queue)[0].address = NOWHERE;
}

static void outside(struct device *device, u32 queue)
{
	two(device, queue)[0].next = RING_SIZE;
}

static void order(struct device *device, u32 queue)
{
	struct desc *desc = two(device, queue);

	desc[0].flags = NEXT | WRITE;
	desc[1].flags = 0;
}

static void head(struct device *device, u32 queue)
{
	for (int i = 0; i < RING_SIZE; i++)
		device->rings[queue].avail.ring[i] = RING_SIZE;
}

static void jump(struct device *device, u32 queue)
{
	device->rings[queue].avail.index = 1000;
}

/* A buffer that most devices can make nothing of. */
static void small(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];

	ring->desc[0] = (struct desc){ (u64)ring->data, 4, (u16)(ring->desc[0].flags & WRITE), 0 };
}

/* A buffer of the other direction. */
static void backwards(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];

	ring->desc[0] = (struct desc){
		(u64)ring->data, 64, (u16)(~ring->desc[0].flags & WRITE), 0,
	};
}

const struct fault faults[] = {
	{ "no_size", no_size, NULL, NULL },
	{ "odd_size", odd_size, NULL, NULL },
	{ "large_size", large_size, NULL, NULL },
	{ "unaligned", unaligned, NULL, NULL },
	{ "table_nowhere", table_nowhere, NULL, NULL },
	{ "avail_nowhere", avail_nowhere, NULL, NULL },
	{ "used_nowhere", used_nowhere, NULL, NULL },
	{ "loop", NULL, loop, NULL },
	{ "overlong", NULL, overlong, NULL },
	{ "nowhere", NULL, nowhere, NULL },
	{ "registers", NULL, registers, NULL },
	{ "edge", NULL, edge, NULL },
	{ "zero", NULL, zero, NULL },
	{ "nested", NULL, nested, NULL },
	{ "misshapen", NULL, misshapen, NULL },
	{ "indirect_nowhere", NULL, indirect_nowhere, NULL },
	{ "outside", NULL, outside, NULL },
	{ "order", NULL, order, NULL },
	{ "head", NULL, head, NULL },
	{ "jump", NULL, jump, NULL },
	{ "small", NULL, small, NULL },
	{ "backwards", NULL, backwards, NULL },
	{ "read_only", NULL, NULL, deed_read_only },
	{ "status", NULL, NULL, deed_status },
	{ "no_queue", NULL, NULL, deed_no_queue },
	{ "storm", NULL, NULL, deed_storm },
	{ "reset", NULL, NULL, deed_reset },
	{ "widths", NULL, NULL, deed_widths },
	{ "bar", NULL, NULL, deed_bar },
	{ "decoding", NULL, NULL, deed_decoding },
	{ "messages", NULL, NULL, deed_messages },
	{ "window", NULL, NULL, deed_window },
};
const u32 fault_count = sizeof(faults) / sizeof(faults[0]);

bool fault_breaks(const struct fault *fault)
{
	return !fault->deed && fault->after != small && fault->after != backwards;
}

bool fault_done(const struct fault *fault, struct device *device, u32 queue)
{
	u32 from = queue < MAX_QUEUES ? queue : 0;
	u32 to = queue < MAX_QUEUES ? queue + 1 : device->queues;

	device_fresh(device);
	for (u32 at = from; at < to && fault->before; at++)
		fault->before(device, at);
	if (!device_begin(device))
		return false;
	if (fault->deed)
		return fault->deed(device);
	for (u32 at = from; at < to; at++) {
		struct ring *ring = &device->rings[at];

		device_request(device, at, 1);
		for (int i = 0; i < RING_SIZE; i++)
			ring->avail.ring[i] = 0;
		if (fault->after)
			fault->after(device, at);
		barrier();
		if (!ring->avail.index)
			ring->avail.index = 1;
		device_kick(device, at);
	}
	return true;
}
