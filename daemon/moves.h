/* Live migrations' wiring: Machine.migrate_to asks for one, migrate/ carries it out, the database decides. Main loop. */
#ifndef COHORT_DAEMON_MOVES_H
#define COHORT_DAEMON_MOVES_H

#include "compute/machine.h"
#include "daemon/daemon.h"

struct moves;
/* Opens the migration engine on d->rpc: before it listens. */
MUST_CHECK int moves_open(struct daemon *d, struct moves **ret_moves, struct err *e);
void moves_close(struct moves *m);           /* before guests_close() */
void moves_update(struct moves *m);          /* the view changed: begins what is wanted, cancels what is not */
void moves_machine_changed(struct moves *m, struct machine *machine);
bool moves_owns(const struct moves *m, const char *machine);
void moves_image_ready(struct moves *m);     /* a kernel image arrived: preparations that wait for one go on */

#endif
