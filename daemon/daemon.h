/* cohortd: what its parts share. One instance per process, main loop's thread only, unless a member says otherwise. */
#ifndef COHORT_DAEMON_DAEMON_H
#define COHORT_DAEMON_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"
#include "base/id.h"
#include "base/mailbox.h"
#include "cluster/cdb.h"

struct rpc_env;
struct rpc_server;
struct asan;
struct anet;
struct ha;
struct rest;
struct guests;
struct moves;
struct nodelinks;
struct smartwatch;
struct dbserver;

#define CONF_DISKS_MAX 16
#define CONF_LINKS_MAX 4

struct conf { /* /etc/cohort/cohortd.json; conf.c checks every field and names what is wrong */
    char *node_name, *address;      /* address: this node's cluster address */
    int n_storage_addresses;        /* links of their own for storage traffic; none: `address` carries it */
    char *storage_addresses[CONF_LINKS_MAX];
    char *state_dir, *run_dir;
    char *uplink;                   /* interface that carries the overlay; "" = leave the host's network alone */
    uint16_t control_port, storage_port, migrate_port, api_port;
    uint16_t nbd_port;              /* NBD over TLS at `address` for holders of a certificate of the cluster; 0 = none */
    int64_t journal_bytes, cache_bytes; /* per disk; 0 = by the devices (asan.h); cache: -1 = by the devices, 0 = none */
    int election_ms;                /* RAFT election timer at cluster creation */
    int n_disks;
    struct conf_disk { char *name, *fast, *capacity; uint64_t limit_bytes; } disks[CONF_DISKS_MAX];
};
MUST_CHECK int conf_load(const char *path, struct conf *ret_conf, struct err *e);
void conf_free(struct conf *c);

struct daemon {
    uv_loop_t *loop;
    struct mailbox mailbox;         /* into the main loop; mailbox_post is thread-safe */
    struct conf conf;

    /* Set once this node is a member of a cluster (state_dir/node.json exists). */
    bool member;
    char node_id[ID_LEN + 1], cluster_uuid[ID_LEN + 1];
    struct cdb *db;
    struct cdb_link *link;
    struct rpc_env *rpc;
    struct rpc_server *rpc_server;
    struct asan *asan;
    struct anet *anet;
    uint64_t living_voters;         /* digest of the voters that are not dead, as nets.c saw them last */
    struct ha *ha;
    struct guests *guests;
    struct moves *moves;
    struct nodelinks *nodelinks;
    struct smartwatch *smartwatch;
    char *local_db;                 /* "unix:…" of this node's database server; NULL if it runs none */

    struct rest *rest;
};

/* After `cluster init` or `join` wrote the node's identity: starts every part (database, RPC, aSAN, aNet, HA, guests).
 * Also called at start when node.json is there. */
MUST_CHECK int daemon_become_member(struct daemon *d, struct err *e);

/* ---- REST (rest.c and rest_*.c) ---- */
MUST_CHECK int rest_open(struct daemon *d, struct rest **ret_rest, struct err *e); /* unix socket at once */
MUST_CHECK int rest_listen_tls(struct rest *r, struct err *e);                     /* https once there is a certificate */
void rest_close(struct rest *r);

#endif
