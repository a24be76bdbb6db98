/* The source of a live migration: drives it from beginning to end. States and rules: migrate.h.
 *
 * Every callback records what it learned and leads to one of: advance(), undo(), finish(). A job is freed when it is over
 * and nothing that would call back is pending. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/migrate.pb-c.h"
#include "migrate/migrate_int.h"

LOG_MODULE("migrate");

#define TICK_MS 100
#define PREPARE_TIMEOUT_MS 60000 /* the destination may have to copy the kernel image first */
#define READY_PATIENCE_MS 10000  /* from all memory sent to the destination's word that it has loaded it */
#define FINISH_TIMEOUT_MS 10000
#define ABORT_TIMEOUT_MS 5000
#define STALL_MS 30000
#define DOWNTIME_MS 300

static const struct sm_conf conf[] = {
    [MIGRATE_CHECKING] = {"checking", SM_TO(MIGRATE_CONNECTING), .initial = true},
    [MIGRATE_CONNECTING] = {"connecting", SM_TO(MIGRATE_PRECOPY) | SM_TO(MIGRATE_CANCELLED) | SM_TO(MIGRATE_FAILED)},
    [MIGRATE_PRECOPY] = {"precopy", SM_TO(MIGRATE_SWITCHOVER) | SM_TO(MIGRATE_CANCELLED) | SM_TO(MIGRATE_FAILED)},
    [MIGRATE_SWITCHOVER] = {"switchover", SM_TO(MIGRATE_DONE) | SM_TO(MIGRATE_FAILED)},
    [MIGRATE_DONE] = {"done", 0, .final = true},
    [MIGRATE_CANCELLED] = {"cancelled", 0, .final = true},
    [MIGRATE_FAILED] = {"failed", 0, .final = true},
};
const char *migrate_state_name(enum migrate_state s) { return conf[s].name; }

/* What the switchover is waiting for. */
enum turn { TURN_NONE, TURN_COMMIT, TURN_DECLINE, TURN_FINISH };
/* Way back: end the sending, then let the guest go on. */
enum undo { UNDO_NONE, UNDO_SENDING, UNDO_RESUME };

struct job {
    TAILQ_ENTRY(job) entry;
    struct migrate *mg; /* NULL after migrate_close() */
    struct migrate_key key;
    char name[64];
    struct machine *m;  /* NULL once it has ended */
    struct sm sm;
    struct tick *tick;
    int pending;        /* callbacks to come */
    bool over;

    struct rpc_call prepare, ready, finish, abort;
    struct policy policy;
    struct machine_migrate_params params;
    bool ready_busy, ready_ok, query_busy, txn_busy, abort_busy, tune_busy;
    bool starting;      /* QEMU is being told to send */
    bool sending;       /* it was, or is being */
    uint64_t stopped_ms; /* when we saw that all had been sent */
    int drain_ms;        /* how long the guest had stood still by then, as QEMU measured it */
    enum turn turn;
    enum undo undo;
    enum migrate_state how; /* being undone, to end in this state; 0 = not */
    struct migrate_progress progress;
    char message[320];
};

static void maybe_free(struct job *j)
{
    if (j->over && j->pending == 0)
        free(j);
}

static void say(struct job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct job *j, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(j->message, sizeof j->message, fmt, ap);
    va_end(ap);
}

static void show(struct job *j)
{
    j->progress.state = (enum migrate_state)j->sm.state;
    j->mg->conf.ops->progress(j->mg->conf.ctx, j->key.machine, &j->progress);
}

static void move(struct job *j, enum migrate_state to)
{
    sm_move(&j->sm, (int)to);
    if (!conf[to].final)
        show(j);
}

