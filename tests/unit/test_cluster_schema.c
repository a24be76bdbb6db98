/* cohort.ovsschema against the X-macros of schema.h: tables, columns, types, unique columns; and the copy in the program. */
#include <setjmp.h>
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include "cluster/dbfiles.h"
#include "cluster/row.h"

static json_t *schema;

static const char *type_text(enum cdb_type t)
{
    switch (t) {
    case CDB_STR: return "\"string\"";
    case CDB_INT: return "\"integer\"";
    case CDB_BOOL: return "\"boolean\"";
    case CDB_STRS: return "{\"key\":\"string\",\"max\":\"unlimited\",\"min\":0}";
    case CDB_IMAP: return "{\"key\":\"string\",\"max\":\"unlimited\",\"min\":0,\"value\":\"integer\"}";
    case CDB_SMAP: return "{\"key\":\"string\",\"max\":\"unlimited\",\"min\":0,\"value\":\"string\"}";
    }
    return "";
}

static void check_column(const char *table, const char *column, enum cdb_type type)
{
    json_t *c = json_object_get(json_object_get(json_object_get(json_object_get(schema, "tables"), table), "columns"), column);
    if (!c)
        fail_msg("%s.%s is not in cohort.ovsschema", table, column);
    char *text = json_dumps(json_object_get(c, "type"), JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(text, type_text(type));
    free(text);
}

static void test_columns(void **state)
{
    for (int t = 0; t < CDB_N_TABLES; t++) {
        const struct cdb_table_desc *d = &cdb_tables[t];
        json_t *columns = json_object_get(json_object_get(json_object_get(schema, "tables"), d->name), "columns");
        assert_int_equal(json_object_size(columns), d->n_columns + 1);
        check_column(d->name, "id", CDB_STR);
        for (int i = 0; i < d->n_columns; i++)
            check_column(d->name, d->columns[i].name, d->columns[i].type);
    }
    assert_int_equal(json_object_size(json_object_get(schema, "tables")), CDB_N_TABLES + 1); /* + Client, see ovsdb.c */
    check_column("Client", "id", CDB_STR);
    check_column("Client", "txn", CDB_STR);
}

static void test_indexes(void **state)
{
    for (int t = 0; t < CDB_N_TABLES; t++) {
        json_t *want = json_pack("[[s]]", "id"), *table = json_object_get(json_object_get(schema, "tables"), cdb_tables[t].name);
        for (size_t i = 0; i < cdb_n_indexes; i++) {
            if ((int)cdb_indexes[i].table != t)
                continue;
            json_t *x = json_array();
            for (int k = 0; k < cdb_indexes[i].n; k++)
                json_array_append_new(x, json_string(row_column(t, cdb_indexes[i].cols[k])->name));
            json_array_append_new(want, x);
        }
        assert_true(json_equal(want, json_object_get(table, "indexes")));
        assert_true(json_is_true(json_object_get(table, "isRoot"))); /* rows live without references to them */
        json_decref(want);
    }
}

static void test_embedded(void **state)
{
    json_t *mine = json_loads(cdb_ovsschema, 0, NULL);
    assert_true(json_equal(mine, schema));
    assert_int_equal(strlen(cdb_ovsschema), cdb_ovsschema_len);
    json_decref(mine);
}

int main(void)
{
    schema = json_load_file(COHORT_OVSSCHEMA, 0, NULL);
    assert(schema);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_columns), cmocka_unit_test(test_indexes), cmocka_unit_test(test_embedded)};
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(schema);
    return r;
}
