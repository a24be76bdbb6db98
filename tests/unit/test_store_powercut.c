/* Store under power cuts. A hook between the store and its files remembers what every write overwrote until the write is
 * durable. At a chosen event the power goes: nothing succeeds any more, and of what was not durable each write is kept,
 * undone or torn by sectors, at random. The disk is then opened again and each shard must hold what some prefix of its
 * operations makes, not shorter than what had been acknowledged. The same script is run with the n-th I/O failing instead: the
 * store then acknowledges nothing more, and opened again it holds such a prefix, too.
 *
 * Large writes go past the journal in most lives, in some not. Writes that are not settled are set aside early.
 *
 * That these checks find something is shown with three bugs that the hook plants: a store that does not flush extents before
 * it commits the metadata, one that acknowledges what its journal does not hold durably, and one that acknowledges large
 * writes whose data are not durable.
 */
#include "test_store_util.h"
#include <errno.h>
#include <pthread.h>
#include "base/fault.h"
#include "storage/asan/store/dev.h"

#define SHARD_BYTES (1ull * MIB)
#define CHUNKS (SHARD_BYTES / STORE_CHUNK)
#define SHARDS 2

/* ---- the power ---- */

struct undo { struct undo *next; int fd; bool journal; uint64_t completed, offset, length; uint8_t *old; };

struct power {
    struct dev_hook hook; /* first */
    pthread_mutex_t lock;
    uint64_t events, cut_at;
    bool off;
    bool fail_only;       /* the event fails, nothing else happens */
    enum { NO_BUG, NO_EXTENT_SYNC, ACK_EARLY, NO_DIRECT_SYNC } bug;
    pthread_t loop;
    unsigned seed;
    uint64_t clock;       /* counts completed writes; an undo's `completed` is its own, 0: under way */
    struct undo *undo;    /* newest first */
};

static int event(struct power *p)
{
    if (p->off)
        return -EIO;
    if (++p->events == p->cut_at && p->fail_only)
        return -EIO;
    if (p->events == p->cut_at)
        p->off = true;
    return p->off ? -EIO : 0;
}

static int on_write(struct dev_hook *h, const struct dev *d, uint64_t offset, uint64_t length, void **ret_token)
{
    struct power *p = (struct power *)h;
    pthread_mutex_lock(&p->lock);
    bool was_off = p->off, fails = event(p) < 0 && p->fail_only;
    struct undo *u = NULL;
    if (!was_off && !fails) { /* the write during which the power goes is carried out, for crash() to tear */
        u = calloc(1, sizeof *u);
        *u = (struct undo){.next = p->undo, .fd = open(d->path, O_RDWR | O_CLOEXEC), .journal = d->dsync, .offset = offset,
                           .length = length, .old = calloc(1, length)};
        assert_true(u->fd >= 0);
        assert_true(pread(u->fd, u->old, length, (off_t)offset) >= 0);
        p->undo = u;
    }
    pthread_mutex_unlock(&p->lock);
    *ret_token = u;
    return was_off || fails ? -EIO : 0;
}

static void undo_free(struct undo *u)
{
    close(u->fd);
    free(u->old);
    free(u);
}

/* One write is durable, or those of a file that had completed by `until`, when a sync of it began. */
static void forget(struct power *p, struct undo *only, bool journal, uint64_t until)
{
    struct undo **at = &p->undo, *u;
    while ((u = *at)) {
        if (only ? u == only : u->journal == journal && u->completed && u->completed <= until) {
            *at = u->next;
            undo_free(u);
        } else {
            at = &u->next;
        }
    }
}

static int on_written(struct dev_hook *h, const struct dev *d, void *token, int res)
{
    struct power *p = (struct power *)h;
    struct undo *u = token;
    pthread_mutex_lock(&p->lock);
    if (p->off)
        res = -EIO;
    else if (res == 0 && d->dsync && p->bug != ACK_EARLY)
        forget(p, u, false, 0);
    else
        u->completed = ++p->clock;
    pthread_mutex_unlock(&p->lock);
    return res;
}

