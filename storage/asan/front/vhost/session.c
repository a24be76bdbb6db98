/* One front end's connection: the meaning of each vhost-user message. See session.h for the life of a session.
 *
 * Each message has an entry in `rules` (size and number of descriptors, checked before its function runs) and a function that
 * checks the rest. A function returns 0, E_UNAVAIL (refused, the connection goes on) or another error, which ends the
 * connection: a front end that breaks the protocol is not argued with. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/log.h"
#include "storage/asan/front/vhost/session.h"

LOG_MODULE("vhost");

#define PROTOCOL_FEATURES                                                                                              \
    (1ull << VHU_PF_MQ | 1ull << VHU_PF_LOG_SHMFD | 1ull << VHU_PF_REPLY_ACK | 1ull << VHU_PF_BACKEND_REQ |            \
     1ull << VHU_PF_CONFIG | 1ull << VHU_PF_INFLIGHT_SHMFD)

static void on_socket(void *arg);

/* --- life --- */

struct vhost_session *session_new(struct vhost_server *srv, int sock)
{
    struct vhost_session *s = xcalloc(1, sizeof *s);
    s->srv = srv;
    s->backend_fd = -1;
    s->queue = xcalloc(srv->dev.queues, sizeof *s->queue);
    for (unsigned i = 0; i < srv->dev.queues; i++)
        queue_init(&s->queue[i], s, i);
    if (iowatch_new(srv->loop, sock, on_socket, s, &s->sock)) {
        close(sock);
        free(s->queue);
        free(s);
        return NULL;
    }
    iowatch_set(s->sock, true);
    return s;
}

void session_drop(struct vhost_session *s)
{
    if (!s->sock)
        return;
    for (unsigned i = 0; i < s->srv->dev.queues; i++)
        queue_detach(&s->queue[i]);
    iowatch_close(s->sock);
    s->sock = NULL;
    vhost_rx_reset(&s->rx);
    if (s->backend_fd >= 0)
        close(s->backend_fd);
    s->backend_fd = -1;
    if (s->srv->session == s)
        s->srv->session = NULL;
    TAILQ_INSERT_TAIL(&s->srv->dropped, s, entry);
    server_schedule(s->srv);
}

static void unmap_inflight(struct vhost_session *s)
{
    if (s->inflight.map)
        munmap(s->inflight.map, s->inflight.map_len);
    memset(&s->inflight, 0, sizeof s->inflight);
}

void session_free(struct vhost_session *s)
{
    assert(!s->sock && !s->in_flight);
    for (unsigned i = 0; i < s->srv->dev.queues; i++)
        queue_free_pool(&s->queue[i]);
    unmap_inflight(s);
    vhost_log_unmap(&s->log);
    vhost_mem_unref(s->mem);
    free(s->queue);
    free(s);
}

int session_reply(struct vhost_session *s, uint32_t request, const void *payload, uint32_t size, int fd)
{
    struct vhu_msg m = {.hdr = {request, VHU_FLAG_VERSION | VHU_FLAG_REPLY, size}};
    memcpy(&m.p, payload, size);
    return vhost_msg_send(s->sock->fd, &m, fd);
}

static int reply_u64(struct vhost_session *s, uint32_t request, uint64_t v)
{
    return session_reply(s, request, &v, sizeof v, -1);
}

int session_start_queues(struct vhost_session *s, struct err *e)
{
    for (unsigned i = 0; i < s->srv->dev.queues; i++) {
        int rc = queue_try_start(&s->queue[i], e);
        if (rc)
            return rc;
    }
    return E_OK;
}

/* --- helpers of the message functions --- */

static int queue_of(struct vhost_session *s, uint64_t index, struct vhost_queue **ret_q, struct err *e)
{
    if (index >= s->srv->dev.queues)
        return err_set(e, E_PROTO, "queue %llu of %u", (unsigned long long)index, s->srv->dev.queues);
    *ret_q = &s->queue[index];
    return E_OK;
}

static int take_fd(struct vhu_msg *m)
{
    int fd = m->fd[0];
    m->fd[0] = -1;
    return fd;
}

/* Rings may run while addresses, memory or the log flag change (hot plug, start of a migration). */
static int remap_running(struct vhost_session *s, struct err *e)
{
    for (unsigned i = 0; i < s->srv->dev.queues; i++) {
        int rc = s->queue[i].started ? queue_map(&s->queue[i], e) : E_OK;
        if (rc)
            return rc;
    }
    return E_OK;
}

static uint64_t offered(const struct vhost_session *s)
{
    return blk_features(&s->srv->dev) | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |
           1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VHOST_F_LOG_ALL | 1ull << VHU_F_PROTOCOL_FEATURES;
}

/* --- features and configuration --- */

