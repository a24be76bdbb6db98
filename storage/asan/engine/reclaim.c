/* Volumes take over chunks of what they build on, to stand without it. Two reasons:
 *
 *   merge    a layer left of a deleted snapshot (purpose "layer"). Nobody builds on it any more: it is dropped like a deleted
 *            volume. One volume does: the owner of that one takes over the chunks that only the layer has, then leaves it out of the
 *            stack by a transaction. Several do: it stays until there is one.
 *   flatten  a volume that is asked to (Volume.flatten): its owner takes over the chunks of all layers below, then leaves them all.
 *
 * One at a time on a node; begun anew after a restart or by the next owner, what was taken over already is found present.
 * Taking over a chunk is a first write without news (layer.c): what the volume shows is the same before, during and after.
 *
 * Why the transaction may leave a layer out: each chunk that the layer had when it was looked at is present above. It cannot
 * have got others since: it is sealed, and a merge into *it* needs its ownership, so a new epoch, and ends with another parent; the
 * transaction requires the epoch and the parent of the beginning. A flatten looks at all layers down to the bottom, where merges
 * only move chunks up before they leave out their layer, which the walk notices (changed.c); it requires the volume's own parent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "cluster/copies.h"
#include "cluster/task.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define ROUND_MS 1000
#define WINDOW (64u << 20) /* looked at at a time */
#define WINDOW_CHUNKS (WINDOW / STORE_CHUNK)
#define TAKES_MAX 8        /* on their way at a time */

struct reclaim {
    struct asan *a;
    bool flatten;
    char layer[ID_LEN + 1], child[ID_LEN + 1];
    char until[ID_LEN + 1];      /* merge: what the layer builds on; flatten: "" */
    int64_t epoch;               /* merge: the layer's */
    struct claim_wait wait;
    bool claimed, waiting, asking, over;
    const char *end_state, *end_text; /* of the task */
    struct task *task;           /* flatten */
    uint64_t task_ms;
    uint64_t pos, length;        /* the window: of the volume */
    uint32_t next;               /* chunk of the window to be looked at; WINDOW_CHUNKS: a new window */
    uint32_t credit;             /* chunks that may be begun until the next tick: as fast as replicas are brought up to date (pace.h) */
    struct later later;
    bool going;
    unsigned taking;             /* chunks on their way */
    uint64_t taken, retry_ms;
    struct vol_req look;
    struct iovec iov;
    uint8_t map[WINDOW / VOL_MAP_BLOCK];
};

/* ---- the end ---- */

static void end(struct reclaim *r)
{
    struct volume *x = volume_find(r->a, r->child);
    if (r->taking || r->asking || r->going)
        return; /* their answers come first */
    if (x && r->waiting)
        own_claim_cancel(x, &r->wait);
    if (x && r->claimed && x->claims)
        own_release(x);
    if (r->task)
        task_end(r->task, r->end_state ? r->end_state : "canceled", r->end_text ? r->end_text : "begun anew by the volume's owner");
    r->a->reclaim = NULL;
    free(r);
}

void reclaim_close(struct asan *a)
{
    struct reclaim *r = a->reclaim;
    if (!r)
        return;
    r->over = true;
    if (r->task)
        task_end(r->task, "canceled", "the daemon stopped; begun anew by the volume's owner");
    r->task = NULL;
}

static void committed(void *arg, int status, const struct err *e)
{
    struct reclaim *r = arg;
    (void)e;
    r->asking = false;
    if (!status && !r->end_state)
        log_info("%s %s: %llu KiB taken over", r->flatten ? "volume" : "layer", r->flatten ? r->child : r->layer,
                 (unsigned long long)(r->taken * STORE_CHUNK / 1024));
    if (!status && !r->end_state)
        r->end_state = "done", r->end_text = "";
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
    cdb_txn_set_str(t, CDB_T_VOLUME, x->id, CDB_VOLUME_parent, r->until);
    if (r->flatten) {
        char text[128];
        snprintf(text, sizeof text, "volume %.60s stands alone now: it shares no data any more", x->name);
        cdb_txn_set_bool(t, CDB_T_VOLUME, x->id, CDB_VOLUME_flatten, false);
        cdb_txn_event(t, clock_wall_ms(), "info", x->name, text, r->a->node_id);
    } else {
        cdb_txn_require_str(t, CDB_T_VOLUME, layer->id, CDB_VOLUME_parent, r->until);
        doom(t, layer);
    }
    cdb_txn_commit(r->a->link, t, r->flatten ? "flatten" : "merge layer", committed, r);
}

