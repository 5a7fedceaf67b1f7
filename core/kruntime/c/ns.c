// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The current task as it is seen in the namespaces of the process of staprun -N,
 * or without one in those of stapio (loader-relay 6.3). That process is held as
 * its struct pid, which holds its pid namespace; what it is in otherwise counts
 * as long as it lives.
 */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/user_namespace.h>

static struct pid_namespace *stp_pid_ns(void)
{
	return stp_namespaces ? ns_of_pid(stp_namespaces) : &init_pid_ns;
}

int64_t stp_fn_ns_pid(struct stp_context *c)
{
	return task_tgid_nr_ns(current, stp_pid_ns());
}

int64_t stp_fn_ns_tid(struct stp_context *c)
{
	return task_pid_nr_ns(current, stp_pid_ns());
}

int64_t stp_fn_ns_ppid(struct stp_context *c)
{
	int64_t pid;

	rcu_read_lock();
	pid = task_tgid_nr_ns(rcu_dereference(current->real_parent), stp_pid_ns());
	rcu_read_unlock();
	return pid;
}

int64_t stp_fn_ns_pgrp(struct stp_context *c)
{
	return task_pgrp_nr_ns(current, stp_pid_ns());
}

int64_t stp_fn_ns_sid(struct stp_context *c)
{
	return task_session_nr_ns(current, stp_pid_ns());
}

/* The credentials of a task, and the user namespace with them, are kept until
 * the RCU read section ends. */
#define STP_NS_ID(name, from, id)						\
	int64_t stp_fn_ns_##name(struct stp_context *c)				\
	{									\
		struct user_namespace *ns = &init_user_ns;			\
		struct task_struct *t;						\
		int64_t v;							\
										\
		rcu_read_lock();						\
		t = stp_namespaces ? pid_task(stp_namespaces, PIDTYPE_PID) : NULL; \
		if (t)								\
			ns = __task_cred(t)->user_ns;				\
		v = from(ns, id());						\
		rcu_read_unlock();						\
		return v;							\
	}
STP_NS_ID(uid, from_kuid_munged, current_uid)
STP_NS_ID(euid, from_kuid_munged, current_euid)
STP_NS_ID(gid, from_kgid_munged, current_gid)
STP_NS_ID(egid, from_kgid_munged, current_egid)
