/* Listening unix sockets. */
#ifndef COHORT_FRONT_SOCK_H
#define COHORT_FRONT_SOCK_H

#include <sys/types.h>
#include "base/err.h"

struct sock_file { /* identity of a socket file we made */
    dev_t dev;
    ino_t ino;
};

/* Listens on `path`, replacing whatever is there, with permission bits `mode`. The file appears (by rename) only when the
 * socket listens. *ret_fd is non-blocking and close-on-exec. */
MUST_CHECK int sock_listen(const char *path, mode_t mode, int *ret_fd, struct sock_file *ret_file, struct err *e);
/* Removes `path` if it still is that file: not if another process has taken it over. */
void sock_unlink(const char *path, const struct sock_file *file);

#endif
