/* A guest's process and its guard: start, watch, end. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "compute/host/tap.h"
#include "compute/machine_int.h"
#include "compute/qemu/args.h"

LOG_MODULE("asv");

#define GUARD_RETRY_MS 1000
#define PRESS_AGAIN_MS 3000 /* a guest that is still booting misses the first press of the power button */

static int start_qemu(struct machine *m, struct err *e)
{
    struct machines *ms = m->ms;
    char dir[MACHINE_PATH_MAX], log[MACHINE_PATH_MAX], pid[MACHINE_PATH_MAX];
    machine_path(ms, m->spec.id, "", dir);
    machine_path(ms, m->spec.id, "qemu.log", log);
    machine_path(ms, m->spec.id, "qemu.pid", pid);
    struct qemu_env env = {.program = ms->qemu_path, .dir = dir, .vhost_net = access("/dev/vhost-net", R_OK | W_OK) == 0,
                           .tsc_khz = ms->tsc_khz};
    struct qemu_args args;
    qemu_args_build(&m->spec, &env, &args);
    struct proc_spec p = {.argv = (const char *const *)args.v, .log_file = log, .pid_file = pid};
    int rc = proc_start(&p, &m->qemu, e);
    qemu_args_free(&args);
    return rc;
}

int machine_launch(struct machine *m, struct err *e)
{
    struct machine_spec *s = &m->spec;
    int rc = machine_dir_make(m->ms, s, e);
    for (int i = 0; rc == E_OK && i < s->n_nics; i++)
        rc = tap_make(s->nics[i].tap, s->nics[i].mtu, e);
    if (rc == E_OK)
        rc = start_qemu(m, e);
    if (rc == E_OK && m->ms->cgroups.n > 0) {
        struct cgroup_limits l = {.memory_max_bytes = s->memory_max_bytes, .cpu_max_permille = s->cpu_max_permille, .vcpus = s->vcpus};
        struct err ce;
        if (cgroup_enter(&m->ms->cgroups, s->id, m->qemu.pid, &l, &ce) != E_OK)
            log_warn("machine %s runs without its limits: %s", s->name, ce.msg); /* better than not at all */
    }
    if (rc != E_OK) {
        machine_clean_up(m->ms, s);
        err_wrap(e, "start machine %s", s->name);
        return rc;
    }
    return E_OK;
}

/* ---- end ---- */

static void ended(struct machine *m)
{
    if (m->end == MACHINE_END_NONE) {
        m->end = m->guest_off ? MACHINE_END_GUEST : m->killed ? MACHINE_END_KILLED : MACHINE_END_FAILED;
        if (m->end == MACHINE_END_FAILED && !m->message[0]) {
            char why[160];
            machine_log_tail(m->ms, m->spec.id, why, sizeof why);
            machine_say(m, "QEMU ended unexpectedly%s%s", why[0] ? ": " : "", why);
        }
    }
    machine_detach(m, E_CANCELED);
    machine_clean_up(m->ms, &m->spec);
    machine_move(m, MACHINE_ENDED);
}

static void on_guard_end(void *arg)
{
    struct machine *m = arg;
    watch_close(m->guard_watch);
    m->guard_watch = NULL;
    proc_close(&m->guard);
    m->guard_ready = false;
    if (!m->qemu.pid) {
        ended(m);
        return;
    }
    if (!proc_alive(&m->qemu)) /* it left because of that; the next event tells us */
        return;
    log_warn("machine %s: its guard ended; starting another", m->spec.name);
    m->guard_at_ms = clock_boot_ms() + (m->guard_starts > 1 ? GUARD_RETRY_MS : 0);
    machine_arm(m);
}

static void on_qemu_end(void *arg)
{
    struct machine *m = arg;
    watch_close(m->qemu_watch);
    m->qemu_watch = NULL;
    proc_close(&m->qemu);
    qmp_close(m->qmp);
    m->qmp = NULL;
    machine_op_fail_all(m, E_CANCELED);
    m->guard_at_ms = m->kill_at_ms = m->press_at_ms = m->recheck_at_ms = 0;
    if (m->guard_watch)
        proc_signal(&m->guard, SIGKILL); /* it would see QEMU's end by itself, 100 ms later */
    else
        ended(m);
}

void machine_watch_process(struct machine *m)
{
    m->qemu_watch = watch_open(m->ms->conf.loop, m->qemu.pidfd, on_qemu_end, m);
}

/* ---- guard ---- */

static void on_guard_ready(void *arg)
{
    struct machine *m = arg;
    char c;
    ssize_t n = read(m->ready_fd, &c, 1);
    if (n < 0 && errno == EAGAIN)
        return;
    watch_close(m->ready_watch);
    m->ready_watch = NULL;
    close(m->ready_fd);
    m->ready_fd = -1;
    if (n == 1) {
        m->guard_ready = true;
        machine_go(m);
    } /* else it ended: on_guard_end() sees to that */
}

