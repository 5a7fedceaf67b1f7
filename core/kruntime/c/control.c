// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The control channel .cmd (loader-relay 6): one message per read or write,
 * u32 type and payload. The writer is whoever owns the file, so every size is
 * checked and what decides about privilege is taken from root only.
 */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/user_namespace.h>

#define OOB_MAX 384
#define SLOTS 256

/* Messages that exist once: a slot of their own, so that they always fit. */
enum { S_START, S_EXIT, S_TRANSPORT, S_REQUEST_EXIT, S_MANY_WARNINGS, S_MANY_ERRORS, S_MANY_SYSTEM,
	S_FIXED };

struct stp_slot {
	u32 type;
	u32 len;
	bool queued;		/* waits to be read */
	char data[OOB_MAX];
};

static struct {
	raw_spinlock_t lock;
	struct stp_slot *slots;
	u16 fifo[SLOTS];		/* numbers of slots, oldest at head */
	unsigned int head, count;
	u16 free[SLOTS];
	unsigned int nfree;
	wait_queue_head_t wait;
	struct irq_work wake;
} q;

static atomic_t stp_opened = ATOMIC_INIT(0);
static DEFINE_MUTEX(stp_control);	/* one message at a time */
static unsigned int stp_credentials;
static bool stp_has_credentials;
struct stp_tzinfo stp_tzinfo;
struct pid *stp_namespaces;
struct stp_remote stp_remote;

#define ROOT_LEVELS 0xe

static void stp_queue_wake(struct irq_work *w)
{
	wake_up_all(&q.wait);
}

STP_COLD int stp_control_init(void)
{
	unsigned int i;

	raw_spin_lock_init(&q.lock);
	init_waitqueue_head(&q.wait);
	init_irq_work(&q.wake, stp_queue_wake);
	q.slots = vzalloc(SLOTS * sizeof(*q.slots));
	if (!q.slots)
		return -ENOMEM;
	for (i = S_FIXED; i < SLOTS; i++)
		q.free[q.nfree++] = i;
	return 0;
}

STP_COLD void stp_control_exit(void)
{
	if (q.slots)
		irq_work_sync(&q.wake);
	vfree(q.slots);
	put_pid(stp_namespaces);
}

static bool stp_queue_lock(unsigned long *flags)
{
	int i;

	if (!in_nmi()) {
		raw_spin_lock_irqsave(&q.lock, *flags);
		return true;
	}
	local_irq_save(*flags);
	for (i = 0; i < 1000; i++) {
		if (raw_spin_trylock(&q.lock))
			return true;
		cpu_relax();
	}
	local_irq_restore(*flags);
	return false;
}

/* Queues a message; from any context. */
STP_COLD void stp_send(int type, const void *data, unsigned int len)
{
	static const char full[][48] = {
		"WARNING: too many pending (warning) messages\n",
		"ERROR: too many pending (error) messages\n",
		"WARNING: too many pending (system) messages\n",
	};
	unsigned int slot = S_FIXED;
	struct stp_slot *s;
	unsigned long flags;

	switch (type) {
	case STP_MSG_START:
		slot = S_START;
		break;
	case STP_MSG_EXIT:
		slot = S_EXIT;
		break;
	case STP_MSG_TRANSPORT:
		slot = S_TRANSPORT;
		break;
	case STP_MSG_REQUEST_EXIT:
		slot = S_REQUEST_EXIT;
		break;
	}
	if (len > OOB_MAX)
		len = OOB_MAX;
	if (!stp_queue_lock(&flags))
		return;
	if (slot == S_FIXED && !q.nfree) {
		slot = type != STP_MSG_OOB ? S_MANY_SYSTEM : *(const char *)data == 'E' ? S_MANY_ERRORS : S_MANY_WARNINGS;
		type = STP_MSG_OOB;
		data = full[slot - S_MANY_WARNINGS];
		len = strlen(data) + 1;
	}
	if (slot == S_FIXED)
		slot = q.free[--q.nfree];
	s = &q.slots[slot];
	if (!s->queued) {
		s->queued = true;
		s->type = type;
		s->len = len;
		memcpy(s->data, data, len);
		q.fifo[(q.head + q.count++) % SLOTS] = slot;
	}
	raw_spin_unlock_irqrestore(&q.lock, flags);
	if (wq_has_sleeper(&q.wait))
		irq_work_queue(&q.wake);
}

