/* Store: one disk's durable part of aSAN: a write journal on the fast device, extents and RocksDB metadata on the
 * capacity device. It knows replicas of shards, not volumes, owners or peers; the replica protocol (repl/) is above it.
 *
 * Threading: one libuv loop (an I/O thread). Callbacks run on that loop, never inside the call that started them.
 * Ownership: request structs and buffers are the caller's until `done`.
 * Durability: a completed store_write/copy/fence/drop survives power loss. Writes of one shard become durable in the
 * order they were submitted: after a crash the shard holds a prefix of them (replay stops at the first torn batch).
 * Data flow: append to the journal (O_DIRECT|O_DSYNC, io_uring, group commit) -> dirty index in memory -> in the
 * background, records with seq <= the shard's commit mark are merged into 256 KiB extents, one RocksDB batch records
 * place, chunk versions and crc32c per 4 KiB, then the journal is trimmed. With store_conf.direct, whole extents of large
 * writes go to the capacity device first; the journal then gets only where they are.
 */
#ifndef COHORT_STORAGE_STORE_H
#define COHORT_STORAGE_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"

#ifndef STORE_CHUNK                 /* the simulator has smaller ones */
#define STORE_CHUNK (64u << 10)     /* unit of versions and of resync; records never cross a chunk border on disk */
#endif
#define STORE_EXTENT (256u << 10)   /* unit of allocation on the capacity device */
#define STORE_WRITE_MAX (4u << 20)

struct store;

struct store_version { uint64_t epoch, seq; }; /* ordered by epoch, then seq; {0,0} = never written */
static inline int store_version_cmp(struct store_version a, struct store_version b)
{
    return a.epoch != b.epoch ? (a.epoch < b.epoch ? -1 : 1) : a.seq != b.seq ? (a.seq < b.seq ? -1 : 1) : 0;
}

struct store_shard_id { struct id volume; uint32_t index; };

struct store_conf {
    const char *fast_path;      /* directory for the journal; E_INVAL names what is wrong with it */
    /* Directory for extents and metadata, may equal fast_path; or a block device (or a file that stands for one) for extents
     * alone: the metadata are then at fast_path. A device that holds anything is refused with E_CONFLICT. */
    const char *capacity_path;
    const char *disk_id, *cluster_uuid; /* labels: a directory labelled otherwise is refused with E_CONFLICT */
    uint64_t limit_bytes;       /* extents may take so much of capacity_path; 0 = what the file system has */
    uint64_t aside_after_bytes;  /* of journal, behind which writes that nobody settles are set aside; 0: half the journal */
    uint64_t journal_bytes;     /* size of the ring at creation, a multiple of 1 MiB, >= 16 MiB */
    uint64_t cache_bytes;       /* read cache at fast_path, for capacity devices that are slow to read; 0 = none. Lost at restart */
    bool direct;                /* whole extents of large writes go to the capacity device at once, past the journal */
    bool in_memory;             /* the paths are on a tmpfs: files are opened without O_DIRECT; contents last as long as it does */
    bool create;                /* label and format if empty; false: E_NOTFOUND if not formatted */
};

/* Opens and replays; blocks (bounded by the journal's size). E_CORRUPT: a checksum or structure is wrong in a way that
 * replay must not repair by itself (a torn tail is normal and no error); E_VERSION: made by a newer Cohort. */
MUST_CHECK int store_open(uv_loop_t *loop, const struct store_conf *conf, struct store **ret_store, struct err *e);
/* Finishes what is in flight, closes; `done` on the loop. What is journaled need not be destaged first. */
void store_close(struct store *s, void (*done)(void *arg), void *arg);

struct store_cache_usage {
    uint64_t size_bytes, used_bytes, hits, misses; /* hits, misses: blocks of 4 KiB since store_open() */
    unsigned filling;                              /* copies under way to the cache */
};
struct store_usage {
    struct store_cache_usage cache;   /* zeroes: there is none, or its device has failed */
    uint64_t size_bytes, used_bytes;  /* of extents: what there may be, what is taken or promised to accepted writes */
    uint64_t journal_bytes, journal_used_bytes;
    uint64_t dirty_bytes;             /* in the journal (or set aside) and not in extents yet */
    uint64_t aside_bytes;             /* of writes that nobody settled for so long that the journal was rid of them */
    bool full;                        /* little room is left: store_room() says no to new writes */
};
void store_usage(const struct store *s, struct store_usage *ret);
/* Space that a shard's extents take on this disk, in bytes. */
uint64_t store_shard_used(const struct store *s, const struct store_shard_id *id);
/* Is there room for a write of data to this range? If so, and nothing else is written before it, store_write() and
 * store_copy() of it will not fail with E_NOSPC. `use_reserve`: the last places, kept so that what is already under way at
 * other replicas can be finished and discards and destage go on, may be taken, too. May block for the file system. */
bool store_room(struct store *s, const struct store_shard_id *id, uint64_t offset, uint32_t length, bool use_reserve);
/* Requests to the disk's devices that ended since the last call, their latencies together, and how long the oldest that has
 * not ended has been waiting for the device. */
