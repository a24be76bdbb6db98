/* member_init(): a new cluster of one node. See member.h. */
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "cluster/cdb.h"
#include "cluster/dbserver.h"
#include "cluster/member_priv.h"
#include "cluster/pki.h"

#define LEASE_MS 5000
#define COMMIT_TIMEOUT_MS 30000

int member_run_server(const struct db_conf *db, int (*work)(uv_loop_t *loop, void *arg, struct err *e), void *arg, struct err *e)
{
    uv_loop_t loop;
    struct dbserver *server;
    int rc = uv_loop_init(&loop);
    if (rc)
        return err_set(e, E_NOMEM, "%s", uv_strerror(rc));
    int r = dbserver_open(&loop, db, &server, e);
    if (!r) {
        r = work ? work(&loop, arg, e) : 0;
        dbserver_close(server);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    return r;
}

struct first {
    const struct member_conf *conf;
    const struct db_conf *db;
    const char *cluster_name, *ca_pem, *ca_key_pem, *secret;
    struct member_id id;

    bool done;
    int status;
    struct err err;
};

static void rows_cluster(struct cdb_txn *t, const struct first *f)
{
    const char *id = "cluster";
    cdb_txn_insert(t, CDB_T_CLUSTER, id);
    cdb_txn_set_str(t, CDB_T_CLUSTER, id, CDB_CLUSTER_name, f->cluster_name);
    cdb_txn_set_str(t, CDB_T_CLUSTER, id, CDB_CLUSTER_uuid, f->id.cluster_uuid);
    cdb_txn_set_str(t, CDB_T_CLUSTER, id, CDB_CLUSTER_ca_cert, f->ca_pem);
    cdb_txn_set_str(t, CDB_T_CLUSTER, id, CDB_CLUSTER_ca_key, f->ca_key_pem);
    cdb_txn_set_int(t, CDB_T_CLUSTER, id, CDB_CLUSTER_format, 1);
    cdb_txn_set_int(t, CDB_T_CLUSTER, id, CDB_CLUSTER_lease_ms, LEASE_MS);
}

static void rows_node(struct cdb_txn *t, const struct first *f)
{
    const struct member_conf *c = f->conf;
    const char *id = f->id.node_id;
    cdb_txn_insert(t, CDB_T_NODE, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_name, c->node_name);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_addresses, 1, &c->address);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_storage_addresses, c->n_storage_addresses, c->storage_addresses);
    const struct { int col; int64_t v; } ints[] = {
        {CDB_NODE_control_port, c->control_port}, {CDB_NODE_storage_port, c->storage_port}, {CDB_NODE_api_port, c->api_port},
        {CDB_NODE_migrate_port, c->migrate_port}, {CDB_NODE_epoch, 1}, {CDB_NODE_cpus, c->cpus},
        {CDB_NODE_memory_bytes, c->memory_bytes}, {CDB_NODE_joined_ms, clock_wall_ms()}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        cdb_txn_set_int(t, CDB_T_NODE, id, ints[i].col, ints[i].v);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, "up");
    cdb_txn_set_bool(t, CDB_T_NODE, id, CDB_NODE_voter, true);
    const struct { int col; const char *v; } texts[] = {
        {CDB_NODE_accel, c->accel}, {CDB_NODE_accel_reason, c->accel_reason}, {CDB_NODE_version, c->version}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        cdb_txn_set_str(t, CDB_T_NODE, id, texts[i].col, texts[i].v ? texts[i].v : "");
}

static void row_disk(struct cdb_txn *t, const struct first *f, const struct member_disk *d)
{
    char id[ID_LEN + 1];
    id_new(id);
    cdb_txn_insert(t, CDB_T_DISK, id);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_node, f->id.node_id);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_name, d->name);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_fast_path, d->fast_path);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_capacity_path, d->capacity_path);
    cdb_txn_set_int(t, CDB_T_DISK, id, CDB_DISK_size_bytes, d->size_bytes);
    cdb_txn_set_int(t, CDB_T_DISK, id, CDB_DISK_incarnation, 1);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_state, "up");
}

static void row_token(struct cdb_txn *t, const struct first *f)
{
    char id[ID_LEN + 1], hash[PKI_HEX_SHA256 + 1];
    id_new(id);
    pki_sha256_hex(f->secret, hash);
    cdb_txn_insert(t, CDB_T_TOKEN, id);
    cdb_txn_set_str(t, CDB_T_TOKEN, id, CDB_TOKEN_name, "admin");
    cdb_txn_set_str(t, CDB_T_TOKEN, id, CDB_TOKEN_hash, hash);
    cdb_txn_set_str(t, CDB_T_TOKEN, id, CDB_TOKEN_role, "admin");
    cdb_txn_set_str(t, CDB_T_TOKEN, id, CDB_TOKEN_creator, "cluster init");
}

