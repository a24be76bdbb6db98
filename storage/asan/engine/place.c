/* Where a new shard's replicas go: the first on the owner's own node, so that reads are local, the others on distinct nodes,
 * in distinct failure domains as far as there are any, those with most room first; all on disks of the volume's class
 * (cluster/copies.h). */
#include <stdio.h>
#include "cluster/copies.h"
#include "storage/asan/engine/priv.h"

int place_shard(const struct cdb_view *v, const char *self, const struct cdb_volume *vol, uint32_t index,
                struct placement *ret, struct err *e)
{
    struct placement p = {0};
    char shard[ID_LEN + 16];
    const char *taken[3];
    struct spread *sp = spread_new(v);
    snprintf(shard, sizeof shard, "%s/%u", vol->id, index);
    while (p.n < vol->replicas && p.n < 3) {
        struct spread_want w = {.medium = copies_class(vol), .shard = shard, .prefer_node = p.n ? "" : self, .taken = taken, .n_taken = p.n, .need_bytes = INT64_MIN};
        const struct cdb_disk *d = spread_pick(sp, &w);
        if (!d)
            break;
        taken[p.n] = d->id;
        p.at[p.n].disk = d->id;
        p.at[p.n++].incarnation = d->incarnation;
    }
    spread_free(sp);
    if (p.n < copies_min(vol->replicas))
        return err_set(e, E_UNAVAIL, "place shard %u of volume %s: only %d of %d nodes with a usable disk%s", index, vol->name,
                       p.n, (int)vol->replicas, *copies_class(vol) ? " of medium memory (cohort disk add NODE:DISK --memory SIZE)" : "");
    *ret = p;
    return 0;
}
