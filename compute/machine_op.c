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

/* Fails an operation of which the result is known at once, but not inside the call that began it. */
struct refusal {
    uv_timer_t timer;
    struct op op;
    struct err e;
};

static void refusal_closed(uv_handle_t *h) { free(h->data); }

static void refuse_now(uv_timer_t *t)
{
    struct refusal *r = t->data;
    uv_close((uv_handle_t *)t, refusal_closed);
    if (r->op.done)
        r->op.done(r->op.m, r->e.code, &r->e, r->op.arg);
}

static void refuse(struct op *op, const struct err *e)
{
    struct refusal *r = xcalloc(1, sizeof *r);
    r->op = *op;
    r->e = *e;
    free(op);
    uv_timer_init(r->op.m->ms->conf.loop, &r->timer);
    r->timer.data = r;
    uv_timer_start(&r->timer, refuse_now, 0, 0);
}

void machine_pause(struct machine *m, machine_done *done, void *arg) { machine_op_begin(op_new(m, start_pause, done, arg)); }

void machine_resume(struct machine *m, machine_done *done, void *arg)
{
    struct op *op = op_new(m, start_resume, done, arg);
    struct err e;
    if (!lease_valid(&m->ms->lease)) {
        err_set(&e, E_UNAVAIL, "machine %s: this node has no lease now", m->spec.name);
        refuse(op, &e);
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
