/* Operations: the attempt loop (build, commit, on conflict build again) and lookups. See ops.h and op.h.
 *
 *   op_start ─ build ─ commit ─┬─ E_OK ───────────────────────────────> done
 *                ^             ├─ E_CONFLICT ─ (view moved on? at once : 20 ms) ─┐
 *                └─────────────┼─────────────────────────────────────────────────┘
 *                              ├─ E_UNKNOWN ─ wait for a view, happened() ? done : build again (preconditions make it safe)
 *                              └─ else, or 20 s over ────────────────> done with the error
 */
#include "daemon/op.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/htab.h"
#include "base/log.h"
#include "daemon/daemon.h"

LOG_MODULE("ops")

#define GIVE_UP_MS 20000
#define RETRY_MS 20
#define RETRIES_MAX 200

struct ops {
    struct daemon *d;
    LIST_HEAD(, op) list;
};

struct ops *ops_open(struct daemon *d)
{
    struct ops *o = xcalloc(1, sizeof *o);
    o->d = d;
    LIST_INIT(&o->list);
    return o;
}

struct daemon *ops_daemon(const struct ops *o) { return o->d; }

static void on_timer_closed(uv_handle_t *h) { free(container_of((uv_timer_t *)h, struct op, timer)); }

static void op_free(struct op *op)
{
    LIST_REMOVE(op, entry);
    cdb_view_unref(op->built_on);
    op->built_on = NULL;
    op->ended = true;
    uv_close((uv_handle_t *)&op->timer, on_timer_closed);
}

void ops_close(struct ops *o)
{
    struct op *op;
    if (!o)
        return;
    while ((op = LIST_FIRST(&o->list))) {
        if (op->committing)
            cdb_txn_cancel(o->d->link, op);
        op_free(op);
    }
    free(o);
}

void *op_new(struct ops *o, size_t bytes, const char *note, op_done *done, void *arg)
{
    assert(bytes >= sizeof(struct op));
    struct op *op = xcalloc(1, bytes);
    op->ops = o;
    op->note = note;
    op->done = done;
    op->arg = arg;
    op->deadline_ms = clock_boot_ms() + GIVE_UP_MS;
    id_new(op->id);
    uv_timer_init(o->d->loop, &op->timer);
    LIST_INSERT_HEAD(&o->list, op, entry);
    return op;
}

static void finish(struct op *op, int status, const struct err *e)
{
    op_done *done = op->done;
    void *arg = op->arg;
    char id[sizeof op->id];
    memcpy(id, op->id, sizeof id);
    if (status != E_OK)
        log_info("%s: %s", op->note, e->msg);
    op_free(op);
    done(arg, status, e, id);
}

static void on_committed(void *arg, int status, const struct err *e);
static void on_retry(uv_timer_t *t);

static void on_deadline(uv_timer_t *t)
{
    struct op *op = container_of(t, struct op, timer);
    struct err e;
    cdb_txn_cancel(op->ops->d->link, op);
    err_set(&e, E_UNAVAIL, "the cluster database did not take the change within %d s; whether it still will is not known\n"
            "a majority of the voter nodes must be up and connected: see cohort cluster status", GIVE_UP_MS / 1000);
    finish(op, E_UNAVAIL, &e);
}

static int attempt(struct op *op, struct err *e)
{
    const struct cdb_view *v = ops_view(op->ops, e);
    if (!v)
        return E_UNAVAIL;
    struct cdb_txn *t = cdb_txn_new();
    int rc = op->build(op, v, t, e);
    if (rc != E_OK) {
        cdb_txn_free(t);
        return rc;
    }
    cdb_view_unref(op->built_on);
    op->built_on = cdb_view_ref(v);
    op->committing = true;
    uint64_t now = clock_boot_ms();
    uv_timer_start(&op->timer, on_deadline, op->deadline_ms > now ? op->deadline_ms - now : 0, 0);
    cdb_txn_commit(op->ops->d->link, t, op->note, on_committed, op);
    return E_OK;
}

int op_start(struct op *op, struct err *e)
{
    struct err own;
    if (!e)
        e = &own;
    int rc = attempt(op, e);
    if (rc != E_OK)
        op_free(op);
    return rc;
}

static void on_retry(uv_timer_t *t)
{
    struct op *op = container_of(t, struct op, timer);
    struct err e;
    const struct cdb_view *v = ops_view(op->ops, &e);
    if (v && op->happened && op->happened(op, v)) {
        finish(op, E_OK, NULL);
        return;
    }
    int rc = attempt(op, &e);
    if (rc != E_OK)
        finish(op, rc, &e);
}

static void on_committed(void *arg, int status, const struct err *e)
{
    struct op *op = arg;
    struct err late;
    op->committing = false;
    uv_timer_stop(&op->timer);
    bool again = status == E_CONFLICT || (status == E_UNKNOWN && op->happened);
    if (!again || clock_boot_ms() >= op->deadline_ms || ++op->tries > RETRIES_MAX) {
        if (status == E_CONFLICT)
            err_set(&late, E_CONFLICT, "the objects kept changing meanwhile: %s\ntry again", e->msg);
        else if (status == E_UNKNOWN)
            err_set(&late, E_UNKNOWN, "the connection to the database broke: the change may or may not have happened\nlook before repeating");
        else if (status != E_OK)
            late = *e;
        finish(op, status, status == E_OK ? NULL : &late);
        return;
    }
    /* The refusal may be about a state that our view does not show yet. */
    bool moved = op->ops->d->link && cdb_link_view(op->ops->d->link) != op->built_on;
    uv_timer_start(&op->timer, on_retry, moved ? 0 : RETRY_MS, 0);
}

/* ---- lookups ---- */

const struct cdb_view *ops_view(const struct ops *o, struct err *e)
{
    if (!o->d->link) {
        err_set(e, E_UNAVAIL, "this node is not in a cluster yet\nfound one with: cohort cluster init; or join: cohort cluster join TOKEN");
        return NULL;
    }
    const struct cdb_view *v = cdb_link_view(o->d->link);
    if (!v)
        err_set(e, E_UNAVAIL, "this node has not reached the cluster database yet\na majority of the voter nodes must be up; try again shortly");
    return v;
}

static bool has_name(enum cdb_table t)
{
    return cdb_tables[t].n_columns > 0 && strcmp(cdb_tables[t].columns[0].name, "name") == 0;
}

const void *ops_find(const struct cdb_view *v, enum cdb_table t, const char *what, const char *key, struct err *e)
{
    const void *row = has_name(t) && *key ? cdb_find_name(v, t, key) : NULL;
    if (!row && *key)
        row = cdb_get(v, t, key);
    if (!row)
        err_set(e, E_NOTFOUND, "no %s \"%.80s\"", what, key);
    return row;
}

const char *ops_name(const struct cdb_view *v, enum cdb_table t, const char *id)
{
    const void *row = *id ? cdb_get(v, t, id) : NULL;
    if (!row || !has_name(t))
        return id;
    return *(char *const *)((const char *)row + cdb_tables[t].columns[0].offset);
}

/* ---- events ---- */

void op_event(struct op *op, struct cdb_txn *t, const char *severity, const char *object, const char *fmt, ...)
{
    struct buf text;
    va_list ap;
    buf_init(&text);
    va_start(ap, fmt);
    buf_vprintf(&text, fmt, ap);
    va_end(ap);
    cdb_txn_event(t, clock_wall_ms(), severity, object, text.data, op->ops->d->node_id);
    buf_free(&text);
}
