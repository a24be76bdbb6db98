/* Volumes: create, delete, health. See ops.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cluster/copies.h"
#include "cluster/keyring.h"
#include "daemon/jin.h"
#include "daemon/op.h"

#define GIB (INT64_C(1) << 30)
#define SHARDS_MAX 64

int64_t ops_shard_bytes(int64_t size_bytes)
{
    int64_t shard = GIB;
    while ((size_bytes + shard - 1) / shard > SHARDS_MAX)
        shard *= 2;
    return shard;
}

/* Nodes that have a disk which may hold new data of volumes of that class. */
static int nodes_with_disks(const struct cdb_view *v, const char *class)
{
    int n = 0;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *node = cdb_node_at(v, i);
        bool has = false;
        for (size_t j = 0; j < cdb_disk_count(v) && !has; j++) {
            const struct cdb_disk *d = cdb_disk_at(v, j);
            has = strcmp(d->node, node->id) == 0 && strcmp(d->state, "up") == 0 && strcmp(d->medium, class) == 0;
        }
        n += has && strcmp(node->state, "leaving") != 0;
    }
    return n;
}

/* As it is in the database. */
static const char *class_of(const struct volume_spec *s) { return s->class && strcmp(s->class, "storage") ? s->class : CLASS_STORAGE; }

static int check_places(const struct cdb_view *v, const char *class, int64_t wanted, int64_t *ret_replicas, struct err *e)
{
    bool memory = !strcmp(class, CLASS_MEMORY);
    if (*class && !memory)
        return err_set(e, E_INVAL, "class \"%.40s\" is not allowed\nstorage or memory", class);
    int nodes = nodes_with_disks(v, class);
    int64_t replicas = wanted ? wanted : nodes < 3 ? nodes : 3;
    if (nodes == 0)
        return memory ? err_set(e, E_NOSPC, "no node gives memory to volumes of class memory\nlet some do: cohort disk add NODE:DISK --memory SIZE")
                      : err_set(e, E_NOSPC, "no node has a usable disk\nsee cohort disk list");
    if (replicas < 1 || replicas > 3)
        return err_set(e, E_INVAL, "replicas must be 1, 2 or 3, is %" PRId64, replicas);
    if (replicas > nodes)
        return err_set(e, E_NOSPC, "%" PRId64 " replicas need disks %son %" PRId64 " nodes; %d node%s a usable disk%s\nask for fewer replicas or %s",
                       replicas, memory ? "in memory " : "", replicas, nodes, nodes == 1 ? " has" : "s have", memory ? " in memory" : "",
                       memory ? "give more: cohort disk add NODE:DISK --memory SIZE" : "add a node");
    *ret_replicas = replicas;
    return E_OK;
}

int volume_check(const struct cdb_view *v, const struct volume_spec *s, int64_t *ret_replicas, int64_t *ret_shard_bytes, struct err *e)
{
    int rc = jin_name_check("volume", s->name, e);
    if (rc != E_OK)
        return rc;
    if (s->size_bytes < VOLUME_MIN_BYTES || s->size_bytes > VOLUME_MAX_BYTES || s->size_bytes % 4096)
        return err_set(e, E_INVAL, "size_bytes %" PRId64 " is not allowed\na multiple of 4096 from 1 MiB to 4 TiB", s->size_bytes);
    int64_t replicas = 0;
    rc = check_places(v, class_of(s), s->replicas, &replicas, e);
    if (rc != E_OK)
        return rc;
    int64_t shard = s->shard_bytes ? s->shard_bytes : ops_shard_bytes(s->size_bytes);
    if (shard < GIB || shard > 64 * GIB || (shard & (shard - 1)) || (s->size_bytes + shard - 1) / shard > SHARDS_MAX)
        return err_set(e, E_INVAL, "shard_bytes %" PRId64 " is not allowed\na power of two from 1 to 64 GiB that makes at most %d shards; leave it out for the default",
                       shard, SHARDS_MAX);
    if (cdb_find_name(v, CDB_T_VOLUME, s->name))
        return err_set(e, E_EXISTS, "volume \"%s\" exists already", s->name);
    *ret_replicas = replicas;
    *ret_shard_bytes = shard;
    return E_OK;
}

