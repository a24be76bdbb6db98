/* Placement of a new shard's replicas: own node first, distinct nodes, room, what is not usable, too few. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "storage/asan/engine/priv.h"

static uv_loop_t loop;
static uv_timer_t beat; /* a link alone does not keep the loop alive */
static struct cdb *db;
static struct cdb_link *l;
static char node[4][ID_LEN + 1], disk[5][ID_LEN + 1], vol[ID_LEN + 1];

static void on_beat(uv_timer_t *t) { (void)t; }
static void on_view(struct cdb_link *link, void *arg) { (void)link, (void)arg; }
static void committed(void *arg, int status, const struct err *e) { (void)e; *(int *)arg = status; }

static void commit(struct cdb_txn *t)
{
    int status = 1;
    cdb_txn_commit(l, t, "test", committed, &status);
    while (status == 1)
        uv_run(&loop, UV_RUN_ONCE);
    assert_int_equal(status, 0);
}

static int place(const char *self, struct placement *p, struct err *e)
{
    const struct cdb_view *v = cdb_link_view(l);
    return place_shard(v, self, cdb_volume_get(v, vol), 0, p, e);
}

static int where(const struct placement *p, int i)
{
    for (int d = 0; d < 5; d++)
        if (!strcmp(p->at[i].disk, disk[d]))
            return d;
    return -1;
}

static void set_state(enum cdb_table t, const char *id, int col, const char *state)
{
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_set_str(x, t, id, col, state);
    commit(x);
}

/* Disks 0 and 4 on node 0, disk i on node i; sizes 10, 20, 30, 40 and 15 GiB. */
static int setup(void **state)
{
    static const int gib[] = {10, 20, 30, 40, 15};
    (void)state;
    uv_loop_init(&loop);
    uv_timer_init(&loop, &beat);
    uv_timer_start(&beat, on_beat, 20, 20);
    db = cdb_mem_open();
    l = cdb_link_open(db, &loop, on_view, NULL);
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < 4; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i);
        id_new(node[i]);
        cdb_txn_insert(t, CDB_T_NODE, node[i]);
        cdb_txn_set_str(t, CDB_T_NODE, node[i], CDB_NODE_name, name);
        cdb_txn_set_str(t, CDB_T_NODE, node[i], CDB_NODE_state, "up");
    }
    for (int i = 0; i < 5; i++) {
        id_new(disk[i]);
        cdb_txn_insert(t, CDB_T_DISK, disk[i]);
        cdb_txn_set_str(t, CDB_T_DISK, disk[i], CDB_DISK_node, node[i % 4]);
        cdb_txn_set_str(t, CDB_T_DISK, disk[i], CDB_DISK_name, i < 4 ? "d0" : "d1");
        cdb_txn_set_str(t, CDB_T_DISK, disk[i], CDB_DISK_state, "up");
        cdb_txn_set_int(t, CDB_T_DISK, disk[i], CDB_DISK_size_bytes, (int64_t)gib[i] << 30);
        cdb_txn_set_int(t, CDB_T_DISK, disk[i], CDB_DISK_incarnation, i + 1);
    }
    id_new(vol);
    cdb_txn_insert(t, CDB_T_VOLUME, vol);
    cdb_txn_set_str(t, CDB_T_VOLUME, vol, CDB_VOLUME_name, "v");
    cdb_txn_set_int(t, CDB_T_VOLUME, vol, CDB_VOLUME_size_bytes, INT64_C(64) << 30);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol, CDB_VOLUME_shard_bytes, INT64_C(32) << 30);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol, CDB_VOLUME_replicas, 3);
    commit(t);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cdb_link_close(l);
    uv_close((uv_handle_t *)&beat, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    cdb_close(db);
    uv_loop_close(&loop);
    return 0;
}

static void test_own_node_then_room(void **state)
{
    struct placement p;
    struct err e;
    (void)state;
    assert_int_equal(place(node[0], &p, &e), 0);
    assert_int_equal(p.n, 3);
    assert_int_equal(where(&p, 0), 4); /* own node, its roomier disk */
    assert_int_equal(where(&p, 1), 3);
    assert_int_equal(where(&p, 2), 2);
    assert_int_equal(p.at[1].incarnation, 4);
}

