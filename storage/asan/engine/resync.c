/* Bringing replicas up to date: which volumes need it and whether this node does it, how many shards at a time, and a Task
 * per volume with its progress. The work itself is the cores'. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/metric.h"
#include "cluster/task.h"
#include "storage/asan/engine/priv.h"

#define ORPHAN_MS 10000
#define FEW 4u /* chunks */

METRIC_COUNTER(m_copied, "cohort_asan_resync_bytes_total", "Bytes copied to replicas to bring them up to date");
METRIC_GAUGE(m_rate, "cohort_asan_resync_limit_bytes", "Bytes per second that replicas may be brought up to date with, as guests' latency allows");
METRIC_GAUGE(m_p99, "cohort_asan_guest_p99_us", "Guests' 99th percentile of read and write latency that the limit was judged by, 0 if they ask for little");

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

void resync_count(struct shard *s)
{
    uint64_t copied = owner_copied(s->core);
    if (copied == s->copied_seen)
        return;
    metric_add(&m_copied, (int64_t)((copied - s->copied_seen) * STORE_CHUNK));
    pace_used(&s->v->a->pace, (copied - s->copied_seen) * STORE_CHUNK);
    s->copied_seen = copied;
}

static uint64_t target_us(const struct cdb_view *view)
{
    return (uint64_t)cdb_setting(view, "rebuild_p99_ms", 1, 10000, PACE_P99_US / 1000) * 1000;
}

struct candidate { struct shard *s; int in_sync; uint32_t left; };

/* One good copy left first; then by volume and index, so that a volume is whole soon. */
static int more_urgent(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->in_sync != y->in_sync)
        return x->in_sync - y->in_sync;
    int cmp = strcmp(x->s->v->id, y->s->v->id);
    return cmp ? cmp : x->s->index < y->s->index ? -1 : 1;
}

/* Shards of `v` that are at it, and those that want to be. */
static void gather(struct volume *v, struct candidate *at_it, unsigned *n_at_it, struct candidate **wanting, size_t *n, size_t *cap)
{
    for (uint32_t i = 0; i < v->n_shards; i++) {
        struct shard *s = v->shard[i];
        struct owner_info info;
        if (!s || !s->core)
            continue;
        owner_info(s->core, &info);
        if (info.joining && *n_at_it < JOINS_MAX) {
            at_it[(*n_at_it)++] = (struct candidate){s, info.n_isr, info.join_left};
        } else if (info.wants_join && !info.joining) {
            if (*n == *cap)
                *wanting = xrealloc(*wanting, (*cap = *cap ? 2 * *cap : 64) * sizeof **wanting);
            (*wanting)[(*n)++] = (struct candidate){s, info.n_isr, 0};
        }
    }
}

static void allow(struct shard *s, bool allowed, uint64_t now)
{
    if (s->core && s->may_join != allowed)
        owner_allow_join(s->core, allowed, now);
    s->may_join = allowed;
}

/* Chunks for the joins of this tick. Most have little to copy or still compare: they get a few at once, at most half of all if
 * others have more; the first COPYING_MAX of those share the rest. What was not used in the last tick comes back. */
static void give_credit(struct candidate *at_it, unsigned joins, unsigned beginners, uint32_t chunks, uint64_t now, uint32_t *ret_each)
{
    uint32_t pool = chunks, back = 0, big = 0, few;
    for (unsigned i = 0; i < joins; i++) {
        back += owner_join_credit(at_it[i].s->core, 0, now);
        big += at_it[i].left > FEW;
    }
    pool += back < chunks ? back : chunks;
    big = big < COPYING_MAX ? big : COPYING_MAX;
    few = big ? pool / 2 : pool;
    for (unsigned i = 0; i < joins; i++) {
        uint32_t n = at_it[i].left > FEW ? 0 : few < FEW ? few : FEW;
        few -= n;
        pool -= n;
        owner_join_credit(at_it[i].s->core, n, now);
    }
    *ret_each = beginners && few / beginners < FEW ? few / beginners : FEW;
    pool -= beginners * *ret_each < pool ? beginners * *ret_each : pool;
    for (unsigned i = 0, k = 0; i < joins && k < big; i++)
        if (at_it[i].left > FEW) {
            owner_join_credit(at_it[i].s->core, pool / big + (k < pool % big), now);
            k++;
        }
}

void resync_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    struct candidate at_it[JOINS_MAX], *wanting = NULL;
    unsigned joins = 0;
    size_t n = 0, cap = 0;
    struct htab_node *node;
    uint64_t now = now_ms();
    uint32_t chunks = pace_tick(&a->pace, now, view ? target_us(view) : PACE_P99_US, STORE_CHUNK), each;
    metric_set(&m_rate, (int64_t)a->pace.rate);
    metric_set(&m_p99, (int64_t)a->pace.p99_us);
    HTAB_FOR_EACH (node, &a->volumes) {
        struct volume *v = container_of(node, struct volume, node);
        if (!v->open || (!v->maintain && !v->task && !v->joining))
            continue;
        unsigned before = joins;
        gather(v, at_it, &joins, &wanting, &n, &cap);
        v->joining = joins > before;
        report(v, now);
    }
    unsigned beginners = n < JOINS_MAX - joins ? (unsigned)n : JOINS_MAX - joins;
    qsort(at_it, joins, sizeof *at_it, more_urgent);
    give_credit(at_it, joins, beginners, chunks, now, &each);
    for (unsigned i = 0; i < joins; i++) {
        allow(at_it[i].s, false, now); /* the next replica of it: in its turn */
        shard_after(at_it[i].s);
    }
    if (n)
        qsort(wanting, n, sizeof *wanting, more_urgent);
    for (size_t i = 0; i < n; i++) {
        struct shard *s = wanting[i].s;
        if (!s->core)
            continue; /* closed by what an earlier one set off */
        s->v->joining = s->v->joining || i < beginners;
        if (i < beginners)
            owner_join_credit(s->core, each, now);
        allow(s, i < beginners, now);
        shard_after(s);
    }
    free(wanting);
    a->joins = joins;
}
