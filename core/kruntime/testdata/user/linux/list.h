/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Lists with the kernel's names, as far as map.c uses them. */
struct list_head { struct list_head *next, *prev; };
struct hlist_node { struct hlist_node *next, **pprev; };
struct hlist_head { struct hlist_node *first; };

static inline void INIT_LIST_HEAD(struct list_head *h) { h->next = h->prev = h; }
static inline int list_empty(const struct list_head *h) { return h->next == h; }
static inline int list_is_last(const struct list_head *e, const struct list_head *h) { return e->next == h; }
static inline void list_del(struct list_head *e) { e->prev->next = e->next; e->next->prev = e->prev; }
static inline void list_add(struct list_head *e, struct list_head *h)
{
	e->next = h->next; e->prev = h; h->next->prev = e; h->next = e;
}
static inline void list_add_tail(struct list_head *e, struct list_head *h) { list_add(e, h->prev); }
static inline void list_move(struct list_head *e, struct list_head *h) { list_del(e); list_add(e, h); }
static inline void list_move_tail(struct list_head *e, struct list_head *h) { list_del(e); list_add_tail(e, h); }
static inline void list_splice_init(struct list_head *from, struct list_head *h)
{
	if (list_empty(from))
		return;
	from->next->prev = h; from->prev->next = h->next;
	h->next->prev = from->prev; h->next = from->next;
	INIT_LIST_HEAD(from);
}
static inline void hlist_add_head(struct hlist_node *n, struct hlist_head *h)
{
	n->next = h->first;
	if (n->next)
		n->next->pprev = &n->next;
	h->first = n;
	n->pprev = &h->first;
}
static inline void hlist_del(struct hlist_node *n)
{
	*n->pprev = n->next;
	if (n->next)
		n->next->pprev = n->pprev;
}
#define list_first_entry(h, t, m) container_of((h)->next, t, m)
#define list_first_entry_or_null(h, t, m) (list_empty(h) ? NULL : list_first_entry(h, t, m))
#define list_next_entry(n, m) container_of((n)->m.next, __typeof__(*(n)), m)
#define list_for_each_entry(n, h, m) \
	for (n = list_first_entry(h, __typeof__(*n), m); &n->m != (h); n = list_next_entry(n, m))
#define list_for_each_entry_safe(n, x, h, m) \
	for (n = list_first_entry(h, __typeof__(*n), m), x = list_next_entry(n, m); &n->m != (h); \
	     n = x, x = list_next_entry(n, m))
#define hlist_for_each_entry(n, h, m) \
	for (struct hlist_node *_p = (h)->first; _p && (n = container_of(_p, __typeof__(*n), m), 1); _p = _p->next)
