/* The database's view, taken apart: disks, peers, volumes, and for every open shard what its core must know. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

const struct cdb_view *view_of(struct asan *a)
{
    return a->link ? cdb_link_view(a->link) : NULL;
}

struct gdisk *gdisk_find(struct asan *a, const char *id)
{
    for (uint32_t i = 0; i < a->n_gdisks; i++)
        if (!strcmp(a->gdisk[i]->id, id))
            return a->gdisk[i];
    return NULL;
}

struct gdisk *gdisk_get(struct asan *a, const char *id)
{
    struct gdisk *g = gdisk_find(a, id);
    if (g)
        return g;
    a->gdisk = xrealloc(a->gdisk, (a->n_gdisks + 1) * sizeof *a->gdisk);
    g = a->gdisk[a->n_gdisks] = xcalloc(1, sizeof *g);
    g->number = a->n_gdisks++;
    strncpy(g->id, id, ID_LEN);
    for (int i = 0; i < a->n_disks; i++)
        if (!strcmp(a->disk[i].id, id))
            g->local = &a->disk[i];
    return g;
}

struct volume *volume_find(struct asan *a, const char *id)
{
    struct htab_node *n;
    uint64_t h = hash_str(id);
    HTAB_FOR_EACH_WITH_HASH (n, h, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (!strcmp(v->id, id))
            return v;
    }
    return NULL;
}

struct volume *volume_find_data(struct asan *a, const char *data)
{
    struct htab_node *n;
    uint64_t h = hash_str(data);
    HTAB_FOR_EACH_WITH_HASH (n, h, &a->volumes_by_data) {
        struct volume *v = container_of(n, struct volume, data_node);
        if (!strcmp(v->data, data))
            return v;
    }
    return NULL;
}

/* Snapshot and revert give the volume's data a new name. It is closed and at rest then; own_update() closes what is not. */
static void take_layers(struct volume *v, const struct cdb_volume *row)
{
    const char *data = *row->data ? row->data : row->id;
    if (strcmp(v->data, data)) {
        struct id bin;
        if (!id_parse(data, &bin))
            return; /* the row is damaged: what it said before holds */
        own_close(v);
        htab_remove(&v->a->volumes_by_data, &v->data_node);
        memcpy(v->data, data, ID_LEN + 1);
        v->bin = bin;
        htab_insert(&v->a->volumes_by_data, &v->data_node, hash_str(v->data));
    }
    memset(v->parent, 0, sizeof v->parent);
    strncpy(v->parent, row->parent, ID_LEN);
}

struct volume *volume_find_name(struct asan *a, const char *name)
{
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (!v->gone && !v->deleting && v->name && !strcmp(v->name, name))
            return v;
    }
    return NULL;
}

static void take_disks(struct asan *a, const struct cdb_view *v)
{
    for (uint32_t i = 0; i < a->n_gdisks; i++)
        a->gdisk[i]->exists = a->gdisk[i]->usable = false;
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        const struct cdb_node *n = cdb_node_get(v, d->node);
        struct gdisk *g = gdisk_get(a, d->id);
        strncpy(g->node, d->node, ID_LEN);
        strncpy(g->name, d->name, sizeof g->name - 1);
        g->incarnation = (uint64_t)d->incarnation;
        g->exists = true;
        g->full = d->full;
        g->usable = !strcmp(d->state, "up") && n && !strcmp(n->state, "up");
    }
}

static bool owner_is_dead(const struct cdb_view *v, const char *owner)
{
    const struct cdb_node *n = *owner ? cdb_node_get(v, owner) : NULL;
    return !n || !strcmp(n->state, "dead");
}

static bool guest_here(const struct cdb_view *view, const struct volume *v)
{
    for (size_t i = 0; i < cdb_machine_count(view); i++) {
        const struct cdb_machine *m = cdb_machine_at(view, i);
        for (size_t k = 0; k < m->disks.n; k++) {
            const char *colon = strchr(m->disks.v[k], ':');
            if (colon && !strcmp(colon + 1, v->id))
                return true;
        }
    }
    return false;
}

