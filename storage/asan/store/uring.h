/* io_uring on a libuv loop: operations queued during one turn of the loop are submitted together just before it blocks, or earlier
 * by uring_push() (large transfers, dev.c). At most 1 MiB of completions is handled per turn.
 *
 * Threading: the loop's thread. Ownership: a uring_op and what it points to are the caller's until `done`, which is never
 * called inside the call that queued it. Errors: `res` is bytes or -errno, as the kernel says.
 */
#ifndef COHORT_STORAGE_STORE_URING_H
#define COHORT_STORAGE_STORE_URING_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>
#include <uv.h>
#include "base/err.h"

struct uring_op {
    void (*done)(struct uring_op *op, int res);
    int fd;
    enum { URING_READ, URING_WRITE, URING_SYNC /* fdatasync */, URING_NOP /* completes with 0 */ } kind;
    const struct iovec *iov;
    int iovcnt;
    uint64_t offset;
    STAILQ_ENTRY(uring_op) entry;
    uint64_t begun_ns;             /* given to the kernel */
    TAILQ_ENTRY(uring_op) flight;
};

struct uring {
    struct io_uring ring;
    uv_poll_t poll;        /* the ring's own descriptor: readable while completions wait */
    uv_prepare_t prepare;
    uv_idle_t idle;        /* active while something waits for `prepare`: whoever submits after it does not wait for an event */
    bool awake;
    STAILQ_HEAD(, uring_op) waiting; /* did not fit into the ring yet */
    unsigned in_ring;      /* queued or in flight */
    TAILQ_HEAD(, uring_op) flight;   /* those, oldest first */
    uint64_t ended, ended_us;        /* since the last uring_stats(): how many, their latencies together */
    void (*before_submit)(void *arg); /* last chance of this turn to add operations */
    void *arg;
    unsigned closing_handles;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* E_UNAVAIL with a hint if the kernel (or a sandbox) offers no io_uring. */
MUST_CHECK int uring_open(struct uring *u, uv_loop_t *loop, void (*before_submit)(void *arg), void *arg, struct err *e);
void uring_submit(struct uring *u, struct uring_op *op);
/* Gives the kernel now what was queued, and does not wait for the turn's end: for transfers that take longer than a system call. */
void uring_push(struct uring *u);
void uring_wake(struct uring *u); /* `before_submit` has something to do */
/* Requests that ended since the last call, their latencies together, and the age of the oldest that has not ended. */
void uring_stats(struct uring *u, uint64_t *ret_n, uint64_t *ret_sum_us, uint64_t *ret_oldest_ms);
/* Nothing may be in flight. `closed` when the memory may go. */
void uring_close(struct uring *u, void (*closed)(void *arg), void *arg);

#endif