static int get_features(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    return reply_u64(s, m->hdr.request, offered(s));
}

static int set_features(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    if (m->p.u64 & ~offered(s))
        return err_set(e, E_PROTO, "features 0x%llx were not offered", (unsigned long long)(m->p.u64 & ~offered(s)));
    s->features = m->p.u64;
    return remap_running(s, e);
}

static int get_protocol_features(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    return reply_u64(s, m->hdr.request, PROTOCOL_FEATURES);
}

static int set_protocol_features(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    if (m->p.u64 & ~PROTOCOL_FEATURES)
        return err_set(e, E_PROTO, "protocol features 0x%llx were not offered",
                       (unsigned long long)(m->p.u64 & ~PROTOCOL_FEATURES));
    s->protocol_features = m->p.u64;
    return E_OK;
}

static int accept_silently(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    return E_OK;
}

static int get_queue_num(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    return reply_u64(s, m->hdr.request, s->srv->dev.queues);
}

static int get_config(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhu_msg_config *c = &m->p.config, reply = {0};
    const uint32_t head = offsetof(struct vhu_msg_config, data);
    if (c->size > VHU_CONFIG_MAX || c->offset > VHU_CONFIG_MAX - c->size || m->hdr.size != head + c->size)
        return err_set(e, E_PROTO, "%u bytes at %u in a message of %u", c->size, c->offset, m->hdr.size);
    uint8_t space[VHU_CONFIG_MAX] = {0};
    struct virtio_blk_config cfg;
    blk_config(&s->srv->dev, &cfg);
    memcpy(space, &cfg, sizeof cfg);
    reply.offset = c->offset;
    reply.size = c->size;
    reply.flags = c->flags;
    memcpy(reply.data, space + c->offset, c->size);
    return session_reply(s, m->hdr.request, &reply, head + c->size, -1);
}

static int set_config(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    return E_UNAVAIL; /* nothing of it is writable */
}

static int set_backend_fd(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    if (s->backend_fd >= 0)
        close(s->backend_fd);
    s->backend_fd = take_fd(m);
    return E_OK;
}

/* --- memory --- */

static int set_mem_table(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    uint32_t n = m->p.mem.n;
    if (n > VHU_REGIONS_MAX || m->hdr.size < 8 + n * sizeof(struct vhu_msg_region))
        return err_set(e, E_PROTO, "%u regions in %u bytes", n, m->hdr.size);
    struct vhost_mem *mem;
    int rc = vhost_mem_map(&m->p.mem, m->fd, m->n_fds, s->srv->allow_unsealed, &mem, e);
    if (rc)
        return rc;
    vhost_mem_unref(s->mem);
    s->mem = mem;
    rc = remap_running(s, e);
    return rc ? rc : session_start_queues(s, e);
}

static int set_log_base(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_log log = {0};
    int rc = vhost_map_fd(m->fd[0], m->p.log.mmap_offset, m->p.log.mmap_size, s->srv->allow_unsealed, &log.map,
                          &log.map_len, &log.bits, e);
    if (rc)
        return rc;
    log.bytes = m->p.log.mmap_size;
    vhost_log_unmap(&s->log);
    s->log = log;
    return reply_u64(s, m->hdr.request, 0); /* QEMU waits for it in any case */
}

static int create_memfd(uint64_t bytes, struct err *e)
{
    int fd = memfd_create("cohort-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        int rc = err_sys(e, errno, "inflight area");
        if (fd >= 0)
            close(fd);
        return rc;
    }
    return fd;
}

static int check_inflight(const struct vhost_session *s, const struct vhu_msg_inflight *f, struct err *e)
{
    if (!f->queues || f->queues > s->srv->dev.queues || !f->queue_size || f->queue_size > VQ_NUM_MAX)
        return err_set(e, E_PROTO, "%u queues of %u", f->queues, f->queue_size);
    return E_OK;
}

static int get_inflight(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhu_msg_inflight f = m->p.inflight;
    int rc = check_inflight(s, &f, e);
    if (rc)
        return rc;
    f.mmap_size = f.queues * vq_inflight_bytes(f.queue_size);
    f.mmap_offset = 0;
    int fd = create_memfd(f.mmap_size, e);
    if (fd < 0)
        return fd;
    rc = session_reply(s, m->hdr.request, &f, m->hdr.size, fd);
    close(fd);
    return rc;
}

