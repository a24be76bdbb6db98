/* REST: disks, maintenance, settings, and what the coordinator is about to do to copies. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/rest.h"
#include "ha/repair.h"

#define N(a) (sizeof(a) / sizeof *(a))
#define STEPS_SHOWN 64

void rest_disk_list(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    if (!v)
        return;
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_disk_count(v); i++)
        json_array_append_new(a, json_disk(v, cdb_disk_at(v, i)));
    rest_ok(rq, 200, a);
}

void rest_disk_get(struct rest_req *rq)
{
    struct err e;
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_disk *d = v ? ops_disk_find(v, rq->arg[0], &e) : NULL;
    if (d)
        rest_ok(rq, 200, json_disk(v, d));
    else if (v)
        rest_fail(rq, &e);
}

static void change(struct rest_req *rq, enum op_disk_verb verb)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_disk_change(rq->r->ops, rq->arg[0], verb, rest_done, rq, &e), &e);
}

void rest_disk_drain(struct rest_req *rq) { change(rq, DISK_DRAIN); }
void rest_disk_spare(struct rest_req *rq) { change(rq, DISK_SPARE); }
void rest_disk_use(struct rest_req *rq) { change(rq, DISK_USE); }
void rest_disk_replace(struct rest_req *rq) { change(rq, DISK_REPLACE); }

void rest_disk_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_disk_change(rq->r->ops, rq->arg[0], DISK_REMOVE, rest_done, rq, &e), &e);
}

void rest_disk_add(struct rest_req *rq)
{
    struct disk_spec *s = rest_priv(rq, sizeof *s);
    struct err e;
    const struct jin_field f[] = {
        {"node", JIN_STR, true, &s->node}, {"name", JIN_STR, true, &s->name, 1, 63}, {"fast_path", JIN_STR, false, &s->fast, 1, 200},
        {"capacity_path", JIN_STR, false, &s->capacity, 1, 200}, {"memory_bytes", JIN_INT, false, &s->memory_bytes, 1, INT64_MAX},
        {"spare", JIN_BOOL, false, &s->spare},
    };
    s->fast = s->capacity = "";
    if (!rest_read(rq, f, N(f)))
        return;
    if (!s->memory_bytes && (!*s->fast || !*s->capacity)) {
        err_set(&e, E_INVAL, "field \"%s\": missing\na disk needs both paths, or memory_bytes", *s->fast ? "capacity_path" : "fast_path");
        rest_fail(rq, &e);
    } else
        rest_started(rq, op_disk_add(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_node_maintenance(struct rest_req *rq)
{
    bool on = false;
    struct err e;
    const struct jin_field f[] = {{"on", JIN_BOOL, true, &on}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_node_maintenance(rq->r->ops, rq->arg[0], on, rest_done, rq, &e), &e);
}

struct setting_req { const char *value; };

void rest_setting_put(struct rest_req *rq)
{
    struct setting_req *s = rest_priv(rq, sizeof *s);
    struct err e;
    const struct jin_field f[] = {{"value", JIN_STR, true, &s->value, 1, 100}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_setting(rq->r->ops, rq->arg[0], s->value, rest_done, rq, &e), &e);
}

/* All resyncs of the cluster together: how far, how fast, how long yet. Volumes whose turn has not come count as shards only. */
static json_t *copying(const struct cdb_view *v)
{
    int64_t done = 0, total = 0, rate = 0, volumes = 0, behind = 0;
    for (size_t i = 0; i < cdb_task_count(v); i++) {
        const struct cdb_task *t = cdb_task_at(v, i);
        int64_t ms = t->updated_ms - t->started_ms;
        if (strcmp(t->kind, "resync") || strcmp(t->state, "running"))
            continue;
        volumes++;
        done += t->done;
        total += t->total;
        rate += ms > 0 ? t->done * 1000 / ms : 0;
    }
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        behind += cdb_shard_in_sync_count(v, s) < (int)s->replicas.n;
    }
    json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I}", "shards_behind", (json_int_t)behind, "volumes", (json_int_t)volumes, "done_bytes",
                          (json_int_t)done, "total_bytes", (json_int_t)total, "rate", (json_int_t)rate);
    if (rate > 0 && total >= done)
        json_object_set_new(o, "eta_ms", json_integer((json_int_t)((double)(total - done) * 1000 / (double)rate)));
    return o;
}

/* The next steps, from this node's view: what would happen if the coordinator looked now; and what is under way. */
void rest_repair_get(struct rest_req *rq)
{
    struct repair_step step[STEPS_SHOWN];
    struct repair_conf conf;
    const struct cdb_view *v = rest_view(rq);
    int no_place, no_copy;
    if (!v)
        return;
    repair_conf_of(v, clock_wall_ms(), &conf);
    int n = repair_plan(v, &conf, step, STEPS_SHOWN);
    repair_stuck(v, &conf, &no_place, &no_copy);
    json_t *steps = json_array();
    for (int i = 0; i < n; i++) {
        struct buf text;
        buf_init(&text);
        repair_describe(v, &step[i], &text);
        json_array_append_new(steps, json_string(text.data));
        buf_free(&text);
    }
    rest_ok(rq, 200, json_pack("{s:o, s:o, s:i, s:i, s:I, s:I}", "steps", steps, "copying", copying(v), "lost_without_place", no_place, "lost_without_copy", no_copy,
                               "absent_ms", (json_int_t)conf.absent_ms, "now_ms", (json_int_t)conf.wall_ms));
}
