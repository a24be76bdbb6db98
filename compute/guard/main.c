/* cohort-guard: one beside every guest. Stops the guest when the node's lease runs out, whatever the daemon does.
 *
 * It lives as long as its QEMU and needs nothing else: it polls the lease page (compute/lease.h) every 100 ms and keeps a
 * QMP connection of its own (guard.sock). On expiry:
 *   1. `stop` over QMP: the processors stand still at once, devices drain; QEMU stays answerable.
 *   2. If that is not confirmed within 1 s (monitor hangs, connection lost): SIGSTOP to the QEMU process. This stops
 *      processors and devices alike, but the monitor too: the daemon must SIGCONT before it can speak to it
 *      (machine_resume() does, after the database said that the guest is still ours).
 * While the lease is expired any RESUME event is answered with `stop` again. When the lease returns the guard does
 * nothing: whether the guest may go on is the daemon's decision.
 *
 * Besides, it keeps the serial log short: a guest writes there without limit, and run_dir is memory. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "compute/lease.h"

LOG_MODULE("guard");

#define POLL_MS 100
#define FREEZE_AFTER_MS 1000
#define LOG_CHECK_MS 5000
#define LOG_MAX_BYTES (1 << 20)
#define LOG_KEEP_BYTES (64 << 10)

enum link { LINK_DOWN, LINK_GREETING, LINK_NEGOTIATING, LINK_UP };

struct guard {
    const char *lease_path, *qmp_path, *log_path;
    pid_t pid;
    int pidfd, ready_fd, sock;
    enum link link;
    struct lease lease;
    char in[16 << 10];
    size_t in_len;
    /* while the lease is expired */
    uint64_t since_ms; /* of expiry, or of the last RESUME seen after it; 0 = lease valid */
    bool asked, stopped, frozen;
    uint64_t log_checked_ms;
};

static void disconnect(struct guard *g)
{
    if (g->sock >= 0)
        close(g->sock);
    g->sock = -1;
    g->link = LINK_DOWN;
    g->in_len = 0;
    g->asked = g->stopped = false; /* what happened meanwhile was not seen */
}

static void say(struct guard *g, const char *line)
{
    size_t len = strlen(line);
    if (send(g->sock, line, len, MSG_NOSIGNAL) != (ssize_t)len)
        disconnect(g);
}

static void try_connect(struct guard *g)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    memcpy(sa.sun_path, g->qmp_path, strlen(g->qmp_path) + 1);
    g->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (g->sock < 0 || connect(g->sock, (struct sockaddr *)&sa, sizeof sa) < 0)
        disconnect(g);
    else
        g->link = LINK_GREETING;
}

/* QEMU escapes quotes within strings, so these patterns match members of the message only. */
static void on_line(struct guard *g, const char *line)
{
    if (g->link == LINK_GREETING && strstr(line, "{\"QMP\":")) {
        g->link = LINK_NEGOTIATING;
        say(g, "{\"execute\":\"qmp_capabilities\",\"id\":\"caps\"}\n");
    } else if (strstr(line, "\"id\": \"caps\"")) {
        g->link = LINK_UP;
        if (g->ready_fd >= 0 && g->lease.page) {
            (void)!write(g->ready_fd, "1", 1);
            close(g->ready_fd);
            g->ready_fd = -1;
        }
    } else if (strstr(line, "\"id\": \"stop\"")) {
        g->asked = false;
        g->stopped = strstr(line, "\"return\"") != NULL;
        if (g->stopped)
            log_warn("lease expired: guest stopped");
        else
            log_err("stop was refused: %.200s", line);
    } else if (strstr(line, "\"event\": \"RESUME\"") && g->since_ms) {
        g->stopped = false;
        g->since_ms = clock_boot_ms();
    }
}

static void on_readable(struct guard *g)
{
    ssize_t n = recv(g->sock, g->in + g->in_len, sizeof g->in - 1 - g->in_len, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        disconnect(g);
        return;
    }
    g->in_len += n > 0 ? (size_t)n : 0;
    g->in[g->in_len] = '\0';
    char *line = g->in, *end;
    while (g->sock >= 0 && (end = strchr(line, '\n'))) {
        *end = '\0';
        on_line(g, line);
        line = end + 1;
    }
    if (g->sock < 0)
        return;
    g->in_len = strlen(line);
    memmove(g->in, line, g->in_len + 1);
    if (g->in_len == sizeof g->in - 1) /* nothing that concerns us is that long */
        g->in_len = 0;
}

