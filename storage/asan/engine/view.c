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

/* True if something of a disk changed that shards must know. */
static bool take_disks(struct asan *a, const struct cdb_view *v)
{
    struct gdisk *was = xcalloc(a->n_gdisks + 1, sizeof *was);
    uint32_t n_was = a->n_gdisks;
    bool any = false;
    for (uint32_t i = 0; i < n_was; i++)
        was[i] = *a->gdisk[i];
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
    for (uint32_t i = 0; i < a->n_gdisks; i++) {
        struct gdisk *g = a->gdisk[i];
        const struct gdisk *w = i < n_was ? &was[i] : NULL;
        g->changed = !w || w->exists != g->exists || w->usable != g->usable || w->incarnation != g->incarnation || w->full != g->full ||
                     strcmp(w->node, g->node);
        any = any || g->changed;
    }
    free(was);
    return any;
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
    if (!v->name && *row->key) /* new to us; encrypted from its first byte or never */
        v->key = xstrdup(row->key);
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

static void mark(struct volume *v, uint64_t shards);

static void update_volume(struct asan *a, const struct cdb_view *view, struct volume *v)
{
    bool here = false;
    if (!v->seen) {
        if (!v->gone)
            volume_vanished(v);
        if (volume_idle(v) && !v->users && !v->claims && !v->txn_busy && !v->drop_busy && !v->drops)
            volume_free(v);
        else
            mark(v, 0); /* with the next view */
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
    uint64_t shards = v->dirty_shards;
    v->dirty_shards = 0;
    for (uint32_t i = 0; v->open && i < v->n_shards; i++)
        if (v->shard[i] && shards & 1ull << i)
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
    a->barrier_busy = true;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_event(t, clock_wall_ms(), "info", "storage", "storage service started", a->node_id);
    cdb_txn_commit(a->link, t, "storage started", barrier_done, a);
}

/* ---- what changed ---- */

static void mark(struct volume *v, uint64_t shards)
{
    v->dirty_shards |= shards;
    if (v->dirty)
        return;
    v->dirty = true;
    TAILQ_INSERT_TAIL(&v->a->dirty, v, dirty_entry);
}

static void mark_all(struct asan *a)
{
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes)
        mark(container_of(n, struct volume, node), UINT64_MAX);
}

static void volume_row(void *arg, const void *before, const void *now)
{
    struct asan *a = arg;
    const struct cdb_volume *was = before, *is = now;
    if (is && !take_volume(a, view_of(a), is))
        log_dbg("volume %s: its row is damaged", is->id);
    struct volume *v = volume_find(a, is ? is->id : was->id);
    if (!v)
        return;
    if (!is)
        v->seen = false;
    mark(v, UINT64_MAX);
}

/* Which disks the volume is on; a bit stays when the replica has moved away, which costs a look too many. */
static void note_disk(struct volume *v, uint32_t number)
{
    uint32_t word = number / 64;
    if (word >= v->n_disk_words) {
        v->disks = xrealloc(v->disks, (word + 1) * sizeof *v->disks);
        memset(v->disks + v->n_disk_words, 0, (word + 1 - v->n_disk_words) * sizeof *v->disks);
        v->n_disk_words = word + 1;
    }
    v->disks[word] |= 1ull << number % 64;
}

static void shard_row_changed(void *arg, const void *before, const void *now)
{
    struct asan *a = arg;
    const struct cdb_shard *rows[] = {before, now}; /* a snapshot takes the row over from its volume: both are told */
    for (int i = 0; i < 2; i++) {
        const struct cdb_shard *row = rows[i];
        struct volume *v = row ? volume_find(a, row->volume) : NULL;
        if (!v || row->idx < 0 || row->idx >= SHARDS_MAX)
            continue;
        for (size_t k = 0; k < row->replicas.n; k++)
            note_disk(v, gdisk_get(a, row->replicas.v[k])->number);
        mark(v, 1ull << row->idx);
    }
}

/* Nodes died or returned: volumes whose owner they are. Disks changed: volumes that are on them. */
static void nodes_and_disks(struct asan *a, const struct cdb_view *view, bool disks)
{
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        bool dead = v->seen && !v->mine && owner_is_dead(view, v->owner);
        if (v->seen && dead != v->owner_dead) {
            v->owner_dead = dead;
            mark(v, 0);
        }
        for (uint32_t i = 0; disks && i < a->n_gdisks && i / 64 < v->n_disk_words; i++)
            if (a->gdisk[i]->changed && v->disks[i / 64] & 1ull << i % 64) {
                mark(v, UINT64_MAX);
                break;
            }
    }
}

/* Tables whose changes no volume needs to hear of. */
static bool irrelevant(enum cdb_table t)
{
    return t == CDB_T_TASK || t == CDB_T_EVENT || t == CDB_T_TOKEN || t == CDB_T_NBD_CLIENT || t == CDB_T_IMAGE || t == CDB_T_MACHINE || t == CDB_T_NETWORK ||
           t == CDB_T_PORT || t == CDB_T_NODE || t == CDB_T_DISK || t == CDB_T_VOLUME || t == CDB_T_SHARD;
}

static void take_changes(struct asan *a, const struct cdb_view *view)
{
    bool nodes = !cdb_same(a->taken, view, CDB_T_NODE);
    if (nodes || !cdb_same(a->taken, view, CDB_T_DISK)) {
        bool disks = take_disks(a, view);
        nodes_and_disks(a, view, disks);
    }
    cdb_diff(a->taken, view, CDB_T_VOLUME, volume_row, a);
    cdb_diff(a->taken, view, CDB_T_SHARD, shard_row_changed, a);
    for (enum cdb_table t = 0; t < CDB_N_TABLES; t++)
        if (!irrelevant(t) && !cdb_same(a->taken, view, t)) {
            mark_all(a);
            break;
        }
    if (a->taken)
        cdb_view_unref(a->taken);
    a->taken = cdb_view_ref(view);
}

void view_forget(struct asan *a)
{
    cdb_view_unref(a->taken);
    a->taken = NULL;
}

void view_changed(struct cdb_link *l, void *arg)
{
    struct asan *a = arg;
    const struct cdb_view *view = cdb_link_view(l);
    const struct cdb_node *self = view ? cdb_node_get(view, a->node_id) : NULL;
    a->self_epoch = self ? self->epoch : -1;
    if (!view || a->stopping)
        return;
    view_barrier(a);
    take_changes(a, view);
    peers_update(a, view);
    disks_update(a, view);
    if (!a->view_seen)
        return; /* what is dirty stays so until then */
    TAILQ_HEAD(, volume) dirty = TAILQ_HEAD_INITIALIZER(dirty);
    struct volume *v;
    TAILQ_CONCAT(&dirty, &a->dirty, dirty_entry);
    while ((v = TAILQ_FIRST(&dirty))) {
        TAILQ_REMOVE(&dirty, v, dirty_entry);
        v->dirty = false;
        update_volume(a, view, v); /* may free it */
    }
    snap_update(a, view);
    front_tick(a);
}
