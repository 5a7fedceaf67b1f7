// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * /proc/systemtap/MODULE/{.cmd,trace<N>} (loader-relay 6.1, 7.1).
 *
 * The directory systemtap is shared by all modules, made by the first and
 * never removed. proc_mkdir warns in the kernel log when the name exists, and
 * no exported function looks a proc entry up, so its existence is seen through
 * a mount: the caller's /proc, and when that shows nothing one of our own.
 * The loader's lock keeps two insertions from racing between look and make.
 */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/namei.h>

/* Exported everywhere, declared in a public header only since 6.2. */
int vfs_path_lookup(struct dentry *, struct vfsmount *, const char *, unsigned int, struct path *);

struct proc_dir_entry *stp_dir;
static kuid_t stp_owner;	/* who inserted the module */
static kgid_t stp_group;

STP_COLD static bool stp_is_ours(struct path *p)
{
	struct dentry *d = p->dentry;

	return d->d_sb->s_magic == PROC_SUPER_MAGIC && d->d_parent == d->d_sb->s_root &&
	       d_is_dir(d);
}

STP_COLD static bool stp_parent_exists(void)
{
	struct file_system_type *type;
	struct vfsmount *mnt;
	struct path p;
	bool found;

	if (kern_path("/proc/systemtap", 0, &p) == 0) {
		found = stp_is_ours(&p);
		path_put(&p);
		if (found)
			return true;
	}
	type = get_fs_type("proc");
	if (!type)
		return false;
	mnt = kern_mount(type);
	module_put(type->owner);
	if (IS_ERR(mnt))
		return false;
	found = vfs_path_lookup(mnt->mnt_root, mnt, "systemtap", 0, &p) == 0;
	if (found)
		path_put(&p);
	kern_unmount(mnt);
	return found;
}

/* Of every file, trace files too: a waiting poller stays on our wait queue after
 * the call. What is open holds the module, so that removal says so at once. */
STP_COLD int stp_file_open(struct inode *inode, struct file *f)
{
	return try_module_get(THIS_MODULE) ? 0 : -ENODEV;
}

STP_COLD int stp_file_release(struct inode *inode, struct file *f)
{
	module_put(THIS_MODULE);
	return 0;
}

/* A file of the module's directory; NULL when there is no memory. */
STP_COLD struct proc_dir_entry *stp_file(const char *name, umode_t mode, const struct proc_ops *ops, void *data)
{
	struct proc_dir_entry *e = proc_create_data(name, mode, stp_dir, ops, data);

	if (e)
		proc_set_user(e, stp_owner, stp_group);
	return e;
}

STP_COLD int stp_files_init(void)
{
	char name[sizeof("systemtap/") + MODULE_NAME_LEN];
	int cpu;

	if (!stp_parent_exists() && !proc_mkdir("systemtap", NULL) && !stp_parent_exists())
		return -ENOMEM;
	/* THIS_MODULE's name, not the build's: staprun -R renames modules. */
	snprintf(name, sizeof(name), "systemtap/%s", THIS_MODULE->name);
	stp_owner = current_uid();
	stp_group = current_gid();
	stp_dir = proc_mkdir(name, NULL);
	if (!stp_dir)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		if (!stp_cpus[cpu])
			continue;
		snprintf(name, sizeof(name), "trace%d", cpu);
		if (!stp_file(name, 0400, &stp_trace_ops, &stp_cpus[cpu]->ring))
			goto fail;
	}
	if (stp_file(".cmd", 0600, &stp_cmd_ops, NULL))
		return 0;
fail:
	stp_files_exit();
	return -ENOMEM;
}

/* Waits for calls in progress; open files hold the module, so there are none. */
STP_COLD void stp_files_exit(void)
{
	if (stp_dir)
		proc_remove(stp_dir);
	stp_dir = NULL;
}
