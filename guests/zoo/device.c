/* Finding virtio devices, setting them up with all their queues, and asking them for something. */
#include "device.h"

#define ECAM 0xE0000000UL
#define ECAM_DEVICE_BYTES 0x8000UL
#define PCI_DEVICES 32
#define MMIO_SLOTS 19
#define VIRTIO_VENDOR 0x1AF4
#define FIRST_DEVICE_ID 0x1040
#define RAM_PAGE 4096
#define INDIRECT_DESC (1UL << 28)
#define VERSION_1 (1UL << 32)
/* Of a balloon: statistics, hinting, reporting, each with a queue of its own. */
#define BALLOON_QUEUES (1UL << 1 | 1UL << 3 | 1UL << 5)
/* Some ten seconds to a minute on any host. */
#define LONG_TICKS 100000000000UL

/* Of the window of virtio-mmio. */
enum {
	MAGIC = 0x000,
	DEVICE_ID = 0x008,
	DEVICE_FEATURES = 0x010,
	DEVICE_FEATURES_SEL = 0x014,
	DRIVER_FEATURES = 0x020,
	DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030,
	QUEUE_NUM_MAX = 0x034,
	QUEUE_NUM = 0x038,
	QUEUE_READY = 0x044,
	QUEUE_NOTIFY = 0x050,
	STATUS = 0x070,
	QUEUE_DESC = 0x080,
	QUEUE_DRIVER = 0x090,
	QUEUE_DEVICE = 0x0A0,
	OWN = 0x100,
};

/* Of the common structure of virtio-pci. */
enum {
	PCI_OFFERED_SEL = 0x00,
	PCI_OFFERED = 0x04,
	PCI_ACCEPTED_SEL = 0x08,
	PCI_ACCEPTED = 0x0C,
	PCI_QUEUES = 0x12,
	PCI_STATUS = 0x14,
	PCI_QUEUE_SEL = 0x16,
	PCI_QUEUE_SIZE = 0x18,
	PCI_QUEUE_ENABLE = 0x1C,
	PCI_QUEUE_NOTIFY_OFF = 0x1E,
	PCI_QUEUE_DESC = 0x20,
	PCI_QUEUE_DRIVER = 0x28,
	PCI_QUEUE_DEVICE = 0x30,
};

struct device devices[MAX_DEVICES];
u32 device_count;
static struct ring rings[MAX_DEVICES][MAX_QUEUES] __attribute__((aligned(4096)));

bool is_early(u64 start)
{
	asm volatile("pause");
	return rdtsc() - start < LONG_TICKS;
}

u8 device_status(const struct device *device)
{
	return device->pci ? read8(device->common + PCI_STATUS) : (u8)read32(device->base + STATUS);
}

void device_set_status(const struct device *device, u8 status)
{
	if (device->pci)
		write8(device->common + PCI_STATUS, status);
	else
		write32(device->base + STATUS, status);
}

static void queue_select(const struct device *device, u32 queue)
{
	if (device->pci)
		write16(device->common + PCI_QUEUE_SEL, (u16)queue);
	else
		write32(device->base + QUEUE_SEL, queue);
}

static u32 queue_max(const struct device *device, u32 queue)
{
	queue_select(device, queue);
	return device->pci ? read16(device->common + PCI_QUEUE_SIZE) :
			     read32(device->base + QUEUE_NUM_MAX);
}

static u64 features(const struct device *device)
{
	u64 sel = device->pci ? device->common + PCI_OFFERED_SEL : device->base + DEVICE_FEATURES_SEL;
	u64 bits = device->pci ? device->common + PCI_OFFERED : device->base + DEVICE_FEATURES;
	u64 low;

	write32(sel, 0);
	low = read32(bits);
	write32(sel, 1);
	return (u64)read32(bits) << 32 | low;
}

static void accept(const struct device *device, u64 features)
{
	u64 sel = device->pci ? device->common + PCI_ACCEPTED_SEL : device->base + DRIVER_FEATURES_SEL;
	u64 bits = device->pci ? device->common + PCI_ACCEPTED : device->base + DRIVER_FEATURES;

	write32(sel, 0);
	write32(bits, (u32)features);
	write32(sel, 1);
	write32(bits, (u32)(features >> 32));
}

/* What is the same behind either transport. */
static void add(struct device *device)
{
	u64 wanted = VERSION_1 | INDIRECT_DESC;

	device->slot = device_count;
	device->rings = rings[device_count];
	device->queues = 0;
	while (device->queues < MAX_QUEUES && queue_max(device, device->queues))
		device->queues++;
	if (device->type == BALLOON)
		wanted |= BALLOON_QUEUES;
	device->features = features(device) & wanted;
	device_count++;
}

