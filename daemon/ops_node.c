/* Nodes (join, remove), tasks and tokens. See ops.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "cluster/copies.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"
#include "daemon/op.h"

struct named {
    struct op op;
    const char *name;
};

/* ---- remove ---- */

static bool on_node(const struct cdb_view *v, const char *disk_id, const char *node_id)
{
    const struct cdb_disk *d = cdb_disk_get(v, disk_id);
    return d && strcmp(d->node, node_id) == 0;
}

static int check_removable(const struct cdb_view *v, const struct cdb_node *n, const char *self, struct err *e)
{
    if (strcmp(n->id, self) == 0)
        return err_set(e, E_BUSY, "node %s is the one that carries out this request\nask another node to remove it", n->name);
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        if (strcmp(m->host, n->id) == 0 || strcmp(m->migrate_to, n->id) == 0)
            return err_set(e, E_BUSY, "node %s runs vm %s\nmove it first: cohort vm migrate %s --to NODE", n->name, m->name, m->name);
    }
    for (size_t i = 0; i < cdb_volume_count(v); i++)
        if (strcmp(cdb_volume_at(v, i)->owner, n->id) == 0)
            return err_set(e, E_BUSY, "node %s writes volume %s\nend its use there first", n->name, cdb_volume_at(v, i)->name);
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        bool here = false, elsewhere = false;
        for (size_t k = 0; k < s->replicas.n; k++) {
            bool ok = cdb_shard_in_sync(v, s, s->replicas.v[k]);
            here = here || (ok && on_node(v, s->replicas.v[k], n->id));
            elsewhere = elsewhere || (ok && !on_node(v, s->replicas.v[k], n->id));
        }
        if (here && !elsewhere)
            return err_set(e, E_BUSY, "node %s holds the only good copy of shard %" PRId64 " of volume %s\nwait until its other copies are in sync (cohort volume show), or delete the volume",
                           n->name, s->idx, ops_name(v, CDB_T_VOLUME, s->volume));
    }
    return E_OK;
}

/* Copies on the node leave every shard's sets in the same transaction, so no row names a disk that is gone. */
static void drop_copies(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_node *n)
{
    enum { MAX = 16 };
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        const char *keep[MAX];
        char *keys[MAX];
        int64_t values[MAX];
        struct cdb_imap in_sync = {.k = keys, .v = values};
        size_t n_keep = 0;
        for (size_t k = 0; k < s->replicas.n && n_keep < MAX; k++)
            if (!on_node(v, s->replicas.v[k], n->id))
                keep[n_keep++] = s->replicas.v[k];
        if (n_keep == s->replicas.n)
            continue;
        for (size_t k = 0; k < s->in_sync.n && in_sync.n < MAX; k++)
            if (!on_node(v, s->in_sync.k[k], n->id)) {
                keys[in_sync.n] = s->in_sync.k[k];
                values[in_sync.n++] = s->in_sync.v[k];
            }
        cdb_txn_require_int(t, CDB_T_SHARD, s->id, CDB_SHARD_generation, s->generation);
        cdb_txn_set_strs(t, CDB_T_SHARD, s->id, CDB_SHARD_replicas, n_keep, keep);
        cdb_txn_set_imap(t, CDB_T_SHARD, s->id, CDB_SHARD_in_sync, &in_sync);
        cdb_txn_set_int(t, CDB_T_SHARD, s->id, CDB_SHARD_generation, s->generation + 1);
        const struct cdb_volume *vol = cdb_volume_get(v, s->volume);
        const char *left[MAX];
        int n_left = 0;
        for (size_t k = 0; k < in_sync.n; k++)
            if (cdb_shard_in_sync(v, s, keys[k]))
                left[n_left++] = keys[k];
        copies_critical(t, vol ? vol->replicas : 0, n_left, left);
    }
}

static int build_remove(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_node *n = ops_find(v, CDB_T_NODE, "node", ((struct named *)op)->name, e);
    if (!n)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", n->id);
    int rc = check_removable(v, n, ops_daemon(op->ops)->node_id, e);
    if (rc != E_OK)
        return rc;
    cdb_txn_require_int(t, CDB_T_NODE, n->id, CDB_NODE_epoch, n->epoch);
    cdb_txn_require_str(t, CDB_T_NODE, n->id, CDB_NODE_state, n->state);
    drop_copies(v, t, n);
    for (size_t i = 0; i < cdb_disk_count(v); i++)
        if (strcmp(cdb_disk_at(v, i)->node, n->id) == 0)
            cdb_txn_delete(t, CDB_T_DISK, cdb_disk_at(v, i)->id);
    cdb_txn_delete(t, CDB_T_NODE, n->id);
    op_event(op, t, "info", n->name, "node %s removed from the cluster", n->name);
    return E_OK;
}

