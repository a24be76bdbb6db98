/* Snapshots on three engines in one process: taken while writes come in, with a copy missing, read on every node, kept
 * through resync and a change of owner. */
#include "test_repl_engine_util.h"
#include "cluster/keyring.h"

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

/* Encrypted: every layer holds ciphertext of one key; snapshot, partly written chunks, merge and the later key are right. */
static void test_encrypted(void **state)
{
    (void)state;
    char lock[KEYRING_TEXT], key[KEYRING_TEXT], s1[ID_LEN + 1], s2[ID_LEN + 1];
    uint8_t cluster_key[KEYRING_KEY];
    struct err e;
    assert_int_equal(keyring_lock("some passphrase", 15, cluster_key, lock, &e), 0);
    keyring_put(cluster_key);
    assert_int_equal(keyring_volume_new(key, &e), 0);
    make_volume_with(0, key, NULL);
    write_random(0, 20);
    uint8_t *m1 = cut(0, "e1", s1);
    assert_string_equal(volume_row(s1)->key, key);
    write_random(0, 20);
    uint8_t *m2 = cut(0, "e2", s2);
    write_random(0, 20);
    check_all(0);
    for (int i = 0; i < NODES; i++) {
        check_other(i, s1, m1);
        check_other(i, s2, m2);
    }
    struct cdb_txn *t = cdb_txn_new(); /* the same bytes without the key are others: what lies there is ciphertext */
    id_new(lock);
    cdb_txn_insert(t, CDB_T_VOLUME, lock);
    cdb_txn_set_str(t, CDB_T_VOLUME, lock, CDB_VOLUME_name, "bare");
    cdb_txn_set_int(t, CDB_T_VOLUME, lock, CDB_VOLUME_size_bytes, VOLUME);
    cdb_txn_set_int(t, CDB_T_VOLUME, lock, CDB_VOLUME_shard_bytes, SHARD);
    cdb_txn_set_int(t, CDB_T_VOLUME, lock, CDB_VOLUME_replicas, 3);
    cdb_txn_set_bool(t, CDB_T_VOLUME, lock, CDB_VOLUME_sealed, true);
    cdb_txn_set_str(t, CDB_T_VOLUME, lock, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, lock, CDB_VOLUME_parent, s2);
    commit(t);
    uint8_t *data = malloc(MIB);
    char own[ID_LEN + 1];
    memcpy(own, volume, sizeof own);
    memcpy(volume, lock, sizeof own);
    bool same = true;
    for (uint32_t at = 0; at < VOLUME; at += MIB) {
        assert_int_equal(io(1, ASAN_READ, at, MIB, data), 0);
        for (uint32_t k = 0; k < MIB; k += 512) {
            bool zero = !m2[at + k] && !memcmp(m2 + at + k, m2 + at + k + 1, 511);
            if (!zero && !memcmp(data + k, m2 + at + k, 512))
                fail_msg("sector at %u is there in clear", at + k);
            same = same && zero;
        }
    }
    assert_false(same);
    memcpy(volume, own, sizeof own);
    t = cdb_txn_new();
    cdb_txn_delete(t, CDB_T_VOLUME, lock);
    commit(t);
    forget_snapshot(s2);
    write_random(0, 10);
    WAIT_FOR(!volume_row(s2));
    move_owner(1);
    check_all(1);
    check_other(2, s1, m1);
    keyring_forget();
    free(data);
    free(m1);
    free(m2);
}

/* ---- what changed ---- */

#define CHUNKS (VOLUME / ASAN_CHANGED_UNIT)

struct asked { struct asan_changed q; bool done; };

static void changed_answer(struct mail *m) { container_of(m, struct asked, q.answer)->done = true; }

/* Asks engine i; the bits are in *ret. */
static int ask_changed(int i, const char *vol, const char *since, struct asked *ret)
{
    memset(ret, 0, sizeof *ret);
    memcpy(ret->q.volume_id, vol, ID_LEN + 1);
    memcpy(ret->q.since_id, since, ID_LEN + 1);
    ret->q.length = VOLUME;
    ret->q.answer.run = changed_answer;
    ret->q.answer_to = &mailbox;
    asan_changed(engine[i], &ret->q);
    WAIT_FOR(ret->done);
    return ret->q.status;
}

static bool bit(const struct asked *k, uint32_t chunk) { return k->q.bits[chunk / 8] >> chunk % 8 & 1; }

