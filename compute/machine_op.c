/* Operations on a machine: pause, resume, stop, kill; and the queue of those that wait for the monitor. */
#include <signal.h>
#include <stdlib.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "compute/machine_int.h"

LOG_MODULE("asv");

static void op_end(struct op *op, int status, const struct err *e)
{
    struct machine *m = op->m;
    machine_done *done = op->done;
    void *arg = op->arg;
    free(op);
    if (done)
        done(m, status, e, arg);
}

void machine_op_begin(struct op *op)
{
    struct machine *m = op->m;
    if (m->qmp && qmp_connected(m->qmp)) {
        op->start(op);
        return;
    }
    TAILQ_INSERT_TAIL(&m->waiting, op, entry);
}

void machine_op_flush(struct machine *m)
{
    struct op *op;
    while ((op = TAILQ_FIRST(&m->waiting)) && m->qmp && qmp_connected(m->qmp)) {
        TAILQ_REMOVE(&m->waiting, op, entry);
        op->start(op);
    }
}

void machine_op_fail_all(struct machine *m, int status)
{
    struct op *op;
    struct err e;
    err_set(&e, status, "machine %s has ended", m->spec.name);
    while ((op = TAILQ_FIRST(&m->waiting))) {
        TAILQ_REMOVE(&m->waiting, op, entry);
        op->fail(op, status, &e);
    }
    machine_op_refuse_now(m);
}

/* ---- pause, resume ---- */

static void on_reply(void *arg, int status, json_t *ret, const struct err *e)
{
    struct op *op = arg;
    if (status == E_OK)
        machine_ask_status(op->m); /* the event does so too, unless nothing changed */
    op_end(op, status, e);
}

static void start_pause(struct op *op) { qmp_call(op->m->qmp, "stop", NULL, QMP_TIMEOUT_MS, on_reply, op); }
static void start_resume(struct op *op) { qmp_call(op->m->qmp, "cont", NULL, QMP_TIMEOUT_MS, on_reply, op); }

static struct op *op_new(struct machine *m, void (*start)(struct op *), machine_done *done, void *arg)
{
    struct op *op = xcalloc(1, sizeof *op);
    *op = (struct op){.m = m, .start = start, .fail = op_end, .done = done, .arg = arg};
    return op;
}

/* An operation of which the failure is known at once still fails later: from the machine's timer. */
static void refuse(struct op *op, int code, const char *why)
{
    struct machine *m = op->m;
    err_set(&op->refusal, code, "machine %s: %s", m->spec.name, why);
    TAILQ_INSERT_TAIL(&m->refused, op, entry);
    m->refuse_at_ms = clock_boot_ms();
    machine_arm(m);
}

void machine_op_refuse_now(struct machine *m)
{
    struct ops mine = TAILQ_HEAD_INITIALIZER(mine);
    TAILQ_CONCAT(&mine, &m->refused, entry);
    for (struct op *op; (op = TAILQ_FIRST(&mine));) {
        struct err e = op->refusal;
        TAILQ_REMOVE(&mine, op, entry);
        op->fail(op, e.code, &e);
    }
}

void machine_pause(struct machine *m, machine_done *done, void *arg) { machine_op_begin(op_new(m, start_pause, done, arg)); }

void machine_resume(struct machine *m, machine_done *done, void *arg)
{
    struct op *op = op_new(m, start_resume, done, arg);
    if (!lease_valid(&m->ms->lease)) {
        refuse(op, E_UNAVAIL, "this node has no lease now");
        return;
    }
    if (machine_frozen(m)) {
        log_info("machine %s: waking its process, which the guard had frozen", m->spec.name);
        proc_signal(&m->qemu, SIGCONT);
    }
    machine_op_begin(op);
}

/* ---- stop, kill ---- */

void machine_stop(struct machine *m, unsigned grace_ms)
{
    if (m->sm.state != MACHINE_RUNNING || grace_ms == 0) {
        machine_kill(m);
        return;
    }
    if (m->kill_at_ms) /* under way already: the earlier end counts */
        return;
    m->press_at_ms = clock_boot_ms();
    m->kill_at_ms = m->press_at_ms + grace_ms;
    machine_arm(m);
}

void machine_kill(struct machine *m)
{
    m->killed = true;
    m->press_at_ms = m->kill_at_ms = 0;
    proc_signal(&m->qemu, SIGKILL);
}
