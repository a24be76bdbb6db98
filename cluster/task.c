/* Task reporter. */
#include "cluster/task.h"
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/id.h"

#define WRITE_EVERY_MS 1000

struct task {
    struct cdb_link *link;
    char id[ID_LEN + 1];
    int64_t done, total;
    int64_t written_done, written_total;
    uint64_t written_at_ms;
    bool busy, ended, made;
    char state[16], *message;
};

static void on_txn(void *arg, int status, const struct err *e);

static void commit(struct task *t, struct cdb_txn *x, const char *note)
{
    cdb_txn_set_int(x, CDB_T_TASK, t->id, CDB_TASK_done, t->done);
    cdb_txn_set_int(x, CDB_T_TASK, t->id, CDB_TASK_total, t->total);
    cdb_txn_set_int(x, CDB_T_TASK, t->id, CDB_TASK_updated_ms, clock_wall_ms());
    t->written_done = t->done;
    t->written_total = t->total;
    t->written_at_ms = clock_boot_ms();
    t->busy = true;
    cdb_txn_commit(t->link, x, note, on_txn, t);
}

static void task_free(struct task *t)
{
    free(t->message);
    free(t);
}

static void write_end(struct task *t)
{
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_require_exists(x, CDB_T_TASK, t->id);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_state, t->state);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_message, t->message);
    commit(t, x, "task ends");
}

static void on_txn(void *arg, int status, const struct err *e)
{
    struct task *t = arg;
    (void)e;
    t->busy = false;
    if (!t->made) { /* the row's insert; a task nobody could record is still worth doing */
        t->made = status == 0 || status == E_UNKNOWN;
        if (t->ended && t->made)
            write_end(t);
        else if (t->ended)
            task_free(t);
        return;
    }
    if (t->ended) { /* was that the end, or progress that was under way when it came? */
        const struct cdb_task *row = cdb_task_get(cdb_link_view(t->link), t->id);
        if (row && !strcmp(row->state, "running") && status != E_CONFLICT)
            write_end(t);
        else
            task_free(t);
    }
}

struct task *task_begin(struct cdb_link *l, const char *kind, const char *object, const char *node, const char *unit, int64_t total)
{
    struct task *t = xcalloc(1, sizeof *t);
    t->link = l;
    t->total = total;
    id_new(t->id);
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_insert(x, CDB_T_TASK, t->id);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_kind, kind);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_object, object);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_node, node);
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_state, "running");
    cdb_txn_set_str(x, CDB_T_TASK, t->id, CDB_TASK_unit, unit);
    cdb_txn_set_int(x, CDB_T_TASK, t->id, CDB_TASK_started_ms, clock_wall_ms());
    commit(t, x, "task begins");
    return t;
}

void task_progress(struct task *t, int64_t done, int64_t total)
{
    t->done = done;
    t->total = total;
    bool news = done != t->written_done || total != t->written_total;
    if (t->busy || !t->made || !news || clock_boot_ms() - t->written_at_ms < WRITE_EVERY_MS)
        return;
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_require_exists(x, CDB_T_TASK, t->id);
    commit(t, x, "task progress");
}

const char *task_id(const struct task *t) { return t->id; }

bool task_cancel_asked(const struct task *t)
{
    const struct cdb_view *v = cdb_link_view(t->link);
    const struct cdb_task *row = v ? cdb_task_get(v, t->id) : NULL;
    return row && row->cancel;
}

void task_end(struct task *t, const char *state, const char *message)
{
    if (!t)
        return;
    snprintf(t->state, sizeof t->state, "%s", state);
    t->message = xstrdup(message ? message : "");
    t->ended = true;
    if (!strcmp(state, "done"))
        t->done = t->total;
    if (!t->busy)
        write_end(t); /* else when what is under way has ended */
}

void task_drop(struct task *t)
{
    if (!t)
        return;
    cdb_txn_cancel(t->link, t);
    task_free(t);
}

struct cdb_txn *task_txn_interrupted(const struct cdb_view *v, const char *node)
{
    struct cdb_txn *x = NULL;
    for (size_t i = 0; i < cdb_task_count(v); i++) {
        const struct cdb_task *row = cdb_task_at(v, i);
        if (strcmp(row->node, node) || strcmp(row->state, "running"))
            continue;
        if (!x)
            x = cdb_txn_new();
        cdb_txn_require_str(x, CDB_T_TASK, row->id, CDB_TASK_state, "running");
        cdb_txn_set_str(x, CDB_T_TASK, row->id, CDB_TASK_state, "failed");
        cdb_txn_set_str(x, CDB_T_TASK, row->id, CDB_TASK_message, "the node's daemon restarted; what has to go on begins again as a new task");
        cdb_txn_set_int(x, CDB_T_TASK, row->id, CDB_TASK_updated_ms, clock_wall_ms());
    }
    return x;
}
