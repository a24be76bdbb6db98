/* Building transactions, and evaluating them against a view. See txn.h. */
#include "cluster/txn.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/id.h"

#define TRIM_EXTRA 4 /* rows that went beyond the limit at the same moment elsewhere */

struct cdb_txn *cdb_txn_new(void)
{
    return xcalloc(1, sizeof(struct cdb_txn));
}

void txn_destroy(struct cdb_txn *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        if (t->ops[i].kind == TXN_SET || t->ops[i].kind == TXN_REQUIRE)
            cell_free(t->ops[i].v.type, &t->ops[i].v.u);
        free(t->ops[i].id);
    }
    free(t->ops);
    free(t->note);
    free(t);
}

void cdb_txn_free(struct cdb_txn *t)
{
    assert(!t || !t->note); /* committed ones are not the caller's */
    txn_destroy(t);
}

/* ---- building ---- */

static struct txn_op *op_add(struct cdb_txn *t, enum txn_kind kind, enum cdb_table tb, const char *id)
{
    assert(tb >= 0 && tb < CDB_N_TABLES && id && id[0] && !t->note);
    if (t->n == t->cap)
        t->ops = xrealloc(t->ops, (t->cap = t->cap ? 2 * t->cap : 8) * sizeof *t->ops);
    struct txn_op *op = &t->ops[t->n++];
    *op = (struct txn_op){.kind = kind, .table = tb, .id = xstrdup(id)};
    return op;
}

static struct cdb_value *op_add_value(struct cdb_txn *t, enum txn_kind kind, enum cdb_table tb, const char *id, int col,
                                      enum cdb_type type)
{
    assert(col >= 0 && col < cdb_tables[tb].n_columns && row_column(tb, col)->type == type);
    struct txn_op *op = op_add(t, kind, tb, id);
    op->col = col;
    op->v.type = type;
    return &op->v;
}

void cdb_txn_insert(struct cdb_txn *t, enum cdb_table tb, const char *id) { op_add(t, TXN_INSERT, tb, id); }
void cdb_txn_delete(struct cdb_txn *t, enum cdb_table tb, const char *id) { op_add(t, TXN_DELETE, tb, id); }
void cdb_txn_require_exists(struct cdb_txn *t, enum cdb_table tb, const char *id) { op_add(t, TXN_REQUIRE_EXISTS, tb, id); }
void cdb_txn_require_absent(struct cdb_txn *t, enum cdb_table tb, const char *id) { op_add(t, TXN_REQUIRE_ABSENT, tb, id); }

void cdb_txn_set_str(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const char *v)
{
    op_add_value(t, TXN_SET, tb, id, col, CDB_STR)->u.s = xstrdup(v);
}

void cdb_txn_set_int(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, int64_t v)
{
    op_add_value(t, TXN_SET, tb, id, col, CDB_INT)->u.i = v;
}

void cdb_txn_event(struct cdb_txn *t, int64_t wall_ms, const char *severity, const char *object, const char *message, const char *node)
{
    char id[ID_LEN + 1];
    id_new(id);
    cdb_txn_insert(t, CDB_T_EVENT, id);
    cdb_txn_set_int(t, CDB_T_EVENT, id, CDB_EVENT_time_ms, wall_ms);
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_severity, severity);
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_object, object);
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_message, message);
    cdb_txn_set_str(t, CDB_T_EVENT, id, CDB_EVENT_node, node);
}

/* A log among the tables: rows that may go, oldest first. */
struct log {
    enum cdb_table table;
    size_t kept;
    int64_t (*time)(const void *row); /* INT64_MAX: it stays */
};

static int64_t event_time(const void *row)
{
    return ((const struct cdb_event *)row)->time_ms;
}

static int64_t task_time(const void *row)
{
    const struct cdb_task *t = row;
    return strcmp(t->state, "running") ? t->updated_ms : INT64_MAX;
}

/* The oldest row that comes after `after` (NULL: of all), by time and id; NULL if none may go. */
static const void *next_oldest(const struct cdb_view *v, const struct log *g, const void *after)
{
    const void *oldest = NULL;
    for (size_t i = 0; i < cdb_count(v, g->table); i++) {
        const void *row = cdb_at(v, g->table, i);
        int64_t t = g->time(row), t_after = after ? g->time(after) : 0, t_oldest = oldest ? g->time(oldest) : INT64_MAX;
        bool later = !after || (t != t_after ? t > t_after : strcmp(row_id(row), row_id(after)) > 0);
        if (later && t < t_oldest) /* of equal ones the first: rows come by id */
            oldest = row;
    }
    return oldest;
}

