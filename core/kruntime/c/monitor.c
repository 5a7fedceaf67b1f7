// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * stap --monitor: monitor_status and monitor_control (loader-relay 9.1). Both are
 * procfs probes whose handlers are here; the translator gives them the locks of
 * all globals. The status is one JSON object (RFC 8259) of at most the size of
 * its file: what does not fit is left out, from the end of globals, of an array
 * or of probe_list. Bytes of strings that are not ASCII become \u00XX.
 */
#include "runtime.h"
#include <linux/cred.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <asm/timex.h>

struct stp_stat {
	atomic64_t hits, cycles, min, max;
	bool off;
};

static struct stp_stat *stp_stats;
static union { int64_t num; char *str; } *stp_first;	/* values of globals at insertion */
static time64_t stp_since;
static unsigned int stp_uid;

STP_COLD int stp_monitor_init(void)
{
	unsigned int i;

	stp_stats = kvcalloc(stp_nmonitored + 1, sizeof(*stp_stats), GFP_KERNEL);
	stp_first = kvcalloc(stp_script.nglobals + 1, sizeof(*stp_first), GFP_KERNEL);
	if (!stp_stats || !stp_first)
		return -ENOMEM;
	for (i = 0; i < stp_script.nglobals; i++) {
		if (stp_globals[i].num)
			stp_first[i].num = *stp_globals[i].num;
		if (!stp_globals[i].str)
			continue;
		stp_first[i].str = kstrdup(stp_globals[i].str, GFP_KERNEL_ACCOUNT);
		if (!stp_first[i].str)
			return -ENOMEM;
	}
	for (i = 0; i < stp_nmonitored; i++)
		atomic64_set(&stp_stats[i].min, S64_MAX);
	stp_since = ktime_get_seconds();
	stp_uid = from_kuid_munged(&init_user_ns, current_uid());
	return 0;
}

STP_COLD void stp_monitor_exit(void)
{
	unsigned int i;

	for (i = 0; stp_first && i < stp_script.nglobals; i++)
		if (stp_globals[i].str)
			kfree(stp_first[i].str);
	kvfree(stp_first);
	kvfree(stp_stats);
}

uint64_t stp_monitor_enter(unsigned int n)
{
	if (n < stp_nmonitored && READ_ONCE(stp_stats[n].off))
		return 0;
	return get_cycles() | 1;
}

void stp_monitor_leave(unsigned int n, uint64_t start)
{
	s64 took = get_cycles() - start, old;
	struct stp_stat *s = &stp_stats[n];

	if (n >= stp_nmonitored)
		return;
	if (took < 0)	/* another processor's counter */
		took = 0;
	atomic64_inc(&s->hits);
	atomic64_add(took, &s->cycles);
	old = atomic64_read(&s->min);
	while (took < old && !atomic64_try_cmpxchg(&s->min, &old, took))
		;
	old = atomic64_read(&s->max);
	while (took > old && !atomic64_try_cmpxchg(&s->max, &old, took))
		;
}

/* A line of stap -t: a probe, where the script has it, and what it stands for. */
STP_COLD void stp_timing_report(struct stp_context *c, unsigned int n, const char *place, const char *from)
{
	struct stp_stat *s = &stp_stats[n];
	s64 hits = atomic64_read(&s->hits);
	char text[128];

	if (!n)
		stp_put_str(c, "----- probe hit report:\n");
	stp_put_str(c, stp_script.probes[n].point);
	stp_put_str(c, place);
	snprintf(text, sizeof(text), "hits: %lld", hits);
	stp_put_str(c, text);
	if (hits) {
		snprintf(text, sizeof(text), ", cycles: %lldmin/%lldavg/%lldmax", (s64)atomic64_read(&s->min),
			 (s64)atomic64_read(&s->cycles) / hits, (s64)atomic64_read(&s->max));
		stp_put_str(c, text);
	}
	stp_put_str(c, from);
	snprintf(text, sizeof(text), ", index: %u\n", n);
	stp_put_str(c, text);
}

/* JSON text under construction. Once something did not fit nothing is added. */
struct stp_json {
	char *buf;
	unsigned int len, cap;
	bool full;
};

STP_COLD __printf(2, 3) static void stp_json_add(struct stp_json *j, const char *fmt, ...)
{
	va_list args;
	int n;

	if (j->full)
		return;
	va_start(args, fmt);
	n = vsnprintf(j->buf + j->len, j->cap - j->len, fmt, args);
	va_end(args);
	if (n >= j->cap - j->len)
		j->full = true;
	else
		j->len += n;
}

/* The inside of a JSON string. */
STP_COLD static void stp_json_text(struct stp_json *j, const char *s)
{
	unsigned int i;

	for (i = 0; i < stp_script.string_size && s[i] && !j->full; i++) {
		unsigned char ch = s[i];

		if (ch == '"' || ch == '\\')
			stp_json_add(j, "\\%c", ch);
		else if (ch < ' ' || ch > '~')
			stp_json_add(j, "\\u%04x", ch);
		else if (j->len + 1 < j->cap)
			j->buf[j->len++] = ch;
		else
			j->full = true;
	}
}

STP_COLD static void stp_json_string(struct stp_json *j, const char *s)
{
	stp_json_add(j, "\"");
	stp_json_text(j, s);
	stp_json_add(j, "\"");
}

