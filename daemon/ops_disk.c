/* Disks, maintenance of nodes, and the cluster's settings. Rows only: the coordinator moves the copies (ha/repair.h), the disk's
 * node opens and closes what is on it. See ops.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cluster/copies.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"
#include "daemon/op.h"
#include "ha/plan.h"

struct disk_op {
    struct op op;
    const char *name;
    enum op_disk_verb verb;
    const struct disk_spec *spec;
    char want[16];
};

const struct cdb_disk *ops_disk_find(const struct cdb_view *v, const char *key, struct err *e)
{
    const struct cdb_disk *by_id = cdb_disk_get(v, key);
    const char *colon = strchr(key, ':');
    if (by_id)
        return by_id;
    for (size_t i = 0; colon && i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        const char *node = ops_name(v, CDB_T_NODE, d->node);
        if (strlen(node) == (size_t)(colon - key) && !strncmp(node, key, strlen(node)) && !strcmp(d->name, colon + 1))
            return d;
    }
    err_set(e, E_NOTFOUND, "no disk \"%.80s\"%s", key, colon ? "" : "\na disk is named NODE:DISK, see cohort disk list");
    return NULL;
}

static int copies_on(const struct cdb_view *v, const char *disk)
{
    int n = 0;
    for (size_t i = 0; i < cdb_shard_count(v); i++)
        n += cdb_strs_has(&cdb_shard_at(v, i)->replicas, disk);
    return n;
}

static int check_change(const struct cdb_view *v, const struct cdb_disk *d, enum op_disk_verb verb, struct err *e)
{
    static const char *const from[] = {[DISK_DRAIN] = "up", [DISK_SPARE] = "up", [DISK_USE] = "draining spare isolated",
                                       [DISK_REPLACE] = "failed isolated", [DISK_REMOVE] = "draining failed isolated spare up"};
    static const char *const verb_name[] = {"drain", "spare", "use", "replace", "remove"};
    const char *node = ops_name(v, CDB_T_NODE, d->node);
    if (!strstr(from[verb], d->state))
        return err_set(e, E_BUSY, "disk %s:%s is %s; %s is for a disk that is %s", node, d->name, d->state, verb_name[verb], from[verb]);
    int copies = copies_on(v, d->id);
    if ((verb == DISK_REMOVE || verb == DISK_SPARE) && copies)
        return err_set(e, E_BUSY, "disk %s:%s holds %d copies of shards\n%s", node, d->name, copies,
                       strcmp(d->state, "up") ? "wait until they have moved: cohort disk list" : "drain it first: cohort disk drain");
    return E_OK;
}

static int build_change(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    struct disk_op *o = (struct disk_op *)op;
    static const char *const state[] = {[DISK_DRAIN] = "draining", [DISK_SPARE] = "spare", [DISK_USE] = "up", [DISK_REPLACE] = "up"};
    const struct cdb_disk *d = ops_disk_find(v, o->name, e);
    int rc = d ? check_change(v, d, o->verb, e) : E_NOTFOUND;
    if (rc != E_OK)
        return rc;
    const char *node = ops_name(v, CDB_T_NODE, d->node);
    snprintf(op->id, sizeof op->id, "%s", d->id);
    cdb_txn_require_str(t, CDB_T_DISK, d->id, CDB_DISK_state, d->state);
    if (o->verb == DISK_REMOVE) {
        /* A copy that is placed there at this moment needs the disk's state to be "up" in its own transaction; whichever comes
         * second conflicts or finds the row gone. */
        cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, d->incarnation);
        cdb_txn_delete(t, CDB_T_DISK, d->id);
        op_event(op, t, "info", d->name, "disk %s:%s removed from the cluster", node, d->name);
        return E_OK;
    }
    cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_state, state[o->verb]);
    snprintf(o->want, sizeof o->want, "%s", state[o->verb]);
    if (o->verb == DISK_REPLACE) { /* whatever is on it now is compared before it counts */
        copies_distrust(t, d);
        cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_message, "");
        cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_replaced_by, "");
    } else if (o->verb == DISK_USE) {
        cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_message, "");
    }
    op_event(op, t, "info", d->name, "disk %s:%s is %s now (was %s)", node, d->name, state[o->verb], d->state);
    return E_OK;
}

static bool changed(const struct op *op, const struct cdb_view *v)
{
    const struct disk_op *o = (const struct disk_op *)op;
    const struct cdb_disk *d = cdb_disk_get(v, op->id);
    return o->verb == DISK_REMOVE ? !d : d && !strcmp(d->state, o->want);
}

