/* REST: snapshots and clones. */
#include <string.h>
#include "daemon/rest.h"

#define N(a) (sizeof(a) / sizeof *(a))

static bool is_snapshot(const struct cdb_volume *row)
{
    return strcmp(row->purpose, "snapshot") == 0 && strcmp(row->state, "ready") == 0;
}

void rest_snapshot_list(struct rest_req *rq) { rest_volumes(rq, is_snapshot); }

void rest_snapshot_get(struct rest_req *rq)
{
    struct err e;
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_volume *row = v ? ops_find_snapshot(v, rq->arg[0], &e) : NULL;
    if (row)
        rest_ok(rq, 200, json_volume(v, row, true));
    else if (v)
        rest_fail(rq, &e);
}

void rest_snapshot_create(struct rest_req *rq)
{
    struct snapshot_spec *s = rest_priv(rq, sizeof *s);
    json_t *volumes = NULL;
    struct err e;
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &s->name}, {"volumes", JIN_ARRAY, true, &volumes, 1, SNAPSHOT_VOLUMES_MAX},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    for (size_t i = 0; i < json_array_size(volumes); i++) {
        if (!json_is_string(json_array_get(volumes, i))) {
            err_set(&e, E_INVAL, "field \"volumes[%zu]\": must be a text", i);
            rest_fail(rq, &e);
            return;
        }
        s->volumes[s->n_volumes++] = json_string_value(json_array_get(volumes, i));
    }
    rest_started(rq, op_snapshot_create(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_snapshot_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_snapshot_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_snapshot_revert(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_snapshot_revert(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_volume_clone(struct rest_req *rq)
{
    const char **name = rest_priv(rq, sizeof *name);
    struct err e;
    const struct jin_field f[] = {{"name", JIN_STR, true, name}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_volume_clone(rq->r->ops, rq->arg[0], *name, rest_done, rq, &e), &e);
}

void rest_volume_flatten(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_volume_flatten(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}
