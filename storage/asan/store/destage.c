/* Destage, loop's part: chooses committed records, has a worker merge them into extents, then trims the journal.
 *
 *   idle -> merging (worker: merge.c) -> applied to the index -> trimming (worker: superblock) -> idle, or the next round
 *
 * A round takes, per chunk, the oldest records up to the first that is not committed, each of them whole, even where newer
 * ones cover it: the extent then holds what the chunk was at some version, and what is newer stays in the journal.
 * Nothing leaves the index before the metadata are durable, and no journal space is reused before the superblock is.
 * What is not committed and half a ring old is set aside in the same round (aside.h), so that it does not hold the journal.
 *
 * When: the journal is a quarter full (down to an eighth) or stuck; nothing has been written for DESTAGE_IDLE_MS; what has
 * been there for DESTAGE_AGE_MS; store_destage_now(). Otherwise records stay: what is written again is destaged once, and a
 * round of many extents costs hardly more syncs than one of few.
 */
#include <assert.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/store/aside.h"
#include "storage/asan/store/direct.h"

LOG_MODULE("store");
METRIC_COUNTER(m_rounds, "cohort_store_destage_rounds_total", "Destage rounds");
METRIC_COUNTER(m_extents, "cohort_store_destage_extents_total", "Extents written by destage");
METRIC_COUNTER(m_lost, "cohort_store_destage_lost_blocks_total", "4 KiB blocks whose contents were found damaged by destage");

#define ROUND_EXTENTS 256u
#define ROUND_ADOPTED 512u /* on top of those: extents that only get the place of a large write */
#define DESTAGE_IDLE_MS 2000u
#define DESTAGE_AGE_MS 15000u /* and at most twice that */
#define TICK_MS 1000u
#define FUTILE_MS 100u /* after nothing was ready, a filling journal does not make us look again sooner */

struct destage_job {
    uv_work_t work;
    struct store *s;
    struct merge_round round;
    struct fmt_sb sb;
    int status;
    struct err e;
};

static void trim(struct store *s);

/* ---- choosing ---- */

static void map_set(uint64_t *map, uint32_t begin, uint32_t end)
{
    for (uint32_t i = begin / 512; i < end / 512; i++)
        map[i / 64] |= 1ull << (i % 64);
}

static bool first_is_ready(const struct ext *t)
{
    if (t->fresh) /* what is newer has to wait for it */
        return store_version_cmp(t->fresh->version, t->shard->commit) <= 0;
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        const struct rec *r = TAILQ_FIRST(&t->recs[c]);
        if (r && rec_committed(r))
            return true;
    }
    return false;
}

static void take_records(struct merge_item *m, struct ext *t)
{
    size_t max = t->n_recs;
    m->recs = xcalloc(max, sizeof *m->recs);
    m->which = xcalloc(max, sizeof *m->which);
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        struct rec *r;
        TAILQ_FOREACH (r, &t->recs[c], by_chunk) {
            if (!rec_committed(r))
                break;
            uint32_t begin = (uint32_t)(r->offset % STORE_EXTENT);
            m->recs[m->n_recs] = (struct merge_rec){.file_off = r->file_off, .begin = begin, .length = r->length, .crc = r->crc,
                                                    .zero = rec_is_zero(r), .aside = !r->batch, .lost = r->lost, .version = r->version};
            m->which[m->n_recs++] = r;
            map_set(m->ours, begin, begin + r->length);
        }
        for (const struct seg *g = t->segs[c]; g; g = g->next)
            map_set(m->dirty, c * STORE_CHUNK + g->begin, c * STORE_CHUNK + g->end);
    }
}

/* Where the extent goes. False: no place left now; the next round has one. */
static bool find_place(struct store *s, struct merge_item *m, struct ext *t)
{
    m->new_place = m->old_place = t->place;
    if (t->place == PLACE_NONE) {
        m->took_reserved = t->counted;
        return !t->counted || places_take(&s->places, true, &m->new_place);
    }
    bool still_read = t->home && t->home->recs; /* as a record in the tail, or by a read that began before */
    return (merge_in_place_ok(m) && !still_read) || places_take(&s->places, false, &m->new_place);
}

