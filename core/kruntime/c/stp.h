/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The one header of a script unit: the C that the translator writes for a
 * script includes it and nothing else, so that a compiler reads a script in
 * milliseconds. The runtime sources include it after the kernel's headers.
 *
 * Everything here is plain C with names that start with stp_, STP_ or __stp_.
 */
#ifndef STP_H
#define STP_H

#ifndef _LINUX_TYPES_H
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define NULL ((void *)0)
#endif

#define stp_unlikely(x) __builtin_expect(!!(x), 0)

/* Bytes of a string, terminating zero included: a property of the script. */
#ifndef STP_MAXSTRINGLEN
#define STP_MAXSTRINGLEN 512
#endif

/* ---- what a script is: the data the runtime reads ---------------------- */

/* begin, end and error come first */
enum stp_kind { STP_BEGIN, STP_END, STP_ERROR, STP_NEVER, STP_TIMER, STP_PROCFS_READ, STP_PROCFS_WRITE };

#define STP_LOCK_WRITE 0x80000000u

/* One probe. Its handler is the case of the same number in stp_script_run. */
/* interval and randomize count jiffies, not ns */
#define STP_JIFFIES 1
/* on every CPU, not on one */
#define STP_EVERY_CPU 2

struct stp_probe {
	unsigned char kind;		/* enum stp_kind */
	unsigned char flags;		/* of timers: STP_JIFFIES, STP_EVERY_CPU */
	unsigned short nlocks;
	unsigned int lock0;		/* first of its entries in stp_script.locks */
	int64_t interval, randomize;	/* timers; interval of procfs probes: the file; of others: priority */
	const char *point;		/* the probe point, for messages and pp() */
	const char *name;		/* as the script wrote it, for pn() */
};

/* What a handler keeps from the CPU it runs on decides how long it may run. */
enum stp_class {
	STP_IRQS_OFF,			/* timer.*: interrupts are off */
	STP_EVENT,			/* other events */
	STP_SESSION,			/* begin, end and error probes */
	STP_CLASSES
};

/* The limits of one run of a handler; 0 and less is none. */
struct stp_limit {
	int64_t actions;		/* statements: MAXACTION, MAXACTION_INTERRUPTIBLE */
	int64_t time;			/* ns: MAXTIME, MAXTIME_INTERRUPTIBLE, MAXTIME_SESSION */
	const char *late;		/* the error when time is up */
};

struct stp_map;

enum stp_type { STP_LONG = 1, STP_STRING = 2, STP_STATS = 3 };

/* What is collected of a statistics global beside the plain numbers. */
struct stp_stat_kind {
	unsigned char log;		/* has @hist_log */
	unsigned int linear;		/* number of buckets of @hist_linear, the two outside included, or 0 */
	int64_t start, stop, interval;	/* of @hist_linear */
};

/* One global array. types: value type, then one per key. */
struct stp_array {
	const char *name;
	struct stp_map **map;
	unsigned int size;
	unsigned char sized;		/* size is the declaration's, not MAXMAPENTRIES */
	unsigned char wrap, nkeys;
	unsigned char types[14];
	const struct stp_stat_kind *stat; /* of values of type STP_STATS */
};

/* Everything the runtime needs to know about a script. The const part is in
 * script order; begin, end and error probes stand sorted by priority. */
struct stp_script {
	unsigned int size;		/* sizeof(struct stp_script): a wrong header is refused */
	unsigned int nprobes, nlocks, nglobals, narrays;
	const struct stp_probe *probes;
	const unsigned int *locks;	/* number of a global, | STP_LOCK_WRITE */
	const struct stp_array *arrays;
	unsigned int string_size;	/* MAXSTRINGLEN */
	unsigned int frame_size;	/* bytes for the locals of a probe and what it calls */
	unsigned int max_nesting;	/* MAXNESTING */
	unsigned int buffer_size;	/* STP_BUFFER_SIZE: print buffer per CPU */
	struct stp_limit limits[STP_CLASSES];
	int64_t max_errors, max_skipped;
	int64_t max_trylock;		/* MAXTRYLOCK */
	int64_t trylock_delay;		/* TRYLOCKDELAY, microseconds */
	int64_t min_stack;		/* MINSTACKSPACE and the largest frame of the unit */
	int64_t overload_interval, overload_threshold; /* cycles; threshold 0: off */
	int suppress_errors;		/* --suppress-handler-errors */
	int bulk;			/* -b */
};

