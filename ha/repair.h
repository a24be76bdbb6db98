/* Repair of copies: which copies of shards are replaced, added or given up, and where to. Pure: a database view and the time
 * in, a list of steps out; everyone computes the same list. Only rows change here; the bytes are copied by the volumes' owners,
 * who see a replica that is not in sync.
 *
 * Per shard, the first that applies (worth: cluster/copies.h):
 *   lost     a copy is lost and not in sync, another one is in sync: a new copy takes its place in the row
 *   short    there are fewer copies than the volume wants (made when nodes were missing): one more
 *   drain    a copy is on a draining disk: one more, if that does not make more than one too many
 *   local    the guest's node has no copy though it has a disk with room: one more there
 *   extra    more copies than wanted, and all wanted ones are in sync elsewhere: the worst one goes (lost, draining, then
 *            the one on the fullest disk, never the owner's own)
 * and, when nothing of that is left to do, one at a time:
 *   balance  the fullest disk is fuller than the emptiest by more than BALANCE_PERCENT of its size: a copy moves
 * A spare disk comes into service for a failed or isolated disk of its medium that holds copies (spare). Every copy goes to a disk of
 * its volume's class (copies_class()); disks are balanced within their medium.
 *
 * A copy that is in sync is never taken out of a row unless `replicas` other kept ones are in sync; a lost copy that is the
 * only one in sync stays where it is. Shards with one copy left come first; then two; moves last, few at a time, so that the
 * owners' copying is not spread over everything at once. */
#ifndef COHORT_HA_REPAIR_H
#define COHORT_HA_REPAIR_H

#include "base/buf.h"
#include "base/id.h"
#include "cluster/cdb.h"

#define REPAIR_ABSENT_MS 600000 /* a node that is gone this long is not waited for; Cluster.settings repair_absent_s */
#define REPAIR_STEPS_MAX 512    /* in one transaction; the coordinator makes fewer at a time while owners change the same rows */
#define REPAIR_STEPS_MIN 16
#define REPAIR_MOVES_MAX 8      /* shards with one copy too many at a time */
#define REPAIR_BALANCE_PERCENT 20

enum repair_why { REPAIR_LOST, REPAIR_SHORT, REPAIR_EXTRA, REPAIR_DRAIN, REPAIR_LOCAL, REPAIR_BALANCE, REPAIR_SPARE };

struct repair_step {
    enum repair_why why;
    const struct cdb_shard *shard;   /* NULL for SPARE; of the view */
    const struct cdb_disk *add;      /* NULL = none; SPARE: the spare */
    const char *remove;              /* disk id, NULL = none; SPARE: the disk it stands in for */
    int in_sync;                     /* copies the shard has now: the fewer the more urgent */
};

struct repair_conf {
    int64_t wall_ms;
    int64_t absent_ms;
    bool no_moves;                   /* lost, short, extra and spare only */
    bool balance;                    /* also balance (setting repair_balance, default on) */
};

/* What the cluster's settings say. */
void repair_conf_of(const struct cdb_view *v, int64_t wall_ms, struct repair_conf *ret);
/* At most `max` steps, the most urgent first. Returns how many. */
int repair_plan(const struct cdb_view *v, const struct repair_conf *c, struct repair_step *ret, int max);
/* Adds the steps to `t` with everything they rest on: the shards' generations, the new disks' and nodes' states. */
void repair_txn(const struct cdb_view *v, struct cdb_txn *t, const struct repair_step *s, int n);
/* "volume db1 shard 3: copy moves from node1/d0 to node2/d0 (drain)" */
void repair_describe(const struct cdb_view *v, const struct repair_step *s, struct buf *out);
/* Lost copies that cannot be replaced now, for lack of a node or of room; and of those the shards without any good copy. */
void repair_stuck(const struct cdb_view *v, const struct repair_conf *c, int *ret_no_place, int *ret_no_copy);

#endif
