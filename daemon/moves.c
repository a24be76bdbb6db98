/* Live migrations' wiring. */
#include "daemon/moves.h"
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "base/buf.h"
#include "base/log.h"
#include "cluster/task.h"
#include "daemon/guest_txn.h"
#include "daemon/guests.h"
#include "daemon/nodelinks.h"
#include "ha/plan.h"
#include "migrate/migrate.h"

LOG_MODULE("migrate");

struct move { /* one that this node drives as the source */
    char id[ID_LEN + 1];
    struct task *task;
    LIST_ENTRY(move) entry;
};

struct pending_txn {
    migrate_committed *fn;
    void *arg;
    struct moves *moves;
    LIST_ENTRY(pending_txn) entry;
};

struct preparing { /* at the destination: waits for the kernel image */
    struct migrate_key key;
    struct machine_spec spec;
    migrate_prepared *fn;
    void *arg;
    LIST_ENTRY(preparing) entry;
};

struct moves {
    struct daemon *d;
    struct migrate *engine;
    LIST_HEAD(, move) list;
    LIST_HEAD(, pending_txn) txns;
    LIST_HEAD(, preparing) preparing;
    uv_timer_t later; /* answers that must not come from inside a call */
    bool closing;
};

static const struct cdb_view *view(const struct moves *m)
{
    return cdb_link_view(m->d->link);
}

static struct move *find(struct moves *m, const char *id)
{
    struct move *x;
    LIST_FOREACH (x, &m->list, entry)
        if (!strcmp(x->id, id))
            return x;
    return NULL;
}

/* ---- what migrate/ asks for ---- */

static struct rpc_peer *get_peer(void *ctx, const char *node)
{
    struct moves *m = ctx;
    return nodelinks_get(m->d->nodelinks, node);
}

static void on_txn(void *arg, int status, const struct err *e)
{
    struct pending_txn *p = arg;
    LIST_REMOVE(p, entry);
    guests_wake(p->moves->d->guests);
    p->fn(p->arg, status, e);
    free(p);
}

static void commit(struct moves *m, struct cdb_txn *t, const char *note, migrate_committed *fn, void *arg)
{
    struct pending_txn *p = xmalloc(sizeof *p);
    *p = (struct pending_txn){.fn = fn, .arg = arg, .moves = m};
    LIST_INSERT_HEAD(&m->txns, p, entry);
    cdb_txn_commit(m->d->link, t, note, on_txn, p);
}

/* A row that stands for what the migration began with, for building transactions whose preconditions say so. */
static struct cdb_machine as_begun(const struct migrate_key *k, const struct cdb_machine *row)
{
    struct cdb_machine m = row ? *row : (struct cdb_machine){.message = ""};
    m.id = (char *)k->machine;
    m.host = (char *)k->source;
    m.generation = k->generation;
    m.migrate_to = (char *)k->dest;
    return m;
}

static void on_commit(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg)
{
    struct moves *m = ctx;
    struct cdb_machine row = as_begun(k, cdb_machine_get(view(m), k->machine));
    commit(m, guest_txn_moved(m->d, view(m), &row, k->dest), "switchover", fn, arg);
}

static void on_decline(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg)
{
    struct moves *m = ctx;
    struct cdb_machine row = as_begun(k, cdb_machine_get(view(m), k->machine));
    commit(m, guest_txn_not_moved(m->d, &row, row.message), "migration declined", fn, arg);
}

static void on_progress(void *ctx, const char *machine, const struct migrate_progress *p)
{
    struct move *x = find(ctx, machine);
    struct moves *m = ctx;
    struct err e;
    if (!x)
        return;
    task_progress(x->task, p->done_bytes, p->total_bytes);
    if (task_cancel_asked(x->task) && migrate_cancel(m->engine, machine, &e))
        log_info("vm %s: cannot be cancelled any more: %s", machine, e.msg);
}

static void ignore(void *arg, int status, const struct err *e)
{
    if (status && status != E_CONFLICT)
        log_warn("migration: %s", e->msg);
}

