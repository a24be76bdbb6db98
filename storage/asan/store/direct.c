/* Large writes past the journal: whole extents go once, to a place of their own on the capacity device; when they are durable
 * there, a record that says where (place, a crc32c per block) goes through the journal like any other.
 *
 *   take places -> write the data -> fdatasync -> journal record -> index
 *
 * Two syncs may be on their way: what is written while one runs does not wait for its end; what is written while both run shares
 * the next.
 *
 * Until the record is durable nothing refers to the place: after a power cut it is simply free. From then on replay may need
 * it, so it stays taken until the record is trimmed, even if the extent has moved on (struct placed). Destage has no data to
 * move: it gives the extent the new place in the metadata ("adopts" it), before anything newer of that extent.
 *
 * Order: a shard's records enter the journal in the order of submission. What comes while a large write of its shard is not
 * durable yet waits behind it (shard.held). Other shards do not wait.
 *
 * Not for a capacity device with platters behind a fast device of its own: there the journal takes the writes at the speed of
 * the fast device and destage sorts them. Not when space is short: a place more than the extent has is taken for a while.
 */
#include <assert.h>
#include <stdlib.h>
#include "base/metric.h"
#include "base/obj.h"
#include "storage/asan/store/aside.h"
#include "storage/asan/store/direct.h"

METRIC_COUNTER(m_extents, "cohort_store_direct_extents_total", "Extents of large writes that went past the journal");
METRIC_COUNTER(m_syncs, "cohort_store_direct_syncs_total", "Syncs of the capacity device for large writes");

#define SYNCS_MAX 2u

_Static_assert(FMT_EXTENT == STORE_EXTENT, "a large write's record describes one extent");

struct run { /* neighbouring places, one device write */
    struct dev_io io;
    struct iovec iov;
    struct direct *d;
};

struct direct_sync {
    struct dev_io io;
    struct store *s;
    struct direct_list what;
};

struct direct { /* an operation that holds its shard's records back, or waits behind one */
    struct store *s;
    struct shard *shard;
    struct rec_list recs;
    struct iobuf *data;
    uint8_t *bounce;
    unsigned left;          /* device writes under way */
    bool syncing, ready;    /* ready: its records may go once those before it have */
    TAILQ_ENTRY(direct) held, all, sync;
    unsigned n_runs;
    struct run run[];
};

void direct_init(struct store *s, bool on)
{
    s->direct.on = on;
    TAILQ_INIT(&s->direct.all);
    TAILQ_INIT(&s->direct.written);
}

/* ---- choosing ---- */

static bool all_zero(const uint8_t *p, size_t n) { return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0; }

static bool space_is_short(const struct store *s, uint64_t need)
{
    uint64_t extra = s->index.n_placed + need;
    return s->places.full || extra > DIRECT_PLACES_MAX || extra * 8 > places_left(&s->places);
}

void direct_choose(struct store *s, const struct store_write *w, struct direct_plan *ret)
{
    uint64_t need = 0, first = (w->offset + STORE_EXTENT - 1) / STORE_EXTENT, end = (w->offset + w->length) / STORE_EXTENT;
    ret->n = 0;
    if (!s->direct.on || w->zero || end <= first)
        return;
    ret->first = first;
    for (uint64_t i = first; i < end; i++) {
        const uint8_t *p = w->data->data + w->data_off + (i * STORE_EXTENT - w->offset);
        ret->place[i - first] = all_zero(p, STORE_EXTENT) ? PLACE_NONE : 0;
        need += ret->place[i - first] != PLACE_NONE;
    }
    if (need && (space_is_short(s, need) || places_reserve(&s->places, need, NULL) < 0))
        return;
    ret->n = (unsigned)(end - first);
    for (unsigned i = 0; i < ret->n; i++)
        if (ret->place[i] != PLACE_NONE && !places_take(&s->places, true, &ret->place[i]))
            abort(); /* reserved just now */
}

void direct_give_back(struct store *s, struct direct_plan *plan)
{
    for (unsigned i = 0; i < plan->n; i++)
        if (plan->place[i] != PLACE_NONE)
            places_free(&s->places, plan->place[i]);
    plan->n = 0;
}

