/* How image bytes reach a volume: the storage engine in the daemon, memory in tests. Main loop's thread. */
#ifndef COHORT_DAEMON_IMAGE_IO_H
#define COHORT_DAEMON_IMAGE_IO_H

#include <stdbool.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"

struct image_io {
    /* Writes `len` bytes (a multiple of 4096) of `data` at `offset`. The reference is the caller's: the callee takes its
     * own. `done` exactly once, never inside the call; E_OK means durable. Waits while the volume cannot serve yet. */
    void (*write)(void *ctx, const char *volume_id, uint64_t offset, struct iobuf *data, size_t len,
                  void (*done)(void *arg, int status), void *arg);
    void *ctx;
};

/* Is what a file begins with of the kind it claims? `head`: its first bytes (all of a shorter file, else at least
 * IMAGE_HEAD). E_INVAL with what was found instead. Pure. */
#define IMAGE_HEAD (128u << 10)
MUST_CHECK int image_content_check(const char *file, const uint8_t *head, size_t len, struct err *e);

#endif