static void on_ended(void *ctx, const char *machine, enum migrate_state how, const struct migrate_progress *p, const char *message)
{
    struct moves *m = ctx;
    struct move *x = find(m, machine);
    const struct cdb_machine *row = cdb_machine_get(view(m), machine);
    char text[400];
    if (how == MIGRATE_DONE)
        snprintf(text, sizeof text, "moved; the guest stood still for %d ms", p->pause_ms);
    else
        snprintf(text, sizeof text, "%s; the guest runs on at the source", message);
    log_info("vm %s: migration %s: %s", row ? row->name : machine, migrate_state_name(how), text);
    if (x) {
        task_end(x->task, how == MIGRATE_DONE ? "done" : how == MIGRATE_CANCELLED ? "canceled" : "failed", text);
        LIST_REMOVE(x, entry);
        free(x);
    }
    if (how != MIGRATE_DONE && row && row->migrate_to[0] && !strcmp(row->host, m->d->node_id))
        commit(m, guest_txn_not_moved(m->d, row, text), "migration ended", ignore, NULL);
    guests_wake(m->d->guests);
}

static enum migrate_place get_place(void *ctx, const struct migrate_key *k)
{
    struct moves *m = ctx;
    const struct cdb_view *v = view(m);
    const struct cdb_machine *row = v ? cdb_machine_get(v, k->machine) : NULL;
    if (!v)
        return MIGRATE_NOT_KNOWN;
    if (row && !strcmp(row->host, k->source) && row->generation == k->generation)
        return strcmp(row->migrate_to, k->dest) ? MIGRATE_NOT_WANTED : MIGRATE_WANTED;
    if (row && !strcmp(row->host, k->dest) && row->generation == k->generation + 1)
        return MIGRATE_MOVED;
    return MIGRATE_ELSEWHERE;
}

/* ---- destination ---- */

static int check_room(struct moves *m, const struct cdb_view *v, const struct machine_spec *s, struct err *e)
{
    const struct cdb_node *self = cdb_node_get(v, m->d->node_id);
    int64_t promised = plan_promised_bytes(v, m->d->node_id); /* this guest is in it, by migrate_to */
    if (self && promised > self->memory_bytes - PLAN_RESERVE_BYTES)
        return err_set(e, E_NOSPC, "node %s has not enough memory left for %lld MiB", self->name, (long long)(s->memory_bytes >> 20));
    return 0;
}

/* True if it has been answered. */
static bool prepare_now(struct moves *m, struct preparing *p)
{
    const struct cdb_view *v = view(m);
    const struct cdb_machine *row = v ? cdb_machine_get(v, p->key.machine) : NULL;
    struct machine *machine = NULL;
    struct machine_spec s;
    struct err e = {0};
    int rc = 0;
    if (!row)
        rc = err_set(&e, E_NOTFOUND, "the destination does not know this guest (yet)");
    else if (!guests_image_ready(m->d->guests, v, row))
        return false;
    if (!rc)
        rc = check_room(m, v, &p->spec, &e);
    if (!rc)
        rc = guests_prepare(m->d->guests, v, row, &s, &e);
    if (!rc) { /* the guest's view of its machine is the source's; only paths are ours */
        s.generation = p->spec.generation;
        s.incoming = true;
        s.accel = p->spec.accel;
        s.type = p->spec.type;
        s.vcpus = p->spec.vcpus;
        s.memory_bytes = p->spec.memory_bytes;
        memcpy(s.cpu, p->spec.cpu, sizeof s.cpu);
        memcpy(s.cmdline, p->spec.cmdline, sizeof s.cmdline);
        rc = machine_start(guests_machines(m->d->guests), &s, &machine, &e);
    }
    p->fn(p->arg, rc, machine, &e);
    return true;
}

static void prepare_all(struct moves *m)
{
    for (struct preparing *p = LIST_FIRST(&m->preparing), *next; p; p = next) {
        next = LIST_NEXT(p, entry);
        if (prepare_now(m, p)) {
            LIST_REMOVE(p, entry);
            free(p);
        }
    }
}

static void on_later(uv_timer_t *t)
{
    prepare_all(t->data);
}

