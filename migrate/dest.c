/* The destination of a live migration: answers the source's requests, and obeys the database. Rules: migrate.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/migrate.pb-c.h"
#include "migrate/migrate_int.h"

LOG_MODULE("migrate");

#define SPEC_MAX_BYTES (64u << 10)
#define TICK_MS 500
/* Our view of the database may be behind the source's when PREPARE comes: that it does not show the wish yet is
 * believed only after this. */
#define UNWANTED_PATIENCE_MS 3000

struct incoming {
    TAILQ_ENTRY(incoming) entry;
    struct migrate *mg;
    struct migrate_key key;
    char name[64];
    struct machine *m;         /* NULL until the daemon has started it */
    struct tick *tick;
    struct rpc_req *prepare, *ready, *finish; /* to be answered */
    bool preparing;            /* the daemon's `prepare` is at work */
    bool listening, loaded, resuming, gone;
    uint64_t unwanted_since_ms; /* 0 = the database wants it, or is not known */
    bool wanted;               /* was, at least once */
    int pending;
};

static struct incoming *find(const struct migrate *mg, const char *machine)
{
    struct incoming *in;
    TAILQ_FOREACH (in, &mg->incomings, entry)
        if (strcmp(in->key.machine, machine) == 0)
            return in;
    return NULL;
}

static void maybe_free(struct incoming *in)
{
    if (in->gone && in->pending == 0 && !in->preparing)
        free(in);
}

static void refuse(struct rpc_req **req, int code, const char *why)
{
    struct rpc_req *r = *req;
    *req = NULL;
    if (r)
        rpc_reply_err(r, code, 0, "%s", why);
}

static void confirm(struct rpc_req **req)
{
    Cohort__Migrate__GuestRep rep = COHORT__MIGRATE__GUEST_REP__INIT;
    struct rpc_req *r = *req;
    *req = NULL;
    if (r)
        rpc_reply(r, &rep.base, NULL, 0, 0);
}

/* Forgets it; the machine, if there is one, is the caller's care. */
static void forget(struct incoming *in, int code, const char *why)
{
    TAILQ_REMOVE(&in->mg->incomings, in, entry);
    tick_stop(in->tick);
    in->tick = NULL;
    in->gone = true;
    refuse(&in->prepare, code, why);
    refuse(&in->ready, code, why);
    refuse(&in->finish, code, why);
    maybe_free(in);
}

static void give_up(struct incoming *in, int code, const char *why)
{
    log_warn("machine %s does not come here: %s", in->name, why);
    if (in->m)
        machine_kill(in->m);
    forget(in, code, why);
}

static bool came_back(struct incoming *in)
{
    in->pending--;
    if (!in->gone)
        return true;
    maybe_free(in);
    return false;
}

/* ---- the database decides ---- */

static void on_resumed(struct machine *m, int status, const struct err *e, void *arg)
{
    struct incoming *in = arg;
    in->resuming = false;
    if (!came_back(in))
        return;
    if (status != E_OK) { /* no lease, for one: the next tick tries again */
        log_warn("machine %s is ours but does not run yet: %s", in->name, e->msg);
        return;
    }
    machine_announce(m);
    log_info("machine %s runs here now", in->name);
    confirm(&in->finish);
    forget(in, E_NOTFOUND, "the migration is over");
}

static void decide(struct incoming *in)
{
    uint64_t now = clock_boot_ms();
    enum migrate_place p = in->mg->conf.ops->place(in->mg->conf.ctx, &in->key);
    if (p != MIGRATE_NOT_WANTED)
        in->unwanted_since_ms = 0;
    switch (p) {
    case MIGRATE_NOT_KNOWN:
        break;
    case MIGRATE_WANTED:
        in->wanted = true;
        break;
    case MIGRATE_NOT_WANTED:
        if (!in->unwanted_since_ms)
            in->unwanted_since_ms = now;
        if (in->wanted || now - in->unwanted_since_ms >= UNWANTED_PATIENCE_MS)
            give_up(in, E_CANCELED, "it is not to come here any more");
        break;
    case MIGRATE_MOVED:
        if (in->loaded && !in->resuming && in->m) {
            in->resuming = true;
            in->pending++;
            machine_resume(in->m, on_resumed, in);
        }
        break;
    case MIGRATE_ELSEWHERE:
        give_up(in, E_CANCELED, "the machine was changed in the database");
        break;
    }
}