static void test_promised_room_counts(void **state)
{
    struct placement p;
    struct err e;
    struct cdb_txn *t = cdb_txn_new();
    const char *on = disk[3];
    (void)state;
    cdb_txn_insert(t, CDB_T_SHARD, "x/1"); /* 32 GiB of disk 3 are promised */
    cdb_txn_set_str(t, CDB_T_SHARD, "x/1", CDB_SHARD_volume, vol);
    cdb_txn_set_strs(t, CDB_T_SHARD, "x/1", CDB_SHARD_replicas, 1, &on);
    commit(t);
    assert_int_equal(place(node[0], &p, &e), 0);
    assert_int_equal(where(&p, 1), 2);
    assert_int_equal(where(&p, 2), 1);
}

static void test_unusable_and_too_few(void **state)
{
    struct placement p = {.n = 7};
    struct err e;
    (void)state;
    set_state(CDB_T_DISK, disk[4], CDB_DISK_state, "failed");
    set_state(CDB_T_NODE, node[2], CDB_NODE_state, "dead");
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_set_bool(x, CDB_T_NODE, node[3], CDB_NODE_maintenance, true);
    commit(x);
    assert_int_equal(place(node[0], &p, &e), 0); /* two copies are the minimum of three */
    assert_int_equal(p.n, 2);
    assert_int_equal(where(&p, 0), 0);
    assert_int_equal(where(&p, 1), 1);
    set_state(CDB_T_NODE, node[1], CDB_NODE_state, "dead");
    p.n = 7;
    assert_int_equal(place(node[0], &p, &e), E_UNAVAIL);
    assert_int_equal(p.n, 7);
    assert_non_null(strstr(e.msg, "only 1 of 3"));
}

/* Disks 1 and 2 are in memory; the volume is of that class, then on storage. */
static void test_classes_apart(void **state)
{
    struct placement p = {.n = 7};
    struct err e;
    char *k[] = {"class"}, *val[] = {"memory"};
    struct cdb_smap policy = {1, k, val}, none = {0};
    (void)state;
    set_state(CDB_T_DISK, disk[1], CDB_DISK_medium, "memory");
    set_state(CDB_T_DISK, disk[2], CDB_DISK_medium, "memory");
    struct cdb_txn *x = cdb_txn_new();
    cdb_txn_set_smap(x, CDB_T_VOLUME, vol, CDB_VOLUME_policy, &policy);
    cdb_txn_set_int(x, CDB_T_VOLUME, vol, CDB_VOLUME_replicas, 2);
    commit(x);
    assert_int_equal(place(node[0], &p, &e), 0); /* not on its own node: its disks are storage */
    assert_int_equal(p.n, 2);
    assert_int_equal(where(&p, 0), 2);
    assert_int_equal(where(&p, 1), 1);
    assert_int_equal(place(node[1], &p, &e), 0);
    assert_int_equal(where(&p, 0), 1);
    x = cdb_txn_new();
    cdb_txn_set_smap(x, CDB_T_VOLUME, vol, CDB_VOLUME_policy, &none);
    cdb_txn_set_int(x, CDB_T_VOLUME, vol, CDB_VOLUME_replicas, 3);
    commit(x);
    assert_int_equal(place(node[1], &p, &e), 0); /* three are wanted, two nodes have storage */
    assert_int_equal(p.n, 2);
    assert_int_equal(where(&p, 0), 3);
    assert_int_equal(where(&p, 1), 4);
    set_state(CDB_T_DISK, disk[3], CDB_DISK_medium, "memory");
    assert_int_equal(place(node[1], &p, &e), E_UNAVAIL);
    x = cdb_txn_new();
    cdb_txn_set_smap(x, CDB_T_VOLUME, vol, CDB_VOLUME_policy, &policy);
    commit(x);
    for (int i = 1; i < 4; i++)
        set_state(CDB_T_DISK, disk[i], CDB_DISK_medium, "");
    assert_int_equal(place(node[1], &p, &e), E_UNAVAIL);
    assert_non_null(strstr(e.msg, "cohort disk add NODE:DISK --memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_own_node_then_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_promised_room_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unusable_and_too_few, setup, teardown),
        cmocka_unit_test_setup_teardown(test_classes_apart, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
