/* Store: writes that nobody settles do not hold the journal. They are set aside, readable and in their shard's tail as before,
 * also after a restart; what covers or settles them makes them go, and their space comes back. Power cuts in the middle of
 * it: test_store_powercut.c. */
#include "test_store_util.h"
#include "storage/asan/store/format.h"

#define SHARD_BYTES (4ull * MIB)
#define LIMIT_MS 60000 /* a disk in memory needs a fraction of a second */

static struct store_shard_id held(void) { return shard_id(1, 0); }
static struct store_shard_id busy(void) { return shard_id(2, 0); }

static uint64_t busy_seq;

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    disk_must_open(d);
    assert_int_equal(do_fence(d, held(), 1, SHARD_BYTES), E_OK);
    assert_int_equal(do_fence(d, busy(), 1, SHARD_BYTES), E_OK);
    busy_seq = 0;
    *state = d;
    return 0;
}

static int setup_direct(void **state)
{
    setup(state);
    struct disk *d = *state;
    disk_close(d);
    d->conf.direct = true;
    disk_must_open(d);
    return 0;
}

static int teardown(void **state)
{
    disk_free(*state);
    free(*state);
    return 0;
}

static struct store_usage usage(struct disk *d)
{
    struct store_usage u;
    store_usage(d->s, &u);
    return u;
}

static void reopen(struct disk *d)
{
    disk_close(d);
    disk_must_open(d);
}

/* The other shard writes `mib` MiB, each write settled by the next one; through a journal of 16 MiB. */
static void traffic(struct disk *d, unsigned mib)
{
    uint64_t end = uv_now(&d->loop) + LIMIT_MS;
    struct iobuf *b = iobuf_new(MIB - 4096);
    fill(b->data, MIB - 4096, 77);
    for (unsigned i = 0; i < mib; i++) {
        struct wait w;
        busy_seq++;
        struct store_write q = {.shard = busy(), .version = {1, busy_seq}, .commit_seq = busy_seq - 1, .length = MIB - 4096,
                                .crc = crc32c(0, b->data, MIB - 4096), .data = b};
        op_init(&q.op, &w);
        store_write(d->s, &q);
        while (!w.done) {
            uv_run(&d->loop, UV_RUN_ONCE);
            if (uv_now(&d->loop) > end)
                fail_msg("MiB %u: the journal is full and stays so: %llu of %llu bytes", i,
                         (unsigned long long)usage(d).journal_used_bytes, (unsigned long long)usage(d).journal_bytes);
        }
        assert_int_equal(w.status, E_OK);
    }
    iobuf_unref(b);
}

static void settle(struct disk *d, uint64_t seq)
{
    struct store_shard_id id = held();
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_destage(d), E_OK); /* the keys go with the round after */
}

/* [offset, offset + length) holds what a write of `seed` (0: zeroes) at `begin` makes. */
static void expect(struct disk *d, uint64_t offset, uint32_t length, uint64_t begin, uint64_t seed)
{
    uint8_t *got = malloc(length), *want = calloc(1, length + (offset - begin));
    if (seed)
        fill(want, length + (offset - begin), seed);
    int rc = do_read(d, held(), offset, length, got);
    if (rc != E_OK)
        fail_msg("read %llu+%u: %d %s", (unsigned long long)offset, length, rc, d->e.msg);
    assert_memory_equal(got, want + (offset - begin), length);
    free(got);
    free(want);
}

/* The tail holds write `seq` of `length` bytes at `offset`, as it was. */
static void expect_tail(struct disk *d, uint64_t seq, uint64_t offset, uint32_t length, uint64_t seed)
{
    struct store_shard_id id = held();
    struct store_tail_rec *t;
    size_t n = store_tail(d->s, &id, &t);
    uint8_t *want = calloc(1, length), *got = malloc(length);
    uint32_t found = 0;
    if (seed)
        fill(want, length, seed);
    for (size_t i = 0; i < n; i++) {
        assert_true(i == 0 || store_version_cmp(t[i - 1].version, t[i].version) <= 0);
        if (t[i].version.seq != seq)
            continue;
        struct wait w;
        struct store_record_read q = {.shard = id, .version = t[i].version, .offset = t[i].offset, .dst = got, .length = t[i].length};
        op_init(&q.op, &w);
        store_record_read(d->s, &q);
        assert_int_equal(wait_for(d, &w), E_OK);
        assert_memory_equal(got, want + (t[i].offset - offset), t[i].length);
        found += t[i].length;
    }
    assert_int_equal(found, length);
    free(t);
    free(want);
    free(got);
}

static void expect_tail_length(struct disk *d, size_t n)
{
    struct store_shard_id id = held();
    struct store_tail_rec *t;
    assert_int_equal(store_tail(d->s, &id, &t), n);
    free(t);
}

/* Small writes, some over others, one of zeroes. */
static void journal_goes_on(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 0, 65536, 1, 0), E_OK);
    assert_int_equal(do_write(d, held(), 1, 2, 0, 8192, 512, 2, 0), E_OK);
    assert_int_equal(do_write(d, held(), 1, 3, 0, 16384, 4096, 0, 0), E_OK);
    assert_int_equal(do_write(d, held(), 1, 4, 0, 600 * 1024, 300 * 1024, 4, 0), E_OK);
    traffic(d, 60);
    assert_in_range(usage(d).aside_bytes, 365 * 1024, 380 * 1024);
    for (int round = 0; round < 3; round++) {
        expect(d, 0, 8192, 0, 1);
        expect(d, 8192, 512, 8192, 2);
        expect(d, 8704, 7680, 0, 1);
        expect(d, 16384, 4096, 16384, 0);
        expect(d, 20480, 45056, 0, 1);
        expect(d, 600 * 1024, 300 * 1024, 600 * 1024, 4);
        if (round < 2) {
            expect_tail(d, 1, 0, 65536, 1);
            expect_tail(d, 2, 8192, 512, 2);
            expect_tail(d, 3, 16384, 4096, 0);
            expect_tail(d, 4, 600 * 1024, 300 * 1024, 4);
            reopen(d);
        }
        if (round == 1) {
            settle(d, 4);
            expect_tail_length(d, 0);
            assert_int_equal(usage(d).aside_bytes, 0);
        }
    }
    uint64_t used = usage(d).used_bytes;
    traffic(d, 40);
    assert_true(usage(d).used_bytes <= used + MIB); /* the places came back, and are used again */
    reopen(d);
    expect(d, 0, 8192, 0, 1);
    assert_int_equal(usage(d).aside_bytes, 0);
}

