/* REST: founding a cluster, joining one (on the new node), and admitting a node (on a member). */
#include <arpa/inet.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/htab.h"
#include "base/log.h"
#include "cluster/pki.h"
#include "cluster/token.h"
#include "cluster/voters.h"
#include "daemon/join.h"
#include "daemon/rest.h"
#include "daemon/wire.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("rest")

#define N(a) (sizeof(a) / sizeof *(a))
#define JOIN_TTL_S 3600

/* ---- init and join: seconds of blocking work, in a worker thread ---- */

struct founding {
    uv_work_t work;
    struct rest_req *rq;
    struct rest *r; /* NULL: the API closed meanwhile */
    struct daemon *d;
    char cluster[64];
    struct join_token token;
    bool join;
    int rc;
    struct err err;
    struct member_id id;
    char secret[2 * TOKEN_SECRET_BYTES + 1];
};

static void found_work(uv_work_t *w)
{
    struct founding *f = container_of(w, struct founding, work);
    struct member_conf c;
    struct member_disk disks[CONF_DISKS_MAX];
    daemon_member_conf(f->d, &c, disks);
    f->rc = f->join ? join_cluster(&c, &f->token, &f->id, &f->err) : member_init(&c, f->cluster, &f->id, f->secret, &f->err);
}

static void found_done(uv_work_t *w, int status)
{
    struct founding *f = container_of(w, struct founding, work);
    struct rest_req *rq = f->rq;
    if (!f->r) {
        log_warn("cluster %s: the daemon stopped before its end; if node.json is there this node is a member at the next start", f->join ? "join" : "init");
        free(f);
        return;
    }
    f->r->founding = NULL;
    if (status != 0)
        f->rc = err_set(&f->err, E_CANCELED, "the daemon is stopping");
    if (f->rc == E_OK) {
        f->rc = daemon_become_member(f->d, &f->err);
        if (f->rc != E_OK)
            err_wrap(&f->err, "this node is a member now, but not everything started");
    }
    if (f->rc != E_OK) {
        log_err("cluster %s: %s", f->join ? "join" : "init", f->err.msg);
        rest_fail(rq, &f->err);
    } else if (f->join) {
        rest_ok(rq, 200, json_pack("{s:s, s:s, s:s}", "cluster", f->token.cluster, "cluster_uuid", f->id.cluster_uuid, "node_id", f->id.node_id));
    } else {
        rest_ok(rq, 200, json_pack("{s:s, s:s, s:s, s:s}", "cluster", f->cluster, "cluster_uuid", f->id.cluster_uuid, "node_id", f->id.node_id,
                                   "admin_token", f->secret));
    }
    free(f);
}

static void found(struct rest_req *rq, struct founding *f)
{
    struct err e;
    if (rq->r->d->member || rq->r->founding) {
        err_set(&e, E_EXISTS, "this node is in a cluster already%s\nsee cohort cluster status", rq->r->founding ? ", or on its way into one" : "");
        free(f);
        rest_fail(rq, &e);
        return;
    }
    f->rq = rq;
    f->r = rq->r;
    f->d = rq->r->d;
    rq->r->founding = f;
    if (uv_queue_work(rq->r->d->loop, &f->work, found_work, found_done) != 0)
        abort(); /* fails only for a missing callback */
}

void founding_forget(struct founding *f)
{
    if (f)
        f->r = NULL;
}

void rest_cluster_init(struct rest_req *rq)
{
    const char *name = NULL;
    struct err e;
    const struct jin_field f[] = {{"name", JIN_STR, true, &name}};
    if (!rest_read(rq, f, N(f)))
        return;
    if (jin_name_check("cluster", name, &e) != E_OK) {
        rest_fail(rq, &e);
        return;
    }
    struct founding *w = xcalloc(1, sizeof *w);
    snprintf(w->cluster, sizeof w->cluster, "%s", name);
    found(rq, w);
}

void rest_cluster_join(struct rest_req *rq)
{
    const char *text = NULL;
    struct err e;
    const struct jin_field f[] = {{"token", JIN_STR, true, &text, 1, TOKEN_TEXT_MAX}};
    if (!rest_read(rq, f, N(f)))
        return;
    struct founding *w = xcalloc(1, sizeof *w);
    w->join = true;
    if (token_parse(text, &w->token, &e) != E_OK) {
        free(w);
        rest_fail(rq, &e);
        return;
    }
    found(rq, w);
}

/* ---- join tokens ---- */

