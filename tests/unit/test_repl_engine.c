/* Three storage engines in one process, each with its own disk, certificate and port on loopback, on the in-memory
 * database: writes, loss and return of a replica, change of owner with fencing, lease, wiped disk, deletion. */
#include <ftw.h>
#include <fcntl.h>
#include "test_repl_engine_util.h"
#include "cluster/keyring.h"
#include "base/file.h"
#include "base/clock.h"

/* ---- tests ---- */

static void test_io(void **state)
{
    (void)state;
    uint8_t buf[4096];
    make_volume(0);
    assert_int_equal(io(0, ASAN_READ, 0, 4096, buf), 0); /* thin: no shard yet */
    assert_int_equal(buf[17], 0);
    assert_int_equal(io(0, ASAN_ZERO, 0, VOLUME, NULL), 0);
    write_random(0, 60);
    assert_int_equal(io(0, ASAN_FLUSH, 0, 0, NULL), 0);
    check_all(0);
    assert_int_equal(in_sync(), 3);
    assert_int_equal(io(0, ASAN_READ, VOLUME, 512, buf), E_INVAL);
    assert_int_equal(io(0, ASAN_READ, 100, 512, buf), E_INVAL);
}

/* One volume on its owner's node, on another one, and one that is not there. */
static void test_dump(void **state)
{
    (void)state;
    static uint8_t data[4096];
    struct io k;
    make_volume(0);
    memset(data, 7, sizeof data); /* a shard without data has no copies */
    io_begin(&k, 0, ASAN_WRITE, 0, sizeof data, data);
    memcpy(model, data, sizeof data);
    WAIT_FOR(k.done);
    WAIT_FOR(in_sync() == 3);
    for (int i = 0; i < 2; i++) {
        char *s = asan_dump_json(engine[i], volume);
        assert_non_null(s);
        assert_non_null(strstr(s, volume));
        assert_non_null(strstr(s, "\"journal_used_bytes\":"));
        const char *copies = strstr(s, "\"copies\":[{");
        assert_non_null(copies);
        assert_non_null(strstr(copies, disk[i]));
        assert_null(strstr(copies, disk[i + 1]));
        assert_non_null(strstr(copies, "\"in_sync\":true"));
        assert_int_equal(strstr(s, "\"isr\":3") != NULL, i == 0);
        assert_int_equal(strstr(s, "this node does not own it") != NULL, i == 1);
        free(s);
    }
    assert_null(asan_dump_json(engine[0], "00000000-0000-4000-8000-00000000dead"));
}

static void test_overlap_order(void **state)
{
    (void)state;
    enum { N = 40 };
    static struct io k[N];
    static uint8_t data[N][8192];
    make_volume(0);
    for (int i = 0; i < N; i++) { /* all at once, on top of each other */
        memset(data[i], i + 1, sizeof data[i]);
        io_begin(&k[i], 0, ASAN_WRITE, (uint64_t)(i % 3) * 4096, sizeof data[i], data[i]);
        memcpy(model + (i % 3) * 4096, data[i], sizeof data[i]);
    }
    for (int i = 0; i < N; i++)
        WAIT_FOR(k[i].done);
    check_all(0);
}

static void test_replica_lost_and_back(void **state)
{
    (void)state;
    make_volume(0);
    write_random(0, 30);
    stop_engine(2);
    write_random(0, 30); /* goes on as soon as the transaction has taken the replica out */
    WAIT_FOR(in_sync() == 2);
    check_all(0);
    start_engine(2);
    write_random(0, 30);
    WAIT_FOR(in_sync() == 3);
    check_all(0);
    bool task = false;
    for (size_t i = 0; i < cdb_task_count(view()); i++)
        task = task || !strcmp(cdb_task_at(view(), i)->kind, "resync");
    assert_true(task);
    move_owner(2); /* what came back by resync is what the others have */
    check_all(2);
}

static void test_wiped_disk(void **state)
{
    (void)state;
    char p[512];
    make_volume(0);
    write_random(0, 30);
    int64_t before = cdb_disk_get(view(), disk[1])->incarnation;
    stop_engine(1);
    path(p, sizeof p, "fast%d", 1);
    remove_tree(p);
    path(p, sizeof p, "capacity%d", 1);
    remove_tree(p);
    start_engine(1);
    WAIT_FOR(cdb_disk_get(view(), disk[1])->incarnation > before);
    write_random(0, 20);
    WAIT_FOR(in_sync() == 3);
    move_owner(1);
    check_all(1);
}

