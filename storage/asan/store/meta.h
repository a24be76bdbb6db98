/* Metadata of a disk: RocksDB in capacity_path/meta. Every value carries a format version and a crc32c over key and value.
 *
 * Keys (FORMAT.md): "L" label, "N" number of the last destage and the journal's end then, "G" number of the last fences,
 * 'F' shard fence, 'S' shard progress, 'E' extent, 'A' record set aside.
 * Every batch is written with sync. Threading: calls block; any thread, a batch belongs to one.
 */
#ifndef COHORT_STORAGE_STORE_META_H
#define COHORT_STORAGE_STORE_META_H

#include "storage/asan/store/index.h"

struct meta;

struct meta_label { char cluster[FMT_ID_MAX], disk[FMT_ID_MAX]; uint8_t journal_id[16]; };
struct meta_fence { uint64_t epoch, shard_bytes, floor_pos; bool exists; };
struct meta_progress { struct store_version last, commit; };
struct meta_aside { /* as struct rec; data_at: byte of the capacity device, PLACE_NONE: zeroes */
    struct store_version version;
    uint64_t offset, batch_seq, data_at;
    uint32_t length, crc;
    uint16_t lost;
    uint8_t type;
    bool shown;
};
struct meta_ext { uint64_t place; struct store_version version[EXT_CHUNKS]; uint32_t crc[EXT_BLOCKS]; };

/* E_NOTFOUND if there is none and !create; E_BUSY if another process has it open; E_CORRUPT. */
MUST_CHECK int meta_open(const char *path, bool create, struct meta **ret_meta, struct err *e);
void meta_close(struct meta *m); /* NULL is fine */

struct meta_visitor { /* each returns 0 or an error that ends the walk */
    int (*label)(void *arg, const struct meta_label *l, struct err *e);
    int (*number)(void *arg, uint64_t number, uint64_t durable_seq, struct err *e); /* of destage; journal batches then durable */
    int (*fences)(void *arg, uint64_t number, struct err *e);
    int (*fence)(void *arg, const struct store_shard_id *id, const struct meta_fence *f, struct err *e);
    int (*progress)(void *arg, const struct store_shard_id *id, const struct meta_progress *p, struct err *e);
    int (*ext)(void *arg, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x, struct err *e);
    int (*aside)(void *arg, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e);
};
/* Visits label, numbers, fences, progress, extents, records set aside (a shard's by arrival), in this order. E_CORRUPT names the key; E_VERSION. */
MUST_CHECK int meta_load(struct meta *m, const struct meta_visitor *v, void *arg, struct err *e);

/* Checks one key with its value (crc, version, lengths) and hands it over. What meta_load() does for each. */
MUST_CHECK int meta_visit(const struct meta_visitor *v, void *arg, const uint8_t *key, size_t key_n, const uint8_t *value, size_t n,
                          struct err *e);

struct meta_batch;
struct meta_batch *meta_batch_new(void);
void meta_batch_free(struct meta_batch *b);
void meta_put_label(struct meta_batch *b, const struct meta_label *l);
void meta_put_number(struct meta_batch *b, uint64_t number, uint64_t durable_seq);
void meta_put_fences(struct meta_batch *b, uint64_t number);
void meta_put_fence(struct meta_batch *b, const struct store_shard_id *id, const struct meta_fence *f);
void meta_put_progress(struct meta_batch *b, const struct store_shard_id *id, const struct meta_progress *p);
void meta_put_ext(struct meta_batch *b, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x);
void meta_delete_ext(struct meta_batch *b, const struct store_shard_id *id, uint32_t index);
void meta_delete_shard(struct meta_batch *b, const struct store_shard_id *id); /* extents, progress, records set aside; not the fence */
void meta_put_aside(struct meta_batch *b, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a);
void meta_delete_aside(struct meta_batch *b, const struct store_shard_id *id, uint64_t arrival);
/* Applies all of it durably, or nothing. */
MUST_CHECK int meta_commit(struct meta *m, struct meta_batch *b, struct err *e);

#endif
