/* Builds and keeps models (model.h): from anet.h's desired state to rows of OVN's northbound database. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "net/anet/model.h"

#define LEASE_S "3600"

const struct nb_kind_desc nb_kinds[NB_N_KINDS] = {
    [NB_SWITCH] = {"Logical_Switch", true, 3,
                   {[NB_SWITCH_EXTERNAL_IDS] = {"external_ids", NB_MAP},
                    [NB_SWITCH_NAME] = {"name", NB_SET},
                    [NB_SWITCH_PORTS] = {"ports", NB_REFS, NB_PORT}}},
    [NB_DHCP] = {"DHCP_Options", true, 3,
                 {[NB_DHCP_EXTERNAL_IDS] = {"external_ids", NB_MAP},
                  [NB_DHCP_CIDR] = {"cidr", NB_SET},
                  [NB_DHCP_OPTIONS] = {"options", NB_MAP}}},
    [NB_PORT] = {"Logical_Switch_Port", false, 6,
                 {[NB_PORT_EXTERNAL_IDS] = {"external_ids", NB_MAP},
                  [NB_PORT_NAME] = {"name", NB_SET},
                  [NB_PORT_ADDRESSES] = {"addresses", NB_SET},
                  [NB_PORT_SECURITY] = {"port_security", NB_SET},
                  [NB_PORT_OPTIONS] = {"options", NB_MAP},
                  [NB_PORT_DHCP] = {"dhcpv4_options", NB_REF, NB_DHCP}}},
};

struct nb_model *nb_model_new(void)
{
    return xcalloc(1, sizeof(struct nb_model));
}

static void value_free(struct nb_value *v)
{
    for (size_t i = 0; i < v->n; i++) {
        free(v->k[i]);
        if (v->v)
            free(v->v[i]);
    }
    free(v->k);
    free(v->v);
}

void nb_model_free(struct nb_model *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        free(m->obj[i].key);
        for (int c = 0; c < NB_COLS_MAX; c++)
            value_free(&m->obj[i].col[c]);
    }
    free(m->obj);
    free(m);
}

struct nb_obj *nb_model_add(struct nb_model *m, enum nb_kind kind, const char *key)
{
    if (m->n == m->cap) {
        m->cap = m->cap ? m->cap * 2 : 64;
        m->obj = xrealloc(m->obj, m->cap * sizeof *m->obj);
    }
    struct nb_obj *o = &m->obj[m->n++];
    *o = (struct nb_obj){.kind = kind, .key = xstrdup(key)};
    return o;
}

void nb_value_add(struct nb_value *v, const char *key, const char *value)
{
    /* Grown by doubling: a switch may hold thousands of ports. */
    if (!(v->n & (v->n - 1))) {
        size_t cap = v->n ? v->n * 2 : 1;
        v->k = xrealloc(v->k, cap * sizeof *v->k);
        if (value)
            v->v = xrealloc(v->v, cap * sizeof *v->v);
    }
    v->k[v->n] = xstrdup(key);
    if (value)
        v->v[v->n] = xstrdup(value);
    v->n++;
}

static int cmp_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

struct pair { char *k, *v; };

static int cmp_pair(const void *a, const void *b)
{
    return strcmp(((const struct pair *)a)->k, ((const struct pair *)b)->k);
}

static void value_sort(struct nb_value *v)
{
    if (v->n < 2)
        return;
    if (!v->v) {
        qsort(v->k, v->n, sizeof *v->k, cmp_text);
        return;
    }
    struct pair *p = xcalloc(v->n, sizeof *p);
    for (size_t i = 0; i < v->n; i++)
        p[i] = (struct pair){v->k[i], v->v[i]};
    qsort(p, v->n, sizeof *p, cmp_pair);
    for (size_t i = 0; i < v->n; i++) {
        v->k[i] = p[i].k;
        v->v[i] = p[i].v;
    }
    free(p);
}

static int cmp_obj(const void *a, const void *b)
{
    const struct nb_obj *x = a, *y = b;
    return x->kind != y->kind ? (int)x->kind - (int)y->kind : strcmp(x->key, y->key);
}

