// SPDX-License-Identifier: MIT OR GPL-2.0
/* -DRELAY_GUEST=NAME: our records go to the rings of a host (host.c). */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mount.h>

static struct file *stp_host;

STP_COLD int stp_guest_init(const char *host)
{
	const struct stp_relay *r;
	struct vfsmount *mnt;
	struct path p;

	mnt = stp_proc_find(host, &p);
	if (IS_ERR(mnt))
		return PTR_ERR(mnt);
	stp_host = dentry_open(&p, O_RDONLY, current_cred());
	path_put(&p);
	kern_unmount(mnt);
	if (IS_ERR(stp_host)) {
		int rc = PTR_ERR(stp_host);

		stp_host = NULL;
		return rc;
	}
	r = stp_host->private_data;
	if (!r || r->magic != STP_RELAY_MAGIC || r->size != sizeof(*r))
		return -ENOEXEC;
	stp_sink = r->put;
	return 0;
}

STP_COLD void stp_guest_exit(void)
{
	stp_sink = stp_put_record;
	if (stp_host)
		fput(stp_host);
	stp_host = NULL;
}