/* The extent is to become what its newest large write is. What is newer stays for another round. */
static void adopt_ext(struct merge_item *m, struct ext *t)
{
    struct placed *p = t->fresh;
    *m = (struct merge_item){.id = t->shard->id, .index = t->index, .ext = t, .adopt = p, .old_place = t->place, .new_place = p->place};
    m->which = xcalloc(EXT_CHUNKS, sizeof *m->which);
    m->meta.place = p->place;
    memcpy(m->meta.crc, p->crc, sizeof m->meta.crc);
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        struct rec *r = TAILQ_FIRST(&t->recs[c]); /* covers all of the chunk, so nothing older is left */
        m->meta.version[c] = p->version;
        if (r && r->placed == p) {
            r->destaging = true;
            m->which[m->n_recs++] = r;
        }
    }
    t->destaging = true;
}

static bool take_ext(struct store *s, struct merge_item *m, struct ext *t)
{
    *m = (struct merge_item){.id = t->shard->id, .index = t->index, .ext = t};
    take_records(m, t);
    if (!find_place(s, m, t)) {
        free(m->recs);
        free(m->which);
        return false;
    }
    if (m->took_reserved)
        t->counted = false;
    m->meta.place = t->place;
    memcpy(m->meta.version, t->version, sizeof m->meta.version);
    if (t->crc)
        memcpy(m->meta.crc, t->crc, sizeof m->meta.crc);
    t->destaging = true;
    for (size_t i = 0; i < m->n_recs; i++)
        m->which[i]->destaging = true;
    return true;
}

static void take_progress(struct store *s, struct merge_round *r)
{
    struct htab_node *n;
    r->shards = xcalloc(s->index.shards.n, sizeof *r->shards);
    HTAB_FOR_EACH (n, &s->index.shards) {
        struct shard *sh = container_of(n, struct shard, node);
        if (!sh->progress_dirty || !sh->exists)
            continue;
        r->shards[r->n_shards++] = (struct merge_shard){sh->id, {sh->durable_last, sh->commit}, sh};
        sh->progress_dirty = false;
    }
}

static void job_free(struct destage_job *job)
{
    for (size_t i = 0; i < job->round.n_items; i++) {
        free(job->round.items[i].recs);
        free(job->round.items[i].which);
    }
    free(job->round.items);
    free(job->round.shards);
    free(job->round.keep);
    free(job->round.hide);
    free(job->round.forget);
    free(job);
}

static struct destage_job *choose(struct store *s)
{
    struct destage_job *job = xcalloc(1, sizeof *job);
    struct merge_round *r = &job->round;
    struct ext *t;
    job->s = s;
    size_t merged = 0, adopted = 0, most = s->index.n_placed < ROUND_ADOPTED ? s->index.n_placed : ROUND_ADOPTED;
    r->items = xcalloc(ROUND_EXTENTS + most, sizeof *r->items);
    TAILQ_FOREACH (t, &s->index.dirty, dirty) {
        if (merged == ROUND_EXTENTS || (adopted == most && most > 0))
            break;
        if (!first_is_ready(t))
            continue;
        if (t->fresh) {
            adopt_ext(&r->items[r->n_items++], t);
            adopted++;
        } else if (take_ext(s, &r->items[r->n_items], t)) {
            r->n_items++;
            merged++;
        }
    }
    aside_choose(s, r);
    if (r->n_items + r->n_keep + r->n_hide + r->n_forget == 0) {
        job_free(job);
        return NULL;
    }
    take_progress(s, r);
    r->batch = &s->destage.batch;
    r->journal = &s->journal.dev;
    r->extents = &s->extents;
    r->meta = s->meta;
    r->number = s->journal.meta_number + 1;
    r->durable_seq = s->journal.durable_seq;
    return job;
}

/* ---- applying ---- */

