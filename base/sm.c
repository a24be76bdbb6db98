/* State machines. See sm.h. */
#include "base/sm.h"

#include <assert.h>
#include <stdio.h>
#include "base/log.h"

LOG_MODULE("sm")

void sm_init(struct sm *sm, const struct sm_conf *conf, int n_states, int initial, const char *label)
{
    assert(n_states > 0 && n_states <= 32 && initial >= 0 && initial < n_states);
    assert(conf[initial].name && conf[initial].initial);
    *sm = (struct sm){.conf = conf, .n_states = n_states, .state = initial};
    snprintf(sm->label, sizeof sm->label, "%s", label);
}

void sm_move(struct sm *sm, int to)
{
    assert(to >= 0 && to < sm->n_states && sm->conf[to].name);
    if (!(sm->conf[sm->state].allowed & SM_TO(to))) {
        log_err("%s: move %s -> %s is not in the table", sm->label, sm->conf[sm->state].name, sm->conf[to].name);
        assert(!"state move not allowed");
    }
    log_dbg("%s: %s -> %s", sm->label, sm->conf[sm->state].name, sm->conf[to].name);
    sm->state = to;
}

const char *sm_name(const struct sm *sm) { return sm->conf[sm->state].name; }
