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
    uv_prepare_t prepare; /* runs what is deferred, sends what is queued, before the loop polls */
    uv_idle_t idle;
    struct service service[ENV_KINDS];
    LIST_HEAD(, chan) chans;
    LIST_HEAD(, rpc_server) servers;
    LIST_HEAD(, rpc_peer) peers;
    TAILQ_HEAD(, chan) flush;
    TAILQ_HEAD(, deferred) deferred;
};

void env_unref(struct rpc_env *env);
void env_defer(struct rpc_env *env, struct deferred *d);
void server_close(struct rpc_server *s);

#endif
