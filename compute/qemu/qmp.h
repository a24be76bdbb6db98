/* QMP client: one lasting connection to a QEMU monitor socket on a libuv loop.
 *
 * Connects by itself and again after a break (every 50 ms) until closed: the process's end is seen elsewhere (its pidfd).
 * Calls may be in flight together; replies find their call by id. Threading: the loop's. The process
 * must ignore SIGPIPE. */
#ifndef COHORT_COMPUTE_QEMU_QMP_H
#define COHORT_COMPUTE_QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <uv.h>
#include "base/err.h"

struct qmp;

struct qmp_handler {
    /* true: negotiated, calls may be made. false: the connection broke; calls in flight ended with E_DISCONN before. */
    void (*up)(struct qmp *q, bool connected, void *arg);
    void (*event)(struct qmp *q, const char *name, json_t *data, void *arg); /* data borrowed, may be NULL */
    void *arg;
};

/* `path` is copied. Never fails: what goes wrong is tried again. */
struct qmp *qmp_open(uv_loop_t *loop, const char *path, const struct qmp_handler *h);
/* Calls in flight end with E_CANCELED inside this call; no callback follows. Memory goes with the loop's next turns. */
void qmp_close(struct qmp *q);
bool qmp_connected(const struct qmp *q);

/* status 0: `ret` is the reply's value (borrowed). E_INVAL: QEMU refused, its words in `e`. E_DISCONN, E_TIMEOUT (it may
 * still happen), E_CANCELED. */
typedef void qmp_done(void *arg, int status, json_t *ret, const struct err *e);

/* Takes over the reference to `args` (NULL = none). Not connected: E_DISCONN, but never inside this call. */
void qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms, qmp_done *done, void *arg);

#endif
