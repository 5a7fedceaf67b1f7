/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What the sources of the runtime share. Never seen by a script unit. */
#ifndef STP_RUNTIME_H
#define STP_RUNTIME_H

#include <linux/version.h>
#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/mutex.h>
#include <linux/wait.h>
#include <linux/irq_work.h>
#include <linux/proc_fs.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <linux/path.h>
#include <linux/timekeeping.h>
#include "stp.h"

/* Far from any handler: small rather than fast. */
#define STP_COLD __attribute__((__cold__))

/* Life of a session. Probes run only in the state they belong to. */
enum stp_state {
	STP_S_NEW,		/* loaded, START not seen */
	STP_S_STARTING,		/* begin probes run */
	STP_S_RUNNING,
	STP_S_STOPPING,		/* end probes run */
	STP_S_ERROR,		/* too many errors: error probes run instead of end probes */
	STP_S_STOPPED,
};

/*
 * Bytes on their way to user space. One producer, the CPU itself with
 * interrupts off, moves head; readers on any CPU, one at a time, move tail, and
 * so does the producer when it overwrites. mark is the producer's: the start of
 * a record at or before tail, or of the first one after it; every header from
 * there on is in the ring. boundary is the readers': the start of a record, at
 * tail or, when only part of one was read, behind it. All count bytes, for years
 * before they wrap; size is a number of megabytes.
 */
struct stp_ring {
	char *data;
	unsigned long size;
	unsigned long head;
	unsigned long tail;
	unsigned long mark;
	unsigned long boundary;
	unsigned int session;
	struct mutex reader;
	wait_queue_head_t wait;
	struct irq_work wake;
};

/* All that belongs to one CPU. */
struct stp_cpu {
	struct stp_context c;		/* first: the script unit's view */
	atomic_t busy;			/* a handler runs on this CPU */
	struct stp_ring ring;
	u64 overload_start, overload_cycles;
	s64 timers_end, timers_took;	/* timer.c: ns, of handlers that ran one after the other */
	const char *token;		/* rest of tokenize()'s string, in token_text */
	char *token_text;
	char *frames;
};

/* One per possible CPU; NULL for those not online at insertion. */
extern struct stp_cpu **stp_cpus;
extern atomic_t stp_state;
extern int stp_target_pid;

/* main.c */
void stp_start(void);
void stp_stop(void);
void stp_started(void);
void stp_request_exit(void);
void stp_attached(void);
bool stp_exiting(void);

/* probe.c */
int stp_probe_init(void);
void stp_probe_exit(void);
struct cpumask *stp_settle(void);
void stp_unsettle(struct cpumask *mask);
void stp_run_kind(int kind, int state);
void stp_run_probe(unsigned int n, int state);
void stp_report_skips(void);

/* data.c */
void *stp_alloc(unsigned long size);
int stp_ring_init(struct stp_ring *r, unsigned long size);
void stp_ring_exit(struct stp_ring *r);
unsigned long stp_ring_size(void);
void stp_rings_announce(void);
void stp_flush(struct stp_context *c);
void stp_put_record(const char *text, unsigned int len);
extern void (*stp_sink)(const char *text, unsigned int len);
unsigned long stp_to_user(void __user *to, const void *from, unsigned long n);
extern bool stp_overwrite;
extern unsigned int stp_session;
void stp_rings_finish(void);
extern atomic_t stp_dropped;
extern const struct proc_ops stp_trace_ops;

/* control.c */
enum stp_message {
	STP_MSG_START = 0x50,
	STP_MSG_EXIT,
	STP_MSG_OOB,
	STP_MSG_SYSTEM,
	STP_MSG_TRANSPORT,
	STP_MSG_BULK = 0x57,
	STP_MSG_READY,
	STP_MSG_RELOCATION,
	STP_MSG_REALTIME = 0x5c,
	STP_MSG_REQUEST_EXIT,
	STP_MSG_TZINFO,
	STP_MSG_CREDENTIALS,
	STP_MSG_REMOTE_ID,
	STP_MSG_NAMESPACES_PID = 0x62,
	STP_MSG_MNT_NS_FDS,
};

int stp_control_init(void);
void stp_control_exit(void);
void stp_send(int type, const void *data, unsigned int len);
__printf(1, 2) void stp_message(const char *fmt, ...);	/* OOB text, with its prefix */
extern const struct proc_ops stp_cmd_ops;
struct stp_tzinfo {
	s64 west;		/* seconds west of UTC */
	char name[64];
};
extern struct stp_tzinfo stp_tzinfo;
struct stp_remote {
	s32 id;
	char uri[128];
};
extern struct stp_remote stp_remote;
extern struct pid *stp_namespaces;	/* whose namespaces the script means */

/* the clock of limits */
static inline u64 stp_now(void)
{
	return ktime_get_mono_fast_ns();
}

/* number.c */
void stp_pad(struct stp_context *c, char ch, int64_t n);
char *stp_digits(char *end, u64 v, unsigned int shift, bool upper);
unsigned int stp_escape(char *to, unsigned char ch);

/* string.c */
size_t stp_len(const char *s);
size_t stp_append(char *to, size_t at, const char *from, size_t len);
int stp_compare(struct stp_context *c, const char *a, const char *b, size_t max);

/* What a host shows its guests, as private_data of an open relay file. Both are
 * modules of one version of the runtime, or magic and size differ. */
#define STP_RELAY_MAGIC 0x53545052
struct stp_relay {
	u32 magic, size;
	void (*put)(const char *text, unsigned int len);
};
#define STP_RELAY_FILE "systemtap/.relay.%u.%s"	/* user id, name */

/* procfs.c: the text that the reader of the running probe's file gets */
char *stp_value_buffer(struct stp_context *c, unsigned int *size, unsigned int **len);

/* relay.c */
struct vfsmount *stp_proc_find(const char *name, struct path *p);

/* files.c */
extern struct proc_dir_entry *stp_dir;
int stp_files_init(void);
int stp_file_open(struct inode *inode, struct file *f);
int stp_file_release(struct inode *inode, struct file *f);
struct proc_dir_entry *stp_file(const char *name, umode_t mode, const struct proc_ops *ops, void *data);
void stp_files_exit(void);

#endif
