// SPDX-License-Identifier: MIT OR GPL-2.0
/* Calls and errors inside a handler. */
#include "runtime.h"

void *stp_enter(struct stp_context *c, unsigned int size, const char *where)
{
	char *f = c->frame;

	c->where = where;
	if (c->nesting >= stp_script.max_nesting || c->frame_end - f < (long)size ||
	    (unsigned long)__builtin_frame_address(0) < c->stack_low) {
		c->error = "MAXNESTING exceeded";
		return NULL;
	}
	c->nesting++;
	c->frame = f + size;
	return f;
}

/* On the way out of an error every level adds where it was called from. */
void stp_leave(struct stp_context *c, unsigned int size, const char *where)
{
	c->nesting--;
	c->frame -= size;
	if (unlikely(c->error)) {
		size_t n = strnlen(c->trace, sizeof(c->trace));

		if (n < sizeof(c->trace) - 1)
			snprintf(c->trace + n, sizeof(c->trace) - n, " (called from %.*s)", (int)sizeof(c->trace), where);
		stp_charge_at(c, 8, c->where);
	}
}

void stp_caught(struct stp_context *c, char *out)
{
	if (out)
		stp_strcpy(out, c->error);
	c->error = NULL;
	c->trace[0] = 0;
}

/* Keeps a text that lives in a frame as the pending error. */
void stp_fn_error(struct stp_context *c, const char *text)
{
	stp_strcpy(c->error_text, text);
	c->error = c->error_text;
}
