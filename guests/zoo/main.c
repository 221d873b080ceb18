/* Finds the command line and runs what stands after `zoo:`. */
#include "zoo.h"

struct boot boot;

void zoo_main(u64 pvh, u64 info);

static bool separates(char c)
{
	return c == ' ' || c == ',' || c == '\n' || c == '\t';
}

/* Words that are a kernel's: they hold a dot, or are one of these. */
static bool foreign(struct text word)
{
	static const char *const known[] = { "root", "ro", "rw", "console", "reboot", "panic", "pci" };
	struct text name = take(&word, '=');

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (same(name, known[i]))
			return true;
	for (; name.at < name.end; name.at++)
		if (*name.at == '.')
			return true;
	return false;
}

static const char *after_mark(const char *at)
{
	bool begins = true;

	for (; *at; at++) {
		if (begins && at[0] == 'z' && at[1] == 'o' && at[2] == 'o' && at[3] == ':')
			return at + 4;
		begins = separates(*at);
	}
	return at;
}

void zoo_main(u64 pvh, u64 info)
{
	static const char nothing[] = "";
	const char *at;
	bool quiet = false;

	boot.pvh = pvh != 0;
	boot.info = info;
	if (boot.pvh)
		at = (const char *)*(const volatile u64 *)(info + 24);
	else
		at = (const char *)((u64)*(const volatile u32 *)(info + 0x228) |
				    (u64)*(const volatile u32 *)(info + 0x0C8) << 32);
	boot.cmdline = at ? at : nothing;
	trap_init();
	for (at = after_mark(boot.cmdline); *at;) {
		struct text word = { at, at };

		while (*word.end && !separates(*word.end))
			word.end++;
		at = *word.end ? word.end + 1 : word.end;
		if (word.at == word.end)
			continue;
		if (same(word, "quiet")) {
			quiet = true;
		} else if (!run_command(word, quiet) && !foreign(word)) {
			put("zoo: ");
			put_text(word);
			put(" unknown\n");
		}
	}
	power_off();
}
