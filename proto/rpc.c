/* The RPC environment and the serving side. The calling side is peer.c, the wire below both chan.c. */
#include "proto/rpc.h"
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/obj.h"
#include "proto/env.h"
#include "proto/rpc_error.pb-c.h"
#include "proto/tls.h"

LOG_MODULE("rpc");

/* Requests of one connection that are being worked on; beyond, reading from it pauses. */
#define CONN_REQS_MAX 1024
#define CONN_BYTES_MAX (64u << 20)

struct rpc_server {
    struct rpc_env *env;
    uv_tcp_t tcp;
    LIST_ENTRY(rpc_server) entry;
};

struct rpc_conn {
    struct chan *chan;
    char node[ID_LEN + 1];
    unsigned refs; /* the channel's and one per open request */
    bool open;
    unsigned reqs;
    size_t bytes;
};

/* ---- environment ---- */

void env_unref(struct rpc_env *env)
{
    if (--env->refs)
        return;
    SSL_CTX_free(env->ctx);
    free(env);
}

/* Its being active keeps the loop from sleeping. */
static void stay_awake(uv_idle_t *i)
{
    (void)i;
}

static void before_poll(uv_prepare_t *p);

void env_wake(struct rpc_env *env)
{
    if (env->closing)
        return;
    uv_idle_start(&env->idle, stay_awake);
    uv_prepare_start(&env->prepare, before_poll);
}

void env_defer(struct rpc_env *env, struct deferred *d)
{
    TAILQ_INSERT_TAIL(&env->deferred, d, entry);
    env_wake(env);
}

static void before_poll(uv_prepare_t *p)
{
    struct rpc_env *env = p->data;
    TAILQ_HEAD(, deferred) now = TAILQ_HEAD_INITIALIZER(now);
    struct deferred *d;
    struct chan *c;
    /* What these bring up anew waits for the next round, so that a caller who retries at once cannot hold the loop. */
    TAILQ_CONCAT(&now, &env->deferred, entry);
    while ((d = TAILQ_FIRST(&now))) {
        TAILQ_REMOVE(&now, d, entry);
        d->run(d);
    }
    while ((c = TAILQ_FIRST(&env->flush)))
        chan_flush(c);
    if (TAILQ_EMPTY(&env->deferred) && !env->closing) {
        uv_idle_stop(&env->idle);
        uv_prepare_stop(&env->prepare);
    }
}

int rpc_env_open(uv_loop_t *loop, const struct rpc_tls_files *files, struct rpc_env **ret_env, struct err *e)
{
    struct rpc_env *env = xcalloc(1, sizeof *env);
    env->loop = loop;
    env->refs = 1;
    TAILQ_INIT(&env->flush);
    TAILQ_INIT(&env->deferred);
    int rc = tls_context(files, &env->ctx, env->self, e);
    if (rc) {
        free(env);
        return rc;
    }
    uv_prepare_init(loop, &env->prepare);
    env->prepare.data = env;
    uv_unref((uv_handle_t *)&env->prepare);
    uv_idle_init(loop, &env->idle);
    env->idle.data = env;
    env->refs++; /* two handles hold it */
    *ret_env = env;
    return 0;
}

static void handle_closed(uv_handle_t *h)
{
    env_unref(h->data);
}

void rpc_env_close(struct rpc_env *env)
{
    if (!env || env->closing)
        return;
    env->closing = true;
    struct rpc_peer *p;
    while ((p = LIST_FIRST(&env->peers)))
        rpc_peer_close(p);
    struct rpc_server *s;
    while ((s = LIST_FIRST(&env->servers)))
        server_close(s);
    for (struct chan *c = LIST_FIRST(&env->chans), *next; c; c = next) {
        next = LIST_NEXT(c, entry);
        chan_fail(c, "closing");
    }
    while (!TAILQ_EMPTY(&env->deferred)) /* ends the calls of the peers just closed; no new ones can be queued */
        before_poll(&env->prepare);
    uv_close((uv_handle_t *)&env->prepare, handle_closed);
    uv_close((uv_handle_t *)&env->idle, handle_closed);
}