/* Last act: tells the daemon. */
static void finish(struct job *j, enum migrate_state how)
{
    struct migrate *mg = j->mg;
    move(j, how);
    j->progress.state = how;
    tick_stop(j->tick);
    j->tick = NULL;
    j->over = true;
    TAILQ_REMOVE(&mg->jobs, j, entry);
    if (how == MIGRATE_DONE)
        log_info("machine %s moved to node %s, stood still for about %d ms", j->name, j->key.dest, j->progress.pause_ms);
    else
        log_warn("migration of machine %s %s: %s", j->name, migrate_state_name(how), j->message);
    mg->conf.ops->ended(mg->conf.ctx, j->key.machine, how, &j->progress, j->message);
    maybe_free(j);
}

/* True if the callback that has just come still matters; otherwise the job may be gone. */
static bool came_back(struct job *j)
{
    j->pending--;
    if (!j->over)
        return true;
    maybe_free(j);
    return false;
}

static void call_guest(struct job *j, struct rpc_call *c, enum rpc_kind kind, rpc_done *done, uint32_t timeout_ms, const char *reason)
{
    struct rpc_peer *peer = j->mg->conf.ops->peer(j->mg->conf.ctx, j->key.dest);
    if (!peer)
        return;
    Cohort__Migrate__GuestReq req = COHORT__MIGRATE__GUEST_REQ__INIT;
    req.machine = j->key.machine;
    req.generation = (uint64_t)j->key.generation;
    req.reason = (char *)(uintptr_t)reason;
    *c = (struct rpc_call){.out = &cohort__migrate__guest_rep__descriptor, .timeout_ms = timeout_ms, .done = done, .arg = j};
    j->pending++;
    rpc_call(peer, c, kind, &req.base, NULL, 0, 0);
}

/* ---- the way back ---- */

static void on_resumed(struct machine *m, int status, const struct err *e, void *arg)
{
    struct job *j = arg;
    if (!came_back(j))
        return;
    if (status != E_OK && status != E_UNAVAIL) /* no lease now: the daemon resumes it when there is one */
        log_err("machine %s cannot go on after its migration failed: %s", j->name, e->msg);
    finish(j, j->how);
}

static void undo_step(struct job *j)
{
    if (j->undo != UNDO_RESUME)
        return;
    j->undo = UNDO_NONE;
    enum migrate_place p = j->mg->conf.ops->place(j->mg->conf.ctx, &j->key);
    bool ours = p != MIGRATE_ELSEWHERE && p != MIGRATE_MOVED; /* generations only grow: it will not be ours again */
    if (j->m && ours) {
        j->pending++;
        machine_resume(j->m, on_resumed, j); /* nothing happens to a guest that runs */
        return;
    }
    if (j->m)
        machine_kill(j->m);
    finish(j, j->how);
}

static void on_undo_query(struct machine *m, int status, const struct machine_migrate_stat *st, const struct err *e, void *arg)
{
    struct job *j = arg;
    j->query_busy = false;
    if (!came_back(j))
        return;
    if (status == E_OK && st->status != MACHINE_MIG_ACTIVE) {
        j->undo = UNDO_RESUME;
        undo_step(j);
    }
}

static void on_cancelled(struct machine *m, int status, const struct err *e, void *arg)
{
    (void)came_back(arg); /* the next tick asks whether it is true */
}

static void cancel_sending(struct job *j)
{
    j->pending++;
    machine_migrate_cancel(j->m, on_cancelled, j);
}

static void on_aborted(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct job *j = c->arg;
    j->abort_busy = false;
    (void)came_back(j); /* not reached: it sees in the database that the guest is not its own */
}

/* Ends it with the guest here. Never after a switchover transaction was sent, unless `decline` was committed. */
static void undo(struct job *j, enum migrate_state how)
{
    if (j->undo != UNDO_NONE || j->over || j->how)
        return;
    j->how = how;
    j->turn = TURN_NONE;
    if (!j->abort_busy) {
        j->abort_busy = true;
        call_guest(j, &j->abort, RPC_MIGRATE_ABORT, on_aborted, ABORT_TIMEOUT_MS, j->message);
    }
    j->undo = j->sending && j->m ? UNDO_SENDING : UNDO_RESUME;
    if (j->undo == UNDO_RESUME)
        undo_step(j);
    else if (!j->starting) /* otherwise on_sent() does: a cancel that overtakes the begin would be lost */
        cancel_sending(j);
}