/* A frame of the old owner that arrives late. */
static int late_status;
static uint64_t late_detail;
static bool late_up, late_done;
static void on_up(struct rpc_peer *p, bool connected, void *arg) { (void)p, (void)arg; late_up = connected; }
static void on_answer(struct rpc_call *c, int status, const ProtobufCMessage *m, struct iobuf *d, size_t len)
{
    (void)m, (void)d, (void)len;
    late_status = status;
    late_detail = c->detail;
    late_done = true;
}

static void send_late_write(uint64_t epoch)
{
    struct rpc_env *env;
    struct rpc_peer *peer;
    struct err e;
    char ca[512], cert[512], key[512];
    path(ca, sizeof ca, "ca.pem", 0);
    path(cert, sizeof cert, "node%d.pem", 0);
    path(key, sizeof key, "node%d.key", 0);
    struct rpc_tls_files tls = {ca, cert, key};
    assert_int_equal(rpc_env_open(&loop, &tls, &env, &e), 0);
    assert_int_equal(rpc_peer_open(env, node[2], "127.0.0.1", port[2], on_up, NULL, &peer, &e), 0);
    WAIT_FOR(late_up);
    struct iobuf *data = iobuf_new(4096);
    memset(data->data, 0x66, 4096);
    Cohort__Storage__Shard s = COHORT__STORAGE__SHARD__INIT;
    Cohort__Storage__WriteReq q = COHORT__STORAGE__WRITE_REQ__INIT;
    s.volume = volume;
    s.disk = disk[2];
    s.incarnation = (uint64_t)cdb_disk_get(view(), disk[2])->incarnation;
    q.shard = &s;
    q.epoch = epoch;
    q.session = 1000;
    q.seq = 1000000;
    q.prev_seq = 999999;
    q.length = 4096;
    q.crc = crc32c(0, data->data, 4096);
    struct rpc_call call = {.done = on_answer};
    late_done = false;
    rpc_call(peer, &call, RPC_STORE_WRITE, &q.base, data, 0, 4096);
    WAIT_FOR(late_done);
    iobuf_unref(data);
    rpc_env_close(env);
}

static void test_owner_moves(void **state)
{
    (void)state;
    make_volume(0);
    write_random(0, 40);
    uint64_t old = (uint64_t)cdb_volume_get(view(), volume)->epoch;
    move_owner(1);
    check_all(1);
    write_random(1, 20);
    send_late_write(old);
    assert_int_equal(late_status, E_STALE);
    assert_true(late_detail > old);
    struct io parked; /* the old owner's guest: waits, is not failed */
    static uint8_t buf[4096];
    io_begin(&parked, 0, ASAN_WRITE, 0, sizeof buf, buf);
    check_all(1);
    assert_false(parked.done);
    memset(model, 0, sizeof buf);
    move_owner(0); /* it gets the volume back: the write is carried out */
    WAIT_FOR(parked.done);
    assert_int_equal(parked.io.status, 0);
    check_all(0);
}

/* Both ends of each connection over the link see its end, with whatever was on its way. */
static int cut_link(const char *address)
{
    int n = 0;
    for (int fd = 3; fd < 1024; fd++) {
        struct sockaddr_in a;
        socklen_t len = sizeof a;
        if (getpeername(fd, (struct sockaddr *)&a, &len) || a.sin_family != AF_INET || a.sin_addr.s_addr != inet_addr(address))
            continue;
        shutdown(fd, SHUT_RDWR);
        n++;
    }
    return n;
}

static int64_t generations(void)
{
    int64_t sum = 0;
    for (size_t i = 0; i < cdb_shard_count(view()); i++)
        if (!strcmp(cdb_shard_at(view(), i)->volume, volume))
            sum += cdb_shard_at(view(), i)->generation;
    return sum;
}

static bool links_up(int n)
{
    for (int i = 0; i < NODES; i++) {
        struct asan_link_state s[ASAN_LINKS_MAX + 1];
        size_t k = asan_link_states(engine[i], node[(i + 1) % NODES], s, 5);
        int up = 0;
        for (size_t l = 0; l < k; l++)
            up += s[l].up;
        if (k != 3 || up != n)
            return false;
    }
    return true;
}

