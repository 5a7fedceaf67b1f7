// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The data path: records from the CPUs' print buffers to trace<N>.
 *
 *	0  f0 9f a9 ba	magic
 *	4  u32		sequence, one counter for all CPUs, first record 1
 *	8  u32		bytes that follow
 */
#include "runtime.h"
#include <linux/mm.h>

static int _stp_bufsize;
module_param(_stp_bufsize, int, 0);
MODULE_PARM_DESC(_stp_bufsize, "buffer size");

struct stp_record {
	unsigned char magic[4];
	u32 sequence;
	u32 len;
};

atomic_t stp_dropped = ATOMIC_INIT(0);
bool stp_overwrite;	/* nobody is attached: new records replace old ones */
unsigned int stp_session; /* counts those who attach */
static atomic_t stp_sequence = ATOMIC_INIT(0);

/*
 * Memory in large pieces. Whoever inserts a module may be an ordinary user who
 * chose its sizes and the number of modules: no piece gets more than half of
 * what is available, a sixteenth of all memory stays available, the pages count
 * for his control group, and the attempt disturbs nobody.
 */
STP_COLD void *stp_alloc(unsigned long size)
{
	long pages = size >> PAGE_SHIFT, available = si_mem_available();

	if (pages > available / 2 || available - pages < (long)(totalram_pages() / 16))
		return NULL;
	return __vmalloc(size, GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);
}

#define MEGABYTE (1UL << 20)

STP_COLD static unsigned long stp_ring_asked(void)
{
	return _stp_bufsize > 0 && _stp_bufsize <= 4095 ? _stp_bufsize : 0;
}

/* Megabytes per CPU as asked for, but no more than three eighths of the free
 * memory for all CPUs together; else 16, but no more than a quarter. */
STP_COLD unsigned long stp_ring_size(void)
{
	static unsigned long size;
	unsigned long free, quarter;

	if (size)
		return size;
	free = (unsigned long)max(si_mem_available(), 0L) << PAGE_SHIFT;
	quarter = free / 4 / num_online_cpus();
	if (stp_ring_asked())
		size = min(stp_ring_asked() * MEGABYTE, quarter + quarter / 2);
	else
		size = min(16 * MEGABYTE, quarter);
	size = max(round_down(size, MEGABYTE), MEGABYTE);
	return size;
}

/* Who asked for a size is told when it is another one. */
STP_COLD void stp_rings_announce(void)
{
	unsigned long asked = stp_ring_asked(), have = stp_ring_size() >> 20;

	if (asked && have != asked)
		stp_message("WARNING: buffers of %lu MB per CPU, not %lu: not enough memory\n", have, asked);
}

static void stp_ring_wake(struct irq_work *w)
{
	wake_up_all(&container_of(w, struct stp_ring, wake)->wait);
}

STP_COLD int stp_ring_init(struct stp_ring *r, unsigned long size)
{
	mutex_init(&r->reader);
	init_waitqueue_head(&r->wait);
	init_irq_work(&r->wake, stp_ring_wake);
	r->size = size;
	r->data = stp_alloc(size);
	return r->data ? 0 : -ENOMEM;
}

STP_COLD void stp_ring_exit(struct stp_ring *r)
{
	if (r->size)
		irq_work_sync(&r->wake);
	vfree(r->data);
}

/* The size is a number of megabytes: a division of 32 bits is all that takes. */
static noinline unsigned long stp_ring_offset(const struct stp_ring *r, unsigned long at)
{
	return (unsigned long)((u32)(at / MEGABYTE) % (u32)(r->size / MEGABYTE)) * MEGABYTE + at % MEGABYTE;
}

static noinline void stp_ring_copy(struct stp_ring *r, unsigned long at, const void *from, unsigned long len)
{
	unsigned long off = stp_ring_offset(r, at), first = min(len, r->size - off);

	memcpy(r->data + off, from, first);
	memcpy(r->data, from + first, len - first);
}

static noinline unsigned long stp_record_size(struct stp_ring *r, unsigned long at)
{
	unsigned long off = stp_ring_offset(r, at + offsetof(struct stp_record, len));
	unsigned char len[sizeof(u32)];
	u32 v;
	unsigned int i;

	for (i = 0; i < sizeof(len); i++)
		len[i] = r->data[off + i < r->size ? off + i : off + i - r->size];
	memcpy(&v, len, sizeof(v));
	return sizeof(struct stp_record) + v;
}

/*
 * Puts a record into this CPU's ring, whole or not at all: one that does not fit
 * is counted, and takes no sequence number. While nobody is attached it takes
 * the place of the oldest ones instead. Interrupts are off.
 */
