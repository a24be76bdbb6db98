/* Disks in memory: their contents outlive the process, not the node; what comes up empty is copied anew, or lost; what is removed is
 * unmounted, and its place is free for another. In a mount namespace of its own. */
#include "test_repl_engine_util.h"
#include <errno.h>
#include <sched.h>
#include <endian.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "cluster/copies.h"

#define MEMORY (256 * MIB)

static char ram[NODES][ID_LEN + 1];

static void put_ram(struct cdb_txn *t, int i, char *ret_id)
{
    char name[ID_LEN + 8];
    id_new(ret_id);
    snprintf(name, sizeof name, "ram-%s", ret_id);
    cdb_txn_insert(t, CDB_T_DISK, ret_id);
    cdb_txn_set_str(t, CDB_T_DISK, ret_id, CDB_DISK_node, node[i]);
    cdb_txn_set_str(t, CDB_T_DISK, ret_id, CDB_DISK_name, name);
    cdb_txn_set_str(t, CDB_T_DISK, ret_id, CDB_DISK_medium, CLASS_MEMORY);
    cdb_txn_set_int(t, CDB_T_DISK, ret_id, CDB_DISK_memory_bytes, MEMORY);
    cdb_txn_set_str(t, CDB_T_DISK, ret_id, CDB_DISK_state, "up");
    cdb_txn_set_int(t, CDB_T_DISK, ret_id, CDB_DISK_incarnation, 1);
}

static int64_t size_of(const char *id) { return cdb_disk_get(view(), id)->size_bytes; }

static void ram_path(int i, char *ret, size_t size)
{
    char p[512];
    path(p, sizeof p, "memory%d", i);
    snprintf(ret, size, "%s/%s", p, ram[i]);
}

static bool mounted_id(const char *id)
{
    char *text;
    struct err e;
    assert_int_equal(file_read("/proc/self/mounts", 1 << 20, &text, NULL, &e), 0);
    const char *at = strstr(text, id);
    if (at)
        assert_non_null(strstr(at, " tmpfs rw,nosuid,nodev,noexec,noatime,size=262144k,mode=700"));
    free(text);
    return at != NULL;
}

static bool mounted(int i) { return mounted_id(ram[i]); }
static int64_t incarnation(int i) { return cdb_disk_get(view(), ram[i])->incarnation; }

/* What a power cut leaves of it. The engine is not running. */
static void cut_power(int i)
{
    char p[600];
    ram_path(i, p, sizeof p);
    assert_true(mounted(i));
    assert_int_equal(umount2(p, 0), 0);
}

static void only_on_ram(void)
{
    size_t n = 0;
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        for (size_t r = 0; !strcmp(s->volume, volume) && r < s->replicas.n; r++, n++)
            assert_string_equal(cdb_disk_get(view(), s->replicas.v[r])->medium, CLASS_MEMORY);
    }
    assert_int_equal(n, 9); /* three copies of three shards */
}

static void test_outlives_the_process(void **state)
{
    (void)state;
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < NODES; i++)
        put_ram(t, i, ram[i]);
    commit(t);
    for (int i = 0; i < NODES; i++) {
        WAIT_FOR(size_of(ram[i]) > 0);
        assert_true(size_of(ram[i]) < MEMORY);
    }
    make_volume_with(0, NULL, CLASS_MEMORY);
    write_random(0, 60);
    check_all(0);
    only_on_ram();
    int64_t before[NODES];
    for (int i = 0; i < NODES; i++)
        before[i] = incarnation(i);
    for (int i = 0; i < NODES; i++)
        stop_engine(i);
    for (int i = 0; i < NODES; i++)
        assert_true(mounted(i));
    for (int i = 0; i < NODES; i++)
        start_engine(i);
    write_random(0, 10);
    check_all(0);
    for (int i = 0; i < NODES; i++)
        assert_int_equal(incarnation(i), before[i]);
}

static void test_copied_anew_after_a_power_cut(void **state)
{
    (void)state;
    for (int victim = 1; victim < NODES; victim++) { /* by turns: in the end every copy was made anew from another */
        int64_t before = incarnation(victim), storage = cdb_disk_get(view(), disk[victim])->incarnation;
        stop_engine(victim);
        cut_power(victim);
        write_random(0, 10);
        start_engine(victim);
        WAIT_FOR(incarnation(victim) > before && in_sync() == 3);
        assert_int_equal(cdb_disk_get(view(), disk[victim])->incarnation, storage);
        only_on_ram();
    }
    stop_engine(0);
    cut_power(0);
    move_owner(2);
    check_all(2);
    start_engine(0);
    WAIT_FOR(in_sync() == 3);
}