extern const struct stp_script stp_script;

/* A file of procfs probes in the module's directory. */
struct stp_procfs {
	const char *path;
	unsigned int size;		/* of the read buffer, terminating zero included */
	unsigned short mode;
	unsigned char bytes;		/* what is written counts byte by byte: __stdin */
};
extern const struct stp_procfs stp_procfs[];
extern const unsigned int stp_nprocfs;

/*
 * Parts of the runtime that only some scripts need are reached through the
 * script unit alone, so that a linker that takes objects from an archive
 * leaves out what is not used.
 */
enum stp_event { STP_SETUP, STP_PUBLISH, STP_ARM, STP_DISARM, STP_CLEANUP };

int stp_maps_init(void);
void stp_maps_exit(void);
int stp_timers_init(void);
void stp_timers_start(void);
void stp_timers_stop(void);
void stp_timers_exit(void);
int stp_procfs_init(void);
void stp_procfs_start(void);
void stp_procfs_stop(void);
void stp_procfs_exit(void);
int stp_guest_init(const char *host);
void stp_guest_exit(void);
int stp_host_init(const char *name);
void stp_host_exit(void);
int stp_script_part(enum stp_event event);

/* host and guest: the name of -DRELAY_HOST or -DRELAY_GUEST, or NULL */
#define STP_SCRIPT_PARTS(has_arrays, has_timers, has_procfs, has_monitor, host, guest)		\
	int stp_script_part(enum stp_event event)						\
	{											\
		int rc = 0;									\
		switch (event) {								\
		case STP_SETUP:									\
			if (has_arrays)								\
				rc = stp_maps_init();						\
			if (has_timers && !rc)							\
				rc = stp_timers_init();						\
			if (has_procfs && !rc)							\
				rc = stp_procfs_init();						\
			if (has_monitor && !rc)							\
				rc = stp_monitor_init();					\
			if (guest && !rc)							\
				rc = stp_guest_init(guest);					\
			break;									\
		case STP_PUBLISH:								\
			if (host)								\
				rc = stp_host_init(host);					\
			break;									\
		case STP_ARM:									\
			if (has_timers)								\
				stp_timers_start();						\
			if (has_procfs)								\
				stp_procfs_start();						\
			break;									\
		case STP_DISARM:								\
			if (has_timers)								\
				stp_timers_stop();						\
			if (has_procfs)								\
				stp_procfs_stop();						\
			break;									\
		case STP_CLEANUP:								\
			if (guest)								\
				stp_guest_exit();						\
			if (host)								\
				stp_host_exit();						\
			if (has_monitor)							\
				stp_monitor_exit();						\
			if (has_procfs)								\
				stp_procfs_exit();						\
			if (has_timers)								\
				stp_timers_exit();						\
			if (has_arrays)								\
				stp_maps_exit();						\
		}										\
		return rc;									\
	}

/* ---- the context of a running handler ---------------------------------- */

/* Text under construction: the print buffer of the CPU or a string. */
struct stp_out {
	char *buf;
	unsigned int len, cap;
};

