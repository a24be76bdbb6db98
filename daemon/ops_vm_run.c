/* Machines: start, stop, kill, migrate: who runs where is decided here (by the user) and in ha/ (after a failure). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/op.h"
#include "ha/plan.h"

struct run {
    struct op op;
    const char *name, *to;
    int64_t from_generation; /* of the first attempt: tells whether it happened */
    bool kill;
};

int64_t ops_node_memory_used(const struct cdb_view *v, const char *node_id)
{
    return plan_promised_bytes(v, node_id);
}

static int guests_on(const struct cdb_view *v, const char *node_id, const struct cdb_machine *but_for, bool *ret_rival)
{
    int n = 0;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        if (m == but_for || strcmp(m->host, node_id) != 0)
            continue;
        n++;
        if (strncmp(but_for->affinity, "anti:", 5) == 0 && strcmp(m->affinity, but_for->affinity) == 0)
            *ret_rival = true;
    }
    return n;
}

/* In-sync copies of the machine's disks on the node: reads stay local there. */
static int local_copies(const struct cdb_view *v, const struct cdb_machine *m, const char *node_id)
{
    int n = 0;
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        bool mine = false;
        for (size_t k = 0; k < m->disks.n && !mine; k++)
            mine = strcmp(slot_value(m->disks.v[k]), s->volume) == 0;
        for (size_t k = 0; mine && k < s->replicas.n; k++) {
            const struct cdb_disk *d = cdb_disk_get(v, s->replicas.v[k]);
            n += d && strcmp(d->node, node_id) == 0 && cdb_shard_in_sync(v, s, d->id);
        }
    }
    return n;
}

/* NULL, or why the machine cannot run there. */
static const char *unfit(const struct cdb_view *v, const struct cdb_machine *m, const struct cdb_node *n)
{
    bool rival = false;
    if (strcmp(n->state, "up") != 0)
        return "it is not up";
    if (strcmp(m->accel, "kvm") == 0 && strcmp(n->accel, "kvm") != 0)
        return "its /dev/kvm does not serve (see cohort host check)";
    int64_t used = ops_node_memory_used(v, n->id) - (strcmp(m->host, n->id) == 0 ? m->memory_bytes : 0);
    if (n->memory_bytes - used < m->memory_bytes)
        return "not enough free memory";
    guests_on(v, n->id, m, &rival);
    return rival ? "a vm of the same anti-affinity group runs there" : NULL;
}

int ops_vm_place(const struct cdb_view *v, const struct cdb_machine *m, const struct cdb_node **ret_node, struct err *e)
{
    const struct cdb_node *best = NULL;
    double best_load = 0;
    int best_local = 0;
    struct buf why;
    buf_init(&why);
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        const char *reason = unfit(v, m, n);
        bool rival;
        if (reason) {
            buf_printf(&why, "%s%s: %s", why.len ? "; " : "", n->name, reason);
            continue;
        }
        double load = (guests_on(v, n->id, m, &rival) + 1.0) / (double)(n->memory_bytes ? n->memory_bytes : 1);
        int local = local_copies(v, m, n->id);
        if (!best || load < best_load || (load <= best_load && local > best_local)) {
            best = n;
            best_load = load;
            best_local = local;
        }
    }
    int rc = best ? E_OK : err_set(e, E_NOSPC, "no node can run vm %s now (%.300s)", m->name, why.len ? why.data : "there is no node");
    buf_free(&why);
    if (best)
        *ret_node = best;
    return rc;
}

static const struct cdb_machine *find_vm(struct op *op, const struct cdb_view *v, struct err *e)
{
    struct run *r = (struct run *)op;
    const struct cdb_machine *m = ops_find(v, CDB_T_MACHINE, "vm", r->name, e);
    if (m && op->tries == 0)
        r->from_generation = m->generation;
    if (m)
        snprintf(op->id, sizeof op->id, "%s", m->id);
    return m;
}

static int find_target(const struct cdb_view *v, const struct cdb_machine *m, const char *to, const struct cdb_node **ret, struct err *e)
{
    const struct cdb_node *n = ops_find(v, CDB_T_NODE, "node", to, e);
    if (!n)
        return E_NOTFOUND;
    const char *reason = unfit(v, m, n);
    if (reason)
        return err_set(e, strcmp(n->state, "up") ? E_UNAVAIL : E_NOSPC, "vm %s cannot run on node %s: %s", m->name, n->name, reason);
    *ret = n;
    return E_OK;
}

static bool generation_raised(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_machine *m = cdb_machine_get(v, op->id);
    return !m || m->generation > ((const struct run *)op)->from_generation;
}

