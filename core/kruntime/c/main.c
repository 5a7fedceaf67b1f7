// SPDX-License-Identifier: MIT OR GPL-2.0
/* Insertion, removal and the states between them (loader-relay 6.6). */
#include "runtime.h"
#include <linux/moduleparam.h>

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("systemtap-generated probe");

struct stp_cpu **stp_cpus;
atomic_t stp_state = ATOMIC_INIT(STP_S_NEW);
int stp_target_pid;

static bool stp_probes_ready;
static atomic_t stp_exit_wanted = ATOMIC_INIT(0), stp_exit_sent = ATOMIC_INIT(0);

/* The script unit writes __param entries without kernel headers. */
#define SAME(a, b)									\
	static_assert(offsetof(struct kernel_param, a) == offsetof(struct stp_param, b) && \
		      sizeof(((struct kernel_param *)0)->a) == sizeof(((struct stp_param *)0)->b))
SAME(name, name);
SAME(mod, mod);
SAME(ops, ops);
SAME(perm, perm);
SAME(level, level);
SAME(flags, flags);
SAME(arg, arg);
static_assert(sizeof(struct kernel_param) == sizeof(struct stp_param));

/* Tells stapio to end the session, and not before START was answered; or that it
 * has ended, for one that took the place of one that knew. */
STP_COLD static void stp_exit_check(void)
{
	if (READ_ONCE(stp_probes_ready) && atomic_read(&stp_exit_wanted) &&
	    !atomic_xchg(&stp_exit_sent, 1))
		stp_send(atomic_read(&stp_state) == STP_S_STOPPED ? STP_MSG_EXIT : STP_MSG_REQUEST_EXIT, NULL, 0);
}

STP_COLD void stp_request_exit(void)
{
	atomic_set(&stp_exit_wanted, 1);
	smp_mb();
	stp_exit_check();
}

/* A new reader may come after one that took such a message along. */
STP_COLD void stp_attached(void)
{
	atomic_set(&stp_exit_sent, 0);
	smp_mb();
	stp_exit_check();
}

bool stp_exiting(void)
{
	return atomic_read(&stp_exit_wanted);
}

/* START: begin probes, then events. The caller holds the control mutex and
 * answers the message; messages sent from here come before the answer. */
STP_COLD void stp_start(void)
{
	struct cpumask *mask = stp_settle();

	atomic_set(&stp_state, STP_S_STARTING);
	stp_run_kind(STP_BEGIN, STP_S_STARTING);
	if (atomic_cmpxchg(&stp_state, STP_S_STARTING, STP_S_RUNNING) == STP_S_STARTING &&
	    !stp_exiting())
		stp_script_part(STP_ARM);
	stp_unsettle(mask);
}

/* START was answered: from now on the session may ask for its end. */
STP_COLD void stp_started(void)
{
	WRITE_ONCE(stp_probes_ready, true);
	smp_mb();
	stp_exit_check();
}

/* EXIT or removal: no more events, end or error probes, final counts. When it
 * returns all output is readable. */
STP_COLD void stp_stop(void)
{
	struct cpumask *mask = stp_settle();
	int dropped;

	atomic_set(&stp_exit_wanted, 1);
	atomic_set(&stp_exit_sent, 1);
	stp_script_part(STP_DISARM);
	if (atomic_cmpxchg(&stp_state, STP_S_RUNNING, STP_S_STOPPING) == STP_S_RUNNING)
		stp_run_kind(STP_END, STP_S_STOPPING);
	if (atomic_read(&stp_state) == STP_S_ERROR)
		stp_run_kind(STP_ERROR, STP_S_ERROR);
	atomic_set(&stp_state, STP_S_STOPPED);
	stp_report_skips();
	dropped = atomic_read(&stp_dropped);
	if (dropped)
		stp_message("WARNING: There were %d transport failures. Try stap -s to increase the buffer size from %lu.\n",
			    dropped, stp_ring_size() >> 20);
	stp_rings_finish();
	stp_unsettle(mask);
}

STP_COLD static void stp_cpus_free(void)
{
	int cpu;

	if (!stp_cpus)
		return;
	for_each_possible_cpu(cpu) {
		struct stp_cpu *k = stp_cpus[cpu];

		if (!k)
			continue;
		stp_ring_exit(&k->ring);
		vfree(k->frames);
		kfree(k);
	}
	kfree(stp_cpus);
}

/* One allocation holds locals, print buffer and texts of a CPU. */
STP_COLD static int stp_cpus_alloc(void)
{
	const struct stp_script *s = &stp_script;
	size_t frame = ALIGN(s->frame_size, 16);
	int cpu;

	stp_cpus = kcalloc(nr_cpu_ids, sizeof(*stp_cpus), GFP_KERNEL);
	if (!stp_cpus)
		return -ENOMEM;
	for_each_online_cpu(cpu) {
		struct stp_cpu *k = kzalloc_node(sizeof(*k), GFP_KERNEL, cpu_to_node(cpu));

		if (!k)
			return -ENOMEM;
		stp_cpus[cpu] = k;
		k->frames = stp_alloc(frame + s->buffer_size + 2 * s->string_size);
		if (!k->frames || stp_ring_init(&k->ring, stp_ring_size()))
			return -ENOMEM;
		k->c.print.buf = k->frames + frame;
		k->c.print.cap = s->buffer_size;
		k->c.error_text = k->c.print.buf + s->buffer_size;
		k->token_text = k->c.error_text + s->string_size;
		k->c.frame_end = k->frames + frame;
	}
	return 0;
}

STP_COLD static bool stp_script_sane(void)
{
	const struct stp_script *s = &stp_script;

	return s->size == sizeof(*s) && s->string_size >= 16 && s->string_size <= 1 << 20 &&
	       s->frame_size <= 64 << 20 && s->buffer_size >= 256 && s->buffer_size <= 131072;
}

STP_COLD static void stp_free_all(void)
{
	stp_script_part(STP_CLEANUP);
	stp_probe_exit();
	stp_cpus_free();
	stp_control_exit();
}

static int __init stp_init(void)
{
	int rc;

	if (!stp_script_sane())
		return -EINVAL;
	rc = stp_control_init();
	if (!rc)
		rc = stp_cpus_alloc();
	if (!rc)
		rc = stp_probe_init();
	if (!rc)
		rc = stp_script_part(STP_SETUP);
	if (!rc) {
		stp_send(STP_MSG_TRANSPORT, NULL, 0);
		stp_rings_announce();
		rc = stp_files_init();
	}
	if (!rc)
		rc = stp_script_part(STP_PUBLISH);
	if (rc) {
		stp_files_exit();
		stp_free_all();
	}
	return rc;
}

static void __exit stp_exit(void)
{
	int state;

	stp_files_exit();	/* from here on nobody can start or stop us */
	state = atomic_read(&stp_state);
	if (state != STP_S_NEW && state != STP_S_STOPPED)
		stp_stop();
	stp_free_all();
}

module_init(stp_init);
module_exit(stp_exit);
