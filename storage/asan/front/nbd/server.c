/* Listening sockets of the NBD server. See nbd.h. */
#include <assert.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"

LOG_MODULE("nbd");

#define CONNS_DEFAULT 64u

static void on_listener_closed(uv_handle_t *h)
{
    struct nbd_listener *l = h->data;
    struct nbd_server *srv = l->srv;
    free(l);
    srv->handles--;
    nbd_server_check_closed(srv);
}

void nbd_server_check_closed(struct nbd_server *srv)
{
    if (!srv->closing || srv->conns || srv->lookups || srv->handles)
        return;
    void (*closed)(void *) = srv->closed;
    void *arg = srv->closed_arg;
    free(srv->unix_path);
    nbd_tls_close(srv->tls);
    free(srv);
    if (closed)
        closed(arg);
}

static void on_unix(uv_stream_t *s, int status)
{
    struct nbd_listener *l = s->data;
    if (!status && nbd_conn_accept(l->srv, s, false))
        log_warn("connection refused: %u are open", l->srv->conns_max);
}

static void on_tcp(uv_stream_t *s, int status)
{
    struct nbd_listener *l = s->data;
    if (!status && nbd_conn_accept(l->srv, s, true))
        log_warn("connection refused: %u are open", l->srv->conns_max);
}

static struct nbd_listener *listener_new(struct nbd_server *srv)
{
    struct nbd_listener *l = xcalloc(1, sizeof *l);
    l->srv = srv;
    srv->handles++;
    return l;
}

static int listen_unix(struct nbd_server *srv, const char *path, struct err *e)
{
    int fd = -1, rc = sock_listen(path, 0600, &fd, &srv->unix_file, e);
    if (rc)
        return rc;
    srv->unix_path = xstrdup(path);
    struct nbd_listener *l = srv->unix_listener = listener_new(srv);
    uv_pipe_init(srv->loop, &l->h.pipe, 0);
    l->h.stream.data = l;
    if ((rc = uv_pipe_open(&l->h.pipe, fd))) {
        close(fd);
        return err_sys(e, -rc, "NBD on %s", path);
    }
    rc = uv_listen(&l->h.stream, 64, on_unix);
    return rc ? err_sys(e, -rc, "NBD on %s", path) : E_OK;
}

static int listen_tcp(struct nbd_server *srv, const char *addr, uint16_t port, struct err *e)
{
    struct sockaddr_storage sa;
    if (uv_ip4_addr(addr, port, (struct sockaddr_in *)&sa) && uv_ip6_addr(addr, port, (struct sockaddr_in6 *)&sa))
        return err_set(e, E_INVAL, "NBD address %s is not a numeric IP address", addr);
    struct nbd_listener *l = srv->tcp_listener = listener_new(srv);
    uv_tcp_init(srv->loop, &l->h.tcp);
    l->h.stream.data = l;
    int rc = uv_tcp_bind(&l->h.tcp, (struct sockaddr *)&sa, 0);
    if (!rc)
        rc = uv_listen(&l->h.stream, 64, on_tcp);
    return rc ? err_sys(e, -rc, "NBD on %s port %u", addr, port) : E_OK;
}

/* ---- answers ---- */

static void on_prepare(uv_prepare_t *h)
{
    struct nbd_server *srv = h->data;
    struct nbd_conn *c;
    uv_idle_stop(&srv->idle);
    uv_prepare_stop(&srv->prepare);
    while ((c = TAILQ_FIRST(&srv->flush))) {
        TAILQ_REMOVE(&srv->flush, c, flush);
        c->in_flush = false;
        nbd_send_answers(c);
    }
}

static void on_idle(uv_idle_t *h) { (void)h; }

void nbd_server_flush(struct nbd_conn *c)
{
    struct nbd_server *srv = c->srv;
    if (c->in_flush)
        return;
    c->in_flush = true;
    TAILQ_INSERT_TAIL(&srv->flush, c, flush);
    if (srv->closing)
        return; /* every connection is closed, so there is nothing to send */
    uv_idle_start(&srv->idle, on_idle);
    uv_prepare_start(&srv->prepare, on_prepare);
}

