// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Arrays: hash tables whose nodes are all allocated at insertion. Nodes in use
 * hang in one list, in insertion order until a sorted iteration reorders it.
 * The lock of the global protects an array against other handlers.
 */
#include "runtime.h"
#include <linux/list.h>
#include <linux/list_sort.h>
#include <linux/jhash.h>
#include <linux/log2.h>
#include <linux/random.h>

#define MAX_COLUMNS 14

struct stp_node {
	struct list_head order;
	struct hlist_node hash;
	char data[] __aligned(8);	/* value, then keys: int64_t or string */
};

struct stp_map {
	struct list_head order, free;
	struct hlist_head *buckets;
	char *nodes;
	const struct stp_array *a;
	u32 mask, seed;
	unsigned int used;		/* nodes in order */
	atomic_t iterating;
	int column, dir, op;		/* of the sort in progress */
	struct stp_context *c;		/* who sorts */
	unsigned int compared;
	unsigned int at[MAX_COLUMNS];	/* offsets in data */
};

static int64_t *stp_int(const struct stp_map *m, struct stp_node *n, unsigned int col)
{
	return (int64_t *)(n->data + m->at[col]);
}

static char *stp_str(const struct stp_map *m, struct stp_node *n, unsigned int col)
{
	return n->data + m->at[col];
}

static bool stp_is_str(const struct stp_map *m, unsigned int col)
{
	return m->a->types[col] == STP_STRING;
}

STP_COLD static int stp_map_init(const struct stp_array *a)
{
	size_t node = sizeof(struct stp_node);
	struct stp_map *m;
	unsigned int i, buckets;

	if (a->nkeys < 1 || a->nkeys >= MAX_COLUMNS || !a->size || a->size > 1 << 24)
		return -EINVAL;
	m = kzalloc(sizeof(*m), GFP_KERNEL);
	if (!m)
		return -ENOMEM;
	*a->map = m;
	m->a = a;
	for (i = 0; i <= a->nkeys; i++) {
		m->at[i] = node - sizeof(struct stp_node);
		if (!i && a->types[0] == STP_STATS)
			node += ALIGN(stp_stat_size(a->stat), 8);
		else
			node += a->types[i] == STP_STRING ? ALIGN(stp_script.string_size, 8) : 8;
	}
	buckets = roundup_pow_of_two(a->size);
	m->mask = buckets - 1;
	m->seed = get_random_u32();
	INIT_LIST_HEAD(&m->order);
	INIT_LIST_HEAD(&m->free);
	m->buckets = stp_alloc(array_size(buckets, sizeof(*m->buckets)));
	m->nodes = stp_alloc(array_size(a->size, node));
	if (!m->buckets || !m->nodes)
		return -ENOMEM;
	memset(m->buckets, 0, buckets * sizeof(*m->buckets));
	for (i = 0; i < a->size; i++)
		list_add_tail(&((struct stp_node *)(m->nodes + i * node))->order, &m->free);
	return 0;
}

STP_COLD int stp_maps_init(void)
{
	unsigned int i;
	int rc = 0;

	for (i = 0; !rc && i < stp_script.narrays; i++)
		rc = stp_map_init(&stp_script.arrays[i]);
	return rc;
}

STP_COLD void stp_maps_exit(void)
{
	unsigned int i;

	for (i = 0; i < stp_script.narrays; i++) {
		struct stp_map *m = *stp_script.arrays[i].map;

		if (!m)
			continue;
		vfree(m->buckets);
		vfree(m->nodes);
		kfree(m);
	}
}

static struct hlist_head *stp_bucket(struct stp_context *c, const struct stp_map *m, const union stp_key *k)
{
	u32 h = m->seed;
	unsigned int i;

	for (i = 0; i < m->a->nkeys; i++) {
		if (stp_is_str(m, i + 1)) {
			size_t n = strnlen(k[i].s, stp_script.string_size - 1);

			h = jhash(k[i].s, n, h);
			stp_charge(c, 1 + n / 64);
		} else {
			h = jhash_2words((u32)k[i].i, (u32)(k[i].i >> 32), h);
		}
	}
	return &m->buckets[h & m->mask];
}

