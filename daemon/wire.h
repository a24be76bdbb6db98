/* Membership of the daemon: bringing every part up, and down again. */
#ifndef COHORT_DAEMON_WIRE_H
#define COHORT_DAEMON_WIRE_H

#include "cluster/member.h"
#include "daemon/daemon.h"

/* At start: if this node is a member (state_dir/node.json), becomes one again; otherwise does nothing. */
MUST_CHECK int daemon_resume_membership(struct daemon *d, struct err *e);
/* Stops every part; guests, database servers and OVN go on. The loop ends when all has closed. */
void daemon_leave(struct daemon *d);

/* What this node tells a cluster about itself, from configuration and measurement. Texts belong to `d`; `disks` must have
 * CONF_DISKS_MAX places and live as long as *ret_conf. Blocks up to 1.5 s the first time (host check). */
void daemon_member_conf(struct daemon *d, struct member_conf *ret_conf, struct member_disk *disks);

#endif