static void give_up_flatten(struct reclaim *r)
{
    struct cdb_txn *t = cdb_txn_new();
    r->asking = true;
    r->end_state = "canceled";
    r->end_text = "what was taken over stays; the volume goes on as a clone";
    cdb_txn_require_exists(t, CDB_T_VOLUME, r->child);
    cdb_txn_set_bool(t, CDB_T_VOLUME, r->child, CDB_VOLUME_flatten, false);
    cdb_txn_commit(r->a->link, t, "flatten canceled", committed, r);
}

/* ---- taking over ---- */

static void step(struct reclaim *r, const struct cdb_view *view);

static void go(struct later *l)
{
    struct reclaim *r = container_of(l, struct reclaim, later);
    const struct cdb_view *view = view_of(r->a);
    r->going = false;
    if (r->over)
        end(r);
    else if (view && !r->a->stopping)
        step(r, view);
}

/* At once, not with the next tick. */
static void go_on(struct reclaim *r)
{
    if (r->going)
        return;
    r->going = true;
    later(r->a, &r->later, go);
}

void reclaim_taken(struct asan *a, int status)
{
    struct reclaim *r = a->reclaim;
    r->taking--;
    r->taken++;
    r->over = r->over || status;
    go_on(r);
}

/* The volume was closed under it; the end comes with the next tick, for the volume is in the middle of closing. */
void reclaim_dropped(struct asan *a)
{
    a->reclaim->taking--;
    a->reclaim->over = true;
}

static void looked(struct vol_req *q, int status)
{
    struct reclaim *r = q->arg;
    r->asking = false;
    if (status)
        r->retry_ms = now_ms() + ROUND_MS;
    else
        r->next = 0;
    go_on(r);
}

static void look(struct reclaim *r, struct volume *layer, uint64_t size)
{
    r->length = size - r->pos < WINDOW ? size - r->pos : WINDOW;
    r->asking = true;
    r->iov = (struct iovec){r->map, r->length / VOL_MAP_BLOCK};
    r->look = (struct vol_req){.op = VOL_MAP, .offset = r->pos, .length = r->length, .iov = &r->iov, .iovcnt = 1, .done = looked,
                               .arg = r, .raw = true, .until = r->until};
    vol_submit(&layer->vol, &r->look);
}

/* Begins what may be begun of the window; true: all of it is taken over. */
static bool take_window(struct reclaim *r, struct volume *x)
{
    for (; r->next < WINDOW_CHUNKS && (uint64_t)r->next * STORE_CHUNK < r->length; r->next++) {
        uint64_t at = r->pos + (uint64_t)r->next * STORE_CHUNK;
        if (!r->map[r->next * (STORE_CHUNK / VOL_MAP_BLOCK)])
            continue;
        if (r->taking >= TAKES_MAX || !r->credit)
            return false;
        r->taking++;
        r->credit--;
        pace_used(&r->a->pace, STORE_CHUNK);
        layer_take(x, (uint32_t)(at / x->shard_bytes), at % x->shard_bytes / STORE_CHUNK);
    }
    return !r->taking;
}

static bool still_wanted(const struct reclaim *r, const struct cdb_view *view, const struct volume *layer, const struct volume *x)
{
    const struct cdb_volume *lrow = cdb_volume_get(view, r->layer), *xrow = cdb_volume_get(view, r->child);
    if (!lrow || !layer || !x || !xrow || x->gone || x->deleting || strcmp(x->parent, r->layer) || strcmp(lrow->state, "ready"))
        return false;
    if (copies_volume_lost(view, xrow) || (r->claimed && !x->mine))
        return false; /* nothing can be read there any more; its owner does it now */
    return r->flatten ? xrow->flatten : !strcmp(lrow->parent, r->until) && lrow->epoch == r->epoch;
}