/* No difference between the two models is left out; returns how many chunks are named without one. */
static int check_changed(int i, const char *vol, const uint8_t *is, const char *since, const uint8_t *was)
{
    struct asked k;
    int more = 0;
    WAIT_FOR(ask_changed(i, vol, since, &k) != E_UNAVAIL);
    assert_int_equal(k.q.status, 0);
    for (uint32_t c = 0; c < CHUNKS; c++) {
        bool differs = memcmp(is + c * ASAN_CHANGED_UNIT, was + c * ASAN_CHANGED_UNIT, ASAN_CHANGED_UNIT);
        if (differs && !bit(&k, c))
            fail_msg("chunk %u differs and is not named", c);
        more += bit(&k, c) && !differs;
    }
    return more;
}

/* Back to snapshot `id`, as daemon/ops_snapshot.c does it but for what was written since. */
static void revert(const char *id, int owner)
{
    char data[ID_LEN + 1];
    struct cdb_txn *t = cdb_txn_new();
    id_new(data);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_data, data);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_parent, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_owner, node[owner]);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_epoch, volume_row(volume)->epoch + 1);
    commit(t);
}

static void test_changed(void **state)
{
    (void)state;
    char s1[ID_LEN + 1], s2[ID_LEN + 1], s3[ID_LEN + 1], s4[ID_LEN + 1];
    uint8_t block[4096];
    struct asked k;
    make_volume(0);
    write_random(0, 10);
    uint8_t *m1 = cut(0, "c1", s1);
    assert_int_equal(check_changed(0, volume, model, s1, m1), 0);
    memset(block, 0x77, sizeof block);
    assert_int_equal(io(0, ASAN_WRITE, 5 * MIB + 4096, sizeof block, block), 0);
    memcpy(model + 5 * MIB + 4096, block, sizeof block);
    for (int i = 0; i < NODES; i++) /* exact; the others ask the owner */
        assert_int_equal(check_changed(i, volume, model, s1, m1), 0);
    assert_int_equal(check_changed(1, s1, m1, s1, m1), 0);
    uint8_t *m2 = cut(0, "c2", s2);
    stop_engine(2);
    write_random(0, 8);
    uint8_t *m3 = cut(0, "c3", s3);
    write_random(0, 8);
    start_engine(2);
    for (int i = 0; i < NODES; i++) {
        check_changed(i, s3, m3, s1, m1);
        check_changed(i, s3, m3, s2, m2);
        check_changed(i, s1, m1, s3, m3); /* backwards, too */
        check_changed(i, volume, model, s2, m2);
    }
    WAIT_FOR(in_sync() == 3);
    move_owner(2);
    write_random(2, 5);
    check_changed(2, volume, model, s1, m1);
    forget_snapshot(s2); /* merged into s3 while it is asked */
    for (bool gone = false; !gone;) {
        gone = !volume_row(s2);
        check_changed(0, s3, m3, s1, m1);
        check_changed(1, volume, model, s1, m1);
    }
    assert_int_equal(ask_changed(0, volume, s2, &k), E_NOTFOUND);
    revert(s1, 0); /* s3 is no ancestor any more */
    memcpy(model, m1, VOLUME);
    write_random(0, 5);
    check_all(0);
    check_changed(0, volume, model, s1, m1);
    check_changed(1, volume, model, s3, m3);
    uint8_t *m4 = cut(0, "c4", s4);
    check_changed(2, s4, m4, s3, m3);
    make_volume(1);
    assert_int_equal(ask_changed(1, volume, s4, &k), E_INVAL);
    free(m1);
    free(m2);
    free(m3);
    free(m4);
}

/* ---- flatten ---- */

static void ask_flatten(const char *id)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_bool(t, CDB_T_VOLUME, id, CDB_VOLUME_flatten, true);
    commit(t);
}

