/* Guests of this node: makes what runs here equal to what the cluster database says should (level-triggered).
 *
 * A guest runs here if and only if its row says host = this node, desired = running, and the process is of the row's
 * generation. Anything else of ours that runs is paused (no lease) or killed (moved, deleted, older generation). Main loop. */
#ifndef COHORT_DAEMON_GUESTS_H
#define COHORT_DAEMON_GUESTS_H

#include "compute/machine.h"
#include "daemon/daemon.h"

struct guests;

/* Adopts the guests that ran before the daemon did. */
MUST_CHECK int guests_open(struct daemon *d, struct guests **ret_guests, struct err *e);
/* Forgets them; they run on. */
void guests_close(struct guests *g);
/* The database, the lease or a migration changed: look again. Cheap; the work is done once, from the loop. */
void guests_wake(struct guests *g);

/* ---- for migrations (daemon/moves.c) ---- */

struct machines *guests_machines(struct guests *g);
/* False while reconciliation still has to deal with what an earlier life of the daemon left of this guest. */
bool guests_settled(struct guests *g, const char *id);
/* Fills `spec` for row `m` as this node would run it, with its disks' sockets served and its ports plugged; kernel files
 * must be there already (guests_image_ready). */
MUST_CHECK int guests_prepare(struct guests *g, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *ret_spec,
                              struct err *e);
/* True once the row's kernel image lies on this node (at once if it needs none); starts fetching it otherwise. */
bool guests_image_ready(struct guests *g, const struct cdb_view *v, const struct cdb_machine *m);

#endif