static void trim(struct cdb_txn *t, const struct cdb_view *v, const struct log *g)
{
    size_t adds = 0, n = t->n, count = cdb_count(v, g->table);
    for (size_t i = 0; i < n; i++)
        adds += t->ops[i].kind == TXN_INSERT && t->ops[i].table == g->table;
    if (!adds || count + adds <= g->kept)
        return;
    size_t excess = count + adds - g->kept;
    if (excess > adds + TRIM_EXTRA)
        excess = adds + TRIM_EXTRA;
    const void *row = NULL;
    while (excess-- && (row = next_oldest(v, g, row)))
        op_add(t, TXN_DISCARD, g->table, row_id(row));
}

void txn_trim_logs(struct cdb_txn *t, const struct cdb_view *v)
{
    static const struct log logs[] = {{CDB_T_EVENT, CDB_EVENTS_KEPT, event_time}, {CDB_T_TASK, CDB_TASKS_KEPT, task_time}};
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++)
        trim(t, v, &logs[i]);
}

void cdb_txn_set_bool(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, bool v)
{
    op_add_value(t, TXN_SET, tb, id, col, CDB_BOOL)->u.b = v;
}

void cdb_txn_set_strs(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, size_t n, const char *const *v)
{
    strs_copy_sorted(&op_add_value(t, TXN_SET, tb, id, col, CDB_STRS)->u.strs, n, v);
}

void cdb_txn_set_imap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_imap *v)
{
    imap_copy_sorted(&op_add_value(t, TXN_SET, tb, id, col, CDB_IMAP)->u.imap, v);
}

void cdb_txn_set_smap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_smap *v)
{
    smap_copy_sorted(&op_add_value(t, TXN_SET, tb, id, col, CDB_SMAP)->u.smap, v);
}

void cdb_txn_require_str(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const char *v)
{
    op_add_value(t, TXN_REQUIRE, tb, id, col, CDB_STR)->u.s = xstrdup(v);
}

void cdb_txn_require_int(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, int64_t v)
{
    op_add_value(t, TXN_REQUIRE, tb, id, col, CDB_INT)->u.i = v;
}

void cdb_txn_require_imap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_imap *v)
{
    imap_copy_sorted(&op_add_value(t, TXN_REQUIRE, tb, id, col, CDB_IMAP)->u.imap, v);
}

/* ---- evaluating ---- */

static int op_gone(const struct txn_op *op, struct err *e)
{
    return err_set(e, E_CONFLICT, "%s %s is not there", cdb_tables[op->table].name, op->id);
}

static int check_require(const struct txn_op *op, const struct cdb_view *v, struct err *e)
{
    const void *row = cdb_get(v, op->table, op->id);
    if (op->kind == TXN_REQUIRE_ABSENT)
        return row ? err_set(e, E_CONFLICT, "%s %s exists", cdb_tables[op->table].name, op->id) : 0;
    if (!row)
        return op_gone(op, e);
    if (op->kind == TXN_REQUIRE_EXISTS)
        return 0;
    const struct cdb_column *c = row_column(op->table, op->col);
    const void *cell = row_cell_const(row, c);
    if (cell_equal(c->type, cell, &op->v.u))
        return 0;
    const char *tb = cdb_tables[op->table].name;
    if (c->type == CDB_INT)
        return err_set(e, E_CONFLICT, "%s %s: %s is %lld, not %lld", tb, op->id, c->name,
                       (long long)*(const int64_t *)cell, (long long)op->v.u.i);
    if (c->type == CDB_STR)
        return err_set(e, E_CONFLICT, "%s %s: %s is \"%s\", not \"%s\"", tb, op->id, c->name, *(char *const *)cell, op->v.u.s);
    return err_set(e, E_CONFLICT, "%s %s: %s has changed", tb, op->id, c->name);
}

