// SPDX-License-Identifier: MIT OR GPL-2.0
/* Running handlers: contexts, locks of globals, errors, limits. */
#include "runtime.h"
#include <linux/delay.h>
#include <linux/sched/task_stack.h>
#include <asm/timex.h>

static atomic_t *stp_locks;	/* per global: -1 written, n read by n */
static atomic_t stp_errors = ATOMIC_INIT(0);
static atomic_t stp_skipped = ATOMIC_INIT(0);
static atomic_t stp_skipped_busy = ATOMIC_INIT(0);
static atomic_t stp_skipped_stack = ATOMIC_INIT(0);

STP_COLD int stp_probe_init(void)
{
	stp_locks = kcalloc(stp_script.nglobals + 1, sizeof(*stp_locks), GFP_KERNEL);
	return stp_locks ? 0 : -ENOMEM;
}

STP_COLD void stp_probe_exit(void)
{
	kfree(stp_locks);
}

STP_COLD static void stp_too_many(const char *text)
{
	int old = atomic_read(&stp_state);

	if (old != STP_S_STARTING && old != STP_S_RUNNING && old != STP_S_STOPPING)
		return;
	if (atomic_cmpxchg(&stp_state, old, STP_S_ERROR) != old)
		return;
	if (text)
		stp_message("%s", text);
	stp_request_exit();
}

STP_COLD static void stp_skip(void)
{
	if (atomic_inc_return(&stp_skipped) > stp_script.max_skipped && !stp_script.suppress_errors)
		stp_too_many("ERROR: Skipped too many probes, check MAXSKIPPED or try again with stap -t for more details.\n");
}

STP_COLD void stp_report_skips(void)
{
	int errors = atomic_read(&stp_errors), skipped = atomic_read(&stp_skipped);

	if (errors || skipped)
		stp_message("WARNING: Number of errors: %d, skipped probes: %d\n", errors, skipped);
}

static bool stp_trylock(unsigned int entry)
{
	atomic_t *l = &stp_locks[entry & ~STP_LOCK_WRITE];
	int old;

	if (entry & STP_LOCK_WRITE)
		return atomic_cmpxchg_acquire(l, 0, -1) == 0;
	old = atomic_read(l);
	return old >= 0 && atomic_cmpxchg_acquire(l, old, old + 1) == old;
}

static void stp_unlock(const unsigned int *locks, unsigned int n)
{
	while (n--) {
		atomic_t *l = &stp_locks[locks[n] & ~STP_LOCK_WRITE];

		if (locks[n] & STP_LOCK_WRITE)
			atomic_set_release(l, 0);
		else
			atomic_dec_return_release(l);
	}
}

/* All or none, in ascending order, giving up after MAXTRYLOCK attempts, or when
 * half of the time has passed that the handler itself may take. */
static bool stp_lock(const unsigned int *locks, unsigned int n, int64_t time)
{
	int64_t left = stp_script.max_trylock;
	u64 end = 0, now;
	unsigned int i;

	for (i = 0; i < n; i++) {
		while (!stp_trylock(locks[i])) {
			now = stp_now();
			if (!end)
				end = time > 0 ? now + time / 2 : ~0ULL;
			if (left-- <= 0 || now >= end) {
				stp_unlock(locks, i);
				return false;
			}
			udelay(clamp_t(int64_t, stp_script.trylock_delay, 0, 1000));
		}
	}
	return true;
}

/* The error line, with the calls that led to it, innermost first. Like any
 * other text of a script it is no longer than MAXSTRINGLEN. */
STP_COLD static void stp_report(struct stp_cpu *k, const struct stp_probe *p)
{
	char text[377];

	if (stp_script.suppress_errors) {	/* only counted */
		atomic_inc(&stp_errors);
		return;
	}
	snprintf(text, min_t(size_t, sizeof(text), stp_script.string_size), "%s%s%s%s in probe %s",
		 k->c.error, k->c.where ? " near " : "", k->c.where ?: "", k->c.trace, p->point);
	stp_message("ERROR: %s\n", text);
	if (atomic_inc_return(&stp_errors) > stp_script.max_errors)
		stp_too_many(NULL);
}

static unsigned long stp_stack_low(unsigned long sp)
{
	unsigned long low = (unsigned long)task_stack_page(current);

	if (stp_script.min_stack >= THREAD_SIZE)
		return ~0UL; /* more than any stack has */
	if (sp > low && sp < low + THREAD_SIZE)
		return low + stp_script.min_stack;
	/* An interrupt stack: its bounds are not ours to know, two pages are there. */
	return sp - 4096;
}