static void on_tick(void *arg) { decide(arg); }

void dest_db_changed(struct migrate *mg)
{
    struct incoming *in, *next;
    for (in = TAILQ_FIRST(&mg->incomings); in; in = next) {
        next = TAILQ_NEXT(in, entry);
        decide(in);
    }
}

/* ---- PREPARE ---- */

static void on_listening(struct machine *m, int status, uint16_t port, const struct err *e, void *arg)
{
    struct incoming *in = arg;
    if (!came_back(in))
        return;
    if (status != E_OK) {
        give_up(in, status, e->msg);
        return;
    }
    Cohort__Migrate__PrepareRep rep = COHORT__MIGRATE__PREPARE_REP__INIT;
    rep.address = in->mg->address;
    rep.port = port;
    struct rpc_req *r = in->prepare;
    in->prepare = NULL;
    if (r)
        rpc_reply(r, &rep.base, NULL, 0, 0);
}

static void listen_when_up(struct incoming *in)
{
    if (!in->m || in->listening || machine_state(in->m) != MACHINE_INCOMING)
        return;
    in->listening = true;
    in->pending++;
    machine_migrate_in(in->m, in->mg->address, in->mg->conf.first_port, on_listening, in);
}

static void on_started(void *arg, int status, struct machine *m, const struct err *e)
{
    struct incoming *in = arg;
    in->preparing = false;
    if (in->gone) { /* aborted meanwhile */
        if (status == E_OK)
            machine_kill(m);
        maybe_free(in);
        return;
    }
    if (status != E_OK) {
        give_up(in, status, e && e->msg[0] ? e->msg : err_code_name(status));
        return;
    }
    in->m = m;
    listen_when_up(in);
}

static int check_prepare(const Cohort__Migrate__PrepareReq *req, struct machine_spec *ret_spec, struct err *e)
{
    size_t len = strlen(req->spec);
    if (len > SPEC_MAX_BYTES)
        return err_set(e, E_TOOBIG, "machine specification of %zu bytes", len);
    int rc = machine_spec_parse(req->spec, len, ret_spec, e);
    if (rc != E_OK)
        return rc;
    if (req->generation > INT64_MAX - 1 || (uint64_t)ret_spec->generation != req->generation)
        return err_set(e, E_INVAL, "machine specification and request name different generations");
    return E_OK;
}

static void on_prepare(struct rpc_req *req, void *arg)
{
    struct migrate *mg = arg;
    struct machine_spec spec;
    struct err e;
    if (check_prepare((const void *)req->msg, &spec, &e) != E_OK) {
        rpc_reply_err(req, e.code, 0, "%s", e.msg);
        return;
    }
    if (migrate_owns(mg, spec.id)) {
        rpc_reply_err(req, E_BUSY, 0, "machine %s: a migration of it is at work on this node", spec.name);
        return;
    }
    struct incoming *in = xcalloc(1, sizeof *in);
    in->mg = mg;
    in->prepare = req;
    snprintf(in->name, sizeof in->name, "%s", spec.name);
    snprintf(in->key.machine, sizeof in->key.machine, "%s", spec.id);
    snprintf(in->key.source, sizeof in->key.source, "%s", req->peer);
    snprintf(in->key.dest, sizeof in->key.dest, "%s", mg->self);
    in->key.generation = spec.generation;
    in->tick = tick_start(mg->conf.loop, TICK_MS, on_tick, in);
    TAILQ_INSERT_TAIL(&mg->incomings, in, entry);
    spec.generation++;
    spec.incoming = true;
    in->preparing = true;
    mg->conf.ops->prepare(mg->conf.ctx, &in->key, &spec, on_started, in);
}

/* ---- READY, FINISH, ABORT ---- */

