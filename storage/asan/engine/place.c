/* Where a new shard's replicas go: the first on the owner's own node, so that reads are local, the others on distinct nodes,
 * those with most room first. Room is what is not yet promised: shards are thin, but each may grow to its full size. */
#include <stdlib.h>
#include <string.h>
#include "storage/asan/engine/priv.h"

struct candidate { const struct cdb_disk *disk; int64_t room; bool self; uint64_t spread; };

static int64_t room_of(const struct cdb_view *v, const struct cdb_disk *d)
{
    int64_t room = d->size_bytes;
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        if (!cdb_strs_has(&s->replicas, d->id))
            continue;
        const struct cdb_volume *vol = cdb_volume_get(v, s->volume);
        if (vol)
            room -= vol->shard_bytes < vol->size_bytes ? vol->shard_bytes : vol->size_bytes;
    }
    return room;
}

static int better(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->self != y->self)
        return x->self ? -1 : 1;
    if (x->room != y->room)
        return x->room > y->room ? -1 : 1;
    return x->spread < y->spread ? -1 : x->spread > y->spread;
}

int place_shard(const struct cdb_view *v, const char *self, const struct cdb_volume *vol, uint32_t index,
                struct placement *ret, struct err *e)
{
    size_t n = cdb_disk_count(v), n_cand = 0;
    struct candidate *cand = xcalloc(n + 1, sizeof *cand);
    for (size_t i = 0; i < n; i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        const struct cdb_node *node = cdb_node_get(v, d->node);
        if (strcmp(d->state, "up") || !node || strcmp(node->state, "up"))
            continue;
        cand[n_cand++] = (struct candidate){d, room_of(v, d), !strcmp(d->node, self),
                                            hash_bytes(vol->id, strlen(vol->id), hash_str(d->id) + index)};
    }
    qsort(cand, n_cand, sizeof *cand, better);
    struct placement p = {0};
    const char *node[3];
    for (size_t i = 0; i < n_cand && p.n < vol->replicas && p.n < 3; i++) {
        bool taken = false;
        for (int k = 0; k < p.n; k++)
            taken = taken || !strcmp(node[k], cand[i].disk->node);
        if (taken)
            continue;
        node[p.n] = cand[i].disk->node;
        p.at[p.n].disk = cand[i].disk->id;
        p.at[p.n++].incarnation = cand[i].disk->incarnation;
    }
    free(cand);
    if (p.n < owner_min_isr((int)vol->replicas))
        return err_set(e, E_UNAVAIL, "place shard %u of volume %s: only %d of %d nodes with a usable disk", index, vol->name,
                       p.n, (int)vol->replicas);
    *ret = p;
    return 0;
}
