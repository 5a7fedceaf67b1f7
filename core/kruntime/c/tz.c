// SPDX-License-Identifier: MIT OR GPL-2.0
/* The time zone of who inserted the module, as staprun sent it. */
#include "runtime.h"

int64_t stp_fn_tz_gmtoff(struct stp_context *c)
{
	return stp_tzinfo.west;
}

void stp_fn_tz_name(struct stp_context *c, char *out)
{
	snprintf(out, stp_script.string_size, "%s", stp_tzinfo.name);
}