void nb_model_sort(struct nb_model *m)
{
    if (m->n)
        qsort(m->obj, m->n, sizeof *m->obj, cmp_obj);
    for (size_t i = 0; i < m->n; i++)
        for (int c = 0; c < nb_kinds[m->obj[i].kind].n_cols; c++)
            value_sort(&m->obj[i].col[c]);
}

const struct nb_obj *nb_model_find(const struct nb_model *m, enum nb_kind kind, const char *key)
{
    const struct nb_obj want = {.kind = kind, .key = (char *)key};
    size_t lo = 0, hi = m->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (cmp_obj(&m->obj[mid], &want) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < m->n && !cmp_obj(&m->obj[lo], &want) ? &m->obj[lo] : NULL;
}

bool nb_value_equal(const struct nb_value *a, const struct nb_value *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (strcmp(a->k[i], b->k[i]) || (a->v && b->v && strcmp(a->v[i], b->v[i])))
            return false;
    return true;
}

/* ---- desired state to model ---- */

static struct nb_obj *add_owned(struct nb_model *m, enum nb_kind kind, const char *key)
{
    struct nb_obj *o = nb_model_add(m, kind, key);
    nb_value_add(&o->col[0], "owner", NB_OWNER); /* column 0 of every kind is external_ids */
    nb_value_add(&o->col[0], "cohort-id", key);
    return o;
}

static void add_dhcp(struct nb_model *m, const struct anet_network *net, int underlay_mtu)
{
    char gw[16], mac[18], mtu[16];
    struct buf dns;
    if (anet_gateway(net, gw, NULL))
        return; /* not after anet_check_network() */
    anet_mac_of(net->id, mac);
    snprintf(mtu, sizeof mtu, "%d", net->mtu ? net->mtu : anet_guest_mtu(underlay_mtu));
    struct nb_obj *o = add_owned(m, NB_DHCP, net->id);
    nb_value_add(&o->col[NB_DHCP_CIDR], net->cidr, NULL);
    struct nb_value *opt = &o->col[NB_DHCP_OPTIONS];
    nb_value_add(opt, "server_id", gw);
    nb_value_add(opt, "server_mac", mac);
    nb_value_add(opt, "lease_time", LEASE_S);
    nb_value_add(opt, "router", gw);
    nb_value_add(opt, "mtu", mtu);
    if (net->n_dns) {
        buf_init(&dns);
        for (size_t i = 0; i < net->n_dns; i++)
            buf_printf(&dns, "%s%s", i ? ", " : "{", net->dns[i]);
        buf_printf(&dns, "}");
        nb_value_add(opt, "dns_server", dns.data);
        buf_free(&dns);
    }
}

static void add_port(struct nb_model *m, const struct anet_port *port)
{
    char both[64];
    snprintf(both, sizeof both, "%s %s", port->mac, port->ip);
    struct nb_obj *o = add_owned(m, NB_PORT, port->id);
    nb_value_add(&o->col[NB_PORT_NAME], port->id, NULL);
    nb_value_add(&o->col[NB_PORT_ADDRESSES], both, NULL);
    nb_value_add(&o->col[NB_PORT_SECURITY], both, NULL);
    nb_value_add(&o->col[NB_PORT_DHCP], port->network, NULL);
    struct nb_value *opt = &o->col[NB_PORT_OPTIONS];
    if (port->host && *port->host && port->migrate_to && *port->migrate_to && strcmp(port->host, port->migrate_to)) {
        char *hosts = xasprintf("%s,%s", port->host, port->migrate_to);
        nb_value_add(opt, "requested-chassis", hosts);
        nb_value_add(opt, "activation-strategy", "rarp");
        free(hosts);
    } else if (port->host && *port->host) {
        nb_value_add(opt, "requested-chassis", port->host);
    }
}

struct ref { const void *what; const char *id; };

static int cmp_ref(const void *a, const void *b)
{
    const struct ref *x = a, *y = b;
    int c = strcmp(x->id, y->id);
    return c ? c : x->what < y->what ? -1 : x->what > y->what; /* the earlier of two with the same id first */
}

static const struct ref *find_ref(const struct ref *v, size_t n, const char *id)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(v[mid].id, id) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && !strcmp(v[lo].id, id) ? &v[lo] : NULL;
}