STP_COLD void stp_message(const char *fmt, ...)
{
	char text[OOB_MAX];
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (len >= (int)sizeof(text)) {	/* the line end survives */
		len = sizeof(text);
		text[len - 1] = '\n';
	}
	stp_send(STP_MSG_OOB, text, len);
}

STP_COLD static ssize_t stp_cmd_read(struct file *f, char __user *buf, size_t count, loff_t *pos)
{
	struct { u32 type; char data[OOB_MAX]; } m;
	unsigned long flags;
	unsigned int len, slot;

	for (;;) {
		raw_spin_lock_irqsave(&q.lock, flags);
		if (q.count)
			break;
		raw_spin_unlock_irqrestore(&q.lock, flags);
		if (f->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(q.wait, READ_ONCE(q.count)))
			return -ERESTARTSYS;
	}
	slot = q.fifo[q.head];
	q.head = (q.head + 1) % SLOTS;
	q.count--;
	len = q.slots[slot].len;
	m.type = q.slots[slot].type;
	memcpy(m.data, q.slots[slot].data, len);
	q.slots[slot].queued = false;
	if (slot >= S_FIXED)
		q.free[q.nfree++] = slot;
	raw_spin_unlock_irqrestore(&q.lock, flags);
	len += sizeof(m.type);
	if (count < len || stp_to_user(buf, &m, len))
		return -EFAULT;
	return len;
}

STP_COLD static __poll_t stp_cmd_poll(struct file *f, poll_table *wait)
{
	__poll_t mask = EPOLLPRI | EPOLLOUT | EPOLLWRNORM;

	poll_wait(f, &q.wait, wait);
	if (READ_ONCE(q.count))
		mask |= EPOLLIN | EPOLLRDNORM;
	return mask;
}

STP_COLD static const char *stp_level_name(unsigned int levels)
{
	return levels & 8 ? "stapdev" : levels & 4 ? "stapsys" : levels & 2 ? "stapusr" : "unknown";
}

STP_COLD static void stp_handle_start(const void *data)
{
	struct { s32 target, res; } m;
	unsigned int need = READ_ONCE(stp_required_privilege);

	if (atomic_read(&stp_state) != STP_S_NEW)
		return;
	memcpy(&m, data, sizeof(m));
	stp_target_pid = m.target;
	if (!stp_namespaces)
		stp_namespaces = get_pid(task_pid(current));
	m.res = 0;
	if (!stp_has_credentials || !need || (stp_credentials & need) != need) {
		stp_message("ERROR: Your privilege credentials (%s) are insufficient to run this module (%s required).\n",
			    stp_level_name(stp_credentials), stp_level_name(need));
		atomic_set(&stp_state, STP_S_STOPPED);
		m.res = -EINVAL;
	} else {
		stp_start();
	}
	stp_send(STP_MSG_START, &m, sizeof(m));
	if (!m.res)
		stp_started();
}

STP_COLD static void stp_handle_exit(void)
{
	switch (atomic_read(&stp_state)) {
	case STP_S_RUNNING:
	case STP_S_ERROR:
	case STP_S_STOPPING:
		stp_stop();
		stp_send(STP_MSG_EXIT, NULL, 0);
	}
}

/* Root by the global id, both who opened the file and who writes now: a user
 * namespace makes nobody root, and a setuid program that prints into a
 * descriptor it was given says nothing. */
STP_COLD static bool stp_from_root(struct file *f)
{
	return uid_eq(current_euid(), GLOBAL_ROOT_UID) && uid_eq(f->f_cred->euid, GLOBAL_ROOT_UID);
}

/* The number is one of the sender's pid namespace. */
STP_COLD static int stp_handle_namespaces(const void *data)
{
	struct pid *pid;
	s32 nr;

	if (atomic_read(&stp_state) != STP_S_NEW)
		return -EINVAL;
	memcpy(&nr, data, sizeof(nr));
	pid = find_get_pid(nr);
	if (!pid)
		return -ESRCH;
	put_pid(stp_namespaces);
	stp_namespaces = pid;
	return 0;
}

