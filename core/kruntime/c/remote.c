// SPDX-License-Identifier: MIT OR GPL-2.0
/* The part a session has in a remote execution, as staprun -r named it. */
#include "runtime.h"

int64_t stp_fn_remote_id(struct stp_context *c)
{
	return stp_remote.uri[0] ? stp_remote.id : -1;
}

void stp_fn_remote_uri(struct stp_context *c, char *out)
{
	snprintf(out, stp_script.string_size, "%s", stp_remote.uri);
}