/* ---- switchover ---- */

static void turn_step(struct job *j);

static void done(struct job *j)
{
    j->progress.pause_ms = j->drain_ms + (int)(clock_boot_ms() - j->stopped_ms);
    if (j->m)
        machine_kill(j->m);
    finish(j, MIGRATE_DONE);
}

static void on_finished(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct job *j = c->arg;
    if (!came_back(j))
        return;
    if (status != E_OK) /* it is the destination's now, whatever became of our message */
        say(j, "moved, but the destination did not confirm that it runs there: %s", c->text[0] ? c->text : err_code_name(status));
    done(j);
}

static void moved(struct job *j)
{
    int before = j->pending;
    j->turn = TURN_FINISH;
    call_guest(j, &j->finish, RPC_MIGRATE_FINISH, on_finished, FINISH_TIMEOUT_MS, "");
    if (j->pending == before) /* no such peer any more */
        done(j);
}

/* By the view, after `decline` was refused: it did not lie in our hands. */
static void learn(struct job *j)
{
    switch (j->mg->conf.ops->place(j->mg->conf.ctx, &j->key)) {
    case MIGRATE_MOVED:
        moved(j);
        break;
    case MIGRATE_ELSEWHERE:
        say(j, "the guest was given to another node meanwhile");
        if (j->m)
            machine_kill(j->m);
        call_guest(j, &j->abort, RPC_MIGRATE_ABORT, on_aborted, ABORT_TIMEOUT_MS, j->message);
        finish(j, MIGRATE_FAILED);
        break;
    default: /* the view is behind: the next tick declines again */
        break;
    }
}

static void on_committed(void *arg, int status, const struct err *e)
{
    struct job *j = arg;
    j->txn_busy = false;
    if (!came_back(j))
        return;
    if (status == E_OK) {
        moved(j);
    } else if (status != E_UNKNOWN) { /* E_UNKNOWN: the next tick tries again */
        say(j, "the database refused the move: %s", e && e->msg[0] ? e->msg : err_code_name(status));
        j->turn = TURN_DECLINE;
        turn_step(j);
    }
}

static void on_declined(void *arg, int status, const struct err *e)
{
    struct job *j = arg;
    j->txn_busy = false;
    if (!came_back(j))
        return;
    if (status == E_OK)
        undo(j, MIGRATE_FAILED);
    else if (status == E_CONFLICT)
        learn(j);
}

static void turn_step(struct job *j)
{
    if (j->txn_busy || (j->turn != TURN_COMMIT && j->turn != TURN_DECLINE))
        return;
    j->txn_busy = true;
    j->pending++;
    if (j->turn == TURN_COMMIT)
        j->mg->conf.ops->commit(j->mg->conf.ctx, &j->key, on_committed, j);
    else
        j->mg->conf.ops->decline(j->mg->conf.ctx, &j->key, on_declined, j);
}

static void on_last_query(struct machine *m, int status, const struct machine_migrate_stat *st, const struct err *e, void *arg)
{
    struct job *j = arg;
    if (came_back(j) && status == E_OK)
        j->drain_ms = st->downtime_ms;
}

/* Everything is over there, and nothing runs here? */
static void advance(struct job *j)
{
    if (j->sm.state != MIGRATE_PRECOPY || j->how || !j->m || machine_state(j->m) != MACHINE_MOVED)
        return;
    if (!j->stopped_ms)
        j->stopped_ms = clock_boot_ms();
    if (!j->ready_ok) {
        if (clock_boot_ms() - j->stopped_ms > READY_PATIENCE_MS) {
            say(j, "the destination did not confirm that it has loaded the guest");
            undo(j, MIGRATE_FAILED);
        }
        return;
    }
    j->progress.done_bytes = j->progress.total_bytes;
    j->progress.eta_s = 0;
    move(j, MIGRATE_SWITCHOVER);
    j->pending++;
    machine_migrate_query(j->m, on_last_query, j);
    j->turn = TURN_COMMIT;
    turn_step(j);
}

