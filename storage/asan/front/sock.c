/* See sock.h. */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "storage/asan/front/sock.h"

int sock_listen(const char *path, mode_t mode, int *ret_fd, struct sock_file *ret_file, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct stat st;
    int n = snprintf(sa.sun_path, sizeof sa.sun_path, "%s.new", path);
    if (n < 0 || (size_t)n >= sizeof sa.sun_path)
        return err_set(e, E_INVAL, "socket path %s is too long", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(e, errno, "socket");
    (void)unlink(sa.sun_path);
    if (bind(fd, (struct sockaddr *)&sa, sizeof sa) || chmod(sa.sun_path, mode) || listen(fd, 64) ||
        stat(sa.sun_path, &st) || rename(sa.sun_path, path)) {
        int rc = err_sys(e, errno, "listen on %s", path);
        (void)unlink(sa.sun_path);
        close(fd);
        return rc;
    }
    *ret_file = (struct sock_file){st.st_dev, st.st_ino};
    *ret_fd = fd;
    return E_OK;
}

void sock_unlink(const char *path, const struct sock_file *file)
{
    struct stat st;
    if (!stat(path, &st) && st.st_dev == file->dev && st.st_ino == file->ino)
        (void)unlink(path);
}
