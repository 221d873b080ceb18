/*
 * Sends and receives many bytes over TCP of which each is known.
 *
 *   vitrine-stream send ADDRESS PORT SEED MIB      connects, and sends so many MiB
 *   vitrine-stream receive ADDRESS PORT SEED MIB   connects, takes them, and compares each word
 *
 * The stream is that of an xorshift generator, which begins with the seed. Both tell the sum of all
 * words: SUM=...; a difference ends the program with status 1. tests/linux/stream.rs is the other end.
 */

#define NAME "vitrine-stream"
#include "../plain.h"

#define AF_INET 2
#define SOCK_STREAM 1

typedef unsigned long u64;

/* struct sockaddr_in of linux/in.h */
struct address {
	unsigned short family;
	unsigned short port;
	unsigned char ip[4];
	unsigned char zeroes[8];
};

static u64 buffer[8192];
static u64 state, sum;

static u64 next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	sum += state;
	return state;
}

static long connect_to(const char *ip, unsigned long port)
{
	struct address address = { .family = AF_INET };
	long peer = check("socket", call(SYS_SOCKET, AF_INET, SOCK_STREAM, 0));

	address.port = (unsigned short)(port >> 8 | (port & 255) << 8);
	for (int i = 0; i < 4; i++) {
		address.ip[i] = (unsigned char)parse(ip);
		while (*ip && *ip++ != '.')
			;
	}
	check("connect", call(SYS_CONNECT, peer, &address, sizeof(address)));
	return peer;
}

static void send(long peer, u64 bytes)
{
	for (; bytes; bytes -= sizeof(buffer)) {
		u64 at = 0;

		for (u64 i = 0; i < sizeof(buffer) / 8; i++)
			buffer[i] = next();
		while (at < sizeof(buffer))
			at += (u64)check("write", call(SYS_WRITE, peer, (char *)buffer + at,
						       sizeof(buffer) - at));
	}
}

static void receive(long peer, u64 bytes)
{
	for (u64 done = 0; done < bytes;) {
		u64 at = 0;

		/* Whole buffers, so that words are whole. */
		while (at < sizeof(buffer)) {
			long now = check("read", call(SYS_READ, peer, (char *)buffer + at,
						      sizeof(buffer) - at));

			if (now == 0)
				check("a whole stream", -5);
			at += (u64)now;
		}
		for (u64 i = 0; i < sizeof(buffer) / 8; i++)
			if (buffer[i] != next()) {
				say(NAME ": word ");
				say_number_to(2, done / 8 + i);
				say(" is another\n");
				end(1);
			}
		done += sizeof(buffer);
	}
}

static long run(long count, char **words)
{
	long peer;

	if (count != 6) {
		say("usage: " NAME " send|receive ADDRESS PORT SEED MIB\n");
		return 2;
	}
	state = parse(words[4]);
	peer = connect_to(words[2], parse(words[3]));
	if (words[1][0] == 's')
		send(peer, parse(words[5]) << 20);
	else
		receive(peer, parse(words[5]) << 20);
	say_to(1, "SUM=");
	say_number_to(1, sum);
	say_to(1, "\n");
	return 0;
}
