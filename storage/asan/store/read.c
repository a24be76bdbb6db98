/* Reads: dirty segments from the journal, the rest from extents, everything checked against its crc32c.
 *
 * A read plans synchronously: what it copies from where, with places and checksums as they are now. Journal records are
 * pinned, so they stay. Extents are not: destage may rewrite or reuse a place meanwhile. That shows as a checksum mismatch
 * on an extent whose `gen` has changed or that is being destaged; the read then plans anew. On an unchanged extent it is
 * damage. Whole blocks that lie in the caller's buffer as the device wants them are read right there, and their checksums are put
 * together to that of the answer; the rest is read aside and copied. Blocks of extents come from the read cache if it has them all (cache.h); a mismatch there sends the read to the
 * capacity device.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/metric.h"
#include "base/obj.h"
#include "storage/asan/store/priv.h"

METRIC_HISTOGRAM(m_read, "cohort_store_read_seconds", "Time of one read, journal and extents");
METRIC_COUNTER(m_corrupt, "cohort_store_read_corrupt_total", "Reads that found a checksum mismatch");
METRIC_COUNTER(m_again, "cohort_store_read_raced_total", "Reads planned anew because destage moved what they read");

struct copy { struct copy *next; uint32_t from, length; uint8_t *to; };

#define CACHE_READ_MAX (128u << 10) /* longer reads are streams: the capacity device is good at them */

struct part { /* of an extent's piece, read from the cache: within one line of it */
    struct dev_io io;
    struct iovec iov;
    struct piece *piece;
    uint32_t first, count; /* blocks of the extent */
    uint64_t offset;
};

struct piece { /* one device read */
    struct read *read;
    struct piece *next;
    struct dev_io io;
    struct iovec iov;
    struct copy *copies;
    struct rec *rec;          /* in the journal or set aside, pinned; else a place of the capacity device: */
    struct rec *pin;          /* the place of a large write: it stays what it is, whatever becomes of the extent */
    uint32_t index, first, count; /* blocks */
    uint64_t gen, place, used;    /* bit per block that is copied from */
    uint32_t crc[EXT_BLOCKS];
    struct part *parts;           /* not NULL: from the cache */
    uint32_t n_parts;
    bool cache_failed;
    bool good;                    /* every block was checked as it came */
    bool in_dst;                  /* iov is in the caller's buffer: nothing to copy */
    struct iobuf *buf;            /* else it is here */
};

struct read {
    struct store *s;
    struct store_op *op;
    struct store_shard_id id;
    uint64_t offset;
    uint32_t length;
    uint8_t *dst;
    uint32_t *ret_crc;
    struct piece *pieces;
    unsigned left;
    int status;
    bool lost;                    /* a block of it was given up, the one at lost_at */
    uint64_t lost_at;
    bool no_cache;                /* it had something wrong, or the caller does not want it */
    uint64_t started_ns;
    uint32_t n_crc, crc[];        /* per block of the answer, as far as they are known: from the first on, or none */
};

static void start(struct read *r);

static void drop_pieces(struct read *r)
{
    struct piece *p;
    while ((p = r->pieces)) {
        struct copy *c;
        r->pieces = p->next;
        struct rec *pinned = p->rec ? p->rec : p->pin;
        if (pinned) {
            pinned->pins--;
            rec_settle(&r->s->index, pinned);
        }
        while ((c = p->copies)) {
            p->copies = c->next;
            OBJ_FREE(c);
        }
        iobuf_unref(p->buf);
        free(p->parts);
        OBJ_FREE(p);
    }
}

static uint32_t whole_crc(const struct read *r)
{
    uint32_t crc = 0;
    if (!r->n_crc || r->n_crc * (uint64_t)FMT_BLOCK != r->length)
        return crc32c(0, r->dst, r->length);
    for (uint32_t i = 0; i < r->n_crc; i++)
        crc = crc32c_join(crc, r->crc[i], FMT_BLOCK);
    return crc;
}

static size_t read_bytes(uint32_t length) /* of a struct read with room for its checksums */
{
    const struct read *r;
    return sizeof *r + (length <= STORE_WRITE_MAX ? length / FMT_BLOCK * sizeof r->crc[0] : 0);
}

