/* One request of a guest or client as a sequence of volume requests.
 *
 * A guest may ask for more than VOL_REQ_MAX at once; front_io cuts such a request into pieces and carries them out one
 * after the other, so that a big request does not crowd out the others. Nothing is allocated or copied.
 * Threading: the volume's loop. Ownership: struct, iov array and memory are the caller's until `done` ran; the iov array
 * is changed while a piece is under way and is as before again when `done` runs. */
#ifndef COHORT_FRONT_IO_H
#define COHORT_FRONT_IO_H

#include "storage/asan/vol.h"

struct front_io;
typedef void front_io_done(struct front_io *io, int status);

struct front_io {
    struct vol_req req;
    struct vol *vol;
    struct iovec *iov;
    front_io_done *done;
    uint64_t left;             /* bytes after the current piece */
    size_t skip;               /* bytes of iov[at] that earlier pieces took */
    int at, end;               /* elements of the current piece: at..end */
    struct iovec first, last;  /* those two elements as they were */
};

/* Starts reading or writing `length` bytes (the sum of iov, a multiple of VOL_SECTOR, > 0) at `offset`. */
void front_io_rw(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                 struct iovec *iov, front_io_done *done);
/* The same for iov of one element at the start of `data`, without a copy where that is possible (vol_req.data): nobody may change
 * the bytes of a write before the buffer is freed; after a read that succeeded, io->req.data is NULL or the buffer with
 * the answer, the caller's reference. */
void front_io_rw_buf(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                     struct iovec *iov, struct iobuf *data, front_io_done *done);
/* Starts VOL_FLUSH (offset and length 0), VOL_ZERO or VOL_DISCARD. */
void front_io_plain(struct front_io *io, struct vol *v, enum vol_op op, uint64_t offset, uint64_t length,
                    front_io_done *done);

/* Starts VOL_MAP; `iov` is one element for `length` / VOL_MAP_BLOCK bytes, at most VOL_MAP_MAX of `length`. `since` as in
 * vol_req, or NULL. */
void front_io_map(struct front_io *io, struct vol *v, const char *since, uint64_t offset, uint64_t length, struct iovec *iov,
                  front_io_done *done);

/* True if [offset, offset+length) lies in the volume. Safe for any values. */
static inline bool front_io_inside(const struct vol *v, uint64_t offset, uint64_t length)
{
    return length <= v->size_bytes && offset <= v->size_bytes - length;
}

#endif
