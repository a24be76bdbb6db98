/* Life and input of an NBD connection. See conn.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"

LOG_MODULE("nbd");

#define OUT_MAX (1u << 20) /* unsent bytes of a handshake before we give the client up */

static const struct sm_conf states[] = {
    [NBD_FLAGS] = {"flags", SM_TO(NBD_OPTIONS) | SM_TO(NBD_CLOSED), true, false},
    [NBD_OPTIONS] = {"options", SM_TO(NBD_LOOKUP) | SM_TO(NBD_CLOSED), false, false},
    [NBD_LOOKUP] = {"lookup", SM_TO(NBD_OPTIONS) | SM_TO(NBD_TRANSMISSION) | SM_TO(NBD_CLOSED), false, false},
    [NBD_TRANSMISSION] = {"transmission", SM_TO(NBD_ENDING) | SM_TO(NBD_CLOSED), false, false},
    [NBD_ENDING] = {"ending", SM_TO(NBD_CLOSED), false, false},
    [NBD_CLOSED] = {"closed", 0, false, true},
};

static void on_alloc(uv_handle_t *h, size_t hint, uv_buf_t *b)
{
    struct nbd_conn *c = h->data;
    if (c->ssl) {
        *b = uv_buf_init((char *)c->cipher, NBD_RBUF_BYTES);
    } else if (c->filling) { /* payload goes straight to where the volume takes it from */
        *b = uv_buf_init((char *)c->filling->data->data + c->filled, c->filling->length - c->filled);
    } else {
        memmove(c->rbuf, c->rbuf + c->rpos, c->rlen);
        c->rpos = 0;
        *b = uv_buf_init((char *)c->rbuf + c->rlen, (unsigned)(sizeof c->rbuf - c->rlen));
    }
}

static void on_read(uv_stream_t *h, ssize_t n, const uv_buf_t *b)
{
    struct nbd_conn *c = h->data;
    if (n == 0)
        return;
    if (n < 0) {
        nbd_conn_close(c);
        return;
    }
    if (c->ssl) {
        if (!nbd_tls_input(c, (size_t)n)) {
            nbd_conn_close(c);
            return;
        }
    } else if (c->filling) {
        nbd_filled(c, (size_t)n);
    } else {
        c->rlen += (size_t)n;
    }
    nbd_conn_process(c);
}

/* May more input be taken? Not while waiting for a lookup, at our limits, or with a full buffer. */
static bool wants_input(const struct nbd_conn *c)
{
    return c->sm.state != NBD_CLOSED &&
           (c->filling || (c->rlen < sizeof c->rbuf && c->sm.state != NBD_LOOKUP && c->sm.state != NBD_ENDING &&
                           c->reqs < NBD_REQS_MAX && c->held < NBD_BYTES_MAX));
}

/* Moves clear text from TLS to where on_read() puts it without; false when there is none. */
static bool fill_from_tls(struct nbd_conn *c)
{
    int n;
    if (!c->ssl || !wants_input(c))
        return false;
    if (c->filling) {
        n = nbd_tls_read(c, c->filling->data->data + c->filled, c->filling->length - c->filled);
    } else {
        memmove(c->rbuf, c->rbuf + c->rpos, c->rlen);
        c->rpos = 0;
        n = nbd_tls_read(c, c->rbuf + c->rlen, sizeof c->rbuf - c->rlen);
    }
    if (n > 0 && c->filling)
        nbd_filled(c, (size_t)n);
    else if (n > 0)
        c->rlen += (size_t)n;
    else if (n < 0)
        nbd_conn_close(c);
    return n > 0;
}

void nbd_conn_consume(struct nbd_conn *c, size_t bytes)
{
    assert(bytes <= c->rlen);
    c->rlen -= bytes;
    c->rpos += bytes;
}

/* One step; false when there is nothing to do with the input we have, or may not be. */
static bool step(struct nbd_conn *c)
{
    if (c->skip) {
        size_t n = c->rlen < c->skip ? c->rlen : (size_t)c->skip;
        c->skip -= n;
        nbd_conn_consume(c, n);
        return n > 0;
    }
    switch (c->sm.state) {
    case NBD_FLAGS:
        return nbd_take_flags(c);
    case NBD_OPTIONS:
        return nbd_take_option(c);
    case NBD_TRANSMISSION:
        return !c->filling && nbd_take_request(c);
    default:
        return false;
    }
}

void nbd_conn_process(struct nbd_conn *c)
{
    if (c->processing) /* an answer that came inside the step above us */
        return;
    c->processing = true;
    do {
        while (step(c)) {
        }
    } while (fill_from_tls(c));
    c->processing = false;
    if (c->sm.state == NBD_CLOSED) {
        nbd_conn_check_freed(c);
        return;
    }
    bool want = wants_input(c);
    if (want != c->reading) {
        c->reading = want;
        if (want)
            uv_read_start(&c->h.stream, on_alloc, on_read);
        else
            uv_read_stop(&c->h.stream);
    }
    if (c->sm.state == NBD_ENDING && !c->reqs)
        nbd_conn_close(c);
}

