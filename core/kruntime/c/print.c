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
	if (c->out == &c->string) {
		c->string.buf[c->string.len] = 0;
		stp_charge(c, c->string.len / 64);
	}
	c->out = &c->print;
}

/* Text that does not fit goes to the next record; a string is cut. The charge is
 * one for a full buffer: text that fits costs a handler nothing extra. */
void stp_put(struct stp_context *c, const char *text, unsigned int len)
{
	struct stp_out *o = c->out;
	unsigned int n;

	while (len) {
		if (o == &c->print && len > o->cap - o->len) {
			stp_charge(c, o->len / 64);
			stp_flush(c);
		}
		n = min(len, o->cap - o->len);
		memcpy(o->buf + o->len, text, n);
		o->len += n;
		text += n;
		len -= n;
		if (o != &c->print)
			break;
	}
}

void stp_put_str(struct stp_context *c, const char *s)
{
	stp_put(c, s, strnlen(s, stp_script.string_size));
}
