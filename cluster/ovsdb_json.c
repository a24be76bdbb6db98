/* Rows and transactions in OVSDB's JSON. See ovsdb_json.h. */
#include <config.h>
#include "cluster/ovsdb_json.h"
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "openvswitch/dynamic-string.h"
#include "openvswitch/shash.h"
#include "ovsdb-cs.h"
#include "sha1.h"
#include "sset.h"

void row_uuid_of(const char *id, struct uuid *ret)
{
    if (strlen(id) == UUID_LEN && uuid_from_string(ret, id))
        return;
    uint8_t digest[SHA1_DIGEST_SIZE];
    sha1_bytes(id, strlen(id), digest);
    for (int i = 0; i < 4; i++)
        ret->parts[i] = (uint32_t)digest[4 * i] << 24 | (uint32_t)digest[4 * i + 1] << 16 |
                        (uint32_t)digest[4 * i + 2] << 8 | digest[4 * i + 3];
    ret->parts[1] = (ret->parts[1] & ~0xf000u) | 0x5000; /* RFC 4122 version 5, variant 1 */
    ret->parts[2] = (ret->parts[2] & ~0xc0000000u) | 0x80000000u;
}

static struct json *where_uuid(const struct uuid *u)
{
    char text[UUID_LEN + 1];
    snprintf(text, sizeof text, UUID_FMT, UUID_ARGS(u));
    return json_array_create_1(json_array_create_3(
        json_string_create("_uuid"), json_string_create("=="),
        json_array_create_2(json_string_create("uuid"), json_string_create(text))));
}

struct json *monitor_requests(const struct json *schema_json, const struct uuid *client)
{
    struct json *requests = json_object_create();
    struct shash *schema = ovsdb_cs_parse_schema(schema_json);
    for (int t = 0; t <= CDB_N_TABLES; t++) {
        const char *name = t < CDB_N_TABLES ? cdb_tables[t].name : CLIENT_TABLE;
        /* A server of an older generation lacks columns, perhaps tables: they keep their defaults. */
        const struct sset *has = schema ? shash_find_data(schema, name) : NULL;
        if (!has)
            continue;
        struct json *columns = json_array_create_1(json_string_create("id")), *request = json_object_create();
        if (t == CDB_N_TABLES) {
            json_array_add(columns, json_string_create("txn"));
            json_object_put(request, "where", where_uuid(client));
        }
        for (int c = 0; t < CDB_N_TABLES && c < cdb_tables[t].n_columns; c++)
            if (sset_contains(has, row_column(t, c)->name))
                json_array_add(columns, json_string_create(row_column(t, c)->name));
        json_object_put(request, "columns", columns);
        json_object_put(requests, name, json_array_create_1(request));
    }
    ovsdb_cs_free_schema(schema);
    return requests;
}

/* ---- values ---- */

/* The elements of a <set> or <map>; a single atom is a set of one. */
static bool elements(const struct json *j, const char *kind, struct json *const **ret, size_t *ret_n,
                     struct json *const *single)
{
    if (j->type != JSON_ARRAY) {
        *ret = single;
        *ret_n = 1;
        return !strcmp(kind, "set");
    }
    const struct json_array *a = &j->array;
    if (a->n != 2 || a->elems[0]->type != JSON_STRING || strcmp(json_string(a->elems[0]), kind) ||
        a->elems[1]->type != JSON_ARRAY)
        return false;
    *ret = a->elems[1]->array.elems;
    *ret_n = a->elems[1]->array.n;
    return true;
}

static bool strs_from_json(struct cdb_strs *cell, const struct json *j, bool diff)
{
    struct json *single = (struct json *)(uintptr_t)j, *const *el;
    size_t n;
    if (!elements(j, "set", &el, &n, &single))
        return false;
    for (size_t i = 0; i < n; i++)
        if (el[i]->type != JSON_STRING)
            return false;
    /* A difference toggles its elements. */
    size_t have = diff ? cell->n : 0, m = 0;
    const char **v = xmalloc((have + n + 1) * sizeof *v);
    struct cdb_strs in;
    const char **names = xmalloc((n + 1) * sizeof *names);
    for (size_t i = 0; i < n; i++)
        names[i] = json_string(el[i]);
    strs_copy_sorted(&in, n, names);
    free(names);
    for (size_t i = 0; i < have; i++)
        if (!cdb_strs_has(&in, cell->v[i]))
            v[m++] = cell->v[i];
    for (size_t i = 0; i < in.n; i++)
        if (!diff || !cdb_strs_has(cell, in.v[i]))
            v[m++] = in.v[i];
    struct cdb_strs out;
    strs_copy_sorted(&out, m, v);
    free(v);
    cell_free(CDB_STRS, &in);
    cell_free(CDB_STRS, cell);
    *cell = out;
    return true;
}

