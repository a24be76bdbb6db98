/* Index: what the store knows in memory about shards, extents and journal records that are not destaged yet.
 *
 * Per (shard, extent) one `struct ext`: the metadata of what is on the capacity device, and per chunk the dirty segments,
 * ordered by offset and not overlapping: the newest by arrival wins. Arrival is the order in which records became durable
 * in the journal, which is the order of submission.
 *
 * A record is needed while a segment refers to it (reads, destage), while it is in its shard's tail (above the commit mark:
 * owner change), or while something reads it (pins). rec_settle() lets go when none holds: of its journal space, or, if it was
 * set aside (aside.h), of its key in the metadata.
 *
 * Threading: the loop's thread, plus store_open().
 */
#ifndef COHORT_STORAGE_STORE_INDEX_H
#define COHORT_STORAGE_STORE_INDEX_H

#include <sys/queue.h>
#include "base/htab.h"
#include "storage/asan/store/format.h"
#include "storage/asan/store/store.h"

#define EXT_CHUNKS (STORE_EXTENT / STORE_CHUNK)
#define EXT_BLOCKS (STORE_EXTENT / FMT_BLOCK)
#define CHUNK_BLOCKS (STORE_CHUNK / FMT_BLOCK)
#define PLACE_NONE UINT64_MAX /* the whole extent reads as zeroes */

TAILQ_HEAD(direct_list, direct);
TAILQ_HEAD(rec_list, rec);

struct shard {
    struct htab_node node;
    struct store_shard_id id;
    bool exists;
    bool dropping;          /* store_drop() accepted: writes and reads are refused from then on */
    unsigned pending;       /* records submitted, not durable yet */
    bool progress_dirty;    /* durable_last or commit changed since they were put into the metadata */
    uint64_t epoch, shard_bytes;
    uint64_t places;        /* that its extents have */
    uint64_t floor_pos;     /* journal records before this position belong to a dropped predecessor */
    struct store_version last;         /* accepted */
    struct store_version durable_last; /* in the journal: all that may be put into the metadata */
    struct store_version commit;
    struct direct_list held; /* operations whose records wait for a large write's data (direct.c) */
    TAILQ_HEAD(, rec) tail; /* WRITE and ZERO above the commit mark, ascending */
    LIST_HEAD(, ext) exts;
};

/* A large write of one whole extent: its data were made durable in a place of their own before its record went into the
 * journal (direct.c). In the index it is a record per chunk. Its place is taken from the moment of the write until the record
 * is trimmed, whatever happens to the extent meanwhile: replay finds there what the record says. If the place has become the
 * extent's own by then, it stays with the extent. */
struct placed {
    uint64_t place;
    uint32_t crc[EXT_BLOCKS];
    struct store_version version;
    struct ext *home;             /* the extent whose place it has become; NULL: not yet, or not any more */
    struct aside *aside;          /* its records were set aside: the place is that one's, too */
    unsigned recs, dirty;         /* records of it that are not settled; that have segments */
    uint64_t pos;                 /* of its batch; set when that leaves the index */
    struct fmt_placed *block;     /* for the journal, until it is durable */
    struct rec *part[EXT_CHUNKS]; /* until it is durable; the first one stands for all in the journal's queue */
    TAILQ_ENTRY(placed) entry;    /* in its batch, then in index.leaving */
};
TAILQ_HEAD(placed_list, placed);

struct batch { /* one in the journal that is not trimmed */
    uint64_t seq, pos, life;
    uint32_t total_bytes;
    struct rec_list recs;   /* not settled; from the moment the batch is built */
    bool durable;
    struct placed_list placed;
    TAILQ_ENTRY(batch) entry;
};

struct rec {
    struct shard *shard;
    struct ext *ext;
    struct store_version version;
    uint64_t offset;        /* in the shard */
    uint32_t length, crc;
    uint8_t type, flags;    /* fmt_type, FMT_FIRST|FMT_LAST */
    uint16_t lost;          /* of a copy: bit per block of the chunk */
    bool in_tail, destaging; /* destaging: a round has it in hand */
    bool keyed, shown, hiding; /* set aside: the metadata have it; as one with segments; they are to be told that it has none */
    uint64_t arrival;
    uint64_t file_off;      /* of its data in the journal, or on the capacity device if it was set aside */
    struct batch *batch;    /* NULL: set aside */
    uint64_t batch_seq;     /* set aside: of the batch it was in */
    struct aside *aside;    /* set aside, with data: where they are */
    struct placed *placed;  /* its data are there; NULL: in the journal, or zeroes */
    unsigned segs, pins;
    struct iobuf *data;     /* until it is durable */
    size_t data_off;
    struct store_op *op;    /* on the last part of an operation: completes with it */
    TAILQ_ENTRY(rec) queue, by_shard, by_chunk, by_batch;
};