struct rec *placed_new(struct store *s, struct shard *sh, struct ext *t, struct store_version v, uint64_t place,
                       const uint32_t crc[EXT_BLOCKS])
{
    struct placed *p = xcalloc(1, sizeof *p);
    p->place = place;
    p->version = v;
    memcpy(p->crc, crc, sizeof p->crc);
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        p->part[c] = rec_new(sh, t, v, (uint64_t)t->index * STORE_EXTENT + c * STORE_CHUNK, STORE_CHUNK, FMT_PLACED);
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        p->part[c]->placed = p;
    s->index.n_placed++;
    return p->part[0];
}

/* What the journal is to hold. */
static void make_block(struct placed *p)
{
    p->block = xaligned(FMT_BLOCK, FMT_BLOCK);
    memset(p->block, 0, FMT_BLOCK);
    p->block->place = htole64(p->place);
    for (unsigned i = 0; i < EXT_BLOCKS; i++)
        p->block->crc[i] = htole32(p->crc[i]);
    p->part[0]->crc = crc32c(0, p->block, FMT_BLOCK);
}

/* ---- writing ---- */

static void release(struct store *s, struct shard *sh)
{
    struct direct *d;
    while ((d = TAILQ_FIRST(&sh->held)) && d->ready) {
        struct rec *r;
        TAILQ_REMOVE(&sh->held, d, held);
        TAILQ_REMOVE(&s->direct.all, d, all);
        while ((r = TAILQ_FIRST(&d->recs))) {
            TAILQ_REMOVE(&d->recs, r, queue);
            journal_append(&s->journal, r);
        }
        iobuf_unref(d->data);
        free(d->bounce);
        free(d);
    }
}

void direct_fail(struct store *s)
{
    struct direct *d = TAILQ_FIRST(&s->direct.all), *next;
    for (; d; d = next) {
        struct rec *r;
        next = TAILQ_NEXT(d, all);
        if (d->left || d->syncing)
            continue; /* the device still has its memory; it comes back here */
        if (d->n_runs && !d->ready)
            TAILQ_REMOVE(&s->direct.written, d, sync);
        TAILQ_REMOVE(&d->shard->held, d, held);
        TAILQ_REMOVE(&s->direct.all, d, all);
        while ((r = TAILQ_FIRST(&d->recs))) {
            TAILQ_REMOVE(&d->recs, r, queue);
            write_fail_rec(s, r, E_IO, &s->failure);
        }
        iobuf_unref(d->data);
        free(d->bounce);
        free(d);
    }
}

/* After a device request has ended. */
static void go_on(struct store *s)
{
    if (s->failed)
        direct_fail(s);
    if (s->closing)
        store_close_check(s);
}

static void device_failed(struct store *s, const char *what, int status)
{
    struct err e;
    int code = err_sys(&e, -status, "%s %s", what, s->extents.path);
    store_fail(s, code, &e);
}

static void on_run_written(struct dev_io *io, int status)
{
    struct direct *d = container_of(io, struct run, io)->d;
    struct store *s = d->s;
    if (--d->left == 0)
        TAILQ_INSERT_TAIL(&s->direct.written, d, sync);
    if (status < 0)
        device_failed(s, "write", status);
    go_on(s);
}

static void on_synced(struct dev_io *io, int status)
{
    struct direct_sync *y = container_of(io, struct direct_sync, io);
    struct store *s = y->s;
    struct direct *d;
    s->direct.syncs--;
    if (status < 0)
        device_failed(s, "sync", status);
    while ((d = TAILQ_FIRST(&y->what))) {
        TAILQ_REMOVE(&y->what, d, sync);
        d->syncing = false;
        d->ready = true;
        if (!s->failed)
            release(s, d->shard);
    }
    OBJ_FREE(y);
    go_on(s);
}

void direct_kick(struct store *s)
{
    struct direct *d;
    if (s->failed || s->direct.syncs == SYNCS_MAX || TAILQ_EMPTY(&s->direct.written))
        return;
    struct direct_sync *y = OBJ_NEW(struct direct_sync);
    y->s = s;
    TAILQ_INIT(&y->what);
    TAILQ_FOREACH (d, &s->direct.written, sync)
        d->syncing = true;
    TAILQ_CONCAT(&y->what, &s->direct.written, sync);
    s->direct.syncs++;
    y->io.done = on_synced;
    metric_add(&m_syncs, 1);
    dev_submit_sync(&s->extents, &s->uring, &y->io);
}

