/* Destage, worker's part: merge journal records into extents. See merge.h.
 *
 * Order: extents -> fdatasync -> one synced RocksDB batch. The journal is trimmed after that (destage.c).
 *
 * A round is carried out in groups of extents: all that a group needs is read at once, then merged in memory, then written at
 * once. Records lie in the journal in order of time, and so does what a round takes: neighbours are read together. A record
 * that newer ones of the round cover is not read at all.
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
#include "storage/asan/store/batch.h"

#define SECTORS_PER_BLOCK (FMT_BLOCK / 512u)
#define GROUP_BYTES (1u << 20) /* of images, and of records: what a round needs in memory at a time */
#define SPAN_MAX (256u << 10)  /* read from the journal at once */
#define SPAN_GAP (16u << 10)   /* so much between two records is read along */

struct image { /* of an extent that is written anew; of one changed in place only the blocks that are touched */
    struct merge_item *item;
    uint64_t blocks;  /* bit per block that it has; they lie packed at `at` */
    uint64_t old;     /* of those, the ones that need old bytes */
    uint64_t poison;
    size_t pos;       /* of `at` in the group's memory */
    uint8_t *at;
};

struct group {
    struct merge_round *r;
    struct image *image;
    size_t n, image_bytes;
    struct merge_rec **rec; /* to be read, by place in the journal */
    size_t n_recs, record_bytes;
    struct iobuf *images, *records;
    struct dev_xfer *x;
    size_t n_x;
};

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

static bool in_place(const struct merge_item *m)
{
    return m->new_place == m->old_place && m->new_place != PLACE_NONE;
}

static uint64_t blocks_between(uint32_t begin, uint32_t end) /* bytes of the extent; whole or touched, by how the caller rounds */
{
    uint32_t first = begin / FMT_BLOCK, n = end > begin ? (end + FMT_BLOCK - 1) / FMT_BLOCK - first : 0;
    return (n == 64 ? UINT64_MAX : (1ull << n) - 1) << (n ? first : 0);
}

static uint64_t blocks_touched(const struct merge_rec *c) { return blocks_between(c->begin, c->begin + c->length); }

static uint64_t blocks_whole(const struct merge_rec *c)
{
    uint32_t begin = (c->begin + FMT_BLOCK - 1) / FMT_BLOCK * FMT_BLOCK, end = (c->begin + c->length) / FMT_BLOCK * FMT_BLOCK;
    return begin < end ? blocks_between(begin, end) : 0;
}

static uint8_t *block_at(const struct image *g, unsigned b)
{
    return g->at + (size_t)__builtin_popcountll(g->blocks & ((1ull << b) - 1)) * FMT_BLOCK;
}

/* ---- what a group needs ---- */

/* Marks the records of which newer ones leave nothing. Those of a chunk come by arrival, chunks do not overlap. */
static void mark_covered(struct merge_item *m)
{
    uint64_t seen[MERGE_SECTORS / 64] = {0};
    for (size_t i = m->n_recs; i-- > 0;) {
        struct merge_rec *c = &m->recs[i];
        c->covered = true;
        for (uint32_t s = c->begin / 512; s < (c->begin + c->length) / 512; s++) {
            c->covered = c->covered && seen[s / 64] >> (s % 64) & 1;
            seen[s / 64] |= 1ull << (s % 64);
        }
    }
}

static uint32_t padded(const struct merge_rec *c) { return (c->length + FMT_BLOCK - 1) / FMT_BLOCK * FMT_BLOCK; }

static void image_plan(struct image *g, struct merge_item *m)
{
    *g = (struct image){.item = m};
    mark_covered(m);
    if (in_place(m)) {
        for (size_t i = 0; i < m->n_recs; i++)
            g->blocks |= blocks_touched(&m->recs[i]);
        return;
    }
    g->blocks = UINT64_MAX;
    for (unsigned b = 0; b < EXT_BLOCKS && m->old_place != PLACE_NONE; b++)
        if ((block_sectors(m->ours, b) | block_sectors(m->dirty, b)) != 0xff)
            g->old |= 1ull << b;
}

static bool is_read(const struct merge_rec *c) { return !c->zero && !c->covered; }

