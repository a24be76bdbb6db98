/* Transmission: requests to the volume, replies in order of completion. See conn.h.
 *
 * A request object carries its buffer from the socket to the volume and back; idle ones are pooled per connection by
 * buffer size, so that steady traffic allocates nothing. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/htab.h"
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"

LOG_MODULE("nbd");

#define LEND_BYTES (64u << 10) /* from here on a buffer of its own costs less than copying to or from one that is used again */
static const uint32_t pool_bytes[2] = {16u << 10, 512u << 10};
static const unsigned pool_max[2] = {64, 16};

#define SEND_BUFS 64u /* of answers that are sent together */

/* The pool that serves `bytes` of data; -1 = none, too big to keep. */
static int pool_of(uint32_t bytes)
{
    return bytes <= pool_bytes[0] ? 0 : bytes <= pool_bytes[1] ? 1 : -1;
}

static struct nbd_req *req_get(struct nbd_conn *c, uint32_t bytes)
{
    int k = pool_of(bytes);
    struct nbd_req *r = k >= 0 ? SLIST_FIRST(&c->pool[k]) : NULL;
    if (r) {
        SLIST_REMOVE_HEAD(&c->pool[k], entry);
        c->pooled[k]--;
    } else {
        r = xmalloc(sizeof *r);
        r->data = iobuf_new(k >= 0 ? pool_bytes[k] : bytes);
    }
    r->cipher = NULL;
    r->lent = false;
    r->c = c;
    r->held = bytes;
    c->reqs++;
    c->held += bytes;
    return r;
}

static void req_free(struct nbd_req *r)
{
    iobuf_unref(r->data);
    free(r);
}

static void req_put(struct nbd_req *r)
{
    struct nbd_conn *c = r->c;
    int k = pool_of(r->held);
    c->reqs--;
    c->held -= r->held;
    if (k >= 0 && !r->lent && c->pooled[k] < pool_max[k] && c->sm.state != NBD_CLOSED) {
        SLIST_INSERT_HEAD(&c->pool[k], r, entry);
        c->pooled[k]++;
    } else {
        req_free(r);
    }
}

void nbd_free_pool(struct nbd_conn *c)
{
    for (int k = 0; k < 2; k++) {
        struct nbd_req *r;
        while ((r = SLIST_FIRST(&c->pool[k]))) {
            SLIST_REMOVE_HEAD(&c->pool[k], entry);
            req_free(r);
        }
    }
}

/* --- replies --- */

