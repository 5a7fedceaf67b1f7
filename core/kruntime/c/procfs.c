// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * procfs probes: files in /proc/systemtap/MODULE whose reading and writing runs
 * handlers. They are there while the session runs. Nothing is kept per open
 * file: a read from the start runs the handlers, later reads go on with the text
 * they made last.
 *
 * A call may never end: the memory that is read or written may be a page of a file
 * system that does not answer. So an open file holds the module, and what ends a
 * session or removes a module does not wait for the call.
 */
#include "runtime.h"
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/sched/signal.h>

struct stp_pfile {
	struct mutex lock;		/* one reader or writer at a time */
	struct proc_dir_entry *entry;	/* the file, or the directory that was made for it */
	char *text;			/* for readers */
	unsigned int len;
	char *value;			/* what was written: a string */
	char *line;			/* bytes only: the line so far */
	unsigned int line_len;
	bool line_done;
};

static struct stp_pfile *stp_pfiles;
static bool stp_pfiles_closed;		/* the session is over: no more calls */
static atomic_t stp_pfiles_busy = ATOMIC_INIT(0);	/* calls in progress */

static struct stp_pfile *stp_pfile(struct stp_context *c)
{
	return &stp_pfiles[c->probe->interval];
}

const char *stp_value(struct stp_context *c)
{
	return stp_pfile(c)->value;
}

char *stp_value_buffer(struct stp_context *c, unsigned int *size, unsigned int **len)
{
	struct stp_pfile *f = stp_pfile(c);

	*size = stp_procfs[c->probe->interval].size;
	*len = &f->len;
	return f->text;
}

int stp_value_set(struct stp_context *c, const char *text, int append, const char *where)
{
	struct stp_pfile *f = stp_pfile(c);
	unsigned int at = append ? f->len : 0, room = stp_procfs[c->probe->interval].size - 1 - at;
	unsigned int n = strnlen(text, stp_script.string_size - 1);

	memcpy(f->text + at, text, min(n, room));
	f->len = at + min(n, room);
	if (n <= room)
		return 1;
	snprintf(c->error_text, stp_script.string_size, "buffer size exceeded, consider .maxsize(%u).", at + n + 1);
	snprintf(c->trace, sizeof(c->trace), " (called from %s)", where);
	stp_fail(c, c->error_text, where);
	return 0;
}

/* The line that the byte just written completes, else "". */
void stp_fn__stdin_line(struct stp_context *c, char *out)
{
	struct stp_pfile *f;

	out[0] = 0;
	if (c->probe->kind != STP_PROCFS_WRITE)
		return;
	f = stp_pfile(c);
	if (f->line_done)
		snprintf(out, stp_script.string_size, "%.*s", (int)f->line_len, f->line);
}

/* Runs the handlers of a file; false when the session does not run. */
static bool stp_pfile_fire(struct stp_pfile *f, int kind)
{
	struct cpumask *mask = stp_settle();
	unsigned int i;

	for (i = 0; i < stp_script.nprobes; i++)
		if (stp_script.probes[i].kind == kind && stp_script.probes[i].interval == f - stp_pfiles) {
			stp_run_probe(i, STP_S_RUNNING);
			cond_resched();
		}
	stp_unsettle(mask);
	return atomic_read(&stp_state) == STP_S_RUNNING;
}

/* The other side of stp_procfs_stop: it sees the call, or the call sees it. */
static bool stp_pfile_enter(void)
{
	atomic_inc(&stp_pfiles_busy);
	smp_mb__after_atomic();
	if (!READ_ONCE(stp_pfiles_closed))
		return true;
	atomic_dec(&stp_pfiles_busy);
	return false;
}

static void stp_pfile_leave(void)
{
	smp_mb__before_atomic();
	atomic_dec(&stp_pfiles_busy);
}

STP_COLD static ssize_t stp_pfile_take(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct stp_pfile *f = pde_data(file_inode(file));
	ssize_t rc;

	if (mutex_lock_interruptible(&f->lock))
		return -ERESTARTSYS;
	rc = -EIO;
	if (*pos == 0) {
		f->len = 0;
		if (!stp_pfile_fire(f, STP_PROCFS_READ) && !f->len)
			goto out;
	}
	rc = 0;
	if (*pos >= f->len)
		goto out;
	count = min_t(size_t, count, f->len - *pos);
	rc = -EFAULT;
	if (stp_to_user(buf, f->text + *pos, count))
		goto out;
	*pos += count;
	rc = count;
out:
	mutex_unlock(&f->lock);
	return rc;
}

STP_COLD static ssize_t stp_pfile_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	ssize_t rc;

	if (!stp_pfile_enter())
		return -EIO;
	rc = stp_pfile_take(file, buf, count, pos);
	stp_pfile_leave();
	return rc;
}

