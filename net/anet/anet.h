/* aNet: the guests' virtual network. Desired networks and ports go to OVN's northbound database (by the coordinator
 * only); on every node the local Open vSwitch is kept ready for OVN and guests' taps are plugged into it; ovn-northd and
 * ovn-controller are supervised.
 *
 * Level-triggered: each call states what should be; aNet compares with what is, acts, and goes on trying while a
 * database is away. No call waits. Calling with what is already so changes nothing.
 *
 * Threading: every function here is for the main loop's thread, callbacks come there too, except the pure helpers at
 * the end (any thread). The database work is done in cluster/dbthread.h's thread.
 * Ownership: all arguments are copied.
 *
 * Taps: the userspace datapath does not finish partial checksums, so a guest NIC's backend must be without offloads
 * (QEMU: csum=off,… on the device, no vnet_hdr). aNet neither makes nor deletes taps.
 */
#ifndef COHORT_NET_ANET_ANET_H
#define COHORT_NET_ANET_ANET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"

struct anet;

struct anet_conf {
    const char *node_id;      /* chassis name in OVN */
    const char *address;      /* IPv4 of this node on the underlay: Geneve's end point */
    const char *uplink;       /* userspace datapath only: interface to put below br-phy, whose addresses and routes move
                               * there; "" or NULL = the host's network is left alone (br-phy may already be there) */
    const char *run_dir;      /* pid files, control sockets, logs of what we supervise */
    const char *ovs_db;       /* local Open vSwitch, "unix:/run/openvswitch/db.sock"; NULL = that */
    const char *ovs_rundir;   /* where ovs-vswitchd has its br-int.mgmt; NULL = /run/openvswitch */
    const char *datapath;     /* "netdev", "system"; NULL or "" = system where the kernel has it */
    const char *ca_pem, *cert_pem, *key_pem; /* files, for ssl: remotes; NULL without */
    bool supervise;           /* start and watch ovn-controller (and ovn-northd on voters) */
};

struct anet_events {
    /* OVN has (un)installed the flows of a port plugged here: it carries traffic. May be NULL. */
    void (*port_up)(void *arg, const char *port_id, bool up);
    void *arg;
};

/* Starts the database side and adopts or starts what is supervised once anet_set_remotes() has said where the databases
 * are. E_INVAL for a conf that cannot be. */
MUST_CHECK int anet_open(uv_loop_t *loop, const struct anet_conf *conf, const struct anet_events *events,
                         struct anet **ret_anet, struct err *e);
/* Forgets everything here; flows, ports and supervised processes go on (a later anet_open adopts them). NULL is fine.
 * The loop must run afterwards until its handles are closed. */
void anet_close(struct anet *a);
/* Node leaves the cluster, or the lab ends: ovn-controller (which then withdraws its chassis) and ovn-northd are told
 * to end and are not restarted. */
void anet_stop_services(struct anet *a);

/* Where NB and SB are. `local`: "unix:/run/cohort/db.sock" on a voter, else NULL. `voters`: "ssl:a:6641,ssl:b:6641" of
 * all voters (may be NULL on a single node). May change at any time. */
void anet_set_remotes(struct anet *a, const char *local, const char *voters);

/* This node is the coordinator with this term (> 0) and writes NB, or it is not (0). The term is kept in NB and every
 * write requires it to be the highest seen, so that a deposed coordinator cannot undo its successor's work. */
void anet_set_writer(struct anet *a, int64_t term);

/* NB or SB got a new leader: ovn-northd is restarted (it would back off up to 8 s). aNet sees leadership moving to this
 * node by itself; for callers who know more. */
void anet_db_leader_changed(struct anet *a);

/* ---- desired state ---- */

struct anet_network {
    const char *id, *name;
    const char *cidr;            /* "198.18.1.0/24": network address, /8../29 */
    const char *gateway;         /* router option and DHCP server's address; "" or NULL = first host address */
    size_t n_dns;
    const char *const *dns;      /* IPv4 */
    int mtu;                     /* guest MTU in bytes; 0 = anet_guest_mtu(underlay_mtu) */
};

struct anet_port {
    const char *id, *network;
    const char *mac;             /* "02:00:00:00:00:01" */
    const char *ip;              /* within the network, neither its gateway nor its first or last address */
    const char *host;            /* node id; "" = nowhere (any node that plugs it gets it) */
    const char *migrate_to;      /* node id while a live migration runs, else "": both nodes are bound, and the second
                                  * stays silent until the guest's RARP is seen there */
};

struct anet_desired {
    size_t n_networks, n_ports, n_nodes;
    const struct anet_network *networks;
    const struct anet_port *ports;
    const char *const *nodes;    /* members' ids: chassis of others are removed; n_nodes 0 = leave chassis alone */
    int underlay_mtu;            /* bytes; 0 = 1500 */
};

/* Replaces the whole desired state. Only the writer acts on it. What does not pass anet_check_* is left out, together
 * with the ports of such a network; then E_INVAL with the first reason, all else applied. */
int anet_set_desired(struct anet *a, const struct anet_desired *d, struct err *e);

/* ---- this node's ports ---- */

/* Connects `tap` (exists, or will) to logical port `port_id`. Plugging the same port with another tap replaces it.
 * The answer is events.port_up. E_INVAL for an impossible interface name. */
MUST_CHECK int anet_plug(struct anet *a, const char *port_id, const char *tap, struct err *e);
/* As anet_plug, but Open vSwitch makes the interface `name`: the node's own way into a network (tests, forwarders). */
MUST_CHECK int anet_plug_internal(struct anet *a, const char *port_id, const char *name, struct err *e);
/* Removes whatever is plugged for `port_id` on this node. */
void anet_unplug(struct anet *a, const char *port_id);
/* Flows of `port_id` are installed on this node. */
bool anet_port_is_up(const struct anet *a, const char *port_id);

/* State of all parts for people and tests, as a JSON object; caller frees. */
char *anet_status_json(struct anet *a);

/* ---- pure helpers ---- */

#define ANET_GENEVE_OVERHEAD 58 /* outer IPv4 20 + UDP 8 + Geneve 8 + OVN option 8 + inner Ethernet 14 */
/* Guest MTU over an underlay of `underlay_mtu` bytes: 1442 at 1500. */
int anet_guest_mtu(int underlay_mtu);

/* E_INVAL naming the field and what is wrong; `others` (n, may include `net` itself by id) must not overlap. */
MUST_CHECK int anet_check_network(const struct anet_network *net, const struct anet_network *others, size_t n,
                                  struct err *e);
/* The port's own fields and its address within `net`. Uniqueness of mac and ip is the database's matter. */
MUST_CHECK int anet_check_port(const struct anet_network *net, const struct anet_port *port, struct err *e);
/* The network's gateway as text (its own or the first host address). `ret` holds 16 bytes. */
MUST_CHECK int anet_gateway(const struct anet_network *net, char ret[16], struct err *e);
/* Lowest free guest address of `net`, given those in use (texts; unparsable ones are ignored). E_NOSPC when full. */
MUST_CHECK int anet_pick_ip(const struct anet_network *net, const char *const *used, size_t n, char ret[16],
                            struct err *e);
/* "02:xx:…" from an id: locally administered, unicast, the same for the same id. `ret` holds 18 bytes. */
void anet_mac_of(const char *id, char ret[18]);

#endif
