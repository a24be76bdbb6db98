/* One virtqueue: takes requests on a kick, hands them to the volume, publishes completions. See session.h. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "storage/asan/front/vhost/session.h"

LOG_MODULE("vhost");

#define SERVE_BYTES (512u << 10)

static void on_kick(void *arg);
static void serve(struct vhost_queue *q);

static bool has(const struct vhost_session *s, unsigned feature)
{
    return s->features >> feature & 1;
}

static void schedule(struct vhost_queue *q)
{
    struct vhost_server *srv = q->s->srv;
    if (!q->in_flush) {
        q->in_flush = true;
        TAILQ_INSERT_TAIL(&srv->flush, q, flush);
    }
    server_schedule(srv);
}

/* Adds 1 to an eventfd; a full one already says what we would say. */
static void signal_fd(int fd)
{
    uint64_t one = 1;
    if (fd >= 0 && write(fd, &one, sizeof one) < 0 && errno != EAGAIN)
        log_dbg("notify: %s", strerror(errno));
}

void queue_init(struct vhost_queue *q, struct vhost_session *s, unsigned index)
{
    q->s = s;
    q->index = index;
    q->call_fd = q->err_fd = -1;
    SLIST_INIT(&q->idle);
}

void queue_free_pool(struct vhost_queue *q)
{
    struct vhost_qreq *r;
    while ((r = SLIST_FIRST(&q->idle))) {
        SLIST_REMOVE_HEAD(&q->idle, entry);
        free(r);
    }
}

/* --- start and stop --- */

int queue_map(struct vhost_queue *q, struct err *e)
{
    const struct vhost_mem *m = q->s->mem;
    uint64_t num = q->vq.num;
    void *desc = vhost_mem_uaddr(m, q->addr.desc_user_addr, num * sizeof(struct vring_desc));
    void *avail = vhost_mem_uaddr(m, q->addr.avail_user_addr, sizeof(struct vring_avail) + (num + 1) * 2);
    void *used = vhost_mem_uaddr(m, q->addr.used_user_addr,
                                 sizeof(struct vring_used) + num * sizeof(vring_used_elem_t) + 2);
    if (!desc || !avail || !used)
        return err_set(e, E_PROTO, "queue %u: ring outside the shared memory", q->index);
    if ((uintptr_t)desc % VRING_DESC_ALIGN_SIZE || (uintptr_t)avail % VRING_AVAIL_ALIGN_SIZE ||
        (uintptr_t)used % VRING_USED_ALIGN_SIZE)
        return err_set(e, E_PROTO, "queue %u: ring not aligned", q->index);
    q->vq.desc = desc;
    q->vq.avail = avail;
    q->vq.used = used;
    bool logged = has(q->s, VHOST_F_LOG_ALL) && (q->addr.flags & (1u << VHOST_VRING_F_LOG));
    q->vq.log = logged ? &q->s->log : NULL;
    q->vq.log_used_gpa = q->addr.log_guest_addr;
    return E_OK;
}

/* The document: without PROTOCOL_FEATURES a ring is enabled from its start. */
static bool enabled(const struct vhost_queue *q)
{
    return q->enabled || !has(q->s, VHU_F_PROTOCOL_FEATURES);
}

