/* How fast replicas are brought up to date: pure. The node that owns a volume copies for it and sees its guests' latency, so
 * it slows down while they suffer and speeds up while they do not, and never goes below a floor: a rebuild always ends, and a
 * shard that is one copy short must not stay so because its guest is busy.
 *
 * A limit that the disks do not reach is not kept: a guest that begins to ask would wait for it to be halved again and again.
 *
 * Guests may be slow for reasons of their own (a busy machine, slow disks). So what they see while copying goes at the floor is
 * learned, and copying may make them half as slow again as that; after a while that is forgotten and learned anew. */
#ifndef COHORT_STORAGE_ENGINE_PACE_H
#define COHORT_STORAGE_ENGINE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_FLOOR (8ull << 20)    /* bytes/s */
#define PACE_START (64ull << 20)
#define PACE_MAX (4ull << 30)
#define PACE_WINDOW_MS 500         /* latencies are judged over this long */
#define PACE_P99_US 20000          /* default of the setting rebuild_p99_ms */
#define PACE_LEARN 4               /* windows at the floor, in a row, from which the guests' own p99 is learned */
#define PACE_FORGET_MS 30000
#define PACE_ENOUGH 20             /* fewer requests in a window say nothing about p99 */
#define PACE_BUCKETS 128

struct pace {
    uint64_t rate;                 /* bytes/s */
    uint64_t window_ms, tick_ms;   /* begin of this window; last tick */
    uint64_t carry;                /* bytes x 1000 not given out for being less than a unit */
    uint64_t used;                 /* bytes copied in this window */
    uint64_t p99_us;               /* of the last window that had enough requests, 0 = none */
    uint64_t own_us, own_ms;       /* the guests' p99 at the floor, 0 = not known, or far below the target; since when */
    uint64_t floor_sum_us;         /* of `floor_windows` windows in a row */
    uint32_t floor_windows;
    uint32_t n, bucket[PACE_BUCKETS]; /* guest requests of this window by latency, four buckets per power of two */
};

void pace_init(struct pace *p, uint64_t now_ms);
void pace_sample(struct pace *p, uint64_t latency_us);
void pace_used(struct pace *p, uint64_t bytes); /* they were copied */
/* Units of `unit` bytes that may be copied until the next call (every 50 ms or so). `target_us`: the p99 that is too much. */
uint32_t pace_tick(struct pace *p, uint64_t now_ms, uint64_t target_us, uint32_t unit);

#endif
