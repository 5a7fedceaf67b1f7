// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Statistics: what <<< collects, and what is asked of it. The lock of the global
 * protects it, as it does any other value.
 *
 * A histogram of n buckets is an array of counts: 0 is what lies below the
 * first bucket and n - 1 what lies above the last. @hist_log has a bucket for
 * each power of two, on both sides of 0, which is in the middle; its outermost
 * buckets are beyond all values.
 */
#include "runtime.h"

#define LOG_BUCKETS STP_LOG_BUCKETS
#define LOG_ZERO (LOG_BUCKETS / 2)
#define BAR 50			/* columns */
#define AROUND 2		/* empty rows that are shown beside others */

/* The bucket of @hist_log: 0 for 0, n for 2^(n-1) to 2^n - 1, -n for the
 * negatives of these. */
static unsigned int stp_log_bucket(int64_t v)
{
	uint64_t u = v < 0 ? 0 - (uint64_t)v : v;
	unsigned int n = u ? 64 - __builtin_clzll(u) : 0;

	return v < 0 ? LOG_ZERO - n : LOG_ZERO + n;
}

static unsigned int stp_linear_bucket(const struct stp_stat_kind *k, int64_t v)
{
	uint64_t n;

	if (v < k->start)
		return 0;
	n = ((uint64_t)v - (uint64_t)k->start) / (uint64_t)k->interval + 1;
	return n < k->linear - 1 ? n : k->linear - 1;
}

void stp_stat_add(struct stp_aggr *s, const struct stp_stat_kind *k, int64_t v)
{
	int64_t *h = s->buckets;

	if (!s->count) {
		s->min = s->max = v;
		s->sum = 0;
	}
	s->count++;
	s->sum = stp_add(s->sum, v);
	if (v < s->min)
		s->min = v;
	if (v > s->max)
		s->max = v;
	if (k->log) {
		h[stp_log_bucket(v)]++;
		h += LOG_BUCKETS;
	}
	if (k->linear)
		h[stp_linear_bucket(k, v)]++;
}

void stp_stat_clear(struct stp_context *c, struct stp_aggr *s, const struct stp_stat_kind *k)
{
	memset(s, 0, stp_stat_size(k));
	stp_charge(c, stp_stat_size(k) / 256);
}

int64_t stp_stat_get(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int op, const char *where)
{
	if (op > STP_SUM && (!s || !s->count)) {
		stp_fail(c, "empty aggregate", where);
		return 0;
	}
	return s ? stp_stat_value(s, op) : 0;
}

static int64_t *stp_hist(const struct stp_aggr *s, const struct stp_stat_kind *k, int log, unsigned int *n)
{
	int64_t *h = (int64_t *)s->buckets;

	*n = log ? LOG_BUCKETS : k->linear;
	return log || !k->log ? h : h + LOG_BUCKETS;
}

int64_t stp_hist_get(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int log, int64_t i, const char *where)
{
	unsigned int n;
	int64_t *h;

	if (!s || !s->count) {
		stp_fail(c, "empty aggregate", where);
		return 0;
	}
	h = stp_hist(s, k, log, &n);
	if (i < 0 || i >= n) {
		stp_fail(c, "histogram index out of range", where);
		return 0;
	}
	return h[i];
}

int64_t stp_hist_size(const struct stp_stat_kind *k, int log)
{
	return log ? LOG_BUCKETS : k->linear;
}

static int64_t stp_log_value(int i)
{
	i -= LOG_ZERO;
	if (!i)
		return 0;
	return i < 0 ? -(int64_t)(1ULL << (-i - 1)) : (int64_t)(1ULL << (i - 1));
}

static int64_t stp_bucket_value(const struct stp_stat_kind *k, int log, unsigned int n, unsigned int i)
{
	if (log)
		return stp_log_value(i);
	if (!i)
		return k->start;
	return i == n - 1 ? k->stop : k->start + (int64_t)(i - 1) * k->interval;
}

/* The first column of a row: a number, of the outermost rows of @hist_linear
 * with a sign. Answers its length. */
static unsigned int stp_label(char *to, const struct stp_stat_kind *k, int log, unsigned int n, unsigned int i)
{
	const char *sign = log || (i && i < n - 1) ? "" : i ? ">" : "<";

	return snprintf(to, 24, "%s%lld", sign, (long long)stp_bucket_value(k, log, n, i));
}

/* Rows are shown when they or one of their neighbours have counts. */
static bool stp_row(const int64_t *h, unsigned int n, unsigned int i)
{
	unsigned int j;

	for (j = i < AROUND ? 0 : i - AROUND; j <= i + AROUND && j < n; j++)
		if (h[j])
			return true;
	return false;
}

/* The caller has said where printed text goes. */
void stp_hist_print(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int log, const char *where)
{
	unsigned int n, i, first, last, width = 5, digits, shown = 0;
	int64_t *h, most = 0, scale;
	char text[24];

	if (!s || !s->count) {
		stp_fail(c, "empty aggregate", where);
		return;
	}
	h = stp_hist(s, k, log, &n);
	if (stp_charge_at(c, n / 8, where))
		return;
	first = n;
	last = 0;
	for (i = 0; i < n; i++) {
		if (!h[i])
			continue;
		if (first == n)
			first = i;
		last = i;
		if (h[i] > most)
			most = h[i];
	}
	/* No row below 0 without a negative value, none outside of the range
	 * of @hist_linear without a value there. */
	if (log)
		i = first >= LOG_ZERO ? LOG_ZERO : 0;
	else
		i = first ? 1 : 0;
	first = first < i + AROUND ? i : first - AROUND;
	i = log || last == n - 1 ? n - 1 : n - 2;
	last = last + AROUND > i ? i : last + AROUND;
	scale = (most + BAR - 1) / BAR;
	if (scale < 1)
		scale = 1;
	digits = snprintf(text, sizeof(text), "%lld", (long long)most);
	for (i = first; i <= last; i++) {
		unsigned int len = stp_row(h, n, i) ? stp_label(text, k, log, n, i) : 0;

		if (len > width)
			width = len;
	}
	stp_pad(c, ' ', width - 5);
	stp_put(c, "value |", 7);
	stp_pad(c, '-', BAR);
	stp_put(c, " count\n", 7);
	for (i = first; i <= last; i++) {
		unsigned int len;
		int64_t bar = h[i] / scale;

		if (stp_charge_at(c, 16, where))
			break;
		if (!stp_row(h, n, i)) {
			if (shown) {
				stp_pad(c, ' ', width + 1);
				stp_put(c, "~\n", 2);
			}
			shown = 0;
			continue;
		}
		shown = 1;
		len = stp_label(text, k, log, n, i);
		stp_pad(c, ' ', width - len);
		stp_put(c, text, len);
		stp_put(c, " |", 2);
		stp_pad(c, '@', bar);
		stp_pad(c, ' ', BAR - bar + 1);
		len = snprintf(text, sizeof(text), "%lld", (long long)h[i]);
		stp_pad(c, ' ', (int64_t)digits - len);
		stp_put(c, text, len);
		stp_put(c, "\n", 1);
	}
	stp_put(c, "\n", 1);
}
