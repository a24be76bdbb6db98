/* High availability on one node: sends heartbeats, holds the node's lease, and runs the coordinator's step function
 * (coord.h) when the database's leader is on this node.
 *
 * Main loop only. The configuration's pointers must outlive it. */
#ifndef COHORT_HA_HA_H
#define COHORT_HA_HA_H

#include <uv.h>
#include "base/buf.h"
#include "cluster/cdb.h"
#include "proto/rpc.h"

#define HA_HEARTBEAT_MS 500

struct ha;

struct ha_conf {
    uv_loop_t *loop;
    struct cdb_link *link;
    struct rpc_env *rpc;      /* RPC_HEARTBEAT is served on it */
    const char *self;         /* node id */
    struct rpc_peer *(*peer)(const char *node, void *arg); /* control connection to a node, NULL if there is none */
    void (*lease)(uint64_t until_boot_ns, void *arg);      /* called whenever the lease was extended */
    void *arg;
};

MUST_CHECK int ha_open(const struct ha_conf *conf, struct ha **ret_ha, struct err *e);
void ha_close(struct ha *h);
void ha_view_changed(struct ha *h);
/* End of this node's lease, CLOCK_BOOTTIME nanoseconds; 0 = never had one. */
uint64_t ha_lease_until_ns(const struct ha *h);
/* Text for people: state, term, peers with the age of their heartbeats and leases. */
void ha_dump(const struct ha *h, struct buf *out);

#endif
