/* Cluster database -> aNet. Level-triggered: the whole desired state at every change; aNet finds the differences. */
#include "daemon/nets.h"
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "daemon/remotes.h"

LOG_MODULE("nets");

static void on_port_txn(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status && status != E_CONFLICT) /* a port that was deleted meanwhile is no news */
        log_warn("port state: %s", e->msg);
}

static void on_port_up(void *arg, const char *port_id, bool up)
{
    struct daemon *d = arg;
    const struct cdb_view *v = d->link ? cdb_link_view(d->link) : NULL;
    const struct cdb_port *p = v ? cdb_port_get(v, port_id) : NULL;
    const struct cdb_machine *m = p && p->machine[0] ? cdb_machine_get(v, p->machine) : NULL;
    /* During a migration both nodes have the port; the guest's host speaks for it. */
    if (!p || p->up == up || (m && strcmp(m->host, d->node_id)))
        return;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_exists(t, CDB_T_PORT, p->id);
    cdb_txn_set_bool(t, CDB_T_PORT, p->id, CDB_PORT_up, up);
    cdb_txn_commit(d->link, t, "port state", on_port_txn, d);
}

int nets_open(struct daemon *d, struct err *e)
{
    char *ca = xasprintf("%s/pki/ca.pem", d->conf.state_dir), *cert = xasprintf("%s/pki/node.pem", d->conf.state_dir);
    char *key = xasprintf("%s/pki/node.key", d->conf.state_dir);
    struct anet_conf conf = {.node_id = d->node_id, .address = d->conf.address, .uplink = d->conf.uplink,
                             .run_dir = d->conf.run_dir, .ca_pem = ca, .cert_pem = cert, .key_pem = key, .supervise = true};
    struct anet_events events = {.port_up = on_port_up, .arg = d};
    int rc = anet_open(d->loop, &conf, &events, &d->anet, e);
    free(ca);
    free(cert);
    free(key);
    return rc;
}

static void set_desired(struct daemon *d, const struct cdb_view *v)
{
    size_t n_net = cdb_network_count(v), n_port = cdb_port_count(v), n_node = cdb_node_count(v);
    struct anet_network *nets = xcalloc(n_net + 1, sizeof *nets);
    struct anet_port *ports = xcalloc(n_port + 1, sizeof *ports);
    const char **nodes = xcalloc(n_node + 1, sizeof *nodes);
    for (size_t i = 0; i < n_net; i++) {
        const struct cdb_network *n = cdb_network_at(v, i);
        nets[i] = (struct anet_network){.id = n->id, .name = n->name, .cidr = n->cidr, .gateway = n->gateway,
                                        .n_dns = n->dns.n, .dns = (const char *const *)n->dns.v, .mtu = (int)n->mtu};
    }
    for (size_t i = 0; i < n_port; i++) {
        const struct cdb_port *p = cdb_port_at(v, i);
        const struct cdb_machine *m = p->machine[0] ? cdb_machine_get(v, p->machine) : NULL;
        ports[i] = (struct anet_port){.id = p->id, .network = p->network, .mac = p->mac, .ip = p->ip,
                                      .host = m ? m->host : "", .migrate_to = m ? m->migrate_to : ""};
    }
    for (size_t i = 0; i < n_node; i++)
        nodes[i] = cdb_node_at(v, i)->id;
    struct anet_desired want = {n_net, n_port, n_node, nets, ports, nodes, 0};
    struct err e = {0};
    if (anet_set_desired(d->anet, &want, &e))
        log_warn("a network or port in the database cannot be made: %s", e.msg);
    free(nets);
    free(ports);
    free(nodes);
}

/* ovn-northd may hang on a connection to a database server whose node just died, while another node leads now: only a
 * change of leadership to its own node is seen by aNet itself. */
static void watch_voters(struct daemon *d, const struct cdb_view *v)
{
    uint64_t now = 1;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (n->voter && strcmp(n->state, "dead"))
            now = hash_bytes(n->id, strlen(n->id), now);
    }
    if (d->living_voters && d->living_voters != now)
        anet_db_leader_changed(d->anet);
    d->living_voters = now;
}

void nets_update(struct daemon *d, const struct cdb_view *v)
{
    const struct cdb_cluster *cl = cdb_cluster_get(v, "cluster");
    char *voters = remotes_of(v);
    anet_set_remotes(d->anet, d->local_db, voters[0] ? voters : NULL);
    free(voters);
    anet_set_writer(d->anet, cl && !strcmp(cl->coordinator, d->node_id) ? cl->coordinator_term : 0);
    watch_voters(d, v);
    set_desired(d, v);
}
