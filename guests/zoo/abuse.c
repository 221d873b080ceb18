/*
 * What can be done to a device beside its rings. Each is done to a device at work, and leaves it so
 * that a reset makes it work again; false when it was not as it should be meanwhile.
 */
#include "device.h"

#define STORM_KICKS 500
#define RESETS 20
/* Writes to registers that do something whatever is written. */
#define MMIO_STATUS 0x070
#define MMIO_QUEUE_NOTIFY 0x050
#define MMIO_INTERRUPT_ACK 0x064
#define MMIO_OWN 0x100
#define MSIX_TABLE 0x4000
#define COMMON_BYTES 0x38

static bool is_whole(const struct device *device)
{
	return !(device_status(device) & NEEDS_RESET);
}

/* One good request beside all that is done; true if it is answered. */
static bool answers_once(struct device *device, u16 count)
{
	u32 queue = device->type == NET || device->type == VSOCK ? 1 : 0;

	device_request(device, queue, 1);
	device_offer(device, queue);
	device_kick(device, queue);
	return device_answers(device, queue, count);
}

static bool mmio_read_only(struct device *device)
{
	/* What is there before the queues' registers, and behind them. */
	static const u16 registers[] = {
		0x000, 0x004, 0x008, 0x00C, 0x010, 0x034, 0x060, 0x0B0, 0x0B4, 0x0FC, 0x0F0, 0x018,
	};

	for (u32 i = 0; i < sizeof(registers) / sizeof(registers[0]); i++) {
		u32 before = read32(device->base + registers[i]);

		write32(device->base + registers[i], ~before);
		if (registers[i] != 0x060 && read32(device->base + registers[i]) != before)
			return false;
	}
	return true;
}

static bool pci_read_only(struct device *device)
{
	/* Ids, class, header, subsystem, capabilities, pin; and the length of the first capability. */
	static const u8 places[] = { 0x00, 0x08, 0x2C, 0x30, 0x34, 0x40, 0x44, 0x48, 0x4C, 0xFC };
	static const u8 common[] = { 0x04, 0x12, 0x1E };

	for (u32 i = 0; i < sizeof(places); i++) {
		u32 before = read32(device->space + places[i]);

		write32(device->space + places[i], ~before);
		if (read32(device->space + places[i]) != before)
			return false;
	}
	for (u32 i = 0; i < sizeof(common); i++) {
		u16 before = read16(device->common + common[i]);

		write16(device->common + common[i], (u16)~before);
		if (read16(device->common + common[i]) != before)
			return false;
	}
	return true;
}

bool deed_read_only(struct device *device)
{
	u32 own = read32(device->own);

	/* The first words of no device's configuration are its driver's. */
	write32(device->own, ~own);
	if (read32(device->own) != own)
		return false;
	if (!(device->pci ? pci_read_only(device) : mmio_read_only(device)))
		return false;
	return is_whole(device) && answers_once(device, 1);
}

/* Steps of the status that are none. */
bool deed_status(struct device *device)
{
	static const u8 steps[] = {
		ACKNOWLEDGE, DRIVER, DRIVER_OK, NEEDS_RESET, 0x30, 0x7F, FEATURES_OK | DRIVER_OK,
	};
	u8 before = device_status(device);

	for (u32 i = 0; i < sizeof(steps); i++)
		device_set_status(device, steps[i]);
	if ((device_status(device) & before) != before || !answers_once(device, 1))
		return false;
	/* The same before the device begins, where they would make it begin. */
	if (!device_reset(device))
		return false;
	for (u32 i = 1; i < sizeof(steps); i++)
		device_set_status(device, steps[i]);
	return !(device_status(device) & DRIVER_OK);
}

