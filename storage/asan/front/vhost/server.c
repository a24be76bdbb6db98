/* The listening socket of a vhost-user disk, and the turn-of-the-loop work of its sessions. See session.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/log.h"
#include "storage/asan/front/vhost/session.h"

LOG_MODULE("vhost");

static void on_prepare(uv_prepare_t *h);

static void on_idle(uv_idle_t *h)
{
    /* Only there to keep the loop from blocking before on_prepare ran. */
}

void server_schedule(struct vhost_server *srv)
{
    if (srv->flushing)
        return;
    srv->flushing = true;
    uv_idle_start(&srv->idle, on_idle);
    uv_prepare_start(&srv->prepare, on_prepare);
}

static void on_handle_closed(uv_handle_t *h)
{
    struct vhost_server *srv = h->data;
    if (--srv->handles)
        return;
    void (*closed)(void *) = srv->closed;
    void *arg = srv->closed_arg;
    free(srv->path);
    free(srv->label);
    free(srv);
    if (closed)
        closed(arg);
}

static void reap(struct vhost_server *srv)
{
    struct vhost_session *s, *next;
    for (s = TAILQ_FIRST(&srv->dropped); s; s = next) {
        next = TAILQ_NEXT(s, entry);
        if (s->in_flight)
            continue;
        TAILQ_REMOVE(&srv->dropped, s, entry);
        session_free(s);
    }
    struct err e = {0};
    if (TAILQ_EMPTY(&srv->dropped) && srv->session && session_start_queues(srv->session, &e)) {
        srv->stat.drops++;
        log_warn("%s: front end dropped: %s", srv->label, e.msg);
        session_drop(srv->session);
    }
}

static void on_prepare(uv_prepare_t *h)
{
    struct vhost_server *srv = h->data;
    struct vhost_queue *q;
    size_t n = 0;
    srv->flushing = false;
    uv_idle_stop(&srv->idle);
    uv_prepare_stop(&srv->prepare);
    TAILQ_FOREACH (q, &srv->flush, flush)
        n++;
    /* One round: a queue that has more to do puts itself at the end, for the next turn. */
    while (n-- && (q = TAILQ_FIRST(&srv->flush))) {
        TAILQ_REMOVE(&srv->flush, q, flush);
        q->in_flush = false;
        queue_flush(q);
    }
    if (!TAILQ_EMPTY(&srv->dropped))
        reap(srv);
    if (srv->closing && TAILQ_EMPTY(&srv->dropped)) {
        uv_close((uv_handle_t *)&srv->prepare, on_handle_closed);
        uv_close((uv_handle_t *)&srv->idle, on_handle_closed);
    } else if (!TAILQ_EMPTY(&srv->flush)) {
        server_schedule(srv);
    }
}

void server_adopt(struct vhost_server *srv, int sock)
{
    assert(!srv->session);
    srv->session = session_new(srv, sock);
    if (srv->session)
        log_info("%s: front end connected", srv->label);
}

/* Has the present front end hung up already, only we did not get to see it yet? */
static bool is_gone(const struct vhost_session *s)
{
    char c;
    ssize_t n = recv(s->sock->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void on_connect(void *arg)
{
    struct vhost_server *srv = arg;
    int fd = accept4(srv->listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            log_warn("%s: accept: %s", srv->label, strerror(errno));
        return;
    }
    if (srv->session && is_gone(srv->session))
        session_drop(srv->session);
    if (srv->session) {
        log_warn("%s: a second front end was turned away", srv->label);
        close(fd);
        return;
    }
    server_adopt(srv, fd);
}

struct vhost_server *server_new(uv_loop_t *loop, struct vol *v, const struct vhost_conf *conf, const char *label)
{
    struct vhost_server *srv = xcalloc(1, sizeof *srv);
    srv->loop = loop;
    srv->dev.vol = v;
    srv->dev.queues = conf->queues ? conf->queues : VHOST_QUEUES_MAX;
    const char *serial = conf->serial ? conf->serial : v->name ? v->name : "";
    memcpy(srv->dev.serial, serial, strnlen(serial, sizeof srv->dev.serial));
    srv->allow_unsealed = conf->allow_unsealed;
    srv->label = xstrdup(label);
    TAILQ_INIT(&srv->dropped);
    TAILQ_INIT(&srv->flush);
    uv_prepare_init(loop, &srv->prepare);
    uv_idle_init(loop, &srv->idle);
    srv->prepare.data = srv->idle.data = srv;
    srv->handles = 2;
    return srv;
}

int vhost_server_open(struct uv_loop_s *loop, const char *socket_path, struct vol *v, const struct vhost_conf *conf,
                      struct vhost_server **ret_srv, struct err *e)
{
    if (conf->queues > VHOST_QUEUES_MAX)
        return err_set(e, E_INVAL, "%u queues: at most %d", conf->queues, VHOST_QUEUES_MAX);
    struct watch *listener;
    struct sock_file file = {0};
    int fd = -1, rc = sock_listen(socket_path, conf->socket_mode ? conf->socket_mode : 0600, &fd, &file, e);
    if (rc)
        return rc;
    struct vhost_server *srv = server_new(loop, v, conf, socket_path);
    rc = iowatch_new(loop, fd, on_connect, srv, &listener);
    assert(!rc); /* a fresh socket can be watched */
    srv->listener = listener;
    srv->path = xstrdup(socket_path);
    srv->file = file;
    iowatch_set(listener, true);
    *ret_srv = srv;
    return E_OK;
}

void vhost_server_force_drop(struct vhost_server *srv)
{
    if (!srv->session)
        return;
    log_info("%s: front end disconnected on request", srv->label);
    session_drop(srv->session);
}

void vhost_server_close(struct vhost_server *srv, void (*done)(void *arg), void *arg)
{
    assert(!srv->closing);
    srv->closing = true;
    srv->closed = done;
    srv->closed_arg = arg;
    iowatch_close(srv->listener);
    srv->listener = NULL;
    if (srv->path)
        sock_unlink(srv->path, &srv->file);
    if (srv->session)
        session_drop(srv->session);
    server_schedule(srv);
}

void vhost_server_resized(struct vhost_server *srv)
{
    struct vhost_session *s = srv->session;
    struct vhu_msg m = {.hdr = {VHU_BACKEND_CONFIG_CHANGE, VHU_FLAG_VERSION, 0}};
    if (!s || s->backend_fd < 0 || !(s->protocol_features >> VHU_PF_BACKEND_REQ & 1))
        return; /* it reads the size when it connects */
    if (vhost_msg_send(s->backend_fd, &m, -1))
        log_warn("%s: the guest could not be told its disk's new size", srv->label);
}

void vhost_server_stat(const struct vhost_server *srv, struct vhost_stat *ret_stat)
{
    *ret_stat = srv->stat;
    ret_stat->connected = srv->session != NULL;
}