static void apply_places(struct store *s, const struct merge_item *m, struct ext *t)
{
    uint64_t place = m->meta.place;
    bool more = t->n_recs || t->pending;
    if (m->old_place != PLACE_NONE && m->old_place != place)
        direct_let_go(s, t, m->old_place);
    if (m->adopt)
        direct_adopted(t, m->adopt);
    if (m->new_place != PLACE_NONE && m->new_place != place && m->new_place != m->old_place)
        places_free(&s->places, m->new_place); /* all zero: not used after all */
    t->shard->places += (place != PLACE_NONE) - (t->place != PLACE_NONE);
    t->place = place;
    /* Without a place, and more to come that was accepted on a reservation or on the place just freed. */
    bool need = place == PLACE_NONE && more && (t->counted || m->took_reserved || m->old_place != PLACE_NONE);
    if (need && !t->counted)
        s->places.reserved++;
    else if (!need && t->counted)
        places_unreserve(&s->places, 1);
    t->counted = need;
}

static void apply_item(struct store *s, const struct merge_item *m)
{
    struct ext *t = m->ext;
    for (size_t i = 0; i < m->n_recs; i++) {
        struct rec *r = m->which[i];
        r->destaging = false;
        r->keyed = false; /* one that was set aside: its key went with this round */
        if (r->segs > 0)
            index_remove(&s->index, r);
        else
            rec_settle(&s->index, r);
    }
    if (m->old_place != PLACE_NONE)
        cache_forget(s->cache, m->old_place);
    t->destaging = false;
    t->has_meta = true;
    t->gen = ++s->index.gens;
    memcpy(t->version, m->meta.version, sizeof t->version);
    apply_places(s, m, t);
    if (t->place == PLACE_NONE) {
        free(t->crc);
        t->crc = NULL;
    } else {
        if (!t->crc)
            t->crc = xmalloc(EXT_BLOCKS * sizeof *t->crc);
        memcpy(t->crc, m->meta.crc, EXT_BLOCKS * sizeof *t->crc);
    }
}

/* The round did not happen: what it held is as before. */
static void undo_item(struct store *s, const struct merge_item *m)
{
    struct ext *t = m->ext;
    t->destaging = false;
    for (size_t i = 0; i < m->n_recs; i++) {
        m->which[i]->destaging = false;
        rec_settle(&s->index, m->which[i]);
    }
}

static void end_round(struct store *s)
{
    s->destage.running = false;
    fence_kick(s);
    destage_kick(s);
    if (s->closing)
        store_close_check(s);
}

static void merge_in_worker(uv_work_t *w)
{
    merge_run(&container_of(w, struct destage_job, work)->round);
}

static void merged(uv_work_t *w, int canceled)
{
    struct destage_job *job = container_of(w, struct destage_job, work);
    struct store *s = job->s;
    struct merge_round *r = &job->round;
    bool ok = r->status == E_OK;
    for (size_t i = 0; i < r->n_items; i++)
        ok ? apply_item(s, &r->items[i]) : undo_item(s, &r->items[i]);
    ok ? aside_apply(s, r) : aside_undo(s, r);
    if (ok) {
        s->journal.meta_number = r->number;
        metric_add(&m_rounds, 1);
        metric_add(&m_extents, (int64_t)r->n_items);
        metric_add(&m_lost, r->poisoned);
        if (r->poisoned)
            log_err("%s: destage met %u damaged blocks; they read as corrupt until repaired from another copy", s->capacity,
                    r->poisoned);
        places_look(&s->places);
    } else {
        store_fail(s, r->status, &r->e);
    }
    job_free(job);
    if (ok)
        trim(s);
    else
        end_round(s);
}

/* ---- trimming ---- */

static void trim_in_worker(uv_work_t *w)
{
    struct destage_job *job = container_of(w, struct destage_job, work);
    job->status = journal_sb_write(&job->s->journal.dev, &job->sb, &job->e);
}

static void trim_done(uv_work_t *w, int canceled)
{
    struct destage_job *job = container_of(w, struct destage_job, work);
    struct store *s = job->s;
    if (job->status < 0)
        store_fail(s, job->status, &job->e);
    else
        journal_trimmed(&s->journal, &job->sb);
    direct_trimmed(s);
    free(job);
    end_round(s);
}

