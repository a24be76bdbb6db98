/* base: fault points, metrics and the log's levels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/metric.h"

LOG_MODULE("faulttest")
METRIC_COUNTER(m_count, "test_total", "A counter")
METRIC_GAUGE(m_gauge, "test_gauge", "A gauge")
METRIC_HISTOGRAM(m_hist, "test_seconds", "A histogram")

static void nth(void **s)
{
    struct err e;
    assert_false(fault_hit("a"));
    assert_int_equal(fault_hits("a"), 0); /* not counted while nothing is armed */
    assert_int_equal(fault_arm("a=fail@3,b=fail", &e), E_OK);
    assert_false(fault_hit("a"));
    assert_false(fault_hit("a"));
    assert_true(fault_hit("a"));
    assert_false(fault_hit("a"));
    assert_true(fault_hit("b"));
    assert_false(fault_hit("b"));
    assert_int_equal(fault_hits("a"), 4);
    fault_disarm_all();
    assert_int_equal(fault_arm("c=fail@2*", &e), E_OK);
    assert_false(fault_hit("c"));
    assert_true(fault_hit("c"));
    assert_true(fault_hit("c"));
    fault_disarm_all();
    assert_false(fault_hit("c"));
}

static void refused(void **s)
{
    static const char *const bad[] = {"a", "=fail", "a=", "a=boom", "a=fail@", "a=fail@0", "a=delay:", "a=delay:x",
                                      "a=failx", "a=fail@1x", "a=fail@99999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        char spec[64];
        snprintf(spec, sizeof spec, "good=fail,%s", bad[i]);
        assert_int_equal(fault_arm(spec, &e), E_INVAL);
        assert_non_null(strstr(e.msg, bad[i]));
        assert_false(fault_any); /* all or nothing */
    }
}

static void delays_and_exits(void **s)
{
    assert_int_equal(fault_arm("d=delay:30", NULL), E_OK);
    uint64_t t = clock_boot_ms();
    assert_false(fault_hit("d"));
    assert_true(clock_boot_ms() - t >= 29);
    fault_disarm_all();
    pid_t pid = fork();
    if (pid == 0) {
        if (fault_arm("x=exit", NULL) != E_OK)
            _exit(1);
        fault_hit("x");
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(WEXITSTATUS(status), 99);
}

static void quantiles(void **s)
{
    assert_int_equal(metric_quantile_ns(&m_hist, 0.5), 0);
    for (int i = 0; i < 99; i++)
        metric_observe_ns(&m_hist, 1000000); /* 1 ms */
    metric_observe_ns(&m_hist, 3000000000u); /* 3 s */
    uint64_t p50 = metric_quantile_ns(&m_hist, 0.5), p100 = metric_quantile_ns(&m_hist, 1.0);
    assert_true(p50 > 1000000 && p50 <= 1600000);
    assert_true(p100 > 3000000000u && p100 <= 4600000000u);
    metric_observe_ns(&m_hist, 0);
    metric_observe_ns(&m_hist, UINT64_MAX); /* the last bucket takes everything */
}

static void exposition(void **s)
{
    metric_add(&m_count, 2);
    metric_add(&m_count, 3);
    metric_set(&m_gauge, -7);
    struct buf b;
    buf_init(&b);
    metric_print_all(&b);
    assert_non_null(strstr(b.data, "# TYPE test_total counter\ntest_total 5\n"));
    assert_non_null(strstr(b.data, "\ntest_gauge -7\n"));
    assert_non_null(strstr(b.data, "test_seconds_bucket{le=\"+Inf\"} 102\n"));
    assert_non_null(strstr(b.data, "test_seconds_count 102\n"));
    buf_free(&b);
}

/* Runs `fn` with stderr in a pipe; returns what it wrote. */
static char *captured(void (*fn)(void))
{
    static char out[65536];
    FILE *f = tmpfile();
    int keep = dup(2);
    dup2(fileno(f), 2);
    fn();
    dup2(keep, 2);
    close(keep);
    rewind(f);
    size_t n = fread(out, 1, sizeof out - 1, f);
    out[n] = 0;
    fclose(f);
    return out;
}

static void say_levels(void)
{
    log_dbg("hidden");
    log_warn("seen\nand no second line");
    log_set_level("faulttest", LOG_LVL_DBG);
    log_dbg("now shown");
    log_set_level("*", LOG_LVL_INFO);
}

static void say_much(void)
{
    for (int i = 0; i < 500; i++)
        log_info("storm %d", i);
}

static void logging(void **s)
{
    const char *t = captured(say_levels);
    assert_null(strstr(t, "hidden"));
    assert_non_null(strstr(t, "Z WARN faulttest: seen and no second line\n"));
    assert_non_null(strstr(t, "DBG  faulttest: now shown\n"));
    assert_false(log_set_level("no such module", LOG_LVL_DBG));
    enum log_level l;
    assert_true(log_level_parse("warn", &l));
    assert_int_equal(l, LOG_LVL_WARN);
    assert_false(log_level_parse("loud", &l));
    int lines = 0;
    for (t = captured(say_much); (t = strchr(t, '\n')); t++)
        lines++;
    assert_in_range(lines, 50, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nth),       cmocka_unit_test(refused),    cmocka_unit_test(delays_and_exits),
        cmocka_unit_test(quantiles), cmocka_unit_test(exposition), cmocka_unit_test(logging),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
