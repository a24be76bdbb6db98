/* Deleted volumes (Volume.state "deleting"). Each node drops the replicas on its own disks, then takes the disk out of the
 * shard's row; the last one out deletes the row. What belongs to nobody (disks whose row is gone, shards without replicas,
 * in the end the volume's row) is done by the first node that is up. A node that is down does its part when it is back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define RETRY_MS 500

struct drop {
    struct store_op op;
    struct volume *v;
    struct ldisk *disk;
    struct store_shard_id id;
};

static void txn_done(void *arg, int status, const struct err *e)
{
    struct volume *v = arg;
    (void)e;
    v->drop_busy = false;
    v->retry_ms = status ? now_ms() + RETRY_MS : 0;
    const struct cdb_view *view = view_of(v->a);
    if (!status && view && v->seen && !v->gone && cdb_volume_get(view, v->id))
        drop_update(v, view);
}

static void take_out(struct volume *v, const struct cdb_shard *row, const char *disk)
{
    struct cdb_txn *t = cdb_txn_new();
    const char **left = xcalloc(row->replicas.n + 1, sizeof *left);
    size_t n = 0;
    for (size_t i = 0; i < row->replicas.n; i++)
        if (strcmp(row->replicas.v[i], disk))
            left[n++] = row->replicas.v[i];
    v->drop_busy = true;
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "deleting");
    cdb_txn_require_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation);
    if (n) {
        cdb_txn_set_strs(t, CDB_T_SHARD, row->id, CDB_SHARD_replicas, n, left);
        cdb_txn_set_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation + 1);
    } else {
        cdb_txn_delete(t, CDB_T_SHARD, row->id);
    }
    free(left);
    cdb_txn_commit(v->a->link, t, "drop replica", txn_done, v);
}

static void dropped(struct store_op *op, int status, const struct err *e)
{
    struct drop *d = op->arg;
    struct volume *v = d->v;
    const struct cdb_view *view = view_of(v->a);
    const struct cdb_shard *row = view ? shard_row(view, v, d->id.index) : NULL;
    v->drop_busy = false;
    host_forget(d->disk, &d->id);
    if (status && status != E_NOTFOUND) {
        log_err("volume %s shard %u: drop on disk %s: %s", v->name, d->id.index, d->disk->name, e ? e->msg : "");
        v->retry_ms = now_ms() + RETRY_MS;
    } else if (row && !v->a->stopping) {
        take_out(v, row, d->disk->id);
    }
    free(d);
}

static void drop_here(struct volume *v, struct ldisk *disk, uint32_t index)
{
    struct drop *d = xcalloc(1, sizeof *d);
    d->v = v;
    d->disk = disk;
    d->id = (struct store_shard_id){v->bin, index};
    d->op.done = dropped;
    d->op.arg = d;
    v->drop_busy = true;
    store_drop(disk->store, &d->op, &d->id, v->epoch + 1);
}

bool first_up(struct asan *a, const struct cdb_view *view)
{
    for (size_t i = 0; i < cdb_node_count(view); i++) {
        const struct cdb_node *n = cdb_node_at(view, i);
        if (!strcmp(n->state, "up"))
            return !strcmp(n->id, a->node_id);
    }
    return false;
}

static bool drop_shard(struct volume *v, const struct cdb_view *view, const struct cdb_shard *row, uint32_t index)
{
    struct asan *a = v->a;
    for (size_t k = 0; k < row->replicas.n; k++) {
        struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
        if (g->local && g->local->state == LD_READY) {
            drop_here(v, g->local, index);
            return true;
        }
        if ((g->local && g->local->state == LD_FAILED) || (!g->exists && first_up(a, view))) {
            take_out(v, row, g->id);
            return true;
        }
    }
    if (!row->replicas.n && first_up(a, view)) {
        take_out(v, row, "");
        return true;
    }
    return false;
}

void drop_update(struct volume *v, const struct cdb_view *view)
{
    bool any = false;
    if (v->drop_busy || now_ms() < v->retry_ms || v->a->stopping)
        return;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        any = any || row;
        if (row && drop_shard(v, view, row, i))
            return;
    }
    if (any || !first_up(v->a, view))
        return;
    struct cdb_txn *t = cdb_txn_new();
    v->drop_busy = true;
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "deleting");
    cdb_txn_delete(t, CDB_T_VOLUME, v->id);
    cdb_txn_commit(v->a->link, t, "delete volume", txn_done, v);
}