/* ---- precopy ---- */

static void on_ready(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct job *j = c->arg;
    j->ready_busy = false;
    if (!came_back(j))
        return;
    if (status == E_OK) {
        j->ready_ok = true;
        advance(j);
    } else if (status != E_DISCONN && status != E_TIMEOUT && j->sm.state == MIGRATE_PRECOPY && !j->how) { /* lost: asked again by the tick */
        say(j, "destination: %s", c->text[0] ? c->text : err_code_name(status));
        undo(j, MIGRATE_FAILED);
    }
}

static void ask_ready(struct job *j)
{
    struct rpc_peer *peer = j->mg->conf.ops->peer(j->mg->conf.ctx, j->key.dest);
    if (j->ready_busy || j->ready_ok || !peer || !rpc_peer_connected(peer))
        return;
    j->ready_busy = true;
    call_guest(j, &j->ready, RPC_MIGRATE_READY, on_ready, 0, "");
}

static void on_tuned(struct machine *m, int status, const struct err *e, void *arg)
{
    struct job *j = arg;
    j->tune_busy = false;
    if (came_back(j) && status != E_OK)
        log_warn("migration of machine %s: %s", j->name, e->msg);
}

static void apply(struct job *j, const struct policy_action *a)
{
    if (a->what == POLICY_GO_ON || !j->m)
        return;
    log_info("migration of machine %s: %s", j->name, a->why);
    if (a->what == POLICY_CANCEL) {
        say(j, "%s", a->why);
        undo(j, MIGRATE_CANCELLED);
    } else if (a->what == POLICY_PAUSE_GUEST) {
        j->pending++;
        machine_pause(j->m, on_tuned, j);
    } else if (!j->tune_busy) {
        j->tune_busy = true;
        j->params.downtime_limit_ms = a->downtime_ms;
        j->params.throttle_max = a->throttle_max;
        j->pending++;
        machine_migrate_tune(j->m, &j->params, on_tuned, j);
    }
}

static void on_query(struct machine *m, int status, const struct machine_migrate_stat *st, const struct err *e, void *arg)
{
    struct job *j = arg;
    j->query_busy = false;
    if (!came_back(j) || j->how || j->sm.state != MIGRATE_PRECOPY || status != E_OK)
        return;
    struct migrate_progress *p = &j->progress;
    if (st->status == MACHINE_MIG_FAILED || st->status == MACHINE_MIG_CANCELLED || st->status == MACHINE_MIG_NONE) {
        say(j, "QEMU: %s", st->error[0] ? st->error : "the connection to the destination broke");
        undo(j, MIGRATE_FAILED);
        return;
    }
    if (st->status == MACHINE_MIG_ACTIVE && st->total_bytes > 0) {
        p->total_bytes = st->total_bytes;
        p->done_bytes = st->total_bytes - st->remaining_bytes;
        p->rate_bytes_s = st->rate_bytes_s;
        int64_t net = st->rate_bytes_s - st->dirty_bytes_s;
        p->eta_s = net > 0 ? (int)(st->remaining_bytes / net) : -1;
        p->rounds = st->rounds;
        p->throttle = st->throttle;
        show(j);
        struct policy_sample s = {.now_ms = clock_boot_ms(), .remaining_bytes = st->remaining_bytes,
                                  .transferred_bytes = st->transferred_bytes, .rounds = st->rounds};
        struct policy_action a = policy_step(&j->policy, &s);
        apply(j, &a);
    }
    if (j->sm.state == MIGRATE_PRECOPY)
        advance(j);
}

