/* Three storage engines in one process, each with its own disk, certificate and port on loopback, on the in-memory
 * database, and a model of what the volume must hold. For the tests of the engine (one per file that includes this). */
#ifndef COHORT_TESTS_UNIT_REPL_ENGINE_UTIL_H
#define COHORT_TESTS_UNIT_REPL_ENGINE_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/file.h"
#include "base/htab.h"
#include "cluster/pki.h"
#include "proto/storage.pb-c.h"
#include "storage/asan/engine/asan.h"
#include "tests/lib/rows.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* no test needs all of it */

#define NODES 3
#define MIB (1u << 20)
#define SHARD (16 * MIB)
#define VOLUME (40 * MIB) /* two shards and a half */
#define WAIT_MS 30000
#define LINK "127.0.91." /* the storage links of every node are LINK 1 and LINK 2; they differ by port */

static uv_loop_t loop;
static struct mailbox mailbox;
static struct cdb *db;
static struct cdb_link *control;
static char dir[256], node[NODES][ID_LEN + 1], disk[NODES][ID_LEN + 1], cluster[ID_LEN + 1], volume[ID_LEN + 1];
static struct asan *engine[NODES];
static uint16_t port[NODES];
static uint64_t limit_bytes[NODES]; /* of the disk; 0 = none */
static uint8_t *model; /* what the volume must hold */
static uint64_t rng = 1;

static uint32_t rnd(uint32_t n)
{
    rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(rng >> 33) % n;
}

/* ---- the loop ---- */

static uv_timer_t beat;
static void on_beat(uv_timer_t *t) { (void)t; }
static void on_view(struct cdb_link *l, void *arg) { (void)l, (void)arg; }

#define WAIT_FOR(COND)                                                        \
    do {                                                                      \
        uint64_t limit_ = clock_boot_ms() + WAIT_MS;                          \
        while (!(COND)) {                                                     \
            if (clock_boot_ms() > limit_) {                                   \
                dump_all();                                                   \
                fail_msg("waited in vain for %s", #COND);                     \
            }                                                                 \
            uv_run(&loop, UV_RUN_ONCE);                                       \
        }                                                                     \
    } while (0)

static void dump_all(void)
{
    for (int i = 0; i < NODES; i++)
        if (engine[i]) {
            char *s = asan_dump_json(engine[i], NULL);
            fprintf(stderr, "engine %d: %s\n", i, s);
            free(s);
        }
}

static bool dump_has(int i, const char *text)
{
    char *s = asan_dump_json(engine[i], NULL);
    bool has = strstr(s, text) != NULL;
    free(s);
    return has;
}

static const struct cdb_view *view(void) { return cdb_link_view(control); }

static void committed(void *arg, int status, const struct err *e)
{
    if (status)
        fprintf(stderr, "transaction: %s\n", e->msg);
    *(int *)arg = status;
}

static void commit(struct cdb_txn *t)
{
    int status = 1;
    cdb_txn_commit(control, t, "test", committed, &status);
    WAIT_FOR(status != 1);
    assert_int_equal(status, E_OK);
}

/* ---- engines ---- */

static void path(char *ret, size_t size, const char *fmt, int i)
{
    char tail[64];
    snprintf(tail, sizeof tail, fmt, i);
    snprintf(ret, size, "%s/%s", dir, tail);
}

static void start_engine(int i)
{
    char ca[512], cert[512], key[512], fast[512], capacity[512], memory[512], nbd[512];
    struct err e = {0};
    path(ca, sizeof ca, "ca.pem", 0);
    path(cert, sizeof cert, "node%d.pem", i);
    path(key, sizeof key, "node%d.key", i);
    path(fast, sizeof fast, "fast%d", i);
    path(capacity, sizeof capacity, "capacity%d", i);
    path(memory, sizeof memory, "memory%d", i);
    path(nbd, sizeof nbd, "nbd%d.sock", i);
    struct asan_conf c = {.db = db, .node_id = node[i], .cluster_uuid = cluster, .tls = {ca, cert, key},
                          .listen_address = "127.0.0.1", .port = port[i], .memory_dir = memory, .nbd_socket = nbd, .n_disks = 1, .journal_bytes = 16 * MIB,
                          .disks = {{disk[i], "d0", fast, capacity, limit_bytes[i]}}, .links = {LINK "1", LINK "2"}, .n_links = 2};
    int rc = asan_start(&c, &engine[i], &e);
    if (rc)
        fail_msg("engine %d: %s", i, e.msg);
    port[i] = asan_port(engine[i]);
    asan_set_lease(engine[i], UINT64_MAX, 0);
}

static void stop_engine(int i)
{
    asan_stop(engine[i]);
    engine[i] = NULL;
}

static void write_pem(const char *fmt, int i, char *pem)
{
    char p[512];
    struct err e;
    path(p, sizeof p, fmt, i);
    assert_int_equal(file_write(p, pem, strlen(pem), 0600, &e), 0);
    free(pem);
}

static void make_certificates(void)
{
    char *ca, *ca_key, *key, *csr, *cert;
    struct err e;
    const char *address = "127.0.0.1";
    assert_int_equal(pki_ca_new("test", &ca, &ca_key, &e), 0);
    for (int i = 0; i < NODES; i++) {
        assert_int_equal(pki_key_new(&key, &e), 0);
        assert_int_equal(pki_csr_new(key, node[i], 1, &address, &csr, &e), 0);
        assert_int_equal(pki_issue(ca, ca_key, csr, node[i], 10, &cert, &e), 0);
        free(csr);
        write_pem("node%d.pem", i, cert);
        write_pem("node%d.key", i, key);
    }
    free(ca_key);
    write_pem("ca.pem", 0, ca);
}

static int remove_entry(const char *p, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type, (void)f;
    return remove(p);
}

static void remove_tree(const char *p)
{
    nftw(p, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void make_rows(void)
{
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < NODES; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%d", i);
        rows_node(t, node[i], name, disk[i]);
    }
    commit(t);
}

static void tell_ports(void)
{
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < NODES; i++)
        cdb_txn_set_int(t, CDB_T_NODE, node[i], CDB_NODE_storage_port, port[i]);
    commit(t);
}

/* volume_key: wrapped, for an encrypted volume; NULL for others. class: NULL = storage. */
static void make_volume_with(int owner, const char *volume_key, const char *class)
{
    char *policy[] = {"class"}, *value[] = {(char *)class};
    id_new(volume);
    struct cdb_txn *t = cdb_txn_new();
    rows_volume(t, volume, volume, VOLUME, SHARD, 3, owner < 0 ? "" : node[owner]);
    if (volume_key)
        cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_key, volume_key);
    if (class)
        cdb_txn_set_smap(t, CDB_T_VOLUME, volume, CDB_VOLUME_policy, &(struct cdb_smap){1, policy, value});
    commit(t);
    memset(model, 0, VOLUME);
    for (int i = 0; i < NODES; i++) { /* an engine whose view is older waits for the row to come */
        char sock[512];
        struct err e;
        if (!engine[i])
            continue;
        path(sock, sizeof sock, "v%d.sock", i);
        assert_int_equal(asan_vhost_serve(engine[i], volume, sock, &e), 0);
        assert_int_equal(asan_vhost_serve(engine[i], volume, sock, &e), E_EXISTS);
        asan_vhost_unserve(engine[i], sock);
    }
}

