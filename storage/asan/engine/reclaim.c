/* Layers left of deleted snapshots (purpose "layer"). Nobody builds on it any more: it is dropped like a deleted volume. One
 * volume does: the owner of that one takes over the chunks that only the layer has, then leaves it out of the stack by a
 * transaction. Several do: it stays until there is one. One layer at a time on a node; begun anew after a restart, what was
 * taken over already is found present.
 *
 * Taking over a chunk is a first write without news (layer.c): what the volume shows is the same before, during and after. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define ROUND_MS 1000
#define WINDOW OWNER_OP_BORDER
#define TAKES_MAX 8

struct reclaim {
    struct asan *a;
    char layer[ID_LEN + 1], child[ID_LEN + 1];
    struct claim_wait wait;
    bool claimed, waiting, asking, over;
    uint32_t shard;              /* the window being taken over */
    uint64_t offset, present;    /* bit per chunk of the window still to be begun */
    unsigned taking;             /* chunks on their way */
    uint64_t taken, retry_ms;
};

/* ---- the end ---- */

static void end(struct reclaim *r)
{
    struct volume *x = volume_find(r->a, r->child);
    if (r->taking || r->asking)
        return; /* their answers come first */
    if (x && r->waiting)
        own_claim_cancel(x, &r->wait);
    if (x && r->claimed && x->claims)
        own_release(x);
    r->a->reclaim = NULL;
    free(r);
}

static void committed(void *arg, int status, const struct err *e)
{
    struct reclaim *r = arg;
    (void)e;
    r->asking = false;
    if (!status)
        log_info("layer %s: merged into what builds on it, %llu KiB taken over", r->layer,
                 (unsigned long long)(r->taken * STORE_CHUNK / 1024));
    r->over = true;
    end(r);
}

static void doom(struct cdb_txn *t, const struct cdb_volume *layer)
{
    char name[80];
    snprintf(name, sizeof name, "deleted-%s", layer->id);
    cdb_txn_require_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_purpose, "layer");
    cdb_txn_require_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_state, "ready");
    cdb_txn_require_int(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_epoch, layer->epoch);
    cdb_txn_set_int(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_epoch, layer->epoch + 1);
    cdb_txn_set_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_owner, "");
    cdb_txn_set_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_state, "deleting");
    cdb_txn_set_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_name, name);
}

static void leave_out(struct reclaim *r, const struct cdb_volume *layer, const struct volume *x)
{
    struct cdb_txn *t = cdb_txn_new();
    r->asking = true;
    cdb_txn_require_str(t, CDB_T_VOLUME, x->id, CDB_VOLUME_owner, r->a->node_id);
    cdb_txn_require_int(t, CDB_T_VOLUME, x->id, CDB_VOLUME_epoch, (int64_t)x->used_epoch);
    cdb_txn_require_str(t, CDB_T_VOLUME, x->id, CDB_VOLUME_parent, layer->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, x->id, CDB_VOLUME_parent, layer->parent);
    doom(t, layer);
    cdb_txn_commit(r->a->link, t, "merge layer", committed, r);
}

/* ---- taking over ---- */

void reclaim_taken(struct asan *a, int status)
{
    struct reclaim *r = a->reclaim;
    r->taking--;
    r->taken++;
    r->over = r->over || status;
    if (r->over)
        end(r);
}

static void window_known(void *arg, const struct repl_answer *ans)
{
    struct reclaim *r = arg;
    r->asking = false;
    if (ans->status)
        r->retry_ms = now_ms() + ROUND_MS;
    else
        r->present = ~ans->absent & (WINDOW / STORE_CHUNK == 64 ? UINT64_MAX : (1ull << WINDOW / STORE_CHUNK) - 1);
    if (!ans->status && !r->present)
        r->offset += WINDOW;
    if (r->over)
        end(r);
}

