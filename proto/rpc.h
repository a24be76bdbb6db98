/* Cluster RPC: protobuf-c messages plus raw data over mutually authenticated TLS 1.3 on libuv (architecture, section 5).
 *
 * Frame: 32-byte little-endian header {magic, version, flags, kind, request id, pb_len, data_len, crc32c of the 28 bytes
 * before}, pb_len bytes of protobuf (at most 1 MiB), data_len raw bytes that are received straight into an aligned iobuf.
 * Every length is checked against the limits registered for its kind before anything is allocated.
 *
 * Threading: an rpc_env and all that hangs on it belong to one libuv loop; nothing here may be called from elsewhere.
 * Ordering: frames of one connection arrive in the order they were sent; replies may come in any order.
 * Back-pressure: a connection with more than `max_queued_bytes` unsent is closed (a slow peer is a failed peer).
 * Failure: when a connection ends, every call on it ends with E_DISCONN (outcome unknown) on the loop, never inside the
 * function that started it. rpc_peer reconnects by itself (100 ms, doubling to 1 s).
 */
#ifndef COHORT_PROTO_RPC_H
#define COHORT_PROTO_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"
#include "proto/kinds.h"

#define RPC_PB_MAX (1u << 20)
#define RPC_DATA_MAX (4u << 20)

struct rpc_env;    /* loop + TLS identity */
struct rpc_server; /* a listening socket */
struct rpc_conn;   /* one accepted connection */
struct rpc_peer;   /* a lasting, self-reconnecting connection to one node */

struct rpc_tls_files {
    const char *ca_pem, *cert_pem, *key_pem; /* paths */
};

/* Loads the identity. The certificate's SAN must hold URI "cohort:node:<node id>"; peers are known by theirs. */
MUST_CHECK int rpc_env_open(uv_loop_t *loop, const struct rpc_tls_files *files, struct rpc_env **ret_env, struct err *e);
void rpc_env_close(struct rpc_env *env); /* closes what hangs on it; memory goes once the loop has run */
const char *rpc_env_self(const struct rpc_env *env); /* our node id, from the certificate */

/* ---- serving ---- */

struct rpc_req {
    struct rpc_conn *conn;
    enum rpc_kind kind;
    uint64_t id;
    const char *peer;              /* the authenticated node id of the sender */
    const ProtobufCMessage *msg;   /* of the registered type; valid until the request is answered */
    struct iobuf *data;            /* NULL if no data; the request's reference: iobuf_ref() it to keep it longer */
    size_t data_len;
    void *priv;                    /* for the handler */
};

/* Called once per request; must lead to exactly one rpc_reply*(), now or later. If the connection ends first the request
 * stays valid until answered; the answer is then dropped. */
typedef void rpc_handler(struct rpc_req *req, void *arg);

/* A request of `kind` must carry a message of `in` and at most `max_data` bytes. Register before listening. */
void rpc_handle(struct rpc_env *env, enum rpc_kind kind, const ProtobufCMessageDescriptor *in, uint32_t max_data,
                rpc_handler *fn, void *arg);
/* Listens on `address` ("192.0.2.1" or "::"), `port` (0 = any; rpc_server_port tells). */
MUST_CHECK int rpc_listen(struct rpc_env *env, const char *address, uint16_t port, struct rpc_server **ret_server, struct err *e);
/* The same for an IPv4 or IPv6 address that an interface may get only later. */
MUST_CHECK int rpc_listen_early(struct rpc_env *env, const char *address, uint16_t port, struct rpc_server **ret_server,
                                struct err *e);
uint16_t rpc_server_port(const struct rpc_server *s);

/* Success: `out` may be NULL (empty). `data` NULL or an iobuf of which `data_len` bytes from `data_off` are sent; it is
 * referenced, not copied, and must not change until sent. The request is gone afterwards. */
void rpc_reply(struct rpc_req *req, const ProtobufCMessage *out, struct iobuf *data, size_t data_off, size_t data_len);
/* Failure: one of our codes, a message for people, and a number whose meaning the kind defines (e.g. the newer epoch). */
void rpc_reply_err(struct rpc_req *req, int code, uint64_t detail, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* ---- calling ---- */

/* `up` is called with true after each successful TLS handshake with the right node, with false when that ends. */
MUST_CHECK int rpc_peer_open(struct rpc_env *env, const char *node_id, const char *address, uint16_t port,
                             void (*up)(struct rpc_peer *p, bool connected, void *arg), void *arg,
                             struct rpc_peer **ret_peer, struct err *e);
void rpc_peer_close(struct rpc_peer *p); /* open calls end with E_CANCELED (still asynchronously) */
bool rpc_peer_connected(const struct rpc_peer *p);
/* uv_now() when bytes last came from it; 0 = not since the connection began. */
uint64_t rpc_peer_heard_ms(const struct rpc_peer *p);
const char *rpc_peer_node(const struct rpc_peer *p);
/* Drops the connection (it is re-established): what is in flight ends with E_DISCONN. */
void rpc_peer_reset(struct rpc_peer *p);

struct rpc_call;
/* status 0: `msg` is a message of the call's `out` type (valid during the callback only) and `data` the reply's raw data
 * (iobuf_ref() to keep). Otherwise one of our codes; `detail` and `text` as the peer gave them (text "" if it did not). */
typedef void rpc_done(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t data_len);

struct rpc_call { /* caller-owned, embedded in the caller's request; must live until `done` ran */
    /* set by the caller */
    const ProtobufCMessageDescriptor *out; /* reply type; NULL = reply message ignored */
    uint32_t max_data;                     /* most reply data accepted */
    uint32_t timeout_ms;                   /* 0 = none; on time-out E_TIMEOUT, a late answer is dropped */
    rpc_done *done;
    void *arg;
    /* filled on failure */
    uint64_t detail;
    char text[192];
    /* private */
    uint64_t id, deadline_ns;
    struct rpc_peer *peer;
    TAILQ_ENTRY(rpc_call) entry;
};

/* Sends a request. Not connected: E_DISCONN through `done` (asynchronously), so there is one error path. */
void rpc_call(struct rpc_peer *p, struct rpc_call *c, enum rpc_kind kind, const ProtobufCMessage *msg,
              struct iobuf *data, size_t data_off, size_t data_len);

/* ---- bounded decoding (also for the fuzz target) ---- */

/* Unpacks with an arena of at most 64 * len + 64 KiB bytes; NULL if malformed or over the bound. */
ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t len);
void rpc_unpack_free(ProtobufCMessage *m);

#endif
