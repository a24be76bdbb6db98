/* The virtual network's wiring: what the database says goes to aNet; what aNet reports goes to the database. Main loop. */
#ifndef COHORT_DAEMON_NETS_H
#define COHORT_DAEMON_NETS_H

#include "daemon/daemon.h"
#include "net/anet/anet.h"

/* Opens d->anet. */
MUST_CHECK int nets_open(struct daemon *d, struct err *e);
/* The view changed: networks, ports, members, database servers, office of coordinator. */
void nets_update(struct daemon *d, const struct cdb_view *v);

#endif
