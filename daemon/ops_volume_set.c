/* Volumes: what can be changed about one that exists. See ops.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "cluster/copies.h"
#include "daemon/op.h"

static const struct cdb_volume *find(struct op *op, const struct cdb_view *v, const char *name, struct err *e)
{
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", name, e);
    if (vol && strcmp(vol->state, "deleting") == 0) {
        err_set(e, E_BUSY, "volume %s is being deleted", vol->name);
        return NULL;
    }
    if (vol)
        snprintf(op->id, sizeof op->id, "%s", vol->id);
    return vol;
}

/* ---- limits ---- */

struct limits {
    struct op op;
    const char *name;
    const struct volume_limits *l;
};

static int check_limits(const struct volume_limits *l, struct err *e)
{
    if (l->iops < 0 && l->bandwidth_bytes < 0 && l->burst_ms < 0)
        return err_set(e, E_INVAL, "nothing to change\ngive iops, bandwidth_bytes or burst_ms; 0 takes a limit away");
    if (l->iops > 0 && l->iops < VOLUME_IOPS_MIN)
        return err_set(e, E_INVAL, "iops %" PRId64 " is too low\n0 for no limit, or at least %d", l->iops, VOLUME_IOPS_MIN);
    if (l->bandwidth_bytes > 0 && l->bandwidth_bytes < VOLUME_BANDWIDTH_MIN)
        return err_set(e, E_INVAL, "bandwidth_bytes %" PRId64 " is too low\n0 for no limit, or at least %" PRId64 " per second", l->bandwidth_bytes,
                       VOLUME_BANDWIDTH_MIN);
    return E_OK;
}

static int build_limits(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct limits *s = (struct limits *)op;
    const struct volume_limits *l = s->l;
    const struct cdb_volume *vol = find(op, v, s->name, e);
    if (!vol)
        return e->code;
    int64_t burst = l->burst_ms > 0 ? l->burst_ms : vol->burst_ms > 0 ? vol->burst_ms : VOLUME_BURST_MS;
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, vol->state);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_iops, l->iops >= 0 ? l->iops : vol->iops);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_bandwidth_bytes, l->bandwidth_bytes >= 0 ? l->bandwidth_bytes : vol->bandwidth_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_burst_ms, burst);
    return E_OK;
}

int op_volume_limits(struct ops *o, const char *name, const struct volume_limits *l, op_done *done, void *arg, struct err *e)
{
    int rc = check_limits(l, e);
    if (rc != E_OK)
        return rc;
    struct limits *s = op_new(o, sizeof *s, "volume limits", done, arg);
    s->name = name;
    s->l = l;
    s->op.build = build_limits;
    return op_start(&s->op, e);
}

/* ---- check ---- */

struct check {
    struct op op;
    const char *name;
};

static int build_check(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct check *c = (struct check *)op;
    const struct cdb_volume *vol = find(op, v, c->name, e);
    if (!vol)
        return e->code;
    if (vol->check_asked_ms > vol->check_done_ms)
        return err_set(e, E_BUSY, "a check of volume %s is wanted already\nsee its progress: cohort task list", vol->name);
    int64_t now = clock_wall_ms();
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_check_asked_ms, vol->check_asked_ms);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_check_asked_ms, now > vol->check_done_ms ? now : vol->check_done_ms + 1);
    bool written = false;
    for (size_t i = 0; i < cdb_shard_count(v) && !written; i++)
        written = strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0;
    if (!written) /* there is nothing to look at, and no copy whose node could do it */
        cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_check_done_ms, now > vol->check_done_ms ? now : vol->check_done_ms + 1);
    return E_OK;
}

int op_volume_check(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct check *c = op_new(o, sizeof *c, "check volume", done, arg);
    c->name = name;
    c->op.build = build_check;
    return op_start(&c->op, e);
}

/* ---- what no copy can read ---- */

