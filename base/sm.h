/* State machines: a named state, a table of allowed moves that asserts, every move traced at debug level.
 *
 * static const struct sm_conf conf[] = {[IDLE] = {"idle", SM_TO(CONNECTING)}, ...}; sm_move(&x->sm, CONNECTING).
 * At most 32 states. A machine belongs to one thread. */
#ifndef COHORT_BASE_SM_H
#define COHORT_BASE_SM_H

#include <stdbool.h>
#include <stdint.h>

struct sm_conf {
    const char *name;  /* never NULL for a state that exists */
    uint32_t allowed;  /* bit set of the states that may follow */
    bool initial, final;
};

#define SM_TO(STATE) (1u << (STATE))

struct sm {
    const struct sm_conf *conf;
    int n_states, state;
    char label[48]; /* what the trace lines call this machine: "migrate vm web1" */
};

void sm_init(struct sm *sm, const struct sm_conf *conf, int n_states, int initial, const char *label);
void sm_move(struct sm *sm, int to); /* asserts that the move is in the table */
const char *sm_name(const struct sm *sm);

#endif