int volume_insert(const struct cdb_view *v, struct cdb_txn *t, const char *id, const struct volume_spec *s, const char *owner, struct err *e)
{
    int64_t replicas, shard;
    int rc = volume_check(v, s, &replicas, &shard, e);
    if (rc != E_OK)
        return rc;
    char key[KEYRING_TEXT] = "";
    const struct cdb_cluster *cluster = cdb_cluster_get(v, "cluster");
    if (s->encrypted && (!cluster || !*cluster->key))
        return err_set(e, E_UNAVAIL, "encryption needs the cluster key, and there is none\nmake it first: cohort cluster key set");
    if (s->encrypted && (rc = keyring_volume_new(key, e)) != E_OK)
        return rc;
    cdb_txn_require_absent(t, CDB_T_VOLUME, id);
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, s->name);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, s->size_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, shard);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, replicas);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_owner, owner);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_epoch, 1);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, s->purpose);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_key, key);
    if (*class_of(s)) {
        char *k[] = {"class"}, *val[] = {(char *)class_of(s)};
        cdb_txn_set_smap(t, CDB_T_VOLUME, id, CDB_VOLUME_policy, &(struct cdb_smap){1, k, val});
    }
    return E_OK;
}

void volume_hand_over(struct cdb_txn *t, const struct cdb_volume *vol, const char *owner)
{
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, owner);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch + 1);
}

const char *slot_value(const char *entry)
{
    const char *colon = strchr(entry, ':');
    return colon ? colon + 1 : entry;
}

const struct cdb_volume *disk_volume(const struct cdb_view *v, const char *entry) { return cdb_volume_get(v, slot_value(entry)); }

const struct cdb_machine *ops_volume_user(const struct cdb_view *v, const char *volume_id, int *ret_slot)
{
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        for (size_t j = 0; j < m->disks.n; j++)
            if (strcmp(slot_value(m->disks.v[j]), volume_id) == 0) {
                if (ret_slot)
                    *ret_slot = atoi(m->disks.v[j]);
                return m;
            }
    }
    return NULL;
}

/* ---- create ---- */

struct create {
    struct op op;
    const struct volume_spec *spec;
};

static bool created(const struct op *op, const struct cdb_view *v) { return cdb_volume_get(v, op->id) != NULL; }

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct create *c = (struct create *)op;
    int rc = volume_insert(v, t, op->id, c->spec, "", e);
    if (rc == E_OK)
        op_event(op, t, "info", c->spec->name, "volume %s created", c->spec->name);
    return rc;
}

int op_volume_create(struct ops *o, const struct volume_spec *s, op_done *done, void *arg, struct err *e)
{
    struct create *c = op_new(o, sizeof *c, "create volume", done, arg);
    c->spec = s;
    c->op.build = build_create;
    c->op.happened = created;
    return op_start(&c->op, e);
}

/* ---- delete ---- */

struct removal {
    struct op op;
    const char *name;
};

static bool removed(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_volume *vol = cdb_volume_get(v, op->id);
    return !vol || strcmp(vol->state, "deleting") == 0;
}

int volume_deletable(const struct cdb_view *v, const struct cdb_volume *vol, const struct cdb_machine *but_for, struct err *e)
{
    const char *child;
    if (strcmp(vol->purpose, "snapshot") == 0)
        return err_set(e, E_BUSY, "volume %s is a snapshot\ndelete it as one: cohort snapshot delete %s", vol->name, vol->name);
    if (ops_has_children(v, vol->id, &child))
        return err_set(e, E_BUSY, "volume %s builds on %s\ndelete or flatten it first", child, vol->name);
    for (size_t i = 0; i < cdb_volume_count(v); i++)
        if (strcmp(cdb_volume_at(v, i)->origin, vol->id) == 0 && strcmp(cdb_volume_at(v, i)->purpose, "snapshot") == 0)
            return err_set(e, E_BUSY, "volume %s has snapshots\ndelete them first: cohort snapshot delete %s", vol->name,
                           cdb_volume_at(v, i)->name);
    const struct cdb_machine *m = ops_volume_user(v, vol->id, NULL);
    if (m && m != but_for)
        return err_set(e, E_BUSY, "volume %s is a disk of vm %s\ndelete the vm first: cohort vm delete %s", vol->name, m->name, m->name);
    for (size_t i = 0; i < cdb_image_count(v); i++)
        if (strcmp(cdb_image_at(v, i)->volume, vol->id) == 0)
            return err_set(e, E_BUSY, "volume %s holds image %s\ndelete the image instead: cohort image delete %s", vol->name,
                           cdb_image_at(v, i)->name, cdb_image_at(v, i)->name);
    if (*vol->owner && !m)
        return err_set(e, E_BUSY, "volume %s is in use on node %s\nend its use there (export, import) first", vol->name,
                       ops_name(v, CDB_T_NODE, vol->owner));
    return E_OK;
}

