/* Journal replay: what is durable since the last trim. See journal.h, FORMAT.md.
 *
 * Replay takes batches with ascending numbers from the trim position on and stops at the first that is not the expected
 * one or not whole. That is normal at the end: the batches that were in flight at a power cut were never acknowledged.
 * It is damage, and E_CORRUPT, if something proves that the batch had been durable: the superblock's durable_seq, or a
 * later batch that was written when it was known to be (its durable_seq). Batches after a torn one, written at the same
 * time, prove nothing and are dropped; the life number keeps them from passing for successors of what is written next.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include "base/buf.h"
#include "storage/asan/store/journal.h"

#define WINDOW (4u << 20)
/* How far behind a bad batch a witness is looked for: all that can have been in flight with it, and as much again. */
#define LOOK_AHEAD (2u * JOURNAL_INFLIGHT * FMT_BATCH_MAX)

struct reader {
    struct journal *j;
    uint8_t *window;
    uint64_t pos;     /* logical, of window[0] */
    uint64_t length;
};

/* `length` bytes at logical `pos`, which do not wrap; *ret is valid until the next call. */
static int view(struct reader *r, uint64_t pos, uint32_t length, const uint8_t **ret, struct err *e)
{
    const struct journal *j = r->j;
    uint64_t to_end = j->ring_bytes - pos % j->ring_bytes;
    assert(length <= to_end && length <= WINDOW);
    if (pos < r->pos || pos + length > r->pos + r->length) {
        r->pos = pos;
        r->length = to_end < WINDOW ? to_end : WINDOW;
        int rc = dev_read(&j->dev, r->window, r->length, journal_file_off(j, pos));
        if (rc < 0)
            return err_sys(e, -rc, "read %s", j->dev.path);
    }
    *ret = r->window + (pos - r->pos);
    return E_OK;
}

static bool header_is_ours(const struct journal *j, const struct fmt_batch *h, uint64_t pos)
{
    return fmt_batch_ok(h) && memcmp(h->journal_id, j->sb.journal_id, 16) == 0 && le64toh(h->pos) == pos;
}

static bool record_ok(const struct fmt_record *f, uint32_t total)
{
    uint64_t offset = le64toh(f->offset);
    uint32_t length = le32toh(f->length), block = le32toh(f->data_block);
    bool copy = f->type == FMT_COPY || f->type == FMT_COPY_ZERO, zero = f->type == FMT_ZERO || f->type == FMT_COPY_ZERO;
    if (f->type == FMT_PLACED)
        return !f->lost && offset % STORE_EXTENT == 0 && length == STORE_EXTENT && block >= 1 && ((uint64_t)block + 1) * FMT_BLOCK <= total;
    if (f->type < FMT_WRITE || f->type > FMT_COPY_ZERO || length == 0 || length > STORE_CHUNK || length % 512 || offset % 512
        || offset % STORE_CHUNK + length > STORE_CHUNK || (copy && length != STORE_CHUNK))
        return false;
    if (f->lost && f->type != FMT_COPY)
        return false;
    return zero ? block == 0 : block >= 1 && (uint64_t)block * FMT_BLOCK + journal_padded(length) <= total;
}

enum verdict { GOOD, END, BAD = -1 };

