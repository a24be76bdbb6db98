/* Store: what a replica does every day - write, overwrite, read, destage, reopen, copy, fence, drop - against a model. */
#include "test_store_util.h"
#include "base/clock.h"
#include "base/fault.h"

#define SHARD_BYTES (4ull * MIB)

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    disk_must_open(d);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    fault_disarm_all();
    disk_free(*state);
    free(*state);
    return 0;
}

static void reopen(struct disk *d)
{
    disk_close(d);
    disk_must_open(d);
}

static void write_read(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(1, 0);
    uint8_t *want = malloc(65536), *got = malloc(65536);
    assert_int_equal(do_write(d, id, 1, 1, 0, 0, 4096, 7, 0), E_NOTFOUND);
    assert_int_equal(do_fence(d, id, 1, SHARD_BYTES), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 8192, 4096, 7, 0), E_OK);
    assert_int_equal(do_write(d, id, 1, 2, 1, 512, 1024, 8, 512), E_OK);
    memset(want, 0, 65536);
    fill(want + 8192, 4096, 7);
    fill(want + 512, 1024, 8);
    for (int round = 0; round < 4; round++) {
        memset(got, 0xaa, 65536);
        assert_int_equal(do_read(d, id, 0, 65536, got), E_OK);
        assert_memory_equal(got, want, 65536);
        assert_int_equal(do_read(d, id, 8704, 512, got), E_OK);
        assert_memory_equal(got, want + 8704, 512);
        struct store_version v = do_version(d, id, 0);
        assert_int_equal(v.epoch, 1);
        assert_int_equal(v.seq, 2);
        assert_int_equal(do_version(d, id, 1).epoch, 0);
        if (round == 0)
            assert_int_equal(do_destage(d), E_OK);
        else
            reopen(d);
        if (round == 1) {
            store_commit_mark(d->s, &id, (struct store_version){1, 2});
            assert_int_equal(do_destage(d), E_OK);
            struct store_usage u;
            store_usage(d->s, &u);
            assert_int_equal(u.dirty_bytes, 0);
            assert_int_equal(u.journal_used_bytes, 0);
            assert_int_equal(u.used_bytes, STORE_EXTENT);
        }
    }
    free(want);
    free(got);
}