static int set_inflight(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    const struct vhu_msg_inflight *f = &m->p.inflight;
    void *map;
    size_t map_len;
    uint8_t *at;
    int rc = check_inflight(s, f, e);
    if (rc)
        return rc;
    for (unsigned i = 0; i < s->srv->dev.queues; i++)
        if (s->queue[i].started)
            return err_set(e, E_PROTO, "queue %u is running", i);
    if (f->mmap_size < f->queues * vq_inflight_bytes(f->queue_size) || f->mmap_offset % 8)
        return err_set(e, E_PROTO, "%llu bytes at %llu", (unsigned long long)f->mmap_size,
                       (unsigned long long)f->mmap_offset);
    rc = vhost_map_fd(m->fd[0], f->mmap_offset, f->mmap_size, s->srv->allow_unsealed, &map, &map_len, &at, e);
    if (rc)
        return rc;
    unmap_inflight(s);
    s->inflight.map = map;
    s->inflight.map_len = map_len;
    s->inflight.at = at;
    s->inflight.queues = f->queues;
    s->inflight.queue_size = f->queue_size;
    return E_OK;
}

/* --- rings --- */

static int set_vring_num(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int rc = queue_of(s, m->p.state.index, &q, e);
    uint32_t num = m->p.state.num;
    if (rc)
        return rc;
    if (q->started || !num || num > VQ_NUM_MAX || (num & (num - 1)))
        return err_set(e, E_PROTO, "queue %u: size %u%s", q->index, num, q->started ? " while running" : "");
    q->vq.num = (uint16_t)num;
    return E_OK;
}

static int set_vring_base(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int rc = queue_of(s, m->p.state.index, &q, e);
    if (rc)
        return rc;
    if (q->started || m->p.state.num > UINT16_MAX)
        return err_set(e, E_PROTO, "queue %u: base %u%s", q->index, m->p.state.num, q->started ? " while running" : "");
    q->base = (uint16_t)m->p.state.num;
    return E_OK;
}

static int get_vring_base(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int rc = queue_of(s, m->p.state.index, &q, e);
    if (!rc)
        queue_stop(q); /* answers when the queue is drained */
    return rc;
}

static int set_vring_addr(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int rc = queue_of(s, m->p.addr.index, &q, e);
    if (rc)
        return rc;
    q->addr = m->p.addr;
    q->have_addr = true;
    return q->started ? queue_map(q, e) : queue_try_start(q, e);
}

/* SET_VRING_KICK, _CALL and _ERR: the queue, and the descriptor or -1. */
static int vring_fd(struct vhost_session *s, struct vhu_msg *m, struct vhost_queue **ret_q, int *ret_fd, struct err *e)
{
    bool none = m->p.u64 & VHU_VRING_NOFD;
    int rc = queue_of(s, m->p.u64 & VHU_VRING_INDEX_MASK, ret_q, e);
    if (rc)
        return rc;
    if (none != (m->n_fds == 0))
        return err_set(e, E_PROTO, "queue %u: %d descriptors", (*ret_q)->index, m->n_fds);
    *ret_fd = none ? -1 : m->fd[0];
    /* We write to it from the loop: it must not block. */
    if (!none && fcntl(*ret_fd, F_SETFL, fcntl(*ret_fd, F_GETFL) | O_NONBLOCK))
        return err_set(e, E_PROTO, "queue %u: descriptor of no use", (*ret_q)->index);
    return E_OK;
}

static int set_vring_kick(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int fd = -1, rc = vring_fd(s, m, &q, &fd, e);
    if (rc)
        return rc;
    if (fd < 0 || q->base_wanted || queue_set_kick(q, fd))
        return err_set(e, E_PROTO, "queue %u: no usable kick descriptor", q->index);
    m->fd[0] = -1;
    return queue_try_start(q, e);
}

static int set_vring_call(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int fd = -1, rc = vring_fd(s, m, &q, &fd, e);
    if (!rc)
        queue_set_call(q, fd < 0 ? -1 : take_fd(m));
    return rc;
}

static int set_vring_err(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int fd = -1, rc = vring_fd(s, m, &q, &fd, e);
    if (!rc)
        queue_set_err(q, fd < 0 ? -1 : take_fd(m));
    return rc;
}

static int set_vring_enable(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    struct vhost_queue *q = NULL;
    int rc = queue_of(s, m->p.state.index, &q, e);
    if (rc)
        return rc;
    queue_set_enabled(q, m->p.state.num != 0);
    return queue_try_start(q, e);
}

/* --- dispatch --- */

struct rule {
    int (*fn)(struct vhost_session *s, struct vhu_msg *m, struct err *e);
    uint32_t min_size, max_size;
    int min_fds, max_fds;
    bool replies; /* has an answer of its own: no acknowledgement */
};

#define STATE sizeof(struct vhost_vring_state)
#define MEM_MAX sizeof(struct vhu_msg_mem)
#define CONFIG_HEAD offsetof(struct vhu_msg_config, data)
#define CONFIG_MAX sizeof(struct vhu_msg_config)