/* Takes items from `first` on: one, and more while they fit. Those that are adopted are on the device. Returns the next one. */
static size_t group_plan(struct group *p, struct merge_round *r, size_t first)
{
    size_t recs = 0, bytes = 0, i;
    *p = (struct group){.r = r, .image = xcalloc(r->n_items - first, sizeof *p->image)};
    for (i = first; i < r->n_items; i++) {
        struct merge_item *m = &r->items[i];
        struct image *g = &p->image[p->n];
        size_t mine = 0;
        if (m->adopt)
            continue;
        image_plan(g, m);
        size_t size = (size_t)__builtin_popcountll(g->blocks) * FMT_BLOCK;
        for (size_t k = 0; k < m->n_recs; k++)
            mine += is_read(&m->recs[k]) ? padded(&m->recs[k]) : 0;
        if (p->n && (p->image_bytes + size > GROUP_BYTES || bytes + mine > GROUP_BYTES))
            break;
        g->pos = p->image_bytes;
        p->image_bytes += size;
        bytes += mine;
        recs += m->n_recs;
        p->n++;
    }
    p->rec = xcalloc(recs, sizeof(struct merge_rec *));
    for (size_t n = 0; n < p->n; n++)
        for (size_t k = 0; k < p->image[n].item->n_recs; k++)
            if (is_read(&p->image[n].item->recs[k]))
                p->rec[p->n_recs++] = &p->image[n].item->recs[k];
    return i;
}

static int by_place(const void *a, const void *b)
{
    const struct merge_rec *p = *(struct merge_rec *const *)a, *q = *(struct merge_rec *const *)b;
    if (p->aside != q->aside)
        return p->aside ? 1 : -1;
    return p->file_off < q->file_off ? -1 : p->file_off > q->file_off;
}

/* ---- reading ---- */

/* One transfer per run of records that lie close together; where they will be in memory goes into data_pos. */
static void plan_spans(struct group *p)
{
    struct dev_xfer *x = NULL;
    size_t base = 0; /* of *x in the records' memory */
    qsort(p->rec, p->n_recs, sizeof(struct merge_rec *), by_place);
    for (size_t i = 0; i < p->n_recs; i++) {
        struct merge_rec *c = p->rec[i];
        const struct dev *dev = c->aside ? p->r->extents : p->r->journal;
        uint64_t end = c->file_off + padded(c);
        if (!x || x->dev != dev || c->file_off > x->offset + x->length + SPAN_GAP || end - x->offset > SPAN_MAX) {
            base += x ? x->length : 0;
            x = &p->x[p->n_x++];
            *x = (struct dev_xfer){.dev = dev, .offset = c->file_off};
        }
        if (end > x->offset + x->length)
            x->length = (uint32_t)(end - x->offset);
        c->data_pos = base + (c->file_off - x->offset);
    }
    p->record_bytes = base + (x ? x->length : 0);
}

static int group_read(struct group *p)
{
    p->x = xcalloc(p->n_recs + p->n, sizeof *p->x);
    plan_spans(p);
    p->images = iobuf_new(p->image_bytes);
    p->records = iobuf_new(p->record_bytes);
    size_t pos = 0;
    for (size_t i = 0; i < p->n_x; i++) {
        p->x[i].buf = p->records->data + pos;
        pos += p->x[i].length;
    }
    for (size_t i = 0; i < p->n; i++) {
        struct image *g = &p->image[i];
        g->at = p->images->data + g->pos;
        if (g->old)
            p->x[p->n_x++] = (struct dev_xfer){.dev = p->r->extents, .buf = g->at, .length = STORE_EXTENT,
                                               .offset = g->item->old_place * STORE_EXTENT};
    }
    return dev_batch_run(p->r->batch, p->x, p->n_x);
}

/* ---- merging ---- */

static void check_old(struct image *g)
{
    for (unsigned b = 0; b < EXT_BLOCKS; b++) {
        uint8_t *at = g->at + (size_t)b * FMT_BLOCK;
        if (!(g->old >> b & 1))
            memset(at, 0, FMT_BLOCK);
        else if (crc32c(0, at, FMT_BLOCK) != g->item->meta.crc[b])
            g->poison |= 1ull << b;
    }
}

static void apply_record(const struct group *p, struct image *g, const struct merge_rec *c)
{
    uint8_t *to = block_at(g, c->begin / FMT_BLOCK) + c->begin % FMT_BLOCK; /* the blocks it touches lie side by side */
    if (c->covered)
        return;
    g->poison &= ~blocks_whole(c); /* as good as the record, whatever was there before */
    if (c->zero) {
        memset(to, 0, c->length);
        return;
    }
    const uint8_t *data = p->records->data + c->data_pos;
    memcpy(to, data, c->length);
    if (crc32c(0, data, c->length) != c->crc)
        g->poison |= blocks_touched(c);
    g->poison |= (uint64_t)c->lost << (c->begin / FMT_BLOCK);
}

