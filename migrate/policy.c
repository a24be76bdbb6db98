/* Convergence of a live migration. See policy.h. */
#include "migrate/policy.h"

/* A pass that leaves less than this share of what the one before left counts as progress. */
#define PROGRESS_PERCENT 85
#define POOR_ROUNDS 2

/* Slowing down costs the guest a share of its speed for a while, a longer pause costs everybody's patience at once: they
 * rise together. At 99 % throttle QEMU freezes a guest for a second at a time, so the ladder ends below. */
static const struct rung {
    int throttle, downtime_factor;
} ladder[] = {{10, 1}, {30, 2}, {60, 4}, {80, 8}};
#define RUNGS ((int)(sizeof ladder / sizeof *ladder))

static struct policy_action tune(const struct policy *p, const char *why)
{
    const struct rung *r = &ladder[p->rung];
    return (struct policy_action){POLICY_TUNE, p->conf.downtime_ms * r->downtime_factor, r->throttle, why};
}

static struct policy_action go_on(void) { return (struct policy_action){.what = POLICY_GO_ON, .why = ""}; }

static struct policy_action last_resort(struct policy *p, const char *why)
{
    p->rung = RUNGS;
    if (p->conf.last == POLICY_LAST_CANCEL)
        return (struct policy_action){.what = POLICY_CANCEL, .why = why};
    p->paused = true;
    return (struct policy_action){.what = POLICY_PAUSE_GUEST, .why = why};
}

void policy_init(struct policy *p, const struct policy_conf *conf, uint64_t now_ms)
{
    *p = (struct policy){.conf = *conf, .left_before = -1, .begun_ms = now_ms, .moved_ms = now_ms};
}

struct policy_action policy_begin(const struct policy *p) { return tune(p, "begin"); }

/* At the beginning of a new pass: did the last one get anywhere? */
static struct policy_action judge_round(struct policy *p, int64_t left)
{
    bool poor = p->left_before >= 0 && left * 100 > p->left_before * PROGRESS_PERCENT;
    p->left_before = left;
    p->poor_rounds = poor ? p->poor_rounds + 1 : 0;
    if (p->poor_rounds < POOR_ROUNDS)
        return go_on();
    p->poor_rounds = 0;
    p->rung++;
    if (p->rung < RUNGS)
        return tune(p, "the guest writes memory faster than it can be sent");
    return last_resort(p, "the guest writes memory faster than it can be sent, even slowed down");
}

struct policy_action policy_step(struct policy *p, const struct policy_sample *s)
{
    if (s->transferred_bytes != p->moved_bytes) {
        p->moved_bytes = s->transferred_bytes;
        p->moved_ms = s->now_ms;
    } else if (p->conf.stall_ms && s->now_ms - p->moved_ms >= p->conf.stall_ms) {
        return (struct policy_action){.what = POLICY_CANCEL, .why = "nothing reaches the destination any more"};
    }
    if (p->paused)
        return go_on();
    if (p->conf.deadline_ms && s->now_ms - p->begun_ms >= p->conf.deadline_ms)
        return last_resort(p, "it takes longer than allowed");
    if (s->rounds == p->round)
        return go_on();
    p->round = s->rounds;
    return judge_round(p, s->remaining_bytes);
}
