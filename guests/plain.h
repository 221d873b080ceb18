/*
 * What the guests' small programs share that need no C library: system calls, words on the
 * console, and the program's begin. Each has a `run(count, words)`, which gives its status.
 */

static long call6(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

#define call(number, a, b, c) call6(number, (long)(a), (long)(b), (long)(c), 0, 0)

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_CLOSE = 3, SYS_SOCKET = 41, SYS_CONNECT = 42,
       SYS_ACCEPT = 43, SYS_SHUTDOWN = 48, SYS_BIND = 49, SYS_LISTEN = 50, SYS_EXIT = 60 };

static void say_to(int descriptor, const char *text)
{
	long length = 0;

	while (text[length])
		length++;
	call(SYS_WRITE, descriptor, text, length);
}

__attribute__((unused)) static void say(const char *text)
{
	say_to(2, text);
}

__attribute__((unused)) static void say_number_to(int descriptor, unsigned long number)
{
	char digits[24];
	int at = sizeof(digits);

	digits[--at] = 0;
	do {
		digits[--at] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	say_to(descriptor, digits + at);
}

__attribute__((noreturn)) static void end(long status)
{
	for (;;)
		call(SYS_EXIT, status, 0, 0);
}

/* Ends the program when `result` is an error of what was tried. */
static long check(const char *what, long result)
{
	if (result >= 0)
		return result;
	say(NAME ": ");
	say(what);
	say(" failed with error ");
	say_number_to(2, (unsigned long)-result);
	say("\n");
	end(1);
}

static unsigned long parse(const char *text)
{
	unsigned long number = 0;

	while (*text >= '0' && *text <= '9')
		number = number * 10 + (unsigned long)(*text++ - '0');
	return number;
}

static long run(long count, char **words);

__attribute__((used)) static void begin(long *stack)
{
	end(run(stack[0], (char **)(stack + 1)));
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n");