/* Kicks of queues that are not there, and of those that are while nobody drives the device. */
bool deed_no_queue(struct device *device)
{
	static const u32 numbers[] = { 5, 6, 255, 256, 0x3FF };

	for (u32 i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		device_kick(device, numbers[i]);
	if (!device->pci)
		for (u32 bit = 8; bit < 32; bit++)
			device_kick(device, 1U << bit);
	if (!is_whole(device) || !answers_once(device, 1) || !device_reset(device))
		return false;
	for (u32 queue = 0; queue < MAX_QUEUES; queue++)
		device_kick(device, queue);
	return is_whole(device);
}

bool deed_storm(struct device *device)
{
	for (u32 i = 0; i < STORM_KICKS; i++)
		for (u32 queue = 0; queue < device->queues; queue++)
			device_kick(device, queue);
	return is_whole(device) && answers_once(device, 1);
}

/* Resets while requests are on their way. */
bool deed_reset(struct device *device)
{
	for (u32 i = 0; i < RESETS; i++) {
		for (u32 queue = 0; queue < device->queues; queue++) {
			struct ring *ring = &device->rings[queue];

			device_request(device, queue, i);
			for (int at = 0; at < RING_SIZE; at++)
				ring->avail.ring[at] = 0;
			barrier();
			/* The same descriptors many times: nobody forbids it. */
			ring->avail.index = RING_SIZE / 2;
			device_kick(device, queue);
		}
		if (!device_reset(device))
			return false;
		device_fresh(device);
		if (!device_begin(device))
			return false;
	}
	return is_whole(device) && answers_once(device, 1);
}

/* Accesses of every width at every place, but for what would reset or begin something. */
bool deed_widths(struct device *device)
{
	u64 from = device->pci ? device->common : device->base;
	u64 bytes = device->pci ? COMMON_BYTES + 8 : MMIO_OWN;

	for (u64 at = from; at < from + bytes; at += 3) {
		read8(at);
		read16(at);
		read32(at);
		*(volatile u64 *)at;
	}
	if (device->pci) {
		write64(device->common + 0x14, ~0UL);
		write32(device->common + 0x10, ~0U);
		write16(device->common + 0x15, 0);
		write8(device->common + 0x18, 0);
		write32(device->notify + 1, ~0U);
		write64(device->notify, ~0UL);
		write16(device->base + 0x7FFE, 0);
		write16(device->base + 0x6000, 0);
		read16(device->base + 0x7FFE);
		read32(device->base + 0x6000);
	} else {
		write8(device->base + MMIO_STATUS, 0);
		write16(device->base + MMIO_STATUS, 0);
		write64(device->base + MMIO_STATUS, 0);
		write8(device->base + MMIO_QUEUE_NOTIFY, 0);
		write32(device->base + MMIO_STATUS + 1, 0);
		write32(device->base + 0xFFE, 0);
	}
	return is_whole(device) && answers_once(device, 1);
}

/* Moves the BAR over memory, other devices, the local APIC and the bus itself. */
bool deed_bar(struct device *device)
{
	u64 others[] = { 0, 1UL << 20, devices[0].base, 0xFEE00000, 0xE0000000, 0xFFFFFFF0, 0x8000 };
	u32 low, high, size;

	if (!device->pci)
		return true;
	low = read32(device->bar_register);
	high = read32(device->bar_register + 4);
	for (u32 i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		if (others[i] == device->base)
			continue;
		write32(device->bar_register, (u32)others[i]);
		write32(device->bar_register + 4, (u32)i);
		if (read32(device->bar_register) != low || read32(device->bar_register + 4) != high)
			return false;
	}
	write8(device->bar_register + 1, 0);
	write16(device->bar_register + 2, 0);
	/* Sized with its memory on, as some drivers do. */
	write32(device->bar_register, ~0U);
	size = ~(read32(device->bar_register) & ~0xFU) + 1;
	if (!answers_once(device, 1))
		return false;
	write32(device->bar_register, low);
	write32(device->bar_register + 4, high);
	/* The BARs that the function does not have. */
	for (u32 at = 8; at < 24; at += 4) {
		write32(device->bar_register + at, ~0U);
		if (read32(device->bar_register + at))
			return false;
	}
	return size == 0x8000 && read32(device->bar_register) == low && answers_once(device, 2);
}

/* Takes the memory away while requests are on their way, and gives it back. */
bool deed_decoding(struct device *device)
{
	u32 queue = device->type == NET || device->type == VSOCK ? 1 : 0;

	if (!device->pci)
		return true;
	device_request(device, queue, 1);
	device_offer(device, queue);
	device_kick(device, queue);
	write16(device->space + 4, 0);
	for (u64 at = 0; at < 0x6000; at += 0x1000) {
		if (read32(device->base + at) != 0xFFFFFFFF)
			return false;
		if (at != 0x3000)
			write32(device->base + at, 0);
	}
	write16(device->space + 4, 6);
	if (!device_answers(device, queue, 1))
		return false;
	return is_whole(device) && answers_once(device, 2);
}

static void message(u64 entry, u64 address, u32 data, u32 control)
{
	write32(entry, (u32)address);
	write32(entry + 4, (u32)(address >> 32));
	write32(entry + 8, data);
	write32(entry + 12, control);
}

/* Messages to memory, to devices and to nowhere, of kinds that there are not; and none at all. */
bool deed_messages(struct device *device)
{
	static const u64 addresses[] = {
		0, 1UL << 20, 0xFEE00000, 0xFEEFF00C, 0xFEC00000, 0xFFFFFFFC, ~3UL, 1UL << 63,
	};
	u64 control = device->msix + 2;
	u64 table = device->base + MSIX_TABLE;
	u32 count;

	if (!device->pci)
		return true;
	count = (read16(control) & 0x7FF) + 1U;
	write16(device->common + 0x10, 0xFFFE);
	write16(device->common + 0x10, (u16)count);
	if (read16(device->common + 0x10) != 0xFFFF)
		return false;
	write16(device->common + 0x10, 0);
	for (u32 queue = 0; queue < device->queues; queue++) {
		write16(device->common + 0x16, (u16)queue);
		write16(device->common + 0x1A, (u16)(queue + 1));
	}
	write16(control, 0x8000);
	for (u32 i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
		/* Fixed, and kinds 1 and 3 of delivery, which no interrupt controller takes. */
		for (u32 at = 0; at < count; at++)
			message(table + 16 * at, addresses[i], at % 2 ? 0xFFFF0300 : i, 0);
		if (!answers_once(device, (u16)(i + 1)))
			return false;
		write16(control, i % 2 ? 0xC000 : 0x8000);
		write16(control, 0x8000);
	}
	/* Behind the table, in parts, and what is pending. */
	message(table + 16 * count, ~0UL, ~0U, 0);
	write8(table, 1);
	write16(table + 12, 1);
	write32(device->base + 0x5000, ~0U);
	write16(control, 0xFFFF);
	if ((read16(control) & 0x7FF) + 1U != count)
		return false;
	write16(control, 0);
	return is_whole(device) && answers_once(device, 9);
}

/* Leads the window in the configuration space to where nothing is, and to itself. */
bool deed_window(struct device *device)
{
	static const u32 places[] = { 0, 1, 0x3001, 0x6000, 0x7FFF, 0x8000, 0xFFFFFFFF };
	u64 window = 0;

	if (!device->pci)
		return true;
	for (u64 at = read8(device->space + 0x34); at; at = read8(device->space + at + 1))
		if (read8(device->space + at) == 0x09 && read8(device->space + at + 3) == 5)
			window = device->space + at;
	if (!window)
		return false;
	for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		for (u32 bytes = 0; bytes < 6; bytes++) {
			write8(window + 4, (u8)(i == 6));
			write32(window + 8, places[i]);
			write32(window + 12, bytes);
			read32(window + 16);
			read8(window + 17);
			/* Not to the common structure, where it would be a command. */
			if (places[i] > 1)
				write32(window + 16, ~0U);
		}
	}
	return is_whole(device) && answers_once(device, 1);
}
