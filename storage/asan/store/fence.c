/* Fences and drops: shard state that is durable in the metadata before it counts.
 *
 * One RocksDB batch at a time, in a worker; what is asked for meanwhile goes into the next one together. A drop goes alone:
 * it waits until the shard's submitted writes have left the journal's queue and destage stands still, then records the
 * journal position before which records of this shard are void. So replay needs no order between journal and metadata.
 */
#include <assert.h>
#include <stdlib.h>
#include "storage/asan/store/direct.h"

struct meta_op {
    TAILQ_ENTRY(meta_op) entry;
    struct store_op *op;
    struct shard *shard;
    bool drop;
    uint64_t epoch, shard_bytes;
    int status;
    struct err *e;             /* of a refused one */
    struct meta_fence after;
};
TAILQ_HEAD(meta_ops, meta_op);

struct meta_job {
    uv_work_t work;
    struct store *s;
    struct meta_ops ops;
    struct meta_batch *batch;
    bool drop, anything;
    uint64_t number;
    int status;
    struct err e;
};

static void refuse(struct meta_op *m, int code, const struct err *e)
{
    m->status = code;
    m->e = xmalloc(sizeof *m->e);
    *m->e = *e;
}

/* What the shard's fence will be, given those decided before in the same batch. */
static void decide(struct meta_job *job, struct meta_op *m)
{
    struct shard *sh = m->shard;
    struct meta_fence f = {.epoch = sh->epoch, .shard_bytes = sh->shard_bytes, .floor_pos = sh->floor_pos, .exists = sh->exists};
    const struct meta_op *b;
    struct err e;
    char text[ID_LEN + 1];
    TAILQ_FOREACH (b, &job->ops, entry)
        if (b != m && b->shard == sh && b->status == E_OK)
            f = b->after;
    if (m->epoch < f.epoch) {
        refuse(m, err_set(&e, E_STALE, SHARD_FMT ": epoch %llu, installed is %llu", SHARD_ARG(&sh->id, text),
                          (unsigned long long)m->epoch, (unsigned long long)f.epoch), &e);
        return;
    }
    if (!m->drop && f.exists && m->shard_bytes < f.shard_bytes) {
        refuse(m, err_set(&e, E_INVAL, SHARD_FMT ": has %llu bytes, cannot shrink to %llu", SHARD_ARG(&sh->id, text),
                          (unsigned long long)f.shard_bytes, (unsigned long long)m->shard_bytes), &e);
        return;
    }
    f.epoch = m->epoch;
    f.exists = !m->drop;
    f.shard_bytes = m->drop ? 0 : m->shard_bytes;
    if (m->drop)
        f.floor_pos = job->s->journal.head_pos;
    m->after = f;
    meta_put_fence(job->batch, &sh->id, &f);
    if (m->drop)
        meta_delete_shard(job->batch, &sh->id);
    job->anything = true;
}

static void place_gone(void *arg, struct ext *t)
{
    struct store *s = arg;
    if (t->place != PLACE_NONE) {
        cache_forget(s->cache, t->place);
        direct_let_go(s, t, t->place);
    }
    if (t->counted)
        places_unreserve(&s->places, 1);
}

static void apply(struct store *s, const struct meta_op *m)
{
    struct shard *sh = m->shard;
    if (m->status != E_OK)
        return;
    if (m->drop)
        index_drop(&s->index, sh, place_gone, s);
    sh->epoch = m->after.epoch;
    sh->shard_bytes = m->after.shard_bytes;
    sh->floor_pos = m->after.floor_pos;
    sh->exists = m->after.exists;
}

static void finish(struct store *s, struct meta_op *m)
{
    if (m->drop) {
        m->shard->dropping = false;
        s->drops--;
    }
    op_later(s, m->op, m->status, m->e);
    free(m->e);
    free(m);
}

static void in_worker(uv_work_t *w)
{
    struct meta_job *job = container_of(w, struct meta_job, work);
    job->status = job->anything ? meta_commit(job->s->meta, job->batch, &job->e) : E_OK;
}

