/* See guest_run.h. */
#include "tests/lib/guest_run.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"

static void changed(struct machine *m, void *arg)
{
    struct rig *r = arg;
    if (r->on_change)
        r->on_change(m, r->on_change_arg);
}

static bool in_path(const char *program)
{
    char *path = xstrdup(getenv("PATH")), *save = NULL;
    bool found = false;
    for (char *d = strtok_r(path, ":", &save); d && !found; d = strtok_r(NULL, ":", &save)) {
        char *p = xasprintf("%s/%s", d, program);
        found = access(p, X_OK) == 0;
        free(p);
    }
    free(path);
    return found;
}

/* Orphans of the child become ours (subreaper): whoever has us as parent is to go. */
static void end_orphans(void)
{
    for (bool found = true; found;) {
        DIR *d = opendir("/proc");
        found = false;
        for (struct dirent *de; d && (de = readdir(d));) {
            char path[300], *text;
            int pid = atoi(de->d_name), parent = 0;
            snprintf(path, sizeof path, "/proc/%s/stat", de->d_name);
            if (pid <= 0 || file_read(path, 4096, &text, NULL, NULL) != E_OK)
                continue;
            char *p = strrchr(text, ')');
            if (p && sscanf(p + 1, " %*c %d", &parent) == 1 && parent == getpid()) {
                fprintf(stderr, "the test left process %d: killed\n", pid);
                kill(pid, SIGKILL);
                waitpid(pid, NULL, 0);
                found = true;
            }
            free(text);
        }
        if (d)
            closedir(d);
    }
}