struct sent {
    uv_write_t w;
    char data[];
};

static void on_sent(uv_write_t *w, int status)
{
    free(w->data);
}

static void send_raw(struct nbd_conn *c, const void *data, size_t len)
{
struct sent *s = xmalloc(sizeof *s + len);
    memcpy(s->data, data, len);
    s->w.data = s;
    uv_buf_t b = uv_buf_init(s->data, (unsigned)len);
    if (uv_write(&s->w, &c->h.stream, &b, 1, on_sent)) {
        free(s);
        nbd_conn_close(c);
    } else if (uv_stream_get_write_queue_size(&c->h.stream) > OUT_MAX) {
        nbd_conn_close(c);
    }
}

void nbd_conn_flush_tls(struct nbd_conn *c)
{
    size_t len;
    nbd_push_answers(c); /* they were encrypted before */
    char *out = nbd_tls_output(c, &len);
    if (out && c->sm.state != NBD_CLOSED)
        send_raw(c, out, len);
    free(out);
}

void nbd_conn_send(struct nbd_conn *c, const void *data, size_t len)
{
    if (c->sm.state == NBD_CLOSED)
        return;
    if (!c->ssl)
        send_raw(c, data, len);
    else if (nbd_tls_encrypt(c, data, len))
        nbd_conn_flush_tls(c);
    else
        nbd_conn_close(c);
}

/* --- life --- */

static void on_timeout(uv_timer_t *t)
{
    nbd_conn_close(t->data);
}

static struct nbd_conn *conn_new(struct nbd_server *srv)
{
    struct nbd_conn *c = xcalloc(1, sizeof *c);
    c->srv = srv;
    sm_init(&c->sm, states, NBD_CLOSED + 1, NBD_FLAGS, "nbd connection");
    SLIST_INIT(&c->pool[0]);
    SLIST_INIT(&c->pool[1]);
    STAILQ_INIT(&c->out);
    LIST_INSERT_HEAD(&srv->conn, c, entry);
    srv->conns++;
    uv_timer_init(srv->loop, &c->timer);
    c->timer.data = c;
    c->handles = 1;
    return c;
}

static void conn_start(struct nbd_conn *c)
{
    c->h.stream.data = c;
    c->handles++;
    uv_timer_start(&c->timer, on_timeout, NBD_HANDSHAKE_MS, 0);
    nbd_greet(c);
    if (c->sm.state != NBD_CLOSED)
        nbd_conn_process(c);
}

int nbd_conn_accept(struct nbd_server *srv, uv_stream_t *listener, bool tcp)
{
    struct nbd_conn *c = conn_new(srv);
    c->tcp = tcp;
    if (tcp)
        uv_tcp_init(srv->loop, &c->h.tcp);
    else
        uv_pipe_init(srv->loop, &c->h.pipe, 0);
    int rc = uv_accept(listener, &c->h.stream);
    if (!rc && tcp)
        (void)uv_tcp_nodelay(&c->h.tcp, 1);
    if (!rc && srv->conns > srv->conns_max)
        rc = UV_EMFILE;
    conn_start(c);
    if (rc)
        nbd_conn_close(c);
    return rc ? E_DISCONN : E_OK;
}

void nbd_conn_open_fd(struct nbd_server *srv, int fd)
{
    struct nbd_conn *c = conn_new(srv);
    uv_pipe_init(srv->loop, &c->h.pipe, 0);
    int rc = uv_pipe_open(&c->h.pipe, fd);
    if (rc)
        close(fd);
    conn_start(c);
    if (rc)
        nbd_conn_close(c);
}

static void on_handle_closed(uv_handle_t *h)
{
    struct nbd_conn *c = h->data;
    c->handles--;
    nbd_conn_check_freed(c);
}

void nbd_conn_close(struct nbd_conn *c)
{
    if (c->sm.state == NBD_CLOSED)
        return;
    log_dbg("client leaves in state %s", sm_name(&c->sm));
    sm_move(&c->sm, NBD_CLOSED);
    if (c->filling) { /* its payload will not come */
        struct nbd_req *r = c->filling;
        c->filling = NULL;
        c->reqs--;
        iobuf_unref(r->data);
        free(r);
    }
    nbd_drop_answers(c);
    if (c->lookup)
        c->lookup->c = NULL; /* who answers it, releases */
    c->lookup = NULL;
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    uv_close((uv_handle_t *)&c->h.stream, on_handle_closed);
}

void nbd_conn_check_freed(struct nbd_conn *c)
{
    if (c->handles || c->reqs || c->processing)
        return;
    struct nbd_server *srv = c->srv;
    if (c->vol)
        srv->exports.release(srv->exports.arg, c->vol);
    nbd_free_pool(c);
    nbd_tls_free(c);
    free(c->meta_export);
    LIST_REMOVE(c, entry);
    srv->conns--;
    free(c);
    nbd_server_check_closed(srv);
}
