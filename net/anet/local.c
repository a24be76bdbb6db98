/* This node's Open vSwitch (local.h): the hook in the database thread, what ovn-controller reads, and the bridges. Ports
 * are in ports.c. */
#include <config.h>

#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "netlink-socket.h"
#include "openvswitch/poll-loop.h"
#include "ovsdb-idl.h"
#include "smap.h"
#include "timeval.h"
#include "vswitch-idl.h"

#include "base/buf.h"
#include "base/log.h"
#include "base/metric.h"
#include "cluster/dbthread.h"
#include "net/anet/local_priv.h"
#include "net/anet/rtnl.h"

LOG_MODULE("anet")
METRIC_COUNTER(m_commits, "cohort_net_ovs_commits_total", "Transactions that changed the local Open vSwitch database")
METRIC_COUNTER(m_failures, "cohort_net_ovs_failures_total", "Transactions that the local Open vSwitch database refused")

#define RETRY_MS 500

/* ---- what ovn-controller reads ---- */

static bool set_key(const struct ovsrec_open_vswitch *ovs, const char *key, const char *value)
{
    const char *there = smap_get(&ovs->external_ids, key);
    if (!*value || (there && !strcmp(there, value)))
        return false;
    ovsrec_open_vswitch_update_external_ids_setkey(ovs, key, value);
    return true;
}

static bool fill_external_ids(struct local *l, const struct ovsrec_open_vswitch *ovs)
{
    bool any = false;
    any |= set_key(ovs, "system-id", l->node_id);
    any |= set_key(ovs, "ovn-remote", l->ovn_remote);
    any |= set_key(ovs, "ovn-encap-type", "geneve");
    any |= set_key(ovs, "ovn-encap-ip", l->address);
    any |= set_key(ovs, "ovn-bridge", BR_INT);
    any |= set_key(ovs, "ovn-bridge-datapath-type", l->status.datapath);
    any |= set_key(ovs, "ovn-monitor-all", "true");            /* cheaper for the database than conditions per chassis */
    any |= set_key(ovs, "ovn-remote-probe-interval", "5000");  /* ms */
    any |= set_key(ovs, "ovn-openflow-probe-interval", "60");  /* s */
    return any;
}

/* ---- bridges ---- */

static const struct ovsrec_bridge *find_bridge(const struct ovsrec_open_vswitch *ovs, const char *name)
{
    for (size_t i = 0; i < ovs->n_bridges; i++)
        if (!strcmp(ovs->bridges[i]->name, name))
            return ovs->bridges[i];
    return NULL;
}

const struct ovsrec_port *local_insert_port(struct local *l, const struct ovsrec_bridge *br, const char *name,
                                            const char *type)
{
    struct ovsrec_interface *iface = ovsrec_interface_insert(l->txn);
    ovsrec_interface_set_name(iface, name);
    ovsrec_interface_set_type(iface, type);
    struct ovsrec_port *port = ovsrec_port_insert(l->txn);
    ovsrec_port_set_name(port, name);
    ovsrec_port_set_interfaces(port, &iface, 1);
    ovsrec_bridge_update_ports_addvalue(br, port);
    return port;
}

static const struct ovsrec_bridge *make_bridge(struct local *l, const struct ovsrec_open_vswitch *ovs, const char *name)
{
    const struct ovsrec_bridge *br = ovsrec_bridge_insert(l->txn);
    ovsrec_bridge_set_name(br, name);
    struct smap ids = SMAP_CONST1(&ids, "owner", "cohort");
    ovsrec_bridge_set_external_ids(br, &ids);
    struct ovsrec_interface *iface = ovsrec_interface_insert(l->txn);
    ovsrec_interface_set_name(iface, name);
    ovsrec_interface_set_type(iface, "internal");
    struct ovsrec_port *port = ovsrec_port_insert(l->txn);
    ovsrec_port_set_name(port, name);
    ovsrec_port_set_interfaces(port, &iface, 1);
    ovsrec_bridge_set_ports(br, &port, 1);
    ovsrec_open_vswitch_update_bridges_addvalue(ovs, br);
    return br;
}

