/* A TLS channel of frames on a libuv TCP socket. OpenSSL works on a pipe (pipe.h); the socket never sees it.
 * Happy path in: on_read -> pipe -> SSL_read into head, pb, then straight into the frame's iobuf -> on->frame.
 * Happy path out: chan_send gathers small frames; the env's prepare hook makes a TLS record of them (SSL_write -> pipe) and
 * sends what is in the pipe in one write. */
#include "proto/chan.h"
#include <arpa/inet.h>
#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "proto/env.h"
#include "proto/tls.h"

LOG_MODULE("rpc");

/* A peer that has not acknowledged data for this long is gone (RFC 5482 TCP user timeout). */
#define TCP_GONE_MS 4000

#define SEND_AT (256u << 10)  /* what has gathered goes out before the loop's turn is over */

struct sending {
    uv_write_t req;
    struct chan *chan;
    uint8_t *block;
};

struct chan *chan_new(struct rpc_env *env, const struct chan_handler *on, void *owner)
{
    struct chan *c = xcalloc(1, sizeof *c);
    *c = (struct chan){.env = env, .on = on, .owner = owner, .refs = 1};
    c->ssl = SSL_new(env->ctx);
    if (!c->ssl)
        abort(); /* out of memory, as xmalloc */
    BIO *bio = pipe_bio(&c->pipe);
    SSL_set_bio(c->ssl, bio, bio);
    uv_tcp_init(env->loop, &c->tcp);
    uv_timer_init(env->loop, &c->timer);
    c->tcp.data = c->timer.data = c;
    c->handles = 2;
    env->refs++;
    LIST_INSERT_HEAD(&env->chans, c, entry);
    return c;
}

void chan_unref(struct chan *c)
{
    if (--c->refs)
        return;
    assert(c->failed && c->handles == 0);
    SSL_free(c->ssl); /* and its BIO */
    pipe_free(&c->pipe);
    iobuf_unref(c->data);
    free(c->pb);
    env_unref(c->env);
    free(c);
}

static void handle_closed(uv_handle_t *h)
{
    struct chan *c = h->data;
    if (--c->handles == 0) {
        LIST_REMOVE(c, entry);
        c->on->closed(c);
        chan_unref(c);
    }
}

void chan_fail(struct chan *c, const char *fmt, ...)
{
    if (c->failed)
        return;
    c->failed = true;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->why, sizeof c->why, fmt, ap);
    va_end(ap);
    if (c->flushing) {
        TAILQ_REMOVE(&c->env->flush, c, flush_entry);
        c->flushing = false;
    }
    uv_close((uv_handle_t *)&c->tcp, handle_closed);
    uv_close((uv_handle_t *)&c->timer, handle_closed);
}

static void want_flush(struct chan *c)
{
    if (!c->flushing && !c->failed) {
        c->flushing = true;
        TAILQ_INSERT_TAIL(&c->env->flush, c, flush_entry);
        env_wake(c->env);
    }
}

static void on_sent(uv_write_t *req, int status)
{
    struct sending *s = (struct sending *)req;
    if (status < 0 && status != UV_ECANCELED)
        chan_fail(s->chan, "send: %s", uv_strerror(status));
    chan_unref(s->chan);
    free(s->block);
    free(s);
}

/* Much of it goes out in pieces: what was just encrypted is then still in the processor's cache when the kernel copies it, and
 * one block of memory serves all of them. */
static void ssl_put(struct chan *c, const void *data, size_t len)
{
    const uint8_t *p = data;
    while (len && !c->failed) {
        size_t piece = len < SEND_AT ? len : SEND_AT;
        if (piece > CHAN_RECORD)
            pipe_room(&c->pipe, piece + piece / 256); /* TLS adds some 22 bytes to 16 KiB */
        int n = SSL_write(c->ssl, p, (int)piece);
        if (n <= 0) {
            struct err e;
            tls_err(&e, E_PROTO, "TLS write");
            chan_fail(c, "%.140s", e.msg);
            return;
        }
        p += n;
        len -= (size_t)n;
        if (len && c->pipe.out_len >= SEND_AT)
            chan_flush(c);
    }
}

/* What has gathered becomes one TLS record. */
static void seal(struct chan *c)
{
    size_t len = c->plain_len;
    c->plain_len = 0;
    ssl_put(c, c->plain, len);
}