/* The vendor capabilities say where the structures are, and the MSI-X one where the table is. */
static bool capabilities_read(struct device *device)
{
	u8 at = read8(device->space + 0x34);

	for (int i = 0; at && i < 48; i++, at = read8(device->space + at + 1)) {
		u64 here = device->space + at;
		u64 place = device->base + read32(here + 8);

		if (read8(here) == 0x11)
			device->msix = here;
		if (read8(here) != 0x09)
			continue;
		switch (read8(here + 3)) {
		case 1:
			device->common = place;
			break;
		case 2:
			device->notify = place;
			device->notify_bytes = read32(here + 16);
			break;
		case 4:
			device->own = place;
			break;
		}
	}
	return device->common && device->notify && device->own && device->msix;
}

static bool pci_found(void)
{
	for (u64 number = 1; number < PCI_DEVICES && device_count < MAX_DEVICES; number++) {
		u64 space = ECAM + number * ECAM_DEVICE_BYTES;
		u32 id = read32(space);
		struct device *device = &devices[device_count];

		if ((id & 0xFFFF) != VIRTIO_VENDOR)
			continue;
		*device = (struct device){
			.type = (id >> 16) - FIRST_DEVICE_ID,
			.pci = true,
			.space = space,
			.bar_register = space + 0x10,
			.base = (u64)read32(space + 0x14) << 32 | (read32(space + 0x10) & ~0xFU),
		};
		/* Memory decoding and bus mastering. */
		write16(space + 4, 6);
		if (!capabilities_read(device))
			return false;
		add(device);
	}
	return device_count > 0;
}

static bool mmio_found(void)
{
	for (u64 slot = 0; slot < MMIO_SLOTS && device_count < MAX_DEVICES; slot++) {
		u64 base = VIRTIO_MMIO + slot * VIRTIO_MMIO_BYTES;
		struct device *device = &devices[device_count];

		if (read32(base + MAGIC) != 0x74726976)
			break;
		*device = (struct device){ .type = read32(base + DEVICE_ID), .base = base };
		device->own = base + OWN;
		add(device);
	}
	return device_count > 0;
}

bool devices_found(void)
{
	if (device_count)
		return true;
	/* Where there is no bus, nobody answers. */
	return read32(ECAM) == 0xFFFFFFFF ? mmio_found() : pci_found();
}

bool device_reset(const struct device *device)
{
	u64 start = rdtsc();

	/* A device that is late wants to be asked again. */
	do {
		device_set_status(device, 0);
		if (!device_status(device))
			return true;
	} while (is_early(start));
	return false;
}

void device_fresh(struct device *device)
{
	for (u32 queue = 0; queue < device->queues; queue++) {
		struct ring *ring = &device->rings[queue];

		ring->avail.flags = ring->avail.index = ring->avail.used_event = 0;
		ring->used.flags = ring->used.index = 0;
		device->layout[queue] = (struct layout){
			RING_SIZE, (u64)ring->desc, (u64)&ring->avail, (u64)&ring->used,
		};
	}
}

static void write_address(u64 at, u64 address)
{
	write32(at, (u32)address);
	write32(at + 4, (u32)(address >> 32));
}

static void queue_begin(const struct device *device, u32 queue)
{
	const struct layout *layout = &device->layout[queue];
	u64 at = device->pci ? device->common + PCI_QUEUE_DESC : device->base + QUEUE_DESC;
	u64 step = device->pci ? 8 : 0x10;

	queue_select(device, queue);
	if (device->pci)
		write16(device->common + PCI_QUEUE_SIZE, (u16)layout->size);
	else
		write32(device->base + QUEUE_NUM, layout->size);
	write_address(at, layout->desc);
	write_address(at + step, layout->avail);
	write_address(at + 2 * step, layout->used);
	if (device->pci)
		write16(device->common + PCI_QUEUE_ENABLE, 1);
	else
		write32(device->base + QUEUE_READY, 1);
}

bool device_begin(struct device *device)
{
	if (!device_reset(device))
		return false;
	device_set_status(device, ACKNOWLEDGE | DRIVER);
	accept(device, device->features);
	device_set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(device_status(device) & FEATURES_OK))
		return false;
	for (u32 queue = 0; queue < device->queues; queue++)
		queue_begin(device, queue);
	device_set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	return true;
}

