/* Journal: the ring file on the fast device that makes writes durable.
 *
 * journal_append() queues records; at the end of the loop's turn those that came together leave as one batch: one header
 * block and their data in one O_DIRECT|O_DSYNC write. While a batch is in flight the next one collects; a second, third
 * and fourth leave early only if much has collected. Records become durable (`durable` is called) strictly in order of
 * submission, so what a crash leaves is a prefix.
 *
 * Invariants: space is reused only after a superblock with the new trim position is durable in both copies; `head_pos -
 * trim_pos <= ring_bytes`; the slot of a batch is its number modulo JOURNAL_INFLIGHT.
 *
 * Failure: the first failed write fails everything that is queued, and everything later (`failed` is called once).
 */
#ifndef COHORT_STORAGE_STORE_JOURNAL_H
#define COHORT_STORAGE_STORE_JOURNAL_H

#include "storage/asan/store/dev.h"
#include "storage/asan/store/index.h"

#define JOURNAL_INFLIGHT 4u
#define JOURNAL_MIN (16u << 20)

struct journal_slot {
    struct journal *j;
    struct dev_io io;
    struct batch *batch;
    struct fmt_batch *header;  /* one aligned block */
    uint8_t *bounce;           /* FMT_BATCH_DATA for data that is not aligned; made when first needed */
    unsigned n;
    struct rec *recs[FMT_BATCH_RECORDS];
    struct iovec iov[FMT_BATCH_RECORDS + 1];
    bool busy, done;
    uint64_t started_ns;
};

struct journal {
    struct dev dev;
    struct uring *uring;
    struct index *index;
    struct fmt_sb sb;          /* as last written or read, in disk byte order */
    uint64_t ring_bytes, head_pos, next_seq, life;
    uint64_t trim_pos, trim_seq;   /* durable */
    uint64_t free_pos, free_seq, free_life; /* nothing before is needed: what the next superblock may say */
    uint64_t durable_seq;
    uint64_t meta_number, fence_number; /* what the metadata have seen, or are known to */
    uint64_t meta_durable_seq;          /* the metadata say that batches up to here were durable */
    struct rec_list pending;
    uint64_t pending_bytes;
    unsigned pending_n, inflight;
    struct journal_slot slot[JOURNAL_INFLIGHT];
    bool failed, stuck; /* stuck: records wait for space */
    void (*durable)(void *arg, struct rec *r);
    void (*on_failed)(void *arg, int status);
    void *arg;
};

/* What replay found, in order of submission; an incomplete write at the very end is left out. */
struct journal_found {
    struct fmt_record rec;
    uint64_t file_off, place; /* place, crc: of a large write */
    uint32_t crc[EXT_BLOCKS];
    struct batch *batch;
};
typedef int journal_apply(void *arg, const struct journal_found *f, struct err *e);

/* Makes the file: writes all of it once, so that a later write changes data only, then the superblocks. */
MUST_CHECK int journal_format(const char *path, const char *cluster, const char *disk, const uint8_t journal_id[16],
                              uint64_t ring_bytes, bool in_memory, struct err *e);
/* Opens and checks the superblock: E_NOTFOUND, E_CORRUPT, E_VERSION, E_BUSY (another process). */
MUST_CHECK int journal_open(struct journal *j, const char *path, bool in_memory, struct err *e);
/* Reads what is not trimmed and begins a new life. Blocks. */
MUST_CHECK int journal_replay(struct journal *j, struct index *x, journal_apply *apply, void *arg, struct err *e);
void journal_close(struct journal *j); /* nothing in flight */
/* E_CORRUPT if the metadata have not seen what the journal was told that they had: they are older than it. */
MUST_CHECK int journal_meta_is_new(const struct journal *j, uint64_t meta_number, uint64_t fence_number, struct err *e);

/* Queues; the journal owns `r` until durable() or a failed op. */
void journal_append(struct journal *j, struct rec *r);
void journal_kick(struct journal *j); /* once per turn of the loop: builds and submits batches */
/* After a failure, or at close: takes the records that never left. */
struct rec *journal_take_pending(struct journal *j);
bool journal_idle(const struct journal *j);
bool journal_full(const struct journal *j); /* records wait for space */

/* Moves free_pos over the batches nobody needs; true if the superblock is worth writing. */
bool journal_trim_scan(struct journal *j);
/* The superblock that says so. Then, in a worker, journal_sb_write(); then journal_trimmed(). */
void journal_sb_next(struct journal *j, struct fmt_sb *ret_sb);
MUST_CHECK int journal_sb_write(const struct dev *d, const struct fmt_sb *sb, struct err *e);
void journal_trimmed(struct journal *j, const struct fmt_sb *sb);

static inline uint64_t journal_used(const struct journal *j) { return j->head_pos - j->trim_pos; }
static inline uint64_t journal_file_off(const struct journal *j, uint64_t pos) { return FMT_RING_AT + pos % j->ring_bytes; }
static inline uint32_t journal_padded(uint32_t length) { return (length + FMT_BLOCK - 1) / FMT_BLOCK * FMT_BLOCK; }

#endif
