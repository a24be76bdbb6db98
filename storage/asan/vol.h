/* A volume as its front ends (vhost-user-blk, NBD, image import) see it: asynchronous block I/O.
 *
 * Threading: everything here runs on the one I/O thread (its libuv loop) that owns the volume.
 * Ownership: vol_req and the memory its iov names belong to the caller until `done` ran; `done` is never called inside
 * vol_submit(). Requests may complete in any order; overlapping ones are carried out in the order of submission.
 * Durability: a completed write, zero or discard is durable on every in-sync replica; VOL_FLUSH therefore completes as
 * soon as the writes submitted before it have.
 * Parking: without quorum, lease or enough replicas a request waits, for as long as it takes. It fails only for what
 * cannot pass: E_INVAL (outside the volume, misaligned), E_CORRUPT (no good copy left), E_CANCELED (the volume was closed).
 */
#ifndef COHORT_STORAGE_VOL_H
#define COHORT_STORAGE_VOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>
#include "base/buf.h"
#include "base/err.h"

#define VOL_SECTOR 512u           /* offsets and lengths are multiples of it */
#define VOL_REQ_MAX (4u << 20)    /* most bytes of one VOL_READ/VOL_WRITE; zero and discard may be any length */

enum vol_op {
    VOL_READ,
    VOL_WRITE,
    VOL_FLUSH,
    VOL_ZERO,    /* reads back as zeroes */
    VOL_DISCARD, /* same, space may go */
    VOL_MAP,     /* what is there: iov receives one byte of VOL_MAP_* per VOL_MAP_BLOCK */
};

#define VOL_MAP_BLOCK 4096u       /* offset and length of VOL_MAP are multiples of it */
#define VOL_MAP_MAX (256u << 20)  /* most bytes of one VOL_MAP */
#define VOL_MAP_DATA 1u           /* may hold data; without it the block reads as zeroes and takes no space */
#define VOL_MAP_CHANGED 2u        /* with `since`, then alone: may differ from it */

struct vol;
struct vol_req;
typedef void vol_done(struct vol_req *r, int status);

struct vol_req { /* caller-owned */
    enum vol_op op;
    uint64_t offset, length;   /* bytes; length == sum of iov for read and write, VOL_MAP_BLOCK times it for a map */
    const struct iovec *iov;   /* any alignment; the volume copies as it needs to */
    int iovcnt;
    /* To do without a copy. A write whose iov is the start of this buffer: the volume may keep references beyond `done`, so
     * the bytes must not change before the buffer is freed. A read with `take`: the answer may come in a buffer here, from its
     * start, a reference for the caller; iov is then untouched. NULL: by iov. */
    struct iobuf *data;
    bool take;
    const char *since;         /* VOL_MAP, iovcnt 1: id of a snapshot: where the volume may differ from it. E_NOTFOUND: it is gone;
                                * E_INVAL: the two have nothing in common. The text is the caller's until `done` */
    vol_done *done;
    void *arg;
    /* for the volume's own use */
    void *priv;
    const char *until;
    bool raw;
    TAILQ_ENTRY(vol_req) entry;
};

struct vol_ops {
    void (*submit)(struct vol *v, struct vol_req *r);
};

struct vol { /* the first member of every implementation */
    const struct vol_ops *ops;
    uint64_t size_bytes;
    bool read_only;
    const char *name;
};

static inline void vol_submit(struct vol *v, struct vol_req *r) { v->ops->submit(v, r); }

/* A volume in plain memory, for tests of front ends: completes from the loop, can be told to park and to fail. */
struct uv_loop_s;
struct vol *vol_mem_new(struct uv_loop_s *loop, uint64_t size_bytes);
struct vol *vol_mem_new_on(struct uv_loop_s *loop, void *data, uint64_t size_bytes); /* `data` stays the caller's */
void vol_mem_delay(struct vol *v, uint64_t delay_ms); /* latency of what is submitted from now on */
/* VOL_MAP with `since`: all that is not zero has changed. */
void vol_mem_park(struct vol *v, bool parked);
void vol_mem_fail_next(struct vol *v, int code);
void *vol_mem_data(struct vol *v);
void vol_mem_free(struct vol *v); /* what is in flight completes with E_CANCELED; gone after further turns of the loop */

#endif
