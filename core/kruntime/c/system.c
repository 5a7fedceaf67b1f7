// SPDX-License-Identifier: MIT OR GPL-2.0
#include "runtime.h"

#define SYSTEM_MAX 384		/* of the command, terminating zero included */

/* system(): stapio runs the command for its user. A longer one is not cut: what
 * is left could be another command. */
void stp_fn_system(struct stp_context *c, const char *command)
{
	size_t n = strnlen(command, stp_script.string_size - 1) + 1;

	stp_charge(c, 16 + n / 64);	/* a lock that all CPUs share */
	if (n > SYSTEM_MAX)
		stp_message("WARNING: runtime control message type=%d len=%zu too large\n", STP_MSG_SYSTEM, n);
	else
		stp_send(STP_MSG_SYSTEM, command, n);
}