static bool fill_bridge(struct local *l, const struct ovsrec_open_vswitch *ovs, const char *name, const char *fail_mode,
                        const struct ovsrec_bridge **ret_br)
{
    const struct ovsrec_bridge *br = find_bridge(ovs, name);
    bool any = !br;
    if (!br)
        br = make_bridge(l, ovs, name);
    if (any || strcmp(br->datapath_type, l->status.datapath)) {
        ovsrec_bridge_set_datapath_type(br, l->status.datapath);
        any = true;
    }
    if (any || !br->fail_mode || strcmp(br->fail_mode, fail_mode)) {
        ovsrec_bridge_set_fail_mode(br, fail_mode);
        any = true;
    }
    *ret_br = br;
    return any;
}

static void set_phy(struct local *l, const char *state)
{
    if (strcmp(state, "error"))
        l->status.phy_error[0] = 0;
    if (strcmp(l->status.phy, state)) {
        snprintf(l->status.phy, sizeof l->status.phy, "%s", state);
        l->changed = true;
    }
}

static void phy_failed(struct local *l, const struct err *e)
{
    if (strcmp(l->status.phy, "error"))
        log_warn("uplink %s: %s", l->uplink, e->msg);
    snprintf(l->status.phy_error, sizeof l->status.phy_error, "%.255s", e->msg);
    set_phy(l, "error");
}

static bool wants_phy(const struct local *l)
{
    return *l->uplink && !strcmp(l->status.datapath, "netdev");
}

static bool fill_phy(struct local *l, const struct ovsrec_open_vswitch *ovs)
{
    const struct ovsrec_bridge *br = find_bridge(ovs, BR_PHY);
    const char *owner = br ? smap_get(&br->external_ids, "owner") : NULL;
    if (br && (!owner || strcmp(owner, "cohort"))) {
        set_phy(l, "prepared");
        return false;
    }
    if (!wants_phy(l)) {
        set_phy(l, "none");
        return false;
    }
    char mac[18];
    struct err e;
    if (rtnl_mac(l->uplink, mac, &e)) {
        phy_failed(l, &e);
        return false; /* nothing is taken from the node before its uplink is known to be there */
    }
    bool any = fill_bridge(l, ovs, BR_PHY, "standalone", &br);
    /* The uplink's own MAC on the bridge: neighbours' ARP entries stay right when the address moves. */
    const char *hw = any ? NULL : smap_get(&br->other_config, "hwaddr");
    if (!hw || strcmp(hw, mac)) {
        ovsrec_bridge_update_other_config_setkey(br, "hwaddr", mac);
        any = true;
    }
    for (size_t i = 0; i < br->n_ports; i++)
        if (!strcmp(br->ports[i]->name, l->uplink))
            return any;
    local_insert_port(l, br, l->uplink, "");
    if (!strcmp(l->status.phy, ""))
        set_phy(l, "pending");
    return true;
}

static bool is_open(const struct ovsdb_idl *idl, const char *ifname)
{
    const struct ovsrec_interface *i;
    OVSREC_INTERFACE_FOR_EACH (i, idl)
        if (!strcmp(i->name, ifname))
            return i->n_ofport && *i->ofport > 0;
    return false;
}

/* Addresses follow once the switch really forwards between uplink and br-phy; after a crash of the switch br-phy comes
 * back down, and its rows change then, so this runs again. */