static void on_prepare(void *ctx, const struct migrate_key *k, const struct machine_spec *spec, migrate_prepared *fn, void *arg)
{
    struct moves *m = ctx;
    struct preparing *p = xmalloc(sizeof *p);
    *p = (struct preparing){.key = *k, .spec = *spec, .fn = fn, .arg = arg};
    LIST_INSERT_HEAD(&m->preparing, p, entry);
    uv_timer_start(&m->later, on_later, 0, 0);
}

void moves_image_ready(struct moves *m)
{
    if (m)
        prepare_all(m);
}

/* ---- beginning ---- */

static void begin(struct moves *m, const struct cdb_view *v, const struct cdb_machine *row)
{
    struct machine *machine = machines_find(guests_machines(m->d->guests), row->id);
    const struct migrate_options options = {0};
    struct err e = {0};
    if (!guests_settled(m->d->guests, row->id) || !machine || machine_spec(machine)->generation != row->generation || machine_state(machine) != MACHINE_RUNNING)
        return; /* not yet, or the reconciler has something to do first */
    if (migrate_start(m->engine, machine, row->migrate_to, &options, &e)) {
        log_warn("vm %s: cannot migrate: %s", row->name, e.msg);
        commit(m, guest_txn_not_moved(m->d, row, e.msg), "migration refused", ignore, NULL);
        return;
    }
    const struct cdb_node *to = cdb_node_get(v, row->migrate_to);
    char object[128];
    snprintf(object, sizeof object, "vm %s to node %s", row->name, to ? to->name : row->migrate_to);
    log_info("%s: live migration begins", object);
    struct move *x = xcalloc(1, sizeof *x);
    snprintf(x->id, sizeof x->id, "%s", row->id);
    x->task = task_begin(m->d->link, "migrate", object, m->d->node_id, "bytes", row->memory_bytes);
    LIST_INSERT_HEAD(&m->list, x, entry);
}

void moves_update(struct moves *m)
{
    const struct cdb_view *v = view(m);
    if (!v || m->closing)
        return;
    migrate_db_changed(m->engine);
    prepare_all(m);
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *row = cdb_machine_at(v, i);
        if (!strcmp(row->host, m->d->node_id) && row->migrate_to[0] && !strcmp(row->desired, "running") &&
            !migrate_owns(m->engine, row->id) && LIST_EMPTY(&m->txns))
            begin(m, v, row);
    }
}

void moves_machine_changed(struct moves *m, struct machine *machine)
{
    if (m)
        migrate_machine_changed(m->engine, machine);
}

bool moves_owns(const struct moves *m, const char *machine)
{
    return m && migrate_owns(m->engine, machine);
}

int moves_open(struct daemon *d, struct moves **ret_moves, struct err *e)
{
    static const struct migrate_ops ops = {get_peer, on_commit, on_decline, on_progress, on_ended, get_place, on_prepare};
    struct moves *m = xcalloc(1, sizeof *m);
    m->d = d;
    struct migrate_conf conf = {.loop = d->loop, .rpc = d->rpc, .address = d->conf.address, .first_port = d->conf.migrate_port,
                                .ops = &ops, .ctx = m};
    int rc = migrate_open(&conf, &m->engine, e);
    if (rc) {
        free(m);
        return rc;
    }
    uv_timer_init(d->loop, &m->later);
    m->later.data = m;
    *ret_moves = m;
    return 0;
}

static void timer_closed(uv_handle_t *h)
{
    free(h->data);
}

void moves_close(struct moves *m)
{
    if (!m || m->closing)
        return;
    m->closing = true;
    migrate_close(m->engine);
    for (struct move *x; (x = LIST_FIRST(&m->list));) {
        task_drop(x->task);
        LIST_REMOVE(x, entry);
        free(x);
    }
    for (struct preparing *p; (p = LIST_FIRST(&m->preparing));) {
        LIST_REMOVE(p, entry);
        free(p);
    }
    for (struct pending_txn *p; (p = LIST_FIRST(&m->txns));) {
        cdb_txn_cancel(m->d->link, p);
        LIST_REMOVE(p, entry);
        free(p);
    }
    uv_close((uv_handle_t *)&m->later, timer_closed);
}