void store_io_stats(struct store *s, uint64_t *ret_n, uint64_t *ret_sum_us, uint64_t *ret_oldest_ms);
/* Called once when a write to a device failed: nothing later is acknowledged; the disk must be taken out. */
void store_on_failure(struct store *s, void (*failed)(void *arg, const struct err *e), void *arg);

/* ---- shards ---- */

struct store_shard_info {
    bool exists;
    uint64_t epoch;                 /* installed fence */
    uint64_t shard_bytes;
    struct store_version last;      /* highest record accepted */
    struct store_version commit;    /* highest commit mark learnt */
};
void store_shard_info(const struct store *s, const struct store_shard_id *id, struct store_shard_info *ret); /* memory only */

/* Every shard that exists; `fn` must not change the store. Memory only. */
void store_each_shard(const struct store *s, void (*fn)(void *arg, const struct store_shard_id *id), void *arg);

struct store_op { /* caller-owned; common to all asynchronous operations */
    void (*done)(struct store_op *op, int status, const struct err *e);
    void *arg;
    void *priv[4]; /* the store's */
};

/* Makes the shard if absent and raises its fence to `epoch` durably. E_STALE if a higher one is installed. */
void store_fence(struct store *s, struct store_op *op, const struct store_shard_id *id, uint64_t epoch, uint64_t shard_bytes);
/* Deletes the shard's data and metadata (the fence stays for `epoch` or higher so that a late write is refused). */
void store_drop(struct store *s, struct store_op *op, const struct store_shard_id *id, uint64_t epoch);

struct store_write {
    struct store_op op;
    struct store_shard_id shard;
    struct store_version version;
    uint64_t commit_seq;         /* of version.epoch */
    uint64_t offset;             /* in the shard, multiple of 512 */
    uint32_t length;             /* multiple of 512, <= STORE_WRITE_MAX */
    bool zero;                   /* no data */
    uint32_t crc;                /* crc32c of data, verified before anything is written */
    struct iobuf *data;          /* referenced by the store while it needs it */
    size_t data_off;             /* data starts here in the iobuf */
};
/* The caller has checked epoch and order. Done = durable. E_NOSPC leaves no trace. Journal full: waits for destage. */
void store_write(struct store *s, struct store_write *w);

/* Raises the commit mark (memory; it becomes durable with the next record). Needed so that an idle shard destages. */
void store_commit_mark(struct store *s, const struct store_shard_id *id, struct store_version mark);

struct store_read {
    struct store_op op;
    struct store_shard_id shard;
    uint64_t offset; uint32_t length; /* 512-multiples, <= STORE_WRITE_MAX */
    uint8_t *dst;                     /* `length` bytes, any alignment; never-written ranges read as zeroes */
    uint32_t ret_crc;                 /* crc32c of what was put into dst */
    bool no_cache;                    /* checks: from the devices that hold it for good, whatever the read cache has */
};
/* Newest content, checksums verified; E_CORRUPT says which range is bad (the message names shard and offset). */
void store_read(struct store *s, struct store_read *r);

#define STORE_MAP_BLOCK 4096u
/* What is there: one byte per STORE_MAP_BLOCK of [offset, offset+length) (multiples of it) into `ret`: 1 = may hold data,
 * 0 = reads as zeroes and takes no space. Memory only. E_NOTFOUND, E_INVAL. */
MUST_CHECK int store_map(const struct store *s, const struct store_shard_id *id, uint64_t offset, uint32_t length, uint8_t *ret);

/* ---- for owner change ---- */

struct store_tail_rec { struct store_version version; uint64_t offset; uint32_t length; bool zero; };
/* Records above the commit mark, ascending by version; *ret is malloc'ed, caller frees. Memory only. A record that was
 * split at chunk borders appears as its parts. */
size_t store_tail(const struct store *s, const struct store_shard_id *id, struct store_tail_rec **ret);

struct store_record_read {
    struct store_op op;
    struct store_shard_id shard;
    struct store_version version; uint64_t offset; /* one of store_tail's */
    uint8_t *dst; uint32_t length;                 /* as in the tail */
    uint32_t ret_crc;
};
void store_record_read(struct store *s, struct store_record_read *r);

/* ---- for resync ---- */

struct store_versions {
    struct store_op op;
    struct store_shard_id shard;
    uint64_t first_chunk; uint32_t count;
    struct store_version *ret; /* `count` of them; {0,0} = never written */
};
void store_versions(struct store *s, struct store_versions *v);

/* Bit per chunk from `first_chunk` (at most 64): never written here. Memory only. All of them if there is no such shard. */
uint64_t store_absent(const struct store *s, const struct store_shard_id *id, uint64_t first_chunk, unsigned count);

struct store_copy {
    struct store_op op;
    struct store_shard_id shard;
    uint64_t chunk;
    struct store_version version;  /* the source's; replaces ours whatever it was */
    bool zero;
    uint16_t lost;                 /* bit per 4 KiB: nobody has its bytes; reads as E_CORRUPT until written whole. Not with `zero` */
    uint32_t crc;
    struct iobuf *data; size_t data_off; /* STORE_CHUNK bytes */
};
/* Replaces one whole chunk, journaled and durable when done. Its version becomes exactly `version`. */
void store_copy(struct store *s, struct store_copy *c);

/* Tests: destage everything that may be, then `done`. */
void store_destage_now(struct store *s, struct store_op *op);

#endif