static void settle_phy(struct local *l)
{
    const struct ovsrec_open_vswitch *ovs = ovsrec_open_vswitch_first(l->idl);
    const struct ovsrec_bridge *br = ovs ? find_bridge(ovs, BR_PHY) : NULL;
    bool prepared = !strcmp(l->status.phy, "prepared"), was_up = true;
    struct err e;
    int moved = 0;
    if (!br || !if_nametoindex(BR_PHY) || (!prepared && (!wants_phy(l) || !is_open(l->idl, l->uplink))))
        return;
    int rc = rtnl_up(BR_PHY, &was_up, &e);
    if (!rc && !prepared)
        rc = rtnl_move(l->uplink, BR_PHY, &moved, &e);
    if (moved)
        log_info("%d address(es) moved from %s to %s", moved, l->uplink, BR_PHY);
    if (rc)
        phy_failed(l, &e);
    else if (!prepared)
        set_phy(l, "ok");
}

/* ---- one round ---- */

static void choose_datapath(struct local *l)
{
    int family = 0; /* in and out */
    const char *dp = l->datapath;
    if (!*dp) /* this is what the switch itself asks; the kernel loads the module for it if there is one */
        dp = nl_lookup_genl_family("ovs_datapath", &family) ? "netdev" : "system";
    snprintf(l->status.datapath, sizeof l->status.datapath, "%s", dp);
}

static bool fill(struct local *l)
{
    const struct ovsrec_bridge *br;
    const struct ovsrec_open_vswitch *ovs = ovsrec_open_vswitch_first(l->idl);
    if (!ovs) { /* a database fresh from ovsdb-tool; the rest follows in the next round */
        ovsrec_open_vswitch_insert(l->txn);
        return true;
    }
    bool any = fill_external_ids(l, ovs);
    bool fresh = !find_bridge(ovs, BR_INT);
    any |= fill_bridge(l, ovs, BR_INT, "secure", &br);
    any |= fill_phy(l, ovs);
    if (!fresh)
        any |= ports_fill(l, br);
    return any;
}

static void finish(struct local *l)
{
    enum ovsdb_idl_txn_status st = ovsdb_idl_txn_commit(l->txn);
    if (st == TXN_INCOMPLETE)
        return;
    if (st == TXN_SUCCESS || st == TXN_UNCHANGED) {
        l->status.commits++;
        l->status.error[0] = 0;
        metric_add(&m_commits, 1);
    } else {
        l->dirty = true;
        l->retry_at = time_msec() + RETRY_MS;
        l->status.failures++;
        metric_add(&m_failures, 1);
        if (st == TXN_ERROR) {
            snprintf(l->status.error, sizeof l->status.error, "%s", ovsdb_idl_txn_get_error(l->txn));
            log_warn("local Open vSwitch database refused: %s", l->status.error);
        }
    }
    ovsdb_idl_txn_destroy(l->txn);
    l->txn = NULL;
}

static void drop_txn(struct local *l)
{
    ovsdb_idl_txn_abort(l->txn);
    ovsdb_idl_txn_destroy(l->txn);
    l->txn = NULL;
}

static void act(struct local *l)
{
    l->dirty = false;
    l->txn = ovsdb_idl_txn_create(l->idl);
    ovsdb_idl_txn_add_comment(l->txn, "cohort");
    if (fill(l)) {
        finish(l);
        return;
    }
    drop_txn(l);
    if (!l->status.ready) {
        l->status.ready = true;
        l->changed = true;
    }
}

