/* Voters: the nodes that serve the databases, at most five of them.
 *
 * Node.voter is the wish, set by the coordinator; each node follows its own: it joins the databases' RAFT clusters or leaves
 * them. voters_plan() decides, purely; the driver carries out.
 *
 *   driver of a node:  OUT --(Node.voter)--> JOINING --> SERVING --(!Node.voter, or its row is gone)--> LEAVING --> OUT
 *
 * The coordinator's driver also kicks servers out of RAFT that belong to no voter any more and did not leave by themselves.
 */
#ifndef COHORT_CLUSTER_VOTERS_H
#define COHORT_CLUSTER_VOTERS_H

#include <uv.h>
#include "cluster/cdb.h"
#include "cluster/dbserver.h"

#define VOTERS_MAX 5
#define VOTERS_REPLACE_MS 300000 /* a dead voter is replaced after this time, if another node can take over */
#define VOTERS_KICK_MS 15000     /* time that a server has to leave by itself */

/* ---- deciding (pure) ---- */

/* How many of `n` usable nodes should be voters: all up to three (two copies of the database are better than one, though
 * two voters need each other), then odd numbers only: 3, 5. */
int voters_wanted(int n);
/* Should a node that joins now become a voter at once? */
bool voters_join(const struct cdb_view *v);

struct voters_plan {
    char promote[64], demote[64]; /* node ids; "" = none. Both: one takes the other's place */
};
/* The next step, if any. `dead_ms` tells for how long a node has been dead (state "dead"); 0 if it is not. */
void voters_plan(const struct cdb_view *v, int64_t (*dead_ms)(const char *node_id, void *arg), void *arg,
                 struct voters_plan *ret_plan);

/* ---- doing ---- */

struct voters;
struct voters_conf {
    uv_loop_t *loop;
    struct cdb_link *link;      /* of that loop */
    struct db_conf db;          /* copied shallowly: its texts must live as long as the driver */
    const char *self;           /* node id */
    /* This node begins or ends to serve the databases (also reported at the opening if it serves). The owner starts or
     * stops ovn-northd and calls cdb_set_remotes(). */
    void (*serving)(bool on, void *arg);
    void *arg;
};
/* Starts the server if there are databases on this node. */
MUST_CHECK int voters_open(const struct voters_conf *c, struct voters **ret_voters, struct err *e);
void voters_close(struct voters *v); /* the server goes on; memory goes with the loop */
/* Call it when the view changed; it also looks by itself every second. */
void voters_changed(struct voters *v);
bool voters_serving(const struct voters *v);
/* "ssl:a:6641,…" of all voters in the view, own socket instead if this node serves; caller frees. NULL without a view. */
char *voters_remotes(const struct voters *v);

#endif