/* Rows only where nothing was ever written; otherwise the storage engine frees the space on every disk and then removes
 * them. A name is free again at once, so that "delete, create" works: hence the new one. */
void volume_remove(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_volume *vol)
{
    bool written = false;
    for (size_t i = 0; i < cdb_shard_count(v) && !written; i++)
        written = strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0;
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
    if (!written && !*vol->owner) {
        cdb_txn_delete(t, CDB_T_VOLUME, vol->id);
        return;
    }
    char name[80];
    snprintf(name, sizeof name, "deleted-%s", vol->id);
    volume_hand_over(t, vol, ""); /* fences a writer that has not heard of it */
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, "deleting");
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_name, name);
}

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct removal *r = (struct removal *)op;
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", r->name, e);
    if (!vol)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", vol->id);
    if (strcmp(vol->state, "deleting") == 0)
        return err_set(e, E_BUSY, "volume %s is being deleted already", vol->name);
    int rc = volume_deletable(v, vol, NULL, e);
    if (rc != E_OK)
        return rc;
    volume_remove(v, t, vol);
    op_event(op, t, "info", vol->name, "volume %s deleted", vol->name);
    return E_OK;
}

int op_volume_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct removal *r = op_new(o, sizeof *r, "delete volume", done, arg);
    r->name = name;
    r->op.build = build_delete;
    r->op.happened = removed;
    return op_start(&r->op, e);
}

/* ---- resize ---- */

struct growth {
    struct op op;
    const char *name;
    int64_t size_bytes;
};

static bool grown(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_volume *vol = cdb_volume_get(v, op->id);
    return vol && vol->size_bytes >= ((const struct growth *)op)->size_bytes;
}

static int check_growth(const struct cdb_volume *vol, int64_t size_bytes, struct err *e)
{
    if (strcmp(vol->state, "ready") != 0)
        return err_set(e, E_BUSY, "volume %s is %s", vol->name, vol->state);
    if (vol->sealed || strcmp(vol->purpose, "disk") != 0)
        return err_set(e, E_INVAL, "volume %s holds an image, which does not change", vol->name);
    if (size_bytes < vol->size_bytes)
        return err_set(e, E_INVAL, "volume %s has %" PRId64 " bytes; volumes grow only\nmake a smaller one and copy", vol->name, vol->size_bytes);
    if (size_bytes > VOLUME_MAX_BYTES || size_bytes % 4096)
        return err_set(e, E_INVAL, "size_bytes %" PRId64 " is not allowed\na multiple of 4096 up to 4 TiB", size_bytes);
    if (size_bytes > vol->shard_bytes * SHARDS_MAX)
        return err_set(e, E_INVAL, "volume %s can grow to %" PRId64 " bytes at most: %d shards of %" PRId64 "\nmake a new one and copy",
                       vol->name, vol->shard_bytes * SHARDS_MAX, SHARDS_MAX, vol->shard_bytes);
    return E_OK;
}

static int build_resize(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct growth *g = (struct growth *)op;
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", g->name, e);
    if (!vol)
        return E_NOTFOUND;
    int rc = check_growth(vol, g->size_bytes, e);
    if (rc != E_OK)
        return rc;
    snprintf(op->id, sizeof op->id, "%s", vol->id);
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_size_bytes, vol->size_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_size_bytes, g->size_bytes);
    if (g->size_bytes != vol->size_bytes)
        op_event(op, t, "info", vol->name, "volume %s grown from %" PRId64 " to %" PRId64 " MiB", vol->name, vol->size_bytes >> 20,
                 g->size_bytes >> 20);
    return E_OK;
}

int op_volume_resize(struct ops *o, const char *name, int64_t size_bytes, op_done *done, void *arg, struct err *e)
{
    struct growth *g = op_new(o, sizeof *g, "resize volume", done, arg);
    g->name = name;
    g->size_bytes = size_bytes;
    g->op.build = build_resize;
    g->op.happened = grown;
    return op_start(&g->op, e);
}

/* ---- health ---- */

const char *volume_health_name(enum volume_health h)
{
    static const char *const names[] = {"healthy", "degraded", "resyncing", "parked", "lost"};
    return names[h];
}

