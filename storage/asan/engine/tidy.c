/* Copies that this node holds but that the database no longer lists.
 *
 *   moved     the shard has its copies elsewhere: they were made anew while the node was away, or moved. Their space is given
 *             back once the shard is whole without them; until then they stay, as the last resort of people.
 *   leftover  the shard is gone: its volume was deleted after the copy had moved, or while a removed disk was away. Nobody
 *             can say that a database is wrong which knows nothing of a shard (an old backup of it?), so a leftover stays
 *             for leftover_keep_s after it was first seen, then it is dropped and people are told.
 *
 * The view may be old: the copy may be listed again by now. So: requests for the shard are refused from here on (the owner
 * tries again), a transaction makes sure that the rows still are as we saw them, then the copies are dropped. Should one be
 * listed again meanwhile, the owner finds an empty replica and copies everything. The fence keeps its epoch.
 *
 * A node that was away for long returns with thousands: TIDY_MAX go in one transaction. If one of them was in the way of all,
 * they are tried one by one for a while. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");
METRIC_COUNTER(m_dropped, "cohort_asan_copies_dropped_total", "Copies dropped because the shard has its copies elsewhere, or is gone");

#define ROUND_MS 5000
#define TIDY_MAX 64
#define KEEP_S 600

struct tidy { /* copies on their way out */
    struct ldisk *disk;
    int n, left;   /* left: drops under way */
    struct tidy_copy {
        struct store_op op;
        struct tidy *t;
        struct store_shard_id id;
    } copy[TIDY_MAX];
};

struct leftover {
    struct htab_node node;
    struct store_shard_id id;
    uint64_t since_ms;
    bool seen; /* in this round */
};

struct search {
    struct ldisk *disk;
    const struct cdb_view *view;
    struct cdb_txn *txn;
    struct tidy *t;
    uint64_t keep_ms;
    int max, leftovers;
};

static bool due(struct search *s, const struct store_shard_id *id)
{
    uint64_t hash = hash_bytes(&id->volume, sizeof id->volume, id->index);
    struct htab_node *n;
    struct leftover *lo;
    HTAB_FOR_EACH_WITH_HASH (n, hash, &s->disk->leftovers) {
        lo = container_of(n, struct leftover, node);
        if (id_equal(&lo->id.volume, &id->volume) && lo->id.index == id->index) {
            lo->seen = true;
            return now_ms() - lo->since_ms >= s->keep_ms;
        }
    }
    lo = xcalloc(1, sizeof *lo);
    *lo = (struct leftover){.id = *id, .since_ms = now_ms(), .seen = true};
    htab_insert(&s->disk->leftovers, &lo->node, hash);
    return false;
}

/* Not seen in this round: dropped, or listed again; or all, at the end. */
static void forget_leftovers(struct ldisk *d, bool all)
{
    struct htab_node *n, *next;
    HTAB_FOR_EACH_SAFE (n, next, &d->leftovers) {
        struct leftover *lo = container_of(n, struct leftover, node);
        bool keep = lo->seen && !all;
        lo->seen = false;
        if (keep)
            continue;
        htab_remove(&d->leftovers, n);
        free(lo);
    }
}

static void consider(void *arg, const struct store_shard_id *id)
{
    struct search *s = arg;
    char volume[ID_LEN + 1], row_id[ID_LEN + 16];
    id_format(&id->volume, volume);
    snprintf(row_id, sizeof row_id, "%s/%u", volume, id->index);
    const struct cdb_shard *row = cdb_shard_get(s->view, row_id);
    const struct cdb_volume *vol = row ? cdb_volume_get(s->view, row->volume) : NULL;
    bool out = row ? vol && !cdb_strs_has(&row->replicas, s->disk->id) && cdb_shard_in_sync_count(s->view, row) >= vol->replicas
                   : due(s, id);
    if (!out || s->t->n == s->max || !host_forget(s->disk, id))
        return;
    s->t->copy[s->t->n++].id = *id;
    s->leftovers += !row;
    if (row)
        cdb_txn_require_int(s->txn, CDB_T_SHARD, row_id, CDB_SHARD_generation, row->generation);
    else
        cdb_txn_require_absent(s->txn, CDB_T_SHARD, row_id);
    log_dbg("disk %s: volume %s shard %u %s: this copy is dropped", s->disk->name, volume, id->index, row ? "has its copies elsewhere" : "is gone");
}