void chan_flush(struct chan *c)
{
    if (c->flushing) {
        TAILQ_REMOVE(&c->env->flush, c, flush_entry);
        c->flushing = false;
    }
    seal(c);
    size_t len = c->pipe.out_len, sent = 0, queued = uv_stream_get_write_queue_size((uv_stream_t *)&c->tcp);
    if (c->failed || !len)
        return;
    if (!queued) {
        uv_buf_t b = uv_buf_init((char *)c->pipe.out, (unsigned)len);
        int n = uv_try_write((uv_stream_t *)&c->tcp, &b, 1);
        if (n < 0 && n != UV_EAGAIN) {
            chan_fail(c, "send: %s", uv_strerror(n));
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
    }
    if (sent == len) {
        pipe_sent(&c->pipe);
        return;
    }
    if (queued + len - sent > CHAN_QUEUE_MAX) {
        chan_fail(c, "the peer takes data too slowly: %u MiB are waiting", CHAN_QUEUE_MAX >> 20);
        return;
    }
    struct sending *s = xmalloc(sizeof *s);
    s->chan = c;
    s->block = pipe_take(&c->pipe, &len);
    c->refs++;
    uv_buf_t b = uv_buf_init((char *)s->block + sent, (unsigned)(len - sent));
    int rc = uv_write(&s->req, (uv_stream_t *)&c->tcp, &b, 1, on_sent);
    if (rc) {
        c->refs--;
        free(s->block);
        free(s);
        chan_fail(c, "send: %s", uv_strerror(rc));
    }
}

void chan_send(struct chan *c, struct frame f, const ProtobufCMessage *msg, struct iobuf *data, size_t data_off)
{
    if (c->failed || !c->ready)
        return;
    size_t pb_len = msg ? protobuf_c_message_get_packed_size(msg) : 0;
    assert(pb_len <= RPC_PB_MAX && f.data_len <= RPC_DATA_MAX);
    f.pb_len = (uint32_t)pb_len;
    size_t head_len = FRAME_SIZE + pb_len, whole = head_len + f.data_len;
    if (c->plain_len + whole > CHAN_RECORD)
        seal(c);
    uint8_t *head = head_len > CHAN_RECORD ? xmalloc(head_len) : c->plain + c->plain_len;
    frame_encode(&f, head);
    if (msg)
        protobuf_c_message_pack(msg, head + FRAME_SIZE);
    if (whole <= CHAN_RECORD) {
        if (f.data_len)
            memcpy(head + head_len, data->data + data_off, f.data_len);
        c->plain_len += whole;
    } else { /* nothing has gathered */
        ssl_put(c, head, head_len);
        if (f.data_len)
            ssl_put(c, data->data + data_off, f.data_len);
    }
    if (head_len > CHAN_RECORD)
        free(head);
    if (c->pipe.out_len >= SEND_AT)
        chan_flush(c);
    else
        want_flush(c);
}

/* Where the next received bytes belong, and how many. */
static uint8_t *want(struct chan *c, size_t *ret_len)
{
    switch (c->part) {
    case CHAN_HEAD:
        *ret_len = FRAME_SIZE - c->got;
        return c->head + c->got;
    case CHAN_PB:
        *ret_len = c->frame.pb_len - c->got;
        return c->pb + c->got;
    default:
        *ret_len = c->frame.data_len - c->got;
        return c->data->data + c->got;
    }
}

static bool begin_frame(struct chan *c)
{
    if (!frame_decode(c->head, &c->frame)) {
        chan_fail(c, "protocol error: not a frame of cohort RPC version %d", FRAME_VERSION);
        return false;
    }
    uint32_t max = c->on->max_data(c, &c->frame);
    if (c->frame.pb_len > RPC_PB_MAX || c->frame.data_len > max) {
        chan_fail(c, "protocol error: frame of kind %u with %u+%u bytes, %u+%u allowed", c->frame.kind, c->frame.pb_len,
                  c->frame.data_len, RPC_PB_MAX, max);
        return false;
    }
    if (c->frame.pb_len > c->pb_cap) {
        c->pb_cap = c->frame.pb_len;
        c->pb = xrealloc(c->pb, c->pb_cap);
    }
    if (c->frame.data_len)
        c->data = iobuf_new(c->frame.data_len);
    return true;
}

static void deliver(struct chan *c)
{
    struct frame f = c->frame;
    struct iobuf *data = c->data;
    c->data = NULL;
    c->part = CHAN_HEAD;
    c->got = 0;
    c->on->frame(c, &f, c->pb, data);
}

/* The current part is complete: go on to the next that is not empty, deliver the frame when it is whole. */
static void part_next(struct chan *c)
{
    switch (c->part) {
    case CHAN_HEAD:
        if (!begin_frame(c))
            return;
        c->got = 0;
        c->part = CHAN_PB;
        if (c->frame.pb_len)
            return;
        /* fall through */
    case CHAN_PB:
        c->got = 0;
        c->part = CHAN_DATA;
        if (c->frame.data_len)
            return;
        /* fall through */
    case CHAN_DATA:
        deliver(c);
    }
}

static void handshaken(struct chan *c)
{
    char node[ID_LEN + 1];
    c->ready = true;
    uv_timer_stop(&c->timer);
    if (!tls_peer_node(c->ssl, node))
        chan_fail(c, "the peer's certificate names no node of this cluster");
    else if (!c->on->ready(c, node) && !c->failed)
        chan_fail(c, "node %s is not the expected one", node);
}

/* TLS 1.3: a client is ready before the server has judged its certificate; a refusal arrives later as an alert. */
static bool handshake(struct chan *c)
{
    int rc = SSL_do_handshake(c->ssl);
    want_flush(c);
    if (rc == 1) {
        handshaken(c);
        return !c->failed;
    }
    int why = SSL_get_error(c->ssl, rc);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
        return false;
    struct err e;
    long verify = SSL_get_verify_result(c->ssl);
    tls_err(&e, E_AUTH, verify == X509_V_OK ? "TLS handshake" : X509_verify_cert_error_string(verify));
    chan_flush(c); /* let the alert out */
    chan_fail(c, "%.140s", e.msg);
    return false;
}

static void pump(struct chan *c)
{
    if (c->pumping || (!c->ready && !handshake(c)))
        return;
    c->pumping = true;
    while (!c->failed && !c->paused) {
        size_t len;
        uint8_t *to = want(c, &len);
        int n = SSL_read(c->ssl, to, (int)len);
        if (n <= 0) {
            int why = SSL_get_error(c->ssl, n);
            if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
                break;
            if (why == SSL_ERROR_ZERO_RETURN) {
                chan_fail(c, "closed by the peer");
                break;
            }
            struct err e;
            tls_err(&e, E_PROTO, "TLS");
            chan_fail(c, "%.140s", e.msg);
            break;
        }
        c->got += (size_t)n;
        if ((size_t)n == len)
            part_next(c);
    }
    c->pumping = false;
    if (c->pipe.out_len)
        want_flush(c);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
    static _Thread_local char space[256 << 10];
    *b = uv_buf_init(space, sizeof space);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct chan *c = s->data;
    if (n < 0) {
        chan_fail(c, "%s", n == UV_EOF ? "closed by the peer" : uv_strerror((int)n));
        return;
    }
    if (n == 0)
        return;
    c->heard_ms = uv_now(c->env->loop);
    pipe_feed(&c->pipe, b->base, (size_t)n);
    c->refs++;
    pump(c);
    pipe_keep(&c->pipe);
    chan_unref(c);
}

static void on_handshake_late(uv_timer_t *t)
{
    chan_fail(t->data, "no TLS handshake within %d ms", CHAN_HANDSHAKE_MS);
}

static int start(struct chan *c)
{
    int fd, gone = TCP_GONE_MS;
    uv_tcp_nodelay(&c->tcp, 1);
    uv_tcp_keepalive(&c->tcp, 1, 2);
    if (uv_fileno((uv_handle_t *)&c->tcp, &fd) == 0)
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &gone, sizeof gone);
    return uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
}