static void make_volume(int owner) { make_volume_with(owner, NULL, NULL); }

static void move_owner(int to)
{
    const struct cdb_volume *v = cdb_volume_get(view(), volume);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_owner, node[to]);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_epoch, v->epoch + 1);
    commit(t);
}

static int in_sync(void) /* the least over the shards */
{
    int least = NODES;
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        int n = cdb_shard_in_sync_count(view(), s);
        if (!strcmp(s->volume, volume) && n < least)
            least = n;
    }
    return least;
}

/* ---- I/O ---- */

struct io { struct asan_io io; bool done; };

static void io_answer(struct mail *m)
{
    struct io *k = container_of(m, struct io, io.answer);
    k->done = true;
}

static void io_begin(struct io *k, int i, enum asan_io_op op, uint64_t offset, uint64_t length, void *data)
{
    memset(k, 0, sizeof *k);
    k->io.op = op;
    k->io.offset = offset;
    k->io.length = length;
    k->io.data = data;
    k->io.answer.run = io_answer;
    k->io.answer_to = &mailbox;
    memcpy(k->io.volume_id, volume, sizeof volume);
    asan_io(engine[i], &k->io);
}

static int io(int i, enum asan_io_op op, uint64_t offset, uint64_t length, void *data)
{
    struct io k;
    io_begin(&k, i, op, offset, length, data);
    WAIT_FOR(k.done);
    return k.io.status;
}

static void write_random(int i, int n)
{
    uint8_t *data = malloc(MIB);
    for (int k = 0; k < n; k++) {
        uint32_t length = 512 * (1 + rnd(rnd(4) ? 32 : 2048)), offset = 512 * rnd((VOLUME - length) / 512);
        if (rnd(8) == 0) { /* whole extents go past the journal */
            length = (256 << 10) * (1 + rnd(4));
            offset = rnd((VOLUME - length) / (256 << 10)) * (256 << 10);
        }
        if (rnd(8) == 0) {
            assert_int_equal(io(i, ASAN_ZERO, offset, length, NULL), 0);
            memset(model + offset, 0, length);
            continue;
        }
        for (uint32_t b = 0; b < length; b += 4)
            *(uint32_t *)(data + b) = rnd(UINT32_MAX);
        assert_int_equal(io(i, ASAN_WRITE, offset, length, data), 0);
        memcpy(model + offset, data, length);
    }
    free(data);
}

static void check_all(int i)
{
    uint8_t *data = malloc(4 * MIB);
    for (uint32_t at = 0; at < VOLUME; at += 4 * MIB) {
        memset(data, 0xaa, 4 * MIB);
        assert_int_equal(io(i, ASAN_READ, at, 4 * MIB, data), 0);
        for (uint32_t k = 0; k < 4 * MIB; k += 512)
            if (memcmp(data + k, model + at + k, 512))
                fail_msg("sector at %u differs", at + k);
    }
    free(data);
}

/* ---- life ---- */

static int setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&loop);
    uv_timer_init(&loop, &beat);
    uv_timer_start(&beat, on_beat, 20, 20);
    mailbox_open(&mailbox, &loop);
    snprintf(dir, sizeof dir, "repl_engine.XXXXXX"); /* here, not in /tmp: O_DIRECT */
    assert_non_null(mkdtemp(dir));
    model = malloc(VOLUME);
    id_new(cluster);
    for (int i = 0; i < NODES; i++) {
        id_new(node[i]);
        id_new(disk[i]);
    }
    make_certificates();
    db = cdb_mem_open();
    control = cdb_link_open(db, &loop, on_view, NULL);
    WAIT_FOR(view());
    make_rows();
    for (int i = 0; i < NODES; i++)
        start_engine(i);
    tell_ports();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < NODES; i++)
        if (engine[i])
            stop_engine(i);
    cdb_link_close(control);
    mailbox_close(&mailbox, NULL, NULL);
    uv_close((uv_handle_t *)&beat, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    cdb_close(db);
    uv_loop_close(&loop);
    remove_tree(dir);
    free(model);
    return 0;
}

#endif
