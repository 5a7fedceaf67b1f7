// SPDX-License-Identifier: MIT OR GPL-2.0
/* Strings of stp_script.string_size bytes: what does not fit is cut. */
#include "runtime.h"
#include <linux/string.h>

#define SIZE ((size_t)stp_script.string_size)

/* Length of s; what has no end within a string ends there. */
size_t stp_len(const char *s)
{
	return strnlen(s, SIZE - 1);
}

void stp_strcpy(char *to, const char *from)
{
	size_t n = stp_len(from);

	memmove(to, from, n);
	to[n] = 0;
}

/* Appends len bytes of from at to + at; answers the new length. */
size_t stp_append(char *to, size_t at, const char *from, size_t len)
{
	len = min(len, SIZE - 1 - at);
	memmove(to + at, from, len);
	to[at + len] = 0;
	return at + len;
}

void stp_assign(struct stp_context *c, char *to, const char *from)
{
	size_t n = stp_append(to, 0, from, stp_len(from));

	stp_charge(c, n / 64);
}

void stp_strcat(struct stp_context *c, char *to, const char *from)
{
	size_t n = stp_append(to, stp_len(to), from, stp_len(from));

	stp_charge(c, n / 64);
}

void stp_concat(struct stp_context *c, char *to, const char *a, const char *b)
{
	size_t n = stp_append(to, 0, a, stp_len(a));

	n = stp_append(to, n, b, stp_len(b));
	stp_charge(c, n / 64);
}

/* strncmp, which tells nobody how far it came. */
int stp_compare(struct stp_context *c, const char *a, const char *b, size_t max)
{
	size_t n = 0;

	while (n < max && a[n] == b[n] && a[n])
		n++;
	stp_charge(c, n / 64);
	return n < max ? (unsigned char)a[n] - (unsigned char)b[n] : 0;
}

int stp_strcmp(struct stp_context *c, const char *a, const char *b)
{
	return stp_compare(c, a, b, SIZE - 1);
}