/* The device writes of `d`: neighbours in neighbouring places together. `data`: of shard offset `offset`. */
static void plan_runs(struct direct *d, uint8_t *data, uint64_t offset, unsigned n_placed)
{
    struct rec *r;
    uint8_t *bounce = NULL;
    uint64_t end = 0; /* device offset behind the last run */
    TAILQ_FOREACH (r, &d->recs, queue) {
        if (!r->placed)
            continue;
        uint8_t *p = data + (r->offset - offset);
        if ((uintptr_t)p % DEV_BLOCK != 0) {
            if (!d->bounce)
                d->bounce = bounce = xaligned(DEV_BLOCK, (size_t)n_placed * STORE_EXTENT);
            p = memcpy(bounce, p, STORE_EXTENT);
            bounce += STORE_EXTENT;
        }
        struct run *run = d->n_runs ? &d->run[d->n_runs - 1] : NULL;
        uint64_t at = r->placed->place * STORE_EXTENT;
        cache_forget(d->s->cache, r->placed->place);
        make_block(r->placed);
        if (run && at == end && p == (uint8_t *)run->iov.iov_base + run->iov.iov_len) {
            run->iov.iov_len += STORE_EXTENT;
        } else {
            run = &d->run[d->n_runs++];
            *run = (struct run){.d = d, .iov = {p, STORE_EXTENT}, .io.op.offset = at};
        }
        end = at + STORE_EXTENT;
    }
}

void direct_append(struct store *s, struct shard *sh, struct rec_list *recs, struct iobuf *data, uint8_t *bytes, uint64_t offset)
{
    struct rec *r;
    unsigned n = 0;
    TAILQ_FOREACH (r, recs, queue)
        n += r->placed != NULL;
    if (n == 0 && TAILQ_EMPTY(&sh->held)) {
        while ((r = TAILQ_FIRST(recs))) {
            TAILQ_REMOVE(recs, r, queue);
            journal_append(&s->journal, r);
        }
        return;
    }
    struct direct *d = xcalloc(1, sizeof *d + n * sizeof d->run[0]);
    d->s = s;
    d->shard = sh;
    d->ready = n == 0;
    TAILQ_INIT(&d->recs);
    TAILQ_CONCAT(&d->recs, recs, queue);
    TAILQ_INSERT_TAIL(&sh->held, d, held);
    TAILQ_INSERT_TAIL(&s->direct.all, d, all);
    if (n == 0)
        return;
    d->data = iobuf_ref(data);
    plan_runs(d, bytes, offset, n);
    metric_add(&m_extents, n);
    d->left = d->n_runs;
    for (unsigned i = 0; i < d->n_runs; i++) {
        d->run[i].io.done = on_run_written;
        dev_submit(&s->extents, &s->uring, &d->run[i].io, true, &d->run[i].iov, 1, d->run[i].io.op.offset);
    }
}

bool direct_idle(const struct store *s) { return TAILQ_EMPTY(&s->direct.all) && !s->direct.syncs; }

/* ---- from the record to the extent ---- */

void direct_let_go(struct store *s, struct ext *t, uint64_t place)
{
    if (t->home && t->home->place == place) {
        t->home->home = NULL; /* free once its record is trimmed */
        t->home = NULL;
    } else {
        places_free(&s->places, place);
    }
}

void direct_adopted(struct ext *t, struct placed *p)
{
    if (t->home)
        t->home->home = NULL;
    t->home = p;
    p->home = t;
}

void direct_trimmed(struct store *s)
{
    struct placed *p, *next;
    for (p = TAILQ_FIRST(&s->index.leaving); p; p = next) {
        next = TAILQ_NEXT(p, entry);
        if (p->pos >= s->journal.trim_pos)
            continue;
        assert(p->recs == 0);
        TAILQ_REMOVE(&s->index.leaving, p, entry);
        s->index.n_placed--;
        if (p->home)
            p->home->home = NULL;
        else if (p->aside)
            aside_only(s, p->aside);
        else
            places_free(&s->places, p->place);
        free(p->block);
        free(p);
    }
}

bool direct_wants_destage(const struct store *s)
{
    return s->index.n_placed > DIRECT_PLACES_MAX / 4 || (s->index.n_placed && s->places.full);
}