static void on_tick(void *arg)
{
    struct job *j = arg;
    bool query = j->m && !j->query_busy && j->sending && !j->starting && (j->undo == UNDO_SENDING || (j->sm.state == MIGRATE_PRECOPY && !j->how));
    if (query) {
        j->query_busy = true;
        j->pending++;
        machine_migrate_query(j->m, j->undo == UNDO_SENDING ? on_undo_query : on_query, j);
    }
    if (j->sm.state == MIGRATE_PRECOPY && !j->how)
        ask_ready(j);
    turn_step(j);
}

static void on_sent(struct machine *m, int status, const struct err *e, void *arg)
{
    struct job *j = arg;
    j->starting = false;
    if (!came_back(j))
        return;
    if (j->how) {
        if (j->undo == UNDO_SENDING && j->m)
            cancel_sending(j);
    } else if (status != E_OK) {
        say(j, "QEMU does not begin: %s", e->msg);
        undo(j, MIGRATE_FAILED);
    } else {
        move(j, MIGRATE_PRECOPY);
        ask_ready(j);
        advance(j);
    }
}

static void on_prepared(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct job *j = c->arg;
    const Cohort__Migrate__PrepareRep *rep = (const void *)msg;
    if (!came_back(j) || j->how)
        return;
    if (status == E_OK && (!rep->address[0] || strlen(rep->address) > 64 || rep->port == 0 || rep->port > 65535))
        status = E_PROTO;
    if (status != E_OK) {
        say(j, "the destination cannot take it: %s", c->text[0] ? c->text : err_code_name(status));
        undo(j, MIGRATE_FAILED);
        return;
    }
    policy_init(&j->policy, &j->policy.conf, clock_boot_ms());
    struct policy_action a = policy_begin(&j->policy);
    j->params.downtime_limit_ms = a.downtime_ms;
    j->params.throttle_max = a.throttle_max;
    j->sending = j->starting = true;
    j->pending++;
    machine_migrate_out(j->m, rep->address, (uint16_t)rep->port, &j->params, on_sent, j);
}

/* ---- begin ---- */

static struct job *find(const struct migrate *mg, const char *machine)
{
    struct job *j;
    TAILQ_FOREACH (j, &mg->jobs, entry)
        if (strcmp(j->key.machine, machine) == 0)
            return j;
    return NULL;
}

static void connect_dest(struct job *j, struct rpc_peer *peer)
{
    char *spec = machine_spec_format(machine_spec(j->m));
    Cohort__Migrate__PrepareReq req = COHORT__MIGRATE__PREPARE_REQ__INIT;
    req.spec = spec;
    req.generation = (uint64_t)j->key.generation;
    move(j, MIGRATE_CONNECTING);
    j->prepare = (struct rpc_call){.out = &cohort__migrate__prepare_rep__descriptor, .timeout_ms = PREPARE_TIMEOUT_MS, .done = on_prepared, .arg = j};
    j->pending++;
    rpc_call(peer, &j->prepare, RPC_MIGRATE_PREPARE, &req.base, NULL, 0, 0);
    free(spec);
}

