/* Views: lookup and order against a simple model through random edits, sharing, helpers of cdb.h, cells. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/buf.h"
#include "cluster/row.h"
#include "cluster/view.h"

static void test_descriptors(void **state)
{
    assert_string_equal(cdb_tables[CDB_T_VOLUME].name, "Volume");
    assert_int_equal(cdb_tables[CDB_T_VOLUME].n_columns, CDB_VOLUME_N);
    assert_string_equal(row_column(CDB_T_VOLUME, CDB_VOLUME_epoch)->name, "epoch");
    assert_int_equal(row_column(CDB_T_SHARD, CDB_SHARD_in_sync)->type, CDB_IMAP);
    struct cdb_shard *s = row_new(CDB_T_SHARD, "x/0");
    assert_string_equal(s->id, "x/0");
    assert_string_equal(s->volume, "");
    assert_int_equal(s->replicas.n, 0);
    row_unref(s);
}

static const void *event(const char *id, int64_t time)
{
    struct cdb_event *e = row_new(CDB_T_EVENT, id);
    e->time_ms = time;
    return e;
}

#define MODEL_N 3000
static void check_against_model(const struct cdb_view *v, const int64_t *model)
{
    size_t n = 0;
    char id[16];
    for (int i = 0; i < MODEL_N; i++) {
        snprintf(id, sizeof id, "e%05d", i);
        const struct cdb_event *e = cdb_event_get(v, id);
        assert_int_equal(e != NULL, model[i] != 0);
        if (!e)
            continue;
        assert_int_equal(e->time_ms, model[i]);
        assert_ptr_equal(cdb_event_at(v, n), e);
        n++;
    }
    assert_int_equal(cdb_event_count(v), n);
}

struct replay { int64_t *model; int calls; char last[16]; };

static void replay_row(void *arg, const void *before, const void *now)
{
    struct replay *r = arg;
    const struct cdb_event *was = before, *is = now;
    const char *id = is ? is->id : was->id;
    int i = atoi(id + 1);
    assert_true(strcmp(id, r->last) > 0); /* in order, each once */
    snprintf(r->last, sizeof r->last, "%s", id);
    assert_int_equal(r->model[i], was ? was->time_ms : 0);
    r->model[i] = is ? is->time_ms : 0;
    r->calls++;
}

/* What was, changed by what cdb_diff() tells, is what is. */
static void check_diff(const struct cdb_view *was, const int64_t *was_model, const struct cdb_view *is, const int64_t *is_model)
{
    static int64_t model[MODEL_N];
    struct replay r = {.model = model};
    memcpy(model, was_model, sizeof model);
    cdb_diff(was, is, CDB_T_EVENT, replay_row, &r);
    assert_memory_equal(model, is_model, sizeof model);
    assert_true(r.calls == 0 || !cdb_same(was, is, CDB_T_EVENT));
    assert_true(cdb_same(is, is, CDB_T_EVENT));
    int calls = r.calls;
    memset(model, 0, sizeof model);
    r = (struct replay){.model = model};
    cdb_diff(NULL, is, CDB_T_EVENT, replay_row, &r);
    assert_memory_equal(model, is_model, sizeof model);
    assert_true(calls <= 2 * MODEL_N);
}

/* Random batches of inserts, changes and deletes; every view must equal the model, and older views must not change. */
static void test_random_edits(void **state)
{
    static int64_t model[MODEL_N], old_model[MODEL_N];
    unsigned seed = 42;
    const struct cdb_view *v = view_empty(), *old = cdb_view_ref(v);
    for (int round = 0; round < 300; round++) {
        struct view_edit *ed = view_edit_new(v);
        int n = 1 + rand_r(&seed) % (round % 10 == 0 ? 1000 : 20);
        bool shrink = (round / 50) % 2;
        for (int k = 0; k < n; k++) {
            int i = rand_r(&seed) % MODEL_N;
            char id[16];
            snprintf(id, sizeof id, "e%05d", i);
            if (rand_r(&seed) % 10 < (shrink ? 8 : 2)) {
                view_edit_delete(ed, CDB_T_EVENT, id);
                model[i] = 0;
            } else {
                model[i] = 1 + rand_r(&seed);
                view_edit_put(ed, CDB_T_EVENT, event(id, model[i]));
            }
        }
        const struct cdb_view *next = view_edit_end(ed);
        cdb_view_unref(v);
        v = next;
        check_against_model(v, model);
        if (round % 20 == 0) {
            check_against_model(old, old_model);
            check_diff(old, old_model, v, model);
            check_diff(v, model, old, old_model);
            cdb_view_unref(old);
            old = cdb_view_ref(v);
            memcpy(old_model, model, sizeof model);
        }
    }
    struct view_edit *ed = view_edit_new(v);
    for (size_t i = 0; i < cdb_event_count(v); i++)
        view_edit_delete(ed, CDB_T_EVENT, cdb_event_at(v, i)->id);
    const struct cdb_view *empty = view_edit_end(ed);
    assert_int_equal(cdb_event_count(empty), 0);
    assert_null(cdb_event_get(empty, "e00001"));
    cdb_view_unref(empty);
    cdb_view_unref(v);
    cdb_view_unref(old);
}

