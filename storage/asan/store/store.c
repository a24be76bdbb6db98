/* Store: open, close, failure. See store.h; README.md has the tour. */
#include <assert.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/log.h"
#include "storage/asan/store/direct.h"

LOG_MODULE("store");

/* ---- completions ---- */

static void stay_awake(uv_idle_t *h) { (void)h; }

void op_later(struct store *s, struct store_op *op, int status, const struct err *e)
{
    struct err *copy = NULL;
    if (status < 0 && e) {
        copy = xmalloc(sizeof *copy);
        *copy = *e;
        copy->code = status;
    }
    op->priv[0] = NULL;
    op->priv[1] = (void *)(intptr_t)status;
    op->priv[2] = copy;
    if (!s->later_head) {
        s->later_tail = &s->later_head;
        uv_idle_start(&s->idle, stay_awake);
    }
    *s->later_tail = op;
    s->later_tail = (struct store_op **)&op->priv[0];
}

static void on_check(uv_check_t *h)
{
    struct store *s = h->data;
    struct store_op *op = s->later_head;
    if (!op)
        return;
    s->later_head = NULL;
    while (op) {
        struct store_op *next = op->priv[0];
        struct err *e = op->priv[2];
        op->done(op, (int)(intptr_t)op->priv[1], e);
        free(e);
        op = next;
    }
    if (s->later_head)
        return;
    uv_idle_stop(&s->idle);
    if (s->closing)
        store_close_check(s);
}

bool store_refuses(struct store *s, struct store_op *op)
{
    if (s->failed)
        op_later(s, op, E_IO, &s->failure);
    else if (s->closing) {
        struct err e;
        op_later(s, op, err_set(&e, E_CANCELED, "the disk is being closed"), &e);
    }
    return s->failed || s->closing;
}

void store_fail(struct store *s, int code, const struct err *e)
{
    if (s->failed)
        return;
    s->failed = true;
    s->journal.failed = true;
    s->failure = *e;
    s->failure.code = code;
    fence_fail_all(s, &s->failure);
    destage_fail_waiting(s, &s->failure);
    if (s->journal.inflight == 0)
        write_fail_pending(s, E_IO, &s->failure);
    direct_fail(s);
    if (s->on_failure)
        s->on_failure(s->on_failure_arg, &s->failure);
}

void store_on_failure(struct store *s, void (*failed)(void *arg, const struct err *e), void *arg)
{
    s->on_failure = failed;
    s->on_failure_arg = arg;
}

/* ---- opening ---- */

static int on_label(void *arg, const struct meta_label *l, struct err *e) { return E_OK; /* checked by label_open() */ }

static int on_number(void *arg, uint64_t number, uint64_t durable_seq, struct err *e)
{
    struct store *s = arg;
    s->journal.meta_number = number;
    s->journal.meta_durable_seq = durable_seq;
    return E_OK;
}

static int on_fences(void *arg, uint64_t number, struct err *e)
{
    struct store *s = arg;
    s->journal.fence_number = number;
    return E_OK;
}

static int on_fence(void *arg, const struct store_shard_id *id, const struct meta_fence *f, struct err *e)
{
    struct store *s = arg;
    struct shard *sh = index_shard(&s->index, id);
    sh->epoch = f->epoch;
    sh->shard_bytes = f->shard_bytes;
    sh->floor_pos = f->floor_pos;
    sh->exists = f->exists;
    return E_OK;
}

static int on_progress(void *arg, const struct store_shard_id *id, const struct meta_progress *p, struct err *e)
{
    struct store *s = arg;
    struct shard *sh = shard_find(&s->index, id);
    char text[ID_LEN + 1];
    if (!sh || !sh->exists)
        return err_set(e, E_CORRUPT, "metadata of %s: progress of unknown " SHARD_FMT, s->capacity, SHARD_ARG(id, text));
    sh->last = sh->durable_last = p->last;
    sh->commit = p->commit;
    return E_OK;
}

