/* On-disk structures of the journal: little-endian, fixed width, checksummed. FORMAT.md explains them and the values in
 * RocksDB. Fields are stored with htole*(); fmt_*_seal() and fmt_*_ok() compute and check the crc. */
#ifndef COHORT_STORAGE_STORE_FORMAT_H
#define COHORT_STORAGE_STORE_FORMAT_H

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "base/crc32c.h"

#define FMT_BLOCK 4096u
#define FMT_VERSION 3u /* of the journal and of raw labels; others are refused */
#define FMT_SB_MAGIC 0x424a4843u    /* "CHJB" */
#define FMT_BATCH_MAGIC 0x424a4844u
#define FMT_SB_COPY_AT(N) ((uint64_t)(N) * 32768u) /* two copies, 32 KiB apart */
#define FMT_RING_AT 65536u
#define FMT_ID_MAX 64u

/* Journal superblock: two copies, both written at each change, one after the other. */
struct fmt_sb {
    uint32_t magic, version;
    uint8_t cluster[FMT_ID_MAX], disk[FMT_ID_MAX]; /* NUL-padded text */
    uint8_t journal_id[16];  /* random; also in the metadata's label */
    uint64_t ring_bytes;
    uint64_t number;         /* +1 at each change */
    uint64_t life;           /* +1 at each open */
    uint64_t trim_pos, trim_seq; /* replay begins here: logical position and number of the batch */
    uint64_t trim_life;      /* of the last batch before trim_pos: what follows is not older */
    uint64_t durable_seq;    /* batches up to here were durable when this was written: replay must reach it */
    uint64_t meta_number;    /* the metadata must have seen at least this destage */
    uint64_t fence_number;   /* and this batch of fences and drops */
    uint8_t pad[FMT_BLOCK - 228];
    uint32_t crc;
};
_Static_assert(sizeof(struct fmt_sb) == FMT_BLOCK, "superblock is one block");
_Static_assert(offsetof(struct fmt_sb, crc) == FMT_BLOCK - 4, "no holes");

/* Label of a raw capacity device, its first block. Places 0 to FMT_RAW_PLACES - 1 hold it and nothing else. */
#define FMT_RAW_MAGIC 0x52484843u    /* "CHHR" */
#define FMT_RAW_PLACES 4u
struct fmt_raw {
    uint32_t magic, version;
    uint8_t cluster[FMT_ID_MAX], disk[FMT_ID_MAX]; /* NUL-padded text */
    uint8_t journal_id[16];
    uint8_t pad[FMT_BLOCK - 156];
    uint32_t crc;
};
_Static_assert(sizeof(struct fmt_raw) == FMT_BLOCK, "label is one block");

/* FMT_PLACED: a write of one whole extent, whose data lie in extents.dat already; its "data" are a struct fmt_placed. */
enum fmt_type { FMT_WRITE = 1, FMT_ZERO = 2, FMT_COPY = 3, FMT_COPY_ZERO = 4, FMT_PLACED = 5 };
enum { FMT_FIRST = 1, FMT_LAST = 2 }; /* parts of one store_write(): replay takes all or none */

struct fmt_record {
    uint8_t volume[16];
    uint32_t shard;
    uint8_t type, flags;
    uint16_t lost;        /* FMT_COPY: bit per FMT_BLOCK that is lost: it reads as damaged until written whole */
    uint64_t epoch, seq, commit_epoch, commit_seq;
    uint64_t offset;      /* in the shard */
    uint32_t length;      /* <= STORE_CHUNK, within one chunk; FMT_PLACED: FMT_EXTENT */
    uint32_t crc;         /* crc32c of the data, or of the struct fmt_placed */
    uint32_t data_block;  /* where the data begin, in blocks from the batch's start; 0 = no data */
    uint32_t zero2;
};
_Static_assert(sizeof(struct fmt_record) == 80, "fixed");

#define FMT_EXTENT (256u << 10)
struct fmt_placed {
    uint64_t place;                        /* number of the extent in extents.dat */
    uint32_t crc[FMT_EXTENT / FMT_BLOCK];  /* crc32c of each block there */
    uint8_t pad[FMT_BLOCK - 8 - 4 * (FMT_EXTENT / FMT_BLOCK)];
};
_Static_assert(sizeof(struct fmt_placed) == FMT_BLOCK, "one block");

#define FMT_BATCH_RECORDS 50u
struct fmt_batch {
    uint32_t magic;
    uint16_t version, n_records; /* 0 records: filler up to the end of the ring */
    uint64_t life;        /* never falls from batch to batch: a leftover of an earlier life is no successor */
    uint64_t seq;         /* +1 from batch to batch */
    uint64_t pos;         /* logical position: grows for ever; place in the ring = pos % ring_bytes */
    uint64_t durable_seq; /* all batches up to here were durable when this one was written */
    uint32_t total_bytes; /* with this header, a multiple of FMT_BLOCK */
    uint32_t crc;         /* of this block, itself as 0 */
    uint8_t journal_id[16];
    struct fmt_record record[FMT_BATCH_RECORDS];
    uint64_t meta_number, fence_number; /* as in the superblock, when this batch was written */
    uint8_t pad[FMT_BLOCK - 80 - 80 * FMT_BATCH_RECORDS];
};
_Static_assert(sizeof(struct fmt_batch) == FMT_BLOCK, "header is one block");

#define FMT_BATCH_DATA (1u << 20)
#define FMT_BATCH_MAX (FMT_BLOCK + FMT_BATCH_DATA)

static inline void fmt_sb_seal(struct fmt_sb *b)
{
    b->crc = htole32(crc32c(0, b, FMT_BLOCK - 4));
}
static inline bool fmt_sb_ok(const struct fmt_sb *b)
{
    return le32toh(b->magic) == FMT_SB_MAGIC && le32toh(b->crc) == crc32c(0, b, FMT_BLOCK - 4);
}
static inline uint32_t fmt_batch_crc(const struct fmt_batch *b)
{
    static const uint8_t none[4];
    const size_t at = offsetof(struct fmt_batch, crc);
    uint32_t c = crc32c(0, b, at);
    c = crc32c(c, none, 4);
    return crc32c(c, (const uint8_t *)b + at + 4, FMT_BLOCK - at - 4);
}
static inline void fmt_batch_seal(struct fmt_batch *b)
{
    b->crc = htole32(fmt_batch_crc(b));
}
static inline bool fmt_batch_ok(const struct fmt_batch *b)
{
    return le32toh(b->magic) == FMT_BATCH_MAGIC && le32toh(b->crc) == fmt_batch_crc(b);
}

#endif
