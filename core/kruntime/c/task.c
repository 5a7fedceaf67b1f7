// SPDX-License-Identifier: MIT OR GPL-2.0
/* The current task, as the tapset shows it. */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/user_namespace.h>

int64_t stp_fn_pid(struct stp_context *c)
{
	return current->tgid;
}

int64_t stp_fn_tid(struct stp_context *c)
{
	return current->pid;
}

int64_t stp_fn_ppid(struct stp_context *c)
{
	int64_t pid;

	rcu_read_lock();
	pid = rcu_dereference(current->real_parent)->tgid;
	rcu_read_unlock();
	return pid;
}

int64_t stp_fn_uid(struct stp_context *c)
{
	return from_kuid_munged(&init_user_ns, current_uid());
}

int64_t stp_fn_euid(struct stp_context *c)
{
	return from_kuid_munged(&init_user_ns, current_euid());
}

int64_t stp_fn_gid(struct stp_context *c)
{
	return from_kgid_munged(&init_user_ns, current_gid());
}

int64_t stp_fn_egid(struct stp_context *c)
{
	return from_kgid_munged(&init_user_ns, current_egid());
}

/* comm is always terminated; a rename under way may mix two names. */
void stp_fn_execname(struct stp_context *c, char *out)
{
	char comm[TASK_COMM_LEN + 1];

	memcpy(comm, current->comm, TASK_COMM_LEN);
	comm[TASK_COMM_LEN] = 0;
	stp_strcpy(out, comm);
}

int64_t stp_fn_cpu(struct stp_context *c)
{
	return raw_smp_processor_id();
}

int64_t stp_fn_target(struct stp_context *c)
{
	return stp_target_pid;
}

void stp_fn_module_name(struct stp_context *c, char *out)
{
	stp_strcpy(out, THIS_MODULE->name);
}

void stp_fn_pp(struct stp_context *c, char *out)
{
	stp_strcpy(out, c->probe->point);
}

void stp_fn_pn(struct stp_context *c, char *out)
{
	stp_strcpy(out, c->probe->name);
}
