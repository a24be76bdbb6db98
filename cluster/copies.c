/* Copies of shards: worth, room, placement, and what may be declared worthless. See copies.h. */
#include "cluster/copies.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"

int copies_min(int64_t replicas)
{
    return replicas >= 3 ? 2 : 1;
}

enum copies_worth copies_worth(const struct cdb_view *v, const char *disk, int64_t wall_ms, int64_t absent_ms)
{
    const struct cdb_disk *d = cdb_disk_get(v, disk);
    const struct cdb_node *n = d ? cdb_node_get(v, d->node) : NULL;
    if (!n || !strcmp(d->state, "failed") || !strcmp(d->state, "isolated"))
        return COPIES_LOST;
    if (strcmp(n->state, "up")) {
        if (n->maintenance || strcmp(n->state, "dead") || wall_ms - n->state_ms < absent_ms)
            return COPIES_AWAY;
        return COPIES_LOST;
    }
    return strcmp(d->state, "draining") ? COPIES_KEPT : COPIES_LEAVING;
}

int64_t copies_bytes(const struct cdb_view *v, const struct cdb_shard *s)
{
    const struct cdb_volume *vol = cdb_volume_get(v, s->volume);
    if (!vol)
        return 0;
    return vol->shard_bytes < vol->size_bytes ? vol->shard_bytes : vol->size_bytes;
}

const char *copies_domain(const struct cdb_view *v, const char *disk)
{
    const struct cdb_disk *d = cdb_disk_get(v, disk);
    const struct cdb_node *n = d ? cdb_node_get(v, d->node) : NULL;
    return !n ? "" : n->domain[0] ? n->domain : n->id;
}

/* ---- classes ---- */

#define LAYERS_MAX 1000 /* deeper than any chain of snapshots gets; a damaged row may make a ring of them */

const char *copies_class(const struct cdb_volume *vol)
{
    const char *c = cdb_smap_get(&vol->policy, "class");
    return c ? c : CLASS_STORAGE;
}

static bool layer_lost(const struct cdb_view *v, const struct cdb_volume *vol)
{
    char id[ID_LEN + 24];
    for (int64_t i = 0; vol->shard_bytes > 0 && i * vol->shard_bytes < vol->size_bytes; i++) {
        snprintf(id, sizeof id, "%s/%lld", *vol->data ? vol->data : vol->id, (long long)i);
        const struct cdb_shard *s = cdb_shard_get(v, id);
        if (s && !cdb_shard_in_sync_count(v, s))
            return true;
    }
    return false;
}

bool copies_volume_lost(const struct cdb_view *v, const struct cdb_volume *vol)
{
    for (int depth = 0; vol && depth < LAYERS_MAX && !strcmp(copies_class(vol), CLASS_MEMORY); depth++) {
        if (layer_lost(v, vol))
            return true;
        vol = *vol->parent ? cdb_volume_get(v, vol->parent) : NULL;
    }
    return false;
}

/* ---- room ---- */

struct place { const struct cdb_disk *disk; const char *domain; int64_t room; };
struct spread {
    const struct cdb_view *v;
    size_t n;
    struct place *p; /* sorted by disk id, as the view is */
};

static struct place *find(const struct spread *sp, const char *disk)
{
    size_t lo = 0, hi = sp->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int cmp = strcmp(sp->p[mid].disk->id, disk);
        if (!cmp)
            return &sp->p[mid];
        if (cmp < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

struct spread *spread_new(const struct cdb_view *v)
{
    struct spread *sp = xcalloc(1, sizeof *sp);
    sp->v = v;
    sp->p = xcalloc(cdb_disk_count(v) + 1, sizeof *sp->p);
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        const struct cdb_node *n = cdb_node_get(v, d->node);
        if (n && !strcmp(d->state, "up") && !d->full && !strcmp(n->state, "up") && !n->maintenance)
            sp->p[sp->n++] = (struct place){d, n->domain[0] ? n->domain : n->id, d->size_bytes};
    }
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        int64_t bytes = copies_bytes(v, s);
        for (size_t k = 0; k < s->replicas.n; k++)
            spread_take(sp, s->replicas.v[k], bytes);
    }
    return sp;
}

