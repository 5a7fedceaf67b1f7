// SPDX-License-Identifier: MIT OR GPL-2.0
/* Module parameters for scalar globals (loader-relay 2.5). */
#include "runtime.h"
#include <linux/moduleparam.h>

static int stp_set_long(const char *val, const struct kernel_param *kp)
{
	return kstrtoll(val, 0, kp->arg);
}

static int stp_set_string(const char *val, const struct kernel_param *kp)
{
	const struct stp_param_string *s = kp->arg;
	size_t n = strlen(val);

	if (n >= s->size)
		return -ENOSPC;
	memcpy(s->buf, val, n + 1);
	return 0;
}

extern const struct kernel_param_ops stp_ops_long __asm__("stp_param_ops_long");
extern const struct kernel_param_ops stp_ops_string __asm__("stp_param_ops_string");
const struct kernel_param_ops stp_ops_long = { .set = stp_set_long };
const struct kernel_param_ops stp_ops_string = { .set = stp_set_string };
