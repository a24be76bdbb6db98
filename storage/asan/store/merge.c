/* Destage, worker's part: merge journal records into extents. See merge.h.
 *
 * Order: extents -> fdatasync -> one synced RocksDB batch. The journal is trimmed after that (destage.c).
 *
 * Which old blocks are read: only those of which some sector is covered by no journal record. Others may be torn by an
 * earlier destage in place that a crash cut short; what this round does not fill in of them is covered by records that
 * stay in the journal, so it is zeroed here and never read.
 *
 * Poison: a block that would need old or journaled bytes whose checksum does not match keeps its other new bytes, but gets
 * a checksum that cannot match. It reads as E_CORRUPT, never as wrong data, until store_copy() replaces it.
 */
#include "storage/asan/store/merge.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include "base/buf.h"

#define SECTORS_PER_BLOCK (FMT_BLOCK / 512u)

static unsigned block_sectors(const uint64_t *map, unsigned block)
{
    return (unsigned)(map[block / 8] >> (block % 8 * SECTORS_PER_BLOCK) & 0xff);
}

bool merge_in_place_ok(const struct merge_item *m)
{
    unsigned touched = 0;
    if (m->old_place == PLACE_NONE)
        return false;
    for (unsigned b = 0; b < EXT_BLOCKS; b++) {
        unsigned mine = block_sectors(m->ours, b);
        if (mine && mine != 0xff)
            return false;
        touched += mine != 0;
    }
    return touched <= EXT_BLOCKS / 2;
}

struct work { uint8_t *extent, *record; uint64_t poison; };

static int apply_record(const struct merge_round *r, const struct merge_rec *c, struct work *w)
{
    uint64_t blocks = 0;
    for (uint32_t b = c->begin / FMT_BLOCK; b <= (c->begin + c->length - 1) / FMT_BLOCK; b++)
        blocks |= 1ull << b;
    /* A block that this record covers whole is as good as the record, whatever was there before. */
    uint64_t whole = 0;
    for (uint32_t b = 0; b < EXT_BLOCKS; b++)
        if (b * FMT_BLOCK >= c->begin && (b + 1) * FMT_BLOCK <= c->begin + c->length)
            whole |= 1ull << b;
    if (c->zero) {
        memset(w->extent + c->begin, 0, c->length);
        w->poison &= ~whole;
        return 0;
    }
    int rc = dev_read(r->journal, w->record, (c->length + FMT_BLOCK - 1) / FMT_BLOCK * FMT_BLOCK, c->file_off);
    if (rc < 0)
        return rc;
    memcpy(w->extent + c->begin, w->record, c->length);
    w->poison &= ~whole;
    if (crc32c(0, w->record, c->length) != c->crc)
        w->poison |= blocks;
    return 0;
}

/* Fills w->extent with the old bytes that are needed. */
static int load_old(const struct merge_round *r, const struct merge_item *m, struct work *w)
{
    uint64_t needed = 0;
    for (unsigned b = 0; b < EXT_BLOCKS; b++)
        if ((block_sectors(m->ours, b) | block_sectors(m->dirty, b)) != 0xff)
            needed |= 1ull << b;
    if (m->old_place == PLACE_NONE || !needed) {
        memset(w->extent, 0, STORE_EXTENT);
        return 0;
    }
    int rc = dev_read(r->extents, w->extent, STORE_EXTENT, m->old_place * STORE_EXTENT);
    if (rc < 0)
        return rc;
    for (unsigned b = 0; b < EXT_BLOCKS; b++) {
        uint8_t *p = w->extent + (size_t)b * FMT_BLOCK;
        if (!(needed >> b & 1))
            memset(p, 0, FMT_BLOCK);
        else if (crc32c(0, p, FMT_BLOCK) != m->meta.crc[b])
            w->poison |= 1ull << b;
    }
    return 0;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static void take_crc(struct merge_item *m, const struct work *w, unsigned b)
{
    uint32_t crc = crc32c(0, w->extent + (size_t)b * FMT_BLOCK, FMT_BLOCK);
    m->meta.crc[b] = w->poison >> b & 1 ? ~crc : crc;
}

static int rewrite(struct merge_round *r, struct merge_item *m, struct work *w)
{
    int rc = load_old(r, m, w);
    for (size_t i = 0; i < m->n_recs && rc == 0; i++)
        rc = apply_record(r, &m->recs[i], w);
    if (rc < 0)
        return rc;
    m->meta.place = PLACE_NONE;
    if (!w->poison && all_zero(w->extent, STORE_EXTENT))
        return 0;
    if (m->new_place == PLACE_NONE)
        return -ENOSPC; /* only zeroes were accepted without a place */
    m->meta.place = m->new_place;
    for (unsigned b = 0; b < EXT_BLOCKS; b++)
        take_crc(m, w, b);
    return dev_write(r->extents, w->extent, STORE_EXTENT, m->new_place * STORE_EXTENT);
}

static int in_place(struct merge_round *r, struct merge_item *m, struct work *w)
{
    int rc = 0;
    for (size_t i = 0; i < m->n_recs && rc == 0; i++)
        rc = apply_record(r, &m->recs[i], w);
    for (unsigned b = 0, n; b < EXT_BLOCKS && rc == 0; b += n) {
        for (n = 0; b + n < EXT_BLOCKS && block_sectors(m->ours, b + n); n++)
            take_crc(m, w, b + n);
        if (n > 0)
            rc = dev_write(r->extents, w->extent + (size_t)b * FMT_BLOCK, (size_t)n * FMT_BLOCK,
                           m->old_place * STORE_EXTENT + (uint64_t)b * FMT_BLOCK);
        else
            n = 1;
    }
    return rc;
}

static void versions(struct merge_item *m)
{
    for (size_t i = 0; i < m->n_recs; i++)
        m->meta.version[m->recs[i].begin / STORE_CHUNK] = m->recs[i].version;
}

static int commit(struct merge_round *r)
{
    struct meta_batch *b = meta_batch_new();
    for (size_t i = 0; i < r->n_items; i++)
        meta_put_ext(b, &r->items[i].id, r->items[i].index, &r->items[i].meta);
    for (size_t i = 0; i < r->n_shards; i++)
        meta_put_progress(b, &r->shards[i].id, &r->shards[i].progress);
    meta_put_number(b, r->number, r->durable_seq);
    int rc = meta_commit(r->meta, b, &r->e);
    meta_batch_free(b);
    return rc;
}

void merge_run(struct merge_round *r)
{
    struct work w = {NULL, NULL, 0};
    void *p = NULL;
    if (posix_memalign(&p, FMT_BLOCK, STORE_EXTENT + STORE_CHUNK) != 0)
        abort();
    w.extent = p;
    w.record = w.extent + STORE_EXTENT;
    int rc = 0;
    bool moved = false;
    for (size_t i = 0; i < r->n_items && rc == 0; i++) {
        struct merge_item *m = &r->items[i];
        if (m->adopt)
            continue;
        moved = true;
        w.poison = 0;
        versions(m);
        rc = m->new_place == m->old_place && m->new_place != PLACE_NONE ? in_place(r, m, &w) : rewrite(r, m, &w);
        r->poisoned += (unsigned)__builtin_popcountll(w.poison);
    }
    free(p);
    if (rc == 0 && moved)
        rc = dev_sync(r->extents);
    r->status = rc < 0 ? err_sys(&r->e, -rc, "destage to %s", r->extents->path) : commit(r);
}