/* A client of engine i's NBD server that reads the first bytes of the volume and does not wait for the answer. */
static int nbd_reader(int i)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct { uint64_t magic; uint32_t option, length; char name[ID_LEN]; } __attribute__((packed)) choose = {
        htobe64(0x49484156454F5054), htobe32(1), htobe32(ID_LEN), ""};
    struct { uint32_t magic; uint16_t flags, type; uint64_t handle, offset; uint32_t length; } __attribute__((packed)) read_it = {
        htobe32(0x25609513), 0, 0, 1, 0, htobe32(4096)};
    uint32_t flags = htobe32(3); /* fixed newstyle, no zeroes */
    char p[512], got[18];
    path(p, sizeof p, "nbd%d.sock", i);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", p);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(recv(fd, got, 18, MSG_WAITALL), 18);
    memcpy(choose.name, volume, ID_LEN);
    assert_int_equal(send(fd, &flags, sizeof flags, 0), sizeof flags);
    assert_int_equal(send(fd, &choose, sizeof choose, 0), sizeof choose);
    assert_int_equal(recv(fd, got, 10, MSG_WAITALL), 10); /* size and flags */
    assert_int_equal(send(fd, &read_it, sizeof read_it, 0), sizeof read_it);
    return fd;
}

static bool owned(void) { return *cdb_volume_get(view(), volume)->owner; }

static void test_lost_with_the_last_copy(void **state)
{
    struct io k;
    uint8_t *data = malloc(MIB);
    (void)state;
    for (int i = 0; i < NODES; i++)
        stop_engine(i);
    for (int i = 0; i < NODES; i++)
        cut_power(i);
    assert_false(copies_volume_lost(view(), cdb_volume_get(view(), volume))); /* nobody knows yet */
    for (int i = 0; i < NODES; i++)
        start_engine(i);
    WAIT_FOR(copies_volume_lost(view(), cdb_volume_get(view(), volume)) && in_sync() == 0);
    WAIT_FOR(!owned()); /* nobody uses it: it is let go, for people to reset it */
    int fd = nbd_reader(1);
    WAIT_FOR(owned() && dump_has(1, "\"requests\":1"));
    for (int i = 0; i < 50; i++)
        uv_run(&loop, UV_RUN_ONCE);
    assert_int_equal(recv(fd, data, 1, MSG_DONTWAIT), -1); /* it waits */
    assert_true(owned());
    close(fd);
    WAIT_FOR(!owned()); /* nobody waits for the answer any more */
    move_owner(0);
    io_begin(&k, 0, ASAN_READ, 0, MIB, data);
    WAIT_FOR(dump_has(0, "\"requests\":1"));
    for (int i = 0; i < 50; i++) /* some turns: a second */
        uv_run(&loop, UV_RUN_ONCE);
    assert_false(k.done); /* neither an error nor data */
    stop_engine(0);
    WAIT_FOR(k.done);
    assert_int_equal(k.io.status, E_CANCELED);
    start_engine(0);
    free(data);
}

static void test_removed(void **state)
{
    (void)state;
    struct cdb_txn *t = cdb_txn_new();
    for (size_t i = 0; i < cdb_shard_count(view()); i++)
        cdb_txn_delete(t, CDB_T_SHARD, cdb_shard_at(view(), i)->id);
    cdb_txn_delete(t, CDB_T_VOLUME, volume);
    for (int i = 0; i < NODES; i++)
        cdb_txn_delete(t, CDB_T_DISK, ram[i]);
    stop_engine(2); /* it finds out when it is back */
    commit(t);
    WAIT_FOR(!mounted(0) && !mounted(1));
    assert_true(mounted(2));
    start_engine(2);
    WAIT_FOR(!mounted(2));
    enum { FEW = 6 };
    for (int round = 0; round * FEW <= ASAN_DISKS_MAX; round++) { /* more than a node may have at a time */
        char id[FEW][ID_LEN + 1];
        t = cdb_txn_new();
        for (int i = 0; i < FEW; i++)
            put_ram(t, 0, id[i]);
        commit(t);
        for (int i = 0; i < FEW; i++)
            WAIT_FOR(size_of(id[i]) > 0 && mounted_id(id[i]));
        t = cdb_txn_new();
        for (int i = 0; i < FEW; i++)
            cdb_txn_delete(t, CDB_T_DISK, id[i]);
        commit(t);
        for (int i = 0; i < FEW; i++)
            WAIT_FOR(!mounted_id(id[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outlives_the_process),
        cmocka_unit_test(test_copied_anew_after_a_power_cut),
        cmocka_unit_test(test_lost_with_the_last_copy),
        cmocka_unit_test(test_removed),
    };
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
        printf("no mount namespace of its own (%s): skipped\n", strerror(errno));
        return 77;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
