/* The pace of copying: fast when nobody is there, slower when guests suffer from it, never below the floor, back up afterwards; and
 * not held at the floor by guests that are slow for another reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "storage/asan/engine/pace.h"

#define UNIT (64u << 10)
#define TICK_MS 50

static uint64_t now, worst_us, disk_rate = UINT64_MAX; /* disk_rate: what the disks can do, bytes/s */

/* Bytes copied in `ms` while guests see `latency_us` (0: no guest), `per_tick` requests each tick. */
static uint64_t run(struct pace *p, uint64_t ms, uint64_t latency_us, int per_tick)
{
    uint64_t bytes = 0;
    for (uint64_t end = now + ms; now < end;) {
        for (int i = 0; latency_us && i < per_tick; i++)
            pace_sample(p, latency_us);
        now += TICK_MS;
        uint64_t n = (uint64_t)pace_tick(p, now, PACE_P99_US, UNIT) * UNIT;
        n = n < disk_rate / 1000 * TICK_MS ? n : disk_rate / 1000 * TICK_MS;
        pace_used(p, n);
        bytes += n;
    }
    return bytes;
}

/* The same for guests that see `own_us`, and the more the faster copying goes: at 64 MiB/s by `by_us`. */
static uint64_t run_with(struct pace *p, uint64_t ms, uint64_t own_us, uint64_t by_us)
{
    uint64_t bytes = 0;
    worst_us = 0;
    for (uint64_t end = now + ms; now < end;) {
        uint64_t us = own_us + by_us * (p->rate >> 20) / 64;
        worst_us = us > worst_us ? us : worst_us;
        bytes += run(p, TICK_MS, us, 100);
    }
    return bytes;
}

static void test_floor(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    run_with(&p, 20000, 300, 500000); /* 62 ms at the floor: all of it copying's doing */
    assert_in_range(p.rate, PACE_FLOOR, 2 * PACE_FLOOR);
    assert_in_range(run_with(&p, 60000, 300, 500000), PACE_FLOOR * 60 - UNIT, PACE_FLOOR * 60 * 3 / 2);
}

/* Slow whatever copying does: it does not crawl for it. */
static void test_slow_anyway(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    run_with(&p, 20000, 40000, 0);
    assert_true(run_with(&p, 60000, 40000, 0) > 60 * PACE_START);
    /* So near the target that a few bad windows bring the pace down: it comes up again. */
    pace_init(&p, now);
    run_with(&p, 5000, 2 * PACE_P99_US, 0);
    run_with(&p, 20000, PACE_P99_US * 2 / 3, 0);
    assert_true(run_with(&p, 60000, PACE_P99_US * 2 / 3, 0) > 60 * PACE_START);
    /* Slow, and slower by copying: half as slow again is the limit. */
    pace_init(&p, now);
    run_with(&p, 20000, 40000, 10000);
    assert_true(run_with(&p, 60000, 40000, 10000) > 60 * 3 * PACE_FLOOR);
    assert_in_range(worst_us, 45000, 80000);
    /* They are well again, then suffer from copying alone: nothing of it is left. */
    run_with(&p, 5000, 300, 0);
    run_with(&p, 20000, 300, 40000);
    assert_in_range(worst_us, 1, 1000000);
    run_with(&p, 20000, 300, 40000);
    assert_in_range(worst_us, 5000, PACE_P99_US * 3 / 2);
}

static void test_idle_is_unlimited(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    run(&p, 10000, 0, 0);
    assert_int_equal(p.rate, PACE_MAX);
}

/* What the disks do not reach is no limit to come down from when a guest begins. */
static void test_unused_is_not_kept(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    disk_rate = 200ull << 20;
    run(&p, 10000, 0, 0);
    assert_in_range(p.rate, disk_rate, 3 * disk_rate);
    run(&p, 2 * PACE_WINDOW_MS + TICK_MS, 3 * PACE_P99_US, 100);
    assert_in_range(p.rate, PACE_FLOOR, disk_rate * 3 / 4);
    disk_rate = 0; /* nothing to copy */
    run(&p, 10000, 0, 0);
    disk_rate = UINT64_MAX;
    assert_in_range(p.rate, PACE_START, 2 * PACE_START);
}

static void test_recovers(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    run_with(&p, 20000, 300, 500000);
    run(&p, 20000, 300, 100);
    assert_true(p.rate > PACE_START);
    assert_in_range(p.p99_us, 300, 400);
}

/* A p99 between half the target and the target holds the rate. */
static void test_holds(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    run(&p, 10000, PACE_P99_US * 2 / 3, 100);
    assert_int_equal(p.rate, PACE_START);
}

/* One slow request in a thousand is no p99; two in a hundred are. */
static void test_p99_is_p99(void **state)
{
    struct pace p;
    (void)state;
    for (int slow = 1; slow <= 20; slow += 19) {
        pace_init(&p, now);
        for (int i = 0; i < 1000; i++)
            pace_sample(&p, i < slow ? 900000 : 100);
        now += PACE_WINDOW_MS;
        pace_tick(&p, now, PACE_P99_US, UNIT);
        assert_int_equal(p.rate < PACE_START, slow > 10);
    }
}

static void test_no_burst_after_a_stall(void **state)
{
    struct pace p;
    (void)state;
    pace_init(&p, now);
    now += 3600000;
    assert_in_range((uint64_t)pace_tick(&p, now, PACE_P99_US, UNIT) * UNIT, 1, PACE_START * 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floor), cmocka_unit_test(test_slow_anyway), cmocka_unit_test(test_idle_is_unlimited), cmocka_unit_test(test_unused_is_not_kept),
        cmocka_unit_test(test_recovers),
        cmocka_unit_test(test_holds), cmocka_unit_test(test_p99_is_p99), cmocka_unit_test(test_no_burst_after_a_stall),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