static int on_sync(struct dev_hook *h, const struct dev *d, bool done, void **ret_token)
{
    struct power *p = (struct power *)h;
    pthread_mutex_lock(&p->lock);
    int rc = done ? (p->off ? -EIO : 0) : event(p);
    bool on_loop = pthread_equal(pthread_self(), p->loop); /* large writes; destage syncs in a worker */
    if (!done)
        *ret_token = (void *)(uintptr_t)p->clock;
    else if (rc == 0 && !(p->bug == NO_EXTENT_SYNC && !on_loop && !d->dsync) && !(p->bug == NO_DIRECT_SYNC && on_loop && !d->dsync))
        forget(p, NULL, d->dsync, (uintptr_t)*ret_token);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static int on_meta(struct dev_hook *h, bool done)
{
    struct power *p = (struct power *)h;
    pthread_mutex_lock(&p->lock);
    int rc = event(p);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static void power_on(struct power *p, uint64_t cut_at, unsigned seed)
{
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    p->hook = (struct dev_hook){on_write, on_written, on_sync, on_meta};
    p->cut_at = cut_at;
    p->seed = seed;
    p->loop = pthread_self();
    dev_hook = &p->hook;
}

/* What the platters hold after the cut. */
static void crash(struct power *p)
{
    dev_hook = NULL;
    while (p->fail_only && p->undo) { /* no cut: what was written stays */
        struct undo *u = p->undo;
        p->undo = u->next;
        undo_free(u);
    }
    while (p->undo) {
        struct undo *u = p->undo;
        int how = rand_r(&p->seed) % 3;
        for (uint64_t at = 0; at < u->length && how != 0; at += 512)
            if (how == 1 || rand_r(&p->seed) % 2)
                assert_int_equal(pwrite(u->fd, u->old + at, 512, (off_t)(u->offset + at)), 512);
        fsync(u->fd); /* the store reads with O_DIRECT */
        p->undo = u->next;
        undo_free(u);
    }
    pthread_mutex_destroy(&p->lock);
}

/* ---- the model ---- */

enum kind { WRITE, COPY };
struct op {
    enum kind kind;
    int shard;
    uint64_t offset, seed; /* seed 0: zeroes */
    uint32_t length;
    struct store_version version;
    bool acked, done;
    struct store_write w;
    struct store_copy c;
    struct model *m;
};

struct state { uint8_t mem[SHARDS][SHARD_BYTES]; struct store_version version[SHARDS][CHUNKS], last[SHARDS]; };

struct model {
    struct disk d;
    struct state *base, *work;
    struct op **log;      /* since `base`, in order of submission */
    size_t n, outstanding;
    uint64_t epoch[SHARDS], next_seq[SHARDS], commit[SHARDS];
    unsigned seed;
    struct power power;
    bool dropping;        /* shard 1 may or may not be gone */
    bool expect_bug, found;
};

static struct store_shard_id sid(int i) { return shard_id(9, (uint32_t)i); }

static void apply(struct state *st, const struct op *o)
{
    uint8_t *p = st->mem[o->shard] + o->offset;
    memset(p, 0, o->length);
    if (o->seed)
        fill(p, o->length, o->seed);
    for (uint64_t c = o->offset / STORE_CHUNK; c <= (o->offset + o->length - 1) / STORE_CHUNK; c++)
        st->version[o->shard][c] = o->version;
    if (o->kind == WRITE)
        st->last[o->shard] = o->version;
}

static void op_done(struct store_op *op, int status, const struct err *e)
{
    struct op *o = op->arg;
    o->done = true;
    o->acked = status == E_OK;
    if (status != E_OK && status != E_IO)
        fail_msg("operation: %d %s", status, e ? e->msg : "");
    o->m->outstanding--;
}

static void log_clear(struct model *m)
{
    for (size_t i = 0; i < m->n; i++)
        free(m->log[i]);
    m->n = 0;
}

static void settle(struct model *m)
{
    while (m->outstanding)
        uv_run(&m->d.loop, UV_RUN_ONCE);
}

/* Everything is acknowledged: it is the new base. */
static void rebase(struct model *m)
{
    settle(m);
    for (size_t i = 0; i < m->n; i++) {
        if (!m->log[i]->acked)
            return;
    }
    for (size_t i = 0; i < m->n; i++)
        apply(m->base, m->log[i]);
    log_clear(m);
}

static void submit(struct model *m, struct op *o)
{
    struct iobuf *b = o->seed ? iobuf_new(o->length) : NULL;
    uint32_t crc = 0;
    o->m = m;
    m->log = realloc(m->log, (m->n + 1) * sizeof *m->log);
    m->log[m->n++] = o;
    m->outstanding++;
    if (b) {
        fill(b->data, o->length, o->seed);
        crc = crc32c(0, b->data, o->length);
    }
    if (o->kind == WRITE) {
        o->w = (struct store_write){.op = {op_done, o}, .shard = sid(o->shard), .version = o->version,
                                    .commit_seq = m->commit[o->shard], .offset = o->offset, .length = o->length,
                                    .zero = !b, .crc = crc, .data = b};
        store_write(m->d.s, &o->w);
    } else {
        o->c = (struct store_copy){.op = {op_done, o}, .shard = sid(o->shard), .chunk = o->offset / STORE_CHUNK,
                                   .version = o->version, .zero = !b, .crc = crc, .data = b};
        store_copy(m->d.s, &o->c);
    }
    iobuf_unref(b);
}

static unsigned rnd(struct model *m, unsigned n) { return (unsigned)rand_r(&m->seed) % n; }

static void random_op(struct model *m)
{
    struct op *o = calloc(1, sizeof *o);
    static const uint32_t most[] = {512, 4096, 4096, 16384, 65536, 262144};
    o->shard = (int)rnd(m, SHARDS);
    o->seed = rnd(m, 6) ? (uint64_t)rand_r(&m->seed) + 1 : 0;
    if (rnd(m, 10) == 0) {
        o->kind = COPY;
        o->offset = rnd(m, CHUNKS) * STORE_CHUNK;
        o->length = STORE_CHUNK;
        o->version = (struct store_version){rnd(m, 5) + 1, rnd(m, 100000) + 1};
    } else {
        uint32_t unit = rnd(m, 3) ? 4096 : 512, max = most[rnd(m, 6)];
        o->version = (struct store_version){m->epoch[o->shard], ++m->next_seq[o->shard]};
        if (rnd(m, 8) == 0) { /* whole extents, at times with something before and behind them */
            uint32_t before = rnd(m, 2) * 4096 * rnd(m, 64), first = 1 + rnd(m, 2);
            o->offset = first * STORE_EXTENT - before;
            o->length = before + STORE_EXTENT * (1 + rnd(m, 2)) + rnd(m, 2) * 4096 * rnd(m, 64);
            if (o->offset + o->length > SHARD_BYTES)
                o->length = (uint32_t)(SHARD_BYTES - o->offset);
            submit(m, o);
            return;
        }
        o->length = (rnd(m, max / 512) + 1) * 512;
        o->length = (o->length + unit - 1) / unit * unit;
        o->offset = rnd(m, (unsigned)((SHARD_BYTES - o->length) / unit + 1)) * unit;
        if (rnd(m, 2)) /* a hot spot: the same blocks again and again */
            o->offset %= 32768;
        if (rnd(m, 3) == 0) /* where the large writes are */
            o->offset = STORE_EXTENT + o->offset % (2 * STORE_EXTENT);
        if (o->offset + o->length > SHARD_BYTES)
            o->offset = SHARD_BYTES - o->length;
    }
    submit(m, o);
}

static bool same(const struct model *m, const struct state *got, int i)
{
    return memcmp(m->work->mem[i], got->mem[i], SHARD_BYTES) == 0
           && memcmp(m->work->version[i], got->version[i], sizeof got->version[i]) == 0
           && store_version_cmp(m->work->last[i], got->last[i]) == 0;
}

/* What a failure needs to be understood. */
static void explain(const struct model *m, const struct state *got)
{
    for (int i = 0; i < SHARDS; i++) {
        printf("shard %d: last %llu.%llu, model %llu.%llu\n", i, (unsigned long long)got->last[i].epoch,
               (unsigned long long)got->last[i].seq, (unsigned long long)m->work->last[i].epoch,
               (unsigned long long)m->work->last[i].seq);
        for (unsigned c = 0; c < CHUNKS; c++) {
            const struct store_version *a = &got->version[i][c], *b = &m->work->version[i][c];
            unsigned first = 0, n = 0;
            for (unsigned x = c * STORE_CHUNK; x < (c + 1) * STORE_CHUNK; x += 512)
                if (memcmp(got->mem[i] + x, m->work->mem[i] + x, 512) != 0 && n++ == 0)
                    first = x;
            if (n || store_version_cmp(*a, *b) != 0)
                printf("  chunk %u: version %llu.%llu, model %llu.%llu; %u sectors differ from %u on\n", c,
                       (unsigned long long)a->epoch, (unsigned long long)a->seq, (unsigned long long)b->epoch,
                       (unsigned long long)b->seq, n, first);
        }
    }
    for (size_t k = 0; k < m->n; k++)
        printf("  op %zu: %s shard %d %llu+%u version %llu.%llu%s%s\n", k, m->log[k]->kind == COPY ? "copy" : "write",
               m->log[k]->shard, (unsigned long long)m->log[k]->offset, m->log[k]->length,
               (unsigned long long)m->log[k]->version.epoch, (unsigned long long)m->log[k]->version.seq,
               m->log[k]->seed ? "" : " zero", m->log[k]->acked ? " acked" : "");
}

static void look(struct model *m, struct state *got)
{
    struct store_shard_info info;
    memset(got, 0, sizeof *got);
    for (int i = 0; i < SHARDS; i++) {
        struct store_shard_id id = sid(i);
        struct wait w;
        store_shard_info(m->d.s, &id, &info);
        got->last[i] = info.last;
        if (!info.exists)
            continue;
        int rc = do_read(&m->d, id, 0, SHARD_BYTES, got->mem[i]);
        m->found = m->found || (m->expect_bug && rc != E_OK);
        if (rc != E_OK && !m->expect_bug)
            fail_msg("read after the cut: %d %s", rc, m->d.e.msg);
        struct store_versions q = {.shard = id, .count = CHUNKS, .ret = got->version[i]};
        op_init(&q.op, &w);
        store_versions(m->d.s, &q);
        assert_int_equal(wait_for(&m->d, &w), E_OK);
    }
}

/* Do later writes of operations [0, prefix) cover all of operation `k`? Then it may have left the journal once it was committed,
 * though the mark that says so is not durable yet: owner change asks for ranges, and those are in the newer ones. */
static bool covered_later(const struct model *m, size_t k, size_t prefix)
{
    const struct op *o = m->log[k];
    uint64_t at = o->offset;
    while (at < o->offset + o->length) {
        uint64_t reach = at;
        for (size_t j = k + 1; j < prefix; j++) {
            const struct op *b = m->log[j];
            if (b->kind == WRITE && b->shard == o->shard && b->offset <= at && b->offset + b->length > reach)
                reach = b->offset + b->length;
        }
        if (reach == at)
            return false;
        at = reach;
    }
    return true;
}

/* Every write above the known mark must be in the tail, with its bytes. */
static void check_tail(struct model *m, int i, size_t prefix)
{
    struct store_shard_id id = sid(i);
    struct store_shard_info info;
    struct store_tail_rec *t;
    store_shard_info(m->d.s, &id, &info);
    assert_true(info.commit.epoch < m->epoch[i] || info.commit.seq <= m->commit[i]);
    size_t n = store_tail(m->d.s, &id, &t);
    for (size_t k = 1; k < n; k++)
        assert_true(store_version_cmp(t[k - 1].version, t[k].version) <= 0);
    for (size_t k = 0; k < prefix; k++) {
        const struct op *o = m->log[k];
        uint32_t found = 0;
        if (o->kind != WRITE || o->shard != i || store_version_cmp(o->version, info.commit) <= 0)
            continue;
        uint8_t *want = calloc(1, o->length), *got = malloc(o->length);
        if (o->seed)
            fill(want, o->length, o->seed);
        for (size_t j = 0; j < n; j++) {
            if (store_version_cmp(t[j].version, o->version) != 0)
                continue;
            struct store_record_read q = {.shard = id, .version = t[j].version, .offset = t[j].offset, .dst = got,
                                          .length = t[j].length};
            struct wait w;
            op_init(&q.op, &w);
            store_record_read(m->d.s, &q);
            assert_int_equal(wait_for(&m->d, &w), E_OK);
            assert_memory_equal(got, want + (t[j].offset - o->offset), t[j].length);
            found += t[j].length;
        }
        if (found != o->length && !covered_later(m, k, prefix))
            fail_msg("write %llu.%llu: %u of %u bytes are in the tail", (unsigned long long)o->version.epoch,
                     (unsigned long long)o->version.seq, found, o->length);
        free(want);
        free(got);
    }
    free(t);
}

/* Shard `i` must be what some prefix of its operations makes, not shorter than what was acknowledged. False: it is not, and that
 * was expected. */
static bool check_shard(struct model *m, int i, const struct state *got, const char *what)
{
    size_t least = 0, k;
    for (k = 0; k < m->n; k++)
        if (m->log[k]->acked && m->log[k]->shard == i)
            least = k + 1;
    for (k = 0; k < least; k++)
        if (m->log[k]->shard == i)
            apply(m->work, m->log[k]);
    for (; !same(m, got, i); k++) {
        while (k < m->n && m->log[k]->shard != i)
            k++;
        if (k == m->n && m->expect_bug)
            return false;
        if (k == m->n) {
            explain(m, got);
            fail_msg("%s: shard %d: no prefix of %zu..%zu operations matches", what, i, least, m->n);
        }
        apply(m->work, m->log[k]);
    }
    check_tail(m, i, k);
    return true;
}

/* The disk was opened after a cut: which prefix is each shard? It becomes the base. */
static void check(struct model *m, const char *what)
{
    struct state *got = malloc(sizeof *got);
    look(m, got);
    struct store_shard_info info;
    struct store_shard_id last = sid(SHARDS - 1);
    store_shard_info(m->d.s, &last, &info);
    if (m->dropping && !info.exists) {
        memset(m->base->mem[SHARDS - 1], 0, SHARD_BYTES);
        memset(m->base->version[SHARDS - 1], 0, sizeof m->base->version[0]);
        m->base->last[SHARDS - 1] = (struct store_version){0, 0};
    }
    *m->work = *m->base;
    for (int i = 0; i < SHARDS; i++) {
        if (!check_shard(m, i, got, what)) {
            m->found = true;
            free(got);
            return;
        }
    }
    *m->base = *got;
    for (int i = 0; i < SHARDS; i++)
        if (got->last[i].epoch == m->epoch[i] && got->last[i].seq < m->next_seq[i])
            m->next_seq[i] = got->last[i].seq;
    for (int i = 0; i < SHARDS; i++)
        if (m->commit[i] > m->next_seq[i])
            m->commit[i] = m->next_seq[i];
    log_clear(m);
    free(got);
}

static void ensure_shards(struct model *m)
{
    for (int i = 0; i < SHARDS; i++) {
        struct store_shard_id id = sid(i);
        struct store_shard_info info;
        store_shard_info(m->d.s, &id, &info);
        if (info.exists && info.epoch == m->epoch[i])
            continue;
        assert_true(info.epoch <= m->epoch[i]);
        if (do_fence(&m->d, id, m->epoch[i], SHARD_BYTES) != E_OK)
            return;
    }
}

/* A new owner: fences, and rewrites nothing (the tail stays what it is). */
static void raise_epoch(struct model *m, int i)
{
    rebase(m);
    m->epoch[i]++;
    m->next_seq[i] = 0;
    m->commit[i] = 0;
    ensure_shards(m);
}

static void drop_shard(struct model *m, int i)
{
    rebase(m);
    if (m->power.off)
        return;
    int rc = do_drop(&m->d, sid(i), m->epoch[i]);
    bool gone = rc == E_OK;
    if (!gone) { /* who knows; ask after the cut */
        disk_close(&m->d);
        crash(&m->power);
        disk_must_open(&m->d);
        struct store_shard_id id = sid(i);
        struct store_shard_info info;
        store_shard_info(m->d.s, &id, &info);
        gone = !info.exists;
    }
    if (gone) {
        memset(m->base->mem[i], 0, SHARD_BYTES);
        memset(m->base->version[i], 0, sizeof m->base->version[i]);
        m->base->last[i] = (struct store_version){0, 0};
        m->next_seq[i] = m->commit[i] = 0;
    }
    if (rc != E_OK) {
        check(m, "drop");
        power_on(&m->power, rnd(m, 120) + 1, m->seed);
    }
    ensure_shards(m);
}

static void advance_commit(struct model *m)
{
    settle(m);
    for (size_t k = 0; k < m->n; k++)
        if (!m->log[k]->acked)
            return;
    for (int i = 0; i < SHARDS; i++) {
        uint64_t to = m->next_seq[i] > 3 ? m->next_seq[i] - rnd(m, 3) : 0;
        struct store_shard_id id = sid(i);
        if (to > m->commit[i])
            m->commit[i] = to;
        if (m->commit[i])
            store_commit_mark(m->d.s, &id, (struct store_version){m->epoch[i], m->commit[i]});
    }
}

static void step(struct model *m)
{
    unsigned what = rnd(m, 200);
    if (what < 150)
        random_op(m);
    else if (what < 175)
        settle(m);
    else if (what < 190)
        advance_commit(m);
    else if (what < 198)
        do_destage(&m->d);
    else if (what == 198)
        raise_epoch(m, (int)rnd(m, SHARDS));
    else
        drop_shard(m, (int)rnd(m, SHARDS));
    while (m->outstanding >= 12)
        uv_run(&m->d.loop, UV_RUN_ONCE);
}

static void model_init(struct model *m, unsigned seed)
{
    memset(m, 0, sizeof *m);
    disk_init(&m->d);
    m->d.conf.direct = true;
    m->d.conf.aside_after_bytes = 4096; /* at once, so to speak */
    m->base = calloc(1, sizeof *m->base);
    m->work = calloc(1, sizeof *m->work);
    m->seed = seed;
    for (int i = 0; i < SHARDS; i++)
        m->epoch[i] = 1;
}

static void model_free(struct model *m)
{
    dev_hook = NULL;
    disk_free(&m->d);
    log_clear(m);
    free(m->log);
    free(m->base);
    free(m->work);
}

/* Many lives of one disk, each ended by a cut at a random event; the ring wraps several times. */
static void random_lives(void **state)
{
    const char *env = getenv("COHORT_TEST_SEED"), *lives_env = getenv("COHORT_TEST_LIVES");
    unsigned seed = env ? (unsigned)atoi(env) : 1, lives = lives_env ? (unsigned)atoi(lives_env) : 60;
    struct model *m = malloc(sizeof *m);
    model_init(m, seed);
    for (unsigned life = 0; life < lives; life++) {
        char what[64];
        snprintf(what, sizeof what, "seed %u, life %u", seed, life);
        power_on(&m->power, rnd(m, 120) + 1, m->seed);
        m->d.conf.direct = rnd(m, 6) > 0;
        m->d.conf.aside_after_bytes = rnd(m, 2) ? 4096 : 256 << 10;
        int rc = disk_open(&m->d);
        if (rc == E_OK) {
            ensure_shards(m);
            while (!m->power.off && m->n < 3000)
                step(m);
            settle(m);
            if (rnd(m, 8) == 0 && !m->power.off)
                rebase(m);
            disk_close(&m->d);
        } else if (!m->power.off) {
            fail_msg("%s: open: %d %s", what, rc, m->d.e.msg);
        }
        crash(&m->power);
        rc = disk_open(&m->d);
        if (rc != E_OK)
            fail_msg("%s: open after the cut: %d %s", what, rc, m->d.e.msg);
        check(m, what);
        disk_close(&m->d);
    }
    model_free(m);
    free(m);
}

static void script_write(struct model *m, enum kind kind, int shard, uint32_t offset, uint32_t length, uint64_t seed)
{
    struct op *o = calloc(1, sizeof *o);
    *o = (struct op){.kind = kind, .shard = shard, .offset = offset, .length = length, .seed = seed,
                     .version = {m->epoch[shard], 1000}};
    if (kind == WRITE)
        o->version.seq = ++m->next_seq[shard];
    submit(m, o);
}

/* The whole cycle on a new disk: formatting, fencing, writing in batches, destaging in place and copied, zeroes that free an
 * extent, copies, large writes, trimming, closing and replay, a new epoch, a drop. */
static void script(struct model *m)
{
    static const struct { uint32_t offset, length; uint64_t seed; } w[] = {
        {0, 4096, 1}, {4096, 8192, 2}, {512, 512, 3}, {61440, 8192, 4}, {262144, 262144, 5}, {0, 4096, 0}, {8192, 4096, 6},
        {20992, 1024, 7}, /* half a block: its old half is read */
        {520192, 270336, 8}, /* one extent past the journal, a block before and one behind */
        {528384, 512, 9}, {524288 + 65536, 65536, 10}, {655360, 8192, 0},
    };
    ensure_shards(m);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof w / sizeof *w; i++) {
            script_write(m, WRITE, 0, w[i].offset, w[i].length, w[i].seed ? w[i].seed + (uint64_t)round : 0);
            if (i % 3 == 2)
                settle(m);
        }
        if (round == 1)
            script_write(m, WRITE, 0, 262144, 262144, 0);
        script_write(m, COPY, SHARDS - 1, 65536u * (uint32_t)round, STORE_CHUNK, round == 2 ? 0 : 9);
        settle(m);
        if (!m->power.off)
            advance_commit(m);
        do_destage(&m->d);
    }
    script_write(m, WRITE, SHARDS - 1, 0, 4096, 11); /* stays in the journal over the restart */
    settle(m);
    disk_close(&m->d);
    if (m->power.off || disk_open(&m->d) != E_OK)
        return;
    for (size_t k = 0; k < m->n; k++)
        if (!m->log[k]->acked)
            return; /* failed before: what the disk holds is for check() to find out */
    raise_epoch(m, 0);
    if (m->n)
        return;
    script_write(m, WRITE, 0, 4096, 4096, 12);
    rebase(m);
    if (m->n)
        return;
    m->dropping = true;
    (void)do_drop(&m->d, sid(SHARDS - 1), m->epoch[SHARDS - 1]);
}

