/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What the C of scripts sees (stap(1), EMBEDDED C), instead of stp.h alone: the
 * kernel's headers that scripts use without saying so, and the macros STAP_*
 * that do not depend on a function. The translator defines the others.
 */
#ifndef STP_EMBED_H
#define STP_EMBED_H

#include <linux/version.h>
#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/types.h>
#include <linux/errno.h>
#include <linux/string.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/mm.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/cred.h>
#include <linux/uidgid.h>
#include <linux/pid.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/delay.h>
#include <linux/ptrace.h>
#include <linux/uaccess.h>
#include "stp.h"

#define MAXSTRINGLEN STP_MAXSTRINGLEN
#define CONTEXT c

/* Text for the user, as far as it fits the print buffer. */
__printf(2, 3) void stp_c_printf(struct stp_context *c, const char *fmt, ...);
/* Makes a text the pending error. */
__printf(3, 4) void stp_c_error(struct stp_context *c, const char *where, const char *fmt, ...);

#define STAP_PRINTF(...) stp_c_printf(c, __VA_ARGS__)

/* Both are gone from later kernels, or going. */
static inline size_t stp_c_strlcpy(char *to, const char *from, size_t size)
{
	size_t n = strlen(from), len = n < size ? n : size ? size - 1 : 0;

	if (size) {
		memmove(to, from, len);
		to[len] = 0;
	}
	return n;
}

static inline size_t stp_c_strlcat(char *to, const char *from, size_t size)
{
	size_t n = strnlen(to, size);

	return n + stp_c_strlcpy(to + n, from, size - n);
}

#undef strlcpy
#undef strlcat
#define strlcpy stp_c_strlcpy
#define strlcat stp_c_strlcat

#endif
