/* See io.h. */
#include <assert.h>
#include "base/htab.h"
#include "storage/asan/front/io.h"

static void piece_done(struct vol_req *r, int status);

static void submit_piece(struct front_io *io)
{
    uint64_t want = io->left < VOL_REQ_MAX ? io->left : VOL_REQ_MAX, got = 0;
    int i = io->at;
    io->first = io->iov[i];
    io->iov[i].iov_base = (uint8_t *)io->iov[i].iov_base + io->skip;
    io->iov[i].iov_len -= io->skip;
    while (got + io->iov[i].iov_len < want)
        got += io->iov[i++].iov_len;
    io->end = i;
    io->last = io->iov[i];
    io->iov[i].iov_len = want - got;
    io->left -= want;
    io->req.length = want;
    io->req.iov = io->iov + io->at;
    io->req.iovcnt = io->end - io->at + 1;
    vol_submit(io->vol, &io->req);
}

/* Undoes what submit_piece() did to the array and moves to the first byte after the piece. */
static void step(struct front_io *io)
{
    size_t taken = io->iov[io->end].iov_len;
    if (io->at == io->end)
        taken += io->skip;
    io->iov[io->end] = io->last;
    io->iov[io->at] = io->first;
    io->at = io->end;
    io->skip = taken;
    if (io->skip == io->iov[io->at].iov_len) {
        io->at++;
        io->skip = 0;
    }
}

static void piece_done(struct vol_req *r, int status)
{
    struct front_io *io = container_of(r, struct front_io, req);
    if (r->op == VOL_READ || r->op == VOL_WRITE) {
        step(io);
        if (!status && io->left) {
            r->offset += r->length;
            submit_piece(io);
            return;
        }
    }
    io->done(io, status);
}

void front_io_rw(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                 struct iovec *iov, front_io_done *done)
{
    front_io_rw_buf(io, v, op, offset, length, iov, NULL, done);
}

void front_io_rw_buf(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                     struct iovec *iov, struct iobuf *data, front_io_done *done)
{
    assert(length && length % VOL_SECTOR == 0 && (op == VOL_READ || op == VOL_WRITE));
    io->vol = v;
    io->iov = iov;
    io->done = done;
    io->left = length;
    io->skip = 0;
    io->at = 0;
    io->req = (struct vol_req){.op = op, .offset = offset, .done = piece_done};
    if (length <= VOL_REQ_MAX) { /* not cut */
        io->req.data = op == VOL_WRITE ? data : NULL;
        io->req.take = op == VOL_READ && data;
    }
    submit_piece(io);
}

void front_io_plain(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                    front_io_done *done)
{
    assert(op == VOL_FLUSH || op == VOL_ZERO || op == VOL_DISCARD);
    io->vol = v;
    io->done = done;
    io->req = (struct vol_req){.op = op, .offset = offset, .length = length, .done = piece_done};
    vol_submit(v, &io->req);
}

void front_io_map(struct front_io *io, struct vol *v, const char *since, uint64_t offset, uint64_t length, struct iovec *iov,
                  front_io_done *done)
{
    io->vol = v;
    io->done = done;
    io->req = (struct vol_req){.op = VOL_MAP, .offset = offset, .length = length, .iov = iov, .iovcnt = 1,
                               .since = since, .done = piece_done};
    vol_submit(v, &io->req);
}
