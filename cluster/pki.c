/* Certificates by OpenSSL 3. See pki.h. */
#include "cluster/pki.h"
#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

#define URI_PREFIX "cohort:node:"
#define CA_DAYS 3650
#define BACKDATE_S 86400 /* clocks of nodes differ; a certificate must be valid at once everywhere */
#define DAY_S 86400L

/* The oldest OpenSSL error of this thread in words; clears the queue. */
static int fail(struct err *e, int code, const char *what)
{
    unsigned long c = ERR_get_error();
    char text[160] = "no details";
    if (c)
        ERR_error_string_n(c, text, sizeof text);
    ERR_clear_error();
    return err_set(e, code, "%s: %s", what, text);
}

static char *bio_take(BIO *b)
{
    char *data;
    long n = BIO_get_mem_data(b, &data);
    char *r = xmalloc((size_t)n + 1);
    memcpy(r, data, (size_t)n);
    r[n] = '\0';
    BIO_free(b);
    return r;
}

static char *cert_to_pem(X509 *x)
{
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(b, x);
    return bio_take(b);
}

static char *key_to_pem(EVP_PKEY *k)
{
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_PrivateKey(b, k, NULL, NULL, 0, NULL, NULL);
    return bio_take(b);
}

/* Refuses to ask for a pass phrase on a terminal. */
static int no_password(char *buf, int size, int rw, void *arg) { return 0; }

static X509 *cert_from_pem(const char *pem, const char *what, struct err *e)
{
    BIO *b = BIO_new_mem_buf(pem, -1);
    X509 *x = PEM_read_bio_X509(b, NULL, no_password, NULL);
    BIO_free(b);
    if (!x) {
        ERR_clear_error();
        err_set(e, E_INVAL, "%s is not a PEM certificate", what);
    }
    return x;
}

static EVP_PKEY *key_from_pem(const char *pem, const char *what, struct err *e)
{
    BIO *b = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *k = PEM_read_bio_PrivateKey(b, NULL, no_password, NULL);
    BIO_free(b);
    if (!k) {
        ERR_clear_error();
        err_set(e, E_INVAL, "%s is not a PEM private key", what);
    }
    return k;
}

static bool name_set(X509_NAME *name, const char *common_name)
{
    return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, (const unsigned char *)"Cohort", -1, -1, 0) &&
           X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)common_name, -1, -1, 0);
}

static bool ext_add(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = ext && X509_add_ext(x, ext, -1);
    X509_EXTENSION_free(ext);
    return ok;
}

static bool serial_set(X509 *x)
{
    BIGNUM *n = BN_new();
    bool ok = n && BN_rand(n, 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x));
    BN_free(n);
    return ok;
}

static bool validity_set(X509 *x, int days)
{
    /* A negative number: it began and ended in the past. */
    long begin = days < 0 ? (days - 1) * DAY_S : -BACKDATE_S;
    return X509_gmtime_adj(X509_getm_notBefore(x), begin) && X509_gmtime_adj(X509_getm_notAfter(x), days * DAY_S);
}

