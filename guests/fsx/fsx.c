/*
 * Random work on a drive of which each byte is known, as fsx does it with files.
 *
 *   vitrine-fsx DEVICE SEED OPERATIONS
 *
 * Reads, writes, discards, zeros of both kinds and flushes, of sizes and at places that the seed
 * decides, up to 16 at a time, past the page cache. A sector holds its number, the operation that
 * wrote it, and words made from both; one that was never written, or that was discarded or zeroed
 * since, holds zeros. Each read is compared. In the end all that is written is read again, and a
 * digest of what each sector holds is told: DIGEST=..., or the program ends with status 1.
 *
 * tests/linux/fsx.rs knows the same sequence and compares the image with it.
 */

#define NAME "vitrine-fsx"
#include "../plain.h"

typedef unsigned long u64;
typedef unsigned int u32;

enum { SYS_PREAD = 17, SYS_IOCTL = 16, SYS_FDATASYNC = 75, SYS_IO_SETUP = 206,
       SYS_IO_GETEVENTS = 208, SYS_IO_SUBMIT = 209, SYS_FALLOCATE = 285 };

#define O_RDWR 2
#define O_DIRECT 040000
#define BLKDISCARD 0x1277
#define BLKZEROOUT 0x127f
#define KEEP_SIZE_PUNCH_HOLE 3

#define SECTOR 512ul
#define WORDS 64
#define SECTORS (1ul << 22) /* 2 GiB */
#define MOST 2048ul	    /* sectors of an operation: 1 MiB */
#define DEPTH 16
#define HOT 8192ul	    /* sectors of a place where much happens */

enum { READ, WRITE, DISCARD, ZERO_UNMAP, ZERO_KEEP, FLUSH };

struct operation {
	int kind;
	u64 sector, count;
};

struct iocb {
	u64 data;
	u32 key, flags_of_write;
	unsigned short opcode;
	short priority;
	u32 descriptor;
	u64 buffer, bytes, offset, reserved;
	u32 flags, event;
};

struct io_event {
	u64 data, iocb;
	long result, result2;
};

static u32 writer[SECTORS]; /* the operation that wrote a sector, from 1 on; 0: it holds zeros */
static char buffers[DEPTH][(MOST + 8) * SECTOR] __attribute__((aligned(4096)));
static u64 seed;
static long device, context;

/* splitmix64 */
static u64 chance(u64 from, u64 number)
{
	u64 z = from + (number + 1) * 0x9E3779B97F4A7C15ul;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ul;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBul;
	return z ^ (z >> 31);
}

static struct operation operation(u64 index)
{
	static const int kinds[16] = { READ, READ, READ, READ, READ, READ, WRITE, WRITE, WRITE, WRITE,
				       WRITE, WRITE, DISCARD, ZERO_UNMAP, ZERO_KEEP, FLUSH };
	u64 a = chance(seed, 2 * index), b = chance(seed, 2 * index + 1);
	struct operation made;

	made.kind = kinds[a & 15];
	made.count = 1 + (a >> 16 & 0xffff) % (1ul << (a >> 8 & 255) % 12);
	if (b & 1) {
		made.sector = (b >> 8) % (SECTORS - made.count + 1);
	} else {
		u64 place = b >> 1 & 15;
		u64 first = place == 15 ? SECTORS - HOT : place * (SECTORS / 16);

		made.sector = first + (b >> 8) % (HOT - made.count + 1);
	}
	if ((b >> 5 & 3) == 0 && made.count >= 8) {
		made.sector &= ~7ul;
		made.count &= ~7ul;
	}
	return made;
}

/* The first word of a sector, or 0 if it holds zeros. */
static u64 head(u64 sector, u32 by)
{
	return by ? sector | (u64)by << 32 : 0;
}

static void fill(u64 *at, u64 sector, u64 count, u32 by)
{
	for (; count; count--, sector++) {
		u64 word = chance(seed, head(sector, by));

		*at++ = head(sector, by);
		for (int i = 1; i < WORDS; i++)
			*at++ = word += 0x9E3779B97F4A7C15ul;
	}
}

static void wrong(u64 sector, const u64 *found, int word)
{
	say(NAME ": word ");
	say_number_to(2, (u64)word);
	say(" of sector ");
	say_number_to(2, sector);
	say(", which operation ");
	say_number_to(2, writer[sector]);
	say(" wrote, is ");
	say_number_to(2, found[word]);
	say("; the sector begins as sector ");
	say_number_to(2, found[0] & 0xffffffff);
	say(" of operation ");
	say_number_to(2, found[0] >> 32);
	say("\n");
	end(1);
}

static void compare(const u64 *at, u64 sector, u64 count)
{
	for (; count; count--, sector++, at += WORDS) {
		u32 by = writer[sector];
		u64 word = by ? chance(seed, head(sector, by)) : 0;
		u64 step = by ? 0x9E3779B97F4A7C15ul : 0;

		if (at[0] != head(sector, by))
			wrong(sector, at, 0);
		for (int i = 1; i < WORDS; i++)
			if (at[i] != (word += step))
				wrong(sector, at, i);
	}
}