static int on_ext(void *arg, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x, struct err *e)
{
    struct store *s = arg;
    struct shard *sh = shard_find(&s->index, id);
    char text[ID_LEN + 1];
    if (!sh || !sh->exists || (uint64_t)index * STORE_EXTENT >= sh->shard_bytes)
        return err_set(e, E_CORRUPT, "metadata of %s: extent %u of " SHARD_FMT " has no shard", s->capacity, index,
                       SHARD_ARG(id, text));
    if (x->place != PLACE_NONE) {
        int rc = places_mark(&s->places, x->place, e);
        if (rc < 0)
            return rc;
    }
    struct ext *t = ext_get(&s->index, sh, index);
    t->has_meta = true;
    t->place = x->place;
    sh->places += x->place != PLACE_NONE;
    memcpy(t->version, x->version, sizeof t->version);
    if (x->place != PLACE_NONE) {
        t->crc = xmalloc(sizeof x->crc);
        memcpy(t->crc, x->crc, sizeof x->crc);
    }
    return E_OK;
}

static int on_aside(void *arg, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e)
{
    return write_replay_aside(arg, id, arrival, a, e);
}

/* So that an older copy of the journal, put back, is known by its end. */
static int mark_journal(struct store *s, struct err *e)
{
    struct meta_batch *b = meta_batch_new();
    meta_put_number(b, s->journal.meta_number, s->journal.durable_seq);
    int rc = meta_commit(s->meta, b, e);
    meta_batch_free(b);
    return rc;
}

static int load(struct store *s, struct err *e)
{
    static const struct meta_visitor v = {on_label, on_number, on_fences, on_fence, on_progress, on_ext, on_aside};
    int rc = places_open(&s->places, s->extents.fd, s->limit_bytes, s->raw_bytes, e);
    if (rc == E_OK)
        rc = meta_load(s->meta, &v, s, e);
    if (rc == E_OK)
        rc = journal_meta_is_new(&s->journal, le64toh(s->journal.sb.meta_number), le64toh(s->journal.sb.fence_number), e);
    if (rc == E_OK)
        rc = journal_replay(&s->journal, &s->index, write_replay, s, e);
    return rc == E_OK && s->journal.durable_seq != s->journal.meta_durable_seq ? mark_journal(s, e) : rc;
}

static void release(struct store *s)
{
    index_free(&s->index);
    dev_batch_close(&s->destage.batch);
    cache_close(s->cache);
    journal_close(&s->journal);
    places_close(&s->places);
    dev_close(&s->extents);
    meta_close(s->meta);
    free(s->fast);
    free(s->capacity);
    free(s);
}

static void before_submit(void *arg)
{
    struct store *s = arg;
    bool was_stuck = s->journal.stuck;
    direct_kick(s);
    journal_kick(&s->journal);
    if (s->journal.stuck && !was_stuck)
        destage_kick(s);
}

/* A cache that cannot be made is no reason to do without the disk. */
static void open_cache(struct store *s, const struct store_conf *conf)
{
    struct err e;
    char *path = xasprintf("%s/cache", conf->fast_path);
    if (conf->cache_bytes < CACHE_MIN)
        unlink(path); /* of an earlier configuration */
    else if (cache_open(path, conf->cache_bytes, &s->uring, &s->cache, &e) < 0)
        log_warn("%s: no read cache: %s", s->capacity, e.msg);
    free(path);
}