int pki_ca_new(const char *cluster_name, char **ret_cert_pem, char **ret_key_pem, struct err *e)
{
    if (strlen(cluster_name) > 48)
        return err_set(e, E_INVAL, "the cluster's name is longer than 48 bytes");
    char cn[64];
    snprintf(cn, sizeof cn, "%s CA", cluster_name);
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    int status = 0;
    if (key && x && X509_set_version(x, X509_VERSION_3) && serial_set(x) && validity_set(x, CA_DAYS) &&
        name_set(X509_get_subject_name(x), cn) && X509_set_issuer_name(x, X509_get_subject_name(x)) &&
        X509_set_pubkey(x, key) && ext_add(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
        ext_add(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
        ext_add(x, x, NID_subject_key_identifier, "hash") && X509_sign(x, key, EVP_sha256())) {
        *ret_cert_pem = cert_to_pem(x);
        *ret_key_pem = key_to_pem(key);
    } else {
        status = fail(e, E_INVAL, "make the cluster's CA");
    }
    X509_free(x);
    EVP_PKEY_free(key);
    return status;
}

int pki_key_new(char **ret_key_pem, struct err *e)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    if (!key)
        return fail(e, E_NOMEM, "make a key");
    *ret_key_pem = key_to_pem(key);
    EVP_PKEY_free(key);
    return 0;
}

/* ---- names ---- */

static bool is_ip(const char *text)
{
    unsigned char b[16];
    return inet_pton(AF_INET, text, b) == 1 || inet_pton(AF_INET6, text, b) == 1;
}

static bool is_host_name(const char *text)
{
    size_t n = strlen(text);
    return n && n <= 253 && strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") == n;
}

int pki_csr_new(const char *key_pem, const char *node_id, size_t n, const char *const *addresses, char **ret_csr_pem, struct err *e)
{
    struct id id;
    if (!id_parse(node_id, &id))
        return err_set(e, E_INVAL, "\"%s\" is not a node id", node_id);
    struct buf names = {0};
    buf_printf(&names, "URI:" URI_PREFIX "%s,IP:127.0.0.1,IP:::1,DNS:localhost", node_id);
    for (size_t i = 0; i < n; i++) {
        if (!is_ip(addresses[i]) && !is_host_name(addresses[i])) {
            buf_free(&names);
            return err_set(e, E_INVAL, "\"%s\" is neither an IP address nor a host name", addresses[i]);
        }
        buf_printf(&names, ",%s:%s", is_ip(addresses[i]) ? "IP" : "DNS", addresses[i]);
    }
    char *san = buf_take(&names);
    EVP_PKEY *key = key_from_pem(key_pem, "the node's key", e);
    if (!key) {
        free(san);
        return E_INVAL;
    }
    X509_REQ *req = X509_REQ_new();
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, NULL, NULL, req, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, san);
    STACK_OF(X509_EXTENSION) *exts = sk_X509_EXTENSION_new_null();
    int status = 0;
    if (req && ext && exts && sk_X509_EXTENSION_push(exts, ext) > 0 && name_set(X509_REQ_get_subject_name(req), node_id) &&
        X509_REQ_set_pubkey(req, key) && X509_REQ_add_extensions(req, exts) && X509_REQ_sign(req, key, EVP_sha256())) {
        BIO *b = BIO_new(BIO_s_mem());
        PEM_write_bio_X509_REQ(b, req);
        *ret_csr_pem = bio_take(b);
    } else {
        status = fail(e, E_INVAL, "make a certificate request");
    }
    sk_X509_EXTENSION_free(exts);
    X509_EXTENSION_free(ext);
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    free(san);
    return status;
}

/* The node id among the names, which may otherwise only be addresses and host names. */
static int names_node(const GENERAL_NAMES *names, char ret_node_id[ID_LEN + 1], struct err *e)
{
    bool found = false;
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
        if (g->type == GEN_IPADD || g->type == GEN_DNS)
            continue;
        if (g->type != GEN_URI)
            return err_set(e, E_AUTH, "the certificate holds a name of an unexpected kind");
        const char *uri = (const char *)ASN1_STRING_get0_data(g->d.uniformResourceIdentifier);
        size_t n = (size_t)ASN1_STRING_length(g->d.uniformResourceIdentifier), p = strlen(URI_PREFIX);
        char text[ID_LEN + 1];
        struct id id;
        if (found || n != p + ID_LEN || memcmp(uri, URI_PREFIX, p))
            return err_set(e, E_AUTH, "the certificate's URI is not \"" URI_PREFIX "<node id>\"");
        memcpy(text, uri + p, ID_LEN);
        text[ID_LEN] = '\0';
        if (!id_parse(text, &id))
            return err_set(e, E_AUTH, "the certificate's URI holds no node id");
        id_format(&id, ret_node_id);
        found = true;
    }
    return found ? 0 : err_set(e, E_AUTH, "the certificate is not one of a Cohort node (no URI \"" URI_PREFIX "…\")");
}

static int cert_node(X509 *x, char ret_node_id[ID_LEN + 1], struct err *e)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    int r = names_node(names, ret_node_id, e);
    GENERAL_NAMES_free(names);
    return r;
}

int pki_cert_node(const char *cert_pem, char ret_node_id[ID_LEN + 1], struct err *e)
{
    X509 *x = cert_from_pem(cert_pem, "the certificate", e);
    int r = x ? cert_node(x, ret_node_id, e) : E_INVAL;
    X509_free(x);
    return r;
}