static int supervise(pid_t child)
{
    int status = 0;
    pid_t p;
    while ((p = waitpid(-1, &status, 0)) != child && p > 0)
        ;
    end_orphans();
    char *rm = xasprintf("rm -rf /tmp/cohort-test-%d-*; for c in memory cpu; do find /sys/fs/cgroup/$c -maxdepth 2 -depth"
                         " -path '*/cohort-test-%d-*' -type d -exec rmdir {} + ; done 2>/dev/null", (int)child, (int)child);
    int rc = system(rm);
    free(rm);
    (void)rc;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

void rig_require(void)
{
    if (geteuid() != 0 || !in_path("qemu-system-x86_64") || !in_path("qemu-storage-daemon")) {
        printf("skipped: needs root, qemu-system-x86_64 and qemu-storage-daemon\n");
        exit(77);
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    fflush(stdout);
    pid_t child = fork();
    assert(child >= 0);
    if (child > 0)
        exit(supervise(child));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void rig_reopen(struct rig *r)
{
    struct err e;
    struct machines_conf c = {.loop = r->loop, .run_dir = r->dir, .lease_path = r->lease_path, .guard_path = TEST_GUARD,
                              .cgroup = r->dir + strlen("/tmp/"), .changed = changed, .arg = r};
    if (machines_open(&c, &r->ms, &e) != E_OK) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
}

void rig_open(struct rig *r, uv_loop_t *loop)
{
    *r = (struct rig){.loop = loop};
    snprintf(r->dir, sizeof r->dir, "/tmp/cohort-test-%d-XXXXXX", (int)getpid());
    assert(mkdtemp(r->dir));
    snprintf(r->lease_path, sizeof r->lease_path, "%s/lease", r->dir);
    assert(lease_create(r->lease_path, &r->lease, NULL) == E_OK);
    rig_lease_ms(r, 3600000);
    rig_reopen(r);
}

static bool none_left(void *arg)
{
    struct rig *r = arg;
    bool left = false;
    for (struct machine *m = machines_first(r->ms); m; m = machines_next(r->ms, m))
        left |= machine_state(m) != MACHINE_ENDED;
    return !left;
}

static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = -2; /* "." and ".." */
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

void rig_close(struct rig *r)
{
    for (struct machine *m = machines_first(r->ms); m; m = machines_next(r->ms, m))
        machine_kill(m);
    assert(rig_until(r->loop, none_left, r, 10000));
    for (struct machine *m; (m = machines_first(r->ms));)
        machine_free(m);
    machines_close(r->ms);
    rig_run_ms(r->loop, 10);
    char path[128];
    snprintf(path, sizeof path, "%s/vm", r->dir);
    assert(entries(path) == 0);
    snprintf(path, sizeof path, "/sys/fs/cgroup/memory/%s", r->dir + strlen("/tmp/"));
    assert(access(path, F_OK) != 0);
    lease_close(&r->lease);
    char *rm = xasprintf("rm -rf %s", r->dir);
    assert(system(rm) == 0);
    free(rm);
}

void rig_lease_ms(struct rig *r, int64_t ms) { lease_set(&r->lease, ms > 0 ? clock_boot_ns() + (uint64_t)ms * 1000000u : 0); }

void rig_spec(struct machine_spec *s, enum machine_type type, enum machine_accel accel)
{
    *s = (struct machine_spec){.name = "t1", .generation = 1, .vcpus = 1, .memory_bytes = 64 << 20, .type = type, .accel = accel};
    id_new(s->id);
    snprintf(s->kernel, sizeof s->kernel, "%s", TEST_GUEST);
}

static void on_timer(uv_timer_t *t) { *(bool *)t->data = true; }
static void on_tick(uv_timer_t *t) {}

bool rig_until(uv_loop_t *loop, rig_cond *cond, void *arg, unsigned ms)
{
    uv_timer_t end, tick; /* the tick bounds how late a condition outside the loop is seen */
    bool over = false;
    uv_timer_init(loop, &end);
    uv_timer_init(loop, &tick);
    end.data = &over;
    uv_update_time(loop);
    uv_timer_start(&end, on_timer, ms, 0);
    uv_timer_start(&tick, on_tick, 5, 5);
    bool ok;
    while (!(ok = cond(arg)) && !over)
        uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&end, NULL);
    uv_close((uv_handle_t *)&tick, NULL);
    for (int i = 0; i < 2; i++)
        uv_run(loop, UV_RUN_NOWAIT);
    return ok;
}

static bool never(void *arg) { return false; }
void rig_run_ms(uv_loop_t *loop, unsigned ms) { (void)rig_until(loop, never, NULL, ms); }

struct want_state {
    struct machine *m;
    enum machine_state s;
};
static bool has_state(void *arg)
{
    struct want_state *w = arg;
    return machine_state(w->m) == w->s;
}

bool rig_until_state(struct machine *m, enum machine_state s, unsigned ms)
{
    struct want_state w = {m, s};
    bool ok = rig_until(uv_default_loop(), has_state, &w, ms);
    if (!ok)
        fprintf(stderr, "machine is %s instead of %s: %s\n", machine_state_name(machine_state(m)), machine_state_name(s), machine_message(m));
    return ok;
}

long rig_guest_sweep(const struct rig *r, const struct machine_spec *s)
{
    char path[160], *text;
    long n = -1;
    snprintf(path, sizeof path, "%s/vm/%s/serial.log", r->dir, s->id);
    if (file_read(path, 8 << 20, &text, NULL, NULL) != E_OK)
        return -1;
    char *last_line = strrchr(text, '\n');
    if (last_line)
        last_line[1] = '\0'; /* no number of which the end is not there yet */
    else
        text[0] = '\0';
    if (strstr(text, "BAD"))
        n = -2;
    else
        for (char *p = text; (p = strstr(p, "ok ")); p++)
            n = atol(p + 3);
    free(text);
    return n;
}

struct want_sweep {
    const struct rig *r;
    const struct machine_spec *s;
    long n;
};
static bool has_sweep(void *arg)
{
    struct want_sweep *w = arg;
    long n = rig_guest_sweep(w->r, w->s);
    assert(n != -2);
    return n >= w->n;
}

bool rig_guest_goes_on(const struct rig *r, const struct machine_spec *s, long n, unsigned ms)
{
    struct want_sweep w = {r, s, rig_guest_sweep(r, s) + n};
    return rig_until(r->loop, has_sweep, &w, ms);
}

static bool is_socket(void *arg)
{
    struct stat st;
    return stat(arg, &st) == 0 && S_ISSOCK(st.st_mode);
}

pid_t rig_disk(const struct rig *r, const char *socket, long bytes)
{
    char *img = xasprintf("%s/disk.img", r->dir);
    int fd = open(img, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert(fd >= 0 && ftruncate(fd, bytes) == 0);
    close(fd);
    char *dev = xasprintf("driver=file,filename=%s,node-name=f0,locking=off", img);
    char *export = xasprintf("type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path=%s,writable=on,num-queues=4", socket);
    pid_t pid = fork();
    assert(pid >= 0);
    if (pid == 0) {
        execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", dev, "--export", export, (char *)NULL);
        _exit(127);
    }
    assert(rig_until(r->loop, is_socket, (void *)(uintptr_t)socket, 20000));
    free(img);
    free(dev);
    free(export);
    return pid;
}

void rig_disk_end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}