static bool removed(const struct op *op, const struct cdb_view *v) { return !cdb_node_get(v, op->id); }

int op_node_remove(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *r = op_new(o, sizeof *r, "remove node", done, arg);
    r->name = name;
    r->op.build = build_remove;
    r->op.happened = removed;
    return op_start(&r->op, e);
}

/* ---- join ---- */

struct join {
    struct op op;
    const struct join_spec *spec;
    char disk_id[16][ID_LEN + 1];
};

static const struct cdb_token *token_by_hash(const struct cdb_view *v, const char *hash)
{
    for (size_t i = 0; i < cdb_token_count(v); i++)
        if (strcmp(cdb_token_at(v, i)->hash, hash) == 0)
            return cdb_token_at(v, i);
    return NULL;
}

static int check_address(const struct cdb_view *v, const char *address, struct err *e)
{
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (cdb_strs_has(&n->addresses, address) || cdb_strs_has(&n->storage_addresses, address))
            return err_set(e, E_EXISTS, "node %s has the address %s already", n->name, address);
    }
    return E_OK;
}

static int check_join(const struct cdb_view *v, const struct join_spec *s, const struct cdb_token **ret_token, struct err *e)
{
    const struct cdb_token *tok = token_by_hash(v, s->token_hash);
    char when[32];
    if (!tok || strcmp(tok->role, "join") != 0)
        return err_set(e, E_AUTH, "the join token is unknown or was used before\nmake a new one on a member: cohort cluster token");
    if (tok->expires_ms && tok->expires_ms <= clock_wall_ms())
        return err_set(e, E_AUTH, "the join token expired on %s\nmake a new one on a member: cohort cluster token", clock_wall_format(tok->expires_ms, when));
    int rc = jin_name_check("node", s->name, e);
    if (rc != E_OK)
        return rc;
    if (cdb_find_name(v, CDB_T_NODE, s->name))
        return err_set(e, E_EXISTS, "a node named \"%s\" is in the cluster already\nchange node_name in its configuration, or remove the old node", s->name);
    if ((rc = check_address(v, s->address, e)) != E_OK)
        return rc;
    for (int i = 0; i < s->n_storage_addresses; i++)
        if ((rc = check_address(v, s->storage_addresses[i], e)) != E_OK)
            return rc;
    *ret_token = tok;
    return E_OK;
}

int ops_join_check(const struct cdb_view *v, const struct join_spec *s, struct err *e)
{
    const struct cdb_token *tok;
    return check_join(v, s, &tok, e);
}

static void insert_node(const struct join *j, struct cdb_txn *t)
{
    const struct join_spec *s = j->spec;
    const char *id = s->node_id, *addresses[] = {s->address};
    cdb_txn_require_absent(t, CDB_T_NODE, id);
    cdb_txn_insert(t, CDB_T_NODE, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_name, s->name);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_addresses, 1, addresses);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_storage_addresses, (size_t)s->n_storage_addresses, s->storage_addresses);
    const struct { int col; int64_t v; } numbers[] = {
        {CDB_NODE_control_port, s->control_port}, {CDB_NODE_storage_port, s->storage_port}, {CDB_NODE_api_port, s->api_port},
        {CDB_NODE_migrate_port, s->migrate_port}, {CDB_NODE_epoch, 1}, {CDB_NODE_cpus, s->cpus},
        {CDB_NODE_memory_bytes, s->memory_bytes}, {CDB_NODE_joined_ms, clock_wall_ms()},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        cdb_txn_set_int(t, CDB_T_NODE, id, numbers[i].col, numbers[i].v);
    cdb_txn_set_bool(t, CDB_T_NODE, id, CDB_NODE_voter, s->voter);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, "joining");
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_accel, s->accel);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_accel_reason, s->accel_reason);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_version, s->version);
    for (int i = 0; i < s->n_disks; i++) {
        const struct join_disk *d = &s->disks[i];
        const char *did = j->disk_id[i];
        cdb_txn_insert(t, CDB_T_DISK, did);
        cdb_txn_set_str(t, CDB_T_DISK, did, CDB_DISK_node, id);
        cdb_txn_set_str(t, CDB_T_DISK, did, CDB_DISK_name, d->name);
        cdb_txn_set_str(t, CDB_T_DISK, did, CDB_DISK_fast_path, d->fast);
        cdb_txn_set_str(t, CDB_T_DISK, did, CDB_DISK_capacity_path, d->capacity);
        cdb_txn_set_int(t, CDB_T_DISK, did, CDB_DISK_size_bytes, d->size_bytes);
        cdb_txn_set_int(t, CDB_T_DISK, did, CDB_DISK_incarnation, 1);
        cdb_txn_set_str(t, CDB_T_DISK, did, CDB_DISK_state, "up");
    }
}

