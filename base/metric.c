/* Metrics. Histogram buckets step by half powers of two from 1024 ns: bucket i holds values below bound(i) =
 * 2^(10 + i/2) (i even) or 1.5 * 2^(10 + i/2) (i odd), down to the bound before; the last one holds the rest (about an hour). */
#include "base/metric.h"

#include <inttypes.h>
#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct metric *first, **tail = &first;

static uint64_t bound_ns(int i)
{
    uint64_t p = (uint64_t)1 << (10 + i / 2);
    return i & 1 ? p + p / 2 : p;
}

static int bucket_of(uint64_t ns)
{
    if (ns < 1024)
        return 0;
    int top = 63 - __builtin_clzll(ns);               /* 2^top <= ns */
    int i = (top - 10) * 2 + 1;                        /* bound 1.5 * 2^top */
    if (ns >= ((uint64_t)3 << (top - 1)))
        i++;                                           /* bound 2^(top+1) */
    return i < METRIC_BUCKETS ? i : METRIC_BUCKETS - 1;
}

void metric_register(struct metric *m)
{
    pthread_mutex_lock(&lock);
    m->next = NULL;
    *tail = m;
    tail = &m->next;
    pthread_mutex_unlock(&lock);
}

void metric_add(struct metric *m, int64_t delta) { __atomic_add_fetch(&m->value, delta, __ATOMIC_RELAXED); }
void metric_set(struct metric *m, int64_t value) { __atomic_store_n(&m->value, value, __ATOMIC_RELAXED); }

void metric_observe_ns(struct metric *m, uint64_t ns)
{
    __atomic_add_fetch(&m->bucket[bucket_of(ns)], 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&m->sum_ns, ns, __ATOMIC_RELAXED);
}

uint64_t metric_quantile_ns(const struct metric *m, double q)
{
    uint64_t copy[METRIC_BUCKETS], total = 0, seen = 0;
    for (int i = 0; i < METRIC_BUCKETS; i++) {
        copy[i] = __atomic_load_n(&m->bucket[i], __ATOMIC_RELAXED);
        total += copy[i];
    }
    if (total == 0)
        return 0;
    double want = q * (double)total;
    for (int i = 0; i < METRIC_BUCKETS; i++) {
        seen += copy[i];
        if (copy[i] && (double)seen >= want)
            return bound_ns(i);
    }
    return bound_ns(METRIC_BUCKETS - 1);
}

static void print_histogram(const struct metric *m, struct buf *out)
{
    uint64_t seen = 0;
    for (int i = 0; i < METRIC_BUCKETS; i++) {
        seen += __atomic_load_n(&m->bucket[i], __ATOMIC_RELAXED);
        if ((i & 1) == 0) /* powers of two are enough outside; the half steps serve metric_quantile_ns() */
            buf_printf(out, "%s_bucket{le=\"%.9g\"} %" PRIu64 "\n", m->name, (double)bound_ns(i) / 1e9, seen);
    }
    buf_printf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", m->name, seen);
    buf_printf(out, "%s_sum %.9g\n", m->name, (double)__atomic_load_n(&m->sum_ns, __ATOMIC_RELAXED) / 1e9);
    buf_printf(out, "%s_count %" PRIu64 "\n", m->name, seen);
}

void metric_print_all(struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    pthread_mutex_lock(&lock);
    for (const struct metric *m = first; m; m = m->next) {
        buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", m->name, m->help, m->name, kinds[m->kind]);
        if (m->kind == METRIC_KIND_HISTOGRAM)
            print_histogram(m, out);
        else
            buf_printf(out, "%s %" PRId64 "\n", m->name, __atomic_load_n(&m->value, __ATOMIC_RELAXED));
    }
    pthread_mutex_unlock(&lock);
}