static void test_sharing(void **state)
{
    const struct cdb_view *v0 = view_empty();
    struct view_edit *ed = view_edit_new(v0);
    view_edit_put(ed, CDB_T_EVENT, event("a", 1));
    view_edit_put(ed, CDB_T_EVENT, event("b", 2));
    view_edit_put(ed, CDB_T_NODE, row_new(CDB_T_NODE, "n"));
    const struct cdb_view *v1 = view_edit_end(ed);
    ed = view_edit_new(v1);
    view_edit_put(ed, CDB_T_EVENT, event("b", 3));
    const struct cdb_view *v2 = view_edit_end(ed);
    assert_ptr_equal(cdb_event_get(v1, "a"), cdb_event_get(v2, "a"));
    assert_ptr_equal(cdb_node_get(v1, "n"), cdb_node_get(v2, "n"));
    assert_int_equal(cdb_event_get(v1, "b")->time_ms, 2);
    assert_int_equal(cdb_event_get(v2, "b")->time_ms, 3);
    const struct cdb_view *same = view_edit_end(view_edit_new(v2));
    assert_ptr_equal(same, v2);
    cdb_view_unref(same);
    cdb_view_unref(v0);
    cdb_view_unref(v1);
    assert_int_equal(cdb_event_get(v2, "a")->time_ms, 1); /* lives on through v2 */
    cdb_view_unref(v2);
}

static void test_helpers(void **state)
{
    struct cdb_disk *d1 = row_new(CDB_T_DISK, "d1"), *d2 = row_new(CDB_T_DISK, "d2");
    d1->incarnation = 4;
    d2->incarnation = 2;
    struct cdb_shard *s = row_new(CDB_T_SHARD, "v/0");
    char *keys[] = {"d2", "d1", "gone"};
    int64_t vals[] = {1, 4, 1};
    struct cdb_imap m = {3, keys, vals};
    imap_copy_sorted(&s->in_sync, &m);
    const struct cdb_view *v0 = view_empty();
    struct view_edit *ed = view_edit_new(v0);
    view_edit_put(ed, CDB_T_DISK, d1);
    view_edit_put(ed, CDB_T_DISK, d2);
    view_edit_put(ed, CDB_T_SHARD, s);
    const struct cdb_view *v = view_edit_end(ed);
    assert_true(cdb_shard_in_sync(v, s, "d1"));
    assert_false(cdb_shard_in_sync(v, s, "d2"));   /* an older incarnation */
    assert_false(cdb_shard_in_sync(v, s, "gone")); /* no such disk */
    assert_false(cdb_shard_in_sync(v, s, "d3"));
    assert_int_equal(cdb_shard_in_sync_count(v, s), 1);
    cdb_view_unref(v);
    cdb_view_unref(v0);

    struct cdb_strs strs;
    strs_copy_sorted(&strs, 4, (const char *const[]){"b", "a", "b", "c"});
    assert_int_equal(strs.n, 3);
    assert_true(cdb_strs_has(&strs, "c") && cdb_strs_has(&strs, "a") && !cdb_strs_has(&strs, "d"));
    cell_free(CDB_STRS, &strs);
    struct cdb_smap sm = {3, (char *[]){"k", "a", "k"}, (char *[]){"1", "2", "3"}}, sorted;
    smap_copy_sorted(&sorted, &sm);
    assert_int_equal(sorted.n, 2);
    assert_string_equal(cdb_smap_get(&sorted, "k"), "3"); /* the last of equal keys */
    assert_null(cdb_smap_get(&sorted, "b"));
    cell_free(CDB_SMAP, &sorted);
}

static void test_utf8(void **state)
{
    assert_true(text_is_utf8("plain, ü, €, \xf0\x9f\x98\x80"));
    assert_false(text_is_utf8("\x80"));
    assert_false(text_is_utf8("\xc0\xaf"));         /* overlong */
    assert_false(text_is_utf8("\xed\xa0\x80"));     /* surrogate */
    assert_false(text_is_utf8("\xf4\x90\x80\x80")); /* above U+10FFFF */
    assert_false(text_is_utf8("abc\xe2\x82"));      /* cut off */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptors), cmocka_unit_test(test_random_edits), cmocka_unit_test(test_sharing),
        cmocka_unit_test(test_helpers),     cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
