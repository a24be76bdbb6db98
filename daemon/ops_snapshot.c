/* Snapshots and what is made of them: ask for one, delete, revert, clone. See ops.h; the cut itself is the storage engine's
 * (storage/asan/engine/snap.c), which a Task row asks for. Everything here moves rows only: a volume's data stay where
 * they are and change their name at most. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "cluster/copies.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"
#include "daemon/op.h"

static bool is_snapshot(const struct cdb_volume *vol) { return strcmp(vol->purpose, "snapshot") == 0; }

const struct cdb_volume *ops_find_snapshot(const struct cdb_view *v, const char *name_or_id, struct err *e)
{
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "snapshot", name_or_id, e);
    if (!vol || (is_snapshot(vol) && strcmp(vol->state, "ready") == 0))
        return vol;
    err_set(e, E_NOTFOUND, "%s is no snapshot\nsnapshots are named VOLUME@NAME: cohort snapshot list", name_or_id);
    return NULL;
}

bool ops_has_children(const struct cdb_view *v, const char *volume_id, const char **ret_name)
{
    for (size_t i = 0; i < cdb_volume_count(v); i++) {
        const struct cdb_volume *c = cdb_volume_at(v, i);
        if (strcmp(c->parent, volume_id) == 0 && strcmp(c->state, "deleting") != 0) {
            if (ret_name)
                *ret_name = c->name;
            return true;
        }
    }
    return false;
}

/* ---- take ---- */

struct take {
    struct op op;
    const struct snapshot_spec *spec;
};

/* One node must hold still all of them: their owner; this one, if nobody writes them. */
static int choose_node(const struct take *k, const struct cdb_view *v, const struct cdb_volume *vol, const char **node, struct err *e)
{
    const struct cdb_node *n = *vol->owner ? cdb_node_get(v, vol->owner) : NULL;
    if (!n || strcmp(n->state, "dead") == 0)
        return E_OK;
    if (**node && strcmp(*node, vol->owner) != 0)
        return err_set(e, E_BUSY, "volumes of one snapshot must be written on one node; %s is on %s, another on %s\n"
                       "migrate the vms to one node, or take a snapshot of each", vol->name, n->name, ops_name(v, CDB_T_NODE, *node));
    *node = vol->owner;
    (void)k;
    return E_OK;
}

static int check_take(const struct take *k, const struct cdb_view *v, struct buf *ids, struct buf *names, const char **node, struct err *e)
{
    const struct snapshot_spec *s = k->spec;
    char full[200];
    int rc = jin_name_check("snapshot", s->name, e);
    for (int i = 0; i < s->n_volumes && rc == E_OK; i++) {
        const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", s->volumes[i], e);
        if (!vol)
            return E_NOTFOUND;
        if (strcmp(vol->purpose, "disk") != 0 || vol->sealed || strcmp(vol->state, "ready") != 0)
            return err_set(e, E_INVAL, "volume %s cannot be written, so there is nothing to hold still\nclone it instead", vol->name);
        snprintf(full, sizeof full, "%s@%s", vol->name, s->name);
        if (cdb_find_name(v, CDB_T_VOLUME, full))
            return err_set(e, E_EXISTS, "snapshot %s exists already", full);
        for (int j = 0; j < i; j++)
            if (ops_find(v, CDB_T_VOLUME, "volume", s->volumes[j], NULL) == vol)
                return err_set(e, E_INVAL, "volume %s is named twice", vol->name);
        buf_printf(ids, "%s%s", i ? " " : "", vol->id);
        buf_printf(names, " %s", vol->name);
        rc = choose_node(k, v, vol, node, e);
    }
    return rc;
}

void ops_snapshot_task(const struct op *op, struct cdb_txn *t, const char *object, const char *node, int n, const struct cdb_smap *what)
{
    cdb_txn_require_absent(t, CDB_T_TASK, op->id);
    cdb_txn_insert(t, CDB_T_TASK, op->id);
    cdb_txn_set_str(t, CDB_T_TASK, op->id, CDB_TASK_kind, "snapshot");
    cdb_txn_set_str(t, CDB_T_TASK, op->id, CDB_TASK_object, object);
    cdb_txn_set_str(t, CDB_T_TASK, op->id, CDB_TASK_node, node);
    cdb_txn_set_str(t, CDB_T_TASK, op->id, CDB_TASK_state, "running");
    cdb_txn_set_str(t, CDB_T_TASK, op->id, CDB_TASK_unit, "items");
    cdb_txn_set_int(t, CDB_T_TASK, op->id, CDB_TASK_total, n);
    cdb_txn_set_int(t, CDB_T_TASK, op->id, CDB_TASK_started_ms, clock_wall_ms());
    cdb_txn_set_int(t, CDB_T_TASK, op->id, CDB_TASK_updated_ms, clock_wall_ms());
    cdb_txn_set_smap(t, CDB_T_TASK, op->id, CDB_TASK_result, what);
}