const char *rpc_env_self(const struct rpc_env *env)
{
    return env->self;
}

void rpc_handle(struct rpc_env *env, enum rpc_kind kind, const ProtobufCMessageDescriptor *in, uint32_t max_data,
                rpc_handler *fn, void *arg)
{
    assert((unsigned)kind < ENV_KINDS && max_data <= RPC_DATA_MAX);
    env->service[kind] = (struct service){in, max_data, fn, arg};
}

/* ---- connections ---- */

static void conn_unref(struct rpc_conn *c)
{
    if (--c->refs == 0)
        free(c);
}

static bool conn_ready(struct chan *ch, const char *node)
{
    struct rpc_conn *c = ch->owner;
    memcpy(c->node, node, sizeof c->node);
    log_dbg("connection from node %s (%s)", node, ch->address);
    return true;
}

static uint32_t conn_max_data(struct chan *ch, const struct frame *f)
{
    const struct service *s = f->kind < ENV_KINDS ? &ch->env->service[f->kind] : NULL;
    return s && s->fn ? s->max_data : RPC_DATA_MAX;
}

static void conn_throttle(struct rpc_conn *c)
{
    bool full = c->reqs >= CONN_REQS_MAX || c->bytes >= CONN_BYTES_MAX;
    if (c->open)
        chan_pause(c->chan, full);
}

static void conn_frame(struct chan *ch, const struct frame *f, const uint8_t *pb, struct iobuf *data)
{
    struct rpc_conn *c = ch->owner;
    const struct service *s = f->kind < ENV_KINDS ? &ch->env->service[f->kind] : NULL;
    if (f->flags) {
        iobuf_unref(data);
        chan_fail(ch, "protocol error: a reply where a request belongs");
        return;
    }
    struct rpc_req *req = OBJ_NEW(struct rpc_req);
    *req = (struct rpc_req){.conn = c, .kind = f->kind, .id = f->id, .peer = c->node, .data = data, .data_len = f->data_len};
    c->refs++;
    c->reqs++;
    c->bytes += f->data_len;
    if (!s || !s->fn) {
        rpc_reply_err(req, E_VERSION, 0, "this node does not know requests of kind %u", f->kind);
        return;
    }
    ProtobufCMessage *m = rpc_unpack(s->in, pb, f->pb_len);
    req->msg = m;
    if (!m) {
        chan_fail(ch, "protocol error: malformed %s (%u bytes)", s->in->name, f->pb_len);
        rpc_reply_err(req, E_PROTO, 0, "malformed");
        return;
    }
    conn_throttle(c);
    s->fn(req, s->arg);
}

static void conn_closed(struct chan *ch)
{
    struct rpc_conn *c = ch->owner;
    /* A refused peer is worth a line; one that just went is the business of whoever watches it. */
    if (!ch->ready || strncmp(ch->why, "protocol", 8) == 0)
        log_warn("connection from %s ended: %s", ch->address, ch->why);
    else
        log_dbg("connection from node %s (%s) ended: %s", c->node, ch->address, ch->why);
    c->open = false;
    c->chan = NULL;
    conn_unref(c);
}

static const struct chan_handler conn_handler = {conn_ready, conn_max_data, conn_frame, conn_closed};

/* ---- server ---- */

static void on_connection(uv_stream_t *listener, int status)
{
    struct rpc_server *s = listener->data;
    if (status < 0) {
        log_warn("accept: %s", uv_strerror(status));
        return;
    }
    struct rpc_conn *c = xcalloc(1, sizeof *c);
    *c = (struct rpc_conn){.refs = 1, .open = true};
    c->chan = chan_new(s->env, &conn_handler, c);
    if (chan_accept(c->chan, listener))
        chan_fail(c->chan, "accept failed");
}

