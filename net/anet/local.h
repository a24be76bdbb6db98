/* This node's Open vSwitch, through its own database: what ovn-controller reads there, the bridges, and guests' ports.
 *
 * Our bridges have external_ids:owner=cohort; our ports external_ids:cohort-port=<port id> on the Port row and
 * iface-id=<port id> on the Interface row (OVN's binding). Everything else in there is left as it is. A br-phy that
 * is there without our mark was prepared by the node's own set-up and is left alone.
 *
 * Runs in the database thread; functions are for the main thread and return at once.
 */
#ifndef COHORT_NET_ANET_LOCAL_H
#define COHORT_NET_ANET_LOCAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BR_INT "br-int"
#define BR_PHY "br-phy"

struct local;

struct local_conf { /* texts are copied */
    const char *ovs_db;   /* remote of conf.db */
    const char *node_id, *address, *uplink;
    const char *datapath; /* "netdev", "system", "" = find out */
};

struct local_port {
    char *id, *name;
    bool internal, up;
    bool reported;        /* the `up` that local_take_news() last told */
};

struct local_status {
    bool connected, ready; /* ready: bridges and external_ids are as they should be in the database */
    char datapath[8];      /* "" until known */
    char phy[16];          /* br-phy: "none" "prepared" "pending" "ok" "error" */
    char error[256];       /* last refusal of the database, "" since a success */
    char phy_error[256];
    uint64_t commits, failures;
    size_t n_ports;
    struct local_port *ports;
};

/* `news` is called in the database thread when there is something for local_take_news() or the status changed. */
struct local *local_open(const struct local_conf *conf, void (*news)(void *arg), void *arg);
void local_close(struct local *l);
void local_set_ovn_remote(struct local *l, const char *remote);
void local_plug(struct local *l, const char *id, const char *name, bool internal);
void local_unplug(struct local *l, const char *id);
bool local_port_is_up(struct local *l, const char *id);
/* Calls `fn` for every plugged port whose `up` differs from what was told last. */
void local_take_news(struct local *l, void (*fn)(void *arg, const char *id, bool up), void *arg);
void local_get_status(struct local *l, struct local_status *ret); /* local_status_free() it */
void local_status_free(struct local_status *s);

#endif
