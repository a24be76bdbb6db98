/* Many transfers of a worker at once. See batch.h. */
#include "storage/asan/store/batch.h"

#include <assert.h>
#include <errno.h>
#include "base/fault.h"

#define DEPTH 32u /* at the device: guests' requests are to find room beside them */

int dev_batch_open(struct dev_batch *b, struct err *e)
{
    int rc = io_uring_queue_init(DEPTH, &b->ring, 0);
    if (rc < 0) {
        err_sys(e, -rc, "set up io_uring for destage");
        if (e)
            e->code = E_UNAVAIL;
        return E_UNAVAIL;
    }
    b->open = true;
    return E_OK;
}

void dev_batch_close(struct dev_batch *b)
{
    if (b->open)
        io_uring_queue_exit(&b->ring);
    b->open = false;
}

/* Fault points and the tests' seam, as dev_submit() has them. */
static int begin(struct dev_xfer *x)
{
    const struct dev *d = x->dev;
    assert(((uintptr_t)x->buf | x->length | x->offset) % DEV_BLOCK == 0);
    x->token = NULL;
    if (fault_hit(x->write ? d->fault_write : d->fault_read))
        return -EIO;
    return x->write && dev_hook ? dev_hook->write(dev_hook, d, x->offset, x->length, &x->token) : 0;
}

static int ended(struct dev_xfer *x, int res)
{
    int status = res < 0 ? res : (uint32_t)res != x->length ? -EIO : 0;
    return x->write && dev_hook ? dev_hook->written(dev_hook, x->dev, x->token, status) : status;
}

static void prepare(struct dev_batch *b, struct dev_xfer *x)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);
    assert(sqe); /* as many as DEPTH, and no more are under way */
    if (x->write)
        io_uring_prep_write(sqe, x->dev->fd, x->buf, x->length, x->offset);
    else
        io_uring_prep_read(sqe, x->dev->fd, x->buf, x->length, x->offset);
    io_uring_sqe_set_data(sqe, x);
}

int dev_batch_run(struct dev_batch *b, struct dev_xfer *x, size_t n)
{
    struct io_uring_cqe *cqe;
    unsigned flying = 0;
    int status = 0;
    for (size_t at = 0; (at < n && status == 0) || flying > 0;) {
        for (; at < n && status == 0 && flying < DEPTH; at++) {
            status = begin(&x[at]);
            if (status < 0)
                break;
            prepare(b, &x[at]);
            flying++;
        }
        /* Half of them, so that the device always has some and we are not woken for each. */
        int rc = flying ? io_uring_submit_and_wait(&b->ring, at < n ? (flying + 1) / 2 : flying) : 0;
        assert(rc >= 0 || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY); /* those pass: what is in the ring goes out next time */
        while (flying > 0 && io_uring_peek_cqe(&b->ring, &cqe) == 0) {
            rc = ended(io_uring_cqe_get_data(cqe), cqe->res);
            io_uring_cqe_seen(&b->ring, cqe);
            flying--;
            if (status == 0)
                status = rc;
        }
    }
    return status;
}
