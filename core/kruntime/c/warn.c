// SPDX-License-Identifier: MIT OR GPL-2.0
#include "runtime.h"

/* warn(): a line for the user, past the printed ones. */
void stp_fn_warn(struct stp_context *c, const char *text)
{
	size_t n = strnlen(text, stp_script.string_size);

	stp_charge(c, 16 + n / 16);	/* formatting, and a lock that all CPUs share */
	stp_message("WARNING: %s%s", text, n && text[n - 1] == '\n' ? "" : "\n");
}