static int listen_on(struct rpc_env *env, const char *address, uint16_t port, bool early, struct rpc_server **ret_server, struct err *e)
{
    struct sockaddr_storage ss;
    if (uv_ip4_addr(address, port, (struct sockaddr_in *)&ss) && uv_ip6_addr(address, port, (struct sockaddr_in6 *)&ss))
        return err_set(e, E_INVAL, "'%s' is not an IP address", address);
    struct rpc_server *s = xcalloc(1, sizeof *s);
    s->env = env;
    env->refs++;
    LIST_INSERT_HEAD(&env->servers, s, entry);
    int rc = uv_tcp_init_ex(env->loop, &s->tcp, ss.ss_family), fd, on = 1;
    if (rc) {
        LIST_REMOVE(s, entry);
        env_unref(env);
        free(s);
        return err_set(e, err_from_errno(rc), "socket: %s", uv_strerror(rc));
    }
    s->tcp.data = s;
    if (early && (rc = uv_fileno((uv_handle_t *)&s->tcp, &fd)) == 0 && setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on))
        rc = -errno;
    if (rc == 0)
        rc = uv_tcp_bind(&s->tcp, (struct sockaddr *)&ss, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&s->tcp, 128, on_connection);
    if (rc) {
        server_close(s);
        return err_set(e, err_from_errno(rc), "listen on %s port %u: %s", address, port, uv_strerror(rc));
    }
    *ret_server = s;
    return 0;
}

int rpc_listen(struct rpc_env *env, const char *address, uint16_t port, struct rpc_server **ret_server, struct err *e)
{
    return listen_on(env, address, port, false, ret_server, e);
}

int rpc_listen_early(struct rpc_env *env, const char *address, uint16_t port, struct rpc_server **ret_server, struct err *e)
{
    return listen_on(env, address, port, true, ret_server, e);
}

static void server_closed(uv_handle_t *h)
{
    struct rpc_server *s = h->data;
    env_unref(s->env);
    free(s);
}

void server_close(struct rpc_server *s)
{
    LIST_REMOVE(s, entry);
    uv_close((uv_handle_t *)&s->tcp, server_closed);
}

uint16_t rpc_server_port(const struct rpc_server *s)
{
    struct sockaddr_storage ss;
    int len = sizeof ss;
    if (uv_tcp_getsockname(&s->tcp, (struct sockaddr *)&ss, &len))
        return 0;
    return ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port : ((struct sockaddr_in *)&ss)->sin_port);
}

/* ---- replies ---- */

static void req_end(struct rpc_req *req)
{
    struct rpc_conn *c = req->conn;
    c->reqs--;
    c->bytes -= req->data_len;
    conn_throttle(c);
    iobuf_unref(req->data);
    rpc_unpack_free((ProtobufCMessage *)req->msg);
    conn_unref(c);
    OBJ_FREE(req);
}

static void reply(struct rpc_req *req, uint8_t flags, const ProtobufCMessage *out, struct iobuf *data, size_t off, size_t len)
{
    if (req->conn->open)
        chan_send(req->conn->chan, (struct frame){FRAME_REPLY | flags, (uint16_t)req->kind, req->id, 0, (uint32_t)len}, out,
                  data, off);
    req_end(req);
}

void rpc_reply(struct rpc_req *req, const ProtobufCMessage *out, struct iobuf *data, size_t data_off, size_t data_len)
{
    reply(req, 0, out, data, data_off, data_len);
}

void rpc_reply_err(struct rpc_req *req, int code, uint64_t detail, const char *fmt, ...)
{
    char text[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    Cohort__Rpc__Error m = COHORT__RPC__ERROR__INIT;
    m.code = code;
    m.detail = detail;
    m.text = text;
    reply(req, FRAME_ERROR, &m.base, NULL, 0, 0);
}
