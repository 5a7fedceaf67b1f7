// SPDX-License-Identifier: MIT OR GPL-2.0
/* timer.* probes: one hrtimer each, also for those that count jiffies. */
#include "runtime.h"
#include <linux/hrtimer.h>
#include <linux/jiffies.h>
#include <linux/random.h>

/* kbuild finds out with kruntime.Probes; without it the version decides. */
#if !defined(STP_PROBED) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#define STP_HAVE_HRTIMER_SETUP
#endif

struct stp_timer {
	struct hrtimer t;
	unsigned int probe;
	bool set_up;
	u64 interval, randomize;	/* ns */
};

/* A shorter interval would leave a CPU no time between its interrupts. */
#define SHORTEST (100 * NSEC_PER_USEC)

static struct stp_timer *stp_timers;

/* The next interval: interval plus or minus up to randomize. */
static ktime_t stp_interval(struct stp_timer *t)
{
	u64 ns = t->interval;

	if (t->randomize) {
		u64 r = ((u64)get_random_u32() << 32 | get_random_u32()) % (2 * t->randomize + 1);

		ns = ns + r > t->randomize ? ns + r - t->randomize : 0;
	}
	return ns_to_ktime(clamp_t(u64, ns, SHORTEST, S64_MAX));
}

static enum hrtimer_restart stp_timer_fire(struct hrtimer *h)
{
	struct stp_timer *t = container_of(h, struct stp_timer, t);

	if (atomic_read(&stp_state) != STP_S_RUNNING)
		return HRTIMER_NORESTART;
	stp_run_probe(t->probe, STP_S_RUNNING);
	hrtimer_forward(h, ktime_get(), stp_interval(t));
	return HRTIMER_RESTART;
}

static u64 stp_timer_ns(const struct stp_probe *p, int64_t v)
{
	u64 unit = p->jiffies ? TICK_NSEC : 1;

	return v <= 0 ? 0 : (u64)v > S64_MAX / 4 / unit ? S64_MAX / 4 : (u64)v * unit;
}

STP_COLD int stp_timers_init(void)
{
	unsigned int i;

	stp_timers = kvcalloc(stp_script.nprobes + 1, sizeof(*stp_timers), GFP_KERNEL);
	if (!stp_timers)
		return -ENOMEM;
	for (i = 0; i < stp_script.nprobes; i++) {
		const struct stp_probe *p = &stp_script.probes[i];
		struct stp_timer *t = &stp_timers[i];

		if (p->kind != STP_TIMER)
			continue;
		t->probe = i;
		t->interval = stp_timer_ns(p, p->interval);
		t->randomize = min(stp_timer_ns(p, p->randomize), t->interval);
#ifdef STP_HAVE_HRTIMER_SETUP
		hrtimer_setup(&t->t, stp_timer_fire, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
#else
		hrtimer_init(&t->t, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
		t->t.function = stp_timer_fire;
#endif
		t->set_up = true;
	}
	return 0;
}

STP_COLD void stp_timers_start(void)
{
	unsigned int i;

	for (i = 0; i < stp_script.nprobes; i++)
		if (stp_timers[i].set_up)
			hrtimer_start(&stp_timers[i].t, stp_interval(&stp_timers[i]), HRTIMER_MODE_REL);
}

STP_COLD void stp_timers_stop(void)
{
	unsigned int i;

	for (i = 0; i < stp_script.nprobes; i++)
		if (stp_timers[i].set_up)
			hrtimer_cancel(&stp_timers[i].t);
}

STP_COLD void stp_timers_exit(void)
{
	if (stp_timers)
		stp_timers_stop();
	kvfree(stp_timers);
}
