/* What /dev/kvm is worth: measurement in a child, judgement here. See hostcheck.h. */
#include "compute/hostcheck/hostcheck.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"

/* A nested guest with hardware help reaches well over half; interpretation is three orders of magnitude below. */
#define NATIVE_SHARE 0.1

struct report { /* child to parent, at once (less than PIPE_BUF) */
    struct hostcheck h;
    int rc;
    char why[128];
};

const char *hostcheck_kvm_name(enum hostcheck_kvm k)
{
    static const char *const names[] = {"absent", "unusable", "emulated", "native"};
    return names[k];
}

void hostcheck_judge(struct hostcheck *h)
{
    bool native = h->guest_loops_s >= h->native_loops_s * NATIVE_SHARE;
    h->kvm = native ? HOSTCHECK_KVM_NATIVE : HOSTCHECK_KVM_EMULATED;
    h->accel = native ? MACHINE_KVM : MACHINE_TCG;
    if (native)
        snprintf(h->reason, sizeof h->reason, "/dev/kvm runs guest kernel code natively (%.0f million loop turns/s, %.0f outside)",
                 h->guest_loops_s / 1e6, h->native_loops_s / 1e6);
    else
        snprintf(h->reason, sizeof h->reason,
                 "/dev/kvm is there but interprets guest kernel code (%.2f million loop turns/s, %.0f outside): TCG is faster and complete",
                 h->guest_loops_s / 1e6, h->native_loops_s / 1e6);
    /* Without hardware help the host's own feature set cannot be passed on (arch-capabilities, pni, cmpxchg16b). */
    snprintf(h->kvm_cpu, sizeof h->kvm_cpu, "%s", native ? "host" : "qemu64,-cx16,-pni");
}

static void __attribute__((noreturn)) child(const char *device, int fd)
{
    static struct report r;
    alarm(HOSTCHECK_MAX_MS / 1000 + 2); /* should the parent die meanwhile */
    r.rc = hostcheck_probe(device, &r.h, r.why, sizeof r.why);
    _exit(write(fd, &r, sizeof r) == sizeof r ? 0 : 1);
}

static bool read_report(int fd, struct report *r)
{
    uint64_t end = clock_boot_ms() + HOSTCHECK_MAX_MS;
    for (;;) {
        uint64_t now = clock_boot_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (now >= end)
            return false;
        int n = poll(&p, 1, (int)(end - now));
        if (n < 0 && errno == EINTR)
            continue;
        return n > 0 && read(fd, r, sizeof *r) == (ssize_t)sizeof *r;
    }
}

void hostcheck_run(const char *device, struct hostcheck *ret_check)
{
    struct report r = {.rc = -1};
    struct hostcheck h = {.accel = MACHINE_TCG};
    device = device ? device : "/dev/kvm";
    int fds[2];
    if (access(device, F_OK) != 0) {
        h.kvm = HOSTCHECK_KVM_ABSENT;
        snprintf(h.reason, sizeof h.reason, "there is no %.100s: hardware virtualisation is off, or its kernel module is not loaded", device);
        *ret_check = h;
        return;
    }
    h.kvm = HOSTCHECK_KVM_UNUSABLE;
    pid_t pid = -1;
    if (pipe2(fds, O_CLOEXEC) == 0) {
        pid = fork();
        if (pid == 0)
            child(device, fds[1]);
        close(fds[1]);
        if (pid > 0 && !read_report(fds[0], &r))
            snprintf(r.why, sizeof r.why, "no result within %d ms", HOSTCHECK_MAX_MS);
        close(fds[0]);
    }
    if (pid > 0) {
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    } else {
        snprintf(r.why, sizeof r.why, "cannot start the measurement: %s", strerror(errno));
    }
    h.api_version = r.h.api_version;
    h.irqfd = r.h.irqfd;
    h.ioeventfd = r.h.ioeventfd;
    h.dirty_log_protect = r.h.dirty_log_protect;
    h.guest_loops_s = r.h.guest_loops_s;
    h.native_loops_s = r.h.native_loops_s;
    if (r.rc == 0)
        hostcheck_judge(&h);
    else
        snprintf(h.reason, sizeof h.reason, "%.60s cannot be used: %s", device, r.why);
    *ret_check = h;
}

char *hostcheck_json(const struct hostcheck *h)
{
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:i, s:{s:b, s:b, s:b}, s:f, s:f}", "accel", machine_accel_name(h->accel), "kvm",
                          hostcheck_kvm_name(h->kvm), "reason", h->reason, "kvm_cpu", h->kvm_cpu, "api_version", h->api_version,
                          "capabilities", "irqfd", h->irqfd, "ioeventfd", h->ioeventfd, "manual_dirty_log_protect",
                          h->dirty_log_protect, "guest_loops_per_s", h->guest_loops_s, "native_loops_per_s", h->native_loops_s);
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    json_decref(j);
    return text ? text : xstrdup("{}");
}