static bool pair_ok(const struct json *p, enum json_type value_type)
{
    return p->type == JSON_ARRAY && p->array.n == 2 && p->array.elems[0]->type == JSON_STRING &&
           p->array.elems[1]->type == value_type;
}

/* A difference of a map: an equal pair goes, a pair with a known key replaces, any other is added. */
static bool smap_from_json(struct cdb_smap *cell, const struct json *j, bool diff)
{
    struct json *const *el;
    size_t n, m = 0;
    if (!elements(j, "map", &el, &n, NULL))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!pair_ok(el[i], JSON_STRING))
            return false;
    size_t have = diff ? cell->n : 0;
    struct cdb_smap w = {0, xmalloc((have + n + 1) * sizeof(char *)), xmalloc((have + n + 1) * sizeof(char *))};
    for (size_t i = 0; i < have; i++) {
        size_t k = 0;
        while (k < n && strcmp(json_string(el[k]->array.elems[0]), cell->k[i]))
            k++;
        if (k == n) {
            w.k[m] = cell->k[i];
            w.v[m++] = cell->v[i];
        }
    }
    for (size_t i = 0; i < n; i++) {
        const char *k = json_string(el[i]->array.elems[0]), *v = json_string(el[i]->array.elems[1]);
        const char *was = diff ? cdb_smap_get(cell, k) : NULL;
        if (was && !strcmp(was, v))
            continue;
        w.k[m] = (char *)(uintptr_t)k;
        w.v[m++] = (char *)(uintptr_t)v;
    }
    w.n = m;
    struct cdb_smap out;
    smap_copy_sorted(&out, &w);
    free(w.k);
    free(w.v);
    cell_free(CDB_SMAP, cell);
    *cell = out;
    return true;
}

static bool imap_from_json(struct cdb_imap *cell, const struct json *j, bool diff)
{
    struct json *const *el;
    size_t n, m = 0;
    if (!elements(j, "map", &el, &n, NULL))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!pair_ok(el[i], JSON_INTEGER))
            return false;
    size_t have = diff ? cell->n : 0;
    struct cdb_imap w = {0, xmalloc((have + n + 1) * sizeof(char *)), xmalloc((have + n + 1) * sizeof(int64_t))};
    for (size_t i = 0; i < have; i++) {
        size_t k = 0;
        while (k < n && strcmp(json_string(el[k]->array.elems[0]), cell->k[i]))
            k++;
        if (k == n) {
            w.k[m] = cell->k[i];
            w.v[m++] = cell->v[i];
        }
    }
    for (size_t i = 0; i < n; i++) {
        const char *k = json_string(el[i]->array.elems[0]);
        int64_t v = json_integer(el[i]->array.elems[1]), was;
        if (diff && cdb_imap_get(cell, k, &was) && was == v)
            continue;
        w.k[m] = (char *)(uintptr_t)k;
        w.v[m++] = v;
    }
    w.n = m;
    struct cdb_imap out;
    imap_copy_sorted(&out, &w);
    free(w.k);
    free(w.v);
    cell_free(CDB_IMAP, cell);
    *cell = out;
    return true;
}

bool cell_from_json(const struct cdb_column *c, void *cell, const struct json *j, bool diff)
{
    switch (c->type) {
    case CDB_STR:
        if (j->type != JSON_STRING)
            return false;
        free(*(char **)cell);
        *(char **)cell = xstrdup(json_string(j));
        return true;
    case CDB_INT:
        if (j->type != JSON_INTEGER)
            return false;
        *(int64_t *)cell = json_integer(j);
        return true;
    case CDB_BOOL:
        if (j->type != JSON_TRUE && j->type != JSON_FALSE)
            return false;
        *(bool *)cell = j->type == JSON_TRUE;
        return true;
    case CDB_STRS: return strs_from_json(cell, j, diff);
    case CDB_IMAP: return imap_from_json(cell, j, diff);
    case CDB_SMAP: return smap_from_json(cell, j, diff);
    }
    return false;
}

static struct json *value_to_json(const struct cdb_value *v)
{
    struct json *a;
    switch (v->type) {
    case CDB_STR: return json_string_create(v->u.s);
    case CDB_INT: return json_integer_create(v->u.i);
    case CDB_BOOL: return json_boolean_create(v->u.b);
    case CDB_STRS:
        a = json_array_create_empty();
        for (size_t i = 0; i < v->u.strs.n; i++)
            json_array_add(a, json_string_create(v->u.strs.v[i]));
        return json_array_create_2(json_string_create("set"), a);
    case CDB_IMAP:
        a = json_array_create_empty();
        for (size_t i = 0; i < v->u.imap.n; i++)
            json_array_add(a, json_array_create_2(json_string_create(v->u.imap.k[i]), json_integer_create(v->u.imap.v[i])));
        return json_array_create_2(json_string_create("map"), a);
    case CDB_SMAP:
        a = json_array_create_empty();
        for (size_t i = 0; i < v->u.smap.n; i++)
            json_array_add(a, json_array_create_2(json_string_create(v->u.smap.k[i]), json_string_create(v->u.smap.v[i])));
        return json_array_create_2(json_string_create("map"), a);
    }
    return NULL;
}

