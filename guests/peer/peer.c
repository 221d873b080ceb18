/*
 * Speaks over a vsock in a guest that has nothing but busybox. Needs no C library.
 *
 *   vitrine-peer connect CID PORT   sends its input, says that it has ended, and prints what comes back
 *   vitrine-peer echo PORT          sends back what comes, one caller after another, until it is killed
 */

#define NAME "vitrine-peer"
#include "../plain.h"

#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SHUT_WR 1
#define CID_ANY 0xffffffffu

/* struct sockaddr_vm of linux/vm_sockets.h */
struct address {
	unsigned short family;
	unsigned short reserved;
	unsigned int port;
	unsigned int cid;
	unsigned char flags_and_zeroes[4];
};

static char buffer[65536];

static void send_all(long to, long length)
{
	long at = 0;

	while (at < length)
		at += check("write", call(SYS_WRITE, to, buffer + at, length - at));
}

static void copy(long from, long to)
{
	long length;

	while ((length = check("read", call(SYS_READ, from, buffer, sizeof(buffer)))) > 0)
		send_all(to, length);
}

static void set(struct address *address, unsigned int cid, unsigned int port)
{
	address->family = AF_VSOCK;
	address->reserved = 0;
	address->port = port;
	address->cid = cid;
	for (int i = 0; i < 4; i++)
		address->flags_and_zeroes[i] = 0;
}

static void connect_to(unsigned int cid, unsigned int port)
{
	struct address address;
	long peer = check("socket", call(SYS_SOCKET, AF_VSOCK, SOCK_STREAM, 0));

	set(&address, cid, port);
	check("connect", call(SYS_CONNECT, peer, &address, sizeof(address)));
	copy(0, peer);
	check("shutdown", call(SYS_SHUTDOWN, peer, SHUT_WR, 0));
	copy(peer, 1);
}

static void echo(unsigned int port)
{
	struct address address;
	long listener = check("socket", call(SYS_SOCKET, AF_VSOCK, SOCK_STREAM, 0));

	set(&address, CID_ANY, port);
	check("bind", call(SYS_BIND, listener, &address, sizeof(address)));
	check("listen", call(SYS_LISTEN, listener, 8, 0));
	say("vitrine-peer: listens\n");
	for (;;) {
		long peer = check("accept", call(SYS_ACCEPT, listener, 0, 0));

		copy(peer, peer);
		call(SYS_CLOSE, peer, 0, 0);
	}
}

static long run(long count, char **words)
{
	if (count == 4 && words[1][0] == 'c')
		connect_to((unsigned int)parse(words[2]), (unsigned int)parse(words[3]));
	else if (count == 3 && words[1][0] == 'e')
		echo((unsigned int)parse(words[2]));
	else {
		say("usage: vitrine-peer connect CID PORT | vitrine-peer echo PORT\n");
		return 2;
	}
	return 0;
}