/* Messages were sent again over another link, and writes overtook others: chance decides when. */
static bool saw_it_all(void)
{
    return !dump_has(0, "\"repeated\":0,") && !(dump_has(1, "\"came_early\":0,") && dump_has(2, "\"came_early\":0,"));
}

/* Many writes at once spread over two links and the stand-by's; links end again and again, never all of a node's at once:
 * no replica leaves its in-sync set, nothing is lost or done twice. */
static void test_links(void **state)
{
    (void)state;
    enum { N = 48, LEN = 512 << 10 };
    static struct io k[N];
    uint8_t *data = malloc((size_t)N * LEN);
    const char *both[] = {LINK "1", LINK "2"};
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < NODES; i++)
        cdb_txn_set_strs(t, CDB_T_NODE, node[i], CDB_NODE_storage_addresses, 2, both);
    commit(t);
    WAIT_FOR(links_up(3));
    make_volume(0);
    write_random(0, 30);
    WAIT_FOR(in_sync() == 3);
    int64_t before = generations();
    for (int round = 0; round < 12 || (round < 100 && !saw_it_all()); round++) {
        for (int i = 0; i < N; i++) {
            uint32_t at = rnd(VOLUME / LEN * 2 - 1) * (LEN / 2); /* many on top of each other */
            memset(data + (size_t)i * LEN, (int)rnd(256), LEN);
            io_begin(&k[i], 0, ASAN_WRITE, at, LEN, data + (size_t)i * LEN);
            memcpy(model + at, data + (size_t)i * LEN, LEN);
        }
        WAIT_FOR(k[rnd(4)].done);
        assert_true(cut_link(both[round % 2]) > 0);
        for (int i = 0; i < N; i++)
            WAIT_FOR(k[i].done && k[i].io.status == 0);
        WAIT_FOR(links_up(3));
    }
    check_all(0);
    assert_int_equal(in_sync(), 3);
    assert_int_equal(generations(), before);
    assert_true(saw_it_all());
    move_owner(1);
    check_all(1);
    free(data);
}

static void trap_closed(void *arg) { *(bool *)arg = true; }

static int sync_of(uint32_t index)
{
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        if (!strcmp(s->volume, volume) && s->idx == index)
            return cdb_shard_in_sync_count(view(), s);
    }
    return -1;
}

static void add_generation(uint32_t index, int64_t n)
{
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        if (strcmp(s->volume, volume) || s->idx != index)
            continue;
        struct cdb_txn *t = cdb_txn_new();
        cdb_txn_set_int(t, CDB_T_SHARD, s->id, CDB_SHARD_generation, s->generation + n);
        commit(t);
        return;
    }
}

/* A node answers nothing, though its connections stay. Writes that began at different times all go on in the moment in which that
 * is found, by one transaction. What one of them rests on is not so: it alone waits. */
static void test_silent_node(void **state)
{
    enum { SHARDS = 3, WRONG = 1 };
    struct io k[SHARDS], ask;
    struct mailbox trap;
    uint8_t data[4096];
    (void)state;
    make_volume(0);
    memset(data, 0x42, sizeof data);
    for (uint32_t i = 0; i < SHARDS; i++)
        assert_int_equal(io(0, ASAN_WRITE, i * SHARD, sizeof data, data), 0);
    WAIT_FOR(in_sync() == 3);
    mailbox_open(&trap, &loop);
    for (int round = 0; round < 2; round++) {
        if (round == 1) /* the core knows a newer one, and does not take an older one for true */
            add_generation(WRONG, -1);
        pthread_mutex_lock(&trap.lock);
        memset(&ask, 0, sizeof ask);
        ask.io = (struct asan_io){.op = ASAN_READ, .offset = 100, .length = 512, .data = data, .answer = {.run = io_answer}, .answer_to = &trap};
        memcpy(ask.io.volume_id, volume, sizeof volume);
        asan_io(engine[2], &ask.io); /* its thread cannot give the answer away */
        for (uint32_t i = 0; i < SHARDS; i++) {
            uint64_t until = clock_boot_ms() + 400;
            io_begin(&k[i], 0, ASAN_WRITE, i * SHARD, sizeof data, data);
            while (clock_boot_ms() < until) /* so that each would be given up at a time of its own */
                uv_run(&loop, UV_RUN_ONCE);
        }
        WAIT_FOR(sync_of(0) == 2);
        if (round == 0)
            assert_true(sync_of(1) == 2 && sync_of(2) == 2);
        WAIT_FOR(k[0].done && k[2].done && (round == 1 || k[WRONG].done));
        if (round == 1) {
            assert_false(k[WRONG].done);
            add_generation(WRONG, 1);
            WAIT_FOR(k[WRONG].done);
        }
        pthread_mutex_unlock(&trap.lock);
        WAIT_FOR(ask.done && in_sync() == 3);
    }
    bool closed = false;
    mailbox_close(&trap, trap_closed, &closed);
    WAIT_FOR(closed);
    for (uint32_t i = 0; i < SHARDS; i++)
        memcpy(model + i * SHARD, data, sizeof data);
    check_all(0);
}