static void report(struct reclaim *r, const struct volume *x)
{
    char object[128];
    if (!r->task) {
        snprintf(object, sizeof object, "volume %s", x->name);
        r->task = task_begin(r->a->link, "flatten", object, r->a->node_id, "bytes", (int64_t)x->vol.size_bytes);
    }
    if (now_ms() - r->task_ms < 1000)
        return;
    r->task_ms = now_ms();
    task_progress(r->task, (int64_t)r->pos, (int64_t)x->vol.size_bytes);
}

static void step(struct reclaim *r, const struct cdb_view *view)
{
    struct volume *layer = volume_find(r->a, r->layer), *x = volume_find(r->a, r->child);
    if (!still_wanted(r, view, layer, x))
        r->over = true;
    if (r->over) {
        end(r);
        return;
    }
    if (!r->claimed || !x->open || r->asking || now_ms() < r->retry_ms)
        return;
    if (r->flatten)
        report(r, x);
    if (r->task && task_cancel_asked(r->task)) {
        if (!r->taking) /* else the last of them comes here again */
            give_up_flatten(r);
        return;
    }
    uint64_t size = layer->vol.size_bytes < x->vol.size_bytes ? layer->vol.size_bytes : x->vol.size_bytes;
    if (r->next < WINDOW_CHUNKS) {
        if (!take_window(r, x))
            return;
        r->pos += r->length;
        r->next = WINDOW_CHUNKS;
    }
    if (r->pos < size)
        look(r, layer, size);
    else
        leave_out(r, cdb_volume_get(view, r->layer), x);
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

static void begin(struct asan *a, const struct cdb_volume *layer, struct volume *x, bool flatten)
{
    struct reclaim *r = xcalloc(1, sizeof *r);
    r->a = a;
    r->flatten = flatten;
    r->next = WINDOW_CHUNKS;
    memcpy(r->layer, layer->id, ID_LEN + 1);
    memcpy(r->child, x->id, ID_LEN + 1);
    if (!flatten) {
        snprintf(r->until, sizeof r->until, "%s", layer->parent);
        r->epoch = layer->epoch;
    }
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

static bool ours(struct asan *a, const struct cdb_view *view, const struct volume *x)
{
    const struct cdb_volume *row = x ? cdb_volume_get(view, x->id) : NULL;
    return row && !a->reclaim && !copies_volume_lost(view, row) && (x->mine || (x->owner_dead && first_up(a, view)));
}

static void consider_layer(struct asan *a, const struct cdb_view *view, const struct cdb_volume *layer)
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
    if (ours(a, view, x))
        begin(a, layer, x, false);
}

static void consider_flatten(struct asan *a, const struct cdb_view *view, const struct cdb_volume *row)
{
    struct volume *x = volume_find(a, row->id);
    const struct cdb_volume *parent = *row->parent ? cdb_volume_get(view, row->parent) : NULL;
    if (parent && ours(a, view, x))
        begin(a, parent, x, true);
}

void reclaim_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    if (!view || !a->view_seen || a->stopping)
        return;
    if (a->reclaim) {
        a->reclaim->credit = (uint32_t)(a->pace.rate * TICK_MS / 1000 / STORE_CHUNK) + 1;
        step(a->reclaim, view);
    }
    if (now_ms() < a->reclaim_ms)
        return;
    a->reclaim_ms = now_ms() + ROUND_MS;
    for (size_t i = 0; i < cdb_volume_count(view); i++) {
        const struct cdb_volume *v = cdb_volume_at(view, i);
        if (strcmp(v->state, "ready"))
            continue;
        if (!strcmp(v->purpose, "layer"))
            consider_layer(a, view, v);
        else if (v->flatten)
            consider_flatten(a, view, v);
    }
}