static void committed(void *arg, int status, const struct err *e)
{
    struct first *f = arg;
    f->done = true;
    f->status = status;
    f->err = *e;
}

static void timed_out(uv_timer_t *t)
{
    struct first *f = t->data;
    f->done = true;
    f->status = err_set(&f->err, E_TIMEOUT, "the database server does not answer");
}

static int insert_first(uv_loop_t *loop, void *arg, struct err *e)
{
    struct first *f = arg;
    char *sock = db_sock(f->db);
    struct cdb_conf conf = {.remotes = sock, .client = f->id.node_id};
    struct cdb *db;
    int r = cdb_open(&conf, &db, e);
    free(sock);
    if (r)
        return r;
    uv_timer_t timer;
    uv_timer_init(loop, &timer);
    timer.data = f;
    uv_timer_start(&timer, timed_out, COMMIT_TIMEOUT_MS, 0);
    struct cdb_link *link = cdb_link_open(db, loop, NULL, NULL);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_absent(t, CDB_T_CLUSTER, "cluster");
    rows_cluster(t, f);
    rows_node(t, f);
    for (size_t i = 0; i < f->conf->n_disks; i++)
        row_disk(t, f, &f->conf->disks[i]);
    row_token(t, f);
    cdb_txn_commit(link, t, "cluster init", committed, f);
    while (!f->done)
        uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&timer, NULL);
    cdb_link_close(link);
    uv_run(loop, UV_RUN_DEFAULT);
    cdb_close(db);
    return f->status ? err_set(e, f->status, "%s", f->err.msg) : 0;
}

static int make_certificates(const struct first *f, char **ret_ca, char **ret_ca_key, struct err *e)
{
    char *key = NULL, *csr = NULL, *cert = NULL;
    int r = pki_ca_new(f->cluster_name, ret_ca, ret_ca_key, e);
    if (!r)
        r = pki_key_new(&key, e);
    if (!r)
        r = pki_csr_new(key, f->id.node_id, 1, &f->conf->address, &csr, e);
    if (!r)
        r = pki_issue(*ret_ca, *ret_ca_key, csr, f->id.node_id, PKI_NODE_DAYS, &cert, e);
    if (!r)
        r = pki_check(*ret_ca, cert, key, f->id.node_id, e);
    if (!r)
        r = member_write_pki(f->conf, *ret_ca, cert, key, e);
    free(key);
    free(csr);
    free(cert);
    return r;
}

static int write_admin_token(const struct first *f, struct err *e)
{
    char *path = xasprintf("%s/admin.token", f->conf->state_dir), *text = xasprintf("%s\n", f->secret);
    int r = file_write(path, text, strlen(text), 0600, e);
    free(text);
    free(path);
    return r;
}

int member_init(const struct member_conf *c, const char *cluster_name, struct member_id *ret_id,
                char ret_secret[2 * TOKEN_SECRET_BYTES + 1], struct err *e)
{
    struct db_conf db;
    struct member_db_paths paths;
    char *ca = NULL, *ca_key = NULL, secret[2 * TOKEN_SECRET_BYTES + 1];
    struct first f = {.conf = c, .db = &db, .cluster_name = cluster_name, .secret = secret};
    if (!cluster_name[0])
        return err_set(e, E_INVAL, "a cluster needs a name");
    member_db_conf(c, &db, &paths);
    int r = member_begin(c, e);
    id_new(f.id.node_id);
    id_new(f.id.cluster_uuid);
    token_new_secret(secret);
    if (!r)
        r = make_certificates(&f, &ca, &ca_key, e);
    f.ca_pem = ca;
    f.ca_key_pem = ca_key;
    if (!r)
        r = db_files_create(&db, e);
    if (!r)
        r = member_run_server(&db, insert_first, &f, e);
    if (!r)
        r = write_admin_token(&f, e);
    if (!r)
        r = member_write_id(c, &f.id, e);
    free(ca);
    free(ca_key);
    member_db_conf_free(&paths);
    if (r) {
        err_wrap(e, "make the cluster");
        return r;
    }
    *ret_id = f.id;
    memcpy(ret_secret, secret, sizeof secret);
    return 0;
}