/* Answers 0 for done, 1 for a payload that is too short, or an errno. */
STP_COLD static int stp_handle(struct file *f, u32 type, const void *data, size_t len)
{
	static const struct { u32 type, len; bool root; } known[] = {
		{ STP_MSG_START, 8 },
		{ STP_MSG_EXIT, 0 },
		{ STP_MSG_BULK, 128 },
		{ STP_MSG_READY, 0 },
		{ STP_MSG_RELOCATION, 0, true },
		{ STP_MSG_TZINFO, 72, true },
		{ STP_MSG_CREDENTIALS, 4, true },
		{ STP_MSG_REMOTE_ID, 132, true },
		{ STP_MSG_NAMESPACES_PID, 4 },
		{ STP_MSG_MNT_NS_FDS, 8 },
	};
	unsigned int i;
	u32 mask;

	for (i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].type == type)
			break;
	if (i == ARRAY_SIZE(known) || (type == STP_MSG_BULK && !stp_script.bulk))
		return -EINVAL;
	if (known[i].root) {
		if (!stp_from_root(f))
			return -EPERM;
		if (atomic_read(&stp_state) != STP_S_NEW)
			return -EINVAL;
	}
	if (len < known[i].len)
		return 1;
	switch (type) {
	case STP_MSG_START:
		stp_handle_start(data);
		break;
	case STP_MSG_EXIT:
		stp_handle_exit();
		break;
	case STP_MSG_CREDENTIALS:
		if (stp_has_credentials)
			return -EPERM;
		memcpy(&mask, data, sizeof(mask));
		stp_credentials = mask & ROOT_LEVELS;
		stp_has_credentials = true;
		break;
	case STP_MSG_TZINFO:
		memcpy(&stp_tzinfo, data, sizeof(stp_tzinfo));
		stp_tzinfo.name[sizeof(stp_tzinfo.name) - 1] = 0;
		break;
	case STP_MSG_NAMESPACES_PID:
		return stp_handle_namespaces(data);
	case STP_MSG_REMOTE_ID:
		memcpy(&stp_remote, data, sizeof(stp_remote));
		stp_remote.uri[sizeof(stp_remote.uri) - 1] = 0;
		break;
	case STP_MSG_RELOCATION:
		/* Addresses serve probes by symbol; no such probe, no need to keep them. */
		break;
	}
	return 0;
}

STP_COLD static ssize_t stp_cmd_write(struct file *f, const char __user *buf, size_t count, loff_t *pos)
{
	struct { u32 type; char data[1024]; } m __aligned(8);
	int rc;

	if (count < sizeof(m.type))
		return 0;
	if (count > sizeof(m))
		return -EINVAL;
	if (copy_from_user(&m, buf, count))
		return -EFAULT;
	rc = mutex_lock_interruptible(&stp_control);
	if (rc)
		return rc;
	rc = stp_handle(f, m.type, m.data, count - sizeof(m.type));
	mutex_unlock(&stp_control);
	return rc < 0 ? rc : rc ? 0 : count;
}

STP_COLD static int stp_cmd_open(struct inode *inode, struct file *f)
{
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	if (atomic_cmpxchg(&stp_opened, 0, 1)) {
		module_put(THIS_MODULE);
		return -EBUSY;
	}
	WRITE_ONCE(stp_overwrite, false);
	stp_session++;
	stp_attached();
	return 0;
}

STP_COLD static int stp_cmd_release(struct inode *inode, struct file *f)
{
	WRITE_ONCE(stp_overwrite, !stp_exiting());
	atomic_set(&stp_opened, 0);
	module_put(THIS_MODULE);
	return 0;
}

const struct proc_ops stp_cmd_ops = {
	.proc_open = stp_cmd_open,
	.proc_release = stp_cmd_release,
	.proc_read = stp_cmd_read,
	.proc_write = stp_cmd_write,
	.proc_poll = stp_cmd_poll,
};