int stp_node_match(struct stp_context *c, struct stp_map *m, struct stp_node *n, const union stp_key *k, unsigned int any)
{
	unsigned int i;

	for (i = 0; i < m->a->nkeys; i++) {
		if (any >> i & 1)
			continue;
		if (stp_is_str(m, i + 1)) {
			if (stp_compare(c, stp_str(m, n, i + 1), k[i].s, stp_script.string_size - 1))
				return 0;
		} else if (*stp_int(m, n, i + 1) != k[i].i) {
			return 0;
		}
	}
	return 1;
}

static struct stp_node *stp_find(struct stp_context *c, struct stp_map *m, const union stp_key *k, struct hlist_head *b)
{
	struct stp_node *n;

	hlist_for_each_entry(n, b, hash)
		if (stp_node_match(c, m, n, k, 0))
			return n;
	return NULL;
}

static struct stp_node *stp_lookup(struct stp_context *c, struct stp_map *m, const union stp_key *k)
{
	return stp_find(c, m, k, stp_bucket(c, m, k));
}

int64_t stp_map_get(struct stp_context *c, struct stp_map *m, const union stp_key *k)
{
	struct stp_node *n = stp_lookup(c, m, k);

	return n ? *stp_int(m, n, 0) : 0;
}

const char *stp_map_get_str(struct stp_context *c, struct stp_map *m, const union stp_key *k)
{
	struct stp_node *n = stp_lookup(c, m, k);

	return n ? stp_str(m, n, 0) : "";
}

static void stp_free_node(struct stp_map *m, struct stp_node *n)
{
	hlist_del(&n->hash);
	list_move(&n->order, &m->free);
	m->used--;
}

/* Whether n units of work are left: asked before work that cannot stop half way. */
static bool stp_affords(struct stp_context *c, u64 n, const char *where)
{
	if (stp_spent(c, where))
		return false;
	if (n < (u64)c->work)
		return true;
	c->work = 0;
	stp_spent(c, where);
	return false;
}

static int stp_busy(struct stp_context *c, struct stp_map *m, const char *where)
{
	if (!atomic_read(&m->iterating))
		return 0;
	snprintf(c->error_text, stp_script.string_size, "array '%s' modified during 'foreach' iteration",
		 m->a->name);
	stp_fail(c, c->error_text, where);
	return 1;
}

static struct stp_node *stp_find_or_add(struct stp_context *c, struct stp_map *m, const union stp_key *k,
					const char *where)
{
	struct hlist_head *b = stp_bucket(c, m, k);
	struct stp_node *n = stp_find(c, m, k, b);
	unsigned int i;

	if (n)
		return n;
	if (stp_busy(c, m, where))
		return NULL;
	if (list_empty(&m->free)) {
		if (!m->a->wrap) {
			snprintf(c->error_text, stp_script.string_size,
				 m->a->sized ? "Array overflow, check size limit (%u)" :
				 "Array overflow, check MAXMAPENTRIES", m->a->size);
			stp_fail(c, c->error_text, where);
			return NULL;
		}
		stp_free_node(m, list_first_entry(&m->order, struct stp_node, order));
	}
	n = list_first_entry(&m->free, struct stp_node, order);
	list_move_tail(&n->order, &m->order);
	m->used++;
	hlist_add_head(&n->hash, b);
	for (i = 0; i < m->a->nkeys; i++) {
		if (stp_is_str(m, i + 1))
			stp_assign(c, stp_str(m, n, i + 1), k[i].s);
		else
			*stp_int(m, n, i + 1) = k[i].i;
	}
	return n;
}

int stp_map_set(struct stp_context *c, struct stp_map *m, const union stp_key *k, int64_t v, const char *where)
{
	struct stp_node *n = stp_find_or_add(c, m, k, where);

	if (!n)
		return 0;
	*stp_int(m, n, 0) = v;
	return 1;
}

int stp_map_set_str(struct stp_context *c, struct stp_map *m, const union stp_key *k, const char *v,
		    const char *where)
{
	struct stp_node *n = stp_find_or_add(c, m, k, where);

	if (!n)
		return 0;
	stp_assign(c, stp_str(m, n, 0), v);
	return 1;
}

struct stp_aggr *stp_map_stat(struct stp_context *c, struct stp_map *m, const union stp_key *k, int add,
			      const char *where)
{
	struct stp_node *n = stp_lookup(c, m, k);

	if (!n && add) {
		n = stp_find_or_add(c, m, k, where);
		if (n)
			stp_stat_clear(c, (struct stp_aggr *)n->data, m->a->stat);
	}
	return n ? (struct stp_aggr *)n->data : NULL;
}

