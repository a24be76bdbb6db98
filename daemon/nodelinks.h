/* Control connections from this node to every other node of the cluster, kept in step with the database. Main loop. */
#ifndef COHORT_DAEMON_NODELINKS_H
#define COHORT_DAEMON_NODELINKS_H

#include "cluster/cdb.h"
#include "proto/rpc.h"

struct nodelinks;
struct nodelinks *nodelinks_open(struct rpc_env *env, const char *self);
void nodelinks_close(struct nodelinks *p); /* before rpc_env_close */
void nodelinks_update(struct nodelinks *p, const struct cdb_view *v);
struct rpc_peer *nodelinks_get(struct nodelinks *p, const char *node); /* NULL: unknown node */

#endif
