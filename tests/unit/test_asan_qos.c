/* Limits of a volume: the long-run rate is exact (to 0.1 %), bursts are bounded, big requests neither starve nor cheat. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "storage/asan/engine/qos.h"

#define SEC UINT64_C(1000000000)

/* A caller that always has one more request: how many start within [from, to)? Advances as qos_take() says. */
static uint64_t run(struct qos *q, uint64_t from, uint64_t to, uint64_t bytes)
{
    uint64_t n = 0;
    for (uint64_t now = from; now < to; ) {
        uint64_t wait = qos_take(q, now, bytes);
        if (wait)
            now += wait;
        else
            n++;
    }
    return n;
}

static void iops_are_exact(void **state)
{
    (void)state;
    for (uint64_t rate = 10; rate < 1000000; rate = rate * 7 + 1) {
        struct qos q = {0};
        qos_set(&q, rate, 0, 1000);
        uint64_t first = run(&q, 10 * SEC, 11 * SEC, 4096), then = run(&q, 11 * SEC, 31 * SEC, 4096);
        assert_in_range(first, 2 * rate - 2, 2 * rate + rate / 500 + 2); /* one second saved up, one second lived */
        assert_in_range(then, 20 * rate - 2, 20 * rate + rate / 50 + 2); /* a request costs whole nanoseconds */
    }
}

static void bandwidth_is_exact_whatever_the_sizes(void **state)
{
    (void)state;
    struct qos q = {0};
    uint64_t bytes = 0, now = 5 * SEC, sizes[] = {512, 4u << 20, 4096, 1u << 20, 65536};
    qos_set(&q, 0, 50u << 20, 100);
    for (unsigned i = 0; now < 65 * SEC; ) {
        uint64_t wait = qos_take(&q, now, sizes[i % 5]);
        now += wait;
        if (!wait)
            bytes += sizes[i++ % 5];
    }
    assert_in_range(bytes, 60ull * (50u << 20), 60ull * (50u << 20) + (5u << 20) + (4u << 20));
}

static void idle_time_is_saved_up_to_the_burst_only(void **state)
{
    (void)state;
    struct qos q = {0};
    qos_set(&q, 100, 0, 2000);
    (void)run(&q, SEC, 10 * SEC, 512);
    uint64_t n = 0;
    while (qos_take(&q, 1000 * SEC, 512) == 0) /* a long sleep, then all at once */
        n++;
    assert_in_range(n, 200, 201);
}

static void a_request_larger_than_the_burst_starts_and_is_paid_for(void **state)
{
    (void)state;
    struct qos q = {0};
    qos_set(&q, 0, 1u << 20, 10);
    assert_int_equal(qos_take(&q, SEC, 4u << 20), 0);
    uint64_t wait = qos_take(&q, SEC, 512);
    assert_in_range(wait, 3900000000u, 4000000000u);
    assert_int_equal(qos_take(&q, SEC + wait, 512), 0);
}

static void both_limits_hold_and_either_may_be_lifted(void **state)
{
    (void)state;
    struct qos q = {0};
    qos_set(&q, 1000, 1u << 20, 0);
    uint64_t n = run(&q, SEC, 11 * SEC, 4096); /* 256 of 4 KiB make 1 MiB: bandwidth binds */
    assert_in_range(n, 2560, 2562);
    qos_set(&q, 1000, 0, 0);
    n = run(&q, 11 * SEC, 21 * SEC, 4096);
    assert_in_range(n, 9990, 10002);
    qos_set(&q, 0, 0, 0);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(qos_take(&q, 21 * SEC, 1u << 30), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(iops_are_exact),
        cmocka_unit_test(bandwidth_is_exact_whatever_the_sizes),
        cmocka_unit_test(idle_time_is_saved_up_to_the_burst_only),
        cmocka_unit_test(a_request_larger_than_the_burst_starts_and_is_paid_for),
        cmocka_unit_test(both_limits_hold_and_either_may_be_lifted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