/* The migration a request is about; NULL (and answered) if there is none of this machine, life and source. */
static struct incoming *about(struct migrate *mg, struct rpc_req *req)
{
    const Cohort__Migrate__GuestReq *g = (const void *)req->msg;
    struct incoming *in = find(mg, g->machine);
    if (in && (uint64_t)in->key.generation == g->generation && strcmp(in->key.source, req->peer) == 0)
        return in;
    rpc_reply_err(req, E_NOTFOUND, 0, "this migration is not known here (any more)");
    return NULL;
}

static void on_ready(struct rpc_req *req, void *arg)
{
    struct incoming *in = about(arg, req);
    if (!in)
        return;
    refuse(&in->ready, E_CANCELED, "asked again"); /* of a connection that broke */
    in->ready = req;
    if (in->loaded)
        confirm(&in->ready);
}

static void on_finish(struct rpc_req *req, void *arg)
{
    struct migrate *mg = arg;
    const Cohort__Migrate__GuestReq *g = (const void *)req->msg;
    if (!find(mg, g->machine)) {
        /* Our view may have been faster: then it runs here already. */
        struct migrate_key k = {.generation = (int64_t)g->generation};
        snprintf(k.machine, sizeof k.machine, "%.36s", g->machine);
        snprintf(k.source, sizeof k.source, "%.36s", req->peer);
        snprintf(k.dest, sizeof k.dest, "%.36s", mg->self);
        if (mg->conf.ops->place(mg->conf.ctx, &k) == MIGRATE_MOVED) {
            confirm(&req);
            return;
        }
    }
    struct incoming *in = about(mg, req);
    if (!in)
        return;
    refuse(&in->finish, E_CANCELED, "asked again");
    in->finish = req;
    decide(in);
}

static void on_abort(struct rpc_req *req, void *arg)
{
    struct migrate *mg = arg;
    struct incoming *in = about(mg, req);
    if (!in)
        return;
    if (mg->conf.ops->place(mg->conf.ctx, &in->key) == MIGRATE_MOVED) {
        rpc_reply_err(req, E_CONFLICT, 0, "the database says that the guest is ours");
        return;
    }
    const Cohort__Migrate__GuestReq *g = (const void *)req->msg;
    char why[200];
    snprintf(why, sizeof why, "the source ended it: %.150s", g->reason);
    confirm(&req);
    give_up(in, E_CANCELED, why);
}

/* ---- news of the machine ---- */

bool dest_owns(const struct migrate *mg, const char *machine) { return find(mg, machine) != NULL; }

void dest_machine_changed(struct migrate *mg, struct machine *m)
{
    struct incoming *in = find(mg, machine_spec(m)->id);
    if (!in || in->m != m)
        return;
    switch (machine_state(m)) {
    case MACHINE_INCOMING:
        listen_when_up(in);
        break;
    case MACHINE_PAUSED:
        if (in->loaded)
            break;
        in->loaded = true;
        confirm(&in->ready);
        decide(in);
        break;
    case MACHINE_ENDED: {
        char why[300];
        snprintf(why, sizeof why, "%s", machine_message(m)[0] ? machine_message(m) : "its QEMU ended");
        in->m = NULL;
        give_up(in, E_CANCELED, why);
        break;
    }
    default:
        break;
    }
}

void dest_open(struct migrate *mg)
{
    const ProtobufCMessageDescriptor *guest = &cohort__migrate__guest_req__descriptor;
    rpc_handle(mg->conf.rpc, RPC_MIGRATE_PREPARE, &cohort__migrate__prepare_req__descriptor, 0, on_prepare, mg);
    rpc_handle(mg->conf.rpc, RPC_MIGRATE_READY, guest, 0, on_ready, mg);
    rpc_handle(mg->conf.rpc, RPC_MIGRATE_FINISH, guest, 0, on_finish, mg);
    rpc_handle(mg->conf.rpc, RPC_MIGRATE_ABORT, guest, 0, on_abort, mg);
}

void dest_close(struct migrate *mg)
{
    struct incoming *in;
    while ((in = TAILQ_FIRST(&mg->incomings)))
        forget(in, E_UNAVAIL, "the daemon is being restarted");
}