/* ---- transactions ---- */

static struct json *op_begin(struct txn_json *j, const char *op, const char *table, const struct txn_op *from)
{
    struct json *o = json_object_create();
    json_object_put_string(o, "op", op);
    if (table)
        json_object_put_string(o, "table", table);
    json_array_add(j->params, o);
    j->ops = xrealloc(j->ops, (j->n + 1) * sizeof *j->ops);
    j->ops[j->n++] = from;
    return o;
}

/* Fails the transaction with "timed out" unless the row's `column` has `value`; `value` NULL: unless the row is absent. */
static void op_wait(struct txn_json *j, const char *table, const struct uuid *row, const char *column, struct json *value,
                    const struct txn_op *from)
{
    struct json *o = op_begin(j, "wait", table, from);
    json_object_put(o, "timeout", json_integer_create(0));
    json_object_put(o, "where", where_uuid(row));
    json_object_put_string(o, "until", "==");
    json_object_put(o, "columns", json_array_create_1(json_string_create(column)));
    struct json *rows = json_array_create_empty();
    if (value) {
        struct json *r = json_object_create();
        json_object_put(r, column, value);
        json_array_add(rows, r);
    }
    json_object_put(o, "rows", rows);
}

static struct json *op_insert(struct txn_json *j, const char *table, const struct uuid *u, const char *id, const struct txn_op *from)
{
    struct json *o = op_begin(j, "insert", table, from), *row = json_object_create();
    char text[UUID_LEN + 1];
    snprintf(text, sizeof text, UUID_FMT, UUID_ARGS(u));
    json_object_put_string(o, "uuid", text);
    json_object_put_string(row, "id", id);
    json_object_put(o, "row", row);
    return row;
}

static struct json *op_update(struct txn_json *j, const char *table, const struct uuid *u, const struct txn_op *from)
{
    struct json *o = op_begin(j, "update", table, from), *row = json_object_create();
    json_object_put(o, "where", where_uuid(u));
    json_object_put(o, "row", row);
    return row;
}

static bool same_row(const struct txn_op *a, const struct txn_op *b)
{
    return a->table == b->table && !strcmp(a->id, b->id);
}

static void row_key(const struct txn_op *op, struct ds *ret)
{
    ds_clear(ret);
    ds_put_format(ret, "%d %s", (int)op->table, op->id);
}

/* Every row that is changed must be there. For most that is certain: it is required, or inserted or checked before. */
static void requires_to_json(const struct cdb_txn *t, struct txn_json *j)
{
    struct sset certain = SSET_INITIALIZER(&certain);
    struct ds key = DS_EMPTY_INITIALIZER;
    for (size_t i = 0; i < t->n; i++)
        if (t->ops[i].kind == TXN_REQUIRE || t->ops[i].kind == TXN_REQUIRE_EXISTS) {
            row_key(&t->ops[i], &key);
            sset_add(&certain, ds_cstr(&key));
        }
    for (size_t i = 0; i < t->n; i++) {
        const struct txn_op *op = &t->ops[i];
        const char *table = cdb_tables[op->table].name;
        struct uuid u;
        row_uuid_of(op->id, &u);
        if (op->kind == TXN_REQUIRE) {
            op_wait(j, table, &u, row_column(op->table, op->col)->name, value_to_json(&op->v), op);
        } else if (op->kind == TXN_REQUIRE_ABSENT) {
            op_wait(j, table, &u, "id", NULL, op);
        } else if (op->kind != TXN_DISCARD) {
            row_key(op, &key);
            bool known = !sset_add(&certain, ds_cstr(&key));
            if (op->kind == TXN_REQUIRE_EXISTS || (op->kind != TXN_INSERT && !known))
                op_wait(j, table, &u, "id", json_string_create(op->id), op);
        }
    }
    ds_destroy(&key);
    sset_destroy(&certain);
}

