/* io_uring on a libuv loop. See uring.h. */
#include "storage/asan/store/uring.h"

#include <assert.h>
#include <errno.h>
#include "base/clock.h"

/* So much is taken per turn of the loop: what was read is checked and copied as it is taken, and whoever waits for the first of it
 * should not wait for the last. */
#define TURN_BYTES (1u << 20)
#define DEPTH 256u /* operations in the ring; the completion queue is twice that, so it cannot overflow */

static void to_ring(struct uring *u, struct uring_op *op, struct io_uring_sqe *sqe)
{
    if (op->kind == URING_NOP)
        io_uring_prep_nop(sqe);
    else if (op->kind == URING_SYNC)
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
    else if (op->kind == URING_WRITE)
        io_uring_prep_writev(sqe, op->fd, op->iov, (unsigned)op->iovcnt, op->offset);
    else
        io_uring_prep_readv(sqe, op->fd, op->iov, (unsigned)op->iovcnt, op->offset);
    io_uring_sqe_set_data(sqe, op);
    op->begun_ns = clock_boot_ns();
    TAILQ_INSERT_TAIL(&u->flight, op, flight);
    u->in_ring++;
}

static void fill(struct uring *u)
{
    struct uring_op *op;
    while (u->in_ring < DEPTH && (op = STAILQ_FIRST(&u->waiting))) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        if (!sqe)
            return;
        STAILQ_REMOVE_HEAD(&u->waiting, entry);
        to_ring(u, op, sqe);
    }
}

static void stay_awake(uv_idle_t *h) { (void)h; }

void uring_wake(struct uring *u)
{
    if (!u->awake)
        uv_idle_start(&u->idle, stay_awake);
    u->awake = true;
}

void uring_push(struct uring *u)
{
    while (io_uring_sq_ready(&u->ring) > 0) {
        int rc = io_uring_submit(&u->ring);
        if (rc < 0 && rc != -EINTR) /* EAGAIN, EBUSY: the kernel is short of something; the next turn tries again */
            break;
    }
}

static void on_prepare(uv_prepare_t *h)
{
    struct uring *u = h->data;
    u->before_submit(u->arg);
    fill(u);
    uring_push(u);
    if (io_uring_sq_ready(&u->ring) > 0)
        return; /* the kernel did not take it: again in the next turn, at once */
    u->awake = false;
    uv_idle_stop(&u->idle);
}

static void on_readable(uv_poll_t *h, int status, int events)
{
    struct uring *u = h->data;
    struct io_uring_cqe *cqe;
    for (uint64_t bytes = 0; bytes < TURN_BYTES && io_uring_peek_cqe(&u->ring, &cqe) == 0;) { /* the rest keeps us readable */
        struct uring_op *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;
        io_uring_cqe_seen(&u->ring, cqe);
        bytes += res > 0 ? (uint64_t)res : 0;
        assert(u->in_ring > 0);
        u->in_ring--;
        TAILQ_REMOVE(&u->flight, op, flight);
        u->ended++;
        u->ended_us += (clock_boot_ns() - op->begun_ns) / 1000;
        op->done(op, res);
    }
}

int uring_open(struct uring *u, uv_loop_t *loop, void (*before_submit)(void *arg), void *arg, struct err *e)
{
    *u = (struct uring){.before_submit = before_submit, .arg = arg};
    STAILQ_INIT(&u->waiting);
    TAILQ_INIT(&u->flight);
    int rc = io_uring_queue_init(DEPTH, &u->ring, 0);
    if (rc < 0) {
        err_sys(e, -rc, "set up io_uring (kernel 5.6 or newer, kernel.io_uring_disabled=0)");
        if (e)
            e->code = E_UNAVAIL;
        return E_UNAVAIL;
    }
    (void)io_uring_register_ring_fd(&u->ring); /* spares the kernel its look-up; one older than 5.18 refuses, and that is fine */
    rc = uv_poll_init(loop, &u->poll, u->ring.ring_fd);
    if (rc < 0) {
        io_uring_queue_exit(&u->ring);
        return err_set(e, E_IO, "watch io_uring: %s", uv_strerror(rc));
    }
    u->poll.data = u;
    uv_poll_start(&u->poll, UV_READABLE, on_readable);
    uv_prepare_init(loop, &u->prepare);
    u->prepare.data = u;
    uv_prepare_start(&u->prepare, on_prepare);
    uv_idle_init(loop, &u->idle);
    u->idle.data = u;
    return E_OK;
}

void uring_submit(struct uring *u, struct uring_op *op)
{
    assert(op->kind == URING_NOP || op->kind == URING_SYNC || op->iovcnt > 0);
    uring_wake(u);
    struct io_uring_sqe *sqe = NULL;
    if (u->in_ring < DEPTH && STAILQ_EMPTY(&u->waiting))
        sqe = io_uring_get_sqe(&u->ring);
    if (sqe)
        to_ring(u, op, sqe);
    else
        STAILQ_INSERT_TAIL(&u->waiting, op, entry);
}

void uring_stats(struct uring *u, uint64_t *ret_n, uint64_t *ret_sum_us, uint64_t *ret_oldest_ms)
{
    const struct uring_op *oldest = TAILQ_FIRST(&u->flight);
    *ret_n = u->ended;
    *ret_sum_us = u->ended_us;
    *ret_oldest_ms = oldest ? (clock_boot_ns() - oldest->begun_ns) / 1000000 : 0;
    u->ended = u->ended_us = 0;
}

static void on_closed(uv_handle_t *h)
{
    struct uring *u = h->data;
    if (--u->closing_handles > 0)
        return;
    io_uring_queue_exit(&u->ring);
    u->closed(u->closed_arg);
}

void uring_close(struct uring *u, void (*closed)(void *arg), void *arg)
{
    assert(u->in_ring == 0 && STAILQ_EMPTY(&u->waiting));
    u->closed = closed;
    u->closed_arg = arg;
    u->closing_handles = 3;
    uv_close((uv_handle_t *)&u->poll, on_closed);
    uv_close((uv_handle_t *)&u->prepare, on_closed);
    uv_close((uv_handle_t *)&u->idle, on_closed);
}
