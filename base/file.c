/* Small files: bounded read, atomic durable replace. See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"

int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno, "open %s", path);
    struct buf b;
    buf_init(&b);
    int rc = E_OK;
    for (;;) {
        char piece[16384];
        ssize_t n = read(fd, piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = err_sys(e, errno, "read %s", path);
            break;
        }
        if (n == 0)
            break;
        if ((size_t)n > max - b.len) {
            rc = err_set(e, E_TOOBIG, "read %s: larger than %zu bytes", path, max);
            break;
        }
        buf_append(&b, piece, (size_t)n);
    }
    close(fd);
    if (rc != E_OK) {
        buf_free(&b);
        return rc;
    }
    if (ret_len)
        *ret_len = b.len;
    *ret_data = buf_take(&b);
    return E_OK;
}

static int write_whole(int fd, const char *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int sync_parent(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = !slash ? xstrdup(".") : slash == path ? xstrdup("/") : strndup(path, (size_t)(slash - path));
    int rc = E_OK;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        rc = err_sys(e, errno, "sync directory %s", dir);
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

int file_write(const char *path, const void *data, size_t len, mode_t mode, struct err *e)
{
    char *tmp = xasprintf("%s.tmp.XXXXXX", path);
    int rc = E_OK, no;
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0) {
        rc = err_sys(e, errno, "create %s", tmp);
        free(tmp);
        return rc;
    }
    if (fchmod(fd, mode) < 0)
        rc = err_sys(e, errno, "chmod %s", tmp);
    else if ((no = write_whole(fd, data, len)) != 0)
        rc = err_sys(e, no, "write %s", tmp);
    else if (fsync(fd) < 0)
        rc = err_sys(e, errno, "sync %s", tmp);
    if (close(fd) < 0 && rc == E_OK)
        rc = err_sys(e, errno, "close %s", tmp);
    if (rc == E_OK && rename(tmp, path) < 0)
        rc = err_sys(e, errno, "rename %s to %s", tmp, path);
    if (rc != E_OK)
        unlink(tmp);
    else
        rc = sync_parent(path, e);
    free(tmp);
    return rc;
}

static int make_one(const char *path, mode_t mode, struct err *e)
{
    struct stat st;
    if (mkdir(path, mode) == 0)
        return E_OK;
    int no = errno;
    if (no == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return E_OK;
    return err_sys(e, no == EEXIST ? ENOTDIR : no, "mkdir %s", path);
}

int file_mkdirs(const char *path, mode_t mode, struct err *e)
{
    char *copy = xstrdup(path);
    int rc = E_OK;
    for (char *p = copy + 1; *copy && rc == E_OK && (p = strchr(p, '/')); p++) {
        *p = '\0';
        rc = make_one(copy, 0755, e);
        *p = '/';
    }
    if (rc == E_OK)
        rc = make_one(copy, mode, e);
    free(copy);
    return rc;
}
