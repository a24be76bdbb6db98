/* The in-memory twin: preconditions, unique columns, ordering of views and results, parking, cancelling, forced failures,
 * closing with work pending, and links on several threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cluster/cdb.h"

struct fixture {
    uv_loop_t loop;
    uv_timer_t keep; /* a link alone does not keep a loop alive */
    struct cdb *db;
    struct cdb_link *link;
    int changes;
};

static void never(uv_timer_t *t) { }

static void on_changed(struct cdb_link *l, void *arg) { ((struct fixture *)arg)->changes++; }

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->keep);
    uv_timer_start(&f->keep, never, 3600000, 3600000);
    f->db = cdb_mem_open();
    f->link = cdb_link_open(f->db, &f->loop, on_changed, f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    cdb_link_close(f->link);
    uv_close((uv_handle_t *)&f->keep, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    cdb_close(f->db);
    int rc = uv_loop_close(&f->loop);
    free(f);
    return rc;
}

struct result { int calls, status; char msg[ERR_MSG_MAX]; struct fixture *f; };

static void done(void *arg, int status, const struct err *e)
{
    struct result *r = arg;
    r->calls++;
    r->status = status;
    snprintf(r->msg, sizeof r->msg, "%s", e->msg);
}

static int commit(struct fixture *f, struct cdb_txn *t)
{
    struct result r = {.f = f};
    cdb_txn_commit(f->link, t, "test", done, &r);
    assert_int_equal(r.calls, 0); /* never inside the call */
    while (!r.calls)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(r.calls, 1);
    return r.status;
}

static struct cdb_txn *insert_volume(const char *id, const char *name)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, name);
    return t;
}

static void test_first_view(void **state)
{
    struct fixture *f = *state;
    assert_null(cdb_link_view(f->link));
    uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_non_null(cdb_link_view(f->link));
    assert_int_equal(f->changes, 1);
    assert_true(cdb_link_connected(f->link));
    assert_true(cdb_link_local_leader(f->link));
}

static void test_preconditions(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(commit(f, insert_volume("v1", "db")), 0);
    const struct cdb_volume *v = cdb_volume_get(cdb_link_view(f->link), "v1");
    assert_string_equal(v->name, "db");
    assert_ptr_equal(cdb_find_name(cdb_link_view(f->link), CDB_T_VOLUME, "db"), v);

    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_VOLUME, "v1", CDB_VOLUME_epoch, 1);
    cdb_txn_require_int(t, CDB_T_VOLUME, "v1", CDB_VOLUME_epoch, 0); /* preconditions look at the state before */
    cdb_txn_require_str(t, CDB_T_VOLUME, "v1", CDB_VOLUME_owner, "");
    assert_int_equal(commit(f, t), 0);

    t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_VOLUME, "v1", CDB_VOLUME_epoch, 0);
    cdb_txn_set_str(t, CDB_T_VOLUME, "v1", CDB_VOLUME_owner, "n1");
    assert_int_equal(commit(f, t), E_CONFLICT);
    assert_string_equal(cdb_volume_get(cdb_link_view(f->link), "v1")->owner, ""); /* nothing of it happened */

    t = cdb_txn_new();
    cdb_txn_require_absent(t, CDB_T_VOLUME, "v1");
    assert_int_equal(commit(f, t), E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_require_exists(t, CDB_T_VOLUME, "v2");
    assert_int_equal(commit(f, t), E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_VOLUME, "v2", CDB_VOLUME_epoch, 0); /* the row must exist */
    assert_int_equal(commit(f, t), E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_delete(t, CDB_T_VOLUME, "v2");
    assert_int_equal(commit(f, t), E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, "v1", CDB_VOLUME_name, "\xff");
    assert_int_equal(commit(f, t), E_INVAL);
}

static void test_imap_precondition(void **state)
{
    struct fixture *f = *state;
    struct cdb_imap a = {2, (char *[]){"d2", "d1"}, (int64_t[]){7, 1}}, b = {1, (char *[]){"d1"}, (int64_t[]){1}};
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_SHARD, "v/0");
    cdb_txn_set_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &a);
    cdb_txn_set_strs(t, CDB_T_SHARD, "v/0", CDB_SHARD_replicas, 2, (const char *const[]){"d2", "d1"});
    assert_int_equal(commit(f, t), 0);
    assert_string_equal(cdb_shard_get(cdb_link_view(f->link), "v/0")->replicas.v[0], "d1"); /* sorted */
    for (int i = 0; i < 2; i++) {
        t = cdb_txn_new();
        cdb_txn_require_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &a);
        cdb_txn_set_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &b);
        assert_int_equal(commit(f, t), i == 0 ? 0 : E_CONFLICT);
    }
}