int store_open(uv_loop_t *loop, const struct store_conf *conf, struct store **ret_store, struct err *e)
{
    struct store *s = xcalloc(1, sizeof *s);
    s->loop = loop;
    s->fast = xstrdup(conf->fast_path ? conf->fast_path : "");
    s->capacity = xstrdup(conf->capacity_path ? conf->capacity_path : "");
    s->limit_bytes = conf->limit_bytes;
    s->aside_after = conf->aside_after_bytes;
    index_init(&s->index);
    TAILQ_INIT(&s->parts);
    TAILQ_INIT(&s->metaq);
    direct_init(s, conf->direct);
    TAILQ_INIT(&s->journal.pending);
    int rc = label_open(s, conf, e);
    if (rc == E_OK)
        rc = load(s, e);
    if (rc == E_OK)
        rc = dev_batch_open(&s->destage.batch, e);
    if (rc == E_OK)
        rc = uring_open(&s->uring, loop, before_submit, s, e);
    if (rc < 0) {
        release(s);
        return rc;
    }
    s->journal.uring = &s->uring;
    open_cache(s, conf);
    s->journal.durable = write_durable;
    s->journal.on_failed = write_failed;
    s->journal.arg = s;
    uv_idle_init(loop, &s->idle);
    uv_check_init(loop, &s->check);
    s->idle.data = s->check.data = s;
    uv_check_start(&s->check, on_check);
    destage_init(s);
    *ret_store = s;
    return E_OK;
}

void store_usage(const struct store *s, struct store_usage *ret)
{
    const struct places *p = &s->places;
    *ret = (struct store_usage){
        .size_bytes = (p->used + p->reserved + places_left(p)) * STORE_EXTENT,
        .used_bytes = (p->used + p->reserved) * STORE_EXTENT,
        .full = p->full,
        .journal_bytes = s->journal.ring_bytes,
        .journal_used_bytes = journal_used(&s->journal),
        .dirty_bytes = s->index.dirty_bytes,
        .aside_bytes = s->index.aside_bytes,
    };
    cache_usage(s->cache, &ret->cache);
}

/* ---- closing ---- */

static void all_closed(struct store *s)
{
    if (--s->closing_parts > 0)
        return;
    void (*closed)(void *arg) = s->closed;
    void *arg = s->closed_arg;
    release(s);
    closed(arg);
}

static void on_uring_closed(void *arg) { all_closed(arg); }
static void on_handle_closed(uv_handle_t *h) { all_closed(h->data); }

void store_close_check(struct store *s)
{
    if (s->closing_parts || s->reads || s->meta_running || s->destage.running || !TAILQ_EMPTY(&s->metaq) || !direct_idle(s)
        || s->later_head)
        return;
    if (s->journal.stuck && s->journal.inflight == 0) /* no destage any more: there will be no space */
        write_fail_pending(s, E_CANCELED, &(struct err){E_CANCELED, "the disk was closed before there was journal space"});
    if (!journal_idle(&s->journal) || !cache_idle(s->cache) || s->later_head)
        return;
    if (!s->failed) { /* so that the next open can tell that nothing at the end is missing */
        struct fmt_sb sb;
        struct err e;
        if (TAILQ_EMPTY(&s->index.forget)) /* keys that count only once their batch is trimmed must be gone by then */
            journal_trim_scan(&s->journal);
        journal_sb_next(&s->journal, &sb);
        if (mark_journal(s, &e) < 0 || journal_sb_write(&s->journal.dev, &sb, &e) < 0)
            store_fail(s, e.code, &e);
    }
    s->closing_parts = 4;
    uring_close(&s->uring, on_uring_closed, s);
    uv_close((uv_handle_t *)&s->idle, on_handle_closed);
    uv_close((uv_handle_t *)&s->check, on_handle_closed);
    uv_close((uv_handle_t *)&s->destage.timer, on_handle_closed);
}

/* From the loop, so that `done` never runs inside store_close(). */
static void on_close_tick(uv_timer_t *t) { store_close_check(t->data); }

void store_close(struct store *s, void (*done)(void *arg), void *arg)
{
    assert(!s->closing);
    s->closing = true;
    s->closed = done;
    s->closed_arg = arg;
    struct err e;
    err_set(&e, E_CANCELED, "the disk is being closed");
    destage_fail_waiting(s, &e);
    uv_timer_start(&s->destage.timer, on_close_tick, 0, 10);
}
