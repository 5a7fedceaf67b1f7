// SPDX-License-Identifier: MIT OR GPL-2.0
/* What the C of scripts calls (embed.h). */
#include "runtime.h"

void stp_c_printf(struct stp_context *c, const char *fmt, ...);
void stp_c_error(struct stp_context *c, const char *where, const char *fmt, ...);

void stp_c_printf(struct stp_context *c, const char *fmt, ...)
{
	struct stp_out *o = &c->print;
	va_list args;
	int n, again;

	for (again = 0; again < 2; again++) {
		unsigned int room = o->cap - o->len;

		va_start(args, fmt);
		n = vsnprintf(o->buf + o->len, room, fmt, args);
		va_end(args);
		if (n < 0)
			return;
		if (n < room) {
			o->len += n;
			return;
		}
		if (!o->len) {
			o->len = room - 1; /* longer than the buffer: cut */
			return;
		}
		stp_charge(c, o->len / 64);
		stp_flush(c);
	}
}

void stp_c_error(struct stp_context *c, const char *where, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(c->error_text, stp_script.string_size, fmt, args);
	va_end(args);
	c->error = c->error_text;
	c->where = where;
}