static void on_handle_closed(uv_handle_t *h)
{
    struct nbd_server *srv = h->data;
    srv->handles--;
    nbd_server_check_closed(srv);
}

struct nbd_server *nbd_server_new(uv_loop_t *loop, const struct nbd_exports *exports)
{
    struct nbd_server *srv = xcalloc(1, sizeof *srv);
    srv->loop = loop;
    srv->exports = *exports;
    srv->conns_max = CONNS_DEFAULT;
    LIST_INIT(&srv->conn);
    TAILQ_INIT(&srv->flush);
    uv_prepare_init(loop, &srv->prepare);
    uv_idle_init(loop, &srv->idle);
    srv->prepare.data = srv->idle.data = srv;
    srv->handles = 2;
    return srv;
}

void nbd_server_adopt(struct nbd_server *srv, int fd)
{
    nbd_conn_open_fd(srv, fd);
}

int nbd_server_open(struct uv_loop_s *loop, const struct nbd_conf *conf, const struct nbd_exports *exports,
                    struct nbd_server **ret_srv, struct err *e)
{
    struct nbd_server *srv = nbd_server_new(loop, exports);
    if (conf->conns_max)
        srv->conns_max = conf->conns_max;
    int rc = conf->tls_cert ? nbd_tls_open(conf, &srv->tls, e) : E_OK;
    if (!rc && conf->unix_path)
        rc = listen_unix(srv, conf->unix_path, e);
    if (!rc && conf->tcp_addr)
        rc = listen_tcp(srv, conf->tcp_addr, conf->tcp_port, e);
    if (rc) {
        nbd_server_close(srv, NULL, NULL);
        return rc;
    }
    *ret_srv = srv;
    return E_OK;
}

uint16_t nbd_server_port(const struct nbd_server *srv)
{
    struct sockaddr_storage sa;
    int len = sizeof sa;
    if (!srv->tcp_listener || uv_tcp_getsockname(&srv->tcp_listener->h.tcp, (struct sockaddr *)&sa, &len))
        return 0;
    /* The port sits at the same place in both families. */
    return ntohs(((struct sockaddr_in *)&sa)->sin_port);
}

void nbd_server_drop(struct nbd_server *srv, const struct vol *v)
{
    struct nbd_conn *c;
    LIST_FOREACH (c, &srv->conn, entry)
        if (c->vol == v)
            nbd_conn_close(c);
}

bool nbd_server_uses(const struct nbd_server *srv, const struct vol *v)
{
    const struct nbd_conn *c;
    LIST_FOREACH (c, &srv->conn, entry)
        if (c->vol == v && c->sm.state != NBD_CLOSED)
            return true;
    return false;
}

void nbd_server_recheck(struct nbd_server *srv)
{
    struct nbd_conn *c;
    LIST_FOREACH (c, &srv->conn, entry) {
        if (!c->vol || !nbd_client(c) || c->sm.state == NBD_CLOSED)
            continue;
        enum nbd_access now = srv->exports.access(srv->exports.arg, c->client, c->vol);
        if (now == NBD_READ_WRITE || (now == NBD_READ_ONLY && c->read_only))
            continue;
        log_info("client %.16s… is cut off %s: it may no longer %s it", c->client, c->vol->name, now ? "write" : "use");
        nbd_conn_close(c);
    }
}

void nbd_server_close(struct nbd_server *srv, void (*done)(void *arg), void *arg)
{
    struct nbd_conn *c;
    assert(!srv->closing);
    srv->closing = true;
    srv->closed = done;
    srv->closed_arg = arg;
    if (srv->unix_path)
        sock_unlink(srv->unix_path, &srv->unix_file);
    if (srv->unix_listener)
        uv_close((uv_handle_t *)&srv->unix_listener->h, on_listener_closed);
    if (srv->tcp_listener)
        uv_close((uv_handle_t *)&srv->tcp_listener->h, on_listener_closed);
    LIST_FOREACH (c, &srv->conn, entry)
        nbd_conn_close(c);
    uv_close((uv_handle_t *)&srv->prepare, on_handle_closed);
    uv_close((uv_handle_t *)&srv->idle, on_handle_closed);
    nbd_server_check_closed(srv);
}