static int first_error(struct err *first, const struct err *e, const char *what, const char *id)
{
    if (!first->code)
        err_set(first, E_INVAL, "%s %s: %s", what, id ? id : "", e->msg);
    return E_INVAL;
}

/* Networks that pass, sorted by id. Overlap between networks is allowed here (they are separate layer 2 segments): the
 * check at creation is a service to the user. */
static size_t usable_networks(const struct anet_desired *d, struct ref *ret, size_t *skipped, struct err *first)
{
    size_t n = 0, k = 0;
    struct err e = {0};
    for (size_t i = 0; i < d->n_networks; i++) {
        if (anet_check_network(&d->networks[i], NULL, 0, &e)) {
            first_error(first, &e, "network", d->networks[i].id);
            (*skipped)++;
        } else {
            ret[n++] = (struct ref){&d->networks[i], d->networks[i].id};
        }
    }
    qsort(ret, n, sizeof *ret, cmp_ref);
    for (size_t i = 0; i < n; i++) {
        if (k && !strcmp(ret[k - 1].id, ret[i].id)) {
            err_set(&e, E_INVAL, "the id occurs twice");
            first_error(first, &e, "network", ret[i].id);
            (*skipped)++;
        } else {
            ret[k++] = ret[i];
        }
    }
    return k;
}

static size_t usable_ports(const struct anet_desired *d, const struct ref *nets, size_t n_nets, struct ref *ret,
                           size_t *skipped, struct err *first)
{
    size_t n = 0, k = 0;
    struct err e = {0};
    for (size_t i = 0; i < d->n_ports; i++) {
        const struct anet_port *p = &d->ports[i];
        const struct ref *net = p->network ? find_ref(nets, n_nets, p->network) : NULL;
        int rc = net ? anet_check_port(net->what, p, &e)
                     : err_set(&e, E_INVAL, "there is no usable network %s", p->network ? p->network : "");
        if (rc) {
            first_error(first, &e, "port", p->id);
            (*skipped)++;
        } else {
            ret[n++] = (struct ref){p, p->id};
        }
    }
    qsort(ret, n, sizeof *ret, cmp_ref);
    for (size_t i = 0; i < n; i++) {
        if (k && !strcmp(ret[k - 1].id, ret[i].id)) {
            err_set(&e, E_INVAL, "the id occurs twice");
            first_error(first, &e, "port", ret[i].id);
            (*skipped)++;
        } else {
            ret[k++] = ret[i];
        }
    }
    return k;
}

int nb_model_build(const struct anet_desired *d, struct nb_model **ret_model, size_t *ret_skipped, struct err *e)
{
    struct err first = {0};
    size_t skipped = 0;
    struct ref *nets = xcalloc(d->n_networks + 1, sizeof *nets);
    struct ref *ports = xcalloc(d->n_ports + 1, sizeof *ports);
    size_t n_nets = usable_networks(d, nets, &skipped, &first);
    size_t n_ports = usable_ports(d, nets, n_nets, ports, &skipped, &first);

    struct nb_model *m = nb_model_new();
    for (size_t i = 0; i < n_nets; i++) {
        const struct anet_network *net = nets[i].what;
        struct nb_obj *o = add_owned(m, NB_SWITCH, net->id);
        nb_value_add(&o->col[NB_SWITCH_NAME], net->id, NULL);
        if (net->name && *net->name)
            nb_value_add(&o->col[NB_SWITCH_EXTERNAL_IDS], "cohort-name", net->name);
    }
    for (size_t i = 0; i < n_ports; i++) { /* switches were added in order of id */
        const struct anet_port *p = ports[i].what;
        size_t at = (size_t)(find_ref(nets, n_nets, p->network) - nets);
        nb_value_add(&m->obj[at].col[NB_SWITCH_PORTS], p->id, NULL);
    }
    for (size_t i = 0; i < n_nets; i++)
        add_dhcp(m, nets[i].what, d->underlay_mtu);
    for (size_t i = 0; i < n_ports; i++)
        add_port(m, ports[i].what);
    nb_model_sort(m);
    free(nets);
    free(ports);
    *ret_model = m;
    *ret_skipped = skipped;
    if (first.code && e)
        *e = first;
    return first.code;
}