/* A copy takes the place of what was set aside: that is in the tail only, and must not come back over the copy. */
static void covered(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 4096, 8192, 1, 0), E_OK);
    traffic(d, 20);
    assert_int_equal(usage(d).aside_bytes, 8192);
    assert_int_equal(do_copy(d, held(), 0, (struct store_version){1, 9}, 9), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    traffic(d, 30); /* the copy's record is trimmed */
    for (int round = 0; round < 2; round++) {
        expect(d, 0, 65536, 0, 9);
        expect_tail(d, 1, 4096, 8192, 1);
        reopen(d);
    }
    settle(d, 1);
    assert_int_equal(usage(d).aside_bytes, 0);
    reopen(d);
    expect(d, 0, 65536, 0, 9);
    expect_tail_length(d, 0);
}

/* What is newer waits for what was set aside, and goes with it. */
static void newer_on_top(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 0, 32768, 1, 0), E_OK);
    traffic(d, 20);
    assert_int_equal(do_write(d, held(), 1, 2, 0, 4096, 4096, 2, 0), E_OK);
    reopen(d);
    expect(d, 0, 4096, 0, 1);
    expect(d, 4096, 4096, 4096, 2);
    traffic(d, 20);
    assert_int_equal(usage(d).aside_bytes, 32768 + 4096);
    struct store_shard_id id = held();
    store_commit_mark(d->s, &id, (struct store_version){1, 1});
    assert_int_equal(do_destage(d), E_OK); /* the first one goes to its extent, the second one stays */
    reopen(d);
    expect(d, 0, 4096, 0, 1);
    expect(d, 4096, 4096, 4096, 2);
    expect(d, 8192, 24576, 0, 1);
    expect_tail(d, 2, 4096, 4096, 2);
    settle(d, 2);
    reopen(d);
    expect(d, 4096, 4096, 4096, 2);
    expect(d, 8192, 24576, 0, 1);
    assert_int_equal(usage(d).aside_bytes, 0);
}

/* A large write's data stay where they are. */
static void large(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 0, MIB, 1, 0), E_OK);
    assert_int_equal(do_write(d, held(), 1, 2, 0, 65536, 4096, 2, 0), E_OK);
    for (uint64_t seq = 1; seq <= 600; seq++) /* other large writes would not fill the journal */
        assert_int_equal(do_write(d, busy(), 1, seq, seq - 1, 0, 16384 - 512, 3, 0), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(usage(d).aside_bytes, MIB + 4096);
    for (int round = 0; round < 3; round++) {
        expect(d, 0, 65536, 0, 1);
        expect(d, 65536, 4096, 65536, 2);
        expect(d, 69632, MIB - 69632, 0, 1);
        if (round < 2)
            expect_tail(d, 1, 0, MIB, 1);
        reopen(d);
        if (round == 1)
            settle(d, 2);
    }
    assert_int_equal(usage(d).aside_bytes, 0);
    expect_tail_length(d, 0);
    assert_int_equal(store_shard_used(d->s, &(struct store_shard_id){.volume = held().volume}), MIB);
    uint64_t used = usage(d).used_bytes;
    assert_int_equal(do_drop(d, held(), 1), E_OK);
    assert_int_equal(used - usage(d).used_bytes, MIB);
}

/* As it is settled without a restart in between, its extent needs a place like that of any other record. */
static void large_settled_at_once(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 0, MIB, 1, 0), E_OK);
    for (uint64_t seq = 1; seq <= 600; seq++)
        assert_int_equal(do_write(d, busy(), 1, seq, seq - 1, 0, 16384 - 512, 3, 0), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(usage(d).aside_bytes, MIB);
    settle(d, 1);
    assert_int_equal(usage(d).aside_bytes, 0);
    for (int round = 0; round < 2; round++) {
        expect(d, 0, MIB, 0, 1);
        assert_int_equal(store_shard_used(d->s, &(struct store_shard_id){.volume = held().volume}), MIB);
        reopen(d);
    }
}

/* A shard goes with what was set aside of it, and what comes after has nothing of it. */
static void dropped(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, held(), 1, 1, 0, 0, 65536, 1, 0), E_OK);
    traffic(d, 20);
    assert_int_equal(usage(d).aside_bytes, 65536);
    assert_int_equal(do_drop(d, held(), 2), E_OK);
    reopen(d);
    assert_int_equal(usage(d).aside_bytes, 0);
    assert_int_equal(do_fence(d, held(), 3, SHARD_BYTES), E_OK);
    expect(d, 0, 65536, 0, 0);
    expect_tail_length(d, 0);
    reopen(d);
    expect(d, 0, 65536, 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(journal_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(covered, setup, teardown),
        cmocka_unit_test_setup_teardown(newer_on_top, setup, teardown),
        cmocka_unit_test_setup_teardown(large, setup_direct, teardown),
        cmocka_unit_test_setup_teardown(large_settled_at_once, setup_direct, teardown),
        cmocka_unit_test_setup_teardown(dropped, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
