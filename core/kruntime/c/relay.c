// SPDX-License-Identifier: MIT OR GPL-2.0
/* Finding the relay file of a host (host.c) past all mounts of the caller. */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/namei.h>

/* Exported everywhere, declared in a public header only since 6.2. */
int vfs_path_lookup(struct dentry *, struct vfsmount *, const char *, unsigned int, struct path *);

/* Looks the relay file of the inserting user up in a mount of proc of our own,
 * which the caller unmounts with kern_unmount after path_put. */
STP_COLD struct vfsmount *stp_proc_find(const char *name, struct path *p)
{
	struct file_system_type *type = get_fs_type("proc");
	char file[128];
	struct vfsmount *mnt;
	int rc;

	if (!type)
		return ERR_PTR(-ENOENT);
	mnt = kern_mount(type);
	module_put(type->owner);
	if (IS_ERR(mnt))
		return mnt;
	snprintf(file, sizeof(file), STP_RELAY_FILE, from_kuid(&init_user_ns, current_uid()), name);
	rc = vfs_path_lookup(mnt->mnt_root, mnt, file, 0, p);
	if (!rc)
		return mnt;
	kern_unmount(mnt);
	return ERR_PTR(rc);
}
