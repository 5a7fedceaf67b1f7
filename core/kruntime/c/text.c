// SPDX-License-Identifier: MIT OR GPL-2.0
/* The tapset's functions on strings. */
#include "runtime.h"
#include <linux/string.h>

#define SIZE ((size_t)stp_script.string_size)

int64_t stp_fn_strlen(struct stp_context *c, const char *s)
{
	size_t n = stp_len(s);

	stp_charge(c, n / 64);
	return n;
}

/* The value of a hexadecimal digit, or 16. */
static unsigned int stp_digit(char ch)
{
	if (ch >= '0' && ch <= '9')
		return ch - '0';
	ch |= 0x20;
	return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : 16;
}

/* As simple_strtoll of kernel 7.x, which stops at the largest number; before, it
 * wrapped around. */
int64_t stp_fn_strtol(struct stp_context *c, const char *s, int64_t in)
{
	unsigned int base = in, digit;
	bool minus = *s == '-';
	const char *start = s;
	u64 n = 0;

	s += minus;
	if (!base) {
		base = 10;
		if (s[0] == '0')
			base = (s[1] | 0x20) == 'x' && stp_digit(s[2]) < 16 ? 16 : 8;
	}
	if (base == 16 && s[0] == '0' && (s[1] | 0x20) == 'x')
		s += 2;
	for (; (digit = stp_digit(*s)) < 16 && digit < base; s++) {
		if (n > (~0ULL - digit) / base) {
			n = ~0ULL;
			break;
		}
		n = n * base + digit;
	}
	stp_charge(c, (s - start) / 16);
	return minus ? -n : n;
}

void stp_fn_substr(struct stp_context *c, char *out, const char *s, int64_t start, int64_t len)
{
	int64_t n = stp_len(s);

	stp_charge(c, n / 64);
	out[0] = 0;
	if (start < 0 || start >= n || len <= 0)
		return;
	stp_append(out, 0, s + start, min(len, n - start));
}

int64_t stp_fn_stringat(struct stp_context *c, const char *s, int64_t pos)
{
	int64_t n = stp_len(s);

	stp_charge(c, n / 64);
	if (pos < 0 || pos >= n) {
		c->error = "Position out of bounds";
		return 0;
	}
	return (unsigned char)s[pos];
}

/*
 * strstr with a charge for each 64 comparisons, which may be as many as the
 * lengths multiplied. NULL also when the charge fails.
 */
static const char *stp_search(struct stp_context *c, const char *s, const char *part)
{
	unsigned int done = 0;
	size_t n;

	for (;; s++) {
		for (n = 0; part[n] && s[n] == part[n]; n++)
			;
		if (!part[n] || !s[n])
			break;
		done += n + 1;
		if (done >= 64) {
			if (stp_charge(c, done / 64))
				return NULL;
			done = 0;
		}
	}
	return part[n] ? NULL : s;
}

int64_t stp_fn_isinstr(struct stp_context *c, const char *s, const char *part)
{
	return stp_search(c, s, part) != NULL;
}

void stp_fn_str_replace(struct stp_context *c, char *out, const char *s, const char *from, const char *to)
{
	size_t n = 0, flen = stp_len(from), tlen = stp_len(to);
	const char *hit;

	out[0] = 0;
	/* What is beyond a string that is full is lost anyway. */
	while (flen && n < SIZE - 1 && (hit = stp_search(c, s, from))) {
		n = stp_append(out, n, s, hit - s);
		n = stp_append(out, n, to, tlen);
		s = hit + flen;
		stp_charge(c, 1 + tlen / 64);
	}
	stp_append(out, n, s, stp_len(s));
}

/* The character of UTF-8 (RFC 3629) that s begins with, or 0, and how many bytes
 * it takes: at least two, since others are written as bytes. */
