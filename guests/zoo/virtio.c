/* A driver for virtio-mmio devices, version 2, one queue, polled; and one that breaks its ring. */
#include "zoo.h"

enum {
	MAGIC = 0x000,
	VERSION = 0x004,
	DEVICE_FEATURES = 0x010,
	DEVICE_FEATURES_SEL = 0x014,
	DRIVER_FEATURES = 0x020,
	DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030,
	QUEUE_NUM_MAX = 0x034,
	QUEUE_NUM = 0x038,
	QUEUE_READY = 0x044,
	QUEUE_NOTIFY = 0x050,
	INTERRUPT_STATUS = 0x060,
	INTERRUPT_ACK = 0x064,
	STATUS = 0x070,
	QUEUE_DESC = 0x080,
	QUEUE_DRIVER = 0x090,
	QUEUE_DEVICE = 0x0A0,
};

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

/* A bit of the low word of features. */
#define EVENT_IDX (1U << 29)

#define SIZE 16
#define SECTOR 512
/* About a second to ten on any host. */
#define PATIENCE 10000000000UL

struct desc {
	u64 address;
	u32 bytes;
	u16 flags;
	u16 next;
};

static struct desc desc[SIZE] __attribute__((aligned(4096)));
static struct desc table[SIZE] __attribute__((aligned(16)));
static struct {
	u16 flags;
	volatile u16 index;
	u16 ring[SIZE];
	/* With EVENT_IDX: the used index after which we want an interrupt. */
	volatile u16 used_event;
} avail __attribute__((aligned(64)));
static struct {
	volatile u16 flags;
	volatile u16 index;
	struct {
		u32 id;
		u32 bytes;
	} ring[SIZE];
	/* With EVENT_IDX: the available index after which the device wants a kick. */
	volatile u16 avail_event;
} used __attribute__((aligned(64)));

static struct {
	u32 type;
	u32 reserved;
	u64 sector;
} request __attribute__((aligned(16)));
static u64 data[SECTOR / 8] __attribute__((aligned(512)));
static volatile u8 result;

static bool failed(const char *why, u64 value)
{
	put("zoo: virtio ");
	put(why);
	put(" ");
	put_hex(value);
	put("\n");
	return false;
}

static void write_address(u64 at, const void *address)
{
	write32(at, (u32)(u64)address);
	write32(at + 4, (u32)((u64)address >> 32));
}

