/* Sees ovn-northd through a change of database leaders. northd needs both leaders, and after a few attempts waits up to 8 s
 * between them: while it has not found both, it is started anew, until it has or a limit is reached.
 *
 *   northd_follow() -> restart -> (400 ms) -> ask its control socket -> connected to both: done
 *                         ^----------------------------------- not yet: '
 *
 * Main thread.
 */
#ifndef COHORT_NET_ANET_NORTHD_H
#define COHORT_NET_ANET_NORTHD_H

#include <uv.h>
#include "net/anet/supervise.h"

struct northd;

struct northd *northd_open(uv_loop_t *loop, struct service *service, const char *ctl_path); /* borrows the service */
void northd_close(struct northd *n); /* before service_close(); memory goes with the loop */
void northd_follow(struct northd *n);
void northd_let(struct northd *n);   /* no more of it: the service was stopped */

#endif
