/* Journal, running part: group commit and trimming. See journal.h. */
#include "storage/asan/store/journal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/metric.h"

METRIC_HISTOGRAM(m_write, "cohort_store_journal_write_seconds", "Time of one journal batch on the fast device");
METRIC_COUNTER(m_batches, "cohort_store_journal_batches_total", "Journal batches written");
METRIC_COUNTER(m_records, "cohort_store_journal_records_total", "Journal records written");
METRIC_COUNTER(m_bytes, "cohort_store_journal_bytes_total", "Bytes written to the journal, headers and padding included");
METRIC_COUNTER(m_full, "cohort_store_journal_full_total", "Times that records had to wait for journal space");

/* With a batch in flight, another leaves early if this much has collected. */
#define EARLY_BYTES (256u << 10)
#define EARLY_RECORDS 32u

static uint32_t rec_disk_bytes(const struct rec *r)
{
    return rec_is_zero(r) ? 0 : r->placed ? FMT_BLOCK : journal_padded(r->length);
}

void journal_append(struct journal *j, struct rec *r)
{
    TAILQ_INSERT_TAIL(&j->pending, r, queue);
    j->pending_bytes += rec_disk_bytes(r);
    j->pending_n++;
}

struct rec *journal_take_pending(struct journal *j)
{
    struct rec *r = TAILQ_FIRST(&j->pending);
    if (!r)
        return NULL;
    TAILQ_REMOVE(&j->pending, r, queue);
    j->pending_bytes -= rec_disk_bytes(r);
    j->pending_n--;
    return r;
}

bool journal_idle(const struct journal *j) { return j->inflight == 0 && j->pending_n == 0; }

static uint64_t space(const struct journal *j) { return j->ring_bytes - (j->head_pos - j->trim_pos); }

bool journal_full(const struct journal *j)
{
    return j->stuck;
}

/* The slot's batch is durable, and so are all before. */
static void complete(struct journal *j, struct journal_slot *t)
{
    struct rec *recs[FMT_BATCH_RECORDS];
    unsigned n = t->n;
    struct batch *b = t->batch;
    metric_observe_ns(&m_write, clock_boot_ns() - t->started_ns);
    j->durable_seq = b->seq;
    memcpy(recs, t->recs, n * sizeof *recs);
    t->busy = t->done = false;
    j->inflight--;
    for (unsigned i = 0; i < n; i++)
        j->durable(j->arg, recs[i]);
    b->durable = true; /* from now on it may be trimmed: all its records are in the index */
}

static void give_up(struct journal *j, struct journal_slot *t)
{
    /* Nobody knows whether the batch is on the device. Its records go back to the queue's front, for the store to fail. */
    for (unsigned i = t->n; i-- > 0;) {
        TAILQ_INSERT_HEAD(&j->pending, t->recs[i], queue);
        j->pending_bytes += rec_disk_bytes(t->recs[i]);
        j->pending_n++;
    }
    t->busy = t->done = false;
    j->inflight--;
}

static void on_written(struct dev_io *io, int status)
{
    struct journal_slot *t = container_of(io, struct journal_slot, io);
    struct journal *j = t->j;
    t->done = true;
    if (status < 0)
        j->failed = true;
    if (!j->failed) {
        while ((t = &j->slot[(j->durable_seq + 1) % JOURNAL_INFLIGHT])->busy && t->done)
            complete(j, t);
        return;
    }
    for (unsigned i = 0; i < JOURNAL_INFLIGHT; i++)
        if (j->slot[i].busy && !j->slot[i].done)
            return; /* the kernel still reads the others' memory */
    for (uint64_t seq = j->next_seq; seq-- > j->durable_seq + 1;)
        if (j->slot[seq % JOURNAL_INFLIGHT].busy)
            give_up(j, &j->slot[seq % JOURNAL_INFLIGHT]);
    j->on_failed(j->arg, status < 0 ? status : -EIO);
}

static void encode(struct fmt_record *f, const struct rec *r, uint32_t data_block)
{
    *f = (struct fmt_record){
        .shard = htole32(r->shard->id.index), .type = r->type, .flags = r->flags, .lost = htole16(r->lost),
        .epoch = htole64(r->version.epoch), .seq = htole64(r->version.seq),
        .commit_epoch = htole64(r->shard->commit.epoch), .commit_seq = htole64(r->shard->commit.seq),
        .offset = htole64(r->offset), .length = htole32(r->placed ? STORE_EXTENT : r->length), .crc = htole32(r->crc),
        .data_block = htole32(data_block),
    };
    memcpy(f->volume, r->shard->id.volume.b, 16);
}

/* The data as the device can take it: where it lies if aligned, else a copy padded to a block. */
static struct iovec data_iov(struct journal_slot *t, const struct rec *r, uint32_t *bounce_used)
{
    if (r->placed)
        return (struct iovec){r->placed->block, FMT_BLOCK};
    uint8_t *p = r->data->data + r->data_off;
    uint32_t n = rec_disk_bytes(r);
    if ((uintptr_t)p % FMT_BLOCK == 0 && r->length == n)
        return (struct iovec){p, n};
    if (!t->bounce)
        t->bounce = xaligned(FMT_BLOCK, FMT_BATCH_DATA);
    uint8_t *to = t->bounce + *bounce_used;
    memcpy(to, p, r->length);
    memset(to + r->length, 0, n - r->length);
    *bounce_used += n;
    return (struct iovec){to, n};
}