static bool take_volume(struct asan *a, const struct cdb_view *view, const struct cdb_volume *row)
{
    struct volume *v = volume_find(a, row->id);
    uint64_t shards = row->shard_bytes > 0 ? ((uint64_t)row->size_bytes + (uint64_t)row->shard_bytes - 1) / (uint64_t)row->shard_bytes : 0;
    if (!v && (row->size_bytes <= 0 || row->size_bytes % 4096 || row->shard_bytes < (int64_t)OWNER_OP_BORDER ||
               (row->shard_bytes & (row->shard_bytes - 1)) || row->shard_bytes > 64LL << 30 || !shards ||
               shards > SHARDS_MAX || row->replicas < 1 || row->replicas > 3 || row->epoch < 0))
        return false; /* cannot be used; whoever made it is told by its own check */
    if (v && !a->view_seen)
        v->first_epoch = (uint64_t)row->epoch;
    if (!v) {
        v = volume_new(a, row->id);
        if (!v)
            return false;
        v->first_epoch = a->view_seen ? 0 : (uint64_t)row->epoch;
        v->shard_bytes = (uint64_t)row->shard_bytes;
        v->replicas = (int)row->replicas;
        /* Our own claim of an earlier life, for a tool or a resync: give it back when nobody wants it. */
        if (!a->view_seen && !strcmp(row->owner, a->node_id) && !strcmp(row->purpose, "disk") && !guest_here(view, v))
            v->claimed = true;
    }
    v->seen = true;
    take_layers(v, row);
    if (!v->name || strcmp(v->name, row->name)) {
        free(v->name);
        v->name = xstrdup(row->name);
        v->vol.name = v->name;
    }
    if (shards <= SHARDS_MAX && (uint64_t)row->size_bytes >= v->vol.size_bytes) {
        bool grown = v->vol.size_bytes && v->vol.size_bytes < (uint64_t)row->size_bytes;
        v->vol.size_bytes = (uint64_t)row->size_bytes;
        v->n_shards = (uint32_t)shards;
        if (grown)
            front_volume_resized(v);
    }
    v->sealed = v->vol.read_only = row->sealed;
    if (row->iops >= 0 && row->bandwidth_bytes >= 0 && row->burst_ms >= 0)
        qos_set(&v->qos, (uint64_t)row->iops, (uint64_t)row->bandwidth_bytes, (uint64_t)row->burst_ms);
    v->deleting = !strcmp(row->state, "deleting");
    v->epoch = (uint64_t)row->epoch;
    memset(v->owner, 0, sizeof v->owner);
    strncpy(v->owner, row->owner, ID_LEN);
    v->mine = !strcmp(row->owner, a->node_id);
    v->owner_dead = !v->mine && owner_is_dead(view, row->owner);
    return true;
}

static void volume_vanished(struct volume *v)
{
    v->gone = true;
    own_close(v);
    check_stop(v, "canceled");
    front_volume_gone(v);
    volume_cancel(v);
}

static void update_volume(struct asan *a, const struct cdb_view *view, struct volume *v)
{
    bool here = false;
    if (!v->seen) {
        if (!v->gone)
            volume_vanished(v);
        if (volume_idle(v) && !v->users && !v->claims && !v->txn_busy && !v->drop_busy)
            volume_free(v);
        return;
    }
    if (v->deleting) {
        own_close(v);
        check_stop(v, "canceled");
        front_volume_gone(v);
        volume_cancel(v);
        drop_update(v, view);
        return;
    }
    v->maintain = resync_wanted(a, view, v, &here) && here;
    own_update(v);
    if (v->open)
        for (uint32_t i = 0; i < v->n_shards; i++)
            if (v->shard[i])
                shard_view(v->shard[i], view);
}

/* The first views may be old (a follower's). What an earlier life of ours did is certainly in a view that includes a
 * transaction of this life; until then no volume is opened. The transaction leaves a line for people, too. */
static void barrier_done(void *arg, int status, const struct err *e)
{
    struct asan *a = arg;
    (void)e;
    a->barrier_busy = false;
    if (status)
        return; /* again with the next tick */
    view_changed(a->link, a);
    a->view_seen = true;
    view_changed(a->link, a);
}

void view_barrier(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    if (!view || a->view_seen || a->barrier_busy || a->stopping)
        return;
    char id[ID_LEN + 1];
    id_new(id);
    a->barrier_busy = true;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_EVENT, id);
    cdb_txn_set_int(t, CDB_T_EVENT, id, CDB_EVENT_time_ms, clock_wall_ms());
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_severity, "info");
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_object, "storage");
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_message, "storage service started");
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_node, a->node_id);
    cdb_txn_commit(a->link, t, "storage started", barrier_done, a);
}

void view_changed(struct cdb_link *l, void *arg)
{
    struct asan *a = arg;
    const struct cdb_view *view = cdb_link_view(l);
    struct htab_node *n, *next;
    if (!view || a->stopping)
        return;
    view_barrier(a);
    take_disks(a, view);
    peers_update(a, view);
    disks_update(a, view);
    HTAB_FOR_EACH (n, &a->volumes)
        container_of(n, struct volume, node)->seen = false;
    for (size_t i = 0; i < cdb_volume_count(view); i++)
        if (!take_volume(a, view, cdb_volume_at(view, i)))
            log_dbg("volume %s: its row is damaged", cdb_volume_at(view, i)->id);
    if (!a->view_seen)
        return;
    HTAB_FOR_EACH_SAFE (n, next, &a->volumes)
        update_volume(a, view, container_of(n, struct volume, node));
    snap_update(a, view);
    front_tick(a);
}
