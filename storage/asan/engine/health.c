/* Sub-health of a disk. See health.h. */
#include "storage/asan/engine/health.h"
#include <string.h>

void health_reset(struct health *h)
{
    memset(h, 0, sizeof *h);
}

const char *health_name(enum health_verdict v)
{
    static const char *const name[] = {"good", "slow", "too slow", "frozen"};
    return name[v];
}

static uint8_t rate(const struct health_conf *c, const struct health_sample *s)
{
    uint64_t mean = s->n ? s->sum_us / s->n : 0;
    uint64_t waiting = s->oldest_ms * 1000; /* a second in which nothing ends is not a good one */
    if (waiting > mean)
        mean = waiting;
    return mean >= c->bad_us ? 2 : mean >= c->slow_us ? 1 : 0;
}

enum health_verdict health_step(struct health *h, const struct health_conf *c, const struct health_sample *s)
{
    uint8_t now = rate(c, s), *slot = &h->second[h->at];
    h->slow += (now >= 1) - (*slot >= 1);
    h->bad += (now == 2) - (*slot == 2);
    *slot = now;
    h->at = (h->at + 1) % HEALTH_WINDOW_S;
    if (s->oldest_ms >= c->frozen_ms)
        h->verdict = HEALTH_FROZEN;
    else if (h->bad >= c->seconds)
        h->verdict = HEALTH_BAD;
    else if (h->slow >= c->seconds)
        h->verdict = HEALTH_SLOW;
    else if (h->slow * 2 < c->seconds || h->verdict == HEALTH_FROZEN)
        h->verdict = HEALTH_GOOD;
    else if (h->verdict == HEALTH_BAD)
        h->verdict = HEALTH_SLOW;
    return h->verdict;
}
