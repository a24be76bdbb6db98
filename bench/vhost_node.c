/* One storage engine on the in-memory database: a volume with one copy, served to a QEMU guest and over NBD. What
 * bench/vhost.py measures; also a small process to point a profiler at.
 *
 * cohort-bench-node --dir DIR --size BYTES --vhost SOCKET [--nbd SOCKET]
 * DIR is emptied by the caller. Prints "ready VOLUME" (its name for NBD) and ends in good order on SIGTERM. */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "cluster/pki.h"
#include "storage/asan/engine/asan.h"

static const char *dir;
static uv_loop_t loop;
static char node[ID_LEN + 1], disk[ID_LEN + 1], volume[ID_LEN + 1];

static _Noreturn void die(const char *what, const struct err *e)
{
    fprintf(stderr, "cohort-bench-node: %s: %s\n", what, e->msg);
    exit(1);
}

static char *in_dir(const char *name)
{
    char *p = NULL;
    if (asprintf(&p, "%s/%s", dir, name) < 0)
        abort();
    return p;
}

static char *put_file(const char *name, char *pem)
{
    struct err e;
    char *p = in_dir(name);
    if (file_write(p, pem, strlen(pem), 0600, &e))
        die(name, &e);
    free(pem);
    return p;
}

static struct rpc_tls_files identity(void)
{
    char *ca, *ca_key, *key, *csr, *cert;
    const char *address = "127.0.0.1";
    struct err e;
    if (pki_ca_new("bench", &ca, &ca_key, &e) || pki_key_new(&key, &e) || pki_csr_new(key, node, 1, &address, &csr, &e) ||
        pki_issue(ca, ca_key, csr, node, 10, &cert, &e))
        die("certificate", &e);
    free(csr);
    free(ca_key);
    return (struct rpc_tls_files){put_file("ca.pem", ca), put_file("node.pem", cert), put_file("node.key", key)};
}

static void on_beat(uv_timer_t *t) { (void)t; }
static void on_view(struct cdb_link *l, void *arg) { (void)l, (void)arg; }

static void on_commit(void *arg, int status, const struct err *e)
{
    if (status)
        die("transaction", e);
    *(bool *)arg = true;
}

static void make_rows(struct cdb *db, int64_t bytes)
{
    struct cdb_link *link = cdb_link_open(db, &loop, on_view, NULL);
    struct cdb_txn *t = cdb_txn_new();
    const char *address = "127.0.0.1";
    bool done = false;
    uv_timer_t beat; /* a link alone does not keep the loop alive */
    uv_timer_init(&loop, &beat);
    uv_timer_start(&beat, on_beat, 10, 10);
    cdb_txn_insert(t, CDB_T_NODE, node);
    cdb_txn_set_str(t, CDB_T_NODE, node, CDB_NODE_name, "n1");
    cdb_txn_set_strs(t, CDB_T_NODE, node, CDB_NODE_addresses, 1, &address);
    cdb_txn_set_str(t, CDB_T_NODE, node, CDB_NODE_state, "up");
    cdb_txn_insert(t, CDB_T_DISK, disk);
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_node, node);
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_name, "d0");
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_state, "up");
    cdb_txn_set_int(t, CDB_T_DISK, disk, CDB_DISK_size_bytes, INT64_C(1) << 40);
    cdb_txn_set_int(t, CDB_T_DISK, disk, CDB_DISK_incarnation, 1);
    cdb_txn_insert(t, CDB_T_VOLUME, volume);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_name, "bench");
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_size_bytes, bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_shard_bytes, INT64_C(1) << 30);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_replicas, 1);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume, CDB_VOLUME_epoch, 1);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_owner, node);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_purpose, "disk");
    cdb_txn_set_str(t, CDB_T_VOLUME, volume, CDB_VOLUME_state, "ready");
    cdb_txn_commit(link, t, "bench", on_commit, &done);
    while (!done)
        uv_run(&loop, UV_RUN_ONCE);
    cdb_link_close(link);
    uv_close((uv_handle_t *)&beat, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"dir", 1, 0, 'd'}, {"size", 1, 0, 's'}, {"vhost", 1, 0, 'v'}, {"nbd", 1, 0, 'n'}, {0}};
    const char *vhost = NULL, *nbd = NULL;
    int64_t bytes = 0;
    sigset_t end;
    struct err e;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        switch (o) {
        case 'd': dir = optarg; break;
        case 's': bytes = strtoll(optarg, NULL, 0); break;
        case 'v': vhost = optarg; break;
        case 'n': nbd = optarg; break;
        default: return 2;
        }
    }
    if (!dir || !vhost || bytes <= 0) {
        fprintf(stderr, "usage: cohort-bench-node --dir DIR --size BYTES --vhost SOCKET [--nbd SOCKET]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGINT);
    pthread_sigmask(SIG_BLOCK, &end, NULL);
    uv_loop_init(&loop);
    id_new(node);
    id_new(disk);
    id_new(volume);
    struct cdb *db = cdb_mem_open();
    char *fast = in_dir("fast"), *capacity = in_dir("capacity");
    if (mkdir(fast, 0700) || mkdir(capacity, 0700)) {
        perror(dir);
        return 1;
    }
    make_rows(db, bytes);
    struct asan_conf c = {.db = db, .node_id = node, .cluster_uuid = node, .tls = identity(), .listen_address = "127.0.0.1",
                          .n_disks = 1, .journal_bytes = 1u << 30, .disks = {{disk, "d0", fast, capacity}}, .nbd_socket = nbd};
    struct asan *a;
    if (asan_start(&c, &a, &e))
        die("engine", &e);
    asan_set_lease(a, UINT64_MAX, 0);
    if (asan_vhost_serve(a, volume, vhost, &e))
        die("vhost", &e);
    printf("ready bench\n");
    fflush(stdout);
    int signo;
    sigwait(&end, &signo);
    asan_vhost_unserve(a, vhost);
    asan_stop(a);
    return 0;
}
