/* Identity of a member on its disk, and joining. member_init() is in init.c. See member.h. */
#include "cluster/member.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "cluster/dbserver.h"
#include "cluster/member_priv.h"
#include "cluster/pki.h"

#define FORMAT 1
#define JOIN_TIMEOUT_MS 60000
#define JOIN_POLL_MS 50

int member_load(const char *state_dir, struct member_id *ret_id, struct err *e)
{
    char *path = xasprintf("%s/node.json", state_dir), *text = NULL;
    int r = file_read(path, 4096, &text, NULL, e);
    json_t *j = r ? NULL : json_loads(text, 0, NULL);
    if (!r) {
        struct id id;
        const char *node = json_string_value(json_object_get(j, "node")), *cluster = json_string_value(json_object_get(j, "cluster"));
        json_int_t format = json_integer_value(json_object_get(j, "format"));
        if (format > FORMAT)
            r = err_set(e, E_VERSION, "%s is of format %lld; this program knows up to %d", path, (long long)format, FORMAT);
        else if (format != FORMAT || !node || !cluster || !id_parse(node, &id) || !id_parse(cluster, &id))
            r = err_set(e, E_CORRUPT, "%s does not hold a node's identity", path);
        else {
            memcpy(ret_id->node_id, node, ID_LEN + 1);
            memcpy(ret_id->cluster_uuid, cluster, ID_LEN + 1);
        }
    }
    json_decref(j);
    free(text);
    free(path);
    return r;
}

int member_write_id(const struct member_conf *c, const struct member_id *id, struct err *e)
{
    char *path = xasprintf("%s/node.json", c->state_dir);
    char *text = xasprintf("{\"format\": %d, \"node\": \"%s\", \"cluster\": \"%s\"}\n", FORMAT, id->node_id, id->cluster_uuid);
    int r = file_write(path, text, strlen(text), 0644, e);
    free(text);
    free(path);
    return r;
}

void member_db_conf(const struct member_conf *m, struct db_conf *ret_conf, struct member_db_paths *ret_store)
{
    *ret_store = (struct member_db_paths){
        xasprintf("%s/db", m->state_dir), xasprintf("%s/pki/ca.pem", m->state_dir), xasprintf("%s/pki/node.pem", m->state_dir),
        xasprintf("%s/pki/node.key", m->state_dir)};
    struct db_conf d = DB_CONF_DEFAULT;
    d.db_dir = ret_store->db_dir;
    d.run_dir = m->run_dir;
    d.address = m->address;
    d.ca_pem = ret_store->ca_pem;
    d.cert_pem = ret_store->cert_pem;
    d.key_pem = ret_store->key_pem;
    d.listen_any = !m->db_listen_address_only;
    if (m->election_ms)
        d.election_ms = m->election_ms;
    if (m->db_client_port)
        d.client_port = m->db_client_port;
    for (int i = 0; i < DB_N; i++)
        if (m->db_raft_port[i])
            d.raft_port[i] = m->db_raft_port[i];
    *ret_conf = d;
}

void member_db_conf_free(struct member_db_paths *s)
{
    free(s->db_dir);
    free(s->ca_pem);
    free(s->cert_pem);
    free(s->key_pem);
}

static int write_under(const char *dir, const char *name, const char *text, mode_t mode, struct err *e)
{
    char *path = xasprintf("%s/%s", dir, name);
    int r = file_write(path, text, strlen(text), mode, e);
    free(path);
    return r;
}

int member_write_pki(const struct member_conf *c, const char *ca_pem, const char *cert_pem, const char *key_pem, struct err *e)
{
    char *dir = xasprintf("%s/pki", c->state_dir);
    int r = file_mkdirs(dir, 0700, e);
    if (!r && key_pem)
        r = write_under(dir, "node.key", key_pem, 0600, e);
    if (!r && ca_pem)
        r = write_under(dir, "ca.pem", ca_pem, 0644, e);
    if (!r && cert_pem)
        r = write_under(dir, "node.pem", cert_pem, 0644, e);
    free(dir);
    return r;
}

static int remove_under(const char *dir, const char *name, struct err *e)
{
    char *path = xasprintf("%s/%s", dir, name);
    int r = unlink(path) < 0 && errno != ENOENT ? err_sys(e, errno, "delete %s", path) : 0;
    free(path);
    return r;
}

int member_forget(const struct member_conf *c, struct err *e)
{
    struct db_conf db;
    struct member_db_paths paths;
    member_db_conf(c, &db, &paths);
    int r = remove_under(c->state_dir, "node.json", e);
    if (!r)
        r = dbserver_kill(&db, e);
    if (!r)
        r = db_files_remove(&db, e);
    static const char *const rest[] = {"pki/node.key", "pki/node.pem", "pki/ca.pem", "admin.token"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest && !r; i++)
        r = remove_under(c->state_dir, rest[i], e);
    member_db_conf_free(&paths);
    return r;
}