struct token_req {
    struct token_spec spec;
    struct join_token token;
    char name[32], hash[65];
};

static void token_made(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    struct token_req *k = rq->priv;
    if (status != E_OK) {
        rest_fail(rq, e);
        return;
    }
    char *text = token_format(&k->token);
    rest_ok(rq, 200, json_pack("{s:s, s:s, s:s, s:I, s:s}", "id", id, "name", k->name, "role", "join", "expires_ms", (json_int_t)k->spec.expires_ms,
                               "token", text));
    free(text);
}

void rest_cluster_token(struct rest_req *rq)
{
    const char *role = "join";
    int64_t ttl_s = JOIN_TTL_S;
    struct err e;
    const struct jin_field f[] = {{"role", JIN_STR, false, &role}, {"ttl_s", JIN_INT, false, &ttl_s, 60, 7 * 86400}};
    if (!rest_read(rq, f, N(f)))
        return;
    if (strcmp(role, "join") != 0) {
        err_set(&e, E_INVAL, "role \"%.40s\" is not allowed here\nonly join; tokens for people and programs: cohort token create", role);
        rest_fail(rq, &e);
        return;
    }
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_cluster *c = v ? rest_find(rq, v, CDB_T_CLUSTER, "row of the cluster", "cluster") : NULL;
    if (!c)
        return;
    struct token_req *k = rest_priv(rq, sizeof *k);
    char random[9];
    if (pki_fingerprint(c->ca_cert, k->token.ca_sha256, &e) != E_OK) {
        rest_fail(rq, &e);
        return;
    }
    id_random_hex(random, 4);
    snprintf(k->name, sizeof k->name, "join-%s", random);
    snprintf(k->token.address, sizeof k->token.address, "%s", rq->r->d->conf.address);
    snprintf(k->token.cluster, sizeof k->token.cluster, "%.63s", c->name);
    k->token.port = rq->r->d->conf.api_port;
    token_new_secret(k->token.secret);
    pki_sha256_hex(k->token.secret, k->hash);
    k->spec = (struct token_spec){k->name, "join", k->hash, clock_wall_ms() + ttl_s * 1000, rq->who};
    rest_started(rq, op_token_create(rq->r->ops, &k->spec, token_made, rq, &e), &e);
}

/* ---- admitting a node ---- */

/* The CA certificate is no secret; a joining node compares its fingerprint with its token's. */
void rest_cluster_ca(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_cluster *c = v ? rest_find(rq, v, CDB_T_CLUSTER, "row of the cluster", "cluster") : NULL;
    if (c)
        rest_ok(rq, 200, json_pack("{s:s}", "ca_pem", c->ca_cert));
}

struct admit {
    struct join_spec spec;
    char hash[65], *cert_pem;
};

static void admit_free(void *p)
{
    struct admit *a = p;
    free(a->cert_pem);
    free(a);
}

static void admitted(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    struct admit *a = rq->priv;
    if (status != E_OK) {
        rest_fail(rq, e);
        return;
    }
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_cluster *c = v ? rest_find(rq, v, CDB_T_CLUSTER, "row of the cluster", "cluster") : NULL;
    if (!c)
        return;
    json_t *voters = json_array();
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (n->voter && strcmp(n->id, id) != 0 && n->addresses.n && (strcmp(n->state, "joining") != 0 || strcmp(n->id, rq->r->d->node_id) == 0))
            json_array_append_new(voters, json_string(n->addresses.v[0]));
    }
    log_info("node %s (%s) is admitted to the cluster", a->spec.name, a->spec.address);
    rest_ok(rq, 200, json_pack("{s:s, s:s, s:s, s:b, s:o}", "ca_pem", c->ca_cert, "cert_pem", a->cert_pem, "cluster_uuid", c->uuid,
                               "voter", a->spec.voter, "voters", voters));
}

static int read_join_disks(const json_t *list, struct join_spec *s, struct err *e)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct join_disk *d = &s->disks[s->n_disks++];
        char what[32];
        snprintf(what, sizeof what, "disks[%zu]", i);
        const struct jin_field f[] = {
            {"name", JIN_STR, true, &d->name, 1, 63}, {"fast_path", JIN_STR, true, &d->fast, 1, 4096},
            {"capacity_path", JIN_STR, true, &d->capacity, 1, 4096}, {"size_bytes", JIN_INT, true, &d->size_bytes, 0, INT64_MAX},
        };
        int rc = jin_read(json_array_get(list, i), what, f, N(f), e);
        if (rc == E_OK)
            rc = jin_name_check("disk", d->name, e);
        for (int k = 0; rc == E_OK && k + 1 < s->n_disks; k++)
            if (strcmp(s->disks[k].name, d->name) == 0)
                rc = err_set(e, E_INVAL, "disk name \"%s\" is there twice", d->name);
        if (rc != E_OK)
            return rc;
    }
    return E_OK;
}

