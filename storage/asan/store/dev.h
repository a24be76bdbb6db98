/* A file of the store (journal, extents) opened O_DIRECT, if not in memory, and the seam where tests cut the power.
 *
 * Synchronous calls are for store_open() and for workers; dev_submit() is for the loop. All offsets, lengths and buffers
 * are multiples of DEV_BLOCK. A short transfer is -EIO.
 */
#ifndef COHORT_STORAGE_STORE_DEV_H
#define COHORT_STORAGE_STORE_DEV_H

#include "storage/asan/store/uring.h"

#define DEV_BLOCK 4096u

struct dev {
    int fd;       /* -1 = closed */
    char *path;
    bool dsync;   /* a completed write is durable; else dev_sync() makes it so */
    char fault_read[24], fault_write[24], fault_sync[24]; /* fault points (base/fault.h) */
};

/* What a test puts between the store and its files. Called from the loop and from workers at once. */
struct dev_hook {
    /* Before a write: negative = the write fails with that and must not reach the file. *ret_token goes to `written`. */
    int (*write)(struct dev_hook *h, const struct dev *d, uint64_t offset, uint64_t length, void **ret_token);
    /* After it: returns the result to report instead of `res`. Not called for a write that was refused. */
    int (*written)(struct dev_hook *h, const struct dev *d, void *token, int res);
    /* Before (done = false: *ret_token goes to the second call) and after; several may be on their way. */
    int (*sync)(struct dev_hook *h, const struct dev *d, bool done, void **ret_token);
    int (*meta)(struct dev_hook *h, bool done);                      /* before and after each RocksDB batch */
};
extern struct dev_hook *dev_hook; /* NULL outside tests */

enum dev_how {
    DEV_CREATE = 1,
    DEV_DSYNC = 2,
    DEV_MEMORY = 4, /* on a tmpfs, which knows no O_DIRECT before Linux 6.6 and has no use for it */
};
/* `how`: of enum dev_how. `name` is the prefix of the fault points: "<name>.read", ".write", ".sync". E_NOTFOUND if absent and not
 * DEV_CREATE. */
MUST_CHECK int dev_open(struct dev *d, const char *path, unsigned how, const char *name, struct err *e);
void dev_close(struct dev *d); /* a zeroed or closed one is fine */

int dev_read(const struct dev *d, void *buf, size_t length, uint64_t offset);        /* 0 or -errno */
int dev_write(const struct dev *d, const void *buf, size_t length, uint64_t offset);
int dev_sync(const struct dev *d);

struct dev_io {
    struct uring_op op;
    const struct dev *dev;
    uint64_t length;
    void *token;
    int early; /* refused before it reached the ring */
    void (*done)(struct dev_io *io, int status); /* 0 or -errno */
};
/* The caller sets `done`; `iov` stays valid until then. */
void dev_submit(const struct dev *d, struct uring *u, struct dev_io *io, bool write, const struct iovec *iov, int iovcnt,
                uint64_t offset);

/* What was written and completed before becomes durable. */
void dev_submit_sync(const struct dev *d, struct uring *u, struct dev_io *io);

#endif
