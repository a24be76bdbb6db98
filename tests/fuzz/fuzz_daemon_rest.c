/* An HTTP client that says anything to the REST API, over its real unix socket (where everyone is root), against the database in
 * memory. First byte odd: the input is what goes over the socket. Even: a method, a path and a body, put into a proper request,
 * so that what is behind HTTP is reached. Every request is answered or its connection closed; nothing is left when it is gone.
 *
 * What founds or joins a cluster works in directories and threads of its own and is left out. */
#include "tests/lib/twin.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/log.h"
#include "daemon/join.h"
#include "daemon/rest.h"
#include "daemon/wire.h"
#include "storage/asan/engine/asan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUEST_MAX 24576u
#define EACH 2000 /* inputs until the cluster is made anew: its rows must not grow for ever */

/* What the rest of the daemon would do. */
int daemon_become_member(struct daemon *d, struct err *e) { return err_set(e, E_UNAVAIL, "none"); }
void daemon_member_conf(struct daemon *d, struct member_conf *c, struct member_disk *disks) { *c = (struct member_conf){.state_dir = d->conf.state_dir}; }
size_t asan_link_states(struct asan *a, const char *node_id, struct asan_link_state *ret, size_t max) { return 0; }
void asan_io(struct asan *a, struct asan_io *io) { abort(); }
void asan_claim(struct asan *a, struct asan_claim *c) { abort(); }
void asan_release(struct asan *a, const char *volume_id) { abort(); }
void asan_changed(struct asan *a, struct asan_changed *q) { abort(); /* there is no storage here */ }
char *asan_dump_json(struct asan *a, const char *volume_id) { return xstrdup("{}"); }

static struct twin w;
static char dir[64];
static int inputs;

static void begin(void)
{
    struct err e;
    twin_open(&w);
    w.d.conf.run_dir = w.d.conf.state_dir = dir;
    w.d.conf.address = "127.0.0.1";
    int rc = rest_open(&w.d, &w.d.rest, &e);
    assert_int_equal(rc, E_OK);
}

static void end(void)
{
    rest_close(w.d.rest);
    uv_run(&w.loop, UV_RUN_NOWAIT);
    twin_close(&w);
}

static int dial(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int n = snprintf(sa.sun_path, sizeof sa.sun_path, "%s/api.sock", dir);
    assert_true(n < (int)sizeof sa.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    return fd;
}

/* A proper request. Bytes: method, path, up to two names for its stars, then the body. */
static size_t request(const uint8_t *in, size_t n, char *out)
{
    static const char *const methods[] = {"GET", "POST", "PUT", "DELETE"};
    static const char *const paths[] = {
        "cluster", "cluster/tokens", "cluster/join-requests", "nodes", "nodes/*", "nodes/*/maintenance", "settings/*", "repair", "disks",
        "disks/*", "disks/*/drain", "disks/*/spare", "disks/*/use", "disks/*/replace", "volumes", "volumes/*", "volumes/*/resize",
        "volumes/*/check", "volumes/*/limits", "volumes/*/clone", "volumes/*/give-up", "volumes/*/flatten", "volumes/*/changed", "snapshots", "snapshots/*", "snapshots/*/revert", "images",
        "images/*", "images/*/files/*", "vms", "vms/*", "vms/*/start", "vms/*/stop", "vms/*/kill", "vms/*/migrate", "networks",
        "networks/*", "ports", "ports/*", "tasks", "tasks/*", "tasks/*/cancel", "events", "tokens", "tokens/*", "debug/log"};
    static const char *const names[] = {"n1", "d0", "v", "x", "n1:d0", "%2e%2e", "%00", "a%2fb", "00000000-0000-4000-8000-000000000001",
                                        "%zz", "debian", "rebuild", "kernel", "?q=1", "limit", "default"};
    const char *path = paths[n > 1 ? in[1] % (sizeof paths / sizeof *paths) : 0];
    size_t at = 2, o = (size_t)sprintf(out, "%s /api/v1/", methods[n ? in[0] % 4 : 0]);
    for (; *path; path++) {
        if (*path != '*') {
            out[o++] = *path;
            continue;
        }
        o += (size_t)sprintf(out + o, "%s", names[at < n ? in[at] % 16 : 0]);
        at++;
    }
    at = at < n ? at : n;
    if (at < n && in[at] >= 250) /* a query */
        o += (size_t)sprintf(out + o, "?limit=%u&task=%u", in[at] * 77u, in[at]);
    size_t body = n - at < REQUEST_MAX - 1024 ? n - at : REQUEST_MAX - 1024;
    o += (size_t)sprintf(out + o, " HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", body);
    memcpy(out + o, in + at, body);
    return o + body;
}

static bool founds(const char *text, size_t n)
{
    return memmem(text, n, "init", 4) || memmem(text, n, "cluster/join", 12) || memmem(text, n, "cluster/key", 11) || memmem(text, n, "%6", 2);
}

static void talk(const char *text, size_t n)
{
    int fd = dial(), quiet = 0;
    char sink[4096];
    size_t sent = 0;
    bool over = false;
    for (int turn = 0; turn < 400 && quiet < 6 && !over; turn++) {
        if (sent < n) {
            ssize_t k = send(fd, text + sent, n - sent, MSG_NOSIGNAL);
            sent += k > 0 ? (size_t)k : 0;
        }
        uv_run(&w.loop, UV_RUN_NOWAIT);
        ssize_t got = recv(fd, sink, sizeof sink, MSG_DONTWAIT);
        over = got == 0;
        quiet = got > 0 || sent < n ? 0 : quiet + 1; /* it waits for more, or has said all */
    }
    close(fd);
    for (int turn = 0; turn < 50 && !LIST_EMPTY(&w.d.rest->requests); turn++)
        uv_run(&w.loop, UV_RUN_NOWAIT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[REQUEST_MAX];
    if (!*dir) {
        signal(SIGPIPE, SIG_IGN);
        log_set_level("*", LOG_LVL_ERR);
        snprintf(dir, sizeof dir, "/tmp/cohort-fuzz-rest-XXXXXX");
        if (!mkdtemp(dir))
            abort();
    }
    if (size < 2)
        return 0;
    if (inputs++ % EACH == 0) {
        if (inputs > 1)
            end();
        begin();
    }
    size_t n;
    if (data[0] & 1) {
        n = size - 1 < sizeof text ? size - 1 : sizeof text;
        memcpy(text, data + 1, n);
    } else {
        n = request(data + 1, size - 1, text);
    }
    if (!founds(text, n))
        talk(text, n);
    return 0;
}
