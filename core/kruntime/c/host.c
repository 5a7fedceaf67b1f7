// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * -DRELAY_HOST=NAME: other modules of the same user put their records into our
 * rings. They find us by a file that only modules open: while one has it open we
 * cannot be removed.
 */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/mount.h>

static const struct stp_relay stp_relay = { STP_RELAY_MAGIC, sizeof(stp_relay), stp_put_record };
static struct proc_dir_entry *stp_host_file;

STP_COLD static int stp_host_open(struct inode *inode, struct file *f)
{
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	f->private_data = (void *)&stp_relay;
	return 0;
}

STP_COLD static int stp_host_release(struct inode *inode, struct file *f)
{
	module_put(THIS_MODULE);
	return 0;
}

static const struct proc_ops stp_host_ops = {
	.proc_open = stp_host_open,
	.proc_release = stp_host_release,
};

STP_COLD int stp_host_init(const char *name)
{
	struct vfsmount *mnt;
	struct path p;
	char file[128];

	/* proc_create warns in the kernel log when the name exists. */
	mnt = stp_proc_find(name, &p);
	if (!IS_ERR(mnt)) {
		path_put(&p);
		kern_unmount(mnt);
		return -EBUSY; /* what kernels since 7.0 make of EEXIST */
	}
	snprintf(file, sizeof(file), STP_RELAY_FILE, from_kuid(&init_user_ns, current_uid()), name);
	stp_host_file = proc_create(file, 0400, NULL, &stp_host_ops);
	if (!stp_host_file)
		return -ENOMEM;
	proc_set_user(stp_host_file, current_uid(), current_gid());
	return 0;
}

STP_COLD void stp_host_exit(void)
{
	if (stp_host_file)
		proc_remove(stp_host_file);
}
