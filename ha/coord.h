/* The coordinator: one node at a time grants leases, declares nodes dead and has their guests restarted.
 *
 * Pure step function: time, database views, heartbeats and transaction results in; lease answers and actions out. No
 * clock, loop or I/O, so the tests replay any history.
 *
 *            local database server leads         committed            one lease passed
 *      idle ------------------------------> taking --------> waiting ------------------> acting
 *        ^  <- lost leadership, or another term in the database (from any state) --------------'
 *
 * Why it is safe (data safety does not depend on any of this, see storage/asan/README.md; this keeps two copies of a guest
 * off the network):
 *  - A lease lasts `lease_ms` on the holder's clock from the moment it SENT the heartbeat, so it ends there no later than
 *    `lease_ms` after we granted it, give or take the drift of two clocks over seconds (covered by margin_ms).
 *  - We grant only while we hear a majority of the voters (`hear_ms`), so a coordinator that was cut off stops within hear_ms.
 *  - A successor declares nobody dead before a full lease + margin has passed since it took office, and since it has had a
 *    majority without a gap; margin_ms > hear_ms covers what the predecessor may have granted in its last moments.
 *  - Every transaction of ours requires our term; while one that may declare a node dead is unresolved, that node gets no lease.
 */
#ifndef COHORT_HA_COORD_H
#define COHORT_HA_COORD_H

#include "base/id.h"
#include "cluster/cdb.h"

#define COORD_NODES_MAX 64
#define COORD_ACTIONS_MAX 32
#define COORD_EVACUATE_MS 2000 /* between guests; a round through all of them that moved none is repeated */
#define COORD_REPAIR_MS 1000 /* copies are looked at this often */
/* Guests being started on one node at a time; more wait, so that a dead node's forty do not all boot at once. */
#define COORD_STARTS_PER_NODE 4

struct coord_conf {
    char self[ID_LEN + 1];
    uint32_t margin_ms; /* > hear_ms; 2000 */
    uint32_t hear_ms;   /* a node not heard for this long does not count for our majority; 1500 */
};

enum coord_state { COORD_IDLE, COORD_TAKING, COORD_WAITING, COORD_ACTING };

enum coord_action_kind {
    COORD_TAKE_OFFICE,
    COORD_DECLARE_DEAD, /* node */
    COORD_MARK_UP,      /* node */
    COORD_MOVE,         /* machine to node: its host is dead or it has none */
    COORD_REPAIR,       /* copies of shards: what repair_plan() says (repair.h) */
    COORD_EVACUATE,     /* machine to node: live migration away from a node in maintenance */
    COORD_LOST,         /* volume of class memory: Volume.lost_ms follows from its copies (cluster/copies.h) */
    COORD_GIVE_UP,      /* machine whose policy is not to be restarted: stopped, with the reason */
};

struct coord_action {
    enum coord_action_kind kind;
    char subject[ID_LEN + 1]; /* node, machine or volume id */
    char to[ID_LEN + 1];
    int64_t term;             /* that must still be in force; for TAKE_OFFICE the one before ours */
    int steps;                /* REPAIR: at most so many */
};

struct coord_peer {
    char id[ID_LEN + 1];
    uint64_t heard_ms;       /* last heartbeat, 0 = never */
    uint64_t lease_until_ms; /* latest end of what was granted, our clock */
    int64_t epoch;           /* as it said */
};

struct coord {
    struct coord_conf conf;
    enum coord_state state;
    int64_t term;              /* ours, once taken */
    uint64_t office_ms;        /* since when in office */
    uint64_t quorate_ms;       /* since when we hear a majority without a gap, 0 = we do not */
    int n_peers;
    struct coord_peer peer[COORD_NODES_MAX];
    uint64_t evacuate_ms;      /* next guest away from a node in maintenance */
    char evacuated[ID_LEN + 1]; /* the last one that was asked to go: one that could not go is not tried again and again */
    uint64_t repair_ms;        /* next look at the copies */
    uint64_t lost_ms;          /* next look for lost volumes */
    int repair_steps;          /* in the next transaction: a quarter after one that was refused (any of the rows may have changed), twice
                                * as many after one that was not */
    int n_pending;             /* actions handed out whose result is not known */
    struct coord_action pending[COORD_ACTIONS_MAX];
};

void coord_init(struct coord *c, const struct coord_conf *conf);

/* A heartbeat of `node` (ourselves too) arrived. True: granted, for lease_ms from when it was sent. */
bool coord_heartbeat(struct coord *c, uint64_t now_ms, const struct cdb_view *v, const char *node, int64_t node_epoch);

/* Time passed or the view changed. `wall_ms` only ages the rows' own times (Node.state_ms). Appends actions; each must be answered by coord_done(). Returns how many. */
int coord_step(struct coord *c, uint64_t now_ms, int64_t wall_ms, const struct cdb_view *v, bool local_leader,
               struct coord_action *ret_actions, int max);

/* The action's transaction ended (E_OK, E_CONFLICT, …). E_UNKNOWN too: what happened shows in the next view. */
void coord_done(struct coord *c, uint64_t now_ms, const struct coord_action *a, int status);

/* In office and hearing a majority: may grant. */
bool coord_granting(const struct coord *c, uint64_t now_ms);
int64_t coord_lease_ms(const struct cdb_view *v); /* Cluster.lease_ms, bounded 1..60 s; 5000 if unset */

/* The transaction that carries `a` out, from the same view; NULL if the view says there is nothing left to do. */
struct cdb_txn *coord_txn(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self);

#endif