int op_disk_change(struct ops *o, const char *name, enum op_disk_verb verb, op_done *done, void *arg, struct err *e)
{
    struct disk_op *r = op_new(o, sizeof *r, "change disk", done, arg);
    r->name = name;
    r->verb = verb;
    r->op.build = build_change;
    r->op.happened = changed;
    return op_start(&r->op, e);
}

/* ---- add ---- */

#define MIB(n) ((n) >> 20)

/* Half of a node's memory at most, and nothing that guests there were promised. */
static int check_memory(const struct cdb_view *v, const struct cdb_node *n, const struct disk_spec *s, struct err *e)
{
    int64_t given = plan_disk_memory(v, n->id), left = n->memory_bytes - PLAN_RESERVE_BYTES - plan_promised_bytes(v, n->id);
    if (*s->fast || *s->capacity)
        return err_set(e, E_INVAL, "a disk in memory has no paths\ngive memory_bytes, or paths");
    if (s->memory_bytes < DISK_MEMORY_MIN || s->memory_bytes % (1 << 20))
        return err_set(e, E_INVAL, "memory_bytes %" PRId64 " is not allowed\na multiple of 1 MiB, at least %" PRId64 " MiB", s->memory_bytes,
                       MIB(DISK_MEMORY_MIN));
    if (s->memory_bytes > n->memory_bytes / 2 - given)
        return err_set(e, E_NOSPC, "node %s has %" PRId64 " MiB of memory, of which disks may take half; %" PRId64 " MiB are given already\n"
                       "at most %" PRId64 " MiB more", n->name, MIB(n->memory_bytes), MIB(given),
                       given < n->memory_bytes / 2 ? MIB(n->memory_bytes / 2 - given) : 0);
    if (s->memory_bytes > left)
        return err_set(e, E_NOSPC, "node %s has %" PRId64 " MiB of memory that are promised to nobody\ngive less, or move vms away: cohort vm migrate",
                       n->name, left > 0 ? MIB(left) : 0);
    return E_OK;
}

static int check_add(const struct cdb_view *v, const struct cdb_node *n, const struct disk_spec *s, struct err *e)
{
    int rc = jin_name_check("disk", s->name, e);
    if (rc != E_OK)
        return rc;
    if (s->memory_bytes && (rc = check_memory(v, n, s, e)) != E_OK)
        return rc;
    if (!s->memory_bytes && (s->fast[0] != '/' || s->capacity[0] != '/'))
        return err_set(e, E_INVAL, "fast and capacity must be absolute paths on node %s", n->name);
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        bool paths = !s->memory_bytes && (!strcmp(d->capacity_path, s->capacity) || !strcmp(d->fast_path, s->fast));
        if (!strcmp(d->node, n->id) && s->memory_bytes && !strcmp(d->name, s->name))
            return err_set(e, E_EXISTS, "node %s has disk %s already", n->name, d->name);
        if (!strcmp(d->node, n->id) && (!strcmp(d->name, s->name) || paths))
            return err_set(e, E_EXISTS, "node %s has disk %s (fast %s, capacity %s) already\nname and paths must differ", n->name, d->name,
                           d->fast_path, d->capacity_path);
    }
    return E_OK;
}