static int is_data(const struct operation *one)
{
	return one->kind == READ || one->kind == WRITE;
}

/* Whether the order of the two matters. */
static int collide(const struct operation *a, const struct operation *b)
{
	if (a->kind == FLUSH || b->kind == FLUSH || (a->kind == READ && b->kind == READ))
		return 0;
	return a->sector < b->sector + b->count && b->sector < a->sector + a->count;
}

static void erase(const struct operation *one)
{
	u64 range[2] = { one->sector * SECTOR, one->count * SECTOR };

	if (one->kind == FLUSH)
		check("fdatasync", call(SYS_FDATASYNC, device, 0, 0));
	else if (one->kind == DISCARD)
		check("BLKDISCARD", call(SYS_IOCTL, device, BLKDISCARD, range));
	else if (one->kind == ZERO_KEEP)
		check("BLKZEROOUT", call(SYS_IOCTL, device, BLKZEROOUT, range));
	else
		check("fallocate", call6(SYS_FALLOCATE, device, KEEP_SIZE_PUNCH_HOLE,
					 (long)range[0], (long)range[1], 0));
}

/* Where the data of a slot are: not always at the begin of a page. */
static u64 *data(int slot)
{
	return (u64 *)(buffers[slot] + (slot & 7) * SECTOR);
}

static void submit(const struct operation *all, int count, u64 first)
{
	struct iocb blocks[DEPTH];
	struct iocb *list[DEPTH];
	struct io_event events[DEPTH];
	long asked = 0, taken = 0, ended = 0;

	for (int i = 0; i < count; i++) {
		struct iocb *block = &blocks[asked];

		if (!is_data(&all[i]))
			continue;
		if (all[i].kind == WRITE)
			fill(data(i), all[i].sector, all[i].count, (u32)(first + (u64)i + 1));
		*block = (struct iocb){ 0 };
		block->data = all[i].count * SECTOR;
		block->opcode = all[i].kind == WRITE;
		block->descriptor = (u32)device;
		block->buffer = (u64)data(i);
		block->bytes = all[i].count * SECTOR;
		block->offset = all[i].sector * SECTOR;
		list[asked++] = block;
	}
	while (taken < asked)
		taken += check("io_submit", call(SYS_IO_SUBMIT, context, asked - taken, list + taken));
	for (int i = 0; i < count; i++)
		if (!is_data(&all[i]))
			erase(&all[i]);
	while (ended < asked) {
		long now = check("io_getevents", call6(SYS_IO_GETEVENTS, context, 1, asked - ended,
						       (long)events, 0));

		for (long i = 0; i < now; i++)
			if (check("a request", events[i].result) != (long)events[i].data)
				check("a whole request", -5);
		ended += now;
	}
}

/* Carries out as many operations from `first` on as can go together; gives their number. */
static int together(u64 first, u64 left)
{
	struct operation all[DEPTH];
	int count = 0;

	while (count < DEPTH && (u64)count < left) {
		int collides = 0;

		all[count] = operation(first + (u64)count);
		for (int i = 0; i < count; i++)
			collides |= collide(&all[i], &all[count]);
		if (collides)
			break;
		count++;
	}
	submit(all, count, first);
	for (int i = 0; i < count; i++) {
		const struct operation *one = &all[i];
		u32 by = one->kind == WRITE ? (u32)(first + (u64)i + 1) : 0;

		if (one->kind == READ)
			compare(data(i), one->sector, one->count);
		else if (one->kind != FLUSH)
			for (u64 at = 0; at < one->count; at++)
				writer[one->sector + at] = by;
	}
	return count;
}

/* Reads again all that is written. */
static void read_again(void)
{
	u64 sector = 0, count;

	while (sector < SECTORS) {
		if (!writer[sector]) {
			sector++;
			continue;
		}
		for (count = 1; count < MOST && sector + count < SECTORS && writer[sector + count];)
			count++;
		if (check("read", call6(SYS_PREAD, device, (long)buffers[0], (long)(count * SECTOR),
					(long)(sector * SECTOR), 0)) != (long)(count * SECTOR))
			check("a whole read", -5);
		compare((u64 *)buffers[0], sector, count);
		sector += count;
	}
}

static long run(long count, char **words)
{
	u64 operations, digest = 0xcbf29ce484222325ul;

	if (count != 4) {
		say("usage: " NAME " DEVICE SEED OPERATIONS\n");
		return 2;
	}
	seed = parse(words[2]);
	operations = parse(words[3]);
	device = check("open", call(SYS_OPEN, words[1], O_RDWR | O_DIRECT, 0));
	check("io_setup", call(SYS_IO_SETUP, DEPTH, &context, 0));
	for (u64 done = 0; done < operations;)
		done += (u64)together(done, operations - done);
	read_again();
	for (u64 sector = 0; sector < SECTORS; sector++)
		digest = (digest ^ writer[sector]) * 0x100000001b3ul;
	say_to(1, "DIGEST=");
	say_number_to(1, digest);
	say_to(1, "\n");
	return 0;
}
