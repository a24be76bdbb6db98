/* The read cache: which lines S3-FIFO keeps, compared with LRU on a trace with scans; that a cached block is never served
 * when it should not be; that a broken fast device costs the cache and nothing else. */
#include "test_store_util.h"
#include <math.h>
#include "base/fault.h"
#include "storage/asan/store/cache.h"
#include "storage/asan/store/s3fifo.h"
#include "storage/asan/store/tier.h"

/* ---- policy ---- */

struct lru { uint32_t slots, n, newest, oldest, *prev, *next, *where; }; /* keys 1..max */

static bool lru_use(struct lru *l, uint32_t key)
{
    bool hit = l->where[key];
    if (hit) {
        if (l->newest == key)
            return true;
        if (l->prev[key])
            l->next[l->prev[key]] = l->next[key];
        if (l->next[key])
            l->prev[l->next[key]] = l->prev[key];
        if (l->oldest == key)
            l->oldest = l->prev[key];
    } else if (l->n == l->slots) {
        uint32_t out = l->oldest;
        l->oldest = l->prev[out];
        l->next[l->oldest] = 0;
        l->where[out] = 0;
    } else {
        l->n++;
    }
    l->where[key] = 1;
    l->prev[key] = 0;
    l->next[key] = l->newest;
    if (l->newest)
        l->prev[l->newest] = key;
    l->newest = key;
    if (!l->oldest)
        l->oldest = key;
    return hit;
}

static bool s3_use(struct s3fifo *c, uint64_t key)
{
    if (s3fifo_get(c, key) != S3FIFO_NONE)
        return true;
    s3fifo_put(c, key);
    return false;
}

static double unit(uint64_t *x)
{
    *x = *x * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(*x >> 11) / 9007199254740992.0;
}

/* Keys with Zipf's frequencies (by inversion, exponent 0.9); now and then a scan over keys that are used once, like a
 * backup or a virus scanner. Hit rates of the zipf part, in per mille. */
static void trace(unsigned scans_per_million, unsigned *ret_s3, unsigned *ret_lru, unsigned *ret_scan)
{
    enum { KEYS = 100000, SLOTS = 10000, STEPS = 1000000, SCAN = 20000, ALL = KEYS + STEPS + 1 };
    struct s3fifo *c = s3fifo_new(SLOTS);
    struct lru l = {.slots = SLOTS, .prev = calloc(ALL, 4), .next = calloc(ALL, 4), .where = calloc(ALL, 4)};
    uint64_t x = 1, s3 = 0, lru = 0, asked = 0;
    uint32_t scan_at = KEYS + 1, scan_left = 0;
    for (unsigned i = 0; i < STEPS; i++) {
        if (!scan_left && unit(&x) * 1000000 < scans_per_million)
            scan_left = SCAN;
        if (scan_left && i % 2) {
            scan_left--;
            s3_use(c, scan_at);
            lru_use(&l, scan_at++);
            continue;
        }
        double u = unit(&x), p = pow((double)KEYS, 0.1);
        uint32_t key = (uint32_t)pow(u * (p - 1) + 1, 10) ;
        key = key < 1 ? 1 : key > KEYS ? KEYS : key;
        asked += i > STEPS / 10;
        bool a = s3_use(c, key), b = lru_use(&l, key);
        if (i > STEPS / 10) {
            s3 += a;
            lru += b;
        }
    }
    *ret_s3 = (unsigned)(s3 * 1000 / asked);
    *ret_lru = (unsigned)(lru * 1000 / asked);
    *ret_scan = (uint64_t)(scan_at - KEYS - 1) * 100 / STEPS;
    s3fifo_free(c);
    free(l.prev);
    free(l.next);
    free(l.where);
}

static void against_lru(void **state)
{
    static const unsigned scans[] = {0, 10, 100};
    for (size_t i = 0; i < 3; i++) {
        unsigned s3, lru, share;
        trace(scans[i], &s3, &lru, &share);
        printf("zipf 0.9, 100,000 keys, room for 10,000; %u %% of the requests are scans: hits S3-FIFO %u.%u %%, LRU %u.%u %%\n", share,
               s3 / 10, s3 % 10, lru / 10, lru % 10);
        assert_true(s3 > lru);
    }
}

static void policy_model(void **state)
{
    enum { SLOTS = 64, KEYS = 300 };
    struct s3fifo *c = s3fifo_new(SLOTS);
    uint64_t owner[SLOTS] = {0}, x = 3;
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t key = (uint64_t)(unit(&x) * KEYS) + 1;
        uint32_t slot = s3fifo_get(c, key);
        if (slot != S3FIFO_NONE) {
            assert_int_equal(owner[slot], key); /* a slot belongs to one key at a time */
            if (i % 7 == 0) {
                s3fifo_remove(c, key);
                owner[slot] = 0;
                assert_int_equal(s3fifo_peek(c, key), S3FIFO_NONE);
            }
            continue;
        }
        slot = s3fifo_put(c, key);
        assert_true(slot < SLOTS);
        if (owner[slot])
            assert_int_equal(s3fifo_peek(c, owner[slot]), S3FIFO_NONE);
        owner[slot] = key;
        assert_true(s3fifo_count(c) <= SLOTS);
    }
    s3fifo_free(c);
}