static bool resyncing(const struct cdb_view *v, const struct cdb_volume *vol)
{
    char object[80];
    snprintf(object, sizeof object, "volume %s", vol->name);
    for (size_t i = 0; i < cdb_task_count(v); i++) {
        const struct cdb_task *t = cdb_task_at(v, i);
        if (strcmp(t->kind, "resync") == 0 && strcmp(t->state, "running") == 0 && strcmp(t->object, object) == 0)
            return true;
    }
    return false;
}

/* Copies that count and whose node is there; a shard's set is cleaned up only when the next write meets the loss. */
int volume_live_copies(const struct cdb_view *v, const struct cdb_shard *s)
{
    int n = 0;
    for (size_t i = 0; i < s->replicas.n; i++) {
        const struct cdb_disk *d = cdb_disk_get(v, s->replicas.v[i]);
        const struct cdb_node *node = d ? cdb_node_get(v, d->node) : NULL;
        n += node && strcmp(node->state, "dead") != 0 && strcmp(d->state, "failed") != 0 && cdb_shard_in_sync(v, s, d->id);
    }
    return n;
}

int64_t ops_volume_used(const struct cdb_view *v, const struct cdb_volume *vol)
{
    int64_t used = 0;
    for (size_t i = 0; i < cdb_shard_count(v); i++)
        if (strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0)
            used += cdb_shard_at(v, i)->used_bytes;
    return used;
}

/* A full disk that has an in-sync copy: guests' writes of data wait for it. */
static const struct cdb_disk *full_disk(const struct cdb_view *v, const struct cdb_shard *s)
{
    for (size_t i = 0; i < s->replicas.n; i++) {
        const struct cdb_disk *d = cdb_disk_get(v, s->replicas.v[i]);
        if (d && d->full && cdb_shard_in_sync(v, s, d->id))
            return d;
    }
    return NULL;
}

enum volume_health ops_volume_health(const struct cdb_view *v, const struct cdb_volume *vol, char *why)
{
    int64_t fewest = vol->replicas;
    int short_of = 0, shards = 0;
    const struct cdb_disk *full = NULL;
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        if (strcmp(s->volume, vol->id) != 0)
            continue;
        int n = volume_live_copies(v, s);
        full = full ? full : full_disk(v, s);
        shards++;
        short_of += n < vol->replicas;
        if (n < fewest)
            fewest = n;
    }
    if (copies_volume_lost(v, vol)) {
        bool disk = strcmp(vol->purpose, "disk") == 0;
        snprintf(why, 160, "it lived in memory only and its last copy is gone%s: cohort %s %.40s", disk ? "; its I/O waits" : "",
                 disk ? "volume reset" : "snapshot delete", vol->name);
        return VOLUME_LOST;
    }
    if (*vol->key && !keyring_has()) {
        snprintf(why, 160, "encrypted, and this node does not have the cluster key: its I/O waits; cohort cluster key unlock");
        return VOLUME_PARKED;
    }
    why[0] = '\0';
    if (full && !vol->sealed) {
        const struct cdb_node *n = cdb_node_get(v, full->node);
        snprintf(why, 160, "disk %.40s/%.40s is full: writes wait until there is space", n ? n->name : "?", full->name);
        return VOLUME_PARKED;
    }
    if (!short_of)
        return VOLUME_HEALTHY;
    if (vol->unreadable.n) {
        bool parked = fewest < copies_min(vol->replicas);
        snprintf(why, 160, "no copy in sync can read some blocks, which keeps other copies from being made%s: cohort volume give-up %.40s",
                 parked ? "; its I/O waits" : "", vol->name);
        return parked ? VOLUME_PARKED : VOLUME_DEGRADED;
    }
    if (fewest < copies_min(vol->replicas)) {
        snprintf(why, 160, "%" PRId64 " of %" PRId64 " copies in sync in the worst of %d shards, %d needed: its I/O waits until a copy returns", fewest,
                 vol->replicas, shards, copies_min(vol->replicas));
        return VOLUME_PARKED;
    }
    bool busy = resyncing(v, vol);
    snprintf(why, 160, "%d of %d shards have fewer than %" PRId64 " copies in sync (worst: %" PRId64 "); %s", short_of, shards, vol->replicas, fewest,
             busy ? "the missing ones are being copied" : "they are restored when the disk or node returns");
    return busy ? VOLUME_RESYNCING : VOLUME_DEGRADED;
}