static void changes_to_json(const struct cdb_txn *t, struct txn_json *j)
{
    struct json *row = NULL; /* of the operation that the next column of the same row joins */
    const struct txn_op *of = NULL;
    for (size_t i = 0; i < t->n; i++) {
        const struct txn_op *op = &t->ops[i];
        const char *table = cdb_tables[op->table].name;
        struct uuid u;
        row_uuid_of(op->id, &u);
        if (op->kind == TXN_INSERT) {
            row = op_insert(j, table, &u, op->id, op);
            of = op;
        } else if (op->kind == TXN_DELETE || op->kind == TXN_DISCARD) {
            json_object_put(op_begin(j, "delete", table, op), "where", where_uuid(&u));
            row = NULL;
        } else if (op->kind == TXN_SET) {
            if (!row || !same_row(of, op)) {
                row = op_update(j, table, &u, op);
                of = op;
            }
            json_object_put(row, row_column(op->table, op->col)->name, value_to_json(&op->v));
        }
    }
}

void txn_to_json(const struct cdb_txn *t, const struct uuid *client, const char *client_id, const char *prev, const char *id,
                 struct txn_json *ret)
{
    *ret = (struct txn_json){.params = json_array_create_1(json_string_create(CDB_DATABASE))};
    struct json *row;
    if (prev) {
        op_wait(ret, CLIENT_TABLE, client, "txn", json_string_create(prev), NULL);
        row = op_update(ret, CLIENT_TABLE, client, NULL);
    } else {
        row = op_insert(ret, CLIENT_TABLE, client, client_id, NULL);
    }
    json_object_put_string(row, "txn", id);
    requires_to_json(t, ret);
    changes_to_json(t, ret);
    if (t->note[0] && text_is_utf8(t->note)) /* for people who read the database's log */
        json_object_put_string(op_begin(ret, "comment", NULL, NULL), "comment", t->note);
}

void txn_json_clear(struct txn_json *j)
{
    free(j->ops);
    *j = (struct txn_json){0};
}

static const char *member(const struct json *o, const char *name)
{
    const struct json *m = shash_find_data(json_object(o), name);
    return m && m->type == JSON_STRING ? json_string(m) : "";
}

static int refused_by_wait(const struct txn_op *op, struct err *e)
{
    const char *table = op ? cdb_tables[op->table].name : "";
    if (!op)
        return err_set(e, E_CONFLICT, "a precondition did not hold");
    if (op->kind == TXN_REQUIRE_ABSENT)
        return err_set(e, E_CONFLICT, "%s %s exists", table, op->id);
    if (op->kind != TXN_REQUIRE)
        return err_set(e, E_CONFLICT, "%s %s is not there", table, op->id);
    const char *column = row_column(op->table, op->col)->name;
    if (op->v.type == CDB_INT)
        return err_set(e, E_CONFLICT, "%s %s: %s is not %lld", table, op->id, column, (long long)op->v.u.i);
    if (op->v.type == CDB_STR)
        return err_set(e, E_CONFLICT, "%s %s: %s is not \"%s\"", table, op->id, column, op->v.u.s);
    return err_set(e, E_CONFLICT, "%s %s: %s has changed", table, op->id, column);
}

/* RFC 7047 section 4.1.3: results in the order of operations; the first error ends the list, or comes after all if the
 * commit itself failed (constraints across the database). */
enum txn_verdict txn_judge(const struct txn_json *j, bool rpc_error, const struct json *result, int *ret_status, struct err *e)
{
    if (rpc_error || !result || result->type != JSON_ARRAY)
        return TXN_V_AGAIN; /* "canceled": the database was replaced, removed or converted meanwhile */
    for (size_t i = 0; i < result->array.n; i++) {
        const struct json *o = result->array.elems[i];
        if (o->type != JSON_OBJECT)
            continue;
        const char *tag = member(o, "error"), *details = member(o, "details");
        if (!tag[0])
            continue;
        const struct txn_op *op = i < j->n ? j->ops[i] : NULL;
        if (i == 0 && (!strcmp(tag, "timed out") || !strcmp(tag, "duplicate uuid")))
            return TXN_V_MARKER;
        if (!strcmp(tag, "timed out"))
            *ret_status = refused_by_wait(op, e);
        else if (!strcmp(tag, "duplicate uuid"))
            *ret_status = err_set(e, E_CONFLICT, "%s %s exists", op ? cdb_tables[op->table].name : "row", op ? op->id : "");
        else if (!strcmp(tag, "constraint violation") && i >= j->n)
            *ret_status = err_set(e, E_CONFLICT, "%s", details);
        else if (!strcmp(tag, "not allowed") || !strcmp(tag, "permission error"))
            *ret_status = err_set(e, E_PERM, "%s: %s", tag, details);
        else if (!strcmp(tag, "unknown database") || !strcmp(tag, "not owner"))
            return TXN_V_AGAIN;
        else
            *ret_status = err_set(e, E_INVAL, "%s: %s", tag, details);
        return TXN_V_REFUSED;
    }
    return TXN_V_DONE;
}