/* Random writes, zeroes, copies, destages and reopens of two shards, compared with plain memory. */
static void model(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id[2] = {shard_id(1, 0), shard_id(1, 1)};
    uint8_t *mem[2] = {calloc(1, SHARD_BYTES), calloc(1, SHARD_BYTES)}, *got = malloc(SHARD_BYTES);
    struct store_version version[2][SHARD_BYTES / STORE_CHUNK] = {0};
    uint64_t seq[2] = {0, 0};
    srand(1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(do_fence(d, id[i], 1, SHARD_BYTES), E_OK);
    for (int step = 0; step < 1200; step++) {
        int i = rand() % 2, what = rand() % 100;
        uint32_t max = rand() % 10 == 0 ? MIB : rand() % 3 == 0 ? 4096 : 65536;
        uint32_t length = (uint32_t)(rand() % (int)(max / 512) + 1) * 512;
        uint64_t offset = (uint64_t)(rand() % (int)((SHARD_BYTES - length) / 512 + 1)) * 512;
        if (rand() % 2) {
            offset = offset / 4096 * 4096;
            length = (length + 4095) / 4096 * 4096;
            if (offset + length > SHARD_BYTES)
                continue;
        }
        if (what < 75) {
            uint64_t seed = rand() % 8 == 0 ? 0 : (uint64_t)step + 1;
            seq[i]++;
            assert_int_equal(do_write(d, id[i], 1, seq[i], seq[i] > 3 ? seq[i] - 3 : 0, offset, length, seed,
                                      rand() % 2 ? 0 : 512), E_OK);
            if (seed)
                fill(mem[i] + offset, length, seed);
            else
                memset(mem[i] + offset, 0, length);
            for (uint64_t c = offset / STORE_CHUNK; c <= (offset + length - 1) / STORE_CHUNK; c++)
                version[i][c] = (struct store_version){1, seq[i]};
        } else if (what < 80) {
            uint64_t c = (uint64_t)rand() % (SHARD_BYTES / STORE_CHUNK), seed = rand() % 3 ? (uint64_t)step + 1 : 0;
            version[i][c] = (struct store_version){1, (uint64_t)rand() % 10000 + 1};
            assert_int_equal(do_copy(d, id[i], c, version[i][c], seed), E_OK);
            memset(mem[i] + c * STORE_CHUNK, 0, STORE_CHUNK);
            if (seed)
                fill(mem[i] + c * STORE_CHUNK, STORE_CHUNK, seed);
        } else if (what < 95) {
            assert_int_equal(do_read(d, id[i], offset, length, got), E_OK);
            assert_memory_equal(got, mem[i] + offset, length);
        } else if (what < 98) {
            assert_int_equal(do_destage(d), E_OK);
        } else {
            reopen(d);
        }
        if (step % 100 != 99)
            continue;
        for (i = 0; i < 2; i++) {
            assert_int_equal(do_read(d, id[i], 0, SHARD_BYTES, got), E_OK);
            assert_memory_equal(got, mem[i], SHARD_BYTES);
            for (uint64_t c = 0; c < SHARD_BYTES / STORE_CHUNK; c++)
                assert_int_equal(store_version_cmp(do_version(d, id[i], c), version[i][c]), 0);
        }
    }
    free(mem[0]);
    free(mem[1]);
    free(got);
}

static void tail(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(2, 3);
    struct store_tail_rec *t;
    struct store_shard_info info;
    uint8_t got[8192], want[8192];
    assert_int_equal(do_fence(d, id, 4, SHARD_BYTES), E_OK);
    assert_int_equal(do_write(d, id, 4, 1, 0, 0, 4096, 1, 0), E_OK);
    assert_int_equal(do_write(d, id, 4, 2, 0, 0, 4096, 2, 0), E_OK);
    assert_int_equal(do_write(d, id, 4, 3, 1, STORE_CHUNK - 4096, 8192, 3, 0), E_OK);
    assert_int_equal(do_write(d, id, 4, 4, 0, 65536, 512, 0, 0), E_OK);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(do_destage(d), E_OK);
        assert_int_equal(store_tail(d->s, &id, &t), 4); /* 2; 3 in two parts; 4 */
        assert_int_equal(t[0].version.seq, 2);
        assert_int_equal(t[1].version.seq, 3);
        assert_int_equal(t[2].offset, STORE_CHUNK);
        assert_true(t[3].zero);
        fill(want, 8192, 3);
        struct store_record_read q = {.shard = id, .version = t[2].version, .offset = t[2].offset, .dst = got, .length = 4096};
        struct wait w;
        op_init(&q.op, &w);
        store_record_read(d->s, &q);
        assert_int_equal(wait_for(d, &w), E_OK);
        assert_memory_equal(got, want + 4096, 4096);
        assert_int_equal(q.ret_crc, crc32c(0, got, 4096));
        free(t);
        reopen(d);
    }
    store_shard_info(d->s, &id, &info);
    assert_true(info.exists);
    assert_int_equal(info.epoch, 4);
    assert_int_equal(info.last.seq, 4);
    assert_int_equal(info.commit.seq, 1);
    assert_int_equal(do_fence(d, id, 5, SHARD_BYTES), E_OK);
    assert_int_equal(do_write(d, id, 4, 5, 0, 0, 512, 9, 0), E_STALE);
    assert_int_equal(do_write(d, id, 5, 1, 1, 0, 4096, 5, 0), E_OK);
    assert_int_equal(store_tail(d->s, &id, &t), 0);
    free(t);
    assert_int_equal(do_destage(d), E_OK);
    reopen(d);
    store_shard_info(d->s, &id, &info);
    assert_int_equal(info.epoch, 5);
    assert_int_equal(info.last.epoch, 5);
}