struct stp_context {
	int left;			/* units until stp_spent looks at the limits */
	int charged;			/* units since then that were no statements */
	int slice;			/* what left was then; 0: it did not look yet */
	int clock;			/* units until the clock is read */
	int class;			/* enum stp_class */
	int64_t actions, work;		/* statements and other units that the limits leave */
	uint64_t deadline;		/* 0: the clock was not read yet */
	const char *spent;		/* the error of a limit that is used up, or NULL */
	const char *error;		/* an error is pending: its text */
	const char *where;		/* "operator '/' at FILE:LINE:COLUMN" */
	char *frame, *frame_end;	/* free part of the locals' memory */
	unsigned long stack_low;	/* the kernel stack ends here for us */
	unsigned int nesting;
	int next;			/* the overload of a function passed: try the next one */
	const struct stp_probe *probe;	/* the one that fired */
	struct stp_out print, string, *out;
	char *error_text;		/* stp_script.string_size bytes */
	char trace[512];		/* " (called from ...)" of a pending error */
};

/* The script unit's only entry: runs handler number n. */
void stp_script_run(struct stp_context *c, unsigned int n);

/* ---- integers ----------------------------------------------------------- */

#define __STP_OP(name, op)							\
	static inline int64_t stp_##name(int64_t a, int64_t b)			\
	{									\
		return (int64_t)((uint64_t)a op (uint64_t)b);			\
	}
__STP_OP(add, +)
__STP_OP(sub, -)
__STP_OP(mul, *)
#undef __STP_OP

/* Only the low six bits of a shift count are used, as the machine does. */
static inline int64_t stp_shl(int64_t a, int64_t b)
{
	return (int64_t)((uint64_t)a << (b & 63));
}

static inline int64_t stp_shr(int64_t a, int64_t b)
{
	return a >> (b & 63);
}

static inline int64_t stp_neg(int64_t a)
{
	return (int64_t)(0 - (uint64_t)a);
}

static inline void stp_fail(struct stp_context *c, const char *text, const char *where)
{
	c->error = text;
	if (where)
		c->where = where;
}

static inline int64_t stp_div(struct stp_context *c, int64_t a, int64_t b, const char *where)
{
	if (stp_unlikely(b == 0)) {
		stp_fail(c, "division by 0", where);
		return 0;
	}
	return b == -1 ? stp_neg(a) : a / b;
}

static inline int64_t stp_mod(struct stp_context *c, int64_t a, int64_t b, const char *where)
{
	if (stp_unlikely(b == 0)) {
		stp_fail(c, "division by 0", where);
		return 0;
	}
	return b == -1 ? 0 : a % b;
}

/* ---- limits --------------------------------------------------------------- */

/*
 * A handler has a budget in units. A statement is one. So is a call, a
 * conversion of printf, an operator on strings, sixteen operators on integers,
 * and 64 bytes that are copied, compared or searched: something like 50 ns, and
 * always well below a microsecond. MAXACTION is a limit to the statements; of
 * other units a handler has STP_WORK times as many. After STP_CLOCK units the
 * clock is read for the first time, and then again after each STP_CLOCK units:
 * a handler that does little never reads it.
 *
 * What is used up stays used up: catch does not bring it back.
 */
#define STP_WORK 64
#define STP_CLOCK 1000

void stp_begin(struct stp_context *c, enum stp_class class);
int stp_spent(struct stp_context *c, const char *where);

/* Counts n statements; true, with an error set, when a limit is used up. */
static inline int stp_count(struct stp_context *c, int n, const char *where)
{
	if (stp_unlikely((c->left -= n) <= 0))
		return stp_spent(c, where);
	return 0;
}

/* The same for n units of other work, up to 1 << 30. */
static inline int stp_charge_at(struct stp_context *c, unsigned int n, const char *where)
{
	c->charged += n;
	return stp_count(c, n, where);
}

static inline int stp_charge(struct stp_context *c, unsigned int n)
{
	return stp_charge_at(c, n, NULL);
}

/* ---- frames ------------------------------------------------------------- */

/* Takes size bytes for the locals of a function called from where; NULL with
 * an error set when the calls are nested too deeply. */