static void finish(struct read *r, int status, const struct err *e)
{
    struct store *s = r->s;
    struct store_op *op = r->op;
    drop_pieces(r);
    if (status == E_OK)
        *r->ret_crc = whole_crc(r);
    metric_observe_ns(&m_read, clock_boot_ns() - r->started_ns);
    obj_free(r, read_bytes(r->length));
    s->reads--;
    op_later(s, op, status, e);
    if (s->closing)
        store_close_check(s);
}

static int damaged(const struct read *r, const char *why, uint64_t offset, struct err *e)
{
    char text[ID_LEN + 1];
    metric_add(&m_corrupt, 1);
    return err_set(e, E_CORRUPT, SHARD_FMT " offset %llu: %s", SHARD_ARG(&r->id, text), (unsigned long long)offset, why);
}

/* Checked blocks of the capacity device go to the cache, if they are still what the extent is. */
static void keep(const struct read *r, const struct piece *p, const struct ext *t)
{
    if (!r->s->cache || p->parts || p->pin || r->length > CACHE_READ_MAX || t->gen != p->gen || t->destaging)
        return;
    for (uint32_t b = p->first, n; b < p->first + p->count; b += n) {
        for (n = 0; b + n < p->first + p->count && p->used >> (b + n) & 1; n++)
            ;
        if (n)
            cache_keep(r->s->cache, p->place, b, n, (uint8_t *)p->iov.iov_base + (size_t)(b - p->first) * FMT_BLOCK);
        else
            n = 1;
    }
}

/* Is the piece's block `i` what was planned, or not asked for? */
static bool block_matches(const struct piece *p, uint32_t i)
{
    uint32_t b = p->first + i;
    return !(p->used >> b & 1) || crc32c(0, (const uint8_t *)p->iov.iov_base + (size_t)i * FMT_BLOCK, FMT_BLOCK) == p->crc[b];
}

/* 0, an error, or 1: raced with destage, or the cache was wrong. */
static int check_extent(struct read *r, struct piece *p, struct err *e)
{
    if (p->cache_failed) {
        r->no_cache = true;
        cache_bad(r->s->cache, p->place, p->first, true);
        return 1;
    }
    const struct shard *sh = shard_find(&r->s->index, &r->id);
    const struct ext *t = sh ? ext_find(&r->s->index, sh, p->index) : NULL;
    for (uint32_t i = 0; i < p->count && !p->good; i++) {
        uint32_t b = p->first + i;
        if (block_matches(p, i))
            continue;
        if (p->parts) {
            r->no_cache = true;
            cache_bad(r->s->cache, p->place, b, false);
            return 1;
        }
        if (!p->pin && (!t || t->gen != p->gen || t->destaging))
            return 1;
        return damaged(r, "checksum mismatch in the extent", (uint64_t)p->index * STORE_EXTENT + (uint64_t)b * FMT_BLOCK, e);
    }
    if (t)
        keep(r, p, t);
    if (p->in_dst) {
        memcpy(r->crc + ((uint8_t *)p->iov.iov_base - r->dst) / FMT_BLOCK, p->crc + p->first, p->count * sizeof *p->crc);
        r->n_crc += p->count;
    }
    return E_OK;
}

static int check_and_copy(struct read *r, struct err *e)
{
    for (struct piece *p = r->pieces; p; p = p->next) {
        int rc = E_OK;
        if (!p->rec)
            rc = check_extent(r, p, e);
        else if (crc32c(0, p->iov.iov_base, p->rec->length) != p->rec->crc)
            rc = damaged(r, "checksum mismatch in the journal", p->rec->offset, e);
        if (rc != E_OK)
            return rc;
        for (struct copy *c = p->copies; c && !p->in_dst; c = c->next)
            memcpy(c->to, (uint8_t *)p->iov.iov_base + c->from, c->length);
    }
    return E_OK;
}

static void all_read(struct read *r)
{
    struct err e = {0};
    int rc = r->status;
    if (rc < 0)
        rc = err_sys(&e, -rc, "read %s", r->s->capacity);
    else
        rc = check_and_copy(r, &e);
    if (rc == 1) {
        metric_add(&m_again, 1);
        drop_pieces(r);
        start(r);
        return;
    }
    finish(r, rc, &e);
}

/* A block just read is in no cache, and a checksum works on three places of it at once, which the processor's own prefetching
 * does not see through: the first is called for as a whole, the next one always while one is summed. */
static void fetch(const uint8_t *block)
{
    for (unsigned i = 0; i < FMT_BLOCK; i += 64)
        __builtin_prefetch(block + i);
}

