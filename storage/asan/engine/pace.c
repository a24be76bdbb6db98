/* How fast replicas are brought up to date. See pace.h. */
#include "storage/asan/engine/pace.h"
#include <string.h>

/* Four buckets per power of two, so a bucket's width is a fifth of its value. */
static int bucket_of(uint64_t us)
{
    if (us < 4)
        return (int)us;
    int log = 63 - __builtin_clzll(us);
    int b = log * 4 + (int)(us >> (log - 2) & 3);
    return b < PACE_BUCKETS ? b : PACE_BUCKETS - 1;
}

static uint64_t upper_us(int b)
{
    return b < 4 ? (uint64_t)b : (uint64_t)(4 + (b & 3) + 1) << (b / 4 - 2);
}

void pace_init(struct pace *p, uint64_t now_ms)
{
    *p = (struct pace){.rate = PACE_START, .window_ms = now_ms, .tick_ms = now_ms};
}

void pace_sample(struct pace *p, uint64_t latency_us)
{
    p->n++;
    p->bucket[bucket_of(latency_us)]++;
}

void pace_used(struct pace *p, uint64_t bytes)
{
    p->used += bytes;
}

static uint64_t p99(const struct pace *p)
{
    uint32_t above = p->n / 100, seen = 0;
    for (int b = PACE_BUCKETS - 1; b >= 0; b--) {
        seen += p->bucket[b];
        if (seen > above)
            return upper_us(b);
    }
    return 0;
}

/* A window at the floor in which guests were not calm all the same. */
static void learn(struct pace *p, uint64_t now_ms)
{
    p->floor_sum_us += p->p99_us;
    if (++p->floor_windows < PACE_LEARN)
        return;
    p->own_us = p->floor_sum_us / PACE_LEARN;
    p->own_ms = now_ms;
    p->floor_windows = 0;
    p->floor_sum_us = 0;
}

static void forget_unused(struct pace *p, uint64_t ms)
{
    uint64_t most = p->used * 1000 / ms * 3 / 2;
    if (most < PACE_START)
        most = PACE_START;
    if (p->rate > most)
        p->rate = most;
    p->used = 0;
}

static void judge(struct pace *p, uint64_t now_ms, uint64_t target_us)
{
    forget_unused(p, now_ms - p->window_ms);
    p->p99_us = p->n >= PACE_ENOUGH ? p99(p) : 0;
    if (p->own_us && (p->p99_us < target_us / 2 || now_ms - p->own_ms >= PACE_FORGET_MS))
        p->own_us = 0;
    uint64_t limit = p->own_us * 3 / 2 > target_us ? p->own_us * 3 / 2 : target_us;
    uint64_t calm = p->own_us * 6 / 5 > target_us / 2 ? p->own_us * 6 / 5 : target_us / 2;
    if (p->p99_us >= calm && p->rate == PACE_FLOOR) {
        learn(p, now_ms);
    } else {
        p->floor_windows = 0;
        p->floor_sum_us = 0;
    }
    if (p->p99_us > limit)
        p->rate = p->rate / 2 > PACE_FLOOR ? p->rate / 2 : PACE_FLOOR;
    else if (!p->p99_us)
        p->rate = p->rate * 2 < PACE_MAX ? p->rate * 2 : PACE_MAX;
    else if (p->p99_us < calm)
        p->rate = p->rate + p->rate / 4 < PACE_MAX ? p->rate + p->rate / 4 : PACE_MAX;
    memset(p->bucket, 0, sizeof p->bucket);
    p->n = 0;
}

uint32_t pace_tick(struct pace *p, uint64_t now_ms, uint64_t target_us, uint32_t unit)
{
    if (now_ms - p->window_ms >= PACE_WINDOW_MS) {
        judge(p, now_ms, target_us);
        p->window_ms = now_ms;
    }
    uint64_t ms = now_ms - p->tick_ms < 1000 ? now_ms - p->tick_ms : 1000; /* after a stall no burst */
    p->tick_ms = now_ms;
    p->carry += p->rate * ms;
    uint64_t units = p->carry / 1000 / unit;
    p->carry -= units * unit * 1000;
    return units < UINT32_MAX ? (uint32_t)units : UINT32_MAX;
}
