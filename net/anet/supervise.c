/* Supervision of one OVN program (supervise.h). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/htab.h"
#include "base/log.h"
#include "base/metric.h"
#include "base/proc.h"
#include "base/sm.h"
#include "net/anet/supervise.h"

LOG_MODULE("anet")
METRIC_COUNTER(m_deaths, "cohort_net_service_deaths_total", "Unexpected ends of ovn-northd and ovn-controller")

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 5000
#define SETTLED_MS 10000 /* a process that lived this long starts the backoff anew */
#define CMDLINE_MAX 65536

enum { OFF, RUNNING, WAITING, N_STATES };

static const struct sm_conf states[N_STATES] = {
    [OFF] = {"off", SM_TO(RUNNING) | SM_TO(WAITING), .initial = true},
    [RUNNING] = {"running", SM_TO(OFF) | SM_TO(WAITING)},
    [WAITING] = {"waiting", SM_TO(RUNNING) | SM_TO(OFF)},
};

struct service {
    uv_loop_t *loop;
    char *name, *pid_file, *log_file;
    char **env, **argv; /* argv NULL: not wanted */
    struct sm sm;
    struct proc proc;
    uv_timer_t timer;
    uv_poll_t *poll; /* on proc.pidfd while RUNNING; own memory: it closes later than the process is forgotten */
    uint64_t started_ms;
    unsigned backoff_ms, starts, deaths;
    char error[256];
};

static char **copy_texts(const char *const *v)
{
    size_t n = 0;
    while (v && v[n])
        n++;
    char **c = xcalloc(n + 1, sizeof *c);
    for (size_t i = 0; i < n; i++)
        c[i] = xstrdup(v[i]);
    return c;
}

static void free_texts(char **v)
{
    for (char **p = v; p && *p; p++)
        free(*p);
    free(v);
}

static void start(struct service *s);

static void on_timer(uv_timer_t *t)
{
    struct service *s = t->data;
    if (s->argv && s->sm.state == WAITING)
        start(s);
}

static void wait_and_start(struct service *s)
{
    s->backoff_ms = s->backoff_ms ? s->backoff_ms * 2 : BACKOFF_MIN_MS;
    if (s->backoff_ms > BACKOFF_MAX_MS)
        s->backoff_ms = BACKOFF_MAX_MS;
    sm_move(&s->sm, WAITING);
    uv_timer_start(&s->timer, on_timer, s->backoff_ms, 0);
}

static void on_poll_closed(uv_handle_t *h)
{
    struct proc *p = h->data;
    proc_close(p); /* reaps; and the descriptor must outlive libuv's use of it */
    free(p);
    free(h);
}

static void on_end(uv_poll_t *h, int status, int events)
{
    uv_poll_stop(h);
    uv_close((uv_handle_t *)h, on_poll_closed);
}

/* The service has no process any more. The process itself is not touched; `dying`: it was told to end, and is seen off
 * (the loop waits for that), so that no zombie stays. */
static void forget(struct service *s, bool dying)
{
    if (!s->poll)
        return;
    struct proc *p = xmalloc(sizeof *p);
    *p = s->proc;
    s->poll->data = p;
    if (dying) {
        uv_poll_start(s->poll, UV_READABLE, on_end);
        uv_ref((uv_handle_t *)s->poll);
    } else {
        on_end(s->poll, 0, 0);
    }
    s->poll = NULL;
    s->proc = (struct proc){.pidfd = -1};
}

static void on_death(uv_poll_t *h, int status, int events)
{
    struct service *s = h->data;
    log_warn("%s (pid %d) ended: restarting", s->name, (int)s->proc.pid);
    s->deaths++;
    metric_add(&m_deaths, 1);
    if (clock_boot_ms() - s->started_ms >= SETTLED_MS)
        s->backoff_ms = 0;
    forget(s, false);
    if (s->argv)
        wait_and_start(s);
    else
        sm_move(&s->sm, OFF);
}

static int watch(struct service *s, struct err *e)
{
    uv_poll_t *poll = xcalloc(1, sizeof *poll);
    int rc = uv_poll_init(s->loop, poll, s->proc.pidfd);
    if (rc) {
        free(poll);
        return err_set(e, E_IO, "watch %s: %s", s->name, uv_strerror(rc));
    }
    s->poll = poll;
    poll->data = s;
    uv_poll_start(poll, UV_READABLE, on_death);
    uv_unref((uv_handle_t *)poll);
    s->started_ms = clock_boot_ms();
    sm_move(&s->sm, RUNNING);
    return 0;
}