static void fence_and_drop(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(3, 0);
    struct store_shard_info info;
    struct store_usage u;
    uint8_t got[4096], zero[4096] = {0};
    assert_int_equal(do_fence(d, id, 7, SHARD_BYTES), E_OK);
    assert_int_equal(do_fence(d, id, 7, SHARD_BYTES), E_OK);
    assert_int_equal(do_fence(d, id, 6, SHARD_BYTES), E_STALE);
    assert_non_null(strstr(d->e.msg, "installed is 7"));
    assert_int_equal(do_fence(d, id, 8, SHARD_BYTES / 2), E_INVAL);
    assert_int_equal(do_write(d, id, 7, 1, 0, 0, 4096, 1, 0), E_OK);
    assert_int_equal(do_write(d, id, 7, 2, 1, MIB, 4096, 1, 0), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_drop(d, id, 6), E_STALE);
    assert_int_equal(do_drop(d, id, 9), E_OK);
    for (int round = 0; round < 3; round++) {
        store_shard_info(d->s, &id, &info);
        assert_false(info.exists);
        assert_int_equal(info.epoch, 9);
        store_usage(d->s, &u);
        assert_int_equal(u.used_bytes, 0);
        assert_int_equal(do_write(d, id, 9, 3, 0, 0, 4096, 1, 0), E_NOTFOUND);
        assert_int_equal(do_read(d, id, 0, 4096, got), E_NOTFOUND);
        assert_int_equal(do_fence(d, id, 8, SHARD_BYTES), E_STALE);
        reopen(d);
    }
    assert_int_equal(do_fence(d, id, 9, SHARD_BYTES), E_OK);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(do_read(d, id, 0, 4096, got), E_OK);
        assert_memory_equal(got, zero, 4096);
        reopen(d);
    }
    assert_int_equal(do_write(d, id, 9, 1, 1, 4096, 4096, 1, 0), E_OK);
    reopen(d);
    assert_int_equal(do_read(d, id, 0, 4096, got), E_OK);
    assert_memory_equal(got, zero, 4096);
}

/* Many writes at once: more than the journal holds, so they wait for destage; they complete in order. */
struct many { struct store_write q; struct many *before; bool done; unsigned *left; };

static void many_done(struct store_op *op, int status, const struct err *e)
{
    struct many *m = op->arg;
    assert_int_equal(status, E_OK);
    assert_true(!m->before || m->before->done);
    m->done = true;
    --*m->left;
}

static void back_pressure(void **state)
{
    enum { N = 600 };
    struct disk *d = *state;
    struct store_shard_id id = shard_id(4, 0);
    struct many *m = calloc(N, sizeof *m);
    uint8_t *got = malloc(65536), *want = malloc(65536);
    unsigned left = N;
    assert_int_equal(do_fence(d, id, 1, 64 * MIB), E_OK);
    for (unsigned i = 0; i < N; i++) {
        struct store_write *q = &m[i].q;
        *q = (struct store_write){.shard = id, .version = {1, i + 1}, .commit_seq = i, .offset = (uint64_t)i * 65536,
                                  .length = 65536, .data = iobuf_new(65536)};
        fill(q->data->data, 65536, i + 1);
        q->crc = crc32c(0, q->data->data, 65536);
        q->op.done = many_done;
        q->op.arg = &m[i];
        m[i].before = i ? &m[i - 1] : NULL;
        m[i].left = &left;
        store_write(d->s, q);
        iobuf_unref(q->data);
    }
    while (left)
        uv_run(&d->loop, UV_RUN_ONCE);
    reopen(d);
    for (unsigned i = 0; i < N; i += 7) {
        fill(want, 65536, i + 1);
        assert_int_equal(do_read(d, id, (uint64_t)i * 65536, 65536, got), E_OK);
        assert_memory_equal(got, want, 65536);
    }
    free(m);
    free(got);
    free(want);
}

static void count_down(struct store_op *op, int status, const struct err *e)
{
    assert_int_equal(status, E_OK);
    --*(unsigned *)op->arg;
}

