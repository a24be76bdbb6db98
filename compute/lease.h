/* The node's lease page: one page of a file in run_dir that every guest's guard, and whoever else must stop with the
 * lease, maps. Bytes 0..7: expiry in ns of CLOCK_BOOTTIME, host byte order; 0 or the past: no lease. The rest is zero.
 *
 * The daemon is the only writer. The file is never truncated or replaced while the node is up: guards of running guests
 * keep their mapping across a restart of the daemon. Atomic, any thread. */
#ifndef COHORT_COMPUTE_LEASE_H
#define COHORT_COMPUTE_LEASE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct lease {
    uint64_t *page; /* NULL when closed */
    uint64_t inode; /* to notice that the file was replaced */
};

/* Daemon: makes the page if it is missing (no lease yet), maps it writable. E_IO. */
MUST_CHECK int lease_create(const char *path, struct lease *ret_lease, struct err *e);
/* Reader: E_NOTFOUND if there is none, E_CORRUPT if the file is too short to be one. */
MUST_CHECK int lease_open(const char *path, struct lease *ret_lease, struct err *e);
void lease_close(struct lease *l);

void lease_set(struct lease *l, uint64_t expiry_boot_ns);
uint64_t lease_expiry(const struct lease *l);
bool lease_valid(const struct lease *l); /* by the clock now; false when closed */

#endif