static void open_idl(struct local *l)
{
    l->idl = ovsdb_idl_create_unconnected(&ovsrec_idl_class, false);
    ovsdb_idl_set_leader_only(l->idl, false);
    remote_set(&l->link, l->idl, l->ovs_db);
    ovsdb_idl_add_table(l->idl, &ovsrec_table_open_vswitch);
    ovsdb_idl_add_column(l->idl, &ovsrec_open_vswitch_col_external_ids);
    ovsdb_idl_add_column(l->idl, &ovsrec_open_vswitch_col_bridges);
    ovsdb_idl_add_table(l->idl, &ovsrec_table_bridge);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_name);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_ports);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_fail_mode);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_datapath_type);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_other_config);
    ovsdb_idl_add_column(l->idl, &ovsrec_bridge_col_external_ids);
    ovsdb_idl_add_table(l->idl, &ovsrec_table_port);
    ovsdb_idl_add_column(l->idl, &ovsrec_port_col_name);
    ovsdb_idl_add_column(l->idl, &ovsrec_port_col_interfaces);
    ovsdb_idl_add_column(l->idl, &ovsrec_port_col_external_ids);
    ovsdb_idl_add_table(l->idl, &ovsrec_table_interface);
    ovsdb_idl_add_column(l->idl, &ovsrec_interface_col_name);
    ovsdb_idl_add_column(l->idl, &ovsrec_interface_col_type);
    ovsdb_idl_add_column(l->idl, &ovsrec_interface_col_external_ids);
    ovsdb_idl_add_column(l->idl, &ovsrec_interface_col_ofport);
}

static void close_idl(void *arg)
{
    struct local *l = arg;
    if (l->txn)
        drop_txn(l);
    ovsdb_idl_destroy(l->idl);
    remote_free(&l->link);
}

static void run(void *arg)
{
    struct local *l = arg;
    if (!l->idl)
        open_idl(l);
    ovsdb_idl_run(l->idl);
    pthread_mutex_lock(&l->lock);
    if (!*l->status.datapath)
        choose_datapath(l);
    if (l->txn)
        finish(l);
    bool connected = remote_run(&l->link, l->idl);
    l->changed |= connected != l->status.connected;
    l->status.connected = connected;
    bool news = ovsdb_idl_get_seqno(l->idl) != l->seqno;
    if (news) {
        l->seqno = ovsdb_idl_get_seqno(l->idl);
        l->dirty = true;
    }
    if (l->retry_at && time_msec() >= l->retry_at)
        l->retry_at = 0;
    if (l->dirty && connected && !l->txn && !l->retry_at)
        act(l);
    if (news) {
        settle_phy(l);
        l->look = true;
    }
    if (l->look && connected) {
        ports_look(l);
        l->look = false;
    }
    bool tell = l->changed;
    l->changed = false;
    pthread_mutex_unlock(&l->lock);
    if (tell)
        l->news(l->news_arg);
}

static void wait_for(void *arg)
{
    struct local *l = arg;
    if (!l->idl)
        return;
    ovsdb_idl_wait(l->idl);
    remote_wait(&l->link);
    if (l->txn)
        ovsdb_idl_txn_wait(l->txn);
    else if (l->retry_at)
        poll_timer_wait_until(l->retry_at);
}

/* ---- main thread ---- */

struct local *local_open(const struct local_conf *conf, void (*news)(void *arg), void *arg)
{
    struct local *l = xcalloc(1, sizeof *l);
    l->ovs_db = xstrdup(conf->ovs_db);
    l->node_id = xstrdup(conf->node_id);
    l->address = xstrdup(conf->address);
    l->uplink = xstrdup(conf->uplink);
    l->datapath = xstrdup(conf->datapath);
    l->ovn_remote = xstrdup("");
    l->news = news;
    l->news_arg = arg;
    pthread_mutex_init(&l->lock, NULL);
    dbthread_ref();
    dbthread_add(run, wait_for, l);
    return l;
}

void local_close(struct local *l)
{
    if (!l)
        return;
    dbthread_remove(l);
    dbthread_call(close_idl, l);
    dbthread_unref();
    ports_free(l);
    free(l->ovs_db);
    free(l->node_id);
    free(l->address);
    free(l->uplink);
    free(l->datapath);
    free(l->ovn_remote);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

void local_set_ovn_remote(struct local *l, const char *remote)
{
    pthread_mutex_lock(&l->lock);
    if (strcmp(l->ovn_remote, remote)) {
        free(l->ovn_remote);
        l->ovn_remote = xstrdup(remote);
        l->dirty = true;
    }
    pthread_mutex_unlock(&l->lock);
    dbthread_wake();
}
