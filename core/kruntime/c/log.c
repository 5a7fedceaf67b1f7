// SPDX-License-Identifier: MIT OR GPL-2.0
#include "runtime.h"

/* log(): a line among the printed ones. */
void stp_fn_log(struct stp_context *c, const char *text)
{
	stp_print_begin(c);
	stp_put_str(c, text);
	stp_put(c, "\n", 1);
	stp_print_end(c);
}