void *stp_enter(struct stp_context *c, unsigned int size, const char *where);
void stp_leave(struct stp_context *c, unsigned int size, const char *where);
/* The text of the pending error, as catch (var) sees it; clears the error. */
void stp_caught(struct stp_context *c, char *out);

/* ---- strings: every buffer holds STP_MAXSTRINGLEN bytes ------------------ */

void stp_strcpy(char *to, const char *from);
/* These charge for the bytes: */
void stp_assign(struct stp_context *c, char *to, const char *from);
void stp_strcat(struct stp_context *c, char *to, const char *from);	/* appends in place */
void stp_concat(struct stp_context *c, char *to, const char *a, const char *b);
int stp_strcmp(struct stp_context *c, const char *a, const char *b);

/* ---- printing ------------------------------------------------------------ */

#define STP_MINUS 1
#define STP_ZERO 2
#define STP_PLUS 4
#define STP_SPACE 8
#define STP_ALT 16

void stp_print_begin(struct stp_context *c);
void stp_sprint_begin(struct stp_context *c, char *out);
void stp_print_end(struct stp_context *c);
void stp_put(struct stp_context *c, const char *text, unsigned int len);
void stp_put_str(struct stp_context *c, const char *s);
void stp_put_int(struct stp_context *c, int64_t v);
/* width and prec: -1 is none */
void stp_fmt_str(struct stp_context *c, int flags, int64_t width, int64_t prec, const char *s);
void stp_fmt_int(struct stp_context *c, int conv, int flags, int64_t width, int64_t prec, int64_t v);
/* %m and %M: false with an error set when the memory cannot be read */
int stp_fmt_mem(struct stp_context *c, int conv, int flags, int64_t width, int64_t prec, int64_t addr,
		const char *where);

/* ---- procfs probes ---------------------------------------------------------- */

/* $value: what was written to the file, */
const char *stp_value(struct stp_context *c);
/* or what a reader gets; false with an error set when it is longer than the
 * file's size. */
int stp_value_set(struct stp_context *c, const char *text, int append, const char *where);

/* ---- monitor (stap --monitor) ------------------------------------------------ */

/* A global of the script: one of array, num and str is set. */
struct stp_global {
	const char *name;
	const struct stp_array *array;
	int64_t *num;
	char *str;
};
extern const struct stp_global stp_globals[];
extern const unsigned int stp_nmonitored;	/* the probes before this one are listed */

int stp_monitor_init(void);
void stp_monitor_exit(void);
/* Around a handler: 0 when it is switched off. */
uint64_t stp_monitor_enter(unsigned int n);
void stp_monitor_leave(unsigned int n, uint64_t start);
void stp_timing_report(struct stp_context *c, unsigned int n, const char *place, const char *from);
/* The handlers of monitor_status and monitor_control. */
void stp_monitor_status(struct stp_context *c);
void stp_monitor_control(struct stp_context *c);

/* ---- arrays -------------------------------------------------------------- */

union stp_key {
	int64_t i;
	const char *s;
};

struct stp_node;

int64_t stp_map_get(struct stp_context *c, struct stp_map *m, const union stp_key *k);
const char *stp_map_get_str(struct stp_context *c, struct stp_map *m, const union stp_key *k);
/* false with an error set when the array is full or being iterated over */
int stp_map_set(struct stp_context *c, struct stp_map *m, const union stp_key *k, int64_t v, const char *where);
int stp_map_set_str(struct stp_context *c, struct stp_map *m, const union stp_key *k, const char *v,
		    const char *where);
/* Bit n of any stands for "*" as key n. */
int64_t stp_map_in(struct stp_context *c, struct stp_map *m, const union stp_key *k, unsigned int any,
		   const char *where);
int stp_map_del(struct stp_context *c, struct stp_map *m, const union stp_key *k, unsigned int any, const char *where);
int stp_map_clear(struct stp_context *c, struct stp_map *m, const char *where);
/* column 0 is the value, -OP what @op says of statistics, else the number of a key; dir 0 is insertion order.
 * NULL for none, or with an error set. */
