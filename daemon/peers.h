/* Control connections from this node to every other node of the cluster, kept in step with the database. Main loop. */
#ifndef COHORT_DAEMON_PEERS_H
#define COHORT_DAEMON_PEERS_H

#include "cluster/cdb.h"
#include "proto/rpc.h"

struct peers;
struct peers *peers_open(struct rpc_env *env, const char *self);
void peers_close(struct peers *p); /* before rpc_env_close */
void peers_update(struct peers *p, const struct cdb_view *v);
struct rpc_peer *peers_get(struct peers *p, const char *node); /* NULL: unknown node */

#endif