/* One run with something happening at event `n`; false once the script gets through without it. */
static bool run_script(unsigned n, bool fail_only, int bug, bool *ret_found)
{
    struct model *m = malloc(sizeof *m);
    char what[64];
    snprintf(what, sizeof what, "%s at event %u", fail_only ? "failure" : "cut", n);
    model_init(m, n);
    power_on(&m->power, n, n);
    m->power.fail_only = fail_only;
    m->power.bug = bug;
    m->expect_bug = bug != NO_BUG;
    if (disk_open(&m->d) == E_OK)
        script(m);
    disk_close(&m->d);
    bool happened = m->power.events >= n;
    crash(&m->power);
    int rc = disk_open(&m->d);
    if (rc != E_OK && !m->expect_bug)
        fail_msg("%s: open afterwards: %d %s", what, rc, m->d.e.msg);
    m->found = rc != E_OK;
    if (rc == E_OK)
        check(m, what);
    *ret_found = m->found;
    model_free(m);
    free(m);
    return happened;
}

static void every_cut(void **state)
{
    bool found;
    unsigned n = 1;
    while (run_script(n, false, NO_BUG, &found))
        n++;
    printf("power cut at each of %u events\n", n - 1);
    assert_true(n > 60);
}

static void every_failure(void **state)
{
    bool found;
    unsigned n = 1;
    while (run_script(n, true, NO_BUG, &found))
        n++;
    printf("failure of each of %u events\n", n - 1);
    assert_true(n > 60);
}

