/* Membership of the daemon: bringing every part up, and down again. */
#ifndef COHORT_DAEMON_WIRE_H
#define COHORT_DAEMON_WIRE_H

#include "daemon/daemon.h"

/* At start: if this node is a member (state_dir/node.json), becomes one again; otherwise does nothing. */
MUST_CHECK int daemon_resume_membership(struct daemon *d, struct err *e);
/* Stops every part; guests, database servers and OVN go on. The loop ends when all has closed. */
void daemon_leave(struct daemon *d);

#endif