static void test_lease(void **state)
{
    (void)state;
    struct io k;
    static uint8_t buf[4096];
    make_volume(0);
    write_random(0, 5);
    asan_set_lease(engine[0], 0, 0);
    WAIT_FOR(dump_has(0, "\"lease\":false"));
    io_begin(&k, 0, ASAN_READ, 0, sizeof buf, buf);
    for (int i = 0; i < 20; i++)
        uv_run(&loop, UV_RUN_ONCE);
    assert_false(k.done);
    asan_set_lease(engine[0], UINT64_MAX, 0);
    WAIT_FOR(k.done);
    assert_int_equal(k.io.status, 0);

    /* A lease asked for with a newer view than the engine has: it waits for that view. */
    int64_t epoch = cdb_node_get(view(), node[0])->epoch + 1;
    asan_set_lease(engine[0], UINT64_MAX, epoch);
    WAIT_FOR(dump_has(0, "\"lease\":false"));
    io_begin(&k, 0, ASAN_READ, 0, sizeof buf, buf);
    for (int i = 0; i < 20; i++)
        uv_run(&loop, UV_RUN_ONCE);
    assert_false(k.done);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_NODE, node[0], CDB_NODE_epoch, epoch);
    commit(t);
    WAIT_FOR(k.done);
    assert_int_equal(k.io.status, 0);
}

struct claim { struct asan_claim c; bool done; };

static void claim_answer(struct mail *m)
{
    container_of(m, struct claim, c.answer)->done = true;
}

static int claim(int i)
{
    struct claim k = {.c = {.answer_to = &mailbox, .answer.run = claim_answer}};
    memcpy(k.c.volume_id, volume, sizeof volume);
    asan_claim(engine[i], &k.c);
    WAIT_FOR(k.done);
    return k.c.status;
}

static void test_claim_and_sealed(void **state)
{
    (void)state;
    make_volume(-1);
    assert_int_equal(claim(1), 0);
    write_random(1, 20);
    assert_int_equal(claim(2), E_BUSY);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_bool(t, CDB_T_VOLUME, volume, CDB_VOLUME_sealed, true);
    commit(t);
    asan_release(engine[1], volume);
    WAIT_FOR(!*cdb_volume_get(view(), volume)->owner);
    check_all(0);
    check_all(2);
    uint8_t buf[512] = {0};
    assert_int_equal(io(0, ASAN_WRITE, 0, 512, buf), E_INVAL);
}

/* Nobody uses the volume, nobody owns it: still a replica that was away comes back into the set. */
static void test_idle_volume_heals(void **state)
{
    (void)state;
    make_volume(-1);
    assert_int_equal(claim(0), 0);
    write_random(0, 20);
    stop_engine(2);
    write_random(0, 20);
    WAIT_FOR(in_sync() == 2);
    asan_release(engine[0], volume);
    WAIT_FOR(!*cdb_volume_get(view(), volume)->owner);
    start_engine(2);
    WAIT_FOR(in_sync() == 3);
    WAIT_FOR(!*cdb_volume_get(view(), volume)->owner);
    assert_int_equal(claim(2), 0);
    check_all(2);
    asan_release(engine[2], volume);
}

/* The owner dies in the middle of writing and nobody starts the guest again: the survivors reconcile what is left in their
 * journals (it would pin them), and let the volume go. */
