/* Bringing replicas up to date: which volumes need it and whether this node does it, how many shards at a time, and a Task
 * per volume with its progress. The work itself is the cores'. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cluster/task.h"
#include "storage/asan/engine/priv.h"

#define ORPHAN_MS 10000

/* Does a replica here hold records above its commit mark although nobody owns the volume? Its owner died; the records
 * stay in the journal, and the journal cannot move on, until someone has reconciled them. */
static bool tail_left(struct asan *a, const struct cdb_view *view, const struct volume *v)
{
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        for (size_t k = 0; row && k < row->replicas.n; k++) {
            const struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
            struct store_shard_id id = {v->bin, i};
            struct store_tail_rec *tail = NULL;
            if (!g->local || g->local->state != LD_READY || !cdb_shard_in_sync(view, row, g->id))
                continue;
            size_t n = store_tail(g->local->store, &id, &tail);
            free(tail);
            if (n)
                return true;
        }
    }
    return false;
}

/* `v` has had no owner for a while: takes it over if its replicas here need someone to settle what was left. */
void resync_orphan(struct volume *v, const struct cdb_view *view, uint64_t now)
{
    if (!v->owner_dead || v->deleting) {
        v->orphan_ms = 0;
    } else if (!v->orphan_ms) {
        v->orphan_ms = now;
    } else if (now - v->orphan_ms >= ORPHAN_MS) {
        v->orphan_ms = now;
        v->settle = tail_left(v->a, view, v);
    }
    if (v->open && v->settle)
        v->settle = false; /* own.c releases it once it is at rest */
}

/* `*ret_here`: by this node. The owner does it; for a volume without one, the node of the first in-sync disk that can. */
bool resync_wanted(struct asan *a, const struct cdb_view *view, const struct volume *v, bool *ret_here)
{
    *ret_here = false;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        const struct gdisk *first = NULL;
        bool behind = false;
        for (size_t k = 0; row && k < row->replicas.n; k++) {
            const struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
            if (!g->usable)
                continue;
            if (cdb_shard_in_sync(view, row, g->id))
                first = first ? first : g;
            else if (gdisk_up(a, g)) /* else there is nothing to do yet, and no reason to hold the volume */
                behind = true;
        }
        if (!behind || !first)
            continue;
        *ret_here = v->mine || (v->owner_dead && first->local);
        return true;
    }
    return false;
}

void resync_end(struct volume *v, const char *state)
{
    if (v->task)
        task_end(v->task, state, "");
    v->task = NULL;
}

/* Progress of a volume: bytes looked at, of the shards that have something to do. */
static void report(struct volume *v, uint64_t now)
{
    uint64_t done = 0, total = 0;
    bool any = false, joining = false;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        struct shard *s = v->shard[i];
        struct owner_info info;
        if (!s || !s->core)
            continue;
        owner_info(s->core, &info);
        if (info.wants_join)
            s->reported_join = true;
        if (!s->reported_join)
            continue;
        any = any || info.wants_join;
        joining = joining || info.joining;
        total += v->shard_bytes;
        done += info.wants_join ? info.join_done * STORE_CHUNK : v->shard_bytes;
    }
    if (joining && !v->task) {
        char object[256];
        snprintf(object, sizeof object, "volume %s", v->name);
        v->task = task_begin(v->a->link, "resync", object, v->a->node_id, "bytes", (int64_t)total);
        v->task_ms = now;
    } else if (v->task && !any) {
        resync_end(v, "done");
        for (uint32_t i = 0; i < v->n_shards; i++)
            if (v->shard[i])
                v->shard[i]->reported_join = false;
    } else if (v->task && now - v->task_ms >= 1000) {
        task_progress(v->task, (int64_t)done, (int64_t)total);
        v->task_ms = now;
    }
}

void resync_tick(struct asan *a)
{
    struct htab_node *n;
    uint64_t now = now_ms();
    unsigned joins = 0;
    for (int pass = 0; pass < 2; pass++) /* those that are at it keep their place */
        HTAB_FOR_EACH (n, &a->volumes) {
            struct volume *v = container_of(n, struct volume, node);
            for (uint32_t i = 0; v->open && i < v->n_shards; i++) {
                struct shard *s = v->shard[i];
                struct owner_info info;
                if (!s || !s->core)
                    continue;
                owner_info(s->core, &info);
                if (pass == 0) {
                    joins += info.joining;
                } else if (!info.joining) {
                    bool allow = info.wants_join && joins < JOINS_MAX;
                    joins += allow;
                    owner_allow_join(s->core, allow, now);
                    shard_after(s);
                }
            }
            if (pass == 1 && v->open)
                report(v, now);
        }
    a->joins = joins;
}