static int build_take(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct take *k = (struct take *)op;
    const char *node = "";
    struct buf ids, names;
    buf_init(&ids);
    buf_init(&names);
    buf_printf(&names, k->spec->n_volumes > 1 ? "volumes" : "volume");
    int rc = check_take(k, v, &ids, &names, &node, e);
    char *list = buf_take(&ids), *object = buf_take(&names);
    if (rc == E_OK) {
        char *keys[] = {"name", "volumes"}, *values[] = {(char *)k->spec->name, list};
        const struct cdb_smap what = {2, keys, values};
        ops_snapshot_task(op, t, object, *node ? node : ops_daemon(op->ops)->node_id, k->spec->n_volumes, &what);
    }
    free(list);
    free(object);
    return rc;
}

static bool asked(const struct op *op, const struct cdb_view *v) { return cdb_task_get(v, op->id) != NULL; }

int op_snapshot_create(struct ops *o, const struct snapshot_spec *s, op_done *done, void *arg, struct err *e)
{
    struct take *k = op_new(o, sizeof *k, "ask for snapshot", done, arg);
    k->spec = s;
    k->op.build = build_take;
    k->op.happened = asked;
    return op_start(&k->op, e);
}

/* ---- delete ---- */

struct named {
    struct op op;
    const char *name, *clone;
};

static bool no_snapshot(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_volume *vol = cdb_volume_get(v, op->id);
    return !vol || !is_snapshot(vol) || strcmp(vol->state, "deleting") == 0;
}

/* Nothing builds on it: its space is freed. Else it stays as a layer without a name. */
static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_volume *snap = ops_find_snapshot(v, ((struct named *)op)->name, e);
    char name[80];
    if (!snap)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", snap->id);
    cdb_txn_require_str(t, CDB_T_VOLUME, snap->id, CDB_VOLUME_purpose, "snapshot");
    snprintf(name, sizeof name, "layer-%s", snap->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, snap->id, CDB_VOLUME_purpose, "layer");
    cdb_txn_set_str(t, CDB_T_VOLUME, snap->id, CDB_VOLUME_name, name);
    op_event(op, t, "info", snap->name, "snapshot %s deleted", snap->name);
    return E_OK;
}

int op_snapshot_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *k = op_new(o, sizeof *k, "delete snapshot", done, arg);
    k->name = name;
    k->op.build = build_delete;
    k->op.happened = no_snapshot;
    return op_start(&k->op, e);
}

/* ---- revert ---- */

/* The size stays: what a volume grew by since reads as zeroes. What was written since goes to a row of its own, to be dropped like a deleted volume. */
void volume_doom_data(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_volume *vol)
{
    char id[ID_LEN + 1], name[80];
    bool written = false;
    id_new(id);
    for (size_t i = 0; i < cdb_shard_count(v); i++)
        if (strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0) {
            cdb_txn_set_str(t, CDB_T_SHARD, cdb_shard_at(v, i)->id, CDB_SHARD_volume, id);
            written = true;
        }
    if (!written)
        return;
    snprintf(name, sizeof name, "deleted-%s", id);
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, name);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, vol->size_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, vol->shard_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, vol->replicas);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_epoch, vol->epoch + 1);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_data, *vol->data ? vol->data : vol->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "layer");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "deleting");
}

