/* Shared by local.c and ports.c only. */
#ifndef COHORT_NET_ANET_LOCAL_PRIV_H
#define COHORT_NET_ANET_LOCAL_PRIV_H

#include <pthread.h>
#include "net/anet/local.h"
#include "net/anet/remote.h"

struct ovsdb_idl;
struct ovsdb_idl_txn;
struct ovsrec_bridge;
struct ovsrec_port;

struct local {
    char *ovs_db, *node_id, *address, *uplink, *datapath; /* fixed */
    void (*news)(void *);
    void *news_arg;

    pthread_mutex_t lock;       /* guards this block; run() holds it, it does not block */
    char *ovn_remote;
    struct local_port *want;    /* what is to be plugged */
    size_t n_want;
    char **gone;                /* ids to be unplugged; an entry goes when the database shows none such */
    size_t n_gone;
    struct local_status status; /* without the ports */
    bool dirty, look, changed;  /* compare again; see again which ports are up; call news */

    /* database thread only */
    struct ovsdb_idl *idl;
    struct remote link;
    struct ovsdb_idl_txn *txn;
    unsigned seqno;
    long long retry_at;
    bool pruned;                /* ports of taps that went while we did not run are gone */
};

const struct ovsrec_port *local_insert_port(struct local *l, const struct ovsrec_bridge *br, const char *name,
                                            const char *type);
/* Under the lock, in the database thread. ports_fill: into l->txn; true if anything changes. */
bool ports_fill(struct local *l, const struct ovsrec_bridge *br);
void ports_look(struct local *l); /* takes over which ports are up */
void ports_free(struct local *l);

#endif