/* The event log keeps its length whoever writes, and two that let go of the same lines do not hinder each other. */
static void test_events_are_trimmed(void **state)
{
    struct fixture *f = *state;
    struct result r[4] = {{0}};
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < CDB_EVENTS_KEPT; i++) {
        char id[16];
        snprintf(id, sizeof id, "e%d", i);
        cdb_txn_insert(t, CDB_T_EVENT, id);
        cdb_txn_set_int(t, CDB_T_EVENT, id, CDB_EVENT_time_ms, 1000 + i);
    }
    assert_int_equal(commit(f, t), E_OK);
    for (int i = 0; i < 4; i++) { /* all of the same view */
        t = cdb_txn_new();
        cdb_txn_event(t, 1000000, "info", "node n1", "is there", "n1");
        cdb_txn_commit(f->link, t, "test", done, &r[i]);
    }
    while (!r[3].calls)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r[i].status, E_OK);
    const struct cdb_view *v = cdb_link_view(f->link);
    assert_int_equal(cdb_event_count(v), CDB_EVENTS_KEPT + 3);
    assert_null(cdb_event_get(v, "e0"));
    assert_non_null(cdb_event_get(v, "e1"));
    t = cdb_txn_new();
    cdb_txn_event(t, 1000000, "info", "node n1", "is there", "n1");
    assert_int_equal(commit(f, t), E_OK); /* those too many go with the next */
    v = cdb_link_view(f->link);
    assert_int_equal(cdb_event_count(v), CDB_EVENTS_KEPT);
    assert_null(cdb_event_get(v, "e4"));
    assert_non_null(cdb_event_get(v, "e5"));
}

/* So do tasks; those that run stay. */
static void test_tasks_are_trimmed(void **state)
{
    struct fixture *f = *state;
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < CDB_TASKS_KEPT; i++) {
        char id[16];
        snprintf(id, sizeof id, "t%d", i);
        cdb_txn_insert(t, CDB_T_TASK, id);
        cdb_txn_set_int(t, CDB_T_TASK, id, CDB_TASK_updated_ms, 1000 + i / 2);
        cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_state, i < 3 ? "running" : "done");
    }
    assert_int_equal(commit(f, t), E_OK);
    t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_TASK, "new");
    cdb_txn_insert(t, CDB_T_TASK, "newer");
    assert_int_equal(commit(f, t), E_OK);
    const struct cdb_view *v = cdb_link_view(f->link);
    assert_int_equal(cdb_task_count(v), CDB_TASKS_KEPT);
    assert_non_null(cdb_task_get(v, "t2"));
    assert_null(cdb_task_get(v, "t3"));
    assert_null(cdb_task_get(v, "t4"));
    assert_non_null(cdb_task_get(v, "t5"));
}

static void test_unique(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(commit(f, insert_volume("v1", "db")), 0);
    assert_int_equal(commit(f, insert_volume("v1", "other")), E_CONFLICT);
    assert_int_equal(commit(f, insert_volume("v2", "db")), E_CONFLICT);
    assert_int_equal(commit(f, insert_volume("v2", "web")), 0);

    struct cdb_txn *t = cdb_txn_new(); /* two names swapped in one transaction is fine */
    cdb_txn_set_str(t, CDB_T_VOLUME, "v1", CDB_VOLUME_name, "web");
    cdb_txn_set_str(t, CDB_T_VOLUME, "v2", CDB_VOLUME_name, "db");
    assert_int_equal(commit(f, t), 0);
    t = insert_volume("v3", "db"); /* taking over the name of a row that goes is fine */
    cdb_txn_delete(t, CDB_T_VOLUME, "v2");
    assert_int_equal(commit(f, t), 0);
    t = insert_volume("v4", "new"); /* two new ones clash with each other */
    cdb_txn_insert(t, CDB_T_VOLUME, "v5");
    cdb_txn_set_str(t, CDB_T_VOLUME, "v5", CDB_VOLUME_name, "new");
    assert_int_equal(commit(f, t), E_CONFLICT);

    for (int i = 0; i < 3; i++) { /* a disk's name is unique within its node */
        char id[8];
        snprintf(id, sizeof id, "d%d", i);
        t = cdb_txn_new();
        cdb_txn_insert(t, CDB_T_DISK, id);
        cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_node, i == 1 ? "n2" : "n1");
        cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_name, "disk0");
        assert_int_equal(commit(f, t), i == 2 ? E_CONFLICT : 0);
    }
}

