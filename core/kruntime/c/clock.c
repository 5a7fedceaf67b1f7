// SPDX-License-Identifier: MIT OR GPL-2.0
/* Time and chance. */
#include "runtime.h"
#include <linux/random.h>
#include <linux/timekeeping.h>
#include <asm/timex.h>

/* A clock that is a device, as hpet or acpi_pm, takes a microsecond and more. */
static u64 stp_real_time(struct stp_context *c)
{
	stp_charge(c, 8);
	return ktime_get_real_fast_ns();
}

int64_t stp_fn_gettimeofday_ns(struct stp_context *c)
{
	return stp_real_time(c);
}

int64_t stp_fn_gettimeofday_us(struct stp_context *c)
{
	return stp_real_time(c) / 1000;
}

int64_t stp_fn_gettimeofday_ms(struct stp_context *c)
{
	return stp_real_time(c) / 1000000;
}

int64_t stp_fn_gettimeofday_s(struct stp_context *c)
{
	return stp_real_time(c) / 1000000000;
}

int64_t stp_fn_get_cycles(struct stp_context *c)
{
	return get_cycles();
}

int64_t stp_fn_randint(struct stp_context *c, int64_t n)
{
	u64 r = (u64)get_random_u32() << 32 | get_random_u32();

	stp_charge(c, 8);	/* new random bytes now and then */
	if (n < 0 || n > 1 << 20) {
		c->error = "range too wide";
		return 0;
	}
	return n ? r % (u64)n : 0;
}

/* "Thu Jan  1 00:00:00 1970", UTC. Upstream converts no more than 32 bits. */
void stp_fn_ctime(struct stp_context *c, char *out, int64_t seconds)
{
	static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	struct tm tm;

	stp_charge(c, 8);
	out[0] = 0;
	if (seconds > S32_MAX) {
		c->error = "Time too far in the future to be converted";
		return;
	}
	if (seconds < S32_MIN) {
		c->error = "Time too far in the past to be converted";
		return;
	}
	time64_to_tm(seconds, 0, &tm);
	snprintf(out, stp_script.string_size, "%.3s %.3s %2d %02d:%02d:%02d %ld", days + 3 * tm.tm_wday,
		 months + 3 * tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, tm.tm_year + 1900);
}
