/* Placement: which node should run a guest. Pure: a database view and the numbers of the last heartbeats in, a node out.
 *
 * A node qualifies if it is up, not in maintenance, has the memory (what its guests and its disks in memory were promised counts, not what they use) and runs no
 * other guest of the same anti-affinity group. Among those: most replicas of the guest's volumes on its own disks (reads
 * stay local), then most memory left, then the smaller id, so that everyone computes the same.
 */
#ifndef COHORT_HA_PLAN_H
#define COHORT_HA_PLAN_H

#include "cluster/cdb.h"

/* Memory of a node that is never promised to guests: the daemon, Open vSwitch, the database, the kernel. */
#define PLAN_RESERVE_BYTES (1ll << 30)

struct plan_usable { /* nodes the caller knows to be usable beyond their row, NULL = judge by the row alone */
    bool (*ok)(const char *node, void *arg);
    void *arg;
};

/* The node for `m`, or NULL with the reason in `e` (E_UNAVAIL: "no node has 2 GiB of memory free", …). The text lives as
 * long as the view. `not_node` (may be NULL) is left out. */
const char *plan_host(const struct cdb_view *v, const struct cdb_machine *m, const struct plan_usable *usable,
                      const char *not_node, struct err *e);
/* Bytes of memory promised to the guests that have `node` as their host, and to its disks of medium memory. */
int64_t plan_promised_bytes(const struct cdb_view *v, const char *node);
/* The latter alone. */
int64_t plan_disk_memory(const struct cdb_view *v, const char *node);

#endif
