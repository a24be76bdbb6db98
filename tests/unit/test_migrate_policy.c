/* Convergence of a live migration: the policy against a modelled guest and link. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "migrate/policy.h"

struct model { /* a guest that dirties `dirty` bytes/s (at most `set`) over a link of `rate` bytes/s */
    double dirty, set, rate, total;
    int throttle, downtime_ms;
    bool paused;
};
struct outcome {
    bool done, cancelled, paused;
    int tunes, throttle;
    uint64_t ms;
};

static struct outcome run(struct model m, const struct policy_conf *c)
{
    struct policy p;
    struct outcome o = {0};
    policy_init(&p, c, 1000);
    struct policy_action a = policy_begin(&p);
    m.throttle = a.throttle_max;
    m.downtime_ms = a.downtime_ms;
    double left = m.total, dirtied = 0, sent = 0;
    int rounds = 1;
    for (uint64_t t = 0; t < 3600000; t += 100) {
        double step = m.rate * 0.1 < left ? m.rate * 0.1 : left;
        left -= step;
        sent += step;
        if (!m.paused)
            dirtied += m.dirty * 0.1 * (100 - m.throttle) / 100;
        if (dirtied > m.set)
            dirtied = m.set;
        if (left <= 0) { /* end of a pass */
            left = dirtied;
            dirtied = 0;
            rounds++;
            if (left / m.rate * 1000 <= m.downtime_ms) {
                o.done = true;
                o.ms = t;
                return o;
            }
        }
        a = policy_step(&p, &(struct policy_sample){1000 + t, (int64_t)left, (int64_t)sent, rounds});
        if (a.what == POLICY_TUNE) {
            assert_true(a.throttle_max > m.throttle && a.downtime_ms > m.downtime_ms && a.throttle_max < 99);
            o.tunes++;
            o.throttle = m.throttle = a.throttle_max;
            m.downtime_ms = a.downtime_ms;
        } else if (a.what == POLICY_PAUSE_GUEST) {
            assert_false(m.paused);
            m.paused = o.paused = true;
        } else if (a.what == POLICY_CANCEL) {
            o.cancelled = true;
            o.ms = t;
            return o;
        }
    }
    fail_msg("it never ended");
    return o;
}

#define MB 1e6
static const struct policy_conf usual = {.downtime_ms = 300, .last = POLICY_LAST_PAUSE, .stall_ms = 30000};

static void test_calm(void **state)
{
    struct outcome o = run((struct model){.dirty = 5 * MB, .set = 4000 * MB, .rate = 100 * MB, .total = 4000 * MB}, &usual);
    assert_true(o.done && !o.paused && o.tunes == 0);
}

static void test_busy(void **state)
{
    /* Writes as fast as the link: slowing it down is enough. */
    struct outcome o = run((struct model){.dirty = 110 * MB, .set = 4000 * MB, .rate = 100 * MB, .total = 4000 * MB}, &usual);
    assert_true(o.done && !o.paused && o.tunes >= 1);
}

static void test_hopeless(void **state)
{
    struct model m = {.dirty = 2000 * MB, .set = 3000 * MB, .rate = 100 * MB, .total = 4000 * MB};
    struct outcome o = run(m, &usual);
    assert_true(o.done && o.paused && o.throttle == 80);
    struct policy_conf c = usual;
    c.last = POLICY_LAST_CANCEL;
    o = run(m, &c);
    assert_true(o.cancelled && !o.paused);
    c.deadline_ms = 5000;
    o = run(m, &c);
    assert_true(o.cancelled && o.ms <= 5000);
    c.last = POLICY_LAST_PAUSE;
    o = run(m, &c);
    assert_true(o.done && o.paused);
}

static void test_stall(void **state)
{
    struct outcome o = run((struct model){.dirty = 1 * MB, .set = 100 * MB, .rate = 0, .total = 100 * MB}, &usual);
    assert_true(o.cancelled && o.ms >= 30000 && o.ms < 31000);
}

/* Whatever guest and link: it ends, and within a bounded number of passes. */
static void test_always_ends(void **state)
{
    for (double dirty = 1; dirty < 10000; dirty *= 1.7)
        for (double set = 10; set < 10000; set *= 3.1) {
            struct outcome o = run((struct model){.dirty = dirty * MB, .set = set * MB, .rate = 100 * MB, .total = 8000 * MB}, &usual);
            assert_true(o.done && o.tunes <= 3);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_calm), cmocka_unit_test(test_busy), cmocka_unit_test(test_hopeless),
                                       cmocka_unit_test(test_stall), cmocka_unit_test(test_always_ends)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
