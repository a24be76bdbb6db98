/* Helpers of the store's tests: a disk in a temporary directory, operations that run the loop until they are done. */
#ifndef COHORT_TEST_STORE_UTIL_H
#define COHORT_TEST_STORE_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/crc32c.h"
#include "storage/asan/store/store.h"
#include "tests/lib/hung.h"

#define MIB (1u << 20)

struct disk {
    uv_loop_t loop;
    char dir[128], fast[160], capacity[160];
    struct store *s;
    struct store_conf conf;
    struct err e;
    unsigned failures;
};

struct wait { struct store_op *op; bool done; int status; struct err e; };

static inline void wait_done(struct store_op *op, int status, const struct err *e)
{
    struct wait *w = op->arg;
    assert_false(w->done);
    w->done = true;
    w->status = status;
    if (e)
        w->e = *e;
}

static inline void op_init(struct store_op *op, struct wait *w)
{
    *w = (struct wait){.op = op};
    op->done = wait_done;
    op->arg = w;
}

static inline int wait_for(struct disk *d, struct wait *w)
{
    while (!w->done)
        assert_true(uv_run(&d->loop, UV_RUN_ONCE) || w->done);
    d->e = w->e;
    return w->status;
}

/* The fastest place with O_DIRECT. */
static inline void make_dir(char *ret, size_t n)
{
    static const char *const roots[] = {"/dev/shm", "/tmp", "/var/tmp"};
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        snprintf(ret, n, "%s/cohort-store-XXXXXX", roots[i]);
        if (!mkdtemp(ret))
            continue;
        char probe[256];
        snprintf(probe, sizeof probe, "%s/probe", ret);
        int fd = open(probe, O_RDWR | O_CREAT | O_DIRECT, 0600);
        unlink(probe);
        if (fd >= 0) {
            close(fd);
            return;
        }
        rmdir(ret);
    }
    printf("no directory with O_DIRECT: skipped\n");
    exit(77);
}

static inline int remove_one(const char *path, const struct stat *st, int flag, struct FTW *f) { return remove(path); }

static inline void disk_init(struct disk *d)
{
    memset(d, 0, sizeof *d);
    make_dir(d->dir, sizeof d->dir);
    hung_scratch(d->dir);
    snprintf(d->fast, sizeof d->fast, "%s/fast", d->dir);
    snprintf(d->capacity, sizeof d->capacity, "%s/capacity", d->dir);
    assert_int_equal(mkdir(d->fast, 0700), 0);
    assert_int_equal(mkdir(d->capacity, 0700), 0);
    assert_int_equal(uv_loop_init(&d->loop), 0);
    d->conf = (struct store_conf){.fast_path = d->fast, .capacity_path = d->capacity, .disk_id = "disk-1",
                                  .cluster_uuid = "cluster-1", .journal_bytes = 16 * MIB, .create = true};
}

static inline int disk_open(struct disk *d)
{
    d->e = (struct err){0};
    return store_open(&d->loop, &d->conf, &d->s, &d->e);
}

static inline void disk_must_open(struct disk *d)
{
    int rc = disk_open(d);
    if (rc != E_OK)
        fail_msg("open: %d %s", rc, d->e.msg);
}

static inline void on_closed(void *arg) { *(bool *)arg = true; }

static inline void disk_close(struct disk *d)
{
    bool closed = false;
    if (!d->s)
        return;
    store_close(d->s, on_closed, &closed);
    while (!closed)
        uv_run(&d->loop, UV_RUN_ONCE);
    d->s = NULL;
}

static inline void disk_free(struct disk *d)
{
    disk_close(d);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&d->loop), 0);
    nftw(d->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    hung_scratch(NULL);
}

static inline struct store_shard_id shard_id(uint8_t volume, uint32_t index)
{
    struct store_shard_id id = {.index = index};
    memset(id.volume.b, volume, 16);
    return id;
}

static inline int do_fence(struct disk *d, struct store_shard_id id, uint64_t epoch, uint64_t bytes)
{
    struct store_op op;
    struct wait w;
    op_init(&op, &w);
    store_fence(d->s, &op, &id, epoch, bytes);
    assert_false(w.done);
    return wait_for(d, &w);
}

static inline int do_drop(struct disk *d, struct store_shard_id id, uint64_t epoch)
{
    struct store_op op;
    struct wait w;
    op_init(&op, &w);
    store_drop(d->s, &op, &id, epoch);
    assert_false(w.done);
    return wait_for(d, &w);
}

static inline int do_destage(struct disk *d)
{
    struct store_op op;
    struct wait w;
    op_init(&op, &w);
    store_destage_now(d->s, &op);
    return wait_for(d, &w);
}

static inline void fill(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i += 8) { /* lengths are multiples of 512 */
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t x = seed ^ seed >> 32;
        memcpy(p + i, &x, 8);
    }
}

/* seed 0: zero write. `skew`: data are not aligned. */
static inline int do_write(struct disk *d, struct store_shard_id id, uint64_t epoch, uint64_t seq, uint64_t commit,
                           uint64_t offset, uint32_t length, uint64_t seed, size_t skew)
{
    struct store_write q = {.shard = id, .version = {epoch, seq}, .commit_seq = commit, .offset = offset, .length = length,
                            .zero = seed == 0};
    struct wait w;
    op_init(&q.op, &w);
    if (seed) {
        q.data = iobuf_new(length + skew);
        q.data_off = skew;
        fill(q.data->data + skew, length, seed);
        q.crc = crc32c(0, q.data->data + skew, length);
    }
    store_write(d->s, &q);
    assert_false(w.done);
    iobuf_unref(q.data);
    return wait_for(d, &w);
}

static inline int do_copy(struct disk *d, struct store_shard_id id, uint64_t chunk, struct store_version v, uint64_t seed)
{
    struct store_copy q = {.shard = id, .chunk = chunk, .version = v, .zero = seed == 0};
    struct wait w;
    op_init(&q.op, &w);
    if (seed) {
        q.data = iobuf_new(STORE_CHUNK);
        fill(q.data->data, STORE_CHUNK, seed);
        q.crc = crc32c(0, q.data->data, STORE_CHUNK);
    }
    store_copy(d->s, &q);
    iobuf_unref(q.data);
    return wait_for(d, &w);
}

static inline int do_read(struct disk *d, struct store_shard_id id, uint64_t offset, uint32_t length, uint8_t *dst)
{
    struct store_read q = {.shard = id, .offset = offset, .length = length, .dst = dst};
    struct wait w;
    op_init(&q.op, &w);
    store_read(d->s, &q);
    assert_false(w.done);
    int rc = wait_for(d, &w);
    if (rc == E_OK)
        assert_int_equal(q.ret_crc, crc32c(0, dst, length));
    return rc;
}

static inline struct store_version do_version(struct disk *d, struct store_shard_id id, uint64_t chunk)
{
    struct store_version v = {99, 99};
    struct store_versions q = {.shard = id, .first_chunk = chunk, .count = 1, .ret = &v};
    struct wait w;
    op_init(&q.op, &w);
    store_versions(d->s, &q);
    assert_int_equal(wait_for(d, &w), E_OK);
    return v;
}

#endif