/* Reset, features (VERSION_1 and `features` of the low word), queue 0, DRIVER_OK. */
static bool start_with(u64 slot, u64 *base, u32 features)
{
	u64 b = VIRTIO_MMIO + slot * VIRTIO_MMIO_BYTES;

	*base = b;
	if (read32(b + MAGIC) != 0x74726976)
		return failed("magic", read32(b + MAGIC));
	if (read32(b + VERSION) != 2)
		return failed("version", read32(b + VERSION));
	write32(b + STATUS, 0);
	while (read32(b + STATUS))
		;
	write32(b + STATUS, ACKNOWLEDGE);
	write32(b + STATUS, ACKNOWLEDGE | DRIVER);
	write32(b + DEVICE_FEATURES_SEL, 1);
	if (!(read32(b + DEVICE_FEATURES) & 1))
		return failed("features", read32(b + DEVICE_FEATURES));
	write32(b + DRIVER_FEATURES_SEL, 0);
	write32(b + DRIVER_FEATURES, features);
	write32(b + DRIVER_FEATURES_SEL, 1);
	write32(b + DRIVER_FEATURES, 1);
	write32(b + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(read32(b + STATUS) & FEATURES_OK))
		return failed("features refused", read32(b + STATUS));
	write32(b + QUEUE_SEL, 0);
	if (read32(b + QUEUE_NUM_MAX) < SIZE)
		return failed("queue size", read32(b + QUEUE_NUM_MAX));
	avail.flags = avail.index = avail.used_event = used.flags = used.index = 0;
	write32(b + QUEUE_NUM, SIZE);
	write_address(b + QUEUE_DESC, desc);
	write_address(b + QUEUE_DRIVER, &avail);
	write_address(b + QUEUE_DEVICE, &used);
	write32(b + QUEUE_READY, 1);
	write32(b + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	return true;
}

static bool start(u64 slot, u64 *base)
{
	return start_with(slot, base, 0);
}

static void kick(u64 base)
{
	full_barrier();
	write32(base + QUEUE_NOTIFY, 0);
}

bool command_kick(struct text fields)
{
	u64 base, slot = field(&fields, 0), count = field(&fields, 1);

	if (!start(slot, &base))
		return false;
	while (count--)
		write32(base + QUEUE_NOTIFY, 0);
	return true;
}

/* Makes one request of one sector available: header, data, status. No kick. */
static u16 offer(u32 type, u64 sector)
{
	u16 next = (u16)(avail.index + 1);

	request.type = type;
	request.sector = sector;
	result = 0xFF;
	desc[0] = (struct desc){ (u64)&request, sizeof(request), NEXT, 1 };
	desc[1] = (struct desc){ (u64)data, SECTOR, type ? NEXT : NEXT | WRITE, 2 };
	desc[2] = (struct desc){ (u64)&result, 1, WRITE, 0 };
	avail.ring[avail.index % SIZE] = 0;
	barrier();
	avail.index = next;
	return next;
}

/* One request of one sector, awaited. */
static bool transfer(u64 base, u32 type, u64 sector)
{
	u64 start_tsc = rdtsc();
	u16 next = offer(type, sector);

	kick(base);
	while (used.index != next) {
		asm volatile("pause");
		if (rdtsc() - start_tsc > PATIENCE)
			return failed("no answer; device status", read32(base + STATUS));
	}
	barrier();
	if (result)
		return failed("request failed; status", result);
	return true;
}

bool command_blk_read(struct text fields)
{
	u64 base, sum = 0, slot = field(&fields, 0), count = field(&fields, 1);

	if (!start(slot, &base))
		return false;
	for (u64 sector = 0; sector < count; sector++) {
		if (!transfer(base, 0, sector))
			return false;
		for (int i = 0; i < SECTOR / 8; i++)
			sum += data[i];
	}
	put("blk_read ok ");
	put_number(count);
	put(" sum=");
	put_hex(sum);
	put("\n");
	return true;
}

bool command_blk_write(struct text fields)
{
	u64 base, slot = field(&fields, 0), first = field(&fields, 0), count = field(&fields, 1);

	if (!start(slot, &base))
		return false;
	for (u64 sector = first; sector < first + count; sector++) {
		for (int i = 0; i < SECTOR / 8; i++)
			data[i] = sector << 32 | (u64)i;
		if (!transfer(base, 1, sector))
			return false;
	}
	put("blk_write ok ");
	put_number(count);
	put("\n");
	return true;
}

/* For ever: each sector is written, read back and compared, each time with other words. */
bool command_loop_blk(struct text fields)
{
	u64 base, slot = field(&fields, 0), count = field(&fields, 1);
	u16 port = (u16)field(&fields, 0x80);

	if (!count)
		return failed("no sectors", count);
	if (!start(slot, &base))
		return false;
	for (u64 round = 0;; round++) {
		u64 sector = round % count;

		for (int i = 0; i < SECTOR / 8; i++)
			data[i] = round << 32 | (u64)i;
		if (!transfer(base, 1, sector))
			return false;
		inb(port);
		for (int i = 0; i < SECTOR / 8; i++)
			data[i] = 0;
		if (!transfer(base, 0, sector))
			return false;
		for (int i = 0; i < SECTOR / 8; i++)
			if (data[i] != (round << 32 | (u64)i))
				return failed("read something else in round", round);
		inb(port);
	}
}

/* Breaks descriptor 0 or the avail ring; false if there is no such way. */
static bool break_ring(struct text kind)
{
	u16 index = 1;

	request.type = 0;
	request.sector = 0;
	avail.ring[0] = 0;
	desc[0] = (struct desc){ (u64)&request, sizeof(request), NEXT, 1 };
	desc[1] = (struct desc){ (u64)data, SECTOR, NEXT | WRITE, 2 };
	desc[2] = (struct desc){ (u64)&result, 1, WRITE, 0 };
	if (same(kind, "loop")) {
		desc[2] = (struct desc){ (u64)data, SECTOR, NEXT | WRITE, 1 };
	} else if (same(kind, "oob")) {
		desc[0].address = 0xFFFFFFFFFFFFF000UL;
	} else if (same(kind, "zero")) {
		desc[0].bytes = 0;
	} else if (same(kind, "indirect2")) {
		/* A table whose entry is a table: forbidden, and so is the flag, never negotiated. */
		desc[0] = (struct desc){ (u64)table, sizeof(table[0]), INDIRECT, 0 };
		table[0] = (struct desc){ (u64)table, sizeof(table[0]), INDIRECT, 0 };
	} else if (same(kind, "availjump")) {
		index = 1000;
	} else if (same(kind, "head")) {
		avail.ring[0] = SIZE;
	} else {
		return false;
	}
	barrier();
	avail.index = index;
	return true;
}

bool command_bad_ring(struct text fields)
{
	u64 base, start_tsc, slot = field(&fields, 0);
	struct text kind = take(&fields, ':');
	u32 status;

	if (!start(slot, &base))
		return false;
	if (!break_ring(kind))
		return failed("no such bad ring", 0);
	kick(base);
	start_tsc = rdtsc();
	do {
		for (int i = 0; i < 1000; i++)
			asm volatile("pause");
		status = read32(base + STATUS);
	} while (!(status & NEEDS_RESET) && used.index == 0 && rdtsc() - start_tsc < PATIENCE);
	put("bad_ring ");
	put_text(kind);
	put(" status=");
	put_hex(status);
	put(status & NEEDS_RESET ? " needs_reset" : " alive");
	put(" used=");
	put_number(used.index);
	put("\n");
	return true;
}

/* Takes the device, rests, and only then asks for a sector; waits for it as long as it takes. */
bool command_late_kick(struct text fields)
{
	u64 base, slot = field(&fields, 0), milliseconds = field(&fields, 1000);
	u16 next;

	if (!start(slot, &base))
		return false;
	rest(milliseconds);
	next = offer(0, 0);
	put("late_kick kicks\n");
	kick(base);
	while (used.index != next)
		rest(10);
	put("late_kick ok\n");
	return true;
}

/* Asks for N sectors and never kicks, though the device wants it. */
bool command_lost_kick(struct text fields)
{
	u64 base, slot = field(&fields, 0), count = field(&fields, 1);

	if (!start(slot, &base))
		return false;
	put("lost_kick begins\n");
	for (u64 sector = 0; sector < count; sector++) {
		u16 next = offer(0, sector);

		while (used.index != next)
			rest(10);
	}
	put("lost_kick ok ");
	put_number(count);
	put("\n");
	return true;
}

/* Has N sectors read and does not take the answers, though it was interrupted, for a while. */
bool command_not_reaping(struct text fields)
{
	u64 base, slot = field(&fields, 0), count = field(&fields, 1);
	u64 milliseconds = field(&fields, 1000);

	if (!start_with(slot, &base, EVENT_IDX))
		return false;
	for (u64 sector = 0; sector < count; sector++) {
		u16 next = offer(0, sector);

		kick(base);
		while (used.index != next)
			rest(10);
		if (!sector)
			put("not_reaping interrupted\n");
	}
	rest(milliseconds);
	avail.used_event = used.index;
	put("not_reaping ends\n");
	return true;
}