static void start(struct service *s)
{
    struct err e = {0};
    struct proc_spec spec = {.argv = (const char *const *)s->argv, .env = (const char *const *)s->env,
                             .log_file = s->log_file, .pid_file = s->pid_file};
    int rc = proc_start(&spec, &s->proc, &e);
    if (!rc) {
        s->starts++;
        rc = watch(s, &e);
        if (rc) {
            proc_signal(&s->proc, SIGKILL);
            proc_close(&s->proc);
        }
    }
    snprintf(s->error, sizeof s->error, "%.255s", rc ? e.msg : "");
    if (!rc) {
        log_info("%s started, pid %d", s->name, (int)s->proc.pid);
        return;
    }
    log_warn("%s", e.msg);
    if (s->sm.state == WAITING) /* the wait goes on, longer */
        sm_move(&s->sm, OFF);
    wait_and_start(s);
}

/* Does the running process have these arguments? One that is just ending has none: it then counts as different. */
static bool same_arguments(const struct service *s, char **argv)
{
    char path[48], *text;
    size_t len, at = 0;
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)s->proc.pid);
    if (file_read(path, CMDLINE_MAX, &text, &len, NULL))
        return false;
    bool same = true;
    for (char **a = argv; *a && same; a++) {
        size_t n = strlen(*a) + 1;
        same = at + n <= len && !memcmp(text + at, *a, n);
        at += n;
    }
    same = same && at == len;
    free(text);
    return same;
}

static void end_now(struct service *s, int sig)
{
    uv_timer_stop(&s->timer);
    if (s->sm.state == RUNNING)
        proc_signal(&s->proc, sig);
    forget(s, true);
    if (s->sm.state != OFF)
        sm_move(&s->sm, OFF);
}

/* ---- interface ---- */

struct service *service_open(uv_loop_t *loop, const char *name, const char *run_dir, const char *const *env)
{
    struct service *s = xcalloc(1, sizeof *s);
    s->loop = loop;
    s->name = xstrdup(name);
    s->pid_file = xasprintf("%s/%s.pid", run_dir, name);
    s->log_file = xasprintf("%s/%s.log", run_dir, name);
    s->env = copy_texts(env);
    s->proc.pidfd = -1;
    sm_init(&s->sm, states, N_STATES, OFF, name);
    uv_timer_init(loop, &s->timer);
    s->timer.data = s;
    uv_unref((uv_handle_t *)&s->timer);
    return s;
}

static void on_timer_closed(uv_handle_t *h)
{
    struct service *s = h->data;
    free(s->name);
    free(s->pid_file);
    free(s->log_file);
    free_texts(s->env);
    free_texts(s->argv);
    free(s);
}

void service_close(struct service *s)
{
    if (!s)
        return;
    forget(s, false);
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}

void service_adopt(struct service *s)
{
    struct err e;
    if (s->sm.state == RUNNING || proc_adopt(s->pid_file, &s->proc, &e))
        return;
    if (watch(s, &e)) {
        proc_close(&s->proc);
        return;
    }
    log_info("%s adopted, pid %d", s->name, (int)s->proc.pid);
}

static bool same_texts(char *const *a, const char *const *b)
{
    while (*a && *b && !strcmp(*a, *b))
        a++, b++;
    return !*a && !*b;
}

void service_want(struct service *s, const char *const *argv)
{
    if (s->argv && same_texts(s->argv, argv))
        return;
    free_texts(s->argv);
    s->argv = copy_texts(argv);
    service_adopt(s);
    if (s->sm.state == RUNNING && same_arguments(s, s->argv))
        return;
    end_now(s, SIGKILL);
    s->backoff_ms = 0;
    start(s);
}

void service_restart(struct service *s)
{
    if (!s->argv)
        return;
    end_now(s, SIGKILL);
    s->backoff_ms = 0;
    start(s);
}

void service_stop(struct service *s)
{
    service_adopt(s);
    free_texts(s->argv);
    s->argv = NULL;
    end_now(s, SIGTERM);
}

void service_get_status(const struct service *s, struct service_status *ret)
{
    *ret = (struct service_status){.state = sm_name(&s->sm), .pid = s->poll ? s->proc.pid : 0, .starts = s->starts,
                                   .deaths = s->deaths};
    snprintf(ret->error, sizeof ret->error, "%s", s->error);
}
