/* REST: NBD clients, their certificates and the volumes they may use. */
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "cluster/pki.h"
#include "daemon/rest.h"

#define N(a) (sizeof(a) / sizeof *(a))
#define DAY_S INT64_C(86400)

void rest_nbd_client_list(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    if (!v)
        return;
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_nbd_client_count(v); i++)
        json_array_append_new(a, json_nbd_client(v, cdb_nbd_client_at(v, i)));
    rest_ok(rq, 200, a);
}

void rest_nbd_client_get(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_nbd_client *row = v ? rest_find(rq, v, CDB_T_NBD_CLIENT, "NBD client", rq->arg[0]) : NULL;
    if (row)
        rest_ok(rq, 200, json_nbd_client(v, row));
}

struct creation {
    struct nbd_client_spec spec;
    char fingerprint[PKI_HEX_SHA256 + 1];
    char *ca, *certificate, *key; /* made here; key NULL: the client has its own */
};

static void creation_free(void *p)
{
    struct creation *k = p;
    if (k->key)
        OPENSSL_cleanse(k->key, strlen(k->key));
    free(k->ca);
    free(k->certificate);
    free(k->key);
    free(k);
}

/* What the client trusts: this cluster's nodes; and, for programs that check their own certificate, who issued that. */
static char *trusted(const struct rest_req *rq, const struct creation *k)
{
    struct err e;
    const struct cdb_view *v = ops_view(rq->r->ops, &e);
    const struct cdb_cluster *c = v ? cdb_cluster_get(v, "cluster") : NULL;
    return xasprintf("%s%s", c ? c->ca_cert : "", k->ca ? k->ca : "");
}

static void made(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    const struct creation *k = rq->priv;
    if (status != E_OK) {
        rest_fail(rq, e);
        return;
    }
    char *ca = trusted(rq, k);
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:s}", "id", id, "name", k->spec.name, "fingerprint", k->fingerprint,
                          "expires_ms", (json_int_t)k->spec.expires_ms, "ca", ca);
    free(ca);
    if (k->key) {
        json_object_set_new(o, "certificate", json_string(k->certificate));
        json_object_set_new(o, "key", json_string(k->key));
    }
    rest_ok(rq, 200, o);
}

/* The client's own certificate: any, but none of the cluster's CA, whose holders may do everything. */
static int own_certificate(const struct rest_req *rq, const char *pem, struct creation *k, struct err *e)
{
    struct err why;
    const struct cdb_view *v = ops_view(rq->r->ops, e);
    const struct cdb_cluster *c = v ? cdb_cluster_get(v, "cluster") : NULL;
    if (!c)
        return v ? err_set(e, E_CORRUPT, "the cluster's row is damaged") : E_UNAVAIL;
    int rc = pki_fingerprint(pem, k->fingerprint, e);
    if (rc == E_OK && pki_check(c->ca_cert, pem, NULL, NULL, &why) == E_OK)
        rc = err_set(e, E_INVAL, "this is a node's certificate\nwhoever has its key may use every volume; take one of the client's own");
    return rc;
}

void rest_nbd_client_create(struct rest_req *rq)
{
    struct creation *k = rest_priv(rq, sizeof *k);
    const char *pem = NULL;
    int64_t ttl_s = 0;
    struct err e;
    rq->free_priv = creation_free;
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &k->spec.name},
        {"certificate", JIN_STR, false, &pem, 1, 12000},
        {"ttl_s", JIN_INT, false, &ttl_s, 60, PKI_CLIENT_DAYS * DAY_S},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    int days = ttl_s ? (int)(ttl_s / DAY_S + 1) : PKI_CLIENT_DAYS, rc = jin_name_check("NBD client", k->spec.name, &e);
    if (rc == E_OK && pem)
        rc = own_certificate(rq, pem, k, &e);
    else if (rc == E_OK && (rc = pki_client_new(k->spec.name, days, &k->ca, &k->certificate, &k->key, &e)) == E_OK)
        rc = pki_fingerprint(k->certificate, k->fingerprint, &e);
    k->spec.fingerprint = k->fingerprint;
    k->spec.creator = rq->who;
    k->spec.expires_ms = ttl_s ? clock_wall_ms() + ttl_s * 1000 : 0;
    rest_started(rq, rc == E_OK ? op_nbd_client_create(rq->r->ops, &k->spec, made, rq, &e) : rc, &e);
}

void rest_nbd_client_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_nbd_client_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_nbd_client_access(struct rest_req *rq)
{
    struct nbd_access_spec *s = rest_priv(rq, sizeof *s);
    struct err e;
    const struct jin_field f[] = {{"volume", JIN_STR, true, &s->volume}, {"mode", JIN_STR, true, &s->mode}};
    if (!rest_read(rq, f, N(f)))
        return;
    if (strcmp(s->mode, "none") && strcmp(s->mode, "ro") && strcmp(s->mode, "rw")) {
        err_set(&e, E_INVAL, "mode \"%.40s\" is not allowed\nnone, ro or rw", s->mode);
        rest_fail(rq, &e);
        return;
    }
    rest_started(rq, op_nbd_access(rq->r->ops, rq->arg[0], s, rest_done, rq, &e), &e);
}
