/* When this node opens a volume: its cores, their epoch; claiming volumes that nobody owns, and giving them back.
 *
 *   the owner is us: open, in the volume's epoch if nobody can have used it, else in the next one (a transaction). Used or
 *       not: what the previous owner left above the commit marks pins the journals of all replicas until it is reconciled.
 *   the owner is no one, or dead: claim (a transaction: owner = us, epoch + 1), if it is wanted here by more than a guest's
 *       socket (a guest's volume gets its owner together with the guest): claims, asan_io, replicas to bring up to date
 *       or journals to be freed
 *   claimed by us, wanted no more, and at rest (or lost): release (owner = "")
 *
 * An epoch counts as unused when this process saw it come: a core of an earlier life of the daemon may have used the one
 * of the first view, and frames of that life may still be under way. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "cluster/copies.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define RETRY_MS 300
#define BUSY_MS 3000 /* a claim waits so long for another owner to let go */

static void wake_claims(struct volume *v)
{
    struct claim_wait *w;
    while ((w = TAILQ_FIRST(&v->claim_waits))) {
        TAILQ_REMOVE(&v->claim_waits, w, entry);
        w->done(w, 0, "");
    }
}

/* Another node owns it. It may be about to let go (a tool that ends, a resync that is through), and our view may lag. */
static void expire_claims(struct volume *v)
{
    struct claim_wait *w, *next;
    for (w = TAILQ_FIRST(&v->claim_waits); w; w = next) {
        next = TAILQ_NEXT(w, entry);
        if (now_ms() < w->until_ms)
            continue;
        own_claim_cancel(v, w);
        w->done(w, E_BUSY, "another node owns the volume");
    }
}

static bool wants_to_own(const struct volume *v)
{
    return !v->deleting && (v->claims || v->check || v->maintain || v->settle || now_ms() < v->linger_ms);
}

static bool wanted(const struct volume *v)
{
    return wants_to_own(v) || v->users || !TAILQ_EMPTY(&v->active);
}

bool own_at_rest(const struct volume *v)
{
    for (uint32_t i = 0; i < SHARDS_MAX; i++) {
        struct owner_info info;
        if (!v->shard[i] || !v->shard[i]->core)
            continue;
        owner_info(v->shard[i]->core, &info);
        if (!info.at_rest)
            return false;
    }
    return true;
}

bool own_quiet(const struct volume *v)
{
    for (uint32_t i = 0; i < SHARDS_MAX; i++) {
        struct owner_info info;
        if (!v->shard[i] || !v->shard[i]->core)
            continue;
        owner_settle(v->shard[i]->core, now_ms());
        shard_after(v->shard[i]);
        owner_info(v->shard[i]->core, &info);
        if (!info.quiet)
            return false;
    }
    return true;
}

void own_close(struct volume *v)
{
    if (!v->open)
        return;
    v->open = false;
    for (uint32_t i = 0; i < SHARDS_MAX; i++)
        if (v->shard[i])
            shard_close(v->shard[i]);
    layer_closed(v);
    resync_end(v, "canceled");
}

static void open_cores(struct volume *v)
{
    v->open = true;
    v->used_epoch = v->epoch;
    log_info("volume %s: opened in epoch %llu", v->name, (unsigned long long)v->epoch);
    const struct cdb_view *view = view_of(v->a);
    for (uint32_t i = 0; i < v->n_shards; i++) /* all that exist: fence and reconcile at once, not at the first request */
        if (shard_row(view, v, i))
            shard_get(v, i);
    volume_unpark(v);
    wake_claims(v);
}

static void txn_done(void *arg, int status, const struct err *e)
{
    struct volume *v = arg;
    (void)e;
    v->txn_busy = false;
    if (status)
        v->retry_ms = now_ms() + RETRY_MS;
    else
        v->retry_ms = 0;
    own_update(v);
}

/* Makes us the owner in a new epoch, if the row is still as we saw it. */
static void claim(struct volume *v, const char *note)
{
    struct cdb_txn *t = cdb_txn_new();
    v->txn_busy = true;
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_owner, v->owner);
    cdb_txn_require_int(t, CDB_T_VOLUME, v->id, CDB_VOLUME_epoch, (int64_t)v->epoch);
    cdb_txn_set_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_owner, v->a->node_id);
    cdb_txn_set_int(t, CDB_T_VOLUME, v->id, CDB_VOLUME_epoch, (int64_t)v->epoch + 1);
    if (!v->mine)
        v->claimed = true; /* even if the outcome stays unknown: an ownership that nobody wants is given back */
    cdb_txn_commit(v->a->link, t, note, txn_done, v);
}

static void release(struct volume *v)
{
    struct cdb_txn *t = cdb_txn_new();
    v->txn_busy = true;
    own_close(v);
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_owner, v->a->node_id);
    cdb_txn_require_int(t, CDB_T_VOLUME, v->id, CDB_VOLUME_epoch, (int64_t)v->epoch);
    cdb_txn_set_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_owner, "");
    cdb_txn_commit(v->a->link, t, "release volume", txn_done, v);
}


/* There is nothing left that an owner could bring to rest. */
static bool is_lost(const struct volume *v)
{
    const struct cdb_view *view = view_of(v->a);
    const struct cdb_volume *row = view ? cdb_volume_get(view, v->id) : NULL;
    return row && copies_volume_lost(view, row);
}

void own_update(struct volume *v)
{
    struct asan *a = v->a;
    if (v->gone || a->stopping || !a->view_seen)
        return;
    if (v->open && (!v->mine || v->epoch != v->used_epoch || v->deleting))
        own_close(v);
    if (v->txn_busy || now_ms() < v->retry_ms)
        return;
    if (!v->mine) {
        v->claimed = v->claimed && v->owner_dead;
        if (v->owner_dead && wants_to_own(v))
            claim(v, "claim volume");
        else if (!v->owner_dead)
            expire_claims(v);
        return;
    }
    if (v->open) {
        if (v->claimed && !wanted(v) && (own_at_rest(v) || is_lost(v)))
            release(v);
        return;
    }
    if (v->deleting)
        return;
    if (v->epoch <= v->used_epoch || v->epoch == v->first_epoch)
        claim(v, "renew epoch");
    else
        open_cores(v);
}

void own_claim(struct volume *v, struct claim_wait *w)
{
    v->claims++;
    if (v->open && v->mine) {
        w->done(w, 0, "");
        return;
    }
    w->until_ms = now_ms() + BUSY_MS;
    TAILQ_INSERT_TAIL(&v->claim_waits, w, entry);
    own_update(v);
}

void own_claim_cancel(struct volume *v, struct claim_wait *w)
{
    TAILQ_REMOVE(&v->claim_waits, w, entry);
    v->claims--;
}

void own_release(struct volume *v)
{
    assert(v->claims);
    v->claims--;
    own_update(v);
}

void own_tick(struct asan *a)
{
    struct htab_node *n, *next;
    uint64_t now = now_ms();
    HTAB_FOR_EACH_SAFE (n, next, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (v->open)
            for (uint32_t i = 0; i < v->n_shards; i++)
                if (v->shard[i] && v->shard[i]->core) {
                    owner_tick(v->shard[i]->core, now);
                    shard_after(v->shard[i]);
                }
        if (v->sealed)
            sealed_tick(v);
        own_update(v);
    }
}