static void test_orphan_is_settled(void **state)
{
    (void)state;
    make_volume(0);
    write_random(0, 10);
    int64_t epoch = cdb_volume_get(view(), volume)->epoch;
    stop_engine(0);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, node[0], CDB_NODE_state, "dead");
    commit(t);
    WAIT_FOR(cdb_volume_get(view(), volume)->epoch > epoch && !*cdb_volume_get(view(), volume)->owner);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, node[0], CDB_NODE_state, "up");
    commit(t);
    start_engine(0);
    assert_int_equal(claim(1), 0);
    check_all(1);
    write_random(1, 5);
    WAIT_FOR(in_sync() == 3);
    asan_release(engine[1], volume);
}

static void test_delete(void **state)
{
    (void)state;
    make_volume(0);
    write_random(0, 20);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_state, "deleting");
    commit(t);
    WAIT_FOR(!cdb_volume_get(view(), volume));
    for (size_t i = 0; i < cdb_shard_count(view()); i++)
        assert_string_not_equal(cdb_shard_at(view(), i)->volume, volume);
    uint8_t buf[512];
    WAIT_FOR(io(0, ASAN_READ, 0, 512, buf) == E_NOTFOUND);
}

/* ---- damage ---- */

static int64_t checked(const char *what)
{
    const struct cdb_volume *v = cdb_volume_get(view(), volume);
    for (size_t i = 0; i < v->check_result.n; i++)
        if (!strcmp(v->check_result.k[i], what))
            return v->check_result.v[i];
    return -1;
}

static void run_check(void)
{
    int64_t asked = clock_wall_ms(), before = cdb_volume_get(view(), volume)->check_done_ms;
    asked = asked > before ? asked : before + 1; /* the one before may have ended in this millisecond */
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_check_asked_ms, asked);
    commit(t);
    WAIT_FOR(cdb_volume_get(view(), volume)->check_done_ms >= asked);
}

struct place { char file[600]; off_t at; };

/* Where `block` lies in the extent file; false: it is not there (yet). */
static bool find_block(int i, const uint8_t *block, struct place *ret)
{
    char dir_i[512], *text;
    size_t len;
    path(dir_i, sizeof dir_i, "capacity%d", i);
    snprintf(ret->file, sizeof ret->file, "%s/extents.dat", dir_i);
    if (file_read(ret->file, 1u << 30, &text, &len, NULL))
        return false;
    const uint8_t *at = memmem(text, len, block, 4096);
    ret->at = at ? at - (const uint8_t *)text : 0;
    free(text);
    return at;
}

/* Changes a bit of each, all within microseconds: the scrub, too, has what it finds repaired. */
static void damage(const struct place *p, int n)
{
    int fd[8];
    uint8_t b;
    assert_true(n <= 8);
    for (int i = 0; i < n; i++)
        assert_true((fd[i] = open(p[i].file, O_RDWR)) >= 0);
    for (int i = 0; i < n; i++) {
        assert_int_equal(pread(fd[i], &b, 1, p[i].at + 99), 1);
        b ^= 4;
        assert_int_equal(pwrite(fd[i], &b, 1, p[i].at + 99), 1);
    }
    for (int i = 0; i < n; i++) {
        assert_int_equal(fsync(fd[i]), 0);
        close(fd[i]);
    }
}

static const struct cdb_event *event_with(const char *text)
{
    for (size_t i = 0; i < cdb_event_count(view()); i++)
        if (strstr(cdb_event_at(view(), i)->message, text))
            return cdb_event_at(view(), i);
    return NULL;
}