/* Writes of bytes: each is a string of its own, and part of a line. */
STP_COLD static ssize_t stp_pfile_bytes(struct stp_pfile *f, const char __user *buf, size_t count)
{
	ssize_t n;
	char ch;

	for (n = 0; n < count; n++) {
		if (get_user(ch, buf + n))
			return n ?: -EFAULT;
		if (signal_pending(current))
			return n ?: -ERESTARTSYS;
		f->value[0] = ch;
		f->value[1] = 0;
		if (ch && f->line_len < stp_script.string_size - 1)
			f->line[f->line_len++] = ch;
		f->line_done = ch == '\n';
		if (!stp_pfile_fire(f, STP_PROCFS_WRITE))
			return n ?: -EIO;
		if (f->line_done)
			f->line_len = 0;
		f->line_done = false;
		cond_resched();
	}
	return n;
}

/* A write is one string; what does not fit is left for the next write. */
STP_COLD static ssize_t stp_pfile_give(struct file *file, const char __user *buf, size_t count)
{
	struct stp_pfile *f = pde_data(file_inode(file));
	ssize_t rc;

	if (mutex_lock_interruptible(&f->lock))
		return -ERESTARTSYS;
	count = min_t(size_t, count, stp_script.string_size - 1);
	if (stp_procfs[f - stp_pfiles].bytes) {
		rc = stp_pfile_bytes(f, buf, count);
	} else if (copy_from_user(f->value, buf, count)) {
		rc = -EFAULT;
	} else {
		f->value[count] = 0;
		rc = stp_pfile_fire(f, STP_PROCFS_WRITE) ? count : -EIO;
	}
	mutex_unlock(&f->lock);
	return rc;
}

STP_COLD static ssize_t stp_pfile_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	ssize_t rc;

	if (!stp_pfile_enter())
		return -EIO;
	rc = stp_pfile_give(file, buf, count);
	stp_pfile_leave();
	return rc;
}

static const struct proc_ops stp_pfile_ops = {
	.proc_open = stp_file_open,
	.proc_release = stp_file_release,
	.proc_read = stp_pfile_read,
	.proc_write = stp_pfile_write,
	.proc_lseek = default_llseek,
};

STP_COLD int stp_procfs_init(void)
{
	unsigned int i, size = stp_script.string_size;

	stp_pfiles = kvcalloc(stp_nprocfs, sizeof(*stp_pfiles), GFP_KERNEL);
	if (!stp_pfiles)
		return -ENOMEM;
	for (i = 0; i < stp_nprocfs; i++) {
		struct stp_pfile *f = &stp_pfiles[i];

		mutex_init(&f->lock);
		f->value = stp_alloc(stp_procfs[i].size + 2 * size);
		if (!f->value)
			return -ENOMEM;
		f->value[0] = 0;
		f->line = f->value + size;
		f->text = f->line + size;
	}
	return 0;
}

/* Makes the directories of file n that no file before it has made. */
STP_COLD static bool stp_procfs_dirs(unsigned int n)
{
	const char *path = stp_procfs[n].path, *slash;
	char dir[256];
	unsigned int i;

	for (slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		size_t len = slash - path;
		struct proc_dir_entry *e;

		for (i = 0; i < n; i++)
			if (!strncmp(stp_procfs[i].path, path, len + 1))
				break;
		if (i < n)
			continue;
		if (len >= sizeof(dir))
			return false;
		memcpy(dir, path, len);
		dir[len] = 0;
		e = proc_mkdir(dir, stp_dir);
		if (!e)
			return false;
		if (!stp_pfiles[n].entry)
			stp_pfiles[n].entry = e;
	}
	return true;
}

STP_COLD void stp_procfs_start(void)
{
	unsigned int i;

	for (i = 0; i < stp_nprocfs; i++) {
		struct proc_dir_entry *e = NULL;

		if (stp_procfs_dirs(i))
			e = stp_file(stp_procfs[i].path, stp_procfs[i].mode, &stp_pfile_ops, &stp_pfiles[i]);
		if (!e)
			stp_message("ERROR: couldn't create procfs file \"%s\"\n", stp_procfs[i].path);
		if (!strchr(stp_procfs[i].path, '/'))
			stp_pfiles[i].entry = e;
	}
}

/* Two seconds, more than handlers in progress take. */
#define PATIENCE 200

/* proc_remove waits for calls in progress, and cannot be interrupted: where one
 * does not end the files stay, without effect, until the module goes. The last one
 * first: a directory inside one that an earlier file made goes before that. At
 * removal of the module all are gone with its directory. */
STP_COLD void stp_procfs_stop(void)
{
	unsigned int i;

	WRITE_ONCE(stp_pfiles_closed, true);
	smp_mb();
	for (i = 0; i < PATIENCE && atomic_read(&stp_pfiles_busy) && !fatal_signal_pending(current); i++)
		msleep(10);
	if (atomic_read(&stp_pfiles_busy)) {
		stp_message("WARNING: a procfs file is still being read or written: it stays until that ends and the module is removed\n");
		return;
	}
	for (i = stp_nprocfs; i-- > 0;) {
		if (stp_pfiles[i].entry && stp_dir)
			proc_remove(stp_pfiles[i].entry);
		stp_pfiles[i].entry = NULL;
	}
}

STP_COLD void stp_procfs_exit(void)
{
	unsigned int i;

	for (i = 0; stp_pfiles && i < stp_nprocfs; i++)
		vfree(stp_pfiles[i].value);
	kvfree(stp_pfiles);
}