static void test_park_and_cancel(void **state)
{
    struct fixture *f = *state;
    struct result a = {0}, b = {0}, c = {0};
    cdb_mem_park(f->db, true);
    cdb_txn_commit(f->link, insert_volume("v1", "a"), "a", done, &a);
    cdb_txn_commit(f->link, insert_volume("v2", "b"), "b", done, &b);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_exists(t, CDB_T_VOLUME, "v1"); /* in order: v1 is there by then */
    cdb_txn_commit(f->link, t, "c", done, &c);
    for (int i = 0; i < 3; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(a.calls + b.calls + c.calls, 0);
    assert_false(cdb_link_connected(f->link));
    cdb_txn_cancel(f->link, &b);
    cdb_mem_park(f->db, false);
    while (!c.calls)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(a.calls, 1);
    assert_int_equal(a.status, 0);
    assert_int_equal(b.calls, 0);
    assert_int_equal(c.status, 0);
    assert_true(cdb_link_connected(f->link));
    assert_non_null(cdb_volume_get(cdb_link_view(f->link), "v1"));
    assert_null(cdb_volume_get(cdb_link_view(f->link), "v2"));
}

static void test_forced_failures(void **state)
{
    struct fixture *f = *state;
    cdb_mem_fail_next(f->db, 2, E_CONFLICT, false);
    assert_int_equal(commit(f, insert_volume("v1", "a")), E_CONFLICT);
    assert_int_equal(commit(f, insert_volume("v1", "a")), E_CONFLICT);
    assert_int_equal(commit(f, insert_volume("v1", "a")), 0);
    cdb_mem_fail_next(f->db, 1, E_UNKNOWN, true);
    assert_int_equal(commit(f, insert_volume("v2", "b")), E_UNKNOWN);
    assert_non_null(cdb_volume_get(cdb_link_view(f->link), "v2"));
    cdb_mem_fail_next(f->db, 1, E_UNKNOWN, false);
    assert_int_equal(commit(f, insert_volume("v3", "c")), E_UNKNOWN);
    assert_null(cdb_volume_get(cdb_link_view(f->link), "v3"));
}

static void test_close_with_pending(void **state)
{
    struct fixture *f = *state;
    struct result a = {0}, b = {0};
    struct cdb_link *l = cdb_link_open(f->db, &f->loop, NULL, NULL);
    cdb_txn_commit(l, insert_volume("v1", "a"), "a", done, &a); /* its result is already on the way */
    cdb_mem_park(f->db, true);
    cdb_txn_commit(l, insert_volume("v2", "b"), "b", done, &b);
    cdb_link_close(l);
    cdb_mem_park(f->db, false);
    for (int i = 0; i < 5; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(a.calls + b.calls, 0);
    assert_null(cdb_volume_get(cdb_link_view(f->link), "v2"));
}

static void close_in_done(void *arg, int status, const struct err *e)
{
    struct result *r = arg;
    r->calls++;
    cdb_link_close(r->f->link);
    r->f->link = cdb_link_open(r->f->db, &r->f->loop, NULL, NULL);
}

static void test_close_in_callback(void **state)
{
    struct fixture *f = *state;
    struct result a = {.f = f}, b = {0};
    cdb_txn_commit(f->link, insert_volume("v1", "a"), "a", close_in_done, &a);
    cdb_txn_commit(f->link, insert_volume("v2", "b"), "b", done, &b);
    for (int i = 0; i < 5; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(a.calls, 1);
    assert_int_equal(b.calls, 0);
}

/* Threads add 1 to a counter with a precondition each, retrying conflicts: the sum must be exact. */
#define THREADS 4
#define ROUNDS 200
struct adder { struct cdb *db; uv_loop_t loop; struct cdb_link *link; int left; uv_timer_t keep; };

static void add_one(struct adder *a);
static void added(void *arg, int status, const struct err *e)
{
    struct adder *a = arg;
    assert_true(status == 0 || status == E_CONFLICT);
    a->left -= status == 0;
    if (a->left)
        add_one(a);
    else
        uv_close((uv_handle_t *)&a->keep, NULL);
}

static void add_one(struct adder *a)
{
    const struct cdb_volume *v = cdb_volume_get(cdb_link_view(a->link), "v1");
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_VOLUME, "v1", CDB_VOLUME_epoch, v->epoch);
    cdb_txn_set_int(t, CDB_T_VOLUME, "v1", CDB_VOLUME_epoch, v->epoch + 1);
    cdb_txn_commit(a->link, t, "add", added, a);
}

static void adder_first(struct cdb_link *l, void *arg)
{
    struct adder *a = arg;
    if (a->left == ROUNDS && !a->keep.data) {
        a->keep.data = a;
        add_one(a);
    }
}

static void *adder_main(void *arg)
{
    struct adder *a = arg;
    uv_loop_init(&a->loop);
    uv_timer_init(&a->loop, &a->keep);
    uv_timer_start(&a->keep, never, 100000, 100000);
    a->keep.data = NULL;
    a->link = cdb_link_open(a->db, &a->loop, adder_first, a);
    uv_run(&a->loop, UV_RUN_DEFAULT);
    cdb_link_close(a->link);
    uv_run(&a->loop, UV_RUN_DEFAULT);
    uv_loop_close(&a->loop);
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(commit(f, insert_volume("v1", "a")), 0);
    struct adder a[THREADS];
    pthread_t th[THREADS];
    for (int i = 0; i < THREADS; i++) {
        a[i] = (struct adder){.db = f->db, .left = ROUNDS};
        pthread_create(&th[i], NULL, adder_main, &a[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(th[i], NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(cdb_volume_get(cdb_link_view(f->link), "v1")->epoch, THREADS * ROUNDS);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_first_view), T(test_preconditions), T(test_imap_precondition), T(test_events_are_trimmed), T(test_tasks_are_trimmed), T(test_unique), T(test_park_and_cancel),
        T(test_forced_failures), T(test_close_with_pending), T(test_close_in_callback), T(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
