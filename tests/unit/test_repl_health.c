/* The rules for slow and frozen disks, at their edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "storage/asan/engine/health.h"

static const struct health_conf conf = HEALTH_CONF_DEFAULT;

/* `seconds` of `n` requests with a mean of `us`; the last verdict. */
static enum health_verdict run(struct health *h, int seconds, uint64_t n, uint64_t us)
{
    struct health_sample s = {.n = n, .sum_us = n * us};
    enum health_verdict v = h->verdict;
    for (int i = 0; i < seconds; i++)
        v = health_step(h, &conf, &s);
    return v;
}

static void test_slow_takes_60_seconds(void **state)
{
    struct health h;
    (void)state;
    health_reset(&h);
    assert_int_equal(run(&h, 59, 10, 25000), HEALTH_GOOD);
    assert_int_equal(run(&h, 1, 10, 25000), HEALTH_SLOW);
    health_reset(&h);
    assert_int_equal(run(&h, 300, 10, 24999), HEALTH_GOOD);
}

/* They need not be in a row, but within five minutes. */
static void test_scattered_seconds_count(void **state)
{
    struct health h;
    (void)state;
    health_reset(&h);
    for (int i = 0; i < 59; i++) {
        assert_int_equal(run(&h, 1, 10, 30000), HEALTH_GOOD);
        assert_int_equal(run(&h, 4, 10, 100), HEALTH_GOOD);
    }
    assert_int_equal(run(&h, 1, 10, 30000), HEALTH_SLOW);
    health_reset(&h);
    for (int i = 0; i < 200; i++) { /* one in six: 50 of 300 */
        assert_int_equal(run(&h, 1, 10, 30000), HEALTH_GOOD);
        assert_int_equal(run(&h, 5, 10, 100), HEALTH_GOOD);
    }
}

static void test_bad_is_isolated(void **state)
{
    struct health h;
    (void)state;
    health_reset(&h);
    assert_int_equal(run(&h, 59, 1, 125000), HEALTH_GOOD);
    assert_int_equal(run(&h, 1, 1, 125000), HEALTH_BAD);
    assert_int_equal(run(&h, 300, 1, 100), HEALTH_GOOD);
}

static void test_frozen(void **state)
{
    struct health h;
    struct health_sample s = {.oldest_ms = 9999};
    (void)state;
    health_reset(&h);
    assert_int_equal(health_step(&h, &conf, &s), HEALTH_GOOD);
    s.oldest_ms = 10000;
    assert_int_equal(health_step(&h, &conf, &s), HEALTH_FROZEN);
    s.oldest_ms = 0;
    assert_int_equal(health_step(&h, &conf, &s), HEALTH_GOOD);
}

/* Nothing ends, but it is not yet ten seconds: such seconds are bad, not good. */
static void test_waiting_is_slow(void **state)
{
    struct health h;
    struct health_sample s = {.oldest_ms = 5000};
    (void)state;
    health_reset(&h);
    for (int i = 0; i < 60; i++)
        health_step(&h, &conf, &s);
    assert_int_equal(h.verdict, HEALTH_BAD);
}

static void test_hysteresis(void **state)
{
    struct health h;
    (void)state;
    health_reset(&h);
    run(&h, 60, 10, 30000);
    assert_int_equal(run(&h, 270, 10, 100), HEALTH_SLOW); /* 30 slow seconds are still in the window */
    assert_int_equal(run(&h, 1, 10, 100), HEALTH_GOOD);
}

static void test_idle_is_good(void **state)
{
    struct health h;
    (void)state;
    health_reset(&h);
    assert_int_equal(run(&h, 1000, 0, 0), HEALTH_GOOD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_takes_60_seconds), cmocka_unit_test(test_scattered_seconds_count), cmocka_unit_test(test_bad_is_isolated),
        cmocka_unit_test(test_frozen), cmocka_unit_test(test_waiting_is_slow), cmocka_unit_test(test_hysteresis),
        cmocka_unit_test(test_idle_is_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
