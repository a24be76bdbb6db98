/* Snapshots on three engines in one process: taken while writes come in, with a copy missing, read on every node, kept
 * through resync and a change of owner. */
#include "test_repl_engine_util.h"

static void ask_snapshot(char task[ID_LEN + 1], int node_no, const char *name)
{
    char *keys[] = {"name", "volumes"}, *values[] = {(char *)name, volume};
    const struct cdb_smap what = {2, keys, values};
    struct cdb_txn *t = cdb_txn_new();
    id_new(task);
    cdb_txn_insert(t, CDB_T_TASK, task);
    cdb_txn_set_str(t, CDB_T_TASK, task, CDB_TASK_kind, "snapshot");
    cdb_txn_set_str(t, CDB_T_TASK, task, CDB_TASK_node, node[node_no]);
    cdb_txn_set_str(t, CDB_T_TASK, task, CDB_TASK_state, "running");
    cdb_txn_set_smap(t, CDB_T_TASK, task, CDB_TASK_result, &what);
    commit(t);
}

static const struct cdb_task *task_row(const char *id) { return cdb_task_get(view(), id); }

static void find_snapshot(const char *name, char ret[ID_LEN + 1])
{
    char full[200];
    snprintf(full, sizeof full, "%s@%s", volume, name);
    const struct cdb_volume *v = cdb_find_name(view(), CDB_T_VOLUME, full);
    assert_non_null(v);
    assert_true(v->sealed);
    memcpy(ret, v->id, ID_LEN + 1);
}

/* Reads `id` from engine i against `want`. */
static void check_other(int i, const char *id, uint8_t *want)
{
    char own[ID_LEN + 1];
    uint8_t *m = model;
    memcpy(own, volume, sizeof own);
    memcpy(volume, id, sizeof own);
    model = want;
    check_all(i);
    memcpy(volume, own, sizeof own);
    model = m;
}

static uint8_t *cut(int i, const char *name, char ret[ID_LEN + 1])
{
    char task[ID_LEN + 1];
    uint8_t *copy = malloc(VOLUME);
    ask_snapshot(task, i, name);
    WAIT_FOR(strcmp(task_row(task)->state, "running"));
    assert_string_equal(task_row(task)->state, "done");
    find_snapshot(name, ret);
    memcpy(copy, model, VOLUME);
    return copy;
}

static void test_snapshot(void **state)
{
    (void)state;
    char s1[ID_LEN + 1], s2[ID_LEN + 1], task[ID_LEN + 1];
    static struct io k[8];
    static uint8_t data[8][8192];
    make_volume(0);
    write_random(0, 30);
    ask_snapshot(task, 0, "busy"); /* while writes come in: each of them is in it whole or not at all, and none fails */
    for (int i = 0; i < 8; i++) {
        memset(data[i], i + 1, sizeof data[i]);
        io_begin(&k[i], 0, ASAN_WRITE, (uint64_t)i * 100 * 1024, sizeof data[i], data[i]);
        memcpy(model + i * 100 * 1024, data[i], sizeof data[i]);
    }
    for (int i = 0; i < 8; i++)
        WAIT_FOR(k[i].done && !k[i].io.status);
    WAIT_FOR(!strcmp(task_row(task)->state, "done"));
    check_all(0);

    uint8_t *m1 = cut(0, "one", s1);
    write_random(0, 40); /* most begin and end inside chunks that the new layer lacks */
    check_all(0);
    for (int i = 0; i < NODES; i++)
        check_other(i, s1, m1);
    stop_engine(2);
    write_random(0, 20);
    uint8_t *m2 = cut(0, "two", s2); /* with a copy missing */
    write_random(0, 20);
    start_engine(2);
    WAIT_FOR(in_sync() == 3);
    check_all(0);
    move_owner(2);
    check_all(2);
    write_random(2, 20);
    check_all(2);
    check_other(2, s1, m1);
    check_other(2, s2, m2);
    assert_int_equal(io(2, ASAN_ZERO, 0, VOLUME, NULL), 0); /* hides all that lies below */
    memset(model, 0, VOLUME);
    check_all(2);
    check_other(0, s2, m2);
    ask_snapshot(task, 1, "two"); /* not ours, and the name is taken: refused, and writing goes on */
    WAIT_FOR(!strcmp(task_row(task)->state, "failed"));
    write_random(2, 5);
    check_all(2);
    free(m1);
    free(m2);
}

static const struct cdb_volume *volume_row(const char *id) { return cdb_volume_get(view(), id); }

static void forget_snapshot(const char *id)
{
    struct cdb_txn *t = cdb_txn_new();
    char name[80];
    snprintf(name, sizeof name, "layer-%s", id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "layer");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, name);
    commit(t);
}

/* Deleted from the middle, then from below, while the volume is written: content stays, the layers and their shards go. */
static void test_delete(void **state)
{
    (void)state;
    char s1[ID_LEN + 1], s2[ID_LEN + 1], s3[ID_LEN + 1];
    make_volume(0);
    write_random(0, 20);
    free(cut(0, "a", s1));
    write_random(0, 20);
    free(cut(0, "b", s2));
    write_random(0, 20);
    uint8_t *m3 = cut(0, "c", s3);
    write_random(0, 5);
    forget_snapshot(s2); /* into the sealed one above it */
    write_random(0, 20);
    WAIT_FOR(!volume_row(s2));
    check_all(0);
    check_other(1, s3, m3);
    assert_string_equal(volume_row(s3)->parent, s1);
    forget_snapshot(s3);
    write_random(0, 20);
    WAIT_FOR(!volume_row(s3));
    forget_snapshot(s1);
    write_random(0, 20);
    WAIT_FOR(!volume_row(s1));
    assert_string_equal(volume_row(volume)->parent, "");
    check_all(0);
    move_owner(1);
    check_all(1);
    free(m3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshot),
        cmocka_unit_test(test_delete),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