int member_begin(const struct member_conf *c, struct err *e)
{
    struct member_id id;
    struct err probe;
    int r = member_load(c->state_dir, &id, &probe);
    if (!r)
        return err_set(e, E_EXISTS, "this node is a member of cluster %s already", id.cluster_uuid);
    if (r != E_NOTFOUND) {
        if (e)
            *e = probe;
        return r;
    }
    r = file_mkdirs(c->state_dir, 0755, e);
    if (!r)
        r = file_mkdirs(c->run_dir, 0755, e);
    return r ? r : member_forget(c, e);
}

/* ---- joining ---- */

int member_join_prepare(const struct member_conf *c, struct member_request *ret_request, struct err *e)
{
    struct member_request q = {0};
    char *key = NULL;
    int r = member_begin(c, e);
    if (!r)
        r = pki_key_new(&key, e);
    if (!r) {
        id_new(q.node_id);
        const char *names[] = {c->address};
        r = pki_csr_new(key, q.node_id, 1, names, &q.csr_pem, e);
    }
    if (!r)
        r = member_write_pki(c, NULL, NULL, key, e);
    free(key);
    if (r)
        free(q.csr_pem);
    else
        *ret_request = q;
    return r;
}

void member_request_free(struct member_request *q)
{
    free(q->csr_pem);
    q->csr_pem = NULL;
}

/* Everything the answering side sent, before anything of it is used. */
static int check_answer(const struct member_conf *c, const char *node_id, const char *ca_sha256, const struct member_answer *a,
                        struct err *e)
{
    struct id id;
    if (!a->ca_pem || !a->cert_pem || !a->cluster_uuid || !id_parse(a->cluster_uuid, &id) || !a->n_voters)
        return err_set(e, E_PROTO, "the cluster's answer is incomplete");
    char print[PKI_HEX_SHA256 + 1];
    int r = pki_fingerprint(a->ca_pem, print, e);
    if (r)
        return r;
    if (strcmp(print, ca_sha256))
        return err_set(e, E_AUTH, "the answering side's CA is not the one of the join token");
    char *key_path = xasprintf("%s/pki/node.key", c->state_dir), *key = NULL;
    r = file_read(key_path, 16384, &key, NULL, e);
    if (!r)
        r = pki_check(a->ca_pem, a->cert_pem, key, node_id, e);
    free(key);
    free(key_path);
    return r;
}

/* The server answers on its control socket soon after its start; it has joined when RAFT's leader has let it in. */
static int wait_joined(const struct db_conf *db, struct err *e)
{
    uint64_t deadline = clock_boot_ms() + JOIN_TIMEOUT_MS;
    for (int i = 0; i < DB_N;) {
        struct db_status s;
        if (!dbserver_status(db, i, &s, NULL) && !strcmp(s.status, "cluster member") && s.has_leader) {
            i++;
            continue;
        }
        if (clock_boot_ms() >= deadline)
            return err_set(e, E_TIMEOUT, "database %s did not join within %d s: can this node reach the others on port %u?",
                           db_names[i], JOIN_TIMEOUT_MS / 1000, db->raft_port[i]);
        /* The control socket has no notification; the interval only bounds how late we notice. */
        nanosleep(&(struct timespec){.tv_nsec = JOIN_POLL_MS * 1000000L}, NULL);
    }
    return 0;
}

static int join_databases(const struct db_conf *db, const struct member_answer *a, struct err *e)
{
    int r = db_files_join(db, a->n_voters, a->voters, e);
    if (!r)
        r = member_run_server(db, NULL, NULL, e);
    return r ? r : wait_joined(db, e);
}

int member_join_accept(const struct member_conf *c, const char *node_id, const char *ca_sha256, const struct member_answer *a,
                       struct member_id *ret_id, struct err *e)
{
    struct db_conf db;
    struct member_db_paths paths;
    int r = check_answer(c, node_id, ca_sha256, a, e);
    if (r) {
        err_wrap(e, "join");
        return r;
    }
    member_db_conf(c, &db, &paths);
    r = member_write_pki(c, a->ca_pem, a->cert_pem, NULL, e);
    if (!r) { /* where to find the database, for a node that serves none itself; the daemon keeps it up to date */
        char *remotes = db_remotes(a->n_voters, a->voters, db.client_port);
        r = write_under(c->state_dir, "voters", remotes, 0644, e);
        free(remotes);
    }
    if (!r && a->voter)
        r = join_databases(&db, a, e);
    struct member_id id;
    snprintf(id.node_id, sizeof id.node_id, "%s", node_id);
    snprintf(id.cluster_uuid, sizeof id.cluster_uuid, "%s", a->cluster_uuid);
    if (!r)
        r = member_write_id(c, &id, e);
    member_db_conf_free(&paths);
    if (r) {
        err_wrap(e, "join");
        return r;
    }
    *ret_id = id;
    return 0;
}
