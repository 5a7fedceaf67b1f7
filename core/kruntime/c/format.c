// SPDX-License-Identifier: MIT OR GPL-2.0
/* The conversions of printf but %m and %M. */
#include "runtime.h"

/* A field of text: blanks on the side that flags say. A negative width, which
 * an argument may give, is none. */
static void stp_field(struct stp_context *c, int flags, int64_t width, const char *s, unsigned int len)
{
	width = width < 0 ? 0 : width;
	if (!(flags & STP_MINUS))
		stp_pad(c, ' ', width - len);
	stp_put(c, s, len);
	if (flags & STP_MINUS)
		stp_pad(c, ' ', width - len);
}

void stp_fmt_str(struct stp_context *c, int flags, int64_t width, int64_t prec, const char *s)
{
	unsigned int max = stp_script.string_size;

	if (prec >= 0 && prec < max)
		max = prec;
	stp_field(c, flags, width, s, strnlen(s, max));
}

/* The width is the number of bytes; zero bytes fill up what is beyond 8. */
static void stp_fmt_binary(struct stp_context *c, int64_t width, int64_t v)
{
	unsigned int n = width == 1 || width == 2 || width == 4 ? width : 8;

	if (width > 8)
		stp_pad(c, 0, width - 8);
	stp_put(c, (const char *)&v, n);	/* host order, as in memory */
}

void stp_fmt_int(struct stp_context *c, int conv, int flags, int64_t width, int64_t prec, int64_t v)
{
	char buf[32], sign[3], *end = buf + sizeof(buf), *s;
	unsigned int nsign = 0, len;
	int64_t zeros = 0, blanks;
	u64 u = v;

	width = width < 0 ? 0 : width;
	switch (conv) {
	case 'b':
		stp_fmt_binary(c, width, v);
		return;
	case 'c':
		len = 1;
		buf[0] = v;
		if (flags & STP_ALT)
			len = stp_escape(buf, v);
		stp_field(c, flags, width, buf, len);
		return;
	case 'd':
	case 'i':
		if (v < 0)
			sign[nsign++] = '-';
		else if (flags & (STP_PLUS | STP_SPACE))
			sign[nsign++] = flags & STP_PLUS ? '+' : ' ';
		s = stp_digits(end, v < 0 ? 0 - u : u, 0, false);
		break;
	case 'o':
		if (flags & STP_ALT)
			sign[nsign++] = '0';
		s = stp_digits(end, u, 3, false);
		break;
	case 'p':
		flags |= STP_ALT;
		conv = 'x';
		fallthrough;
	case 'x':
	case 'X':
		if (flags & STP_ALT) {
			sign[nsign++] = '0';
			sign[nsign++] = conv;
		}
		s = stp_digits(end, u, 4, conv == 'X');
		break;
	default:
		s = stp_digits(end, u, 0, false);
	}
	len = end - s;
	if (prec > (int64_t)len)
		zeros = prec - len;
	blanks = width - nsign - len - zeros;
	if (blanks > 0 && flags & STP_ZERO && !(flags & STP_MINUS)) {
		zeros += blanks;
		blanks = 0;
	}
	if (!(flags & STP_MINUS))
		stp_pad(c, ' ', blanks);
	stp_put(c, sign, nsign);
	stp_pad(c, '0', zeros);
	stp_put(c, s, len);
	if (flags & STP_MINUS)
		stp_pad(c, ' ', blanks);
}