static bool lease_now(struct guard *g)
{
    if (lease_valid(&g->lease))
        return true;
    /* Replaced or not there at first: the daemon writes to what the path names. */
    struct stat st;
    if (stat(g->lease_path, &st) == 0 && (!g->lease.page || st.st_ino != g->lease.inode)) {
        struct lease fresh;
        if (lease_open(g->lease_path, &fresh, NULL) == E_OK) {
            lease_close(&g->lease);
            g->lease = fresh;
        }
    }
    return lease_valid(&g->lease);
}

static void watch_lease(struct guard *g)
{
    if (lease_now(g)) {
        g->since_ms = 0;
        g->asked = g->stopped = g->frozen = false;
        return;
    }
    uint64_t now = clock_boot_ms();
    if (!g->since_ms)
        g->since_ms = now;
    if (g->stopped || g->frozen)
        return;
    if (g->link == LINK_UP && !g->asked) {
        g->asked = true;
        say(g, "{\"execute\":\"stop\",\"id\":\"stop\"}\n");
    }
    if (now - g->since_ms >= FREEZE_AFTER_MS) {
        log_warn("lease expired and no answer over QMP: freezing process %d", (int)g->pid);
        if (syscall(SYS_pidfd_send_signal, g->pidfd, SIGSTOP, NULL, 0) == 0)
            g->frozen = true;
    }
}

/* QEMU appends (O_APPEND), so the file may shrink under it. Bytes written in between are lost. */
static void trim_log(struct guard *g)
{
    static char keep[LOG_KEEP_BYTES];
    struct stat st;
    int fd = g->log_path ? open(g->log_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0 && st.st_size > LOG_MAX_BYTES) {
        ssize_t n = pread(fd, keep, sizeof keep, st.st_size - LOG_KEEP_BYTES);
        if (n > 0 && ftruncate(fd, 0) == 0)
            (void)!pwrite(fd, keep, (size_t)n, 0);
    }
    close(fd);
}

/* Returns when QEMU has ended. */
static void run(struct guard *g)
{
    for (;;) {
        if (g->sock < 0)
            try_connect(g);
        struct pollfd p[2] = {{.fd = g->pidfd, .events = POLLIN}, {.fd = g->sock, .events = POLLIN}};
        if (poll(p, 2, POLL_MS) > 0) {
            if (p[0].revents)
                return;
            if (g->sock >= 0 && p[1].revents)
                on_readable(g);
        }
        watch_lease(g);
        if (clock_boot_ms() - g->log_checked_ms >= LOG_CHECK_MS) {
            g->log_checked_ms = clock_boot_ms();
            trim_log(g);
        }
    }
}

/* Start time of a process (proc(5), stat field 22): with it a pid names one process for good. 0 = gone. */
static unsigned long long start_ticks(pid_t pid)
{
    char path[48], text[1024];
    unsigned long long t = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p && sscanf(p, "%llu", &t) == 1 ? t : 0;
}

/* It must run when the machine is short of everything: memory locked, spared by the OOM killer, before others. */
static void harden(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!write(fd, "-1000", 5);
        close(fd);
    }
    (void)mlockall(MCL_CURRENT);
    (void)setpriority(PRIO_PROCESS, 0, -15);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    static struct guard g = {.pidfd = -1, .ready_fd = -1, .sock = -1};
    static const struct option options[] = {{"pid", 1, 0, 'p'},   {"start", 1, 0, 's'}, {"lease", 1, 0, 'l'}, {"qmp", 1, 0, 'q'},
                                            {"log", 1, 0, 'o'}, {"ready-fd", 1, 0, 'r'}, {0}};
    unsigned long long start = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 'p': g.pid = (pid_t)atol(optarg); break;
        case 's': start = strtoull(optarg, NULL, 10); break;
        case 'l': g.lease_path = optarg; break;
        case 'q': g.qmp_path = optarg; break;
        case 'o': g.log_path = optarg; break;
        case 'r': g.ready_fd = atoi(optarg); break;
        default: return 2;
        }
    }
    if (g.pid <= 1 || !start || !g.lease_path || !g.qmp_path || strlen(g.qmp_path) >= sizeof(struct sockaddr_un) - sizeof(sa_family_t)) {
        fprintf(stderr, "usage: cohort-guard --pid PID --start TICKS --lease FILE --qmp SOCKET [--log FILE] [--ready-fd N]\n");
        return 2;
    }
    g.pidfd = (int)syscall(SYS_pidfd_open, g.pid, 0);
    if (g.pidfd < 0 || start_ticks(g.pid) != start)
        return 0; /* it has ended already */
    harden();
    if (lease_open(g.lease_path, &g.lease, NULL) != E_OK)
        log_warn("no lease page yet: as if it had expired");
    run(&g);
    return 0;
}