static int read_join_links(const json_t *list, struct join_spec *s, struct err *e)
{
    struct in_addr a4;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!text || inet_pton(AF_INET, text, &a4) != 1 || !a4.s_addr)
            return err_set(e, E_INVAL, "storage_addresses[%zu]: not an IPv4 address", i);
        for (int k = 0; k < s->n_storage_addresses; k++)
            if (!strcmp(s->storage_addresses[k], text))
                return err_set(e, E_INVAL, "storage_addresses[%zu]: %s is there twice", i, text);
        s->storage_addresses[s->n_storage_addresses++] = text;
    }
    return E_OK;
}

static bool read_join(struct rest_req *rq, struct join_spec *s, const char **ret_secret, const char **ret_csr)
{
    json_t *disks = NULL, *links = NULL;
    struct err e;
    struct id id;
    unsigned char addr[16];
    const struct jin_field f[] = {
        {"secret", JIN_STR, true, ret_secret, 1, 200}, {"node_id", JIN_STR, true, &s->node_id}, {"csr_pem", JIN_STR, true, ret_csr, 1, 16384},
        {"name", JIN_STR, true, &s->name}, {"address", JIN_STR, true, &s->address, 1, 45},
        {"control_port", JIN_INT, true, &s->control_port, 1, 65535}, {"storage_port", JIN_INT, true, &s->storage_port, 1, 65535},
        {"migrate_port", JIN_INT, true, &s->migrate_port, 1, 65535}, {"api_port", JIN_INT, true, &s->api_port, 1, 65535},
        {"cpus", JIN_INT, true, &s->cpus, 1, 4096}, {"memory_bytes", JIN_INT, true, &s->memory_bytes, 0, INT64_C(1) << 50},
        {"accel", JIN_STR, true, &s->accel}, {"accel_reason", JIN_STR, false, &s->accel_reason, 0, 500},
        {"version", JIN_STR, true, &s->version, 1, 40}, {"disks", JIN_ARRAY, true, &disks, 0, 16},
        {"storage_addresses", JIN_ARRAY, false, &links, 0, N(s->storage_addresses)},
    };
    if (!rest_read(rq, f, N(f)))
        return false;
    int rc = read_join_disks(disks, s, &e);
    if (rc == E_OK)
        rc = read_join_links(links, s, &e);
    if (rc == E_OK && !id_parse(s->node_id, &id))
        rc = err_set(&e, E_INVAL, "field \"node_id\": is not an id");
    if (rc == E_OK && inet_pton(AF_INET, s->address, addr) != 1 && inet_pton(AF_INET6, s->address, addr) != 1)
        rc = err_set(&e, E_INVAL, "field \"address\": \"%s\" is not an IP address", s->address);
    if (rc == E_OK && strcmp(s->accel, "kvm") != 0 && strcmp(s->accel, "tcg") != 0)
        rc = err_set(&e, E_INVAL, "field \"accel\": must be kvm or tcg");
    if (rc != E_OK)
        rest_fail(rq, &e);
    return rc == E_OK;
}

void rest_join_request(struct rest_req *rq)
{
    const char *secret = NULL, *csr = NULL;
    struct err e;
    struct admit *a = rest_priv(rq, sizeof *a);
    rq->free_priv = admit_free;
    a->spec.accel_reason = "";
    if (!read_join(rq, &a->spec, &secret, &csr))
        return;
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_cluster *c = v ? rest_find(rq, v, CDB_T_CLUSTER, "row of the cluster", "cluster") : NULL;
    if (!c)
        return;
    pki_sha256_hex(secret, a->hash);
    a->spec.token_hash = a->hash;
    a->spec.voter = voters_join(v);
    int rc = ops_join_check(v, &a->spec, &e); /* before anything is signed */
    if (rc == E_OK)
        rc = pki_issue(c->ca_cert, c->ca_key, csr, a->spec.node_id, PKI_NODE_DAYS, &a->cert_pem, &e);
    if (rc == E_OK)
        rc = op_node_join(rq->r->ops, &a->spec, admitted, rq, &e);
    rest_started(rq, rc, &e);
}