static int build_add(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct disk_spec *s = ((struct disk_op *)op)->spec;
    const struct cdb_node *n = ops_find(v, CDB_T_NODE, "node", s->node, e);
    int rc = n ? check_add(v, n, s, e) : E_NOTFOUND;
    if (rc != E_OK)
        return rc;
    cdb_txn_require_exists(t, CDB_T_NODE, n->id);
    cdb_txn_require_absent(t, CDB_T_DISK, op->id);
    cdb_txn_insert(t, CDB_T_DISK, op->id);
    const struct { int col; const char *v; } texts[] = {
        {CDB_DISK_node, n->id}, {CDB_DISK_name, s->name}, {CDB_DISK_fast_path, s->fast}, {CDB_DISK_capacity_path, s->capacity},
        {CDB_DISK_state, s->spare ? "spare" : "up"}, {CDB_DISK_medium, s->memory_bytes ? CLASS_MEMORY : ""},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        cdb_txn_set_str(t, CDB_T_DISK, op->id, texts[i].col, texts[i].v);
    cdb_txn_set_int(t, CDB_T_DISK, op->id, CDB_DISK_incarnation, 1);
    cdb_txn_set_int(t, CDB_T_DISK, op->id, CDB_DISK_memory_bytes, s->memory_bytes);
    if (s->memory_bytes)
        op_event(op, t, "info", s->name, "disk %s:%s added: %" PRId64 " MiB of memory", n->name, s->name, MIB(s->memory_bytes));
    else
        op_event(op, t, "info", s->name, "disk %s:%s added", n->name, s->name);
    return E_OK;
}

static bool added(const struct op *op, const struct cdb_view *v) { return cdb_disk_get(v, op->id) != NULL; }

int op_disk_add(struct ops *o, const struct disk_spec *s, op_done *done, void *arg, struct err *e)
{
    struct disk_op *r = op_new(o, sizeof *r, "add disk", done, arg);
    r->spec = s;
    r->op.build = build_add;
    r->op.happened = added;
    return op_start(&r->op, e);
}

/* ---- maintenance ---- */

struct node_op {
    struct op op;
    const char *name;
    bool on;
};

static int build_maintenance(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct node_op *o = (struct node_op *)op;
    const struct cdb_node *n = ops_find(v, CDB_T_NODE, "node", o->name, e);
    if (!n)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", n->id);
    cdb_txn_require_int(t, CDB_T_NODE, n->id, CDB_NODE_epoch, n->epoch);
    cdb_txn_set_bool(t, CDB_T_NODE, n->id, CDB_NODE_maintenance, o->on);
    op_event(op, t, "info", n->name, o->on ? "node %s: maintenance begins; its guests move away, its copies are not replaced while it is off"
             : "node %s: maintenance is over", n->name);
    return E_OK;
}

static bool in_maintenance(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_node *n = cdb_node_get(v, op->id);
    return n && n->maintenance == ((const struct node_op *)op)->on;
}

int op_node_maintenance(struct ops *o, const char *name, bool on, op_done *done, void *arg, struct err *e)
{
    struct node_op *r = op_new(o, sizeof *r, "node maintenance", done, arg);
    r->name = name;
    r->on = on;
    r->op.build = build_maintenance;
    r->op.happened = in_maintenance;
    return op_start(&r->op, e);
}

/* ---- settings ---- */

struct setting_op {
    struct op op;
    const char *key, *value;
};

static const struct { const char *key, *unit; long long min, max; } numbers[] = {
    {"repair_absent_s", "seconds", 1, 86400}, {"rebuild_p99_ms", "ms", 1, 10000}, {"disk_slow_ms", "ms", 1, 10000},
    {"disk_isolate_ms", "ms", 1, 60000},      {"disk_slow_s", "seconds", 1, 300},
    {"leftover_keep_s", "seconds", 0, 86400},
};

int ops_setting_check(const char *key, const char *value, struct err *e)
{
    char *end;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].key))
            continue;
        long long n = strtoll(value, &end, 10);
        if (!*value || *end || n < numbers[i].min || n > numbers[i].max)
            return err_set(e, E_INVAL, "%s must be from %lld to %lld %s, is \"%.40s\"", key, numbers[i].min, numbers[i].max, numbers[i].unit, value);
        return E_OK;
    }
    if (strcmp(key, "repair_balance"))
        return err_set(e, E_INVAL, "no setting \"%.60s\"\nsee cohort cluster set --help", key);
    if (strcmp(value, "on") && strcmp(value, "off"))
        return err_set(e, E_INVAL, "repair_balance must be on or off, is \"%.40s\"", value);
    return E_OK;
}

static int build_setting(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    enum { MAX = 32 };
    const struct setting_op *o = (struct setting_op *)op;
    const struct cdb_cluster *cl = cdb_cluster_get(v, "cluster");
    char *k[MAX + 1], *val[MAX + 1];
    struct cdb_smap m = {0, k, val};
    bool put = false;
    if (!cl || cl->settings.n > MAX)
        return err_set(e, E_CORRUPT, "the cluster's row is damaged");
    for (size_t i = 0; i < cl->settings.n; i++) { /* sorted by key */
        int cmp = strcmp(cl->settings.k[i], o->key);
        if (cmp >= 0 && !put) {
            k[m.n] = (char *)o->key;
            val[m.n++] = (char *)o->value;
            put = true;
        }
        if (cmp) {
            k[m.n] = cl->settings.k[i];
            val[m.n++] = cl->settings.v[i];
        }
    }
    if (!put) {
        k[m.n] = (char *)o->key;
        val[m.n++] = (char *)o->value;
    }
    snprintf(op->id, sizeof op->id, "cluster");
    cdb_txn_set_smap(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_settings, &m);
    op_event(op, t, "info", "cluster", "setting %s is %s now", o->key, o->value);
    return E_OK;
}

int op_setting(struct ops *o, const char *key, const char *value, op_done *done, void *arg, struct err *e)
{
    int rc = ops_setting_check(key, value, e);
    if (rc != E_OK)
        return rc;
    struct setting_op *r = op_new(o, sizeof *r, "cluster setting", done, arg);
    r->key = key;
    r->value = value;
    r->op.build = build_setting;
    return op_start(&r->op, e);
}
