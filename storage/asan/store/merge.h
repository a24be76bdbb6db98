/* One round of destage as a worker carries it out: plain data in, plain data out, no access to the index. */
#ifndef COHORT_STORAGE_STORE_MERGE_H
#define COHORT_STORAGE_STORE_MERGE_H

#include "storage/asan/store/dev.h"
#include "storage/asan/store/index.h"
#include "storage/asan/store/meta.h"

#define MERGE_SECTORS (STORE_EXTENT / 512u)

struct merge_rec { /* by arrival */
    uint64_t file_off;
    uint32_t begin, length; /* in the extent */
    uint32_t crc;
    bool zero;
    bool aside;             /* file_off is of the capacity device */
    uint16_t lost;          /* of a copy of a chunk: bit per block */
    struct store_version version;
    bool covered;           /* worker's: newer ones leave nothing of it */
    size_t data_pos;        /* worker's: where its data are in memory */
};

struct merge_item { /* one extent */
    struct store_shard_id id;
    uint32_t index;
    uint64_t old_place, new_place; /* PLACE_NONE: none; equal: in place */
    uint64_t ours[MERGE_SECTORS / 64];  /* sectors that `recs` cover */
    uint64_t dirty[MERGE_SECTORS / 64]; /* sectors that any journal record covers */
    struct merge_rec *recs;
    size_t n_recs;
    struct meta_ext meta;          /* in: as it was; out: as it is to be. place is set: PLACE_NONE if all is zero */
    struct ext *ext;               /* the loop's */
    struct rec **which;            /* the loop's: the records behind `recs` */
    struct placed *adopt;          /* no data to move: the extent gets the place of this large write, as `meta` says already */
    bool took_reserved;            /* new_place was the one reserved for this extent */
};

struct merge_shard { struct store_shard_id id; struct meta_progress progress; struct shard *shard; };

struct merge_aside { /* a record's key in the metadata */
    struct store_shard_id id;
    uint64_t arrival;
    struct meta_aside value;
    const struct dev *from;        /* not NULL: its data are to be copied to value.data_at */
    uint64_t from_off;
    struct rec *rec;               /* the loop's */
    struct aside *to;              /* the loop's */
};

struct dev_batch;

struct merge_round {
    struct dev_batch *batch;       /* to read and write with */
    const struct dev *journal, *extents;
    struct meta *meta;
    uint64_t number;               /* of this destage */
    uint64_t durable_seq;          /* journal batches up to here are durable */
    struct merge_item *items;
    size_t n_items;
    struct merge_shard *shards;
    size_t n_shards;
    struct merge_aside *keep, *hide, *forget; /* to be put (data first), put again, deleted */
    size_t n_keep, n_hide, n_forget;
    unsigned poisoned;             /* blocks whose contents were lost; they stay unreadable */
    int status;
    struct err e;
};

/* True if destage may overwrite the old place: every block it touches is covered by records that stay in the journal until
 * the metadata say otherwise, so replay repairs whatever a crash leaves of it. */
bool merge_in_place_ok(const struct merge_item *m);
/* Writes extents and data of records set aside, syncs, then the metadata in one batch. Blocks. Sets status and e. */
void merge_run(struct merge_round *r);

#endif