static void piece_done(struct dev_io *io, int status)
{
    struct piece *p = container_of(io, struct piece, io);
    struct read *r = p->read;
    if (status < 0 && r->status == 0)
        r->status = status;
    /* Checked while the device reads the others; what does not match is judged when all are there. */
    p->good = status == 0 && !p->rec;
    if (p->good)
        fetch(p->iov.iov_base);
    for (uint32_t i = 0; i < p->count && p->good; i++) {
        if (i + 1 < p->count)
            fetch((const uint8_t *)p->iov.iov_base + (size_t)(i + 1) * FMT_BLOCK);
        p->good = block_matches(p, i);
    }
    if (--r->left == 0)
        all_read(r);
}

/* ---- planning ---- */

static struct piece *piece_new(struct read *r)
{
    struct piece *p = OBJ_NEW(struct piece);
    p->read = r;
    p->next = r->pieces;
    r->pieces = p;
    return p;
}

static void copy_add(struct piece *p, uint32_t from, uint32_t length, uint8_t *to)
{
    struct copy *c = OBJ_NEW(struct copy);
    *c = (struct copy){.next = p->copies, .from = from, .length = length, .to = to};
    p->copies = c;
}

static struct piece *piece_of_rec(struct read *r, struct rec *rec)
{
    for (struct piece *p = r->pieces; p; p = p->next)
        if (p->rec == rec)
            return p;
    struct piece *p = piece_new(r);
    p->rec = rec;
    rec->pins++;
    return p;
}

static void use_blocks(struct piece *p, uint32_t begin, uint32_t end)
{
    for (uint32_t b = begin / FMT_BLOCK; b <= (end - 1) / FMT_BLOCK; b++)
        p->used |= 1ull << b;
}

/* From where a large write put its data: `begin`, `end` in the extent. */
static void plan_placed(struct read *r, struct rec *rec, uint32_t begin, uint32_t end, uint8_t *to)
{
    struct piece *p = r->pieces;
    while (p && !(p->pin && p->pin->placed == rec->placed))
        p = p->next;
    if (!p) {
        p = piece_new(r);
        p->pin = rec;
        rec->pins++;
        p->index = (uint32_t)(rec->offset / STORE_EXTENT);
        p->place = rec->placed->place;
        memcpy(p->crc, rec->placed->crc, sizeof p->crc);
    }
    use_blocks(p, begin, end);
    copy_add(p, begin, end - begin, to);
}

/* From a segment: `begin`, `end` in the chunk. */
static void plan_seg(struct read *r, const struct seg *g, uint32_t begin, uint32_t end, uint8_t *to)
{
    for (uint32_t b = begin / FMT_BLOCK; g->rec->lost && b <= (end - 1) / FMT_BLOCK && !r->lost; b++) {
        r->lost = g->rec->lost >> b & 1;
        r->lost_at = g->rec->offset / STORE_CHUNK * STORE_CHUNK + (uint64_t)b * FMT_BLOCK;
    }
    uint32_t chunk = rec_chunk(g->rec) * STORE_CHUNK;
    if (g->rec->placed)
        plan_placed(r, g->rec, chunk + begin, chunk + end, to);
    else if (rec_is_zero(g->rec))
        memset(to, 0, end - begin);
    else
        copy_add(piece_of_rec(r, g->rec), begin - (uint32_t)(g->rec->offset % STORE_CHUNK), end - begin, to);
}

/* From the capacity device: `begin`, `end` in the extent. `*p` is the extent's piece so far. */
static void plan_gap(struct read *r, const struct ext *t, struct piece **p, uint32_t begin, uint32_t end, uint8_t *to)
{
    if (!t || t->place == PLACE_NONE) {
        memset(to, 0, end - begin);
        return;
    }
    if (!*p) {
        *p = piece_new(r);
        (*p)->index = t->index;
        (*p)->gen = t->gen;
        (*p)->place = t->place;
        memcpy((*p)->crc, t->crc, sizeof (*p)->crc);
    }
    use_blocks(*p, begin, end);
    copy_add(*p, begin, end - begin, to);
}

