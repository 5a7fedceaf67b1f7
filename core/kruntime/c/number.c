// SPDX-License-Identifier: MIT OR GPL-2.0
/* Integers as text, and what fills a field. */
#include "runtime.h"

void stp_pad(struct stp_context *c, char ch, int64_t n)
{
	char pad[32];

	n = min_t(int64_t, n, stp_script.buffer_size);
	/* Most fields have none, or little. */
	if (n >= 64)
		stp_charge(c, n / 64);
	memset(pad, ch, sizeof(pad));
	for (; n > 0; n -= sizeof(pad))
		stp_put(c, pad, min_t(int64_t, n, sizeof(pad)));
}

/* Digits of v from the right end of to. */
char *stp_digits(char *end, u64 v, unsigned int shift, bool upper)
{
	const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";

	do {
		if (shift) {
			*--end = digits[v & ((1 << shift) - 1)];
			v >>= shift;
		} else {
			*--end = '0' + v % 10;
			v /= 10;
		}
	} while (v);
	return end;
}

/* One byte as it is written inside C quotes; answers the number of characters, up
 * to 4, and puts no zero behind them. */
unsigned int stp_escape(char *to, unsigned char ch)
{
	static const char from[] = "\a\b\f\n\r\t\v\"\\", names[] = "abfnrtv\"\\";
	const char *p = ch ? strchr(from, ch) : NULL;

	if (p) {
		to[0] = '\\';
		to[1] = names[p - from];
		return 2;
	}
	if (ch >= 0x20 && ch < 0x7f) {
		to[0] = ch;
		return 1;
	}
	to[0] = '\\';
	to[1] = '0' + (ch >> 6);
	to[2] = '0' + (ch >> 3 & 7);
	to[3] = '0' + (ch & 7);
	return 4;
}

void stp_put_int(struct stp_context *c, int64_t v)
{
	char buf[24], *s = stp_digits(buf + sizeof(buf), v < 0 ? 0 - (u64)v : v, 0, false);

	if (v < 0)
		*--s = '-';
	stp_put(c, s, buf + sizeof(buf) - s);
}