static const struct rule rules[VHU_REQUEST_MAX] = {
    [VHU_GET_FEATURES] = {get_features, 0, 8, 0, 0, true},
    [VHU_SET_FEATURES] = {set_features, 8, 8, 0, 0, false},
    [VHU_SET_OWNER] = {accept_silently, 0, 8, 0, 0, false},
    [VHU_RESET_OWNER] = {accept_silently, 0, 8, 0, 0, false},
    [VHU_SET_MEM_TABLE] = {set_mem_table, 8 + 32, MEM_MAX, 1, VHU_REGIONS_MAX, false},
    [VHU_SET_LOG_BASE] = {set_log_base, 16, 16, 1, 1, true},
    [VHU_SET_LOG_FD] = {accept_silently, 0, 8, 0, 1, false},
    [VHU_SET_VRING_NUM] = {set_vring_num, STATE, STATE, 0, 0, false},
    [VHU_SET_VRING_ADDR] = {set_vring_addr, 40, 40, 0, 0, false},
    [VHU_SET_VRING_BASE] = {set_vring_base, STATE, STATE, 0, 0, false},
    [VHU_GET_VRING_BASE] = {get_vring_base, STATE, STATE, 0, 0, true},
    [VHU_SET_VRING_KICK] = {set_vring_kick, 8, 8, 0, 1, false},
    [VHU_SET_VRING_CALL] = {set_vring_call, 8, 8, 0, 1, false},
    [VHU_SET_VRING_ERR] = {set_vring_err, 8, 8, 0, 1, false},
    [VHU_GET_PROTOCOL_FEATURES] = {get_protocol_features, 0, 8, 0, 0, true},
    [VHU_SET_PROTOCOL_FEATURES] = {set_protocol_features, 8, 8, 0, 0, false},
    [VHU_GET_QUEUE_NUM] = {get_queue_num, 0, 8, 0, 0, true},
    [VHU_SET_VRING_ENABLE] = {set_vring_enable, STATE, STATE, 0, 0, false},
    [VHU_SET_BACKEND_REQ_FD] = {set_backend_fd, 0, 8, 1, 1, false},
    [VHU_GET_CONFIG] = {get_config, CONFIG_HEAD, CONFIG_MAX, 0, 0, true},
    [VHU_SET_CONFIG] = {set_config, CONFIG_HEAD, CONFIG_MAX, 0, 0, false},
    [VHU_GET_INFLIGHT_FD] = {get_inflight, 20, 24, 0, 0, true},
    [VHU_SET_INFLIGHT_FD] = {set_inflight, 20, 24, 1, 1, false},
};

static int dispatch(struct vhost_session *s, struct vhu_msg *m, struct err *e)
{
    const struct rule *r = m->hdr.request < VHU_REQUEST_MAX ? &rules[m->hdr.request] : &rules[0];
    if (!r->fn)
        return err_set(e, E_PROTO, "request %u is unknown", m->hdr.request);
    int rc;
    if (m->hdr.size < r->min_size || m->hdr.size > r->max_size || m->n_fds < r->min_fds || m->n_fds > r->max_fds)
        rc = err_set(e, E_PROTO, "%u bytes with %d descriptors", m->hdr.size, m->n_fds);
    else
        rc = r->fn(s, m, e);
    bool ack = (m->hdr.flags & VHU_FLAG_NEED_REPLY) && (s->protocol_features >> VHU_PF_REPLY_ACK & 1) && !r->replies;
    if (ack && s->sock) {
        int sent = reply_u64(s, m->hdr.request, rc ? 1 : 0);
        rc = rc ? rc : sent;
    }
    if (rc == E_DISCONN)
        return rc;
    if (!rc || rc == E_UNAVAIL)
        return E_OK;
    err_wrap(e, "%s", vhost_request_name(m->hdr.request));
    return rc;
}

/* At most this many messages in one turn of the loop. */
#define MESSAGES_MAX 32

static void on_socket(void *arg)
{
    struct vhost_session *s = arg;
    struct vhost_server *srv = s->srv;
    struct err e = {0};
    int rc = 1;
    for (int i = 0; i < MESSAGES_MAX && s->sock; i++) {
        rc = vhost_rx_step(&s->rx, s->sock->fd);
        if (rc <= 0)
            break;
        rc = dispatch(s, &s->rx.msg, &e);
        vhost_rx_reset(&s->rx);
        if (rc)
            break;
    }
    if (rc >= 0 || !s->sock)
        return;
    if (rc == E_DISCONN) {
        log_info("%s: front end left", srv->label);
    } else {
        srv->stat.drops++;
        log_warn("%s: front end dropped: %s", srv->label, e.msg[0] ? e.msg : "not a vhost-user message");
    }
    session_drop(s);
}