struct seg {
    struct seg *next;
    struct rec *rec;
    uint32_t begin, end;    /* in the chunk */
};

struct ext {
    struct htab_node node;
    struct shard *shard;
    uint32_t index;
    bool has_meta, on_dirty;
    bool counted;           /* a place is reserved for it (alloc.h) */
    bool destaging;
    uint64_t gen;           /* changes when a destage changed what is on the device: a read that raced starts again */
    unsigned pending;       /* records submitted, not durable yet */
    unsigned n_recs;
    uint64_t place;         /* number of the extent in extents.dat, or PLACE_NONE */
    struct store_version version[EXT_CHUNKS];
    uint32_t *crc;          /* EXT_BLOCKS of them; NULL while place is PLACE_NONE */
    struct placed *home;    /* `place` came from this one, whose record is still in the journal */
    struct placed *fresh;   /* the newest large write that the metadata do not have yet; it is destaged before anything else */
    struct seg *segs[EXT_CHUNKS];
    struct rec_list recs[EXT_CHUNKS]; /* with segments, by arrival */
    TAILQ_ENTRY(ext) dirty;
    LIST_ENTRY(ext) of_shard;
};
TAILQ_HEAD(ext_list, ext);

struct index {
    struct htab shards, exts;
    struct ext_list dirty;  /* extents with records, longest dirty first */
    TAILQ_HEAD(, batch) batches;
    struct placed_list leaving; /* their batches are gone from the index; to be let go when the trim is durable */
    unsigned n_placed;          /* in batches and in `leaving` */
    uint64_t arrivals, gens;
    uint64_t dirty_bytes;       /* not in extents yet, but for those of large writes */
    struct rec_list hide;       /* set aside, shown by the metadata, without segments now */
    struct rec_list forget;     /* set aside, settled: their keys are to go */
    TAILQ_HEAD(, aside) asides; /* places with data of records set aside */
    uint64_t aside_bytes;       /* of records set aside that are not settled */
};

void index_init(struct index *x);
void index_free(struct index *x);

struct shard *shard_find(const struct index *x, const struct store_shard_id *id);
struct shard *index_shard(struct index *x, const struct store_shard_id *id); /* makes it, exists = false */
struct ext *ext_find(const struct index *x, const struct shard *sh, uint32_t index);
struct ext *ext_get(struct index *x, struct shard *sh, uint32_t index);
void ext_put(struct index *x, struct ext *t); /* frees it if it says nothing any more */

static inline bool rec_is_zero(const struct rec *r) { return r->type == FMT_ZERO || r->type == FMT_COPY_ZERO; }
static inline bool rec_is_copy(const struct rec *r) { return r->type == FMT_COPY || r->type == FMT_COPY_ZERO; }
static inline unsigned rec_chunk(const struct rec *r) { return (unsigned)(r->offset / STORE_CHUNK % EXT_CHUNKS); }
/* Settled cluster-wide (or a copy of what is): it may leave the journal. */
static inline bool rec_committed(const struct rec *r)
{
    return rec_is_copy(r) || store_version_cmp(r->version, r->shard->commit) <= 0;
}

struct rec *rec_new(struct shard *sh, struct ext *t, struct store_version v, uint64_t offset, uint32_t length, uint8_t type);
/* `r` (batch and ext set) became durable: it is the newest of what it covers. */
void index_insert(struct index *x, struct rec *r);
/* At open: `r` was set aside; `shown`: it has the segments that what is in the journal leaves it. */
void index_insert_aside(struct index *x, struct rec *r, bool shown);
/* All records of a large write (batch and ext set) became durable. */
void index_insert_placed(struct index *x, struct placed *p);
/* Its content is on the capacity device: takes its segments out. */
void index_remove(struct index *x, struct rec *r);
/* Raises the commit mark; what falls out of the tail is settled. */
void index_commit(struct index *x, struct shard *sh, struct store_version mark);
/* Takes every record and extent of a dropped shard out; `place_gone` for each place that becomes free. */
void index_drop(struct index *x, struct shard *sh, void (*place_gone)(void *arg, struct ext *t), void *arg);
void rec_settle(struct index *x, struct rec *r);
struct batch *batch_new(struct index *x, uint64_t seq, uint64_t pos, uint64_t life);
/* Nobody needs it. Its large writes go to `leaving`. */
void batch_free(struct index *x, struct batch *b);
/* Newest version of a chunk, {0,0} if never written. */
struct store_version index_version(const struct index *x, const struct shard *sh, uint64_t chunk);

#endif
