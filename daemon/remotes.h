/* Where the database servers are, as the cluster database says. Pure. */
#ifndef COHORT_DAEMON_REMOTES_H
#define COHORT_DAEMON_REMOTES_H

#include "cluster/cdb.h"

#define DB_CLIENT_PORT 6641

/* "ssl:192.0.2.11:6641,ssl:…" of all voters; "" if there are none. Caller frees. */
char *remotes_of(const struct cdb_view *v);

#endif