int queue_try_start(struct vhost_queue *q, struct err *e)
{
    struct vhost_session *s = q->s;
    if (q->started || !q->kick || !q->have_addr || !q->vq.num || !s->mem || !enabled(q) ||
        !TAILQ_EMPTY(&s->srv->dropped))
        return E_OK;
    q->vq.inflight = NULL;
    if (s->inflight.map && q->index < s->inflight.queues) {
        if (q->vq.num > s->inflight.queue_size)
            return err_set(e, E_PROTO, "queue %u: %u descriptors but inflight area for %u", q->index, q->vq.num,
                           s->inflight.queue_size);
        q->vq.inflight = (void *)(s->inflight.at + q->index * vq_inflight_bytes(s->inflight.queue_size));
        q->vq.inflight_num = s->inflight.queue_size;
    }
    int rc = queue_map(q, e);
    if (rc)
        return rc;
    q->vq.event_idx = has(s, VIRTIO_RING_F_EVENT_IDX);
    unsigned n = vq_start(&q->vq, q->base);
    s->srv->stat.resubmitted += n;
    if (n)
        log_info("%s: queue %u: %u requests of before carried out again", s->srv->label, q->index, n);
    q->started = true;
    q->broken = false;
    iowatch_set(q->kick, true);
    serve(q); /* the kick may have come before we watched */
    signal_fd(q->call_fd); /* the process before us may have died between publishing and notifying */
    return E_OK;
}

int queue_set_kick(struct vhost_queue *q, int fd)
{
    struct watch *w;
    int rc = iowatch_new(q->s->srv->loop, fd, on_kick, q, &w);
    if (rc)
        return rc;
    iowatch_close(q->kick);
    q->kick = w;
    if (q->started)
        iowatch_set(w, enabled(q) && !q->base_wanted && !q->broken);
    return E_OK;
}

void queue_set_call(struct vhost_queue *q, int fd)
{
    if (q->call_fd >= 0)
        close(q->call_fd);
    q->call_fd = fd;
    signal_fd(fd); /* what was published while there was no one to tell */
}

void queue_set_err(struct vhost_queue *q, int fd)
{
    if (q->err_fd >= 0)
        close(q->err_fd);
    q->err_fd = fd;
}

void queue_set_enabled(struct vhost_queue *q, bool on)
{
    q->enabled = on;
    if (!q->started)
        return;
    if (q->kick)
        iowatch_set(q->kick, enabled(q) && !q->base_wanted && !q->broken);
    q->again = on ? 1 : 0;
    schedule(q);
}

void queue_stop(struct vhost_queue *q)
{
    iowatch_close(q->kick);
    q->kick = NULL;
    q->base_wanted = true;
    schedule(q);
}

void queue_detach(struct vhost_queue *q)
{
    if (q->started && vq_publish(&q->vq))
        signal_fd(q->call_fd);
    q->started = false;
    q->base_wanted = false;
    if (q->in_flush) {
        TAILQ_REMOVE(&q->s->srv->flush, q, flush);
        q->in_flush = false;
    }
    iowatch_close(q->kick);
    q->kick = NULL;
    if (q->call_fd >= 0)
        close(q->call_fd);
    if (q->err_fd >= 0)
        close(q->err_fd);
    q->call_fd = q->err_fd = -1;
}

/* The guest broke its ring: nothing more is taken from it until the driver resets the device. */
static void ring_broken(struct vhost_queue *q)
{
    log_warn("%s: queue %u: the guest's ring is inconsistent; the queue stops", q->s->srv->label, q->index);
    q->broken = true;
    if (q->kick)
        iowatch_set(q->kick, false);
    signal_fd(q->err_fd);
}

/* --- requests --- */

static struct vhost_qreq *req_get(struct vhost_queue *q)
{
    struct vhost_qreq *r = SLIST_FIRST(&q->idle);
    if (r)
        SLIST_REMOVE_HEAD(&q->idle, entry);
    else
        r = xmalloc(sizeof *r);
    return r;
}

/* Everything the device may have stored for this request is dirty. */
static void log_request(const struct vhost_qreq *r)
{
    const struct vhost_session *s = r->q->s;
    const struct vq_chain *c = &r->blk.chain;
    if (!has(s, VHOST_F_LOG_ALL) || !s->log.bits)
        return;
    if (!c->bad)
        for (int i = c->n_out; i < c->n_out + c->n_in; i++)
            vhost_log_mark(&s->log, vhost_mem_to_gpa(r->mem, c->iov[i].iov_base), c->iov[i].iov_len);
    if (c->status)
        vhost_log_mark(&s->log, vhost_mem_to_gpa(r->mem, c->status), 1);
}