struct stp_node *stp_map_first(struct stp_context *c, struct stp_map *m, int column, int dir, const char *where);
struct stp_node *stp_map_next(struct stp_map *m, struct stp_node *n);
void stp_map_done(struct stp_map *m);
int stp_node_match(struct stp_context *c, struct stp_map *m, struct stp_node *n, const union stp_key *k,
		   unsigned int any);
int64_t stp_node_int(struct stp_map *m, struct stp_node *n, int column);
const char *stp_node_str(struct stp_map *m, struct stp_node *n, int column);

/* ---- statistics ------------------------------------------------------------ */

#define STP_LOG_BUCKETS 128

struct stp_aggr {
	int64_t count, sum, min, max;
	int64_t buckets[];	/* of @hist_log, then of @hist_linear */
};

enum stp_stat_op { STP_COUNT = 1, STP_SUM, STP_MIN, STP_MAX, STP_AVG };

static inline unsigned int stp_stat_size(const struct stp_stat_kind *k)
{
	return sizeof(struct stp_aggr) + ((k->log ? STP_LOG_BUCKETS : 0) + k->linear) * sizeof(int64_t);
}

static inline int64_t stp_stat_value(const struct stp_aggr *s, int op)
{
	switch (op) {
	case STP_COUNT:
		return s->count;
	case STP_SUM:
		return s->sum;
	case STP_MIN:
		return s->min;
	case STP_MAX:
		return s->max;
	}
	return s->count ? s->sum / s->count : 0;
}

void stp_stat_add(struct stp_aggr *s, const struct stp_stat_kind *k, int64_t v);
void stp_stat_clear(struct stp_context *c, struct stp_aggr *s, const struct stp_stat_kind *k);
/* s may be NULL: an element that is not there. An error is set for what an empty
 * aggregate does not have. */
int64_t stp_stat_get(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int op,
		     const char *where);
int64_t stp_hist_size(const struct stp_stat_kind *k, int log);
int64_t stp_hist_get(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int log, int64_t i,
		     const char *where);
void stp_hist_print(struct stp_context *c, const struct stp_aggr *s, const struct stp_stat_kind *k, int log,
		    const char *where);
/* The element of an array; add makes one that is not there, or sets an error. */
struct stp_aggr *stp_map_stat(struct stp_context *c, struct stp_map *m, const union stp_key *k, int add,
			      const char *where);

/* ---- module parameters and metadata --------------------------------------- */

/* struct kernel_param of linux/moduleparam.h; main.c asserts the layout. */
struct stp_param {
	const char *name;
	void *mod;
	const void *ops;
	const unsigned short perm;
	signed char level;
	unsigned char flags;
	void *arg;
};

struct stp_param_string {
	char *buf;
	unsigned int size;
};

#ifdef _LINUX_MODULE_H
#define STP_THIS_MODULE (&__this_module)
#else
extern char __this_module[] __attribute__((visibility("hidden")));
#define STP_THIS_MODULE __this_module
#endif
extern const char stp_param_ops_long[], stp_param_ops_string[];

#define __STP_CAT2(a, b) a##b
#define __STP_CAT(a, b) __STP_CAT2(a, b)
#define STP_MODINFO(text)								\
	static const char __STP_CAT(__stp_modinfo_, __COUNTER__)[]			\
		__attribute__((__used__, __section__(".modinfo"), __aligned__(1))) = text

#define __STP_PARAM(cname, name, ops_, arg_, type)					\
	STP_MODINFO("parmtype=" name ":" type);						\
	static const struct stp_param __stp_param_##cname				\
		__attribute__((__used__, __section__("__param"), __aligned__(sizeof(void *)))) = \
		{ name, STP_THIS_MODULE, ops_, 0, -1, 0, arg_ }
#define STP_PARAM_LONG(cname, name)							\
	__STP_PARAM(cname, name, stp_param_ops_long, &cname, "int64_t")
