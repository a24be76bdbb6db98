/* Storage engines on the in-memory database: a volume with one copy, or with three of which two are reached over TLS on
 * loopback, served to a QEMU guest and over NBD. What bench/vhost.py and bench/request.py measure; also a small process to
 * point a profiler at: nothing but storage is in it.
 *
 * cohort-bench-node --dir DIR --size BYTES [--copies 1|3] [--vhost SOCKET] [--nbd SOCKET]
 * DIR is emptied by the caller. Prints "ready VOLUME" (its name for NBD) and ends in good order on SIGTERM. */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/buf.h"
#include "base/file.h"
#include "cluster/pki.h"
#include "storage/asan/engine/asan.h"
#include "tests/lib/rows.h"

static const char *dir;
static uv_loop_t loop;
static int n_nodes = 1; /* as many as copies; the first one owns the volume */
static char node[3][ID_LEN + 1], disk[3][ID_LEN + 1], volume[ID_LEN + 1];
static struct rpc_tls_files identity[3];
static struct asan *engine[3];

static _Noreturn void die(const char *what, const struct err *e)
{
    fprintf(stderr, "cohort-bench-node: %s: %s\n", what, e->msg);
    exit(1);
}

static char *in_dir(const char *name, int i)
{
    char *p = NULL;
    if (asprintf(&p, "%s/%s%d", dir, name, i) < 0)
        abort();
    return p;
}

static char *put_file(const char *name, int i, char *pem)
{
    struct err e;
    char *p = in_dir(name, i);
    if (file_write(p, pem, strlen(pem), 0600, &e))
        die(name, &e);
    free(pem);
    return p;
}

static void make_identities(void)
{
    char *ca, *ca_key, *key, *csr, *cert;
    const char *address = "127.0.0.1";
    struct err e;
    if (pki_ca_new("bench", &ca, &ca_key, &e))
        die("certificate authority", &e);
    for (int i = 0; i < n_nodes; i++) {
        if (pki_key_new(&key, &e) || pki_csr_new(key, node[i], 1, &address, &csr, &e) ||
            pki_issue(ca, ca_key, csr, node[i], 10, &cert, &e))
            die("certificate", &e);
        identity[i] = (struct rpc_tls_files){put_file("ca.pem", i, xstrdup(ca)), put_file("node.pem", i, cert),
                                             put_file("node.key", i, key)};
        free(csr);
    }
    free(ca);
    free(ca_key);
}

static void on_beat(uv_timer_t *t) { (void)t; }
static void on_view(struct cdb_link *l, void *arg) { (void)l, (void)arg; }

static void on_commit(void *arg, int status, const struct err *e)
{
    if (status)
        die("transaction", e);
    *(bool *)arg = true;
}

static void commit(struct cdb_link *link, struct cdb_txn *t)
{
    bool done = false;
    cdb_txn_commit(link, t, "bench", on_commit, &done);
    while (!done)
        uv_run(&loop, UV_RUN_ONCE);
}

static void start_engines(struct cdb *db, const char *nbd)
{
    struct err e;
    for (int i = 0; i < n_nodes; i++) {
        char *fast = in_dir("fast", i), *capacity = in_dir("capacity", i);
        if (mkdir(fast, 0700) || mkdir(capacity, 0700)) {
            perror(dir);
            exit(1);
        }
        struct asan_conf c = {.db = db, .node_id = node[i], .cluster_uuid = volume, .tls = identity[i], .listen_address = "127.0.0.1",
                              .n_disks = 1, .journal_bytes = 1u << 30, .disks = {{disk[i], "d0", fast, capacity}},
                              .nbd_socket = i ? NULL : nbd};
        if (asan_start(&c, &engine[i], &e))
            die("engine", &e);
        asan_set_lease(engine[i], UINT64_MAX, 0);
    }
}

/* Rows, engines, then the ports by which the engines find each other. */
static void build(struct cdb *db, int64_t bytes, const char *nbd)
{
    struct cdb_link *link = cdb_link_open(db, &loop, on_view, NULL);
    uv_timer_t beat; /* a link alone does not keep the loop alive */
    uv_timer_init(&loop, &beat);
    uv_timer_start(&beat, on_beat, 10, 10);
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < n_nodes; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i + 1);
        rows_node(t, node[i], name, disk[i]);
    }
    rows_volume(t, volume, "bench", bytes, INT64_C(1) << 30, n_nodes, node[0]);
    commit(link, t);
    make_identities();
    start_engines(db, nbd);
    t = cdb_txn_new();
    for (int i = 0; i < n_nodes; i++)
        cdb_txn_set_int(t, CDB_T_NODE, node[i], CDB_NODE_storage_port, asan_port(engine[i]));
    commit(link, t);
    cdb_link_close(link);
    uv_close((uv_handle_t *)&beat, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"dir", 1, 0, 'd'}, {"size", 1, 0, 's'}, {"copies", 1, 0, 'c'}, {"vhost", 1, 0, 'v'},
                                            {"nbd", 1, 0, 'n'}, {0}};
    const char *vhost = NULL, *nbd = NULL;
    int64_t bytes = 0;
    sigset_t end;
    struct err e;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        switch (o) {
        case 'd': dir = optarg; break;
        case 's': bytes = strtoll(optarg, NULL, 0); break;
        case 'c': n_nodes = atoi(optarg); break;
        case 'v': vhost = optarg; break;
        case 'n': nbd = optarg; break;
        default: return 2;
        }
    }
    if (!dir || bytes <= 0 || (n_nodes != 1 && n_nodes != 3)) {
        fprintf(stderr, "usage: cohort-bench-node --dir DIR --size BYTES [--copies 1|3] [--vhost SOCKET] [--nbd SOCKET]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGINT);
    pthread_sigmask(SIG_BLOCK, &end, NULL);
    uv_loop_init(&loop);
    for (int i = 0; i < n_nodes; i++) {
        id_new(node[i]);
        id_new(disk[i]);
    }
    id_new(volume);
    build(cdb_mem_open(), bytes, nbd);
    if (vhost && asan_vhost_serve(engine[0], volume, vhost, &e))
        die("vhost", &e);
    printf("ready bench\n");
    fflush(stdout);
    int signo;
    sigwait(&end, &signo);
    if (vhost)
        asan_vhost_unserve(engine[0], vhost);
    for (int i = 0; i < n_nodes; i++)
        asan_stop(engine[i]);
    return 0;
}