static void finish(struct vhost_qreq *r, uint8_t status)
{
    struct vhost_queue *q = r->q;
    struct vhost_session *s = q->s;
    q->in_flight--;
    s->in_flight--;
    s->srv->stat.in_flight--;
    if (status == BLK_STATUS_NONE) {
        s->frozen = true;
    } else if (q->started) {
        uint32_t written = 0;
        if (r->blk.chain.status) {
            *r->blk.chain.status = status;
            written = (status == VIRTIO_BLK_S_OK ? r->blk.data_written : 0) + 1;
        }
        log_request(r);
        vq_complete(&q->vq, r->head, written);
        schedule(q);
    }
    if (!s->sock && !s->in_flight)
        server_schedule(s->srv); /* dropped and now drained */
    vhost_mem_unref(r->mem);
    SLIST_INSERT_HEAD(&q->idle, r, entry);
}

static void on_done(struct blk_req *b, uint8_t status)
{
    finish(container_of(b, struct vhost_qreq, blk), status);
}

/* Returns the bytes that it brought. */
static uint64_t start_request(struct vhost_queue *q, uint16_t head)
{
    struct vhost_qreq *r = req_get(q);
    uint8_t status;
    r->q = q;
    r->head = head;
    r->mem = vhost_mem_ref(q->s->mem);
    q->in_flight++;
    q->s->in_flight++;
    q->s->srv->stat.in_flight++;
    q->s->srv->stat.requests++;
    vq_walk(&q->vq, r->mem, head, has(q->s, VIRTIO_RING_F_INDIRECT_DESC), &r->blk.chain);
    uint64_t bytes = r->blk.chain.bad ? 0 : r->blk.chain.out_bytes;
    if (!blk_start(&r->blk, &q->s->srv->dev, on_done, &status))
        finish(r, status);
    return bytes;
}

/* Takes what is there, at most one ring full: a guest that adds as fast as we answer must not hold the loop. Nor may large
 * writes, which are copied here: after SERVE_BYTES the loop has a turn for what devices and peers have answered meanwhile. */
static void serve(struct vhost_queue *q)
{
    uint64_t bytes = 0;
    q->again = 0;
    if (!q->started || q->broken || q->base_wanted || q->s->frozen || !enabled(q))
        return;
    for (unsigned budget = q->vq.num;;) {
        uint16_t head;
        int rc = vq_next(&q->vq, &head);
        if (rc < 0) {
            ring_broken(q);
            return;
        }
        if (rc == 0) {
            if (!vq_want_kick(&q->vq))
                return;
        } else {
            bytes += start_request(q, head);
        }
        if (!budget-- || bytes >= SERVE_BYTES) {
            q->again = 2;
            schedule(q);
            return;
        }
    }
}

static void on_kick(void *arg)
{
    struct vhost_queue *q = arg;
    uint64_t count;
    ssize_t n = read(q->kick->fd, &count, sizeof count);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        log_warn("%s: queue %u: kick descriptor closed", q->s->srv->label, q->index);
        iowatch_set(q->kick, false);
        return;
    }
    serve(q);
}

void queue_flush(struct vhost_queue *q)
{
    if (q->started && vq_publish(&q->vq))
        signal_fd(q->call_fd);
    if (q->again && --q->again == 0)
        serve(q);
    else if (q->again)
        schedule(q);
    if (q->base_wanted && !q->in_flight && !q->s->frozen) {
        struct vhost_vring_state st = {q->index, q->started ? q->vq.last_avail : q->base};
        q->base = (uint16_t)st.num;
        q->base_wanted = q->started = false;
        if (session_reply(q->s, VHU_GET_VRING_BASE, &st, sizeof st, -1))
            session_drop(q->s);
    }
}