static int build_revert(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_volume *snap = ops_find_snapshot(v, ((struct named *)op)->name, e);
    if (!snap)
        return E_NOTFOUND;
    const struct cdb_volume *vol = cdb_volume_get(v, snap->origin);
    if (!vol || (strcmp(vol->state, "ready") != 0 && strcmp(vol->state, "importing") != 0))
        return err_set(e, E_NOTFOUND, "the volume of %s is gone\nclone the snapshot instead", snap->name);
    const struct cdb_machine *m = ops_volume_user(v, vol->id, NULL);
    if (m && (strcmp(m->desired, "stopped") != 0 || strcmp(m->state, "stopped") != 0))
        return err_set(e, E_BUSY, "volume %s is a disk of vm %s, which is %s\nstop it first: cohort vm stop %s", vol->name, m->name, m->state, m->name);
    if (*vol->owner && !m)
        return err_set(e, E_BUSY, "volume %s is in use on node %s\nend its use there first", vol->name, ops_name(v, CDB_T_NODE, vol->owner));
    char data[ID_LEN + 1];
    id_new(data);
    snprintf(op->id, sizeof op->id, "%s", vol->id);
    if (m)
        cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_VOLUME, snap->id, CDB_VOLUME_purpose, "snapshot");
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, vol->owner);
    volume_doom_data(v, t, vol);
    volume_hand_over(t, vol, "");
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_data, data);
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_parent, snap->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, "ready"); /* an import that broke off is undone, too */
    op_event(op, t, "warning", vol->name, "volume %s reverted to snapshot %s", vol->name, snap->name);
    return E_OK;
}

int op_snapshot_revert(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *k = op_new(o, sizeof *k, "revert volume", done, arg);
    k->name = name;
    k->op.build = build_revert;
    return op_start(&k->op, e);
}

/* ---- clone ---- */

static bool cloned(const struct op *op, const struct cdb_view *v) { return cdb_volume_get(v, op->id) != NULL; }

static int build_clone(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct named *k = (struct named *)op;
    const struct cdb_volume *of = ops_find(v, CDB_T_VOLUME, "snapshot", k->name, e);
    if (!of)
        return E_NOTFOUND;
    if (!of->sealed || strcmp(of->state, "ready") != 0 || strcmp(of->purpose, "layer") == 0)
        return err_set(e, E_INVAL, "volume %s can still be written\ntake a snapshot and clone that: cohort snapshot create %s", of->name, of->name);
    struct volume_spec spec = {.name = k->clone, .size_bytes = of->size_bytes, .replicas = of->replicas,
                               .shard_bytes = of->shard_bytes, .purpose = "disk", .class = copies_class(of)};
    int rc = volume_insert(v, t, op->id, &spec, "", e);
    if (rc != E_OK)
        return rc;
    cdb_txn_require_str(t, CDB_T_VOLUME, of->id, CDB_VOLUME_purpose, of->purpose);
    cdb_txn_require_str(t, CDB_T_VOLUME, of->id, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, op->id, CDB_VOLUME_parent, of->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, op->id, CDB_VOLUME_key, of->key); /* layers of one stack exchange ciphertext */
    cdb_txn_set_smap(t, CDB_T_VOLUME, op->id, CDB_VOLUME_policy, &of->policy); /* its class, too: what it shares is of one medium */
    op_event(op, t, "info", k->clone, "volume %s made as a clone of %s", k->clone, of->name);
    return E_OK;
}

int op_volume_clone(struct ops *o, const char *of, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *k = op_new(o, sizeof *k, "clone volume", done, arg);
    k->name = of;
    k->clone = name;
    k->op.build = build_clone;
    k->op.happened = cloned;
    return op_start(&k->op, e);
}

/* ---- flatten ---- */

static int build_flatten(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", ((struct named *)op)->name, e);
    if (!vol)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", vol->id);
    if (strcmp(vol->purpose, "disk") != 0 || vol->sealed || strcmp(vol->state, "ready") != 0)
        return err_set(e, E_INVAL, "volume %s cannot be written\nclone it and flatten the clone: cohort volume clone %s NAME", vol->name, vol->name);
    if (!*vol->parent)
        return err_set(e, E_INVAL, "volume %s stands alone already: it shares no data", vol->name);
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_parent, vol->parent);
    cdb_txn_set_bool(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_flatten, true);
    return E_OK;
}

static bool flattening(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_volume *vol = cdb_volume_get(v, op->id);
    return vol && vol->flatten;
}

int op_volume_flatten(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *k = op_new(o, sizeof *k, "flatten volume", done, arg);
    k->name = name;
    k->op.build = build_flatten;
    k->op.happened = flattening;
    return op_start(&k->op, e);
}
