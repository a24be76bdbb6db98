/* Many transfers of a worker at once: given to the kernel together and waited for together, where one dev_read() or dev_write()
 * after the other would sleep and be woken for each. Blocks. One batch at a time. */
#ifndef COHORT_STORAGE_STORE_BATCH_H
#define COHORT_STORAGE_STORE_BATCH_H

#include "storage/asan/store/dev.h"

struct dev_xfer { /* the caller's until dev_batch_run() returns; aligned as for dev_read() */
    const struct dev *dev;
    bool write;
    void *buf;
    uint32_t length;
    uint64_t offset;
    void *token; /* private */
};

struct dev_batch { struct io_uring ring; bool open; };

MUST_CHECK int dev_batch_open(struct dev_batch *b, struct err *e); /* E_UNAVAIL, as uring_open() */
void dev_batch_close(struct dev_batch *b);                        /* a zeroed one is fine */
/* All of them, in any order. 0, or -errno of one that failed: then later ones may not have been begun, but none is under way. */
int dev_batch_run(struct dev_batch *b, struct dev_xfer *x, size_t n);

#endif
