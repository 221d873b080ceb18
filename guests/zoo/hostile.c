/*
 * The hostile driver: everything in faults.c to every device but the first, which has to be a drive
 * and goes on serving meanwhile.
 */
#include "device.h"

/* Of the good drive that are read in turn. */
#define SECTORS 16
/* Looks at a device that is not broken by what was done to it, before the next one's turn. */
#define LOOKS 50
/* Not a multiple of the devices. */
#define DEED_EVERY 47

static u64 reads;

/* One sector of the good drive, whose first word tells which one it is. */
static bool is_served(void)
{
	struct device *good = &devices[0];
	struct ring *ring = good->rings;
	u64 sector = reads % SECTORS;

	device_request(good, 0, sector);
	device_offer(good, 0);
	device_kick(good, 0);
	if (!device_answers(good, 0, (u16)(reads + 1)))
		return false;
	reads++;
	return !ring->tail[0] && *(volatile u64 *)ring->data % (1 << 16) == sector * 64;
}

static bool is_told(const char *what, const char *fault, u32 slot)
{
	put("zoo: ");
	put(what);
	put(" ");
	put(fault);
	put(" ");
	put_number(slot);
	put("\n");
	return false;
}

static bool begun(void)
{
	if (!devices_found() || device_count < 2 || devices[0].type != BLOCK)
		return is_told("needs a drive and another device, not", "", device_count);
	device_fresh(&devices[0]);
	reads = 0;
	return device_begin(&devices[0]);
}

static bool key_pressed(void)
{
	if (!(inb(SERIAL + 5) & 1))
		return false;
	inb(SERIAL);
	return true;
}

/* What was broken stays so until somebody has looked at it. */
static bool held(const struct fault *fault)
{
	put("hostile ");
	put(fault->name);
	put(" held\n");
	while (!key_pressed()) {
		if (!is_served())
			return is_told("the good drive does not serve during", fault->name, 0);
		rest(10);
	}
	return true;
}

static bool all_done(const struct fault *fault)
{
	for (u32 slot = 1; slot < device_count; slot++)
		if (!fault_done(fault, &devices[slot], MAX_QUEUES))
			return is_told("not as it should be:", fault->name, slot);
	if (!held(fault))
		return false;
	for (u32 slot = 1; slot < device_count; slot++) {
		if (!device_works(&devices[slot], slot))
			return is_told("does not work again after", fault->name, slot);
		if (!device_reset(&devices[slot]))
			return is_told("cannot be reset after", fault->name, slot);
	}
	put("hostile ");
	put(fault->name);
	put(" works\n");
	return true;
}

bool command_hostile(struct text fields)
{
	bool all = fields.at == fields.end, any = false;

	if (!begun())
		return false;
	for (u32 i = 0; i < fault_count; i++) {
		if (!all && !same(fields, faults[i].name))
			continue;
		any = true;
		if (!all_done(&faults[i]))
			return false;
	}
	put("hostile over, good=");
	put_number(reads);
	put("\n");
	return any;
}

/* One fault of one queue, as fast as the device takes it. */
static bool broken_once(const struct fault *fault, struct device *device, u32 queue)
{
	u64 start = rdtsc();

	if (!fault_done(fault, device, queue))
		return is_told("not as it should be:", fault->name, device->slot);
	for (u32 i = 0; i < LOOKS || fault_breaks(fault); i++) {
		if (device_status(device) & NEEDS_RESET || device->rings[queue].used.index)
			break;
		if (!is_early(start))
			return is_told("not told of", fault->name, device->slot);
	}
	if (!device_reset(device))
		return is_told("cannot be reset after", fault->name, device->slot);
	return true;
}

/* The next fault after this one that is a deed, or is none. */
static u32 next_fault(u32 fault, bool deed)
{
	do
		fault = (fault + 1) % fault_count;
	while ((faults[fault].deed != NULL) != deed);
	return fault;
}

bool command_hostile_storm(struct text fields)
{
	u64 count = field(&fields, 1000);
	u32 slot = 1, fault = 0, deed = 0, queue = 0;

	if (!begun())
		return false;
	for (u64 i = 0; i < count; i++) {
		struct device *device = &devices[slot];

		if (!broken_once(&faults[fault], device, queue % device->queues))
			return false;
		if (i % 16 == 0 && !is_served())
			return is_told("the good drive does not serve during", faults[fault].name, 0);
		/* Deeds take as long as many faults do. */
		if (i % DEED_EVERY == DEED_EVERY - 1) {
			deed = next_fault(deed, true);
			if (!broken_once(&faults[deed], device, 0))
				return false;
		}
		if (++slot < device_count)
			continue;
		slot = 1;
		fault = next_fault(fault, false);
		queue += fault == 0;
	}
	for (slot = 1; slot < device_count; slot++) {
		if (!device_works(&devices[slot], slot) || !device_reset(&devices[slot]))
			return is_told("does not work again after", "the storm", slot);
	}
	put("hostile_storm ok ");
	put_number(count);
	put("\n");
	return true;
}

/* Waits for a key. */
bool command_key(struct text fields)
{
	(void)fields;
	while (!key_pressed())
		rest(10);
	return true;
}