/* A clone over two layers, written while it takes over what is below, its owner changing in the middle. Then its source goes. */
static void test_flatten(void **state)
{
    (void)state;
    char s1[ID_LEN + 1], s2[ID_LEN + 1], source[ID_LEN + 1];
    make_volume(0);
    write_random(0, 30);
    uint8_t *m1 = cut(0, "f1", s1);
    write_random(0, 10);
    uint8_t *m2 = cut(0, "f2", s2);
    memcpy(source, volume, sizeof source);
    make_volume(1);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_parent, s2);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_epoch, volume_row(volume)->epoch + 1);
    commit(t);
    memcpy(model, m2, VOLUME);
    WAIT_FOR(dump_has(1, "\"state\"") && !memcmp(volume_row(volume)->parent, s2, ID_LEN));
    check_all(1);
    write_random(1, 10);
    ask_flatten(volume);
    write_random(1, 2);
    move_owner(2);
    write_random(2, 15);
    WAIT_FOR(!*volume_row(volume)->parent);
    assert_false(volume_row(volume)->flatten);
    check_all(2);
    write_random(2, 10);
    move_owner(0);
    check_all(0);
    check_other(1, s1, m1);
    check_other(2, s2, m2);
    forget_snapshot(s1); /* nothing of the clone is left below */
    forget_snapshot(s2);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, source, CDB_VOLUME_state, "deleting");
    commit(t);
    WAIT_FOR(!volume_row(s1) && !volume_row(s2) && !volume_row(source));
    check_all(0);
    free(m1);
    free(m2);
}

static const struct cdb_task *flatten_task(void) /* the newest one of the volume */
{
    const struct cdb_task *found = NULL;
    for (size_t i = 0; i < cdb_task_count(view()); i++) {
        const struct cdb_task *k = cdb_task_at(view(), i);
        if (!strcmp(k->kind, "flatten") && strstr(k->object, volume) && (!found || k->started_ms > found->started_ms))
            found = k;
    }
    return found;
}

/* Asks for it and cancels it at once; false: it was over before. */
static bool flatten_and_cancel(void)
{
    char id[ID_LEN + 1];
    ask_flatten(volume);
    WAIT_FOR(flatten_task() || !*volume_row(volume)->parent);
    const struct cdb_task *task = flatten_task();
    if (!task || strcmp(task->state, "running"))
        return false;
    memcpy(id, task->id, sizeof id);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_bool(t, CDB_T_TASK, id, CDB_TASK_cancel, true);
    commit(t);
    WAIT_FOR(strcmp(cdb_task_get(view(), id)->state, "running"));
    return !strcmp(cdb_task_get(view(), id)->state, "canceled");
}

/* Canceled: the volume goes on as a clone that shows what it did, and can be asked again. */
static void test_flatten_canceled(void **state)
{
    (void)state;
    static uint8_t data[MIB];
    char s1[ID_LEN + 1];
    bool canceled = false;
    make_volume(0);
    for (uint64_t at = 0; at < VOLUME; at += MIB) {
        memset(data, (int)(at / MIB) + 1, sizeof data);
        assert_int_equal(io(0, ASAN_WRITE, at, MIB, data), 0);
        memset(model + at, (int)(at / MIB) + 1, MIB);
    }
    uint8_t *m1 = cut(0, "fc", s1);
    for (int i = 0; i < 5 && !canceled; i++) { /* a cancel that comes too late is no failure, five are */
        make_volume(0);
        struct cdb_txn *t = cdb_txn_new();
        cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_parent, s1);
        cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_epoch, volume_row(volume)->epoch + 1);
        commit(t);
        memcpy(model, m1, VOLUME);
        write_random(0, 3);
        canceled = flatten_and_cancel();
    }
    assert_true(canceled);
    assert_false(volume_row(volume)->flatten);
    assert_string_equal(volume_row(volume)->parent, s1);
    check_all(0);
    move_owner(1);
    check_all(1);
    ask_flatten(volume);
    WAIT_FOR(!*volume_row(volume)->parent);
    check_all(1);
    free(m1);
}

/* Two layers that are next to each other are merged by different nodes at once: the chunks of the lower one that come into the upper
 * one late are not lost with it. */
static void test_merge_both(void **state)
{
    (void)state;
    char s[4][ID_LEN + 1];
    for (int round = 0; round < 3; round++) {
        make_volume(2); /* not the first node, which merges what nobody owns */
        for (int i = 0; i < 4; i++) {
            char name[8];
            snprintf(name, sizeof name, "m%d", i);
            write_random(2, 15);
            free(cut(2, name, s[i]));
        }
        for (int i = 0; i < 4; i++)
            forget_snapshot(s[round % 2 ? i : 3 - i]);
        write_random(2, 5);
        WAIT_FOR(!*volume_row(volume)->parent);
        check_all(2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshot),
        cmocka_unit_test(test_delete),
        cmocka_unit_test(test_encrypted),
        cmocka_unit_test(test_changed),
        cmocka_unit_test(test_flatten),
        cmocka_unit_test(test_flatten_canceled),
        cmocka_unit_test(test_merge_both),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
