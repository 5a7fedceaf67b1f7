// SPDX-License-Identifier: MIT OR GPL-2.0
/* %m and %M: memory as text or hexadecimal digits, read without faulting. */
#include "runtime.h"

#define PIECE 64

static bool stp_peek(char *to, int64_t addr, unsigned int n, bool user)
{
	if (user)
		return !copy_from_user_nofault(to, (void __user *)(unsigned long)addr, n);
	return !copy_from_kernel_nofault(to, (void *)(unsigned long)addr, n);
}

int stp_fmt_mem(struct stp_context *c, int conv, int flags, int64_t width, int64_t prec, int64_t addr,
		const char *where)
{
	int64_t n = clamp_t(int64_t, prec < 0 ? 1 : prec, 0, stp_script.buffer_size / 4);
	static const char digits[] = "0123456789abcdef";
	int64_t field = conv == 'M' ? 2 * n : n, i;
	char bytes[PIECE], hex[2 * PIECE];
	bool user = flags & STP_ALT;
	unsigned int len, j;

	if (READ_ONCE(stp_required_privilege) == 2) {
		stp_fail(c, "memory dumps are not allowed for stapusr", where);
		return 0;
	}
	/* Nothing is printed of a range that cannot be read as a whole. */
	for (i = 0; i < n; i += PIECE) {
		len = min_t(int64_t, n - i, PIECE);
		if (stp_charge_at(c, 8, where))
			return 0;
		if (stp_peek(bytes, addr + i, len, user))
			continue;
		for (j = 0; j < len && stp_peek(bytes, addr + i + j, 1, user); j++)
			;
		snprintf(c->error_text, stp_script.string_size, "read fault [man error::fault] at 0x%llx",
			 addr + i + j);
		stp_fail(c, c->error_text, where);
		return 0;
	}
	if (!(flags & STP_MINUS))
		stp_pad(c, ' ', width > field ? width - field : 0);
	for (i = 0; i < n; i += PIECE) {
		len = min_t(int64_t, n - i, PIECE);
		if (!stp_peek(bytes, addr + i, len, user))
			memset(bytes, 0, len);	/* gone since */
		for (j = 0; j < len; j++) {
			hex[2 * j] = digits[(u8)bytes[j] >> 4];
			hex[2 * j + 1] = digits[bytes[j] & 15];
		}
		if (conv == 'M')
			stp_put(c, hex, 2 * len);
		else
			stp_put(c, bytes, len);
	}
	if (flags & STP_MINUS)
		stp_pad(c, ' ', width > field ? width - field : 0);
	return 1;
}