int migrate_start(struct migrate *mg, struct machine *m, const char *dest_node, const struct migrate_options *o, struct err *e)
{
    const struct machine_spec *s = machine_spec(m);
    if (migrate_owns(mg, s->id))
        return err_set(e, E_EXISTS, "machine %s is being migrated already", s->name);
    if (machine_state(m) != MACHINE_RUNNING)
        return err_set(e, E_INVAL, "machine %s is %s: only a running one can migrate", s->name, machine_state_name(machine_state(m)));
    if (strcmp(dest_node, mg->self) == 0 || strlen(dest_node) > ID_LEN)
        return err_set(e, E_INVAL, "machine %s: it cannot migrate to the node where it is", s->name);
    struct rpc_peer *peer = mg->conf.ops->peer(mg->conf.ctx, dest_node);
    if (!peer)
        return err_set(e, E_NOTFOUND, "machine %s: no such destination node", s->name);
    struct job *j = xcalloc(1, sizeof *j);
    j->mg = mg;
    j->m = m;
    snprintf(j->name, sizeof j->name, "%s", s->name);
    snprintf(j->key.machine, sizeof j->key.machine, "%s", s->id);
    snprintf(j->key.source, sizeof j->key.source, "%s", mg->self);
    snprintf(j->key.dest, sizeof j->key.dest, "%s", dest_node);
    j->key.generation = s->generation;
    j->params.max_bandwidth = o->max_bandwidth;
    j->policy.conf = (struct policy_conf){.downtime_ms = o->downtime_ms > 0 ? o->downtime_ms : DOWNTIME_MS, .last = o->last,
                                          .deadline_ms = o->deadline_s * 1000ull, .stall_ms = STALL_MS};
    j->progress.eta_s = -1;
    j->progress.total_bytes = machine_ram_bytes(s);
    char label[48];
    snprintf(label, sizeof label, "migrate %.36s", s->name);
    sm_init(&j->sm, conf, sizeof conf / sizeof *conf, MIGRATE_CHECKING, label);
    j->tick = tick_start(mg->conf.loop, TICK_MS, on_tick, j);
    TAILQ_INSERT_TAIL(&mg->jobs, j, entry);
    connect_dest(j, peer);
    return E_OK;
}

int migrate_cancel(struct migrate *mg, const char *machine, struct err *e)
{
    struct job *j = find(mg, machine);
    if (!j)
        return err_set(e, E_NOTFOUND, "no migration of this machine is running here");
    if (j->sm.state == MIGRATE_SWITCHOVER)
        return err_set(e, E_CONFLICT, "too late: machine %s is being switched over", j->name);
    if (!j->how)
        say(j, "cancelled by request");
    undo(j, MIGRATE_CANCELLED);
    return E_OK;
}

/* ---- news from outside ---- */

bool source_owns(const struct migrate *mg, const char *machine) { return find(mg, machine) != NULL; }

void source_machine_changed(struct migrate *mg, struct machine *m)
{
    struct job *j = find(mg, machine_spec(m)->id);
    if (!j || j->m != m)
        return;
    if (machine_state(m) != MACHINE_ENDED) {
        advance(j);
        return;
    }
    j->m = NULL;
    if (j->sm.state == MIGRATE_SWITCHOVER && j->turn != TURN_NONE)
        return; /* all of it is at the destination: the database decides */
    if (!j->how) {
        say(j, "the guest ended during its migration");
        undo(j, MIGRATE_FAILED);
    } else if (j->undo == UNDO_SENDING) {
        j->undo = UNDO_RESUME;
        undo_step(j);
    }
}

void source_db_changed(struct migrate *mg)
{
    struct job *j, *next;
    for (j = TAILQ_FIRST(&mg->jobs); j; j = next) {
        next = TAILQ_NEXT(j, entry);
        if (j->sm.state == MIGRATE_SWITCHOVER || j->how)
            continue; /* transactions decide there, not the view */
        enum migrate_place p = mg->conf.ops->place(mg->conf.ctx, &j->key);
        if (p == MIGRATE_NOT_WANTED || p == MIGRATE_ELSEWHERE) {
            say(j, p == MIGRATE_NOT_WANTED ? "cancelled by request" : "the machine was changed in the database");
            undo(j, MIGRATE_CANCELLED);
        }
    }
}

void source_close(struct migrate *mg)
{
    struct job *j;
    while ((j = TAILQ_FIRST(&mg->jobs))) {
        TAILQ_REMOVE(&mg->jobs, j, entry);
        tick_stop(j->tick);
        j->over = true;
        j->mg = NULL;
        maybe_free(j);
    }
}