static void test_check_repairs(void **state)
{
    (void)state;
    static uint8_t data[64 * 4096], got[4096];
    const uint64_t at = SHARD + 8 * 4096;
    struct place p[NODES];
    char bad[40];
    make_volume(0);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)rnd(256);
    assert_int_equal(io(0, ASAN_WRITE, at, sizeof data, data), 0);
    WAIT_FOR(in_sync() == 3);
    run_check();
    assert_int_equal(checked("bad_bytes"), 0);
    assert_true(checked("checked_bytes") > 0);
    WAIT_FOR(find_block(1, data + 4096, &p[0])); /* once it is destaged */
    WAIT_FOR(find_block(1, data + 2 * 4096, &p[1]));
    WAIT_FOR(find_block(2, data + 40 * 4096, &p[2]));
    damage(p, 3);
    run_check(); /* or one that the scrub asked for is faster */
    WAIT_FOR(event_with("12 KiB wrong on one copy or more, 12 KiB repaired"));
    run_check();
    assert_int_equal(checked("bad_bytes"), 0);
    for (int i = 0; i < NODES; i++)
        WAIT_FOR(find_block(i, data + 5 * 4096, &p[i]));
    damage(p, NODES);
    run_check();
    assert_int_equal(checked("bad_bytes"), 4096);
    assert_int_equal(checked("unrepairable_bytes"), 4096);
    snprintf(bad, sizeof bad, "%llu+4096", (unsigned long long)at + 5 * 4096);
    assert_int_equal(cdb_volume_get(view(), volume)->check_bad.n, 1);
    assert_string_equal(cdb_volume_get(view(), volume)->check_bad.v[0], bad);
    assert_int_equal(io(0, ASAN_READ, at + 5 * 4096, 4096, got), E_CORRUPT);
    assert_int_equal(io(0, ASAN_WRITE, at + 5 * 4096, 4096, data), 0);
    assert_int_equal(io(0, ASAN_READ, at + 5 * 4096, 4096, got), 0);
    assert_memory_equal(got, data, 4096);
    run_check();
    assert_int_equal(checked("bad_bytes"), 0);
    assert_int_equal(cdb_volume_get(view(), volume)->check_bad.n, 0);
    assert_int_equal(in_sync(), 3); /* no copy was taken out for it */
}

/* ---- encryption ---- */

static const char marker[] = "in the clear, where nobody may see it";
static unsigned n_marked;

static int look_for_marker(const char *p, const struct stat *st, int type, struct FTW *f)
{
    char *text;
    size_t len;
    (void)st, (void)f;
    if (type == FTW_F && !file_read(p, 1u << 30, &text, &len, NULL)) {
        n_marked += memmem(text, len, marker, sizeof marker) != NULL;
        free(text);
    }
    return 0;
}

static unsigned files_with_marker(void)
{
    n_marked = 0;
    nftw(dir, look_for_marker, 16, FTW_PHYS);
    return n_marked;
}

/* A cluster key, in the keyring and in the database, and a volume's, wrapped by it. */
static void make_keys(char volume_key[KEYRING_TEXT])
{
    char lock[KEYRING_TEXT];
    uint8_t cluster_key[KEYRING_KEY];
    struct err e;
    assert_int_equal(keyring_lock("some passphrase", 15, cluster_key, lock, &e), 0);
    keyring_put(cluster_key);
    assert_int_equal(keyring_volume_new(volume_key, &e), 0);
    struct cdb_txn *t = cdb_txn_new();
    if (!cdb_cluster_get(view(), "cluster"))
        cdb_txn_insert(t, CDB_T_CLUSTER, "cluster");
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_key, lock);
    commit(t);
}

static void test_encrypted(void **state)
{
    (void)state;
    static uint8_t data[8192], got[8192];
    struct io k, w;
    for (size_t i = 0; i + sizeof marker < sizeof data; i += 300)
        memcpy(data + i, marker, sizeof marker);
    make_volume(0);
    assert_int_equal(io(0, ASAN_WRITE, 4 * MIB, sizeof data, data), 0);
    assert_true(files_with_marker() >= NODES); /* the search finds what is there */
    stop_engine(0);
    for (int i = 1; i < NODES; i++)
        stop_engine(i);
    for (int i = 0; i < NODES; i++) { /* empty disks, so that only what follows can be found */
        char p[512];
        path(p, sizeof p, "fast%d", i);
        remove_tree(p);
        path(p, sizeof p, "capacity%d", i);
        remove_tree(p);
        start_engine(i);
    }
    char volume_key[KEYRING_TEXT];
    make_keys(volume_key);
    make_volume_with(0, volume_key, NULL);
    write_random(0, 20);
    assert_int_equal(io(0, ASAN_WRITE, 3 * 512, sizeof data, data), 0);
    memcpy(model + 3 * 512, data, sizeof data);
    assert_int_equal(io(0, ASAN_ZERO, 5 * 512, 1024, NULL), 0);
    memset(model + 5 * 512, 0, 1024);
    assert_int_equal(files_with_marker(), 0);
    check_all(0);
    move_owner(1);
    check_all(1);
    stop_engine(1);
    keyring_forget(); /* as after a power cut */
    start_engine(1);
    io_begin(&k, 1, ASAN_READ, 3 * 512, sizeof got, got);
    WAIT_FOR(dump_has(1, "the cluster key is not here"));
    assert_false(k.done);
    io_begin(&w, 1, ASAN_WRITE, 700 * 512, sizeof data, data); /* what is sent is made of it once the key is here */
    memcpy(model + 700 * 512, data, sizeof data);
    uint8_t key[KEYRING_KEY];
    struct err e;
    assert_int_equal(keyring_unlock(cdb_cluster_get(view(), "cluster")->key, "some passphrase", 15, key, &e), 0);
    keyring_put(key);
    WAIT_FOR(k.done);
    assert_int_equal(k.io.status, 0);
    assert_memory_equal(got, model + 3 * 512, sizeof got);
    WAIT_FOR(w.done);
    assert_int_equal(w.io.status, 0);
    check_all(1);
    assert_int_equal(in_sync(), 3);
    assert_int_equal(files_with_marker(), 0);
    keyring_forget();
}

