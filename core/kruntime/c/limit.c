// SPDX-License-Identifier: MIT OR GPL-2.0
/* The budget of a handler: statements, other work, time (stp.h). */
#include "runtime.h"

static int64_t stp_or_max(int64_t n, int64_t times)
{
	return n <= 0 || n > S64_MAX / times ? S64_MAX : n * times;
}

static int stp_slice(const struct stp_context *c)
{
	return min_t(int64_t, c->clock, min(c->actions, c->work));
}

/* Three stores for a handler that does little; stp_spent does the rest. */
void stp_begin(struct stp_context *c, enum stp_class class)
{
	int64_t n = stp_script.limits[class].actions;

	c->left = n > 0 && n < STP_CLOCK ? n : STP_CLOCK;
	c->charged = 0;
	c->slice = 0;
	c->class = class;
	c->spent = NULL;
	c->deadline = 0;
}

/* Out of line: settles what was counted since the last time. */
STP_COLD int stp_spent(struct stp_context *c, const char *where)
{
	const struct stp_limit *l = &stp_script.limits[c->class];
	int used;

	if (!c->slice && !c->spent) {
		c->actions = stp_or_max(l->actions, 1);
		c->work = stp_or_max(l->actions, STP_WORK);
		c->clock = STP_CLOCK;
		c->slice = stp_slice(c);
	}
	used = c->slice - c->left;
	c->actions -= used - c->charged;
	c->work -= c->charged;
	c->clock -= used;
	c->charged = 0;
	if (!c->spent && c->clock <= 0) {
		c->clock = STP_CLOCK;
		if (l->time > 0) {
			u64 now = stp_now();

			if (!c->deadline)
				c->deadline = now + l->time;
			else if (now >= c->deadline)
				c->spent = l->late;
		}
	}
	/* MAXACTION first: that is the same in every run. */
	if (c->actions <= 0 || c->work <= 0)
		c->spent = "MAXACTION exceeded";
	if (c->spent) {
		c->actions = c->work = c->slice = c->left = 0;
		stp_fail(c, c->spent, where);
		return 1;
	}
	c->slice = c->left = stp_slice(c);
	return 0;
}
