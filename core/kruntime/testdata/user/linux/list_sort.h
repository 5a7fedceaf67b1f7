/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* A stable sort, as the kernel's is; insertion is fast enough for tests. */
static inline void list_sort(void *priv, struct list_head *h,
			     int (*cmp)(void *, const struct list_head *, const struct list_head *))
{
	struct list_head *e = h->next, *next, *p;

	for (; e != h; e = next) {
		next = e->next;
		for (p = e->prev; p != h && cmp(priv, p, e) > 0; p = p->prev)
			;
		list_move(e, p);
	}
}