int64_t stp_map_in(struct stp_context *c, struct stp_map *m, const union stp_key *k, unsigned int any,
		   const char *where)
{
	struct stp_node *n;

	if (!any)
		return stp_lookup(c, m, k) != NULL;
	list_for_each_entry(n, &m->order, order)
		if (stp_charge_at(c, 1, where) || stp_node_match(c, m, n, k, any))
			return !c->error;
	return 0;
}

int stp_map_del(struct stp_context *c, struct stp_map *m, const union stp_key *k, unsigned int any, const char *where)
{
	struct stp_node *n, *next;

	if (stp_busy(c, m, where))
		return 0;
	if (!any) {
		n = stp_lookup(c, m, k);
		if (n)
			stp_free_node(m, n);
		return 1;
	}
	list_for_each_entry_safe(n, next, &m->order, order) {
		if (stp_charge_at(c, 1, where))
			return 0;
		if (stp_node_match(c, m, n, k, any))
			stp_free_node(m, n);
	}
	return 1;
}

/* All at once: a huge array is not walked through, its elements are not looked
 * at. */
int stp_map_clear(struct stp_context *c, struct stp_map *m, const char *where)
{
	struct stp_node *n, *next;

	if (stp_busy(c, m, where))
		return 0;
	if (m->used < m->mask / 32) {
		/* each element is a few misses of the cache */
		if (stp_charge_at(c, 2 * m->used, where))
			return 0;
		list_for_each_entry_safe(n, next, &m->order, order)
			stp_free_node(m, n);
		return 1;
	}
	if (stp_charge_at(c, m->mask / 32, where))
		return 0;
	memset(m->buckets, 0, (m->mask + 1UL) * sizeof(*m->buckets));
	list_splice_init(&m->order, &m->free);
	m->used = 0;
	return 1;
}

static int stp_order(void *priv, const struct list_head *a, const struct list_head *b)
{
	struct stp_map *m = priv;
	struct stp_node *x = container_of((struct list_head *)a, struct stp_node, order);
	struct stp_node *y = container_of((struct list_head *)b, struct stp_node, order);
	int64_t i, j;
	int d;

	/* list_sort does not stop half way: without a budget all are equal. */
	if (m->c->spent)
		return 0;
	if (stp_is_str(m, m->column)) {
		stp_charge(m->c, 1);
		d = stp_compare(m->c, stp_str(m, x, m->column), stp_str(m, y, m->column), stp_script.string_size);
	} else {
		if (!(++m->compared & 7))
			stp_charge(m->c, 1);
		if (!m->column && m->a->types[0] == STP_STATS) {
			i = stp_stat_value((struct stp_aggr *)x->data, m->op);
			j = stp_stat_value((struct stp_aggr *)y->data, m->op);
		} else {
			i = *stp_int(m, x, m->column);
			j = *stp_int(m, y, m->column);
		}
		d = i < j ? -1 : i > j;
	}
	return m->dir * d;
}

struct stp_node *stp_map_first(struct stp_context *c, struct stp_map *m, int column, int dir, const char *where)
{
	atomic_inc(&m->iterating);
	if (dir && m->used) {
		if (!stp_affords(c, (u64)m->used * ilog2(m->used) / 8, where))
			return NULL;
		m->column = column < 0 ? 0 : column;
		m->op = -column;
		m->dir = dir;
		m->c = c;
		list_sort(m, &m->order, stp_order);
		if (c->spent) {
			stp_spent(c, where);
			return NULL;
		}
	}
	return list_first_entry_or_null(&m->order, struct stp_node, order);
}

struct stp_node *stp_map_next(struct stp_map *m, struct stp_node *n)
{
	return list_is_last(&n->order, &m->order) ? NULL : list_next_entry(n, order);
}

void stp_map_done(struct stp_map *m)
{
	atomic_dec(&m->iterating);
}

int64_t stp_node_int(struct stp_map *m, struct stp_node *n, int column)
{
	return *stp_int(m, n, column);
}

const char *stp_node_str(struct stp_map *m, struct stp_node *n, int column)
{
	return stp_str(m, n, column);
}