static int build_join(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct join *j = (struct join *)op;
    const struct cdb_token *tok = NULL;
    int rc = check_join(v, j->spec, &tok, e);
    if (rc != E_OK)
        return rc;
    cdb_txn_delete(t, CDB_T_TOKEN, tok->id); /* conflicts if another node used it at the same moment */
    insert_node(j, t);
    op_event(op, t, "info", j->spec->name, "node %s (%s) joins the cluster", j->spec->name, j->spec->address);
    return E_OK;
}

static bool joined(const struct op *op, const struct cdb_view *v) { return cdb_node_get(v, op->id) != NULL; }

int op_node_join(struct ops *o, const struct join_spec *s, op_done *done, void *arg, struct err *e)
{
    struct join *j = op_new(o, sizeof *j, "node joins", done, arg);
    j->spec = s;
    j->op.build = build_join;
    j->op.happened = joined;
    snprintf(j->op.id, sizeof j->op.id, "%s", s->node_id);
    for (int i = 0; i < s->n_disks; i++)
        id_new(j->disk_id[i]);
    return op_start(&j->op, e);
}

/* ---- tasks ---- */

static int build_cancel(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_task *task = ops_find(v, CDB_T_TASK, "task", ((struct named *)op)->name, e);
    if (!task)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", task->id);
    if (strcmp(task->state, "running") != 0)
        return err_set(e, E_BUSY, "the task is %s already", task->state);
    if (strcmp(task->kind, "resync") == 0)
        return err_set(e, E_BUSY, "a resync restores copies and cannot be cancelled");
    cdb_txn_require_str(t, CDB_T_TASK, task->id, CDB_TASK_state, "running");
    cdb_txn_set_bool(t, CDB_T_TASK, task->id, CDB_TASK_cancel, true);
    return E_OK;
}

int op_task_cancel(struct ops *o, const char *id, op_done *done, void *arg, struct err *e)
{
    struct named *r = op_new(o, sizeof *r, "cancel task", done, arg);
    r->name = id;
    r->op.build = build_cancel;
    return op_start(&r->op, e);
}

/* ---- tokens ---- */

struct token {
    struct op op;
    const struct token_spec *spec;
};

static int build_token(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct token_spec *s = ((struct token *)op)->spec;
    int rc = jin_name_check("token", s->name, e);
    if (rc != E_OK)
        return rc;
    if (cdb_find_name(v, CDB_T_TOKEN, s->name))
        return err_set(e, E_EXISTS, "token \"%s\" exists already", s->name);
    for (size_t i = 0; i < cdb_token_count(v); i++) { /* expired join tokens are of no use to anyone */
        const struct cdb_token *old = cdb_token_at(v, i);
        if (strcmp(old->role, "join") == 0 && old->expires_ms && old->expires_ms < clock_wall_ms() - 3600 * 1000)
            cdb_txn_delete(t, CDB_T_TOKEN, old->id);
    }
    cdb_txn_require_absent(t, CDB_T_TOKEN, op->id);
    cdb_txn_insert(t, CDB_T_TOKEN, op->id);
    cdb_txn_set_str(t, CDB_T_TOKEN, op->id, CDB_TOKEN_name, s->name);
    cdb_txn_set_str(t, CDB_T_TOKEN, op->id, CDB_TOKEN_hash, s->hash);
    cdb_txn_set_str(t, CDB_T_TOKEN, op->id, CDB_TOKEN_role, s->role);
    cdb_txn_set_int(t, CDB_T_TOKEN, op->id, CDB_TOKEN_expires_ms, s->expires_ms);
    cdb_txn_set_str(t, CDB_T_TOKEN, op->id, CDB_TOKEN_creator, s->creator);
    op_event(op, t, "info", s->name, "token %s (%s) created by %s", s->name, s->role, s->creator);
    return E_OK;
}

static bool token_made(const struct op *op, const struct cdb_view *v) { return cdb_token_get(v, op->id) != NULL; }

int op_token_create(struct ops *o, const struct token_spec *s, op_done *done, void *arg, struct err *e)
{
    struct token *k = op_new(o, sizeof *k, "create token", done, arg);
    k->spec = s;
    k->op.build = build_token;
    k->op.happened = token_made;
    return op_start(&k->op, e);
}

static int build_token_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_token *tok = ops_find(v, CDB_T_TOKEN, "token", ((struct named *)op)->name, e);
    if (!tok)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", tok->id);
    cdb_txn_delete(t, CDB_T_TOKEN, tok->id);
    op_event(op, t, "info", tok->name, "token %s deleted", tok->name);
    return E_OK;
}

static bool token_gone(const struct op *op, const struct cdb_view *v) { return !cdb_token_get(v, op->id); }

int op_token_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct named *r = op_new(o, sizeof *r, "delete token", done, arg);
    r->name = name;
    r->op.build = build_token_delete;
    r->op.happened = token_gone;
    return op_start(&r->op, e);
}