/* The guard proves that it watches by a byte through a pipe, after its own QMP negotiation. */
static int guard_spawn(struct machine *m, struct err *e)
{
    struct machines *ms = m->ms;
    int fds[2];
    char qmp[MACHINE_PATH_MAX], log[MACHINE_PATH_MAX], serial[MACHINE_PATH_MAX], pidf[MACHINE_PATH_MAX], pid[24], start[32], ready[16];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return err_sys(e, errno, "guard of %s", m->spec.name);
    machine_path(ms, m->spec.id, "guard.sock", qmp);
    machine_path(ms, m->spec.id, "guard.log", log);
    machine_path(ms, m->spec.id, "serial.log", serial);
    machine_path(ms, m->spec.id, "guard.pid", pidf);
    snprintf(pid, sizeof pid, "%d", (int)m->qemu.pid);
    snprintf(start, sizeof start, "%llu", m->qemu.start_ticks);
    snprintf(ready, sizeof ready, "%d", fds[1]);
    const char *argv[] = {ms->guard_path, "--pid", pid, "--start", start, "--lease", ms->lease_path, "--qmp", qmp,
                          "--log", serial, "--ready-fd", ready, NULL};
    const int keep[] = {fds[1], -1};
    struct proc_spec p = {.argv = argv, .log_file = log, .pid_file = pidf, .keep_fds = keep};
    int rc = proc_start(&p, &m->guard, e);
    close(fds[1]);
    if (rc != E_OK) {
        close(fds[0]);
        return rc;
    }
    if (m->ready_fd >= 0) { /* of a predecessor that ended before it was ready */
        watch_close(m->ready_watch);
        close(m->ready_fd);
    }
    m->ready_fd = fds[0];
    m->ready_watch = watch_open(ms->conf.loop, m->ready_fd, on_guard_ready, m);
    m->guard_watch = watch_open(ms->conf.loop, m->guard.pidfd, on_guard_end, m);
    return E_OK;
}

void machine_guard_start(struct machine *m)
{
    struct err e;
    m->guard_at_ms = 0;
    m->guard_starts++;
    if (guard_spawn(m, &e) == E_OK)
        return;
    /* Without a guard the guest must not run: a node cut off from the others would keep it on the network. */
    machine_say(m, "%s", e.msg);
    log_err("machine %s: %s", m->spec.name, e.msg);
    m->end = MACHINE_END_FAILED;
    proc_signal(&m->qemu, SIGKILL);
}

void machine_guard_adopt(struct machine *m)
{
    char path[MACHINE_PATH_MAX];
    machine_path(m->ms, m->spec.id, "guard.pid", path);
    if (proc_adopt(path, &m->guard, NULL) != E_OK)
        return; /* a new one is started when the monitor is up */
    m->guard_ready = true;
    m->guard_watch = watch_open(m->ms->conf.loop, m->guard.pidfd, on_guard_end, m);
}

/* ---- monitor ---- */

static void on_up(struct qmp *q, bool connected, void *arg)
{
    struct machine *m = arg;
    m->status_asked = m->status_again = false;
    if (!connected)
        return;
    if (!m->guard.pid && !m->guard_at_ms)
        machine_guard_start(m);
    machine_ask_status(m);
    machine_op_flush(m);
}

void machine_connect(struct machine *m)
{
    char path[MACHINE_PATH_MAX];
    machine_path(m->ms, m->spec.id, "qmp.sock", path);
    struct qmp_handler h = {.up = on_up, .event = machine_on_event, .arg = m};
    m->qmp = qmp_open(m->ms->conf.loop, path, &h);
}

/* ---- timer ---- */

static void press(struct machine *m)
{
    m->press_at_ms = clock_boot_ms() + PRESS_AGAIN_MS;
    if (m->qmp && qmp_connected(m->qmp))
        qmp_call(m->qmp, "system_powerdown", NULL, QMP_TIMEOUT_MS, NULL, NULL);
}

static bool due(uint64_t *at, uint64_t now)
{
    if (!*at || now < *at)
        return false;
    *at = 0;
    return true;
}

static void on_timer(uv_timer_t *t)
{
    struct machine *m = t->data;
    uint64_t now = clock_boot_ms();
    if (due(&m->recheck_at_ms, now))
        machine_ask_status(m);
    if (due(&m->press_at_ms, now))
        press(m);
    if (due(&m->guard_at_ms, now))
        machine_guard_start(m);
    if (due(&m->kill_at_ms, now))
        machine_kill(m);
    bool refuse = due(&m->refuse_at_ms, now);
    machine_arm(m);
    if (refuse)
        machine_op_refuse_now(m);
}

static void timer_closed(uv_handle_t *h) { free(h); }

void machine_arm(struct machine *m)
{
    const uint64_t at[] = {m->kill_at_ms, m->press_at_ms, m->recheck_at_ms, m->guard_at_ms, m->refuse_at_ms};
    uint64_t next = UINT64_MAX, now = clock_boot_ms();
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (at[i] && at[i] < next)
            next = at[i];
    if (!m->timer) {
        m->timer = xcalloc(1, sizeof *m->timer);
        uv_timer_init(m->ms->conf.loop, m->timer);
        m->timer->data = m;
    }
    if (next == UINT64_MAX)
        uv_timer_stop(m->timer);
    else
        uv_timer_start(m->timer, on_timer, next > now ? next - now : 0, 0);
}

void machine_detach(struct machine *m, int status)
{
    qmp_close(m->qmp);
    m->qmp = NULL;
    machine_op_fail_all(m, status);
    watch_close(m->qemu_watch);
    watch_close(m->guard_watch);
    watch_close(m->ready_watch);
    m->qemu_watch = m->guard_watch = m->ready_watch = NULL;
    if (m->ready_fd >= 0)
        close(m->ready_fd);
    m->ready_fd = -1;
    proc_close(&m->qemu);
    proc_close(&m->guard);
    if (m->timer)
        uv_close((uv_handle_t *)m->timer, timer_closed);
    m->timer = NULL;
}