/* Is the batch at `pos` the expected one, whole? */
static int judge(struct reader *r, uint64_t pos, uint64_t seq, uint64_t life, const struct fmt_batch **ret_h, struct err *e)
{
    struct journal *j = r->j;
    const uint8_t *p;
    if (view(r, pos, FMT_BLOCK, &p, e) < 0)
        return BAD;
    const struct fmt_batch *h = (const struct fmt_batch *)p;
    if (!header_is_ours(j, h, pos) || le64toh(h->seq) != seq || le64toh(h->life) < life)
        return END;
    uint32_t total = le32toh(h->total_bytes);
    unsigned n = le16toh(h->n_records);
    if (le16toh(h->version) != FMT_VERSION) {
        err_set(e, E_VERSION, "%s: a batch of format %u, this Cohort reads %u", j->dev.path, le16toh(h->version), FMT_VERSION);
        return BAD;
    }
    bool sane = n <= FMT_BATCH_RECORDS && total >= FMT_BLOCK && total <= FMT_BATCH_MAX && total % FMT_BLOCK == 0
                && total <= j->ring_bytes - pos % j->ring_bytes;
    for (unsigned i = 0; i < n && sane; i++)
        sane = record_ok(&h->record[i], total);
    if (!sane) {
        err_set(e, E_CORRUPT, "%s: batch %llu has a valid checksum and impossible contents", j->dev.path,
                (unsigned long long)seq);
        return BAD;
    }
    if (n > 0 && view(r, pos, total, &p, e) < 0)
        return BAD;
    h = (const struct fmt_batch *)p;
    for (unsigned i = 0; i < n; i++) {
        const struct fmt_record *f = &h->record[i];
        uint32_t block = le32toh(f->data_block);
        uint32_t length = f->type == FMT_PLACED ? FMT_BLOCK : le32toh(f->length);
        if (block && crc32c(0, p + (size_t)block * FMT_BLOCK, length) != le32toh(f->crc))
            return END;
    }
    *ret_h = h;
    return GOOD;
}

/* Is there a batch behind `pos` that was written when batch `seq` was known to be durable? */
static int look_for_witness(struct reader *r, uint64_t pos, uint64_t seq, struct err *e)
{
    struct journal *j = r->j;
    uint64_t end = pos + LOOK_AHEAD;
    if (end > j->trim_pos + j->ring_bytes)
        end = j->trim_pos + j->ring_bytes;
    for (uint64_t at = pos; at < end; at += FMT_BLOCK) {
        const uint8_t *p;
        int rc = view(r, at, FMT_BLOCK, &p, e);
        if (rc < 0)
            return rc;
        const struct fmt_batch *h = (const struct fmt_batch *)p;
        if (header_is_ours(j, h, at) && le64toh(h->seq) > seq && le64toh(h->durable_seq) >= seq)
            return err_set(e, E_CORRUPT,
                           "%s is damaged at byte %llu: batch %llu had been acknowledged and is not whole; take this disk out, "
                           "its contents are rebuilt from the other copies",
                           j->dev.path, (unsigned long long)journal_file_off(j, pos), (unsigned long long)seq);
    }
    return E_OK;
}

struct parts { struct journal_found f[STORE_WRITE_MAX / STORE_CHUNK + 1]; unsigned n; bool begun; };

/* Parts of one write are applied when the last one is there; a new first part voids parts that a crash cut short.
 * Replay may begin in the middle of a write: trimming goes by batches. That write was whole, as no part of it is settled,
 * and so trimmed, before all are durable. */
static int take_record(struct journal *j, struct parts *w, const struct journal_found *f, journal_apply *apply, void *arg,
                       struct err *e)
{
    if (f->rec.flags & FMT_FIRST)
        w->n = 0;
    else if ((w->n == 0 && w->begun) || w->n == sizeof w->f / sizeof *w->f)
        return err_set(e, E_CORRUPT, "%s: a record without the parts before it", j->dev.path);
    w->begun = true;
    w->f[w->n++] = *f;
    if (!(f->rec.flags & FMT_LAST))
        return E_OK;
    for (unsigned i = 0; i < w->n; i++) {
        int rc = apply(arg, &w->f[i], e);
        if (rc < 0)
            return rc;
    }
    w->n = 0;
    return E_OK;
}

