/* What engines do when a node was away: only what changed is copied, and counted by the time it is in sync; copies that moved
 * away or whose volume is gone are dropped. */
#include "test_repl_engine_util.h"
#include "base/metric.h"

static int64_t metric(const char *name)
{
    struct buf text;
    buf_init(&text);
    metric_print_all(&text);
    char line[128];
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(text.data, line);
    assert_non_null(at);
    int64_t value = strtoll(at + strlen(line), NULL, 10);
    buf_free(&text);
    return value;
}

static void write_at(int i, uint32_t at, uint32_t length)
{
    uint8_t *data = malloc(MIB);
    for (uint32_t done = 0; done < length; done += MIB) {
        for (uint32_t b = 0; b < MIB; b += 4)
            *(uint32_t *)(data + b) = rnd(UINT32_MAX);
        assert_int_equal(io(i, ASAN_WRITE, at + done, MIB, data), 0);
        memcpy(model + at + done, data, MIB);
    }
    free(data);
}

/* The bytes copied are the bytes written meanwhile, and the counter says so as soon as the database says "in sync". */
static void test_copies_what_changed(void **state)
{
    (void)state;
    make_volume(0);
    write_at(0, 0, 24 * MIB);
    for (uint32_t mib = 1; mib <= 5; mib++) {
        stop_engine(2);
        write_at(0, 2 * mib * MIB, mib * MIB);
        WAIT_FOR(in_sync() == 2);
        int64_t before = metric("cohort_asan_resync_bytes_total");
        start_engine(2);
        WAIT_FOR(in_sync() == 3);
        assert_int_equal(metric("cohort_asan_resync_bytes_total") - before, mib * MIB);
    }
    move_owner(2);
    check_all(2);
}

static void keep_leftovers(const char *seconds)
{
    struct cdb_txn *t = cdb_txn_new();
    char *k[] = {"leftover_keep_s"}, *v[] = {(char *)seconds};
    struct cdb_smap m = {1, k, v};
    if (!cdb_cluster_get(view(), "cluster"))
        cdb_txn_insert(t, CDB_T_CLUSTER, "cluster");
    cdb_txn_set_smap(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_settings, &m);
    commit(t);
}

static bool event_has(const char *text)
{
    for (size_t i = 0; i < cdb_event_count(view()); i++)
        if (strstr(cdb_event_at(view(), i)->message, text))
            return true;
    return false;
}

/* Node 2 was away; its copies were made anew elsewhere (here: just not listed any more), then the volume was deleted. */
static void test_leftovers_are_dropped(void **state)
{
    (void)state;
    make_volume(0);
    write_at(0, 0, 40 * MIB);
    WAIT_FOR(in_sync() == 3);
    stop_engine(2);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, node[2], CDB_NODE_state, "dead");
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_state, "deleting");
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        const char *left[] = {disk[0], disk[1]};
        if (strcmp(s->volume, volume))
            continue;
        cdb_txn_set_strs(t, CDB_T_SHARD, s->id, CDB_SHARD_replicas, 2, left);
        cdb_txn_set_int(t, CDB_T_SHARD, s->id, CDB_SHARD_generation, s->generation + 1);
    }
    commit(t);
    WAIT_FOR(!cdb_volume_get(view(), volume));
    int64_t before = metric("cohort_asan_copies_dropped_total");
    keep_leftovers("3600");
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, node[2], CDB_NODE_state, "up");
    commit(t);
    start_engine(2);
    make_volume(0); /* life goes on; the leftovers stay for their time */
    write_random(0, 30);
    WAIT_FOR(in_sync() == 3);
    assert_int_equal(metric("cohort_asan_copies_dropped_total"), before);
    keep_leftovers("0");
    WAIT_FOR(metric("cohort_asan_copies_dropped_total") >= before + 3); /* three shards */
    assert_true(event_has("copies of shards whose volumes were deleted"));
    assert_int_equal(metric("cohort_asan_copies_dropped_total"), before + 3);
    check_all(0);
    move_owner(2);
    check_all(2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_what_changed),
        cmocka_unit_test(test_leftovers_are_dropped),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