/* Reads fail one after the other: in replay, in destage, for a guest. The disk is whole afterwards. */
static void every_read_failure(void **state)
{
    static const char *const point[] = {"journal.read", "extents.read"};
    for (size_t i = 0; i < sizeof point / sizeof *point; i++) {
        bool through = false;
        unsigned n;
        for (n = 1; !through; n++) {
            struct model *m = malloc(sizeof *m);
            struct err e;
            char spec[64];
            model_init(m, n);
            snprintf(spec, sizeof spec, "%s=fail@%u", point[i], n);
            assert_int_equal(fault_arm(spec, &e), E_OK);
            if (disk_open(&m->d) == E_OK)
                script(m);
            disk_close(&m->d);
            through = fault_hits(point[i]) < n;
            fault_disarm_all();
            disk_must_open(&m->d);
            check(m, spec);
            model_free(m);
            free(m);
        }
        printf("failure of each of %u reads at %s\n", n - 2, point[i]);
        assert_true(n > 2);
    }
}

static void planted_bugs(void **state)
{
    static const int bug[] = {NO_EXTENT_SYNC, ACK_EARLY, NO_DIRECT_SYNC};
    for (size_t i = 0; i < sizeof bug / sizeof *bug; i++) {
        bool found = false;
        unsigned n = 22; /* before that it is formatting */
        while (!found && run_script(n, false, bug[i], &found))
            n++;
        printf("planted bug %d: found by the cut at event %u\n", bug[i], n);
        assert_true(found);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut),
        cmocka_unit_test(every_failure),
        cmocka_unit_test(every_read_failure),
        cmocka_unit_test(planted_bugs),
        cmocka_unit_test(random_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