/* A shard is dropped while its writes wait for journal space: the space still comes, so the drop does, too. */
static void drop_when_full(void **state)
{
    enum { N = 600 };
    struct disk *d = *state;
    struct store_shard_id id = shard_id(4, 0);
    struct store_write *q = calloc(N, sizeof *q);
    unsigned left = N;
    struct store_op op;
    struct wait w;
    assert_int_equal(do_fence(d, id, 1, 64 * MIB), E_OK);
    for (unsigned i = 0; i < N; i++) {
        q[i] = (struct store_write){.op = {.done = count_down, .arg = &left}, .shard = id, .version = {1, i + 1}, .commit_seq = i,
                                    .offset = (uint64_t)i * 65536, .length = 65536, .data = iobuf_new(65536)};
        fill(q[i].data->data, 65536, i + 1);
        q[i].crc = crc32c(0, q[i].data->data, 65536);
        store_write(d->s, &q[i]);
        iobuf_unref(q[i].data);
    }
    op_init(&op, &w);
    store_drop(d->s, &op, &id, 2);
    for (uint64_t until = clock_boot_ms() + 20000; !w.done;) {
        assert_true(clock_boot_ms() < until);
        uv_run(&d->loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(w.status, E_OK);
    assert_int_equal(left, 0);
    free(q);
}

static void bad_input(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(5, 0);
    uint8_t got[4096];
    assert_int_equal(do_fence(d, id, 0, SHARD_BYTES), E_INVAL);
    assert_int_equal(do_fence(d, id, 1, 1000), E_INVAL);
    assert_int_equal(do_fence(d, id, 1, SHARD_BYTES), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 100, 4096, 1, 0), E_INVAL);
    assert_int_equal(do_write(d, id, 1, 1, 0, SHARD_BYTES - 512, 1024, 1, 0), E_INVAL);
    assert_int_equal(do_write(d, id, 2, 1, 0, 0, 1024, 1, 0), E_INVAL);
    assert_int_equal(do_read(d, id, UINT64_MAX - 511, 512, got), E_INVAL);
    assert_int_equal(do_read(d, id, SHARD_BYTES, 512, got), E_INVAL);
    assert_int_equal(do_write(d, id, 1, 1, 0, 0, 1024, 1, 0), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 0, 1024, 1, 0), E_INVAL);
    assert_int_equal(do_copy(d, id, SHARD_BYTES / STORE_CHUNK, (struct store_version){1, 1}, 3), E_INVAL);
    struct store_write q = {.shard = id, .version = {1, 9}, .length = 4096, .data = iobuf_new(4096), .crc = 1};
    struct wait w;
    memset(q.data->data, 0, 4096);
    op_init(&q.op, &w);
    store_write(d->s, &q);
    iobuf_unref(q.data);
    assert_int_equal(wait_for(d, &w), E_CORRUPT);
}

static void on_failure(void *arg, const struct err *e) { ++*(unsigned *)arg; }

/* A device that fails: nothing is acknowledged any more, the owner hears of it once, reopening finds what was acknowledged. */
static void device_fails(void **state)
{
    struct disk *d = *state;
    static const char *const at[] = {"journal.write=fail", "extents.write=fail", "extents.sync=fail", "meta.write=fail"};
    struct store_shard_id id = shard_id(6, 0);
    uint8_t got[4096], want[4096];
    assert_int_equal(do_fence(d, id, 1, SHARD_BYTES), E_OK);
    for (uint64_t i = 0; i < 4; i++) {
        unsigned failures = 0;
        struct err e;
        assert_int_equal(do_write(d, id, 1, 2 * i + 1, 2 * i + 1, i * 4096, 4096, i + 1, 0), E_OK);
        store_on_failure(d->s, on_failure, &failures);
        assert_int_equal(fault_arm(at[i], &e), E_OK);
        if (i == 0)
            assert_int_equal(do_write(d, id, 1, 2, 0, 65536, 4096, 99, 0), E_IO);
        else
            assert_int_equal(do_destage(d), E_IO);
        assert_int_equal(failures, 1);
        assert_int_equal(do_write(d, id, 1, 2 * i + 9, 0, 0, 4096, 99, 0), E_IO);
        assert_int_equal(failures, 1);
        fault_disarm_all();
        reopen(d);
        for (uint64_t k = 0; k <= i; k++) {
            fill(want, 4096, k + 1);
            assert_int_equal(do_read(d, id, k * 4096, 4096, got), E_OK);
            assert_memory_equal(got, want, 4096);
        }
    }
}

