/* Where a disk of medium memory lives: a tmpfs of its own that the daemon mounts below its state directory, one directory per disk,
 * named by the disk's id. It outlives the daemon (a restart finds the contents), not the node: after a power cut it is mounted empty,
 * formatted anew, and the disk's incarnation is raised (disk.c).
 *
 * I/O thread only; mounting takes no time to speak of. */
#ifndef COHORT_STORAGE_ENGINE_MEMORY_H
#define COHORT_STORAGE_ENGINE_MEMORY_H

#include <stdint.h>
#include "base/err.h"
#include "cluster/cdb.h"

#define MEMORY_JOURNAL_BYTES (16u << 20) /* the least a store takes: in memory everything is written twice for nothing */

/* Makes `path` a tmpfs of at most `bytes` (root only, no programs, no devices), unless it is one already. E_CONFLICT: something else
 * is mounted there; others as mount() says. Data never goes to the directory below. */
MUST_CHECK int memory_mount(const char *path, uint64_t bytes, struct err *e);
/* The contents are gone with it. Fine if nothing is mounted there. */
void memory_unmount(const char *path);
/* Ends what was left below `dir` of disks that `node` has no more: they were removed while the daemon was away. */
void memory_sweep(const char *dir, const struct cdb_view *v, const char *node);

#endif
