/* What state a machine is in: QEMU is asked (query-status) after every event that may change it, and its word decides.
 *
 * QEMU's states: prelaunch (never ran), inmigrate, running, paused, finish-migrate (last stage of a migration out; passes
 * in milliseconds), postmigrate, shutdown (the guest switched itself off; -no-shutdown keeps the process until we have
 * seen it), internal-error (KVM gave up on the guest). */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "compute/machine_int.h"

LOG_MODULE("asv");

#define RECHECK_MS 5

static const struct sm_conf conf[] = {
    [MACHINE_STARTING] = {"starting", SM_TO(MACHINE_INCOMING) | SM_TO(MACHINE_PAUSED) | SM_TO(MACHINE_RUNNING) | SM_TO(MACHINE_MOVED) |
                                          SM_TO(MACHINE_ENDED), .initial = true},
    [MACHINE_INCOMING] = {"incoming", SM_TO(MACHINE_PAUSED) | SM_TO(MACHINE_RUNNING) | SM_TO(MACHINE_ENDED)},
    [MACHINE_PAUSED] = {"paused", SM_TO(MACHINE_RUNNING) | SM_TO(MACHINE_MOVED) | SM_TO(MACHINE_ENDED)},
    [MACHINE_RUNNING] = {"running", SM_TO(MACHINE_PAUSED) | SM_TO(MACHINE_MOVED) | SM_TO(MACHINE_ENDED)},
    [MACHINE_MOVED] = {"moved", SM_TO(MACHINE_PAUSED) | SM_TO(MACHINE_RUNNING) | SM_TO(MACHINE_ENDED)},
    [MACHINE_ENDED] = {"ended", 0, .final = true},
};

const char *machine_state_name(enum machine_state s) { return conf[s].name; }

struct machine *machine_new(struct machines *ms, const struct machine_spec *spec)
{
    struct machine *m = xcalloc(1, sizeof *m);
    m->ms = ms;
    m->spec = *spec;
    m->ready_fd = m->qemu.pidfd = m->guard.pidfd = -1;
    TAILQ_INIT(&m->waiting);
    TAILQ_INIT(&m->refused);
    char label[48];
    snprintf(label, sizeof label, "vm %.40s", spec->name);
    sm_init(&m->sm, conf, sizeof conf / sizeof *conf, MACHINE_STARTING, label);
    htab_insert(&ms->all, &m->node, hash_str(spec->id));
    return m;
}

void machine_delete(struct machine *m)
{
    htab_remove(&m->ms->all, &m->node);
    free(m);
}

void machine_move(struct machine *m, enum machine_state to)
{
    if (m->sm.state == (int)to)
        return;
    sm_move(&m->sm, to);
    if (to == MACHINE_RUNNING)
        m->message[0] = '\0';
    if (m->ms->conf.changed)
        m->ms->conf.changed(m, m->ms->conf.arg); /* may free it */
}

void machine_say(struct machine *m, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m->message, sizeof m->message, fmt, ap);
    va_end(ap);
}

bool machine_frozen(const struct machine *m)
{
    char path[48], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)m->qemu.pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = '\0';
    char *p = strrchr(text, ')');
    return p && p[1] == ' ' && (p[2] == 'T' || p[2] == 't');
}

static void first_run_done(struct machine *m, int status, const struct err *e, void *arg)
{
    if (status == E_OK || status == E_CANCELED)
        return;
    machine_say(m, "%s", e->msg);
    machine_move(m, MACHINE_PAUSED);
}

void machine_go(struct machine *m)
{
    if (!m->fresh || !m->guard_ready || !m->qmp || !qmp_connected(m->qmp))
        return;
    m->fresh = false;
    if (m->spec.incoming)
        machine_ask_status(m); /* INCOMING is reported only now: with its guard */
    else
        machine_resume(m, first_run_done, NULL);
}

static void on_state(struct machine *m, const char *s)
{
    bool incoming_done = m->spec.incoming && m->sm.state == MACHINE_INCOMING;
    if (strcmp(s, "running") == 0 || strcmp(s, "suspended") == 0) {
        machine_move(m, MACHINE_RUNNING);
    } else if (strcmp(s, "paused") == 0 || strcmp(s, "prelaunch") == 0) {
        if (m->fresh || (strcmp(s, "prelaunch") == 0 && incoming_done))
            return;
        machine_move(m, MACHINE_PAUSED);
    } else if (strcmp(s, "inmigrate") == 0) {
        if (!m->fresh)
            machine_move(m, MACHINE_INCOMING);
    } else if (strcmp(s, "finish-migrate") == 0) {
        m->recheck_at_ms = clock_boot_ms() + RECHECK_MS;
        machine_arm(m);
    } else if (strcmp(s, "postmigrate") == 0) {
        machine_move(m, MACHINE_MOVED);
    } else if (strcmp(s, "shutdown") == 0) {
        m->guest_off = true;
        proc_signal(&m->qemu, SIGKILL); /* nothing left to do for it: all writes were acknowledged or never will be */
    } else if (strcmp(s, "internal-error") == 0) {
        machine_say(m, "KVM cannot run this guest here (internal error); with accel tcg it would run, more slowly");
        m->end = MACHINE_END_FAILED;
        proc_signal(&m->qemu, SIGKILL);
    } else {
        log_warn("machine %s: QEMU is in state %s", m->spec.name, s);
        machine_move(m, MACHINE_PAUSED);
    }
}

static void on_status(void *arg, int status, json_t *ret, const struct err *e)
{
    struct machine *m = arg;
    if (status == E_CANCELED) /* the machine may be on its way out */
        return;
    bool again = m->status_again;
    m->status_asked = m->status_again = false;
    const char *s = status == E_OK ? json_string_value(json_object_get(ret, "status")) : NULL;
    if (again)
        machine_ask_status(m); /* an event came after this answer was made */
    if (s)
        on_state(m, s); /* last: may free the machine */
    else if (status == E_TIMEOUT)
        log_warn("machine %s: its monitor does not answer", m->spec.name);
}

void machine_ask_status(struct machine *m)
{
    if (!m->qmp || !qmp_connected(m->qmp))
        return;
    if (m->status_asked) {
        m->status_again = true;
        return;
    }
    m->status_asked = true;
    qmp_call(m->qmp, "query-status", NULL, QMP_TIMEOUT_MS, on_status, m);
}

void machine_on_event(struct qmp *q, const char *name, json_t *data, void *arg)
{
    struct machine *m = arg;
    static const char *const of_interest[] = {"STOP", "RESUME", "SHUTDOWN", "MIGRATION", "SUSPEND", "WAKEUP"};
    for (size_t i = 0; i < sizeof of_interest / sizeof *of_interest; i++) {
        if (strcmp(name, of_interest[i]) != 0)
            continue;
        machine_ask_status(m);
        /* A migration's states change before the machine's does, without a further event. */
        const char *s = data ? json_string_value(json_object_get(data, "status")) : NULL;
        if (s && strcmp(s, "completed") == 0) {
            m->recheck_at_ms = clock_boot_ms() + RECHECK_MS;
            machine_arm(m);
        }
        return;
    }
}