#define STP_PARAM_STRING(cname, name)							\
	static const struct stp_param_string __stp_string_##cname = { cname, sizeof(cname) }; \
	__STP_PARAM(cname, name, stp_param_ops_string, (void *)&__stp_string_##cname, "string")

/* The privilege level the module needs (loader-relay 4.4). */
#define STP_PRIVILEGE(level)								\
	int stp_required_privilege							\
		__attribute__((__section__(".stap_privilege"), __aligned__(4))) = level
extern int stp_required_privilege;

/* ---- the tapset's functions in C ------------------------------------------ */

int64_t stp_fn_pid(struct stp_context *c);
int64_t stp_fn_tid(struct stp_context *c);
int64_t stp_fn_ppid(struct stp_context *c);
int64_t stp_fn_uid(struct stp_context *c);
int64_t stp_fn_euid(struct stp_context *c);
int64_t stp_fn_gid(struct stp_context *c);
int64_t stp_fn_egid(struct stp_context *c);
void stp_fn_execname(struct stp_context *c, char *out);
int64_t stp_fn_cpu(struct stp_context *c);
int64_t stp_fn_target(struct stp_context *c);
void stp_fn_module_name(struct stp_context *c, char *out);
void stp_fn_pp(struct stp_context *c, char *out);
void stp_fn_pn(struct stp_context *c, char *out);
int64_t stp_fn_gettimeofday_s(struct stp_context *c);
int64_t stp_fn_gettimeofday_ms(struct stp_context *c);
int64_t stp_fn_gettimeofday_us(struct stp_context *c);
int64_t stp_fn_gettimeofday_ns(struct stp_context *c);
int64_t stp_fn_get_cycles(struct stp_context *c);
int64_t stp_fn_randint(struct stp_context *c, int64_t n);
void stp_fn_ctime(struct stp_context *c, char *out, int64_t seconds);
int64_t stp_fn_strlen(struct stp_context *c, const char *s);
int64_t stp_fn_strtol(struct stp_context *c, const char *s, int64_t base);
void stp_fn_substr(struct stp_context *c, char *out, const char *s, int64_t start, int64_t len);
int64_t stp_fn_stringat(struct stp_context *c, const char *s, int64_t pos);
int64_t stp_fn_isinstr(struct stp_context *c, const char *s, const char *part);
void stp_fn_str_replace(struct stp_context *c, char *out, const char *s, const char *from, const char *to);
void stp_fn_text_str(struct stp_context *c, char *out, const char *s);
void stp_fn_text_strn(struct stp_context *c, char *out, const char *s, int64_t len, int64_t quoted);
void stp_fn_tokenize(struct stp_context *c, char *out, const char *s, const char *delim);
void stp_fn_exit(struct stp_context *c);
void stp_fn_error(struct stp_context *c, const char *text);
void stp_fn_warn(struct stp_context *c, const char *text);
void stp_fn_system(struct stp_context *c, const char *command);
void stp_fn__stdin_line(struct stp_context *c, char *out);
int64_t stp_fn_tz_gmtoff(struct stp_context *c);
int64_t stp_fn_ns_pid(struct stp_context *c);
int64_t stp_fn_ns_tid(struct stp_context *c);
int64_t stp_fn_ns_ppid(struct stp_context *c);
int64_t stp_fn_ns_pgrp(struct stp_context *c);
int64_t stp_fn_ns_sid(struct stp_context *c);
int64_t stp_fn_ns_uid(struct stp_context *c);
int64_t stp_fn_ns_euid(struct stp_context *c);
int64_t stp_fn_ns_gid(struct stp_context *c);
int64_t stp_fn_ns_egid(struct stp_context *c);
int64_t stp_fn_remote_id(struct stp_context *c);
void stp_fn_remote_uri(struct stp_context *c, char *out);
void stp_fn_tz_name(struct stp_context *c, char *out);
void stp_fn_log(struct stp_context *c, const char *text);

#endif
