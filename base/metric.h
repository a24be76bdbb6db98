/* Metrics: counters, gauges and latency histograms, printed in the Prometheus text format.
 *
 * Define statically: METRIC_COUNTER(vol_writes, "cohort_volume_writes_total", "Guest writes completed");
 * then metric_add(&vol_writes, 1). Lock-free updates from any thread.
 */
#ifndef COHORT_BASE_METRIC_H
#define COHORT_BASE_METRIC_H

#include <stdint.h>
#include "base/buf.h"

enum metric_kind { METRIC_KIND_COUNTER, METRIC_KIND_GAUGE, METRIC_KIND_HISTOGRAM };
#define METRIC_BUCKETS 64 /* bucket i counts values in [2^(i/2 rounded) …): see metric.c */

struct metric {
    const char *name, *help;
    enum metric_kind kind;
    int64_t value;                     /* counter, gauge */
    uint64_t bucket[METRIC_BUCKETS];   /* histogram of nanoseconds */
    uint64_t sum_ns;
    struct metric *next;
};

#define METRIC_DEFINE(VAR, NAME, HELP, KIND)               \
    static struct metric VAR = {.name = NAME, .help = HELP, .kind = KIND}; \
    __attribute__((constructor)) static void VAR##_register(void) { metric_register(&VAR); }
#define METRIC_COUNTER(VAR, NAME, HELP) METRIC_DEFINE(VAR, NAME, HELP, METRIC_KIND_COUNTER)
#define METRIC_GAUGE(VAR, NAME, HELP) METRIC_DEFINE(VAR, NAME, HELP, METRIC_KIND_GAUGE)
#define METRIC_HISTOGRAM(VAR, NAME, HELP) METRIC_DEFINE(VAR, NAME, HELP, METRIC_KIND_HISTOGRAM)

void metric_register(struct metric *m);
void metric_add(struct metric *m, int64_t delta);
void metric_set(struct metric *m, int64_t value);
void metric_observe_ns(struct metric *m, uint64_t ns);
/* Value in ns below which fraction `q` (0..1) of observations lie, by bucket upper bound; 0 if none. */
uint64_t metric_quantile_ns(const struct metric *m, double q);
/* Appends every registered metric in Prometheus text exposition format 0.0.4. */
void metric_print_all(struct buf *out);

#endif
