/* The guest's memory as the front end shares it, and the dirty log of a live migration.
 *
 * A map is immutable and counted: requests in flight keep the map they were translated with, so a new memory table
 * (hot plug) cannot pull memory away under them. */
#ifndef COHORT_FRONT_VHOST_MEM_H
#define COHORT_FRONT_VHOST_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "storage/asan/front/vhost/msg.h"

struct vhost_mem_region {
    uint64_t gpa, uaddr, size; /* guest-physical and front end's virtual address; no sum overflows */
    uint8_t *host;
    void *map;
    size_t map_len;
};

struct vhost_mem {
    unsigned refs;
    int n;
    struct vhost_mem_region r[VHU_REGIONS_MAX];
};

/* Maps the table's regions; fd[i] belongs to region i and stays the caller's. E_PROTO for a bad table or descriptor,
 * E_IO when mmap fails. */
MUST_CHECK int vhost_mem_map(const struct vhu_msg_mem *table, const int *fd, int n_fds, bool allow_unsealed,
                             struct vhost_mem **ret_mem, struct err *e);
struct vhost_mem *vhost_mem_ref(struct vhost_mem *m);
void vhost_mem_unref(struct vhost_mem *m); /* NULL is fine */

/* Our address of guest-physical `gpa`, with *ret_len the bytes from there to the region's end; NULL if not mapped. */
void *vhost_mem_gpa(const struct vhost_mem *m, uint64_t gpa, uint64_t *ret_len);
/* Our address of the front end's address `uaddr` if all `len` bytes lie in one region, else NULL. */
void *vhost_mem_uaddr(const struct vhost_mem *m, uint64_t uaddr, uint64_t len);
/* The guest-physical address of our address `p`, which must come from this map. */
uint64_t vhost_mem_to_gpa(const struct vhost_mem *m, const void *p);

/* Maps `size` bytes of `fd` from `offset` shared and writable, after checking that the file is that long and (unless
 * allowed) sealed against shrinking. *ret_map, *ret_map_len for munmap(). */
MUST_CHECK int vhost_map_fd(int fd, uint64_t offset, uint64_t size, bool allow_unsealed, void **ret_map,
                            size_t *ret_map_len, uint8_t **ret_at, struct err *e);

#define VHOST_LOG_PAGE 4096u

struct vhost_log { /* one bit per 4 KiB of guest-physical memory; zeroed = off */
    uint8_t *bits;
    uint64_t bytes;
    void *map;
    size_t map_len;
};

void vhost_log_unmap(struct vhost_log *l);
/* Marks the pages of [gpa, gpa+len); pages beyond the log's end are not its business. No-op while the log is off. */
void vhost_log_mark(const struct vhost_log *l, uint64_t gpa, uint64_t len);

#endif