static uint32_t wire_error(int status)
{
    switch (status) {
    case E_OK:
        return 0;
    case E_INVAL:
        return NBD_EINVAL;
    case E_NOSPC:
        return NBD_ENOSPC;
    case E_PERM:
        return NBD_EPERM;
    case E_CANCELED:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static void on_io_done(struct front_io *io, int status);

/* The answer is out: the request ends, or goes on with its next part. */
static void answered(struct nbd_req *r)
{
    struct nbd_conn *c = r->c;
    free(r->cipher);
    r->cipher = NULL;
    if (r->cmd == NBD_CMD_BLOCK_STATUS && r->contexts && c->sm.state != NBD_CLOSED)
        nbd_meta_start(r, on_io_done);
    else
        req_put(r);
}

static void on_written(uv_write_t *w, int status)
{
    struct nbd_req *r = container_of(w, struct nbd_req, write);
    struct nbd_conn *c = r->c;
    if (status)
        r->contexts = 0;
    answered(r);
    if (c->sm.state == NBD_CLOSED)
        nbd_conn_check_freed(c);
    else if (status)
        nbd_conn_close(c);
    else
        nbd_conn_process(c);
}

/* Takes those from `out` that were sent whole; cuts the next one's buffers to what was not. */
static void take_sent(struct nbd_conn *c, size_t sent)
{
    struct nbd_req *r;
    while ((r = STAILQ_FIRST(&c->out))) {
        unsigned i = 0;
        while (i < r->bufs && sent >= r->buf[i].len)
            sent -= r->buf[i++].len;
        if (i < r->bufs) {
            memmove(r->buf, r->buf + i, (r->bufs - i) * sizeof r->buf[0]);
            r->bufs -= i;
            r->buf[0].base += sent;
            r->buf[0].len -= sent;
            return;
        }
        STAILQ_REMOVE_HEAD(&c->out, out);
        answered(r);
    }
}

/* What the socket does not take at once waits for it in order, request by request. */
static void queue_rest(struct nbd_conn *c)
{
    struct nbd_req *r;
    while ((r = STAILQ_FIRST(&c->out))) {
        if (uv_write(&r->write, &c->h.stream, r->buf, r->bufs, on_written)) {
            nbd_conn_close(c);
            return;
        }
        STAILQ_REMOVE_HEAD(&c->out, out);
    }
}

void nbd_push_answers(struct nbd_conn *c)
{
    while (!STAILQ_EMPTY(&c->out)) {
        uv_buf_t b[SEND_BUFS];
        unsigned n = 0;
        size_t bytes = 0;
        struct nbd_req *r;
        STAILQ_FOREACH (r, &c->out, out) {
            if (n + r->bufs > SEND_BUFS)
                break;
            for (unsigned i = 0; i < r->bufs; i++)
                bytes += (b[n++] = r->buf[i]).len;
        }
        int sent = uv_try_write(&c->h.stream, b, n);
        if (sent < 0 && sent != UV_EAGAIN) {
            nbd_conn_close(c);
            break;
        }
        if (sent > 0)
            take_sent(c, (size_t)sent);
        if (sent < 0 || (size_t)sent < bytes)
            queue_rest(c);
    }
}

void nbd_send_answers(struct nbd_conn *c)
{
    nbd_push_answers(c);
    if (c->sm.state == NBD_CLOSED)
        nbd_conn_check_freed(c);
    else
        nbd_conn_process(c);
}

void nbd_drop_answers(struct nbd_conn *c)
{
    struct nbd_req *r;
    if (c->in_flush)
        TAILQ_REMOVE(&c->srv->flush, c, flush);
    c->in_flush = false;
    while ((r = STAILQ_FIRST(&c->out))) {
        STAILQ_REMOVE_HEAD(&c->out, out);
        answered(r);
    }
}

/* Header of the reply into r->head; returns its length. A structured one only where the protocol wants it. */
static unsigned reply_head(struct nbd_req *r, uint32_t error)
{
    uint8_t *p = r->head;
    bool must = r->cmd == NBD_CMD_READ || r->cmd == NBD_CMD_BLOCK_STATUS;
    if (!r->c->structured || !must) {
        p = put64(put32(put32(p, NBD_SIMPLE_MAGIC), error), r->handle);
    } else if (error) {
        p = put32(put64(put16(put16(put32(p, NBD_CHUNK_MAGIC), NBD_CHUNK_FLAG_DONE), NBD_CHUNK_ERROR), r->handle), 6);
        p = put16(put32(p, error), 0); /* no text */
    } else if (r->cmd == NBD_CMD_BLOCK_STATUS) {
        p = put16(put16(put32(p, NBD_CHUNK_MAGIC), r->contexts ? 0 : NBD_CHUNK_FLAG_DONE), NBD_CHUNK_BLOCK_STATUS);
        p = put32(put64(p, r->handle), r->status_bytes);
    } else {
        p = put16(put16(put32(p, NBD_CHUNK_MAGIC), NBD_CHUNK_FLAG_DONE), NBD_CHUNK_OFFSET_DATA);
        p = put64(put32(put64(p, r->handle), 8 + r->length), r->offset);
    }
    return (unsigned)(p - r->head);
}

static void answer(struct nbd_req *r, uint32_t error)
{
    struct nbd_conn *c = r->c;
    uv_buf_t *b = r->buf;
    unsigned n = 1;
    if (r->cmd == NBD_CMD_BLOCK_STATUS && !error) {
        const uint8_t *chunk = nbd_meta_chunk(r);
        b[n++] = uv_buf_init((char *)chunk, r->status_bytes);
    } else if (error) {
        r->contexts = 0;
    }
    b[0] = uv_buf_init((char *)r->head, reply_head(r, error));
    if (r->cmd == NBD_CMD_READ && !error)
        b[n++] = uv_buf_init((char *)r->data->data, r->length);
    bool ok = true;
    if (c->ssl) {
        size_t len = 0;
        for (unsigned i = 0; i < n; i++)
            ok = ok && nbd_tls_encrypt(c, b[i].base, b[i].len);
        r->cipher = nbd_tls_output(c, &len);
        b[0] = uv_buf_init(r->cipher, (unsigned)len);
        n = 1;
    }
    r->bufs = n;
    STAILQ_INSERT_TAIL(&c->out, r, out);
    if (ok)
        nbd_server_flush(c);
    else
        nbd_conn_close(c);
}

static void on_io_done(struct front_io *io, int status)
{
    struct nbd_req *r = container_of(io, struct nbd_req, io);
    struct nbd_conn *c = r->c;
    if (io->req.op == VOL_READ && io->req.data) { /* the answer has come in a buffer of the volume's */
        iobuf_unref(r->data);
        r->data = io->req.data;
    }
    if (c->sm.state == NBD_CLOSED) {
        req_put(r);
        nbd_conn_check_freed(c);
        return;
    }
    answer(r, wire_error(status));
    if (c->sm.state == NBD_CLOSED)
        nbd_conn_check_freed(c);
}

/* --- requests --- */

struct request {
    uint16_t flags, cmd;
    uint64_t handle, offset;
    uint32_t length;
};

static bool moves_data(const struct request *q)
{
    return q->cmd == NBD_CMD_READ || q->cmd == NBD_CMD_WRITE;
}

/* The error a request gets before it is started, or 0. */
static uint32_t check(const struct nbd_conn *c, const struct request *q)
{
    uint16_t allowed = NBD_CMD_FLAG_FUA;
    switch (q->cmd) {
    case NBD_CMD_READ:
        allowed |= c->structured ? NBD_CMD_FLAG_DF : 0;
        break;
    case NBD_CMD_WRITE_ZEROES:
        allowed |= NBD_CMD_FLAG_NO_HOLE;
        break;
    case NBD_CMD_BLOCK_STATUS:
        if (!c->contexts)
            return NBD_EINVAL;
        allowed |= NBD_CMD_FLAG_REQ_ONE;
        break;
    case NBD_CMD_FLUSH:
        return q->flags & ~allowed ? NBD_EINVAL : 0;
    case NBD_CMD_WRITE:
    case NBD_CMD_TRIM:
        break;
    default:
        return NBD_EINVAL;
    }
    if (q->flags & ~allowed || !q->length || q->length % VOL_SECTOR || q->offset % VOL_SECTOR ||
        (moves_data(q) && q->length > NBD_LEN_MAX))
        return NBD_EINVAL;
    bool looks = q->cmd == NBD_CMD_READ || q->cmd == NBD_CMD_BLOCK_STATUS;
    if (!looks && (c->vol->read_only || c->read_only))
        return NBD_EPERM;
    if (!front_io_inside(c->vol, q->offset, q->length))
        return looks ? NBD_EINVAL : NBD_ENOSPC;
    return 0;
}

static void start(struct nbd_req *r, enum vol_op op)
{
    struct vol *v = r->c->vol;
    if (op == VOL_READ || op == VOL_WRITE) {
        r->iov = (struct iovec){r->data->data, r->length};
        r->lent = r->length >= LEND_BYTES;
        front_io_rw_buf(&r->io, v, op, r->offset, r->length, &r->iov, r->lent ? r->data : NULL, on_io_done);
    } else if (op == VOL_FLUSH) {
        front_io_plain(&r->io, v, op, 0, 0, on_io_done);
    } else {
        front_io_plain(&r->io, v, op, r->offset, r->length, on_io_done);
    }
}

void nbd_filled(struct nbd_conn *c, size_t n)
{
    struct nbd_req *r = c->filling;
    c->filled += (uint32_t)n;
    assert(c->filled <= r->length);
    if (c->filled < r->length)
        return;
    c->filling = NULL;
    start(r, VOL_WRITE);
}

/* The part of a write's payload that came along with its header. */
static void begin_fill(struct nbd_conn *c, struct nbd_req *r)
{
    size_t n = c->rlen < r->length ? c->rlen : r->length;
    memcpy(r->data->data, c->rbuf + c->rpos, n);
    nbd_conn_consume(c, n);
    c->filling = r;
    c->filled = 0;
    nbd_filled(c, n);
}

static bool refuse(struct nbd_conn *c, const struct request *q, uint32_t error)
{
    if (q->cmd == NBD_CMD_WRITE) {
        if (q->length > NBD_LEN_MAX) { /* not worth reading to its end */
            log_info("client cut off: write of %u bytes", q->length);
            nbd_conn_close(c);
            return false;
        }
        c->skip = q->length;
    }
    struct nbd_req *r = req_get(c, 0);
    r->cmd = q->cmd;
    r->contexts = 0;
    r->handle = q->handle;
    answer(r, error);
    return c->sm.state == NBD_TRANSMISSION;
}

bool nbd_take_request(struct nbd_conn *c)
{
    if (c->rlen < NBD_REQUEST_BYTES)
        return false;
    const uint8_t *p = c->rbuf + c->rpos;
    struct request q = {get16(p + 4), get16(p + 6), get64(p + 8), get64(p + 16), get32(p + 24)};
    if (get32(p) != NBD_REQUEST_MAGIC) {
        log_info("client cut off: not an NBD request");
        nbd_conn_close(c);
        return false;
    }
    uint32_t error = q.cmd == NBD_CMD_DISC ? 0 : check(c, &q), bytes = 0;
    if (!error && moves_data(&q))
        bytes = q.length;
    else if (!error && q.cmd == NBD_CMD_BLOCK_STATUS)
        bytes = nbd_meta_bytes(q.offset, q.length);
    if (c->reqs >= NBD_REQS_MAX || (c->reqs && c->held + bytes > NBD_BYTES_MAX))
        return false; /* again when a reply has gone out */
    nbd_conn_consume(c, NBD_REQUEST_BYTES);
    if (q.cmd == NBD_CMD_DISC) {
        sm_move(&c->sm, NBD_ENDING);
        return false;
    }
    if (error)
        return refuse(c, &q, error);
    struct nbd_req *r = req_get(c, bytes);
    r->cmd = q.cmd;
    r->flags = q.flags;
    r->contexts = 0;
    r->handle = q.handle;
    r->offset = q.offset;
    r->length = q.length;
    switch (q.cmd) {
    case NBD_CMD_READ:
        start(r, VOL_READ);
        break;
    case NBD_CMD_WRITE:
        begin_fill(c, r);
        break;
    case NBD_CMD_BLOCK_STATUS:
        r->contexts = c->contexts;
        nbd_meta_start(r, on_io_done);
        break;
    case NBD_CMD_FLUSH:
        start(r, VOL_FLUSH);
        break;
    case NBD_CMD_TRIM:
        start(r, VOL_DISCARD);
        break;
    default:
        start(r, q.flags & NBD_CMD_FLAG_NO_HOLE ? VOL_ZERO : VOL_DISCARD);
        break;
    }
    return true;
}