static int build_give_up(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct check *c = (struct check *)op;
    const struct cdb_volume *vol = find(op, v, c->name, e);
    char object[128], text[200];
    if (!vol)
        return e->code;
    if (!vol->unreadable.n)
        return err_set(e, E_CONFLICT, "volume %s has no block that keeps copies from being made\ndamaged blocks of a volume whose copies are in sync need "
                       "no giving up: write them again", vol->name);
    size_t n = 0;
    const char **all = xcalloc(vol->unreadable.n + vol->given_up.n, sizeof *all);
    for (size_t i = 0; i < vol->given_up.n; i++)
        all[n++] = vol->given_up.v[i];
    for (size_t i = 0; i < vol->unreadable.n; i++)
        if (!cdb_strs_has(&vol->given_up, vol->unreadable.v[i]))
            all[n++] = vol->unreadable.v[i];
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_state, vol->state);
    cdb_txn_set_strs(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_given_up, n, all);
    cdb_txn_set_strs(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_unreadable, 0, NULL);
    snprintf(object, sizeof object, "volume %s", vol->name);
    snprintf(text, sizeof text, "%zu range(s) that no copy can read were given up by the administrator, the first at %s: reading them fails until they "
             "are written again", vol->unreadable.n, vol->unreadable.v[0]);
    cdb_txn_event(t, clock_wall_ms(), "alarm", object, text, "");
    free(all);
    return E_OK;
}

int op_volume_give_up(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct check *c = op_new(o, sizeof *c, "give up blocks of volume", done, arg);
    c->name = name;
    c->op.build = build_give_up;
    return op_start(&c->op, e);
}

/* ---- reset ---- */

static int check_reset(const struct cdb_view *v, const struct cdb_volume *vol, const struct cdb_machine *user, struct err *e)
{
    if (strcmp(copies_class(vol), CLASS_MEMORY) != 0)
        return err_set(e, E_INVAL, "volume %s is on storage, which is never emptied like this\nbring its disks back, or delete it", vol->name);
    if (strcmp(vol->purpose, "disk") != 0 || vol->sealed || strcmp(vol->state, "ready") != 0)
        return err_set(e, E_INVAL, "volume %s cannot be written\ndelete it instead", vol->name);
    if (user && (strcmp(user->desired, "stopped") != 0 || strcmp(user->state, "stopped") != 0))
        return err_set(e, E_BUSY, "volume %s is a disk of vm %s, which is %s\nstop it first: cohort vm stop %s", vol->name, user->name, user->state,
                       user->name);
    bool lost = copies_volume_lost(v, vol);
    for (size_t i = 0; i < cdb_shard_count(v) && !lost; i++)
        lost = strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0 && !volume_live_copies(v, cdb_shard_at(v, i));
    if (!lost)
        return err_set(e, E_CONFLICT, "volume %s is not lost: all of it has a copy\nif it is not wanted any more: cohort volume delete %s", vol->name,
                       vol->name);
    const struct cdb_node *owner = *vol->owner ? cdb_node_get(v, vol->owner) : NULL;
    if (owner && !user && strcmp(owner->state, "dead") != 0)
        return err_set(e, E_BUSY, "volume %s is in use on node %s\nend its use there first", vol->name, owner->name);
    return E_OK;
}

/* Under a new name of its data: should a node that was taken for dead still have a copy, it is a deleted volume's. */
static int build_reset(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct check *c = (struct check *)op;
    const struct cdb_volume *vol = find(op, v, c->name, e);
    char data[ID_LEN + 1];
    if (!vol)
        return e->code;
    const struct cdb_machine *m = ops_volume_user(v, vol->id, NULL);
    int rc = check_reset(v, vol, m, e);
    if (rc != E_OK)
        return rc;
    id_new(data);
    if (m)
        cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, vol->owner);
    volume_doom_data(v, t, vol);
    volume_hand_over(t, vol, "");
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_data, data);
    cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_parent, "");
    cdb_txn_set_bool(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_flatten, false);
    cdb_txn_set_strs(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_unreadable, 0, NULL);
    cdb_txn_set_strs(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_given_up, 0, NULL);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_lost_ms, 0);
    op_event(op, t, "warning", vol->name, "volume %s was lost and begins anew, empty", vol->name);
    return E_OK;
}

int op_volume_reset(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct check *c = op_new(o, sizeof *c, "reset volume", done, arg);
    c->name = name;
    c->op.build = build_reset;
    return op_start(&c->op, e);
}
