/* Sub-health of a disk: slow and frozen. Pure: what the device did each second in, a verdict out. (A disk that answers with
 * errors is dead at once; the store says that.)
 *
 *   slow     in `seconds` of the last 300 seconds the mean latency was slow_us or more: an alert
 *   bad      the same with bad_us: it holds up every write of every guest that has a copy here, so it is to be isolated
 *   frozen   something has been waiting for frozen_ms
 * and good again when fewer than half of `seconds` are slow, so that a disk at the edge does not raise an alert each minute.
 * Seconds without a request say nothing and count as good. */
#ifndef COHORT_STORAGE_ENGINE_HEALTH_H
#define COHORT_STORAGE_ENGINE_HEALTH_H

#include <stdint.h>

#define HEALTH_WINDOW_S 300

struct health_conf {
    uint64_t slow_us, bad_us, frozen_ms;
    int seconds;
};
#define HEALTH_CONF_DEFAULT {.slow_us = 25000, .bad_us = 125000, .frozen_ms = 10000, .seconds = 60}

enum health_verdict { HEALTH_GOOD, HEALTH_SLOW, HEALTH_BAD, HEALTH_FROZEN };

struct health {
    uint8_t second[HEALTH_WINDOW_S]; /* 0 good, 1 slow, 2 bad; a ring */
    int at, slow, bad;               /* slow counts the bad ones, too */
    enum health_verdict verdict;
};

struct health_sample { /* of one second */
    uint64_t n, sum_us;    /* requests that ended, their latencies together */
    uint64_t oldest_ms;    /* age of the oldest that has not ended */
};

void health_reset(struct health *h);
/* Once a second. */
enum health_verdict health_step(struct health *h, const struct health_conf *c, const struct health_sample *s);
const char *health_name(enum health_verdict v);

#endif
