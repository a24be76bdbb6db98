/* Files of the store: O_DIRECT, fault points, the tests' seam. See dev.h. */
#include "storage/asan/store/dev.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/fault.h"
#include "base/htab.h"

/* Transfers from this size on do not wait for the turn's end: the device works while we copy and check others. Given one by one
 * they are not merged either, so that each is answered when it is done. */
#define AT_ONCE (256u << 10)

struct dev_hook *dev_hook;

int dev_open(struct dev *d, const char *path, unsigned how, const char *name, struct err *e)
{
    *d = (struct dev){.fd = -1, .dsync = how & DEV_DSYNC};
    int fd = open(path, O_RDWR | O_CLOEXEC | (how & DEV_MEMORY ? 0 : O_DIRECT) | (how & DEV_DSYNC ? O_DSYNC : 0) |
                  (how & DEV_CREATE ? O_CREAT : 0), 0600);
    if (fd < 0 && errno == EINVAL)
        return err_set(e, E_INVAL, "open %s: the file system does not support O_DIRECT", path);
    if (fd < 0)
        return err_sys(e, errno, "open %s", path);
    d->fd = fd;
    d->path = xstrdup(path);
    snprintf(d->fault_read, sizeof d->fault_read, "%s.read", name);
    snprintf(d->fault_write, sizeof d->fault_write, "%s.write", name);
    snprintf(d->fault_sync, sizeof d->fault_sync, "%s.sync", name);
    return E_OK;
}

void dev_close(struct dev *d)
{
    if (!d->path)
        return;
    close(d->fd);
    free(d->path);
    *d = (struct dev){.fd = -1};
}

static bool aligned(const void *buf, size_t length, uint64_t offset)
{
    return ((uintptr_t)buf | length | offset) % DEV_BLOCK == 0;
}

int dev_read(const struct dev *d, void *buf, size_t length, uint64_t offset)
{
    assert(aligned(buf, length, offset));
    if (fault_hit(d->fault_read))
        return -EIO;
    for (size_t got = 0; got < length;) {
        ssize_t n = pread(d->fd, (char *)buf + got, length - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0 || n % DEV_BLOCK != 0)
            return -EIO; /* a file of ours is never shorter than what is read */
        got += (size_t)n;
    }
    return 0;
}

static int write_all(const struct dev *d, const char *buf, size_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t n = pwrite(d->fd, buf, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0 || n % DEV_BLOCK != 0)
            return -EIO;
        buf += n;
        length -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int dev_write(const struct dev *d, const void *buf, size_t length, uint64_t offset)
{
    assert(aligned(buf, length, offset));
    if (fault_hit(d->fault_write))
        return -EIO;
    void *token = NULL;
    int rc = dev_hook ? dev_hook->write(dev_hook, d, offset, length, &token) : 0;
    if (rc < 0)
        return rc;
    rc = write_all(d, buf, length, offset);
    return dev_hook ? dev_hook->written(dev_hook, d, token, rc) : rc;
}

int dev_sync(const struct dev *d)
{
    if (fault_hit(d->fault_sync))
        return -EIO;
    void *token = NULL;
    int rc = dev_hook ? dev_hook->sync(dev_hook, d, false, &token) : 0;
    if (rc == 0 && fdatasync(d->fd) < 0)
        rc = -errno;
    if (rc == 0 && dev_hook)
        rc = dev_hook->sync(dev_hook, d, true, &token);
    return rc;
}

static void on_done(struct uring_op *op, int res)
{
    struct dev_io *io = container_of(op, struct dev_io, op);
    int status = io->early ? io->early : res < 0 ? res : (uint64_t)res != io->length ? -EIO : 0;
    if (op->kind == URING_WRITE && dev_hook)
        status = dev_hook->written(dev_hook, io->dev, io->token, status);
    if (op->kind == URING_SYNC && dev_hook && status == 0)
        status = dev_hook->sync(dev_hook, io->dev, true, &io->token);
    io->done(io, status);
}

void dev_submit(const struct dev *d, struct uring *u, struct dev_io *io, bool write, const struct iovec *iov, int iovcnt,
                uint64_t offset)
{
    io->dev = d;
    io->token = NULL;
    io->length = 0;
    for (int i = 0; i < iovcnt; i++) {
        assert(aligned(iov[i].iov_base, iov[i].iov_len, offset));
        io->length += iov[i].iov_len;
    }
    io->early = fault_hit(write ? d->fault_write : d->fault_read) ? -EIO : 0;
    if (!io->early && write && dev_hook)
        io->early = dev_hook->write(dev_hook, d, offset, io->length, &io->token);
    io->op = (struct uring_op){.done = on_done, .fd = d->fd, .iov = iov, .iovcnt = iovcnt, .offset = offset,
                               .kind = io->early ? URING_NOP : write ? URING_WRITE : URING_READ};
    uring_submit(u, &io->op);
    if (io->length >= AT_ONCE)
        uring_push(u);
}

void dev_submit_sync(const struct dev *d, struct uring *u, struct dev_io *io)
{
    io->dev = d;
    io->length = 0;
    io->token = NULL;
    io->early = fault_hit(d->fault_sync) ? -EIO : dev_hook ? dev_hook->sync(dev_hook, d, false, &io->token) : 0;
    io->op = (struct uring_op){.done = on_done, .fd = d->fd, .kind = io->early ? URING_NOP : URING_SYNC};
    uring_submit(u, &io->op);
}