static int take_batch(struct journal *j, struct index *x, struct parts *w, const struct fmt_batch *h, journal_apply *apply,
                      void *arg, struct err *e)
{
    struct batch *b = batch_new(x, le64toh(h->seq), le64toh(h->pos), le64toh(h->life));
    b->total_bytes = le32toh(h->total_bytes);
    b->durable = true;
    for (unsigned i = 0; i < le16toh(h->n_records); i++) {
        struct journal_found f = {.rec = h->record[i], .batch = b};
        f.file_off = journal_file_off(j, b->pos) + (uint64_t)le32toh(f.rec.data_block) * FMT_BLOCK;
        if (f.rec.type == FMT_PLACED) {
            const struct fmt_placed *q = (const void *)((const uint8_t *)h + (size_t)le32toh(f.rec.data_block) * FMT_BLOCK);
            f.place = le64toh(q->place);
            for (unsigned k = 0; k < EXT_BLOCKS; k++)
                f.crc[k] = le32toh(q->crc[k]);
        }
        int rc = take_record(j, w, &f, apply, arg, e);
        if (rc < 0)
            return rc;
    }
    return E_OK;
}

static int run(struct reader *r, struct index *x, struct parts *w, journal_apply *apply, void *arg, struct err *e)
{
    struct journal *j = r->j;
    uint64_t life = j->free_life;
    int rc = E_OK;
    for (;;) {
        const struct fmt_batch *h;
        int verdict = j->head_pos - j->trim_pos > j->ring_bytes - FMT_BLOCK
                          ? END /* the ring is full of good batches */
                          : judge(r, j->head_pos, j->next_seq, life, &h, e);
        if (verdict == BAD)
            return e->code;
        if (verdict == END)
            break;
        life = le64toh(h->life);
        if ((rc = journal_meta_is_new(j, le64toh(h->meta_number), le64toh(h->fence_number), e)) < 0)
            return rc;
        j->head_pos += le32toh(h->total_bytes);
        j->durable_seq = j->next_seq++;
        rc = take_batch(j, x, w, h, apply, arg, e);
        if (rc < 0)
            return rc;
    }
    if (life > j->life)
        return err_set(e, E_CORRUPT, "%s: batch %llu is from a later life than the superblock", j->dev.path,
                       (unsigned long long)j->durable_seq);
    if (j->durable_seq < le64toh(j->sb.durable_seq))
        return err_set(e, E_CORRUPT,
                       "%s is damaged at byte %llu: batch %llu had been acknowledged and is not whole; take this disk out, its "
                       "contents are rebuilt from the other copies",
                       j->dev.path, (unsigned long long)journal_file_off(j, j->head_pos), (unsigned long long)j->next_seq);
    rc = look_for_witness(r, j->head_pos, j->next_seq, e);
    if (rc == E_OK && j->durable_seq < j->meta_durable_seq)
        return err_set(e, E_CORRUPT,
                       "%s is older than its metadata: it ends with batch %llu, which have seen %llu; an older copy of it was put back, "
                       "or its end is gone. Take this disk out, its contents are rebuilt from the other copies",
                       j->dev.path, (unsigned long long)j->durable_seq, (unsigned long long)j->meta_durable_seq);
    return rc;
}

int journal_replay(struct journal *j, struct index *x, journal_apply *apply, void *arg, struct err *e)
{
    struct err local;
    struct reader r = {.j = j};
    struct parts *w = xcalloc(1, sizeof *w);
    if (!e)
        e = &local;
    j->index = x;
    r.window = xaligned(FMT_BLOCK, WINDOW);
    int rc = run(&r, x, w, apply, arg, e);
    free(r.window);
    free(w);
    if (rc < 0)
        return rc;
    /* What a killed process had written may be in the device's cache only; from here on we rely on it. */
    rc = dev_sync(&j->dev);
    if (rc < 0)
        return err_sys(e, -rc, "sync %s", j->dev.path);
    struct fmt_sb sb;
    j->life++;
    journal_sb_next(j, &sb);
    rc = journal_sb_write(&j->dev, &sb, e);
    if (rc == E_OK)
        journal_trimmed(j, &sb);
    return rc;
}
