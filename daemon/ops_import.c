/* Rows of an import (daemon/rest_import.c). See ops.h.
 *
 *   complete file      (no volume) -> importing -> ready, VOLUME@SNAPSHOT
 *   incremental file   ready, at rest on the base, unchanged since -> importing -> ready, VOLUME@SNAPSHOT
 *
 * "importing" keeps everything else away from the volume. An import that broke off leaves it so: it may be deleted, or reverted to
 * the snapshot it is over. The end asks for the snapshot, which bears the identity of what was imported: the next file's base. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"
#include "daemon/op.h"

const char *ops_content(const struct cdb_volume *snap) { return *snap->content ? snap->content : snap->id; }

struct import {
    struct op op;
    const struct import_spec *spec;
};

static int over_base(const struct cdb_view *v, const struct cdb_volume *vol, const struct import_spec *s, struct err *e)
{
    const struct cdb_volume *base = *vol->parent ? cdb_volume_get(v, vol->parent) : NULL;
    const struct cdb_machine *m = ops_volume_user(v, vol->id, NULL);
    if (m)
        return err_set(e, E_BUSY, "volume %s is a disk of vm %s\nimport into a volume that nobody uses", vol->name, m->name);
    if (*vol->owner)
        return err_set(e, E_BUSY, "volume %s is in use on node %s\nend its use there first", vol->name, ops_name(v, CDB_T_NODE, vol->owner));
    if (!base || strcmp(ops_content(base), s->base) != 0)
        return err_set(e, E_CONFLICT, "the file continues %s (%s), volume %s builds on %s\nimport the files between them first, or revert the volume to that snapshot",
                       s->base_name, s->base, vol->name, base ? base->name : "nothing");
    for (size_t i = 0; i < cdb_shard_count(v); i++)
        if (strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0)
            return err_set(e, E_CONFLICT, "volume %s was written since %s, which the file continues\ngo back to it first: cohort snapshot revert %s",
                           vol->name, base->name, base->name);
    return E_OK;
}

static int check_old(const struct cdb_view *v, const struct cdb_volume *vol, const struct import_spec *s, struct err *e)
{
    if (!*s->base)
        return err_set(e, E_EXISTS, "volume %s exists already, and the file is a complete one\nimport it under another name: --name NAME", vol->name);
    if (strcmp(vol->state, "importing") == 0)
        return err_set(e, E_CONFLICT, "an import into volume %s is under way, or broke off\nif none runs: cohort snapshot revert %s@%s, then import again",
                       vol->name, vol->name, s->base_name);
    if (strcmp(vol->state, "ready") != 0 || strcmp(vol->purpose, "disk") != 0 || vol->sealed)
        return err_set(e, E_INVAL, "volume %s cannot be written", vol->name);
    if (s->size_bytes < vol->size_bytes)
        return err_set(e, E_CONFLICT, "the file is of a volume of %" PRId64 " bytes, volume %s has %" PRId64 "\nvolumes do not shrink: import the complete file under another name",
                       s->size_bytes, vol->name, vol->size_bytes);
    if (s->size_bytes > VOLUME_MAX_BYTES || s->size_bytes > vol->shard_bytes * 64)
        return err_set(e, E_TOOBIG, "volume %s cannot grow to the file's %" PRId64 " bytes", vol->name, s->size_bytes);
    return over_base(v, vol, s, e);
}

static int build_begin(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct import_spec *s = ((struct import *)op)->spec;
    const struct cdb_volume *vol = cdb_find_name(v, CDB_T_VOLUME, s->name);
    char full[200];
    int rc = jin_name_check("snapshot", s->snapshot, e);
    snprintf(full, sizeof full, "%s@%s", s->name, s->snapshot);
    if (rc == E_OK && cdb_find_name(v, CDB_T_VOLUME, full))
        rc = err_set(e, E_EXISTS, "snapshot %s exists already: the file was imported before", full);
    if (rc != E_OK)
        return rc;
    if (vol) {
        rc = check_old(v, vol, s, e);
        if (rc != E_OK)
            return rc;
        snprintf(op->id, sizeof op->id, "%s", vol->id);
        cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
        cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_parent, vol->parent);
        cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, "ready");
        cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_size_bytes, s->size_bytes);
    } else {
        struct volume_spec spec = {.name = s->name, .size_bytes = s->size_bytes, .replicas = s->replicas, .encrypted = s->encrypted, .purpose = "disk"};
        if (*s->base)
            return err_set(e, E_NOTFOUND, "the file continues %s (%s), and there is no volume %s\nimport the complete file first", s->base_name, s->base, s->name);
        rc = volume_insert(v, t, op->id, &spec, "", e);
        if (rc != E_OK)
            return rc;
    }
    cdb_txn_set_str(t, CDB_T_VOLUME, op->id, CDB_VOLUME_state, "importing");
    return E_OK;
}

static bool begun(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_volume *vol = cdb_volume_get(v, op->id);
    return vol && strcmp(vol->state, "importing") == 0;
}

int op_import_begin(struct ops *o, const struct import_spec *s, op_done *done, void *arg, struct err *e)
{
    struct import *k = op_new(o, sizeof *k, "begin import", done, arg);
    k->spec = s;
    k->op.build = build_begin;
    k->op.happened = begun;
    return op_start(&k->op, e);
}

static int build_end(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct import_spec *s = ((struct import *)op)->spec;
    const struct cdb_volume *vol = cdb_volume_get(v, s->volume_id);
    char object[100];
    if (!vol || strcmp(vol->state, "importing") != 0)
        return err_set(e, E_CONFLICT, "the volume was deleted or reverted meanwhile");
    char *keys[] = {"content", "name", "volumes"}, *values[] = {(char *)s->content, (char *)s->snapshot, (char *)vol->id};
    const struct cdb_smap what = {3, keys, values};
    snprintf(object, sizeof object, "volume %s", vol->name);
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, "importing");
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, "ready");
    ops_snapshot_task(op, t, object, ops_daemon(op->ops)->node_id, 1, &what);
    op_event(op, t, "info", vol->name, "volume %s imported: %s", vol->name, s->snapshot);
    return E_OK;
}

static bool asked(const struct op *op, const struct cdb_view *v) { return cdb_task_get(v, op->id) != NULL; }

int op_import_end(struct ops *o, const struct import_spec *s, op_done *done, void *arg, struct err *e)
{
    struct import *k = op_new(o, sizeof *k, "end import", done, arg);
    k->spec = s;
    k->op.build = build_end;
    k->op.happened = asked;
    return op_start(&k->op, e);
}