static enum stp_class stp_class(const struct stp_probe *p)
{
	if (p->kind == STP_TIMER)
		return STP_IRQS_OFF;
	return p->kind <= STP_ERROR ? STP_SESSION : STP_EVENT;
}

/* Accounts the cycles of a handler; too many in an interval end the session. */
static void stp_overload(struct stp_cpu *k, u64 start)
{
	u64 now = get_cycles(), interval = stp_script.overload_interval;

	k->overload_cycles += now - start;
	if (k->overload_start && now - k->overload_start < interval)
		return;
	if (k->overload_start && k->overload_cycles > stp_script.overload_threshold) {
		stp_message("ERROR: probe overhead (%lld cycles) exceeded threshold (%lld cycles) in last %lld cycles\n",
			    k->overload_cycles, stp_script.overload_threshold, interval);
		atomic_inc(&stp_errors);
		stp_too_many(NULL);
	}
	k->overload_start = now;
	k->overload_cycles = 0;
}

/* Runs handler n if the session is in state. */
void stp_run_probe(unsigned int n, int state)
{
	const struct stp_probe *p = &stp_script.probes[n];
	const unsigned int *locks = stp_script.locks + p->lock0;
	unsigned long sp = (unsigned long)__builtin_frame_address(0);
	struct stp_cpu *k = stp_cpus[get_cpu()];
	bool overload = p->kind == STP_TIMER && stp_script.overload_threshold;
	enum stp_class class = stp_class(p);
	struct stp_context *c;
	u64 start = 0;

	if (!k || atomic_read(&stp_state) != state || (p->kind == STP_TIMER && stp_exiting()))
		goto out;
	if (atomic_cmpxchg(&k->busy, 0, 1)) {
		atomic_inc(&stp_skipped_busy);
		goto out;
	}
	if (overload)
		start = get_cycles();
	c = &k->c;
	c->stack_low = stp_stack_low(sp);
	if (sp < c->stack_low) {
		atomic_inc(&stp_skipped_stack);
		stp_skip();
		goto idle;
	}
	if (!stp_lock(locks, p->nlocks, stp_script.limits[class].time)) {
		stp_skip();
		goto idle;
	}
	stp_begin(c, class);
	c->error = NULL;
	c->where = NULL;
	c->nesting = 0;
	c->next = 0;
	c->probe = p;
	c->frame = k->frames;
	c->out = &c->print;
	c->trace[0] = 0;
	stp_script_run(c, n);
	stp_unlock(locks, p->nlocks);
	stp_flush(c);
	if (c->error)
		stp_report(k, p);
	if (overload)
		stp_overload(k, start);
idle:
	atomic_set_release(&k->busy, 0);
out:
	put_cpu();
}

/* Keeps the caller, who may sleep, on CPUs that have a context: what runs on one
 * that came online after insertion is skipped. What is answered goes back to
 * stp_unsettle; NULL when every CPU has a context. */
STP_COLD struct cpumask *stp_settle(void)
{
	struct cpumask *mask;
	bool all = true;
	int cpu;

	for_each_online_cpu(cpu)
		all &= !!stp_cpus[cpu];
	if (all)
		return NULL;
	mask = kcalloc(2, sizeof(*mask), GFP_KERNEL);
	if (!mask)
		return NULL;
	cpumask_copy(&mask[0], current->cpus_ptr);
	for_each_online_cpu(cpu)
		if (stp_cpus[cpu])
			cpumask_set_cpu(cpu, &mask[1]);
	set_cpus_allowed_ptr(current, &mask[1]);
	return mask;
}

/* Lets him run where he might before. */
STP_COLD void stp_unsettle(struct cpumask *mask)
{
	if (!mask)
		return;
	set_cpus_allowed_ptr(current, &mask[0]);
	kfree(mask);
}

/* Runs the begin, end or error probes in order. The first group of equal
 * priority that ends the session keeps later groups from running, but runs to
 * its own end. */
STP_COLD void stp_run_kind(int kind, int state)
{
	unsigned int i;
	const struct stp_probe *p, *last = NULL;

	for (i = 0; i < stp_script.nprobes; i++) {
		p = &stp_script.probes[i];
		if (p->kind != kind)
			continue;
		if (last && p->interval != last->interval &&
		    (atomic_read(&stp_state) != state || (kind == STP_BEGIN && stp_exiting())))
			break;
		last = p;
		stp_run_probe(i, atomic_read(&stp_state));
		cond_resched();
	}
}

void stp_fn_exit(struct stp_context *c)
{
	stp_request_exit();
}
