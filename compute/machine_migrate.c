/* Steps of a live migration over QMP. Their order is migrate/'s. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "compute/machine_int.h"

#define PORTS 64
#define MIGRATE_TIMEOUT_MS 30000
/* Freezing a guest's processors begins with this share of their time and grows by as much per pass over memory. */
#define THROTTLE_STEP 10

/* One of the calls below, from its start to its callback: a short list of commands sent one after the other. */
struct steps {
    struct op op; /* first: machine_op_* hand it back */
    struct {
        const char *command;
        json_t *args;
    } step[4];
    int n, next;
    void (*end)(struct steps *s, int status, json_t *ret, const struct err *e); /* frees s */
    union { /* instead of op.done, where the result is more than a status */
        machine_migrate_stat_done *stat;
        machine_migrate_in_done *in;
    } done;
};

static void steps_free(struct steps *s)
{
    for (int i = s->next; i < s->n; i++)
        json_decref(s->step[i].args);
    free(s);
}

static void next_step(struct steps *s);

static void on_step(void *arg, int status, json_t *ret, const struct err *e)
{
    struct steps *s = arg;
    if (status != E_OK || s->next == s->n)
        s->end(s, status, ret, e);
    else
        next_step(s);
}

static void next_step(struct steps *s)
{
    int i = s->next++;
    qmp_call(s->op.m->qmp, s->step[i].command, s->step[i].args, MIGRATE_TIMEOUT_MS, on_step, s);
}

static void start_steps(struct op *op) { next_step((struct steps *)op); }
static void fail_steps(struct op *op, int status, const struct err *e)
{
    struct steps *s = (struct steps *)op;
    s->end(s, status, NULL, e);
}

static void end_plain(struct steps *s, int status, json_t *ret, const struct err *e)
{
    struct op op = s->op;
    steps_free(s);
    if (op.done)
        op.done(op.m, status, e, op.arg);
}

static struct steps *steps_new(struct machine *m, machine_done *done, void *arg)
{
    struct steps *s = xcalloc(1, sizeof *s);
    s->op = (struct op){.m = m, .start = start_steps, .fail = fail_steps, .done = done, .arg = arg};
    s->end = end_plain;
    return s;
}

static void add_step(struct steps *s, const char *command, json_t *args)
{
    s->step[s->n].command = command;
    s->step[s->n++].args = args;
}

/* Return path: "completed" at the source then means that the destination has loaded all of it without error. The guest's
 * processors can be slowed down only if auto-converge was on from the beginning. */
static json_t *capabilities(bool throttle)
{
    return json_pack("{s:[{s:s,s:b},{s:s,s:b},{s:s,s:b}]}", "capabilities", "capability", "events", "state", 1, "capability",
                     "return-path", "state", 1, "capability", "auto-converge", "state", (int)throttle);
}

static json_t *parameters(const struct machine_migrate_params *p)
{
    int step = p->throttle_max < THROTTLE_STEP ? p->throttle_max : THROTTLE_STEP;
    json_t *j = json_pack("{s:I, s:I}", "downtime-limit", (json_int_t)p->downtime_limit_ms, "max-bandwidth",
                          p->max_bandwidth ? (json_int_t)p->max_bandwidth : (json_int_t)1 << 40);
    if (p->throttle_max > 0) {
        json_object_set_new(j, "cpu-throttle-initial", json_integer(step));
        json_object_set_new(j, "cpu-throttle-increment", json_integer(step));
        json_object_set_new(j, "max-cpu-throttle", json_integer(p->throttle_max < 99 ? p->throttle_max : 99));
    }
    return j;
}

/* ---- source ---- */

static json_t *uri(const char *address, const char *rest)
{
    char *text = strchr(address, ':') ? xasprintf("tcp:[%s]:%s", address, rest) : xasprintf("tcp:%s:%s", address, rest);
    json_t *j = json_pack("{s:s}", "uri", text);
    free(text);
    return j;
}

void machine_migrate_out(struct machine *m, const char *address, uint16_t port, const struct machine_migrate_params *p,
                         machine_done *done, void *arg)
{
    struct steps *s = steps_new(m, done, arg);
    char rest[16];
    snprintf(rest, sizeof rest, "%u", port);
    add_step(s, "migrate-set-capabilities", capabilities(p->throttle_max > 0));
    add_step(s, "migrate-set-parameters", parameters(p));
    add_step(s, "migrate", uri(address, rest));
    machine_op_begin(&s->op);
}