/* ---- space ---- */

/* One of three disks fills up: nothing fails, no replica is lost, writes wait, discards go on and bring them back. */
static void test_full_disk(void **state)
{
    enum { PIECE = 4 * MIB };
    uint8_t *data = malloc(PIECE), *got = malloc(PIECE);
    struct io k;
    uint32_t at = 0;
    (void)state;
    stop_engine(1);
    limit_bytes[1] = 48 * MIB; /* 4 for copy-on-write, 16 in reserve */
    start_engine(1);
    make_volume(0);
    for (uint32_t i = 0; i < PIECE; i++)
        data[i] = (uint8_t)(i * 7 + i / 512);
    for (uint32_t s = 0; s < VOLUME; s += SHARD) { /* a shard made later would not be placed on the full disk */
        assert_int_equal(io(0, ASAN_WRITE, s, 4096, data), 0);
        memcpy(model + s, data, 4096);
    }
    for (;; at += PIECE) {
        assert_true(at < VOLUME);
        io_begin(&k, 0, ASAN_WRITE, at, PIECE, data);
        WAIT_FOR(k.done || dump_has(0, "the disk of a replica is full"));
        for (int turn = 0; turn < 50 && !k.done; turn++) /* what was under way may still come from the reserve */
            uv_run(&loop, UV_RUN_ONCE);
        if (!k.done)
            break;
        assert_int_equal(k.io.status, 0);
        memcpy(model + at, data, PIECE);
    }
    assert_true(at >= 16 * MIB && at < 40 * MIB);
    WAIT_FOR(cdb_disk_get(view(), disk[1])->full && event_with("full: "));
    assert_int_equal(in_sync(), 3);
    assert_false(k.done);
    assert_int_equal(io(0, ASAN_READ, 0, PIECE, got), 0);
    assert_memory_equal(got, data, PIECE);
    for (uint32_t z = 0; z < at; z += PIECE) {
        assert_int_equal(io(0, ASAN_ZERO, z, PIECE, NULL), 0);
        memset(model + z, 0, PIECE);
    }
    WAIT_FOR(k.done);
    assert_int_equal(k.io.status, 0);
    memcpy(model + at, data, PIECE);
    WAIT_FOR(!cdb_disk_get(view(), disk[1])->full && event_with("has space again"));
    assert_int_equal(in_sync(), 3);
    check_all(0);
    stop_engine(1);
    limit_bytes[1] = 0;
    start_engine(1);
    free(data);
    free(got);
}

int main(int argc, char **argv) /* a pattern: only tests whose names match */
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_disk), /* first: the disks are empty */
        cmocka_unit_test(test_io),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_overlap_order),
        cmocka_unit_test(test_replica_lost_and_back),
        cmocka_unit_test(test_owner_moves),
        cmocka_unit_test(test_links),
        cmocka_unit_test(test_silent_node),
        cmocka_unit_test(test_lease),
        cmocka_unit_test(test_claim_and_sealed),
        cmocka_unit_test(test_wiped_disk),
        cmocka_unit_test(test_idle_volume_heals),
        cmocka_unit_test(test_orphan_is_settled),
        cmocka_unit_test(test_delete),
        cmocka_unit_test(test_check_repairs),
        cmocka_unit_test(test_encrypted), /* formats the disks */
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