static struct journal_slot *begin(struct journal *j)
{
    struct journal_slot *t = &j->slot[j->next_seq % JOURNAL_INFLIGHT];
    assert(!t->busy);
    if (!t->header)
        t->header = xaligned(FMT_BLOCK, FMT_BLOCK);
    t->j = j;
    t->n = 0;
    t->busy = true;
    t->done = false;
    t->batch = batch_new(j->index, j->next_seq++, j->head_pos, j->life);
    memset(t->header, 0, FMT_BLOCK);
    t->iov[0] = (struct iovec){t->header, FMT_BLOCK};
    j->inflight++;
    return t;
}

/* `total`: bytes of the ring that the batch takes. */
static void submit(struct journal *j, struct journal_slot *t, unsigned iovcnt, uint32_t total)
{
    struct fmt_batch *h = t->header;
    t->batch->total_bytes = total;
    h->magic = htole32(FMT_BATCH_MAGIC);
    h->version = htole16(FMT_VERSION);
    h->n_records = htole16((uint16_t)t->n);
    h->life = htole64(j->life);
    h->seq = htole64(t->batch->seq);
    h->pos = htole64(t->batch->pos);
    h->durable_seq = htole64(j->durable_seq);
    h->meta_number = htole64(j->meta_number);
    h->fence_number = htole64(j->fence_number);
    h->total_bytes = htole32(total);
    memcpy(h->journal_id, j->sb.journal_id, 16);
    fmt_batch_seal(h);
    j->head_pos += total;
    t->started_ns = clock_boot_ns();
    metric_add(&m_batches, 1);
    metric_add(&m_records, t->n);
    metric_add(&m_bytes, total);
    t->io.done = on_written;
    dev_submit(&j->dev, j->uring, &t->io, true, t->iov, (int)iovcnt, journal_file_off(j, t->batch->pos));
}

/* `r` goes with batch `b`; a large write with all its parts. */
static void join_batch(struct rec *r, struct batch *b)
{
    struct placed *p = r->placed;
    for (unsigned c = 0; c < (p ? EXT_CHUNKS : 1); c++) {
        struct rec *part = p ? p->part[c] : r;
        part->batch = b;
        TAILQ_INSERT_TAIL(&b->recs, part, by_batch);
    }
    if (p)
        TAILQ_INSERT_TAIL(&b->placed, p, entry);
}

/* One batch of what is pending; false if there is no space for any of it. */
static bool build(struct journal *j)
{
    uint64_t to_end = j->ring_bytes - j->head_pos % j->ring_bytes, room = space(j);
    uint32_t total = FMT_BLOCK, bounce = 0;
    struct rec *r = TAILQ_FIRST(&j->pending);
    if (FMT_BLOCK + rec_disk_bytes(r) > to_end) { /* batches do not wrap: filler up to the end of the ring */
        if (room < to_end)
            return false;
        struct journal_slot *t = begin(j);
        submit(j, t, 1, (uint32_t)to_end);
        return true;
    }
    if (room > to_end)
        room = to_end;
    if (room > FMT_BATCH_MAX)
        room = FMT_BATCH_MAX;
    if (FMT_BLOCK + rec_disk_bytes(r) > room)
        return false;
    struct journal_slot *t = begin(j);
    unsigned iovcnt = 1;
    while (t->n < FMT_BATCH_RECORDS && (r = TAILQ_FIRST(&j->pending)) && total + rec_disk_bytes(r) <= room) {
        journal_take_pending(j);
        bool zero = rec_is_zero(r);
        encode(&t->header->record[t->n], r, zero ? 0 : total / FMT_BLOCK);
        join_batch(r, t->batch);
        r->file_off = journal_file_off(j, t->batch->pos + total);
        t->recs[t->n++] = r;
        if (!zero)
            t->iov[iovcnt++] = data_iov(t, r, &bounce);
        total += rec_disk_bytes(r);
    }
    submit(j, t, iovcnt, total);
    return true;
}

void journal_kick(struct journal *j)
{
    while (!j->failed && j->pending_n > 0 && j->inflight < JOURNAL_INFLIGHT
           && (j->inflight == 0 || j->pending_bytes >= EARLY_BYTES || j->pending_n >= EARLY_RECORDS)) {
        bool ok = build(j);
        if (!ok && !j->stuck)
            metric_add(&m_full, 1);
        j->stuck = !ok;
        if (!ok)
            return;
    }
}

bool journal_trim_scan(struct journal *j)
{
    struct batch *b;
    while ((b = TAILQ_FIRST(&j->index->batches)) && b->durable && TAILQ_EMPTY(&b->recs)) {
        j->free_pos = b->pos + b->total_bytes;
        j->free_seq = b->seq + 1;
        j->free_life = b->life;
        batch_free(j->index, b);
    }
    return j->free_pos > j->trim_pos;
}

void journal_sb_next(struct journal *j, struct fmt_sb *ret_sb)
{
    struct fmt_sb sb = j->sb;
    sb.number = htole64(le64toh(sb.number) + 1);
    sb.life = htole64(j->life);
    sb.trim_pos = htole64(j->free_pos);
    sb.trim_seq = htole64(j->free_seq);
    sb.trim_life = htole64(j->free_life);
    sb.durable_seq = htole64(j->durable_seq);
    sb.meta_number = htole64(j->meta_number);
    sb.fence_number = htole64(j->fence_number);
    fmt_sb_seal(&sb);
    *ret_sb = sb;
}

void journal_trimmed(struct journal *j, const struct fmt_sb *sb)
{
    j->sb = *sb;
    j->trim_pos = le64toh(sb->trim_pos);
    j->trim_seq = le64toh(sb->trim_seq);
}