void machine_migrate_tune(struct machine *m, const struct machine_migrate_params *p, machine_done *done, void *arg)
{
    struct steps *s = steps_new(m, done, arg);
    add_step(s, "migrate-set-parameters", parameters(p));
    machine_op_begin(&s->op);
}

void machine_migrate_cancel(struct machine *m, machine_done *done, void *arg)
{
    struct steps *s = steps_new(m, done, arg);
    add_step(s, "migrate_cancel", NULL);
    machine_op_begin(&s->op);
}

static int64_t number(json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    return json_is_integer(v) ? json_integer_value(v) : json_is_real(v) ? (int64_t)json_real_value(v) : 0;
}

static enum machine_migrate_status status_of(const char *s)
{
    static const struct {
        const char *word;
        enum machine_migrate_status is;
    } words[] = {{"none", MACHINE_MIG_NONE}, {"completed", MACHINE_MIG_COMPLETED}, {"failed", MACHINE_MIG_FAILED}, {"cancelled", MACHINE_MIG_CANCELLED}};
    for (size_t i = 0; s && i < sizeof words / sizeof *words; i++)
        if (strcmp(s, words[i].word) == 0)
            return words[i].is;
    return s ? MACHINE_MIG_ACTIVE : MACHINE_MIG_NONE; /* setup, active, device, cancelling, … */
}

static void end_query(struct steps *s, int status, json_t *ret, const struct err *e)
{
    struct op op = s->op;
    machine_migrate_stat_done *done = s->done.stat;
    steps_free(s);
    struct machine_migrate_stat st = {0};
    if (status == E_OK) {
        json_t *ram = json_object_get(ret, "ram");
        const char *why = json_string_value(json_object_get(ret, "error-desc"));
        st.status = status_of(json_string_value(json_object_get(ret, "status")));
        st.total_bytes = number(ram, "total");
        st.remaining_bytes = number(ram, "remaining");
        st.transferred_bytes = number(ram, "transferred");
        st.rate_bytes_s = number(ram, "mbps") * 1000000 / 8;
        st.dirty_bytes_s = number(ram, "dirty-pages-rate") * number(ram, "page-size");
        st.rounds = (int)number(ram, "dirty-sync-count");
        st.throttle = (int)number(ret, "cpu-throttle-percentage");
        st.downtime_ms = (int)(st.status == MACHINE_MIG_COMPLETED ? number(ret, "downtime") : number(ret, "expected-downtime"));
        snprintf(st.error, sizeof st.error, "%s", why ? why : "");
    }
    done(op.m, status, &st, e, op.arg);
}

void machine_migrate_query(struct machine *m, machine_migrate_stat_done *done, void *arg)
{
    struct steps *s = steps_new(m, NULL, arg);
    s->done.stat = done;
    s->end = end_query;
    add_step(s, "query-migrate", NULL);
    machine_op_begin(&s->op);
}

/* ---- destination ---- */

static void end_in(struct steps *s, int status, json_t *ret, const struct err *e)
{
    struct op op = s->op;
    machine_migrate_in_done *done = s->done.in;
    steps_free(s);
    unsigned port = 0;
    struct err mine;
    if (status == E_OK) {
        json_t *at = json_array_get(json_object_get(ret, "socket-address"), 0);
        const char *text = json_string_value(json_object_get(at, "port"));
        port = text ? (unsigned)strtoul(text, NULL, 10) : 0;
        if (port == 0 || port > 65535) {
            status = err_set(&mine, E_PROTO, "QEMU does not say where it listens");
            e = &mine;
        }
    }
    done(op.m, status, (uint16_t)port, e, op.arg);
}

void machine_migrate_in(struct machine *m, const char *address, uint16_t first_port, machine_migrate_in_done *done, void *arg)
{
    struct steps *s = steps_new(m, NULL, arg);
    char rest[32];
    unsigned last = first_port + PORTS - 1u;
    snprintf(rest, sizeof rest, "%u,to=%u", first_port, last < 65535 ? last : 65535);
    s->done.in = done;
    s->end = end_in;
    add_step(s, "migrate-set-capabilities", capabilities(false));
    add_step(s, "migrate-incoming", uri(address, rest));
    add_step(s, "query-migrate", NULL);
    machine_op_begin(&s->op);
}

void machine_announce(struct machine *m)
{
    struct steps *s = steps_new(m, NULL, NULL);
    add_step(s, "announce-self", json_pack("{s:i, s:i, s:i, s:i}", "initial", 20, "max", 300, "rounds", 6, "step", 50));
    machine_op_begin(&s->op);
}
