/* Deleted volumes (Volume.state "deleting"). Each node drops the replicas on its own disks, all shards at once, then takes these
 * disks out of the shards' rows in one transaction; rows without replicas go with it, and with the last row the volume's.
 * What belongs to nobody (disks whose row is gone, shards without replicas, a volume that never had a shard) is done by the
 * first node that is up. A node that is down does its part when it is back.
 *
 *   copies here ── drops ──> dropped ── transaction ──> not listed. A conflict (another node did its part): again from the rows,
 *   what was dropped is not dropped twice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define RETRY_MS 500
#define CONFLICT_MS 50

struct drop { /* of one shard's copy */
    struct store_op op;
    struct volume *v;
    struct ldisk *disk;
    struct store_shard_id id;
};

bool first_up(struct asan *a, const struct cdb_view *view)
{
    for (size_t i = 0; i < cdb_node_count(view); i++) {
        const struct cdb_node *n = cdb_node_at(view, i);
        if (!strcmp(n->state, "up"))
            return !strcmp(n->id, a->node_id);
    }
    return false;
}

/* ---- copies on this node's disks ---- */

static void dropped(struct store_op *op, int status, const struct err *e)
{
    struct drop *d = op->arg;
    struct volume *v = d->v;
    v->drops--;
    host_forget(d->disk, &d->id);
    if (status && status != E_NOTFOUND) {
        log_err("volume %s shard %u: drop on disk %s: %s", v->name, d->id.index, d->disk->name, e ? e->msg : "");
        v->retry_ms = now_ms() + RETRY_MS;
    } else {
        v->dropped |= 1ull << d->id.index;
    }
    free(d);
    const struct cdb_view *view = view_of(v->a);
    if (!v->drops && view && !v->a->stopping && v->seen && !v->gone)
        drop_update(v, view);
}

/* Those of the row that are on this node and not yet dropped. */
static void drop_here(struct volume *v, const struct cdb_shard *row, uint32_t index)
{
    struct asan *a = v->a;
    for (size_t k = 0; k < row->replicas.n && !(v->dropped & 1ull << index); k++) {
        struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
        if (!g->local || g->local->state != LD_READY)
            continue;
        struct drop *d = xcalloc(1, sizeof *d);
        d->v = v;
        d->disk = g->local;
        d->id = (struct store_shard_id){v->bin, index};
        d->op.done = dropped;
        d->op.arg = d;
        v->drops++;
        store_drop(g->local->store, &d->op, &d->id, v->epoch + 1);
    }
}

/* ---- rows ---- */

static void txn_done(void *arg, int status, const struct err *e)
{
    struct volume *v = arg;
    (void)e;
    v->drop_busy = false;
    v->retry_ms = !status ? 0 : now_ms() + (status == E_CONFLICT ? CONFLICT_MS : RETRY_MS);
}

static bool goes(const struct volume *v, uint32_t index, const struct gdisk *g, bool first)
{
    if (g->local)
        return g->local->state == LD_FAILED || (g->local->state == LD_READY && v->dropped & 1ull << index);
    return !g->exists && first;
}

/* Takes out of the row what may go. False: there is nothing to change. *ret_left: replicas that stay. */
static bool take_out(struct cdb_txn *t, const struct volume *v, const struct cdb_shard *row, uint32_t index, bool first, size_t *ret_left)
{
    const char **left = xcalloc(row->replicas.n + 1, sizeof *left);
    size_t n = 0;
    for (size_t k = 0; k < row->replicas.n; k++)
        if (!goes(v, index, gdisk_get(v->a, row->replicas.v[k]), first))
            left[n++] = row->replicas.v[k];
    bool any = n < row->replicas.n || (!n && first);
    if (any) {
        cdb_txn_require_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation);
        if (n) {
            cdb_txn_set_strs(t, CDB_T_SHARD, row->id, CDB_SHARD_replicas, n, left);
            cdb_txn_set_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation + 1);
        } else {
            cdb_txn_delete(t, CDB_T_SHARD, row->id);
        }
    }
    free(left);
    *ret_left = any ? n : row->replicas.n + 1; /* an empty row that is not ours to delete stays, too */
    return any;
}

/* No shard was made that our view does not show yet. */
static void require_no_others(struct cdb_txn *t, const struct volume *v, const struct cdb_view *view)
{
    char id[ID_LEN + 16];
    for (uint32_t i = 0; i < v->n_shards; i++) {
        if (shard_row(view, v, i))
            continue;
        snprintf(id, sizeof id, "%s/%u", v->data, i);
        cdb_txn_require_absent(t, CDB_T_SHARD, id);
    }
}

static void change_rows(struct volume *v, const struct cdb_view *view)
{
    bool first = first_up(v->a, view), any = false, empty = true, rows = false;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "deleting");
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        size_t left;
        if (!row)
            continue;
        rows = true;
        any = take_out(t, v, row, i, first, &left) || any;
        empty = empty && !left;
    }
    if (empty && (rows || first)) {
        require_no_others(t, v, view);
        cdb_txn_delete(t, CDB_T_VOLUME, v->id);
        any = true;
    }
    if (!any) {
        cdb_txn_free(t);
        return;
    }
    v->drop_busy = true;
    cdb_txn_commit(v->a->link, t, "delete volume", txn_done, v);
}

void drop_update(struct volume *v, const struct cdb_view *view)
{
    if (v->drop_busy || v->drops || now_ms() < v->retry_ms || v->a->stopping)
        return;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        if (row)
            drop_here(v, row, i);
    }
    if (!v->drops)
        change_rows(v, view);
}