static int build_start(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_machine *m = find_vm(op, v, e);
    const char *to = ((struct run *)op)->to;
    const struct cdb_node *n;
    if (!m)
        return E_NOTFOUND;
    if (strcmp(m->desired, "running") == 0)
        return err_set(e, E_BUSY, "vm %s is %s on node %s already", m->name, m->state, ops_name(v, CDB_T_NODE, m->host));
    if (*m->host)
        return err_set(e, E_BUSY, "vm %s is still powering down on node %s\ntry again when cohort vm show %s says stopped; or end it with cohort vm kill %s",
                       m->name, ops_name(v, CDB_T_NODE, m->host), m->name, m->name);
    int rc = to && *to ? find_target(v, m, to, &n, e) : ops_vm_place(v, m, &n, e);
    if (rc != E_OK)
        return rc;
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, "");
    cdb_txn_require_str(t, CDB_T_NODE, n->id, CDB_NODE_state, "up");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "running");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "starting");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_message, "");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, n->id);
    cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
    for (size_t i = 0; i < m->disks.n; i++) {
        const struct cdb_volume *vol = disk_volume(v, m->disks.v[i]);
        if (!vol)
            return err_set(e, E_NOTFOUND, "vm %s: the volume of its disk %.1s is gone", m->name, m->disks.v[i]);
        volume_hand_over(t, vol, n->id);
    }
    op_event(op, t, "info", m->name, "vm %s: start on node %s asked for", m->name, n->name);
    return E_OK;
}

/* On a host that cannot act any more the stop is carried out here; the raised epoch at the next start fences what it
 * might still do. */
static bool host_gone(const struct cdb_view *v, const struct cdb_machine *m)
{
    const struct cdb_node *n = cdb_node_get(v, m->host);
    return !n || strcmp(n->state, "dead") == 0;
}

static int build_stop(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_machine *m = find_vm(op, v, e);
    bool force = ((struct run *)op)->kill;
    if (!m)
        return E_NOTFOUND;
    if (!*m->host && strcmp(m->desired, "stopped") == 0)
        return err_set(e, E_BUSY, "vm %s is stopped already", m->name);
    if (!force && *m->migrate_to)
        return err_set(e, E_BUSY, "vm %s is migrating to node %s\nwait for it or cancel its task; see cohort task list", m->name,
                       ops_name(v, CDB_T_NODE, m->migrate_to));
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, m->host);
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "stopped");
    if (force || host_gone(v, m)) {
        cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
        cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    }
    if (host_gone(v, m)) {
        cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, "");
        cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "stopped");
    }
    op_event(op, t, "info", m->name, "vm %s: %s asked for", m->name, force ? "immediate end" : "stop");
    return E_OK;
}

static bool stop_recorded(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_machine *m = cdb_machine_get(v, op->id);
    return !m || (strcmp(m->desired, "stopped") == 0 && (!((const struct run *)op)->kill || generation_raised(op, v)));
}

static int build_migrate(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_machine *m = find_vm(op, v, e);
    const struct cdb_node *n = NULL;
    if (!m)
        return E_NOTFOUND;
    if (strcmp(m->desired, "running") != 0 || strcmp(m->state, "running") != 0)
        return err_set(e, E_BUSY, "vm %s is %s; only a running vm can migrate", m->name, m->state);
    if (*m->migrate_to)
        return err_set(e, E_BUSY, "vm %s is migrating to node %s already", m->name, ops_name(v, CDB_T_NODE, m->migrate_to));
    const struct cdb_node *same = ops_find(v, CDB_T_NODE, "node", ((struct run *)op)->to, e);
    if (same && strcmp(same->id, m->host) == 0)
        return err_set(e, E_INVAL, "vm %s runs on node %s already", m->name, same->name);
    int rc = find_target(v, m, ((struct run *)op)->to, &n, e);
    if (rc != E_OK)
        return rc;
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "running");
    cdb_txn_require_str(t, CDB_T_NODE, n->id, CDB_NODE_state, "up");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, n->id);
    op_event(op, t, "info", m->name, "vm %s: migration from node %s to %s asked for", m->name, ops_name(v, CDB_T_NODE, m->host), n->name);
    return E_OK;
}

static bool migration_recorded(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_machine *m = cdb_machine_get(v, op->id);
    return !m || *m->migrate_to || generation_raised(op, v);
}

static int run_op(struct ops *o, const char *note, const char *name, const char *to, bool force,
                  int (*build)(struct op *, const struct cdb_view *, struct cdb_txn *, struct err *),
                  bool (*happened)(const struct op *, const struct cdb_view *), op_done *done, void *arg, struct err *e)
{
    struct run *r = op_new(o, sizeof *r, note, done, arg);
    r->name = name;
    r->to = to;
    r->kill = force;
    r->op.build = build;
    r->op.happened = happened;
    return op_start(&r->op, e);
}

int op_vm_start(struct ops *o, const char *name, const char *to, op_done *done, void *arg, struct err *e)
{
    return run_op(o, "start vm", name, to, false, build_start, generation_raised, done, arg, e);
}

int op_vm_stop(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    return run_op(o, "stop vm", name, NULL, false, build_stop, stop_recorded, done, arg, e);
}

int op_vm_kill(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    return run_op(o, "kill vm", name, NULL, true, build_stop, stop_recorded, done, arg, e);
}

int op_vm_migrate(struct ops *o, const char *name, const char *to, op_done *done, void *arg, struct err *e)
{
    return run_op(o, "migrate vm", name, to, false, build_migrate, migration_recorded, done, arg, e);
}
