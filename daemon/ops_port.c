/* Ports without a machine: a place on a guest network for something outside, such as the lab's probe. Whoever plugs an
 * interface with the port's id into the integration bridge of a node gets it. See ops.h. */
#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/jin.h"
#include "daemon/op.h"

struct create {
    struct op op;
    const struct port_spec *spec;
    char mac[18]; /* fixed, so that a repetition makes the same row */
};

static bool created(const struct op *op, const struct cdb_view *v)
{
    const struct create *c = (const struct create *)op;
    const struct cdb_port *p = cdb_find_name(v, CDB_T_PORT, c->spec->name);
    return p && strcmp(p->mac, c->mac) == 0;
}

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    struct create *c = (struct create *)op;
    const struct port_spec *s = c->spec;
    char ip[16], *id = op->id;
    int rc = jin_name_check("port", s->name, e);
    if (rc != E_OK)
        return rc;
    const struct cdb_network *n = ops_find(v, CDB_T_NETWORK, "network", s->network, e);
    if (!n)
        return E_NOTFOUND;
    if (cdb_find_name(v, CDB_T_PORT, s->name))
        return err_set(e, E_EXISTS, "port \"%s\" exists already", s->name);
    rc = net_pick_ip(v, n, NULL, 0, ip, e);
    if (rc != E_OK)
        return rc;
    snprintf(id, sizeof op->id, "%.36s/%.15s", n->id, ip); /* unique per address, as in ops_vm.c */
    cdb_txn_require_exists(t, CDB_T_NETWORK, n->id);
    cdb_txn_require_absent(t, CDB_T_PORT, id);
    cdb_txn_insert(t, CDB_T_PORT, id);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_name, s->name);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_network, n->id);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_mac, c->mac);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_ip, ip);
    op_event(op, t, "info", s->name, "port %s (%s) created on network %s", s->name, ip, n->name);
    return E_OK;
}

int op_port_create(struct ops *o, const struct port_spec *s, op_done *done, void *arg, struct err *e)
{
    struct create *c = op_new(o, sizeof *c, "create port", done, arg);
    char h[11];
    c->spec = s;
    c->op.build = build_create;
    c->op.happened = created;
    id_random_hex(h, 5);
    snprintf(c->mac, sizeof c->mac, "02:%.2s:%.2s:%.2s:%.2s:%.2s", h, h + 2, h + 4, h + 6, h + 8);
    return op_start(&c->op, e);
}

struct removal {
    struct op op;
    const char *name;
};

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_port *p = ops_find(v, CDB_T_PORT, "port", ((struct removal *)op)->name, e);
    if (!p)
        return E_NOTFOUND;
    if (*p->machine)
        return err_set(e, E_BUSY, "port %s belongs to vm %s\nit goes with the vm", p->name, ops_name(v, CDB_T_MACHINE, p->machine));
    cdb_txn_require_str(t, CDB_T_PORT, p->id, CDB_PORT_machine, "");
    cdb_txn_delete(t, CDB_T_PORT, p->id);
    op_event(op, t, "info", p->name, "port %s deleted", p->name);
    return E_OK;
}

static bool removed(const struct op *op, const struct cdb_view *v)
{
    return !cdb_find_name(v, CDB_T_PORT, ((const struct removal *)op)->name);
}

int op_port_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct removal *r = op_new(o, sizeof *r, "delete port", done, arg);
    r->name = name;
    r->op.build = build_delete;
    r->op.happened = removed;
    return op_start(&r->op, e);
}