/* ---- issuing ---- */

/* The request's SAN extension, checked; NULL on failure. Caller frees. */
static X509_EXTENSION *csr_names(X509_REQ *req, const char *node_id, struct err *e)
{
    STACK_OF(X509_EXTENSION) *exts = X509_REQ_get_extensions(req);
    int at = exts ? X509v3_get_ext_by_NID(exts, NID_subject_alt_name, -1) : -1;
    X509_EXTENSION *san = at >= 0 ? X509_EXTENSION_dup(X509v3_get_ext(exts, at)) : NULL;
    GENERAL_NAMES *names = san ? X509V3_EXT_d2i(san) : NULL;
    char named[ID_LEN + 1];
    int r = names_node(names, named, e);
    if (!r && strcmp(named, node_id))
        r = err_set(e, E_AUTH, "the request is for node %s, not %s", named, node_id);
    GENERAL_NAMES_free(names);
    sk_X509_EXTENSION_pop_free(exts, X509_EXTENSION_free);
    if (r) {
        X509_EXTENSION_free(san);
        return NULL;
    }
    return san;
}

/* `san` may be NULL. */
static X509 *issue(X509 *ca, EVP_PKEY *ca_key, EVP_PKEY *key, X509_EXTENSION *san, const char *name, const char *usage, int days)
{
    X509 *x = X509_new();
    if (x && X509_set_version(x, X509_VERSION_3) && serial_set(x) && validity_set(x, days) &&
        name_set(X509_get_subject_name(x), name) && X509_set_issuer_name(x, X509_get_subject_name(ca)) &&
        X509_set_pubkey(x, key) && ext_add(x, ca, NID_basic_constraints, "critical,CA:FALSE") &&
        ext_add(x, ca, NID_key_usage, "critical,digitalSignature") &&
        ext_add(x, ca, NID_ext_key_usage, usage) &&
        ext_add(x, ca, NID_authority_key_identifier, "keyid:always") && (!san || X509_add_ext(x, san, -1)) &&
        X509_sign(x, ca_key, EVP_sha256()))
        return x;
    X509_free(x);
    return NULL;
}

int pki_issue(const char *ca_cert_pem, const char *ca_key_pem, const char *csr_pem, const char *node_id, int days,
              char **ret_cert_pem, struct err *e)
{
    X509 *ca = cert_from_pem(ca_cert_pem, "the cluster's CA", e), *x = NULL;
    EVP_PKEY *ca_key = ca ? key_from_pem(ca_key_pem, "the key of the cluster's CA", e) : NULL;
    BIO *b = BIO_new_mem_buf(csr_pem, -1);
    X509_REQ *req = PEM_read_bio_X509_REQ(b, NULL, no_password, NULL);
    X509_EXTENSION *san = NULL;
    int status = 0;
    BIO_free(b);
    if (!ca || !ca_key)
        status = E_INVAL;
    else if (!req)
        status = err_set(e, E_INVAL, "the certificate request is not PEM");
    else if (X509_REQ_verify(req, X509_REQ_get0_pubkey(req)) != 1)
        status = err_set(e, E_AUTH, "the certificate request is not signed by its own key");
    else if (!(san = csr_names(req, node_id, e)))
        status = E_AUTH;
    else if (!(x = issue(ca, ca_key, X509_REQ_get0_pubkey(req), san, node_id, "serverAuth,clientAuth", days)))
        status = fail(e, E_INVAL, "issue a certificate");
    else
        *ret_cert_pem = cert_to_pem(x);
    ERR_clear_error();
    X509_EXTENSION_free(san);
    X509_REQ_free(req);
    X509_free(x);
    X509_free(ca);
    EVP_PKEY_free(ca_key);
    return status;
}