/* Which chunks of the window does the layer have? Any in-sync replica knows. */
static void ask_window(struct reclaim *r, const struct cdb_view *view, const struct volume *layer, const struct cdb_shard *row)
{
    struct gdisk *best = NULL;
    for (size_t k = 0; k < row->replicas.n; k++) {
        struct gdisk *g = gdisk_get(r->a, row->replicas.v[k]);
        if (cdb_shard_in_sync(view, row, g->id) && gdisk_up(r->a, g) && (!best || g->local))
            best = g;
    }
    if (!best) {
        r->retry_ms = now_ms() + ROUND_MS;
        return;
    }
    struct repl_msg m = {.kind = REPL_READ, .incarnation = best->incarnation, .offset = r->offset, .length = WINDOW, .map = true,
                         .through = true};
    r->asking = true;
    link_send(r->a, best, &layer->bin, r->shard, &m, true, window_known, r);
}

static void step(struct reclaim *r, const struct cdb_view *view)
{
    const struct cdb_volume *row = cdb_volume_get(view, r->layer);
    struct volume *layer = volume_find(r->a, r->layer), *x = volume_find(r->a, r->child);
    if (!row || !layer || !x || x->gone || x->deleting || strcmp(x->parent, r->layer) || strcmp(row->state, "ready"))
        r->over = true;
    if (r->over) {
        end(r);
        return;
    }
    if (!r->claimed || !x->open || r->asking || now_ms() < r->retry_ms)
        return;
    while (r->present && r->taking < TAKES_MAX) {
        unsigned bit = (unsigned)__builtin_ctzll(r->present);
        r->present &= r->present - 1;
        r->taking++;
        uint64_t chunk = r->offset / STORE_CHUNK + bit;
        if (!r->present)
            r->offset += WINDOW;
        layer_take(x, r->shard, chunk);
    }
    if (r->present || r->taking)
        return;
    for (; r->shard < layer->n_shards && r->shard < x->n_shards; r->shard++, r->offset = 0) {
        const struct cdb_shard *s = shard_row(view, layer, r->shard);
        if (s && r->offset < layer->shard_bytes && r->shard * layer->shard_bytes + r->offset < layer->vol.size_bytes) {
            ask_window(r, view, layer, s);
            return;
        }
    }
    leave_out(r, row, x);
}

/* ---- which ---- */

static void claimed(struct claim_wait *w, int status, const char *why)
{
    struct reclaim *r = w->arg;
    (void)why;
    r->waiting = false;
    r->claimed = !status;
    r->over = r->over || status;
}

static void begin(struct asan *a, const struct cdb_volume *layer, struct volume *x)
{
    struct reclaim *r = xcalloc(1, sizeof *r);
    r->a = a;
    memcpy(r->layer, layer->id, ID_LEN + 1);
    memcpy(r->child, x->id, ID_LEN + 1);
    r->wait.done = claimed;
    r->wait.arg = r;
    r->waiting = true;
    a->reclaim = r;
    own_claim(x, &r->wait);
}

static void dropped(void *arg, int status, const struct err *e)
{
    (void)arg, (void)e;
    if (status && status != E_CONFLICT)
        log_warn("a layer that nobody needs cannot be dropped yet: %s", err_code_name(status));
}

static void consider(struct asan *a, const struct cdb_view *view, const struct cdb_volume *layer)
{
    const struct cdb_volume *child = NULL;
    int n = 0;
    for (size_t i = 0; i < cdb_volume_count(view); i++) {
        const struct cdb_volume *c = cdb_volume_at(view, i);
        if (!strcmp(c->parent, layer->id) && strcmp(c->state, "deleting")) {
            child = c;
            n++;
        }
    }
    if (!n && first_up(a, view)) {
        struct cdb_txn *t = cdb_txn_new();
        doom(t, layer);
        cdb_txn_commit(a->link, t, "drop layer", dropped, a);
    }
    struct volume *x = n == 1 ? volume_find(a, child->id) : NULL;
    if (x && !a->reclaim && (x->mine || (x->owner_dead && first_up(a, view))))
        begin(a, layer, x);
}

void reclaim_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    if (!view || !a->view_seen || a->stopping)
        return;
    if (a->reclaim)
        step(a->reclaim, view);
    if (now_ms() < a->reclaim_ms)
        return;
    a->reclaim_ms = now_ms() + ROUND_MS;
    for (size_t i = 0; i < cdb_volume_count(view); i++) {
        const struct cdb_volume *v = cdb_volume_at(view, i);
        if (!strcmp(v->purpose, "layer") && !strcmp(v->state, "ready"))
            consider(a, view, v);
    }
}
