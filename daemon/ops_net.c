/* Networks and addresses. See ops.h. */
#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/jin.h"
#include "daemon/op.h"

bool net_parse_ip(const char *text, uint32_t *ret_ip)
{
    struct in_addr a;
    if (inet_pton(AF_INET, text, &a) != 1)
        return false;
    *ret_ip = ntohl(a.s_addr);
    return true;
}

int net_parse_cidr(const char *cidr, uint32_t *ret_net, int *ret_len, struct err *e)
{
    char ip[16];
    const char *slash = strchr(cidr, '/');
    uint32_t net;
    int len = -1;
    if (slash && (size_t)(slash - cidr) < sizeof ip && slash[1] >= '1' && slash[1] <= '9' && strlen(slash + 1) <= 2 &&
        strspn(slash + 1, "0123456789") == strlen(slash + 1)) {
        snprintf(ip, sizeof ip, "%.*s", (int)(slash - cidr), cidr);
        if (net_parse_ip(ip, &net))
            len = atoi(slash + 1);
    }
    if (len < 8 || len > 29)
        return err_set(e, E_INVAL, "cidr \"%.40s\" is not an IPv4 network\nfor example 198.18.1.0/24; prefix lengths 8 to 29", cidr);
    if (net & (0xffffffffu >> len))
        return err_set(e, E_INVAL, "cidr \"%.40s\" has host bits set\nthe network's own address is meant, for example 198.18.1.0/24", cidr);
    *ret_net = net;
    *ret_len = len;
    return E_OK;
}

static uint32_t gateway_of(const struct cdb_network *n, uint32_t net)
{
    uint32_t gw;
    return *n->gateway && net_parse_ip(n->gateway, &gw) ? gw : net + 1;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int net_pick_ip(const struct cdb_view *v, const struct cdb_network *n, const char *const *taken, int n_taken, char ret_ip[16], struct err *e)
{
    uint32_t net, ip;
    int len;
    int rc = net_parse_cidr(n->cidr, &net, &len, e);
    if (rc != E_OK)
        return rc;
    size_t used_n = 0;
    uint32_t *used = xcalloc(cdb_port_count(v) + (size_t)n_taken + 1, sizeof *used);
    used[used_n++] = gateway_of(n, net);
    for (size_t i = 0; i < cdb_port_count(v); i++) {
        const struct cdb_port *p = cdb_port_at(v, i);
        if (strcmp(p->network, n->id) == 0 && net_parse_ip(p->ip, &ip))
            used[used_n++] = ip;
    }
    for (int i = 0; i < n_taken; i++)
        if (net_parse_ip(taken[i], &ip))
            used[used_n++] = ip;
    qsort(used, used_n, sizeof *used, compare_u32);
    uint32_t last = net | (0xffffffffu >> len); /* broadcast */
    size_t k = 0;
    rc = err_set(e, E_NOSPC, "network %s (%s) has no free address", n->name, n->cidr);
    for (ip = net + 1; ip < last; ip++) {
        while (k < used_n && used[k] < ip)
            k++;
        if (k < used_n && used[k] == ip)
            continue;
        struct in_addr a = {htonl(ip)};
        inet_ntop(AF_INET, &a, ret_ip, 16);
        rc = E_OK;
        break;
    }
    free(used);
    return rc;
}

struct create {
    struct op op;
    const struct network_spec *spec;
};

static int check(const struct network_spec *s, struct err *e)
{
    uint32_t net, ip;
    int len;
    int rc = jin_name_check("network", s->name, e);
    if (rc == E_OK)
        rc = net_parse_cidr(s->cidr, &net, &len, e);
    if (rc != E_OK)
        return rc;
    uint32_t mask = 0xffffffffu >> len;
    if (*s->gateway && (!net_parse_ip(s->gateway, &ip) || (ip & ~mask) != net || ip == net || ip == (net | mask)))
        return err_set(e, E_INVAL, "gateway \"%.40s\" is not a host address of %s", s->gateway, s->cidr);
    for (int i = 0; i < s->n_dns; i++)
        if (!net_parse_ip(s->dns[i], &ip))
            return err_set(e, E_INVAL, "dns[%d] \"%.40s\" is not an IPv4 address", i, s->dns[i]);
    if (s->mtu && (s->mtu < 576 || s->mtu > 9000))
        return err_set(e, E_INVAL, "mtu %" PRId64 " is not allowed\n576 to 9000, or 0 for what the overlay leaves", s->mtu);
    return E_OK;
}

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct network_spec *s = ((struct create *)op)->spec;
    int rc = check(s, e);
    if (rc != E_OK)
        return rc;
    if (cdb_find_name(v, CDB_T_NETWORK, s->name))
        return err_set(e, E_EXISTS, "network \"%s\" exists already", s->name);
    cdb_txn_require_absent(t, CDB_T_NETWORK, op->id);
    cdb_txn_insert(t, CDB_T_NETWORK, op->id);
    cdb_txn_set_str(t, CDB_T_NETWORK, op->id, CDB_NETWORK_name, s->name);
    cdb_txn_set_str(t, CDB_T_NETWORK, op->id, CDB_NETWORK_cidr, s->cidr);
    cdb_txn_set_str(t, CDB_T_NETWORK, op->id, CDB_NETWORK_gateway, s->gateway);
    cdb_txn_set_int(t, CDB_T_NETWORK, op->id, CDB_NETWORK_mtu, s->mtu);
    cdb_txn_set_strs(t, CDB_T_NETWORK, op->id, CDB_NETWORK_dns, (size_t)s->n_dns, s->dns);
    op_event(op, t, "info", s->name, "network %s (%s) created", s->name, s->cidr);
    return E_OK;
}

static bool created(const struct op *op, const struct cdb_view *v) { return cdb_network_get(v, op->id) != NULL; }

int op_network_create(struct ops *o, const struct network_spec *s, op_done *done, void *arg, struct err *e)
{
    struct create *c = op_new(o, sizeof *c, "create network", done, arg);
    c->spec = s;
    c->op.build = build_create;
    c->op.happened = created;
    return op_start(&c->op, e);
}

struct removal {
    struct op op;
    const char *name;
};

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_network *n = ops_find(v, CDB_T_NETWORK, "network", ((struct removal *)op)->name, e);
    if (!n)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", n->id);
    for (size_t i = 0; i < cdb_port_count(v); i++) {
        const struct cdb_port *p = cdb_port_at(v, i);
        if (strcmp(p->network, n->id) == 0)
            return err_set(e, E_BUSY, "network %s has the port %s of vm %s\ndelete the vm first", n->name, p->ip,
                           ops_name(v, CDB_T_MACHINE, p->machine));
    }
    cdb_txn_delete(t, CDB_T_NETWORK, n->id);
    op_event(op, t, "info", n->name, "network %s deleted", n->name);
    return E_OK;
}

static bool removed(const struct op *op, const struct cdb_view *v) { return !cdb_network_get(v, op->id); }

int op_network_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct removal *r = op_new(o, sizeof *r, "delete network", done, arg);
    r->name = name;
    r->op.build = build_delete;
    r->op.happened = removed;
    return op_start(&r->op, e);
}
