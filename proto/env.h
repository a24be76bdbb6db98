/* The environment shared by all channels of one loop. Private to proto/. */
#ifndef COHORT_PROTO_ENV_H
#define COHORT_PROTO_ENV_H

#include "proto/chan.h"

#define ENV_KINDS 256

struct service {
    const ProtobufCMessageDescriptor *in;
    uint32_t max_data;
    rpc_handler *fn;
    void *arg;
};

/* Something to be done from the loop, before it polls next: completions that must not run inside the caller. */
struct deferred {
    void (*run)(struct deferred *d);
    TAILQ_ENTRY(deferred) entry;
};

struct rpc_env {
    uv_loop_t *loop;
    SSL_CTX *ctx;
    char self[ID_LEN + 1];
    bool closing;
    int refs; /* the opener's, plus one per server, peer and channel: freed at 0 */
    /* Active while something is deferred or queued: runs and sends it before the loop polls. Started when needed, `prepare`
     * comes before those that are always there: what goes to peers leaves before what goes to local disks. */
    uv_prepare_t prepare;
    uv_idle_t idle;       /* keeps the loop from sleeping on what was queued after `prepare` ran */
    struct service service[ENV_KINDS];
    LIST_HEAD(, chan) chans;
    LIST_HEAD(, rpc_server) servers;
    LIST_HEAD(, rpc_peer) peers;
    TAILQ_HEAD(, chan) flush;
    TAILQ_HEAD(, deferred) deferred;
};

void env_unref(struct rpc_env *env);
void env_defer(struct rpc_env *env, struct deferred *d);
void env_wake(struct rpc_env *env); /* something is in one of the lists */
void server_close(struct rpc_server *s);

#endif