static void no_space(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(7, 0);
    struct err e;
    uint8_t got[4096], want[4096];
    uint64_t seq = 0, ok = 0;
    assert_int_equal(do_fence(d, id, 1, 1024 * MIB), E_OK);
    assert_int_equal(do_write(d, id, 1, ++seq, 0, 0, 4096, 1, 0), E_OK);
    assert_int_equal(fault_arm("extents.grow=fail*", &e), E_OK);
    for (uint64_t x = 1; x < 400; x++) {
        int rc = do_write(d, id, 1, seq + 1, seq, x * STORE_EXTENT, 4096, x + 1, 0);
        if (rc != E_OK) {
            assert_int_equal(rc, E_NOSPC);
            break;
        }
        seq++;
        ok = x;
    }
    assert_true(ok > 100 && ok < 300);
    seq++;
    assert_int_equal(do_write(d, id, 1, seq, seq - 1, 0, 512, 1, 0), E_OK); /* what has a place can be rewritten */
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK); /* what was accepted can be destaged */
    for (uint64_t x = 1; x <= ok; x++) {
        fill(want, 4096, x + 1);
        assert_int_equal(do_read(d, id, x * STORE_EXTENT, 4096, got), E_OK);
        assert_memory_equal(got, want, 4096);
    }
    assert_int_equal(do_write(d, id, 1, ++seq, 0, 0, STORE_EXTENT, 0, 0), E_OK); /* zeroes are always welcome */
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_write(d, id, 1, ++seq, 0, 500 * STORE_EXTENT, 4096, 5, 0), E_OK); /* and they give space back */
}

static bool full(struct disk *d)
{
    struct store_usage u;
    store_usage(d->s, &u);
    assert_true(u.used_bytes <= u.size_bytes);
    return u.full;
}

/* A disk of 64 MiB: says no while there is still room for what is under way, takes discards, and opens again by itself. */
static void reserve(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(7, 0), other = shard_id(7, 1);
    uint64_t seq = 0, x = 0, late = 0;
    disk_close(d);
    d->conf.limit_bytes = 64 * MIB;
    disk_must_open(d);
    assert_int_equal(do_fence(d, id, 1, 1024 * MIB), E_OK);
    assert_int_equal(do_fence(d, other, 1, 1024 * MIB), E_OK);
    assert_false(full(d));
    for (; store_room(d->s, &id, x * STORE_EXTENT, 4096, false); x++)
        assert_int_equal(do_write(d, id, 1, ++seq, 0, x * STORE_EXTENT, 4096, x + 1, 0), E_OK);
    assert_true(x >= 100 && x < 256);
    assert_true(full(d));
    assert_false(store_room(d->s, &id, 0, 4096, false)); /* not even what has a place: guests wait as a whole */
    for (; store_room(d->s, &id, (x + late) * STORE_EXTENT, 4096, true); late++) /* what is under way may use the reserve */
        assert_int_equal(do_write(d, id, 1, ++seq, 0, (x + late) * STORE_EXTENT, 4096, x + late + 1, 0), E_OK);
    assert_true(late >= 40);
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(store_shard_used(d->s, &id), (x + late) * STORE_EXTENT);
    assert_true(full(d));
    /* Discards of whole extents give their space back, also across a restart. */
    assert_int_equal(do_write(d, id, 1, ++seq, 0, 0, 4 * MIB, 0, 0), E_OK);
    assert_int_equal(do_write(d, id, 1, ++seq, 0, 4 * MIB, 4 * MIB, 0, 0), E_OK);
    for (uint64_t k = 2; k < (x + late) / 16; k++)
        assert_int_equal(do_write(d, id, 1, ++seq, 0, k * 4 * MIB, 4 * MIB, 0, 0), E_OK);
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK);
    assert_true(store_shard_used(d->s, &id) <= 16 * STORE_EXTENT);
    assert_false(full(d));
    assert_true(store_room(d->s, &other, 0, 4 * MIB, false));
    reopen(d);
    assert_true(store_shard_used(d->s, &id) <= 16 * STORE_EXTENT);
    assert_true(store_room(d->s, &other, 0, 4 * MIB, false));
    assert_int_equal(do_write(d, other, 1, 1, 0, 0, 4 * MIB, 9, 0), E_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(write_read, setup, teardown),
        cmocka_unit_test_setup_teardown(model, setup, teardown),
        cmocka_unit_test_setup_teardown(tail, setup, teardown),
        cmocka_unit_test_setup_teardown(fence_and_drop, setup, teardown),
        cmocka_unit_test_setup_teardown(back_pressure, setup, teardown),
        cmocka_unit_test_setup_teardown(drop_when_full, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_input, setup, teardown),
        cmocka_unit_test_setup_teardown(device_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(no_space, setup, teardown),
        cmocka_unit_test_setup_teardown(reserve, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
