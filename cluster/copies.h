/* Rules about copies of shards that the storage engine, the coordinator and REST follow alike: how many are the minimum, what
 * a disk's copies are worth, where a new copy may go, and when a disk's copies may be declared worthless.
 *
 * Pure functions of a database view; everyone computes the same. */
#ifndef COHORT_CLUSTER_COPIES_H
#define COHORT_CLUSTER_COPIES_H

#include "base/id.h"
#include "cluster/cdb.h"

/* The fewest in-sync copies with which a volume of `replicas` copies takes writes: 2 of 3, 1 of 2, 1 of 1. */
int copies_min(int64_t replicas);

/* What the copies on a disk are worth to planning. */
enum copies_worth {
    COPIES_KEPT,    /* disk and node up */
    COPIES_AWAY,    /* node dead for less than `absent_ms`, or in maintenance: it is waited for */
    COPIES_LEAVING, /* disk draining: readable, to be replaced */
    COPIES_LOST,    /* disk failed, isolated or gone; node dead for longer */
};
enum copies_worth copies_worth(const struct cdb_view *v, const char *disk, int64_t wall_ms, int64_t absent_ms);

/* Bytes one copy of `s` may grow to. Copies are thin; room is counted as if they were not. */
int64_t copies_bytes(const struct cdb_view *v, const struct cdb_shard *s);

/* ---- classes of volumes ---- */

#define CLASS_STORAGE ""
#define CLASS_MEMORY "memory" /* also the medium of the disks that its copies live on, and on those lives nothing else */

/* Never NULL. */
const char *copies_class(const struct cdb_volume *vol);
/* Of class memory, and every copy of a shard of it, or of a layer that it builds on, is gone for good: incarnations only grow, so what
 * the shard's row counts on does not come back. (Storage is never given up like this: people may know of a way.) */
bool copies_volume_lost(const struct cdb_view *v, const struct cdb_volume *vol);

/* ---- where a new copy may go ---- */

/* Every disk that takes new copies (disk up, node up and not in maintenance) with its room: size minus what is promised. One
 * pass over the shards; picks that follow count what was taken. Refers to the view, which must outlive it. */
struct spread;
struct spread *spread_new(const struct cdb_view *v);
void spread_free(struct spread *sp);

struct spread_want {
    const char *medium;         /* copies_class() of its volume: only disks of this medium */
    const char *shard;          /* its id: breaks ties, so that copies of many shards go to many disks */
    const char *prefer_node;    /* first on this node, "" = no wish */
    const struct cdb_strs *have; /* copies that are there or stay: their nodes are out, their domains avoided */
    const char *const *taken;   /* the same for copies chosen just now */
    int n_taken;
    int64_t need_bytes;         /* at least this room; INT64_MIN = any (thin volumes may promise more than there is) */
};
/* Best disk: on prefer_node, then in a failure domain of its own, then most room. NULL if there is none. */
const struct cdb_disk *spread_pick(const struct spread *sp, const struct spread_want *w);
void spread_take(struct spread *sp, const char *disk, int64_t bytes); /* negative: gives back */
int64_t spread_room(const struct spread *sp, const char *disk);       /* INT64_MIN if it takes no copies */
/* Failure domain of a disk: its node's `domain`, or the node itself. */
const char *copies_domain(const struct cdb_view *v, const char *disk);

/* ---- declaring a disk's copies worthless ---- */

/* True if every shard keeps the minimum without the copy on `disk`: the last good copy must stay believed, wherever it is. */
bool copies_may_lose(const struct cdb_view *v, const char *disk);
/* Makes `t` depend on that answer: on the guard of the disk and on the incarnation of every disk it shares a shard with. Few
 * conditions, whatever the number of shards; in return every transaction that leaves a shard no copy to spare calls
 * copies_critical(). */
void copies_require_may_lose(struct cdb_txn *t, const struct cdb_view *v, const char *disk);
/* `t` leaves a shard of a volume of `replicas` copies the in-sync set `disks`: if none of them can be spared, says so on
 * each one's row. */
void copies_critical(struct cdb_txn *t, int64_t replicas, int n, const char *const *disks);
/* One disk of them. */
void copies_guard(struct cdb_txn *t, const char *disk);
/* Raises the incarnation: the disk is in sync with nothing until it was compared. Requires the one in the view. */
void copies_distrust(struct cdb_txn *t, const struct cdb_disk *d);

#endif