static void plan_chunk(struct read *r, const struct ext *t, struct piece **p, uint64_t offset, uint32_t length)
{
    uint32_t base = (uint32_t)(offset % STORE_EXTENT / STORE_CHUNK * STORE_CHUNK);
    uint32_t at = (uint32_t)(offset % STORE_CHUNK), end = at + length;
    uint8_t *to = r->dst + (offset - r->offset);
    const struct seg *g = t ? t->segs[base / STORE_CHUNK] : NULL;
    for (; at < end; g = g ? g->next : NULL) {
        if (g && g->end <= at)
            continue;
        uint32_t gap_end = g && g->begin < end ? g->begin : end;
        if (gap_end > at) {
            plan_gap(r, t, p, base + at, base + gap_end, to);
            to += gap_end - at;
            at = gap_end;
        }
        if (!g || at >= end)
            break;
        uint32_t seg_end = g->end < end ? g->end : end;
        plan_seg(r, g, at, seg_end, to);
        to += seg_end - at;
        at = seg_end;
    }
}

/* Fixes an extent piece's block range and makes its copies relative to it. */
static void close_extent_piece(struct piece *p)
{
    p->first = (uint32_t)__builtin_ctzll(p->used);
    p->count = 64 - (uint32_t)__builtin_clzll(p->used) - p->first;
    for (struct copy *c = p->copies; c; c = c->next)
        c->from -= p->first * FMT_BLOCK;
}

static void part_done(struct dev_io *io, int status)
{
    struct part *q = container_of(io, struct part, io);
    struct read *r = q->piece->read;
    if (status < 0)
        q->piece->cache_failed = true;
    if (--r->left == 0)
        all_read(r);
}

/* Finds all of an extent's piece in the cache, or nothing. */
static void find_in_cache(const struct read *r, struct piece *p)
{
    const uint32_t line = CACHE_LINE / FMT_BLOCK;
    struct part part[STORE_EXTENT / CACHE_LINE];
    uint32_t n = 0;
    if (!r->s->cache || r->no_cache || p->pin)
        return;
    for (uint32_t at = p->first, end = p->first + p->count, stop; at < end; at = stop) {
        stop = (at / line + 1) * line < end ? (at / line + 1) * line : end;
        uint64_t mask = (stop - at == 64 ? 0 : 1ull << (stop - at)) - 1;
        if (!(p->used >> at & mask))
            continue;
        part[n] = (struct part){.piece = p, .first = at, .count = stop - at};
        if (!cache_find(r->s->cache, p->place, at, stop - at, &part[n++].offset))
            return;
    }
    p->n_parts = n;
    p->parts = xcalloc(n, sizeof *p->parts);
    memcpy(p->parts, part, n * sizeof *part);
}

static void submit_parts(struct read *r, struct piece *p)
{
    for (uint32_t i = 0; i < p->n_parts; i++) {
        struct part *q = &p->parts[i];
        q->io.done = part_done;
        q->iov = (struct iovec){(uint8_t *)p->iov.iov_base + (size_t)(q->first - p->first) * FMT_BLOCK, (size_t)q->count * FMT_BLOCK};
        dev_submit(cache_dev(r->s->cache), &r->s->uring, &q->io, false, &q->iov, 1, q->offset);
    }
}

/* Can the piece be read to where it belongs? All of its blocks are wanted, whole, and are neighbours there, too. */
static uint8_t *place_in_dst(const struct read *r, const struct piece *p)
{
    uint8_t *to = p->rec ? NULL : p->copies->to - p->copies->from;
    if (!to || (uintptr_t)to % DEV_BLOCK != 0 || r->offset % FMT_BLOCK != 0 || (uint32_t)__builtin_popcountll(p->used) != p->count)
        return NULL;
    for (const struct copy *c = p->copies; c; c = c->next)
        if (c->to - c->from != to || c->from % FMT_BLOCK != 0 || c->length % FMT_BLOCK != 0)
            return NULL;
    return to;
}

static void submit(struct read *r)
{
    struct store *s = r->s;
    struct piece *p;
    r->status = 0;
    r->left = 0;
    r->n_crc = 0;
    for (p = r->pieces; p; p = p->next) {
        if (!p->rec) {
            close_extent_piece(p);
            find_in_cache(r, p);
        }
        r->left += p->parts ? p->n_parts : 1;
    }
    if (r->left == 0) {
        finish(r, E_OK, NULL);
        return;
    }
    for (p = r->pieces; p; p = p->next) {
        size_t n = p->rec ? journal_padded(p->rec->length) : p->count * FMT_BLOCK;
        void *b = place_in_dst(r, p);
        p->in_dst = b != NULL;
        if (!b)
            b = (p->buf = iobuf_new(n))->data;
        p->iov = (struct iovec){b, n};
        if (p->parts) {
            submit_parts(r, p);
            continue;
        }
        p->io.done = piece_done;
        uint64_t at = p->rec ? p->rec->file_off : p->place * STORE_EXTENT + (uint64_t)p->first * FMT_BLOCK;
        dev_submit(p->rec && p->rec->batch ? &s->journal.dev : &s->extents, &s->uring, &p->io, false, &p->iov, 1, at);
    }
}

