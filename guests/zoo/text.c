/* Printing on the serial port, and reading words and numbers. */
#include "zoo.h"

void put_char(char c)
{
	while (!(inb(SERIAL + 5) & 0x20))
		;
	outb(SERIAL, (u8)c);
}

void put(const char *string)
{
	while (*string)
		put_char(*string++);
}

void put_text(struct text text)
{
	while (text.at < text.end)
		put_char(*text.at++);
}

void put_hex(u64 value)
{
	int shift = 60;

	put("0x");
	while (shift > 0 && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put_char("0123456789abcdef"[value >> shift & 15]);
}

void put_number(u64 value)
{
	char digits[20];
	int n = 0;

	do {
		digits[n++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (n)
		put_char(digits[--n]);
}

bool same(struct text text, const char *string)
{
	while (text.at < text.end && *string && *text.at == *string) {
		text.at++;
		string++;
	}
	return text.at == text.end && !*string;
}

struct text take(struct text *from, char separator)
{
	struct text first = *from;

	while (from->at < from->end && *from->at != separator)
		from->at++;
	first.end = from->at;
	if (from->at < from->end)
		from->at++;
	return first;
}

bool number(struct text text, u64 *value)
{
	u64 base = 10, result = 0;
	bool digits = false;

	if (text.end - text.at > 2 && text.at[0] == '0' && text.at[1] == 'x') {
		base = 16;
		text.at += 2;
	}
	for (; text.at < text.end; text.at++) {
		char c = *text.at;
		u64 digit;

		if (c >= '0' && c <= '9')
			digit = (u64)(c - '0');
		else if (base == 16 && (c | 32) >= 'a' && (c | 32) <= 'f')
			digit = (u64)((c | 32) - 'a' + 10);
		else
			break;
		result = result * base + digit;
		digits = true;
	}
	if (text.at < text.end) {
		switch (*text.at++) {
		case 'K':
			result <<= 10;
			break;
		case 'M':
			result <<= 20;
			break;
		case 'G':
			result <<= 30;
			break;
		default:
			return false;
		}
	}
	*value = result;
	return digits && text.at == text.end;
}

u64 field(struct text *fields, u64 otherwise)
{
	struct text text = take(fields, ':');
	u64 value;

	return number(text, &value) ? value : otherwise;
}

/* The compiler may call these whatever we write. */
void *memset(void *to, int value, size_t bytes);
void *memcpy(void *to, const void *from, size_t bytes);

__attribute__((optimize("no-tree-loop-distribute-patterns")))
void *memset(void *to, int value, size_t bytes)
{
	for (u8 *at = to; bytes; bytes--)
		*at++ = (u8)value;
	return to;
}

__attribute__((optimize("no-tree-loop-distribute-patterns")))
void *memcpy(void *to, const void *from, size_t bytes)
{
	const u8 *source = from;

	for (u8 *at = to; bytes; bytes--)
		*at++ = *source++;
	return to;
}
