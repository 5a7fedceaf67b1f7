// SPDX-License-Identifier: MIT OR GPL-2.0
/* %m and %M: memory as text or hexadecimal digits, read without faulting. */
#include "runtime.h"

int stp_fmt_mem(struct stp_context *c, int conv, int flags, int64_t width, int64_t prec, int64_t addr,
		const char *where)
{
	int64_t n = clamp_t(int64_t, prec < 0 ? 1 : prec, 0, stp_script.buffer_size / 4);
	int64_t field = conv == 'M' ? 2 * n : n, i;
	unsigned char byte;
	char hex[3];
	bool bad;

	if (READ_ONCE(stp_required_privilege) == 2) {
		stp_fail(c, "memory dumps are not allowed for stapusr", where);
		return 0;
	}
	/* Each byte is read twice, by a call of its own. */
	if (stp_charge_at(c, 1 + n / 2, where))
		return 0;
	/* Nothing is printed of a range that cannot be read as a whole. */
	for (i = 0; i < n; i++) {
		if (flags & STP_ALT)
			bad = copy_from_user_nofault(&byte, (void __user *)(unsigned long)(addr + i), 1);
		else
			bad = copy_from_kernel_nofault(&byte, (void *)(unsigned long)(addr + i), 1);
		if (bad) {
			snprintf(c->error_text, stp_script.string_size, "read fault [man error::fault] at 0x%llx",
				 addr + i);
			stp_fail(c, c->error_text, where);
			return 0;
		}
	}
	if (!(flags & STP_MINUS))
		stp_pad(c, ' ', width > field ? width - field : 0);
	for (i = 0; i < n; i++) {
		if (flags & STP_ALT)
			bad = copy_from_user_nofault(&byte, (void __user *)(unsigned long)(addr + i), 1);
		else
			bad = copy_from_kernel_nofault(&byte, (void *)(unsigned long)(addr + i), 1);
		if (bad)
			byte = 0;
		if (conv == 'M') {
			snprintf(hex, sizeof(hex), "%02x", byte);
			stp_put(c, hex, 2);
		} else {
			stp_put(c, (const char *)&byte, 1);
		}
	}
	if (flags & STP_MINUS)
		stp_pad(c, ' ', width > field ? width - field : 0);
	return 1;
}