void stp_put_record(const char *text, unsigned int len)
{
	struct stp_cpu *k = stp_cpus[smp_processor_id()];
	struct stp_record h = { .magic = { 0xf0, 0x9f, 0xa9, 0xba }, .len = len };
	struct stp_ring *r;
	unsigned long head, tail, next;

	if (!k) {
		atomic_inc(&stp_dropped);
		return;
	}
	r = &k->ring;
	head = r->head;
	while (head + sizeof(h) + len - r->mark > r->size) {
		next = r->mark + stp_record_size(r, r->mark);
		tail = smp_load_acquire(&r->tail);
		if ((long)(next - tail) > 0) {	/* not read to its end */
			if (!READ_ONCE(stp_overwrite)) {
				atomic_inc(&stp_dropped);
				return;
			}
			if (cmpxchg(&r->tail, tail, next) != tail)
				continue;
		}
		r->mark = next;
	}
	h.sequence = atomic_inc_return(&stp_sequence);
	stp_ring_copy(r, head, &h, sizeof(h));
	stp_ring_copy(r, head + sizeof(h), text, len);
	smp_store_release(&r->head, head + sizeof(h) + len);
	/* We may be inside anything: never wake from here. */
	if (wq_has_sleeper(&r->wait))
		irq_work_queue(&r->wake);
}

/* Where records go: a guest's to its host (guest.c). */
void (*stp_sink)(const char *text, unsigned int len) = stp_put_record;

/* Empties the print buffer of c. */
void stp_flush(struct stp_context *c)
{
	unsigned long flags;

	if (!c->print.len)
		return;
	local_irq_save(flags);
	stp_sink(c->print.buf, c->print.len);
	c->print.len = 0;
	local_irq_restore(flags);
}

/* All records are there: whoever waits in poll looks once more. There is no
 * POLLERR to say so before removal, as with upstream's modules: readers of
 * theirs would turn it into a busy loop until they are told to stop. */
STP_COLD void stp_rings_finish(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		if (stp_cpus[cpu])
			wake_up_all(&stp_cpus[cpu]->ring.wait);
}

/* Once in the module: it is long on some kernels. */
STP_COLD noinline unsigned long stp_to_user(void __user *to, const void *from, unsigned long n)
{
	return copy_to_user(to, from, n);
}

/* As many whole records as fit, but no more than a copy takes that nothing can
 * interrupt; a part of one that alone is longer than that. */
STP_COLD static ssize_t stp_trace_read(struct file *f, char __user *buf, size_t count, loff_t *pos)
{
	struct stp_ring *r = pde_data(file_inode(f));
	unsigned long tail, end, next, off, first, n;
	ssize_t rc;

	if (mutex_lock_interruptible(&r->reader))
		return -ERESTARTSYS;
	if (r->session != READ_ONCE(stp_session)) {
		/* Another reader: not the rest of what the last one began to read. */
		r->session = READ_ONCE(stp_session);
		tail = READ_ONCE(r->tail);
		if ((long)(r->boundary - tail) > 0)
			cmpxchg(&r->tail, tail, r->boundary);
	}
	do {
		/* What is read may be overwritten meanwhile: then once more. */
		rc = -ERESTARTSYS;
		if (signal_pending(current))
			break;
		tail = READ_ONCE(r->tail);
		n = min3((unsigned long)count, smp_load_acquire(&r->head) - tail, MEGABYTE);
		rc = tail ? -ENODATA : 0;
		if (!n)
			break;
		end = r->boundary;
		if ((long)(end - tail) < 0)
			end = tail;
		while ((next = end + stp_record_size(r, end)) - tail <= n)
			end = next;
		if (end == tail)
			end = next;
		else
			n = min(n, end - tail);
		off = stp_ring_offset(r, tail);
		first = min(n, r->size - off);
		rc = -EFAULT;
		if (stp_to_user(buf, r->data + off, first) ||
		    stp_to_user(buf + first, r->data, n - first))
			break;
		rc = n;
	} while (cmpxchg(&r->tail, tail, tail + n) != tail);
	if (rc > 0)
		r->boundary = end;
	mutex_unlock(&r->reader);
	return rc;
}

static __poll_t stp_trace_poll(struct file *f, poll_table *wait)
{
	struct stp_ring *r = pde_data(file_inode(f));
	__poll_t mask = 0;

	poll_wait(f, &r->wait, wait);
	if (smp_load_acquire(&r->head) != READ_ONCE(r->tail))
		mask |= EPOLLIN | EPOLLRDNORM;
	return mask;
}

const struct proc_ops stp_trace_ops = {
	.proc_open = stp_file_open,
	.proc_release = stp_file_release,
	.proc_read = stp_trace_read,
	.proc_poll = stp_trace_poll,
};