static void end(struct tidy *t)
{
    t->disk->tidy = NULL;
    free(t);
}

static void dropped(struct store_op *op, int status, const struct err *e)
{
    struct tidy_copy *c = op->arg;
    struct tidy *t = c->t;
    if (status && status != E_NOTFOUND) {
        log_warn("disk %s: a copy that is not needed any more cannot be dropped: %s", t->disk->name, e ? e->msg : err_code_name(status));
        t->disk->tidy_ms = now_ms() + ROUND_MS;
    } else {
        metric_add(&m_dropped, 1);
    }
    if (--t->left == 0)
        end(t);
}

static void verified(void *arg, int status, const struct err *e)
{
    struct tidy *t = arg;
    struct ldisk *d = t->disk;
    (void)e;
    if (status || d->state != LD_READY || d->reopening || d->a->stopping) {
        d->tidy_one = status == E_CONFLICT ? TIDY_MAX : d->tidy_one;
        end(t);
        return;
    }
    d->tidy_one -= d->tidy_one > 0;
    d->tidy_ms = 0; /* there may be more */
    t->left = t->n;
    for (int i = 0, n = t->n; i < n; i++) { /* never answered at once: `t` lives to the end of this loop */
        struct tidy_copy *c = &t->copy[i];
        struct store_shard_info info;
        store_shard_info(d->store, &c->id, &info);
        c->t = t;
        c->op.done = dropped;
        c->op.arg = c;
        store_drop(d->store, &c->op, &c->id, info.epoch);
    }
}

static uint64_t keep_ms(const struct cdb_view *view)
{
    return (uint64_t)cdb_setting(view, "leftover_keep_s", 0, 86400, KEEP_S) * 1000;
}

static void tidy(struct ldisk *d, const struct cdb_view *view)
{
    struct search s = {.disk = d, .view = view, .txn = cdb_txn_new(), .t = xcalloc(1, sizeof *s.t), .keep_ms = keep_ms(view),
                       .max = d->tidy_one ? 1 : TIDY_MAX};
    s.t->disk = d;
    store_each_shard(d->store, consider, &s);
    forget_leftovers(d, false);
    if (!s.t->n) {
        cdb_txn_free(s.txn);
        free(s.t);
        return;
    }
    d->tidy = s.t;
    log_info("disk %s: %d copies are dropped: %d of shards that have their copies elsewhere, %d of shards that are gone", d->name, s.t->n,
             s.t->n - s.leftovers, s.leftovers);
    if (s.leftovers) {
        char object[128], text[200];
        snprintf(object, sizeof object, "disk %s", d->name);
        snprintf(text, sizeof text, "%d copies of shards whose volumes were deleted while this node was away are dropped", s.leftovers);
        cdb_txn_event(s.txn, clock_wall_ms(), "info", object, text, d->a->node_id);
    }
    cdb_txn_commit(d->a->link, s.txn, "copies are not listed", verified, s.t);
}

bool tidy_refuses(const struct ldisk *d, const struct store_shard_id *id)
{
    for (int i = 0; d->tidy && i < d->tidy->n; i++)
        if (id_equal(&d->tidy->copy[i].id.volume, &id->volume) && d->tidy->copy[i].id.index == id->index)
            return true;
    return false;
}

void tidy_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    for (int i = 0; view && a->view_seen && i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        if (d->state != LD_READY || d->reopening || d->tidy || now_ms() < d->tidy_ms)
            continue;
        d->tidy_ms = now_ms() + ROUND_MS;
        tidy(d, view);
    }
}

void tidy_close(struct ldisk *d)
{
    if (d->tidy && d->a->link)
        cdb_txn_cancel(d->a->link, d->tidy);
    free(d->tidy); /* its drops, if it had begun any, were answered when the store was closed */
    d->tidy = NULL;
    forget_leftovers(d, true);
    htab_destroy(&d->leftovers);
}