/* ---- in the store ---- */

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    d->conf.cache_bytes = 16 * MIB;
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

static struct store_cache_usage usage(struct disk *d)
{
    struct store_usage u;
    do { /* copies to the cache are under way after the read is done */
        uv_run(&d->loop, UV_RUN_NOWAIT);
        store_usage(d->s, &u);
    } while (u.cache.filling);
    return u.cache;
}

static void settle_all(struct disk *d, struct store_shard_id id, uint64_t seq)
{
    store_commit_mark(d->s, &id, (struct store_version){1, seq});
    assert_int_equal(do_destage(d), E_OK);
}

static void read_is(struct disk *d, struct store_shard_id id, uint64_t offset, uint64_t seed)
{
    uint8_t got[16384], want[16384];
    fill(want, sizeof want, seed);
    assert_int_equal(do_read(d, id, offset, sizeof got, got), E_OK);
    assert_memory_equal(got, want, sizeof want);
}

/* Reads are served from the cache the second time, and never an old version: not after a rewrite in place, not after one
 * that moved the extent, not after zeroes, a drop, or a restart. */
static void never_stale(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(1, 0);
    uint64_t seq = 0;
    assert_int_equal(do_fence(d, id, 1, 64 * MIB), E_OK);
    for (uint64_t i = 0; i < 16; i++)
        assert_int_equal(do_write(d, id, 1, ++seq, 0, i * 16384, 16384, i + 1, 0), E_OK);
    settle_all(d, id, seq);
    read_is(d, id, 16384, 2);
    uint64_t hits = usage(d).hits;
    assert_int_equal(hits, 0);
    read_is(d, id, 16384, 2);
    assert_int_equal(usage(d).hits, 4);
    for (uint64_t round = 0; round < 20; round++) {
        uint64_t seed = 100 + round, at = 16384;
        uint32_t n = round % 3 == 2 ? 262144 : 16384; /* in place, or all of it to a new place */
        assert_int_equal(do_write(d, id, 1, ++seq, 0, n == 16384 ? at : 0, n, seed, 0), E_OK);
        if (n == 262144)
            assert_int_equal(do_write(d, id, 1, ++seq, 0, at, 16384, seed, 0), E_OK);
        read_is(d, id, at, seed); /* from the journal */
        settle_all(d, id, seq);
        read_is(d, id, at, seed);
        usage(d);
        read_is(d, id, at, seed);
    }
    assert_true(usage(d).hits >= 4 * 20);
    disk_close(d);
    disk_must_open(d);
    read_is(d, id, 16384, 119);
    assert_int_equal(usage(d).hits, 0);
}

/* What is damaged on the fast device is read from the capacity device; the cache of a device that fails is off. */
static void damage(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(1, 0);
    struct err e;
    char path[256];
    uint8_t junk[4096];
    assert_int_equal(do_fence(d, id, 1, 64 * MIB), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 0, 16384, 7, 0), E_OK);
    settle_all(d, id, 1);
    read_is(d, id, 0, 7);
    usage(d);
    snprintf(path, sizeof path, "%s/cache", d->fast);
    int fd = open(path, O_WRONLY);
    memset(junk, 0x5a, sizeof junk);
    for (off_t at = 0; at < 16 * (off_t)MIB; at += 4096)
        assert_int_equal(pwrite(fd, junk, sizeof junk, at), 4096);
    fsync(fd);
    close(fd);
    read_is(d, id, 0, 7);
    read_is(d, id, 0, 7);
    assert_int_equal(fault_arm("cache.read=fail*", &e), E_OK);
    usage(d);
    read_is(d, id, 0, 7);
    read_is(d, id, 0, 7);
    assert_int_equal(usage(d).size_bytes, 0);
    assert_int_equal(d->failures, 0);
}

static void split(void **state)
{
    struct tier t;
    tier_split(400ull << 30, 2, &t);
    assert_true(t.separate && t.journal_bytes % MIB == 0 && t.journal_bytes <= 32ull << 30);
    assert_int_equal(t.cache_bytes / MIB, (400ull << 30) / 20 * 19 / 2 / MIB / 10 * 7);
    tier_split(40ull << 30, 1, &t);
    assert_true(t.journal_bytes * 7 / 3 <= t.cache_bytes + 10ull * MIB && t.journal_bytes * 7 / 3 + 10ull * MIB >= t.cache_bytes);
    tier_split(8 * MIB, 1, &t); /* nonsense in, something usable out */
    assert_int_equal(t.journal_bytes, 16 * MIB);
    assert_int_equal(t.cache_bytes, 0);
    tier_of("/tmp", "/tmp", 1, &t); /* one device: no cache of itself */
    assert_true(!t.separate && t.cache_bytes == 0 && t.journal_bytes == 1ull << 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_lru),
        cmocka_unit_test(policy_model),
        cmocka_unit_test(split),
        cmocka_unit_test_setup_teardown(never_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(damage, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
