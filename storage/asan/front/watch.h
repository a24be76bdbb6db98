/* A descriptor watched for input on a libuv loop. Owns the descriptor: closing the watch closes it at once, the handle's
 * memory goes when libuv lets go of it. Threading: the loop's. */
#ifndef COHORT_FRONT_WATCH_H
#define COHORT_FRONT_WATCH_H

#include <stdbool.h>
#include <uv.h>
#include "base/err.h"

struct watch {
    uv_poll_t poll;
    int fd;
    bool on;
    void (*readable)(void *arg); /* also on hang-up and error: read to learn which */
    void *arg;
};

/* Not watching yet. E_PROTO if the descriptor cannot be watched (a regular file); it is then still the caller's. */
MUST_CHECK int iowatch_new(uv_loop_t *loop, int fd, void (*readable)(void *arg), void *arg, struct watch **ret_watch);
void iowatch_set(struct watch *w, bool on);
void iowatch_close(struct watch *w); /* NULL is fine */

#endif