static void trim(struct store *s)
{
    if (!journal_trim_scan(&s->journal)) {
        end_round(s);
        return;
    }
    struct destage_job *job = xcalloc(1, sizeof *job);
    job->s = s;
    journal_sb_next(&s->journal, &job->sb);
    uv_queue_work(s->loop, &job->work, trim_in_worker, trim_done);
}

/* ---- when ---- */

static void answer_waiting(struct store *s, int status, const struct err *e)
{
    struct store_op *op;
    while ((op = s->destage.wait_head)) {
        s->destage.wait_head = op->priv[0];
        op_later(s, op, status, e);
    }
    s->destage.wait_tail = &s->destage.wait_head;
}

void destage_fail_waiting(struct store *s, const struct err *e) { answer_waiting(s, e->code, e); }

static bool wanted(struct store *s)
{
    const struct journal *j = &s->journal;
    uint64_t used = journal_used(j), now = clock_boot_ms();
    if (s->destage.wait_head || j->stuck || !TAILQ_EMPTY(&s->index.forget))
        return true;
    if (direct_wants_destage(s) && now - s->destage.futile_ms > FUTILE_MS)
        return true;
    if (used > j->ring_bytes / 4 && now - s->destage.futile_ms > FUTILE_MS)
        s->destage.drain_to = j->ring_bytes / 8;
    if (now - s->destage.busy_ms > DESTAGE_IDLE_MS)
        s->destage.drain_to = 0;
    if (now - s->destage.mark_ms > DESTAGE_AGE_MS) {
        s->destage.old_pos = s->destage.mark_pos;
        s->destage.mark_pos = j->head_pos;
        s->destage.mark_ms = now;
    }
    if (used <= s->destage.drain_to)
        s->destage.drain_to = UINT64_MAX;
    return s->destage.drain_to != UINT64_MAX || j->trim_pos < s->destage.old_pos;
}

/* A drop goes alone (fence.c). But while it waits for writes of its shard that wait for journal space, that space must come. */
static bool drop_in_way(const struct store *s) { return s->drops && (s->meta_running || !s->journal.stuck); }

void destage_kick(struct store *s)
{
    if (s->destage.running || drop_in_way(s) || s->failed || s->closing || !wanted(s))
        return;
    struct destage_job *job = choose(s);
    if (!job && !journal_trim_scan(&s->journal)) {
        s->destage.drain_to = UINT64_MAX; /* nothing is ready: look again later */
        s->destage.old_pos = 0;
        s->destage.futile_ms = clock_boot_ms();
        if (journal_idle(&s->journal))
            answer_waiting(s, E_OK, NULL);
        return;
    }
    s->destage.running = true;
    if (job)
        uv_queue_work(s->loop, &job->work, merge_in_worker, merged);
    else
        trim(s);
}

static void on_tick(uv_timer_t *t)
{
    struct store *s = t->data;
    if (s->destage.seen_seq != s->journal.next_seq)
        s->destage.busy_ms = clock_boot_ms();
    s->destage.seen_seq = s->journal.next_seq;
    places_look(&s->places);
    destage_kick(s);
}

void destage_init(struct store *s)
{
    s->destage.wait_tail = &s->destage.wait_head;
    s->destage.busy_ms = s->destage.mark_ms = clock_boot_ms();
    s->destage.mark_pos = s->journal.head_pos;
    s->destage.drain_to = UINT64_MAX;
    uv_timer_init(s->loop, &s->destage.timer);
    s->destage.timer.data = s;
    uv_timer_start(&s->destage.timer, on_tick, TICK_MS, TICK_MS);
}

void store_destage_now(struct store *s, struct store_op *op)
{
    if (store_refuses(s, op))
        return;
    op->priv[0] = NULL;
    *s->destage.wait_tail = op;
    s->destage.wait_tail = (struct store_op **)&op->priv[0];
    destage_kick(s);
}