void device_kick(const struct device *device, u32 queue)
{
	full_barrier();
	if (device->pci)
		write16(device->notify + queue * device->notify_bytes, (u16)queue);
	else
		write32(device->base + QUEUE_NOTIFY, queue);
}

void device_offer(struct device *device, u32 queue)
{
	struct ring *ring = &device->rings[queue];

	ring->avail.ring[ring->avail.index % RING_SIZE] = 0;
	barrier();
	ring->avail.index = (u16)(ring->avail.index + 1);
}

/* One descriptor for a buffer that the device reads, or writes. */
static u32 single(struct ring *ring, u32 bytes, u16 flags)
{
	ring->desc[0] = (struct desc){ (u64)ring->data, bytes, flags, 0 };
	return 1;
}

/* A read of one sector: header, data, status. */
static u32 block_request(struct ring *ring, u64 sector)
{
	*(volatile u64 *)ring->head = 0;
	*(volatile u64 *)(ring->head + 8) = sector;
	ring->tail[0] = 0xFF;
	ring->desc[0] = (struct desc){ (u64)ring->head, 16, NEXT, 1 };
	ring->desc[1] = (struct desc){ (u64)ring->data, SECTOR_BYTES, NEXT | WRITE, 2 };
	ring->desc[2] = (struct desc){ (u64)ring->tail, 1, WRITE, 0 };
	return 3;
}

/* To all, of a protocol for experiments: no host answers it. */
static u32 frame(struct ring *ring)
{
	for (int i = 0; i < 72; i++)
		ring->data[i] = i >= 12 && i < 18 ? 0xFF : 0;
	ring->data[18] = 0x02;
	ring->data[24] = 0x88;
	ring->data[25] = 0xB5;
	return single(ring, 72, 0);
}

/* A REQUEST to a port that nobody listens at. */
static u32 packet(struct ring *ring, const struct device *device)
{
	volatile u64 *words = (volatile u64 *)ring->data;
	volatile u32 *halves = (volatile u32 *)ring->data;

	words[0] = read32(device->own);
	words[1] = 2;
	halves[4] = 1024;
	halves[5] = 52;
	halves[6] = 0;
	halves[7] = 1 | 1 << 16;
	halves[8] = 0;
	halves[9] = BUFFER_BYTES;
	halves[10] = 0;
	return single(ring, 44, 0);
}

/* Queues of a balloon: inflate and deflate name a page, the last may be reports of free memory. */
static u32 balloon_request(struct ring *ring, u32 queue)
{
	static u8 spare[RAM_PAGE] __attribute__((aligned(RAM_PAGE)));

	if (queue == 4) {
		ring->desc[0] = (struct desc){ (u64)spare, RAM_PAGE, WRITE, 0 };
		return 1;
	}
	*(volatile u64 *)ring->data = queue < 2 ? (u64)spare / RAM_PAGE : 0;
	return single(ring, queue == 2 ? 10 : 4, 0);
}

u32 device_request(struct device *device, u32 queue, u64 sector)
{
	struct ring *ring = &device->rings[queue];

	switch (device->type) {
	case BLOCK:
		return block_request(ring, sector);
	case NET:
		return queue ? frame(ring) : single(ring, 2048, WRITE);
	case BALLOON:
		return balloon_request(ring, queue);
	case VSOCK:
		return queue == 1 ? packet(ring, device) : single(ring, 2048, WRITE);
	default:
		return single(ring, 64, WRITE);
	}
}

bool device_answers(const struct device *device, u32 queue, u16 count)
{
	u64 start = rdtsc();

	while (device->rings[queue].used.index != count)
		if (!is_early(start))
			return false;
	barrier();
	return true;
}

bool device_works(struct device *device, u64 sector)
{
	u32 queue = device->type == NET || device->type == VSOCK ? 1 : 0;
	struct ring *ring = &device->rings[queue];

	device_fresh(device);
	if (!device_begin(device))
		return false;
	if (device->type == VSOCK) {
		/* For the refusal. */
		device_request(device, 0, 0);
		device_offer(device, 0);
	}
	device_request(device, queue, sector);
	device_offer(device, queue);
	device_kick(device, queue);
	if (!device_answers(device, queue, 1))
		return false;
	if (device->type == VSOCK && !device_answers(device, 0, 1))
		return false;
	if (device->type == RNG && ring->used.ring[0].bytes != 64)
		return false;
	/* The word of a sector says which one it is. */
	if (device->type == BLOCK &&
	    (ring->tail[0] || *(volatile u64 *)ring->data % (1 << 16) != sector * 64))
		return false;
	return device_status(device) == (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}
