/*
 * Speaks over a vsock in a guest that has nothing but busybox. Needs no C library.
 *
 *   vitrine-peer connect CID PORT   sends its input, says that it has ended, and prints what comes back
 *   vitrine-peer echo PORT          sends back what comes, one caller after another, until it is killed
 */

#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SHUT_WR 1
#define CID_ANY 0xffffffffu

enum { READ = 0, WRITE = 1, CLOSE = 3, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SHUTDOWN = 48,
       BIND = 49, LISTEN = 50, EXIT = 60 };

/* struct sockaddr_vm of linux/vm_sockets.h */
struct address {
	unsigned short family;
	unsigned short reserved;
	unsigned int port;
	unsigned int cid;
	unsigned char flags_and_zeroes[4];
};

static char buffer[65536];

static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

static void say(const char *text)
{
	long length = 0;

	while (text[length])
		length++;
	call(WRITE, 2, (long)text, length);
}

static void end(long status)
{
	for (;;)
		call(EXIT, status, 0, 0);
}

/* Ends the program when `result` is an error of what was tried. */
static long check(const char *what, long result)
{
	char digits[24];
	int at = sizeof(digits);
	long number = -result;

	if (result >= 0)
		return result;
	digits[--at] = 0;
	digits[--at] = '\n';
	do {
		digits[--at] = '0' + number % 10;
		number /= 10;
	} while (number);
	say("vitrine-peer: ");
	say(what);
	say(" failed with error ");
	say(digits + at);
	end(1);
	return 0;
}

static unsigned int parse(const char *text)
{
	unsigned int number = 0;

	while (*text >= '0' && *text <= '9')
		number = number * 10 + (unsigned int)(*text++ - '0');
	return number;
}

static void send_all(long to, long length)
{
	long at = 0;

	while (at < length)
		at += check("write", call(WRITE, to, (long)(buffer + at), length - at));
}

static void copy(long from, long to)
{
	long length;

	while ((length = check("read", call(READ, from, (long)buffer, sizeof(buffer)))) > 0)
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
	long peer = check("socket", call(SOCKET, AF_VSOCK, SOCK_STREAM, 0));

	set(&address, cid, port);
	check("connect", call(CONNECT, peer, (long)&address, sizeof(address)));
	copy(0, peer);
	check("shutdown", call(SHUTDOWN, peer, SHUT_WR, 0));
	copy(peer, 1);
}

static void echo(unsigned int port)
{
	struct address address;
	long listener = check("socket", call(SOCKET, AF_VSOCK, SOCK_STREAM, 0));

	set(&address, CID_ANY, port);
	check("bind", call(BIND, listener, (long)&address, sizeof(address)));
	check("listen", call(LISTEN, listener, 8, 0));
	say("vitrine-peer: listens\n");
	for (;;) {
		long peer = check("accept", call(ACCEPT, listener, 0, 0));

		copy(peer, peer);
		call(CLOSE, peer, 0, 0);
	}
}

__attribute__((used)) static void begin(long *stack)
{
	long count = stack[0];
	char **words = (char **)(stack + 1);

	if (count == 4 && words[1][0] == 'c')
		connect_to(parse(words[2]), parse(words[3]));
	else if (count == 3 && words[1][0] == 'e')
		echo(parse(words[2]));
	else {
		say("usage: vitrine-peer connect CID PORT | vitrine-peer echo PORT\n");
		end(2);
	}
	end(0);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n");