int pki_client_new(const char *name, int days, char **ret_ca_pem, char **ret_cert_pem, char **ret_key_pem, struct err *e)
{
    char *ca_pem, *ca_key_pem;
    int status = pki_ca_new(name, &ca_pem, &ca_key_pem, e);
    if (status)
        return status;
    X509 *ca = cert_from_pem(ca_pem, "the client's CA", e), *x = NULL;
    EVP_PKEY *ca_key = key_from_pem(ca_key_pem, "the key of the client's CA", e), *key = EVP_EC_gen("P-256");
    if (ca && ca_key && key && (x = issue(ca, ca_key, key, NULL, name, "clientAuth", days))) {
        *ret_cert_pem = cert_to_pem(x);
        *ret_key_pem = key_to_pem(key);
        *ret_ca_pem = ca_pem;
    } else {
        status = fail(e, E_INVAL, "make a client's certificate");
        free(ca_pem);
    }
    OPENSSL_cleanse(ca_key_pem, strlen(ca_key_pem));
    free(ca_key_pem);
    X509_free(x);
    X509_free(ca);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(key);
    return status;
}

/* ---- checking ---- */

static void time_text(const ASN1_TIME *t, char *out, size_t n)
{
    BIO *b = BIO_new(BIO_s_mem());
    ASN1_TIME_print(b, t);
    char *text = bio_take(b);
    snprintf(out, n, "%s", text);
    free(text);
}

static int chain_error(X509 *x, int code, struct err *e)
{
    char when[64];
    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        time_text(X509_get0_notAfter(x), when, sizeof when);
        return err_set(e, E_AUTH, "the certificate expired on %s", when);
    case X509_V_ERR_CERT_NOT_YET_VALID:
        time_text(X509_get0_notBefore(x), when, sizeof when);
        return err_set(e, E_AUTH, "the certificate is valid only from %s: is this machine's clock right?", when);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_AKID_SKID_MISMATCH:
        return err_set(e, E_AUTH, "the certificate was not issued by this cluster's CA");
    default: return err_set(e, E_AUTH, "the certificate is refused: %s", X509_verify_cert_error_string(code));
    }
}

static int chain_check(X509 *ca, X509 *x, struct err *e)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    int status;
    if (!store || !ctx || !X509_STORE_add_cert(store, ca) || !X509_STORE_CTX_init(ctx, store, x, NULL))
        status = fail(e, E_NOMEM, "check the certificate");
    else if (X509_verify_cert(ctx) == 1)
        status = 0;
    else
        status = chain_error(x, X509_STORE_CTX_get_error(ctx), e);
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    ERR_clear_error();
    return status;
}

int pki_check(const char *ca_cert_pem, const char *cert_pem, const char *key_pem, const char *node_id, struct err *e)
{
    X509 *ca = cert_from_pem(ca_cert_pem, "the cluster's CA", e);
    X509 *x = ca ? cert_from_pem(cert_pem, "the node's certificate", e) : NULL;
    EVP_PKEY *key = x && key_pem ? key_from_pem(key_pem, "the node's key", e) : NULL;
    char named[ID_LEN + 1];
    int status = !ca || !x || (key_pem && !key) ? E_INVAL : chain_check(ca, x, e);
    if (!status)
        status = cert_node(x, named, e);
    if (!status && node_id && strcmp(named, node_id))
        status = err_set(e, E_AUTH, "the certificate is of node %s, not %s", named, node_id);
    if (!status && key && X509_check_private_key(x, key) != 1)
        status = err_set(e, E_AUTH, "the key does not belong to the certificate");
    ERR_clear_error();
    EVP_PKEY_free(key);
    X509_free(x);
    X509_free(ca);
    return status;
}

/* ---- digests ---- */

static void hex(const unsigned char *b, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", b[i]);
}

int pki_fingerprint(const char *cert_pem, char ret_hex[PKI_HEX_SHA256 + 1], struct err *e)
{
    X509 *x = cert_from_pem(cert_pem, "the certificate", e);
    if (!x)
        return E_INVAL;
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    bool ok = X509_digest(x, EVP_sha256(), md, &n) && n == PKI_HEX_SHA256 / 2;
    X509_free(x);
    if (!ok)
        return fail(e, E_INVAL, "fingerprint");
    hex(md, n, ret_hex);
    return 0;
}

void pki_sha256_hex(const char *text, char ret_hex[PKI_HEX_SHA256 + 1])
{
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (!EVP_Digest(text, strlen(text), md, &n, EVP_sha256(), NULL))
        abort(); /* only without memory */
    hex(md, n, ret_hex);
}