static int apply_op(const struct txn_op *op, const struct cdb_view *before, struct view_edit *edit, struct err *e)
{
    const void *row = view_edit_get(edit, op->table, op->id);
    if (op->kind == TXN_INSERT) {
        if (row || cdb_get(before, op->table, op->id)) /* OVSDB refuses to reuse an id that the same transaction deleted */
            return err_set(e, E_CONFLICT, "%s %s exists", cdb_tables[op->table].name, op->id);
        view_edit_put(edit, op->table, row_new(op->table, op->id));
        return 0;
    }
    if (!row)
        return op->kind == TXN_DISCARD ? 0 : op_gone(op, e);
    if (op->kind == TXN_DELETE || op->kind == TXN_DISCARD) {
        view_edit_delete(edit, op->table, op->id);
        return 0;
    }
    const struct cdb_column *c = row_column(op->table, op->col);
    if (cell_equal(c->type, row_cell_const(row, c), &op->v.u))
        return 0;
    void *next = row_clone(row);
    cell_assign(c->type, row_cell(next, c), &op->v.u);
    view_edit_put(edit, op->table, next);
    return 0;
}

static bool index_equal(const struct cdb_index *x, const void *a, const void *b)
{
    for (int i = 0; i < x->n; i++) {
        const struct cdb_column *c = row_column(x->table, x->cols[i]);
        if (!cell_equal(c->type, row_cell_const(a, c), row_cell_const(b, c)))
            return false;
    }
    return true;
}

struct unique_check {
    const struct cdb_view *v;
    const struct view_edit *edit;
    struct err *e;
    int status;
    /* inner loop over the rows put by the same transaction */
    const struct cdb_index *index;
    const void *row;
};

static void unique_clash(struct unique_check *u, const struct cdb_index *x, const void *row)
{
    const struct cdb_column *c = row_column(x->table, x->cols[x->n - 1]);
    u->status = err_set(u->e, E_CONFLICT, "%s with %s \"%s\" exists", cdb_tables[x->table].name, c->name,
                        *(char *const *)row_cell_const(row, c));
}

static void unique_among_put(enum cdb_table t, const void *row, void *arg)
{
    struct unique_check *u = arg;
    if (t == u->index->table && row != u->row && index_equal(u->index, row, u->row))
        unique_clash(u, u->index, row);
}

static void unique_row(enum cdb_table t, const void *row, void *arg)
{
    struct unique_check *u = arg;
    const void *before = cdb_get(u->v, t, row_id(row));
    for (size_t i = 0; i < cdb_n_indexes && !u->status; i++) {
        const struct cdb_index *x = &cdb_indexes[i];
        if (x->table != t || (before && index_equal(x, before, row)))
            continue;
        for (size_t k = 0; k < cdb_count(u->v, t); k++) {
            const void *other = cdb_at(u->v, t, k);
            /* A row that the transaction deleted or changed counts as it is afterwards. */
            if (index_equal(x, other, row) && view_edit_get(u->edit, t, row_id(other)) == other) {
                unique_clash(u, x, row);
                return;
            }
        }
        u->index = x;
        u->row = row;
        view_edit_each_put(u->edit, unique_among_put, u);
    }
}

int txn_check_values(const struct cdb_txn *t, struct err *e)
{
    for (size_t i = 0; i < t->n; i++) {
        const struct txn_op *op = &t->ops[i];
        if (!text_is_utf8(op->id))
            return err_set(e, E_INVAL, "%s: an id is not UTF-8 text", cdb_tables[op->table].name);
        if ((op->kind == TXN_SET || op->kind == TXN_REQUIRE) && !cell_valid(op->v.type, &op->v.u))
            return err_set(e, E_INVAL, "%s %s: %s is not UTF-8 text", cdb_tables[op->table].name, op->id,
                           row_column(op->table, op->col)->name);
    }
    return 0;
}

int txn_apply(const struct cdb_txn *t, const struct cdb_view *v, struct view_edit *edit, struct err *e)
{
    int bad = txn_check_values(t, e);
    if (bad)
        return bad;
    for (size_t i = 0; i < t->n; i++)
        if (t->ops[i].kind >= TXN_REQUIRE) {
            int r = check_require(&t->ops[i], v, e);
            if (r)
                return r;
        }
    for (size_t i = 0; i < t->n; i++)
        if (t->ops[i].kind < TXN_REQUIRE) {
            int r = apply_op(&t->ops[i], v, edit, e);
            if (r)
                return r;
        }
    struct unique_check u = {.v = v, .edit = edit, .e = e};
    view_edit_each_put(edit, unique_row, &u);
    return u.status;
}