/* Takes back what was begun at start and did not fit. */
STP_COLD static bool stp_fits(struct stp_json *j, unsigned int start)
{
	if (!j->full)
		return true;
	j->len = start;
	return false;
}

STP_COLD static void stp_json_array(struct stp_context *c, struct stp_json *j, const struct stp_array *a)
{
	struct stp_map *m = *a->map;
	struct stp_node *n;
	unsigned int k, start;
	const char *comma = "";

	stp_json_add(j, "{");
	if (j->full || j->cap - j->len < 3) {
		j->full = true;
		return;
	}
	j->cap -= 2;	/* for the end; what is left is not below zero */
	for (n = stp_map_first(c, m, 0, 0, NULL); n; n = stp_map_next(m, n)) {
		start = j->len;
		stp_json_add(j, "%s\"(", comma);
		for (k = 0; k < a->nkeys; k++) {
			if (k)
				stp_json_add(j, ", ");
			if (a->types[1 + k] == STP_STRING)
				stp_json_text(j, stp_node_str(m, n, 1 + k));
			else
				stp_json_add(j, "%lld", stp_node_int(m, n, 1 + k));
		}
		stp_json_add(j, ")\": ");
		if (a->types[0] == STP_STRING)
			stp_json_string(j, stp_node_str(m, n, 0));
		else
			stp_json_add(j, "%lld", stp_node_int(m, n, 0));
		if (!stp_fits(j, start))
			break;
		comma = ", ";
	}
	stp_map_done(m);
	j->full = false;
	j->cap += 2;
	stp_json_add(j, "}");
}

STP_COLD static void stp_json_global(struct stp_context *c, struct stp_json *j, const struct stp_global *g)
{
	stp_json_string(j, g->name);
	stp_json_add(j, ": ");
	if (g->array)
		stp_json_array(c, j, g->array);
	else if (g->str)
		stp_json_string(j, g->str);
	else
		stp_json_add(j, "%lld", *g->num);
}

STP_COLD static void stp_json_probe(struct stp_json *j, unsigned int i)
{
	struct stp_stat *s = &stp_stats[i];
	s64 hits = atomic64_read(&s->hits), min = atomic64_read(&s->min);

	stp_json_add(j, "{\"index\": %u, \"state\": \"%s\", \"hits\": %lld, \"min\": %lld, \"avg\": %lld, \"max\": %lld, \"name\": ",
		i, s->off ? "off" : "on", hits, hits ? min : 0, hits ? atomic64_read(&s->cycles) / hits : 0,
		(s64)atomic64_read(&s->max));
	stp_json_string(j, stp_script.probes[i].point);
	stp_json_add(j, "}");
}

STP_COLD void stp_monitor_status(struct stp_context *c)
{
	unsigned int *len, size, i, start, up = ktime_get_seconds() - stp_since;
	struct stp_json j = { .buf = stp_value_buffer(c, &size, &len) };

	/* Globals get no more than half of the room. */
	j.cap = size / 2;
	stp_json_add(&j, "{\"uptime\": \"%02u:%02u:%02u\", \"uid\": \"%u\", \"memory\": \"%lukB\", \"module_name\": ",
		up / 3600, up / 60 % 60, up % 60, stp_uid, num_online_cpus() * (stp_ring_size() >> 10));
	stp_json_string(&j, THIS_MODULE->name);
	stp_json_add(&j, ", \"globals\": {");
	for (i = 0; i < stp_script.nglobals; i++) {
		start = j.len;
		if (i)
			stp_json_add(&j, ", ");
		stp_json_global(c, &j, &stp_globals[i]);
		if (!stp_fits(&j, start))
			break;
	}
	j.full = false;
	j.cap = size - 16;
	stp_json_add(&j, "}, \"probe_list\": [");
	for (i = 0; i < stp_nmonitored; i++) {
		start = j.len;
		if (i)
			stp_json_add(&j, ", ");
		stp_json_probe(&j, i);
		if (!stp_fits(&j, start))
			break;
	}
	j.full = false;
	j.cap = size;
	stp_json_add(&j, "]}\n");
	*len = j.len;
}

STP_COLD static void stp_monitor_clear(struct stp_context *c)
{
	unsigned int i;

	/* The script's limits are for its own handlers; the time limit stays. */
	stp_spent(c, NULL);
	c->actions = c->work = S64_MAX;
	for (i = 0; i < stp_script.nglobals; i++) {
		const struct stp_global *g = &stp_globals[i];

		if (g->array)
			stp_map_clear(c, *g->array->map, NULL);
		else if (g->str)
			stp_strcpy(g->str, stp_first[i].str);
		else
			*g->num = stp_first[i].num;
	}
}

/* One word; others have no effect. */
STP_COLD void stp_monitor_control(struct stp_context *c)
{
	char word[16];
	unsigned int i, n;

	snprintf(word, sizeof(word), "%s", stp_value(c));
	i = strlen(word);
	while (i && word[i - 1] <= ' ')
		word[--i] = 0;
	if (!strcmp(word, "clear"))
		stp_monitor_clear(c);
	else if (!strcmp(word, "quit"))
		stp_request_exit();
	else if (!strcmp(word, "pause") || !strcmp(word, "resume"))
		for (i = 0; i < stp_nmonitored; i++)
			WRITE_ONCE(stp_stats[i].off, word[0] == 'p');
	else if (!kstrtouint(word, 10, &n) && n < stp_nmonitored)
		WRITE_ONCE(stp_stats[n].off, !stp_stats[n].off);
}
