// SPDX-License-Identifier: MIT OR GPL-2.0
/* The print family: text into the print buffer or a string. */
#include "runtime.h"

void stp_print_begin(struct stp_context *c)
{
	c->out = &c->print;
}

void stp_sprint_begin(struct stp_context *c, char *out)
{
	c->string.buf = out;
	c->string.len = 0;
	c->string.cap = stp_script.string_size - 1;
	c->out = &c->string;
}

void stp_print_end(struct stp_context *c)
{
	if (c->out == &c->string)
		c->string.buf[c->string.len] = 0;
	c->out = &c->print;
}

/* Text that does not fit goes to the next record; a string is cut. */
void stp_put(struct stp_context *c, const char *text, unsigned int len)
{
	struct stp_out *o = c->out;
	unsigned int n;

	while (len) {
		if (o == &c->print && len > o->cap - o->len)
			stp_flush(c);
		n = min(len, o->cap - o->len);
		memcpy(o->buf + o->len, text, n);
		o->len += n;
		text += n;
		len -= n;
		if (o != &c->print)
			break;
	}
}

void stp_pad(struct stp_context *c, char ch, int64_t n)
{
	char pad[32];

	memset(pad, ch, sizeof(pad));
	for (n = min_t(int64_t, n, stp_script.buffer_size); n > 0; n -= sizeof(pad))
		stp_put(c, pad, min_t(int64_t, n, sizeof(pad)));
}

void stp_put_str(struct stp_context *c, const char *s)
{
	stp_put(c, s, strnlen(s, stp_script.string_size));
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

void stp_put_int(struct stp_context *c, int64_t v)
{
	char buf[24], *s = stp_digits(buf + sizeof(buf), v < 0 ? 0 - (u64)v : v, 0, false);

	if (v < 0)
		*--s = '-';
	stp_put(c, s, buf + sizeof(buf) - s);
}