void spread_free(struct spread *sp)
{
    if (!sp)
        return;
    free(sp->p);
    free(sp);
}

void spread_take(struct spread *sp, const char *disk, int64_t bytes)
{
    struct place *p = find(sp, disk);
    if (p)
        p->room -= bytes;
}

int64_t spread_room(const struct spread *sp, const char *disk)
{
    const struct place *p = find(sp, disk);
    return p ? p->room : INT64_MIN;
}

/* Excludes the copy's node; tells whether it is in p's domain. */
static bool clashes(const struct spread *sp, const struct place *p, const char *disk, bool *ret_same_domain)
{
    const struct cdb_disk *d = cdb_disk_get(sp->v, disk);
    if (!d)
        return false;
    if (!strcmp(copies_domain(sp->v, disk), p->domain))
        *ret_same_domain = true;
    return !strcmp(d->node, p->disk->node);
}

const struct cdb_disk *spread_pick(const struct spread *sp, const struct spread_want *w)
{
    const struct place *best = NULL;
    bool best_own = false, best_apart = false;
    uint64_t best_tie = 0;
    for (size_t i = 0; i < sp->n; i++) {
        const struct place *p = &sp->p[i];
        bool out = p->room < w->need_bytes || strcmp(p->disk->medium, w->medium), same_domain = false;
        for (size_t k = 0; w->have && k < w->have->n; k++)
            out = out || clashes(sp, p, w->have->v[k], &same_domain);
        for (int k = 0; k < w->n_taken; k++)
            out = out || clashes(sp, p, w->taken[k], &same_domain);
        if (out)
            continue;
        bool own = !strcmp(p->disk->node, w->prefer_node), apart = !same_domain;
        uint64_t tie = hash_bytes(w->shard, strlen(w->shard), hash_str(p->disk->id));
        bool better = !best || (own != best_own ? own : apart != best_apart ? apart : p->room != best->room ? p->room > best->room :
                                tie < best_tie);
        if (!better)
            continue;
        best = p;
        best_own = own;
        best_apart = apart;
        best_tie = tie;
    }
    return best ? best->disk : NULL;
}

/* ---- distrust ---- */

bool copies_may_lose(const struct cdb_view *v, const char *disk)
{
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        if (!cdb_shard_in_sync(v, s, disk))
            continue;
        const struct cdb_volume *vol = cdb_volume_get(v, s->volume);
        int64_t copies = vol ? vol->replicas : (int64_t)s->replicas.n;
        if (cdb_shard_in_sync_count(v, s) - 1 < copies_min(copies))
            return false;
    }
    return true;
}

void copies_require_may_lose(struct cdb_txn *t, const struct cdb_view *v, const char *disk)
{
    const struct cdb_disk *d = cdb_disk_get(v, disk);
    bool *shares = xcalloc(cdb_disk_count(v) + 1, sizeof *shares);
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        if (!cdb_shard_in_sync(v, s, disk))
            continue;
        for (size_t k = 0; k < cdb_disk_count(v); k++)
            shares[k] = shares[k] || cdb_strs_has(&s->replicas, cdb_disk_at(v, k)->id);
    }
    if (d)
        cdb_txn_require_str(t, CDB_T_DISK, d->id, CDB_DISK_guard, d->guard);
    for (size_t k = 0; k < cdb_disk_count(v); k++) {
        const struct cdb_disk *other = cdb_disk_at(v, k);
        if (shares[k] && other != d)
            cdb_txn_require_int(t, CDB_T_DISK, other->id, CDB_DISK_incarnation, other->incarnation);
    }
    free(shares);
}

void copies_guard(struct cdb_txn *t, const char *disk)
{
    char text[ID_LEN + 1];
    id_new(text);
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_guard, text);
}

void copies_critical(struct cdb_txn *t, int64_t replicas, int n, const char *const *disks)
{
    for (int i = 0; i < n && n <= copies_min(replicas); i++)
        copies_guard(t, disks[i]);
}

void copies_distrust(struct cdb_txn *t, const struct cdb_disk *d)
{
    cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, d->incarnation);
    cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, d->incarnation + 1);
}
