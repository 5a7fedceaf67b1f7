// SPDX-License-Identifier: MIT OR GPL-2.0
/* Runs a script unit in user space: begin probes, then end probes, then error
 * probes if there was an error, on one CPU. Errors go to standard output. With an
 * argument, the milliseconds that its clock goes on with each reading, it says
 * how often the clock was read. */
#include "runtime.h"

char __this_module[1];
const char stp_param_ops_long[1], stp_param_ops_string[1];
static struct stp_cpu cpu;
static int errors, exiting, readings;
static u64 now, step;

u64 stp_now(void)
{
	readings++;
	return now += step;
}

void stp_flush(struct stp_context *c)
{
	fwrite(c->print.buf, 1, c->print.len, stdout);
	c->print.len = 0;
}

void stp_fn_exit(struct stp_context *c) { exiting = 1; }
void stp_fn_warn(struct stp_context *c, const char *text) { printf("WARNING: %s\n", text); }
int64_t stp_fn_pid(struct stp_context *c) { return 42; }
void stp_fn_pp(struct stp_context *c, char *out) { stp_strcpy(out, c->probe->point); }
void stp_fn_pn(struct stp_context *c, char *out) { stp_strcpy(out, c->probe->name); }
int stp_timers_init(void) { return 0; }
void stp_timers_start(void) { }
void stp_timers_stop(void) { }
void stp_timers_exit(void) { }

static void kind(int k)
{
	struct stp_context *c = &cpu.c;
	unsigned int i;

	for (i = 0; i < stp_script.nprobes; i++) {
		const struct stp_probe *p = &stp_script.probes[i];

		if (p->kind != k)
			continue;
		stp_begin(c, STP_SESSION);
		c->error = c->where = NULL;
		c->nesting = c->next = 0;
		c->probe = p;
		c->frame = c->frame_end - stp_script.frame_size;
		c->out = &c->print;
		c->trace[0] = 0;
		stp_script_run(c, i);
		stp_flush(c);
		if (c->error) {
			printf("ERROR: %s near %s%s in probe %s\n", c->error, c->where, c->trace, p->point);
			errors++;
		}
	}
}

int main(int argc, char **argv)
{
	struct stp_context *c = &cpu.c;

	if (stp_script.size != sizeof(stp_script) || stp_script_part(STP_SETUP))
		return 2;
	c->frame_end = malloc(stp_script.frame_size) + stp_script.frame_size;
	c->print.buf = malloc(stp_script.buffer_size);
	c->print.cap = stp_script.buffer_size;
	c->error_text = malloc(stp_script.string_size);
	cpu.token_text = malloc(stp_script.string_size);
	step = argc > 1 ? strtoull(argv[1], NULL, 0) * 1000000 : 0;
	kind(STP_BEGIN);
	if (!errors)
		kind(STP_END);
	if (errors)
		kind(STP_ERROR);
	stp_script_part(STP_CLEANUP);
	if (argc > 1)
		printf("clock read %d times\n", readings);
	return errors ? 1 : 0;
}