static bool all_zero(const uint8_t *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static void take_crcs(struct image *g)
{
    for (unsigned b = 0; b < EXT_BLOCKS; b++) {
        if (!(g->blocks >> b & 1))
            continue;
        uint32_t crc = crc32c(0, block_at(g, b), FMT_BLOCK);
        g->item->meta.crc[b] = g->poison >> b & 1 ? ~crc : crc;
    }
}

/* Fills the image and sets the extent's metadata; nothing is left to write if it is all zero. */
static int image_merge(const struct group *p, struct image *g)
{
    struct merge_item *m = g->item;
    if (!in_place(m))
        check_old(g);
    for (size_t i = 0; i < m->n_recs; i++) {
        apply_record(p, g, &m->recs[i]);
        m->meta.version[m->recs[i].begin / STORE_CHUNK] = m->recs[i].version;
    }
    p->r->poisoned += (unsigned)__builtin_popcountll(g->poison);
    if (!in_place(m)) {
        m->meta.place = PLACE_NONE;
        if (!g->poison && all_zero(g->at, STORE_EXTENT)) {
            g->blocks = 0;
            return 0;
        }
        if (m->new_place == PLACE_NONE)
            return -ENOSPC; /* only zeroes were accepted without a place */
        m->meta.place = m->new_place;
    }
    take_crcs(g);
    return 0;
}

/* ---- writing ---- */

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct dev_xfer *)a)->offset, y = ((const struct dev_xfer *)b)->offset;
    return x < y ? -1 : x > y;
}

static int group_write(struct group *p)
{
    size_t runs = 0;
    for (size_t i = 0; i < p->n; i++)
        runs += (size_t)__builtin_popcountll(p->image[i].blocks & ~(p->image[i].blocks << 1));
    struct dev_xfer *x = p->x = xrealloc(p->x, runs * sizeof *p->x);
    for (size_t i = 0; i < p->n; i++) {
        const struct image *g = &p->image[i];
        for (unsigned b = 0, n; b < EXT_BLOCKS; b += n ? n : 1) {
            for (n = 0; b + n < EXT_BLOCKS && g->blocks >> (b + n) & 1; n++)
                ;
            if (n)
                *x++ = (struct dev_xfer){.dev = p->r->extents, .write = true, .buf = block_at(g, b), .length = n * FMT_BLOCK,
                                         .offset = g->item->new_place * STORE_EXTENT + (uint64_t)b * FMT_BLOCK};
        }
    }
    qsort(p->x, runs, sizeof *p->x, by_offset);
    return dev_batch_run(p->r->batch, p->x, runs);
}

static int group_run(struct group *p)
{
    int rc = group_read(p);
    for (size_t i = 0; i < p->n && rc == 0; i++)
        rc = image_merge(p, &p->image[i]);
    return rc < 0 ? rc : group_write(p);
}

static void group_free(struct group *p)
{
    iobuf_unref(p->images);
    iobuf_unref(p->records);
    free(p->x);
    free(p->rec);
    free(p->image);
}

/* Copies the data of records that are set aside: as they are, their checksums say later whether they were good. */
static int aside_copy(struct merge_round *r, size_t first, size_t n)
{
    struct dev_xfer *x = xcalloc(n, sizeof *x);
    struct iobuf *mem = iobuf_new(n * STORE_CHUNK);
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        const struct merge_aside *k = &r->keep[first + i];
        if (k->from)
            x[used] = (struct dev_xfer){.dev = k->from, .buf = mem->data + used * STORE_CHUNK, .offset = k->from_off,
                                        .length = (k->value.length + FMT_BLOCK - 1) / FMT_BLOCK * FMT_BLOCK};
        used += k->from != NULL;
    }
    int rc = dev_batch_run(r->batch, x, used);
    for (size_t i = 0, at = 0; i < n && rc == 0; i++) {
        if (!r->keep[first + i].from)
            continue;
        x[at].dev = r->extents;
        x[at].write = true;
        x[at++].offset = r->keep[first + i].value.data_at;
    }
    if (rc == 0)
        rc = dev_batch_run(r->batch, x, used);
    iobuf_unref(mem);
    free(x);
    return rc;
}

static int commit(struct merge_round *r)
{
    struct meta_batch *b = meta_batch_new();
    for (size_t i = 0; i < r->n_keep; i++)
        meta_put_aside(b, &r->keep[i].id, r->keep[i].arrival, &r->keep[i].value);
    for (size_t i = 0; i < r->n_hide; i++)
        meta_put_aside(b, &r->hide[i].id, r->hide[i].arrival, &r->hide[i].value);
    for (size_t i = 0; i < r->n_forget; i++)
        meta_delete_aside(b, &r->forget[i].id, r->forget[i].arrival);
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
    int rc = 0;
    bool moved = false;
    for (size_t i = 0; i < r->n_items && rc == 0;) {
        struct group p;
        i = group_plan(&p, r, i);
        rc = group_run(&p);
        moved = moved || p.n;
        group_free(&p);
    }
    for (size_t i = 0, n; i < r->n_keep && rc == 0; i += n) {
        n = r->n_keep - i < GROUP_BYTES / STORE_CHUNK ? r->n_keep - i : GROUP_BYTES / STORE_CHUNK;
        rc = aside_copy(r, i, n);
        moved = true;
    }
    if (rc == 0 && moved)
        rc = dev_sync(r->extents);
    r->status = rc < 0 ? err_sys(&r->e, -rc, "destage to %s", r->extents->path) : commit(r);
}
