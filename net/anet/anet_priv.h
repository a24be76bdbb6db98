/* The main loop's side of aNet: shared by anet.c and status.c only. */
#ifndef COHORT_NET_ANET_ANET_PRIV_H
#define COHORT_NET_ANET_ANET_PRIV_H

#include "base/mailbox.h"
#include "net/anet/anet.h"
#include "net/anet/local.h"
#include "net/anet/nb.h"
#include "net/anet/northd.h"
#include "net/anet/sb.h"
#include "net/anet/supervise.h"

struct anet {
    uv_loop_t *loop;
    struct anet_events events;
    char *node_id, *run_dir, *ovs_db, *ca_pem, *cert_pem, *key_pem; /* the last three NULL without TLS */
    bool supervise, stopped;

    struct mailbox mailbox;  /* from the database thread */
    struct mail news;
    bool news_posted;        /* atomic: `news` is on its way */

    char *remote_local, *remote_voters; /* "" = none */
    uint64_t leader_gains;   /* of sb's, already acted on */
    size_t skipped;          /* objects of the last desired state that were left out, and why */
    char skipped_why[256];

    struct nb *nb;
    struct sb *sb;
    struct local *local;
    struct service *northd, *controller;
    struct northd *follower; /* of leaders, for northd */
};

#endif