static void after_worker(uv_work_t *w, int canceled)
{
    struct meta_job *job = container_of(w, struct meta_job, work);
    struct store *s = job->s;
    struct meta_op *m;
    s->meta_running = false;
    while ((m = TAILQ_FIRST(&job->ops))) {
        TAILQ_REMOVE(&job->ops, m, entry);
        if (job->status < 0 && m->status == E_OK)
            refuse(m, job->status, &job->e);
        apply(s, m);
        finish(s, m);
    }
    meta_batch_free(job->batch);
    if (job->status == E_OK && job->anything)
        s->journal.fence_number = job->number;
    if (job->status < 0)
        store_fail(s, job->status, &job->e);
    free(job);
    fence_kick(s);
    destage_kick(s);
    if (s->closing)
        store_close_check(s);
}

void fence_kick(struct store *s)
{
    struct meta_op *m = TAILQ_FIRST(&s->metaq);
    if (!m || s->meta_running || s->failed)
        return;
    if (m->drop && (m->shard->pending || s->destage.running))
        return; /* write_durable() and destage come back here */
    struct meta_job *job = xcalloc(1, sizeof *job);
    job->s = s;
    TAILQ_INIT(&job->ops);
    job->batch = meta_batch_new();
    job->drop = m->drop;
    do {
        TAILQ_REMOVE(&s->metaq, m, entry);
        TAILQ_INSERT_TAIL(&job->ops, m, entry);
        decide(job, m);
        m = TAILQ_FIRST(&s->metaq);
    } while (m && !m->drop && !job->drop);
    job->number = s->journal.fence_number + 1;
    meta_put_fences(job->batch, job->number);
    s->meta_running = true;
    uv_queue_work(s->loop, &job->work, in_worker, after_worker);
}

void fence_fail_all(struct store *s, const struct err *e)
{
    struct meta_op *m;
    while ((m = TAILQ_FIRST(&s->metaq))) {
        TAILQ_REMOVE(&s->metaq, m, entry);
        refuse(m, e->code, e);
        finish(s, m);
    }
}

static void enqueue(struct store *s, struct store_op *op, struct shard *sh, bool drop, uint64_t epoch, uint64_t shard_bytes)
{
    struct meta_op *m = xcalloc(1, sizeof *m);
    *m = (struct meta_op){.op = op, .shard = sh, .drop = drop, .epoch = epoch, .shard_bytes = shard_bytes};
    TAILQ_INSERT_TAIL(&s->metaq, m, entry);
    fence_kick(s);
}

void store_fence(struct store *s, struct store_op *op, const struct store_shard_id *id, uint64_t epoch, uint64_t shard_bytes)
{
    char text[ID_LEN + 1];
    struct err e;
    if (store_refuses(s, op))
        return;
    if (epoch == 0 || shard_bytes == 0 || shard_bytes % 512 || shard_bytes > (uint64_t)UINT32_MAX * STORE_EXTENT) {
        op_later(s, op, err_set(&e, E_INVAL, SHARD_FMT ": fence with epoch %llu, %llu bytes", SHARD_ARG(id, text),
                                (unsigned long long)epoch, (unsigned long long)shard_bytes), &e);
        return;
    }
    struct shard *sh = index_shard(&s->index, id);
    if (sh->exists && sh->epoch == epoch && sh->shard_bytes == shard_bytes && TAILQ_EMPTY(&s->metaq) && !s->meta_running) {
        op_later(s, op, E_OK, NULL);
        return;
    }
    enqueue(s, op, sh, false, epoch, shard_bytes);
}

void store_drop(struct store *s, struct store_op *op, const struct store_shard_id *id, uint64_t epoch)
{
    char text[ID_LEN + 1];
    struct err e;
    if (store_refuses(s, op))
        return;
    struct shard *sh = index_shard(&s->index, id);
    if (epoch < sh->epoch || sh->dropping) {
        bool stale = epoch < sh->epoch;
        op_later(s, op, err_set(&e, stale ? E_STALE : E_BUSY, SHARD_FMT ": drop by epoch %llu, installed is %llu%s",
                                SHARD_ARG(id, text), (unsigned long long)epoch, (unsigned long long)sh->epoch,
                                stale ? "" : ", already being dropped"), &e);
        return;
    }
    sh->dropping = true;
    s->drops++;
    enqueue(s, op, sh, true, epoch, 0);
}