static void start(struct read *r)
{
    struct store *s = r->s;
    struct err e;
    char text[ID_LEN + 1];
    struct shard *sh = shard_find(&s->index, &r->id);
    r->lost = false;
    if (!sh || !sh->exists || sh->dropping) {
        finish(r, err_set(&e, E_NOTFOUND, SHARD_FMT ": not on this disk", SHARD_ARG(&r->id, text)), &e);
        return;
    }
    uint64_t limit = (sh->shard_bytes + STORE_CHUNK - 1) / STORE_CHUNK * STORE_CHUNK; /* resync reads whole chunks */
    if (r->offset % 512 || r->length % 512 || r->length == 0 || r->length > STORE_WRITE_MAX || r->offset > limit
        || r->length > limit - r->offset) {
        finish(r, err_set(&e, E_INVAL, SHARD_FMT ": bad range %llu+%u", SHARD_ARG(&r->id, text),
                          (unsigned long long)r->offset, r->length), &e);
        return;
    }
    uint64_t at = r->offset, end = r->offset + r->length;
    while (at < end) {
        uint64_t border = (at / STORE_EXTENT + 1) * STORE_EXTENT, stop = end < border ? end : border;
        const struct ext *t = ext_find(&s->index, sh, (uint32_t)(at / STORE_EXTENT));
        struct piece *p = NULL;
        while (at < stop) {
            uint64_t chunk_end = (at / STORE_CHUNK + 1) * STORE_CHUNK;
            uint32_t n = (uint32_t)((stop < chunk_end ? stop : chunk_end) - at);
            plan_chunk(r, t, &p, at, n);
            at += n;
        }
    }
    if (r->lost)
        finish(r, damaged(r, "lost, and given up", r->lost_at, &e), &e);
    else
        submit(r);
}

static struct read *read_new(struct store *s, struct store_op *op, const struct store_shard_id *id, uint64_t offset,
                             uint32_t length, uint8_t *dst, uint32_t *ret_crc)
{
    struct read *r = obj_new(read_bytes(length));
    *r = (struct read){.s = s, .op = op, .id = *id, .offset = offset, .length = length, .dst = dst, .ret_crc = ret_crc,
                       .started_ns = clock_boot_ns()};
    s->reads++;
    return r;
}

void store_read(struct store *s, struct store_read *q)
{
    if (store_refuses(s, &q->op))
        return;
    struct read *r = read_new(s, &q->op, &q->shard, q->offset, q->length, q->dst, &q->ret_crc);
    r->no_cache = q->no_cache;
    start(r);
}

void store_record_read(struct store *s, struct store_record_read *q)
{
    char text[ID_LEN + 1];
    struct err e;
    if (store_refuses(s, &q->op))
        return;
    const struct shard *sh = shard_find(&s->index, &q->shard);
    struct rec *rec = NULL;
    if (sh && sh->exists && !sh->dropping) {
        TAILQ_FOREACH (rec, &sh->tail, by_shard)
            if (rec->offset == q->offset && rec->length == q->length && store_version_cmp(rec->version, q->version) == 0)
                break;
    }
    struct read *r = read_new(s, &q->op, &q->shard, q->offset, q->length, q->dst, &q->ret_crc);
    if (!rec) {
        finish(r, err_set(&e, E_NOTFOUND, SHARD_FMT ": no record %llu.%llu at offset %llu in the tail",
                          SHARD_ARG(&q->shard, text), (unsigned long long)q->version.epoch,
                          (unsigned long long)q->version.seq, (unsigned long long)q->offset), &e);
        return;
    }
    if (rec_is_zero(rec))
        memset(q->dst, 0, q->length);
    else if (rec->placed)
        plan_placed(r, rec, rec_chunk(rec) * STORE_CHUNK, (rec_chunk(rec) + 1) * STORE_CHUNK, q->dst);
    else
        copy_add(piece_of_rec(r, rec), 0, q->length, q->dst);
    submit(r);
}