int chan_accept(struct chan *c, uv_stream_t *listener)
{
    SSL_set_accept_state(c->ssl);
    int rc = uv_accept(listener, (uv_stream_t *)&c->tcp);
    if (rc)
        return err_from_errno(rc);
    struct sockaddr_storage ss;
    int len = sizeof ss;
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&ss, &len) == 0)
        uv_ip_name((struct sockaddr *)&ss, c->address, sizeof c->address);
    uv_timer_start(&c->timer, on_handshake_late, CHAN_HANDSHAKE_MS, 0);
    return err_from_errno(start(c));
}

static void on_connect(uv_connect_t *req, int status)
{
    struct chan *c = req->data;
    if (!c->failed) {
        if (status || (status = start(c)))
            chan_fail(c, "connect: %s", uv_strerror(status));
        else
            pump(c);
    }
    chan_unref(c);
}

int chan_connect(struct chan *c, const struct sockaddr *addr)
{
    SSL_set_connect_state(c->ssl);
    uv_ip_name(addr, c->address, sizeof c->address);
    uv_timer_start(&c->timer, on_handshake_late, CHAN_HANDSHAKE_MS, 0);
    c->connecting.data = c;
    int rc = uv_tcp_connect(&c->connecting, &c->tcp, addr, on_connect);
    if (rc == 0)
        c->refs++;
    return err_from_errno(rc);
}

void chan_pause(struct chan *c, bool paused)
{
    if (c->failed || c->paused == paused)
        return;
    c->paused = paused;
    if (paused) {
        uv_read_stop((uv_stream_t *)&c->tcp);
    } else {
        uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
        c->refs++;
        pump(c); /* what had been read before the pause */
        pipe_keep(&c->pipe);
        chan_unref(c);
    }
}
