/* Limits of a volume: requests and bytes per second, with a burst. Pure: the caller brings the time.
 *
 * Each limit is a token bucket in the form of a virtual clock (GCRA, ITU-T I.371): `due_ns` is when the requests admitted so
 * far would have ended at the exact rate. A request may start while that is at most `burst` ahead of now, and moves it on by
 * its own cost. Hence: an idle volume saves up to `burst` worth of requests, no more; a request dearer than the whole burst
 * starts too, and those after it wait the longer; the long-run rate is exact, whatever the sizes. */
#ifndef COHORT_STORAGE_ENGINE_QOS_H
#define COHORT_STORAGE_ENGINE_QOS_H

#include <stdint.h>

struct qos {
    uint64_t iops, bandwidth;   /* per second: requests, bytes; 0 = unlimited */
    uint64_t burst_ms;
    uint64_t io_due_ns, byte_due_ns;
};

/* New limits count from now on; what was saved up or is owed stays. */
void qos_set(struct qos *q, uint64_t iops, uint64_t bandwidth, uint64_t burst_ms);
/* 0: a request of `bytes` may start and is charged. Otherwise nothing is charged; try again in so many ns. */
uint64_t qos_take(struct qos *q, uint64_t now_ns, uint64_t bytes);

#endif