static unsigned int stp_utf8(const char *s, int *len)
{
	static const unsigned int least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *b = (const unsigned char *)s;
	int n = b[0] >= 0xf0 && b[0] < 0xf8 ? 4 : b[0] >= 0xe0 && b[0] < 0xf0 ? 3 : b[0] >= 0xc0 && b[0] < 0xe0 ? 2 : 0, i;
	unsigned int u;

	if (!n)
		return 0;
	u = b[0] & (0x7f >> n);
	for (i = 1; i < n; i++) {
		if ((b[i] & 0xc0) != 0x80) /* also the end of the string */
			return 0;
		u = u << 6 | (b[i] & 0x3f);
	}
	*len = n;
	return u < least[n] || u > 0x10ffff || (u >= 0xd800 && u < 0xe000) ? 0 : u;
}

/* Appends the escaped form of s from byte *at on, while it fits into room
 * characters of output; *at is then the first byte left out. */
static size_t stp_escape_text(struct stp_context *c, char *out, size_t n, size_t room, const char *s, size_t *at)
{
	char buf[12];
	size_t len;
	unsigned int u;
	int taken;

	for (; *at < SIZE - 1 && s[*at]; *at += taken) {
		taken = 1;
		u = stp_utf8(s + *at, &taken);
		if (u)
			len = snprintf(buf, sizeof(buf), u < 0x10000 ? "\\u%04X" : "\\U%08X", u);
		else
			taken = 1, len = stp_escape(buf, s[*at]);
		/* snprintf takes as long as dozens of bytes that are copied */
		if (n + len > room || ((u || (*at & 3) == 3) && stp_charge(c, u ? 4 : 1)))
			break;
		n = stp_append(out, n, buf, len);
	}
	return n;
}

void stp_fn_text_str(struct stp_context *c, char *out, const char *s)
{
	size_t at = 0;

	out[0] = 0;
	stp_escape_text(c, out, 0, SIZE - 1, s, &at);
}

/* At most len characters of output. Quoted text says with "..." after the
 * quotes that it was cut, and makes room for that and the quotes. */
void stp_fn_text_strn(struct stp_context *c, char *out, const char *s, int64_t len, int64_t quoted)
{
	size_t room = len <= 0 || len > SIZE - 1 ? SIZE - 1 : len, n, at = 0;

	out[0] = 0;
	if (!quoted) {
		stp_escape_text(c, out, 0, room, s, &at);
		return;
	}
	n = stp_append(out, 0, "\"", 1);
	n = stp_escape_text(c, out, n, room - 1, s, &at);
	if (at >= SIZE - 1 || !s[at]) {
		stp_append(out, n, "\"", 1);
		return;
	}
	at = 0;
	n = stp_escape_text(c, out, 1, room < 4 ? 1 : room - 4, s, &at);
	out[n] = 0;
	stp_append(out, n, "\"...", 4);
}

/* The bytes of a string as a set: looked up once, however many there are. */
struct stp_bytes {
	u32 bits[256 / 32];
};

static void stp_bytes_of(struct stp_bytes *b, const char *s, size_t len)
{
	size_t i;

	memset(b, 0, sizeof(*b));
	for (i = 0; i < len; i++)
		b->bits[(unsigned char)s[i] / 32] |= 1U << (unsigned char)s[i] % 32;
}

/* How many bytes at the start of s are in b, or are not. */
static size_t stp_span(const struct stp_bytes *b, const char *s, bool in)
{
	size_t n;

	for (n = 0; s[n] && (b->bits[(unsigned char)s[n] / 32] >> (unsigned char)s[n] % 32 & 1) == in; n++)
		;
	return n;
}

/* One string per CPU is being cut up: a call with text starts a new one, a
 * call with "" goes on. Delimiters in a row count as one. */
void stp_fn_tokenize(struct stp_context *c, char *out, const char *s, const char *delim)
{
	struct stp_cpu *k = container_of(c, struct stp_cpu, c);
	size_t n, len = stp_len(delim);
	struct stp_bytes set;

	out[0] = 0;
	if (*s) {
		stp_strcpy(k->token_text, s);
		k->token = k->token_text;
	}
	if (!k->token)
		return;
	stp_bytes_of(&set, delim, len);
	n = stp_span(&set, k->token, true);
	k->token += n;
	len += n;
	if (!*k->token) {
		k->token = NULL;
	} else {
		n = stp_span(&set, k->token, false);
		stp_append(out, 0, k->token, n);
		k->token += n;
		len += n;
	}
	stp_charge(c, 1 + len / 16);
}
