/* When a live migration does not come to its end by itself, how far to go: a pure step function.
 *
 * Memory is sent in passes; what the guest dirties meanwhile is left for the next. Converging means that each pass leaves
 * clearly less than the one before. When two in a row do not, the ladder's next rung is taken: slow the guest down, accept
 * a longer pause. Above the last rung the user's choice holds: pause the guest and finish, or give up. So it always ends. */
#ifndef COHORT_MIGRATE_POLICY_H
#define COHORT_MIGRATE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

enum policy_last { POLICY_LAST_PAUSE /* finish with the guest paused */, POLICY_LAST_CANCEL };

struct policy_conf {
    int downtime_ms;        /* pause that is welcome at first */
    enum policy_last last;
    uint64_t deadline_ms;   /* after so long the last resort is taken at once; 0 = no limit */
    uint64_t stall_ms;      /* nothing moved for so long: cancel; 0 = no limit */
};

struct policy_sample { /* what the source reports, every 100 ms or so */
    uint64_t now_ms;
    int64_t remaining_bytes, transferred_bytes;
    int rounds; /* passes begun */
};

enum policy_do { POLICY_GO_ON, POLICY_TUNE, POLICY_PAUSE_GUEST, POLICY_CANCEL };

struct policy_action {
    enum policy_do what;
    int downtime_ms, throttle_max; /* with POLICY_TUNE: the new limits */
    const char *why;               /* static text */
};

struct policy {
    struct policy_conf conf;
    int rung, poor_rounds, round;
    int64_t left_before, moved_bytes; /* left_before: at the beginning of the current pass; -1 = none seen */
    uint64_t begun_ms, moved_ms;
    bool paused;
};

void policy_init(struct policy *p, const struct policy_conf *conf, uint64_t now_ms);
/* Limits of the first rung, for the beginning. */
struct policy_action policy_begin(const struct policy *p);
struct policy_action policy_step(struct policy *p, const struct policy_sample *s);

#endif
