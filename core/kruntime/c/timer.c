// SPDX-License-Identifier: MIT OR GPL-2.0
/* timer.* probes: one hrtimer each, also for those that count jiffies, and one on
 * each CPU for timer.profile. */
#include "runtime.h"
#include <linux/hrtimer.h>
#include <linux/jiffies.h>
#include <linux/random.h>
#include <linux/smp.h>

/* kbuild finds out with kruntime.Probes; without it the version decides. */
#if !defined(STP_PROBED) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#define STP_HAVE_HRTIMER_SETUP
#endif

struct stp_timer {
	struct hrtimer t;
	unsigned int probe;
	int cpu;			/* the only one it fires on, or -1 */
	u64 interval, randomize;	/* ns */
};

/* A shorter interval would leave a CPU no time between its interrupts. */
#define SHORTEST (100 * NSEC_PER_USEC)

static struct stp_timer *stp_timers;
static unsigned int stp_ntimers;

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

/*
 * The time limit is one for a CPU, not for a handler: timers that are due
 * together run in one interrupt. One that was due before the handler before it
 * ended belongs to the same row. When a row has taken half of the time of one
 * handler, the others are put off, for at least as long as the row took: the last
 * one may take all of its time.
 */
static bool stp_timer_put_off(struct stp_cpu *k, struct hrtimer *h)
{
	int64_t time = stp_script.limits[STP_IRQS_OFF].time;

	if (!k || time <= 0)
		return false;
	if (ktime_to_ns(hrtimer_get_expires(h)) > k->timers_end) {
		k->timers_took = 0;
		return false;
	}
	if (k->timers_took < time / 2)
		return false;
	hrtimer_forward(h, ns_to_ktime(k->timers_end + k->timers_took), ns_to_ktime(k->timers_took));
	return true;
}

static void stp_timer_ran(struct stp_cpu *k, s64 start, s64 now)
{
	if (!k)
		return;
	k->timers_took += max(now - (k->timers_took ? k->timers_end : start), 1LL);
	k->timers_end = now;
}

static enum hrtimer_restart stp_timer_fire(struct hrtimer *h)
{
	struct stp_timer *t = container_of(h, struct stp_timer, t);
	struct stp_cpu *k = stp_cpus[smp_processor_id()];
	ktime_t now;
	s64 start;

	if (atomic_read(&stp_state) != STP_S_RUNNING)
		return HRTIMER_NORESTART;
	if (t->cpu >= 0 && t->cpu != smp_processor_id())
		return HRTIMER_NORESTART;	/* its CPU is gone */
	if (stp_timer_put_off(k, h))
		return HRTIMER_RESTART;
	start = ktime_to_ns(ktime_get());
	stp_run_probe(t->probe, STP_S_RUNNING);
	now = ktime_get();
	stp_timer_ran(k, start, ktime_to_ns(now));
	hrtimer_forward(h, now, stp_interval(t));
	return HRTIMER_RESTART;
}

static u64 stp_timer_ns(const struct stp_probe *p, int64_t v)
{
	u64 unit = p->flags & STP_JIFFIES ? TICK_NSEC : 1;

	return v <= 0 ? 0 : (u64)v > S64_MAX / 4 / unit ? S64_MAX / 4 : (u64)v * unit;
}

STP_COLD static void stp_timer_add(unsigned int probe, int cpu)
{
	const struct stp_probe *p = &stp_script.probes[probe];
	struct stp_timer *t = &stp_timers[stp_ntimers++];

	t->probe = probe;
	t->cpu = cpu;
	t->interval = stp_timer_ns(p, p->interval);
	t->randomize = min(stp_timer_ns(p, p->randomize), t->interval);
#ifdef STP_HAVE_HRTIMER_SETUP
	hrtimer_setup(&t->t, stp_timer_fire, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
#else
	hrtimer_init(&t->t, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	t->t.function = stp_timer_fire;
#endif
}

STP_COLD int stp_timers_init(void)
{
	unsigned int i, n = 0;
	int cpu;

	for (i = 0; i < stp_script.nprobes; i++)
		if (stp_script.probes[i].kind == STP_TIMER)
			n += stp_script.probes[i].flags & STP_EVERY_CPU ? num_possible_cpus() : 1;
	stp_timers = kvcalloc(n, sizeof(*stp_timers), GFP_KERNEL);
	if (!stp_timers)
		return -ENOMEM;
	for (i = 0; i < stp_script.nprobes; i++) {
		if (stp_script.probes[i].kind != STP_TIMER)
			continue;
		if (!(stp_script.probes[i].flags & STP_EVERY_CPU)) {
			stp_timer_add(i, -1);
			continue;
		}
		for_each_possible_cpu(cpu)
			if (stp_cpus[cpu])
				stp_timer_add(i, cpu);
	}
	return 0;
}

/* On the CPU that t is for. The CPUs take turns within an interval: handlers
 * that fired together would wait for each other's globals. */
STP_COLD static void stp_timer_here(void *p)
{
	struct stp_timer *t = p;
	u64 turn = div_u64(t->interval * t->cpu, nr_cpu_ids);

	hrtimer_start(&t->t, ns_to_ktime(t->interval + turn), HRTIMER_MODE_REL_PINNED);
}

STP_COLD void stp_timers_start(void)
{
	struct stp_timer *t;

	for (t = stp_timers; t < stp_timers + stp_ntimers; t++) {
		if (t->cpu < 0)
			hrtimer_start(&t->t, stp_interval(t), HRTIMER_MODE_REL);
		else	/* fails for a CPU that is gone */
			smp_call_function_single(t->cpu, stp_timer_here, t, 1);
	}
}

STP_COLD void stp_timers_stop(void)
{
	unsigned int i;

	for (i = 0; i < stp_ntimers; i++)
		hrtimer_cancel(&stp_timers[i].t);
}

STP_COLD void stp_timers_exit(void)
{
	if (stp_timers)
		stp_timers_stop();
	kvfree(stp_timers);
}
