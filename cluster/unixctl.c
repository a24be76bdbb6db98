/* Client of OVS control sockets. See unixctl.h. */
#include "cluster/unixctl.h"
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"

#define ANSWER_MAX (1u << 20)

static int dial(const char *path, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sa.sun_path)
        return err_set(e, E_INVAL, "%s: path of a socket too long", path);
    memcpy(sa.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, errno, "socket");
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
        err_set(e, E_UNAVAIL, "%s: %s", path, strerror(errno));
        close(fd);
        return E_UNAVAIL;
    }
    return fd;
}

static bool wait_for(int fd, short events, uint64_t deadline_ms)
{
    for (;;) {
        uint64_t now = clock_boot_ms();
        struct pollfd p = {.fd = fd, .events = events};
        int n = now >= deadline_ms ? 0 : poll(&p, 1, (int)(deadline_ms - now));
        if (n > 0)
            return true;
        if (n == 0)
            return false;
        if (errno != EINTR)
            return false;
    }
}

static int send_all(int fd, const char *data, size_t n, uint64_t deadline_ms, struct err *e)
{
    while (n) {
        if (!wait_for(fd, POLLOUT, deadline_ms))
            return err_set(e, E_TIMEOUT, "the server does not read");
        ssize_t r = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (r < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (r < 0)
            return err_sys(e, errno, "send");
        data += r;
        n -= (size_t)r;
    }
    return 0;
}

/* One JSON value; it ends with its last brace, the connection stays open. */
static int receive(int fd, uint64_t deadline_ms, json_t **ret, struct err *e)
{
    struct buf b = {0};
    int status = 0;
    for (;;) {
        char chunk[4096];
        if (!wait_for(fd, POLLIN, deadline_ms)) {
            status = err_set(e, E_TIMEOUT, "the server does not answer");
            break;
        }
        ssize_t r = recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
        if (r < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (r <= 0) {
            status = err_set(e, E_DISCONN, "the server closed the connection");
            break;
        }
        buf_append(&b, chunk, (size_t)r);
        json_t *j = chunk[r - 1] == '}' || chunk[r - 1] == '\n' ? json_loadb(b.data, b.len, 0, NULL) : NULL;
        if (j) {
            *ret = j;
            break;
        }
        if (b.len > ANSWER_MAX) {
            status = err_set(e, E_PROTO, "the server's answer is no JSON object of at most 1 MiB");
            break;
        }
    }
    buf_free(&b);
    return status;
}

static int call(int fd, const char *method, size_t n, const char *const *args, uint64_t deadline_ms, char **ret_text, struct err *e)
{
    json_t *params = json_array(), *answer = NULL;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(params, json_string(args[i]));
    json_t *request = json_pack("{s:i, s:s, s:o}", "id", 0, "method", method, "params", params);
    char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    int r = send_all(fd, text, strlen(text), deadline_ms, e);
    free(text);
    if (!r)
        r = receive(fd, deadline_ms, &answer, e);
    if (r)
        return r;
    const char *error = json_string_value(json_object_get(answer, "error"));
    const char *result = json_string_value(json_object_get(answer, "result"));
    if (error)
        r = err_set(e, E_INVAL, "%.*s", (int)strcspn(error, "\n"), error);
    else if (!result)
        r = err_set(e, E_PROTO, "the server's answer has no result");
    else
        *ret_text = xstrdup(result);
    json_decref(answer);
    return r;
}

int unixctl_call(const char *socket_path, const char *method, size_t n_args, const char *const *args, int timeout_ms,
                 char **ret_text, struct err *e)
{
    int fd = dial(socket_path, e);
    if (fd < 0)
        return fd;
    int r = call(fd, method, n_args, args, clock_boot_ms() + (uint64_t)timeout_ms, ret_text, e);
    close(fd);
    if (r)
        err_wrap(e, "%s", method);
    return r;
}
