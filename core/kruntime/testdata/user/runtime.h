/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Takes the place of the runtime's internal header in user space tests: the
 * portable sources (context, print, format, string, text, map, log) compile
 * against this and the few headers in linux/. */
#ifndef STP_RUNTIME_H
#define STP_RUNTIME_H
#define _LINUX_TYPES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define int64_t long long
#define uint64_t unsigned long long
typedef uint64_t u64;
typedef unsigned int u32;
#include "stp.h"

#define S64_MAX 0x7fffffffffffffffLL
#define S64_MIN (-S64_MAX - 1)
#define EINVAL 22
#define ENOMEM 12
#define GFP_KERNEL 0
#define STP_COLD
#define unlikely(x) (x)
#define fallthrough __attribute__((__fallthrough__))
#define __aligned(n) __attribute__((__aligned__(n)))
#define min(a, b) ((a) < (b) ? (a) : (b))
#define min_t(t, a, b) min((t)(a), (t)(b))
#define ALIGN(n, a) (((n) + (a) - 1) & ~(size_t)((a) - 1))
#define min3(a, b, c) min(a, min(b, c))
#define container_of(p, t, m) ((t *)((char *)(p) - offsetof(t, m)))
#define simple_strtoll strtoll

typedef struct { int n; } atomic_t;
#define atomic_read(a) ((a)->n)
#define atomic_inc(a) ((a)->n++)
#define atomic_dec(a) ((a)->n--)

static inline void *kzalloc(size_t n, int f) { return calloc(1, n); }
#define kfree free
#define stp_alloc malloc
#define vfree free

struct stp_cpu {
	struct stp_context c;
	const char *token;
	char *token_text;
};

u64 stp_now(void);

void stp_flush(struct stp_context *c);
void stp_pad(struct stp_context *c, char ch, int64_t n);
char *stp_digits(char *end, u64 v, unsigned int shift, bool upper);
unsigned int stp_escape(char *to, unsigned char ch);
size_t stp_len(const char *s);
size_t stp_append(char *to, size_t at, const char *from, size_t len);
int stp_compare(struct stp_context *c, const char *a, const char *b, size_t max);
#endif
