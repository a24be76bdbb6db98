/* Keys, certificates, join tokens: OpenSSL 3. */
#include "cluster/pki.h"
#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"

#define CA_DAYS 3650
#define NODE_DAYS 3650
/* Clocks of nodes differ: certificates are valid from a day before they are made. */
#define BACKDATE_S 86400

static int ssl_err(struct err *e, int code, const char *what)
{
    char text[160] = "no detail";
    unsigned long n = ERR_get_error();
    if (n)
        ERR_error_string_n(n, text, sizeof text);
    ERR_clear_error();
    return err_set(e, code, "%s: %s", what, text);
}

static char *bio_text(BIO *b)
{
    char *data;
    long n = BIO_get_mem_data(b, &data);
    char *text = xmalloc((size_t)n + 1);
    memcpy(text, data, (size_t)n);
    text[n] = 0;
    BIO_free(b);
    return text;
}

static char *cert_pem(X509 *c)
{
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(b, c);
    return bio_text(b);
}

static char *key_pem(EVP_PKEY *k)
{
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_PKCS8PrivateKey(b, k, NULL, NULL, 0, NULL, NULL);
    return bio_text(b);
}

static X509 *cert_of(const char *pem)
{
    BIO *b = BIO_new_mem_buf(pem, -1);
    X509 *c = PEM_read_bio_X509(b, NULL, NULL, NULL);
    BIO_free(b);
    return c;
}

static EVP_PKEY *key_of(const char *pem)
{
    BIO *b = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *k = PEM_read_bio_PrivateKey(b, NULL, NULL, NULL);
    BIO_free(b);
    return k;
}

static void extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    if (!x || !X509_add_ext(cert, x, -1))
        abort(); /* out of memory: the values are ours */
    X509_EXTENSION_free(x);
}

static X509 *new_cert(const char *cn, EVP_PKEY *key, int days)
{
    X509 *c = X509_new();
    uint8_t serial[16];
    if (!c || RAND_bytes(serial, sizeof serial) != 1)
        abort();
    serial[0] = (uint8_t)((serial[0] & 0x7f) | 0x40); /* positive and always of full length */
    BIGNUM *n = BN_bin2bn(serial, sizeof serial, NULL);
    BN_to_ASN1_INTEGER(n, X509_get_serialNumber(c));
    BN_free(n);
    X509_set_version(c, 2);
    X509_gmtime_adj(X509_getm_notBefore(c), -BACKDATE_S);
    X509_gmtime_adj(X509_getm_notAfter(c), days * 86400l);
    X509_set_pubkey(c, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(c), "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1, -1, 0);
    return c;
}

int pki_make_ca(const char *cluster_name, char **ret_cert, char **ret_key, struct err *e)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    if (!key)
        return ssl_err(e, E_IO, "make the CA's key");
    char cn[65];
    snprintf(cn, sizeof cn, "Cohort CA %.54s", cluster_name); /* X.520: a common name has at most 64 characters */
    X509 *c = new_cert(cn, key, CA_DAYS);
    X509_set_issuer_name(c, X509_get_subject_name(c));
    extend(c, c, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
    extend(c, c, NID_key_usage, "critical,keyCertSign,cRLSign");
    extend(c, c, NID_subject_key_identifier, "hash");
    int rc = X509_sign(c, key, EVP_sha256()) ? 0 : ssl_err(e, E_IO, "sign the CA's certificate");
    if (!rc) {
        *ret_cert = cert_pem(c);
        *ret_key = key_pem(key);
    }
    X509_free(c);
    EVP_PKEY_free(key);
    return rc;
}

int pki_make_csr(const char *node_id, const char *node_name, const char *address, char **ret_csr, char **ret_key, struct err *e)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509_REQ *req = X509_REQ_new();
    int rc = 0;
    if (!key || !req) {
        rc = ssl_err(e, E_IO, "make the node's key");
        goto out;
    }
    X509_REQ_set_version(req, 0);
    X509_NAME_add_entry_by_txt(X509_REQ_get_subject_name(req), "CN", MBSTRING_UTF8, (const unsigned char *)node_id, -1, -1, 0);
    X509_REQ_set_pubkey(req, key);
    if (!X509_REQ_sign(req, key, EVP_sha256())) {
        rc = ssl_err(e, E_IO, "sign the certificate request");
        goto out;
    }
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_REQ(b, req);
    *ret_csr = bio_text(b);
    *ret_key = key_pem(key);
out:
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return rc;
}

static int check_names(const char *node_id, const char *node_name, const char *address, struct err *e)
{
    struct id id;
    uint8_t ip[16];
    if (!id_parse(node_id, &id))
        return err_set(e, E_INVAL, "'%s' is not a node id", node_id);
    if (inet_pton(AF_INET, address, ip) != 1 && inet_pton(AF_INET6, address, ip) != 1)
        return err_set(e, E_INVAL, "'%s' is not an IP address", address);
    if (!node_name[0] || strlen(node_name) > 63 || strspn(node_name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(node_name))
        return err_set(e, E_INVAL, "'%s' is not a node name", node_name);
    return 0;
}

int pki_issue(const char *ca_cert, const char *ca_key, const char *csr, const char *node_id, const char *node_name,
              const char *address, char **ret_cert, struct err *e)
{
    int rc = check_names(node_id, node_name, address, e);
    if (rc)
        return rc;
    X509 *ca = cert_of(ca_cert), *c = NULL;
    EVP_PKEY *ck = key_of(ca_key), *pub = NULL;
    BIO *b = BIO_new_mem_buf(csr, -1);
    X509_REQ *req = PEM_read_bio_X509_REQ(b, NULL, NULL, NULL);
    BIO_free(b);
    if (!ca || !ck) {
        rc = ssl_err(e, E_CORRUPT, "the cluster's CA");
        goto out;
    }
    if (!req || !(pub = X509_REQ_get_pubkey(req)) || X509_REQ_verify(req, pub) != 1) {
        rc = ssl_err(e, E_INVAL, "not a valid certificate request");
        goto out;
    }
    c = new_cert(node_id, pub, NODE_DAYS);
    X509_set_issuer_name(c, X509_get_subject_name(ca));
    char san[400];
    snprintf(san, sizeof san, "URI:cohort:node:%s,IP:%s,IP:127.0.0.1,DNS:localhost,DNS:%s", node_id, address, node_name);
    extend(c, ca, NID_basic_constraints, "critical,CA:FALSE");
    extend(c, ca, NID_key_usage, "critical,digitalSignature");
    extend(c, ca, NID_ext_key_usage, "serverAuth,clientAuth");
    extend(c, ca, NID_subject_alt_name, san);
    extend(c, ca, NID_subject_key_identifier, "hash");
    extend(c, ca, NID_authority_key_identifier, "keyid");
    if (X509_sign(c, ck, EVP_sha256()))
        *ret_cert = cert_pem(c);
    else
        rc = ssl_err(e, E_IO, "sign the node's certificate");
out:
    X509_free(c);
    X509_free(ca);
    X509_REQ_free(req);
    EVP_PKEY_free(pub);
    EVP_PKEY_free(ck);
    return rc;
}

static bool names_node(X509 *c, const char *node_id)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(c, NID_subject_alt_name, NULL, NULL);
    char want[80];
    bool found = false;
    snprintf(want, sizeof want, "cohort:node:%s", node_id);
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
        if (n->type == GEN_URI)
            found |= !strcmp((const char *)ASN1_STRING_get0_data(n->d.uniformResourceIdentifier), want);
    }
    GENERAL_NAMES_free(names);
    return found;
}

static int verify(X509 *ca, X509 *c, struct err *e)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    X509_STORE_add_cert(store, ca);
    X509_STORE_CTX_init(ctx, store, c, NULL);
    int rc = 0;
    if (X509_verify_cert(ctx) != 1) {
        int why = X509_STORE_CTX_get_error(ctx);
        BIO *b = BIO_new(BIO_s_mem());
        ASN1_TIME_print(b, X509_get0_notAfter(c));
        char *until = bio_text(b);
        if (why == X509_V_ERR_CERT_HAS_EXPIRED)
            rc = err_set(e, E_AUTH, "the certificate expired on %s", until);
        else if (why == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY || why == X509_V_ERR_CERT_SIGNATURE_FAILURE ||
                 why == X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT || why == X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE)
            rc = err_set(e, E_AUTH, "the certificate is not of this cluster's CA");
        else
            rc = err_set(e, E_AUTH, "the certificate is not valid: %s", X509_verify_cert_error_string(why));
        free(until);
    }
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    return rc;
}

int pki_check(const char *ca_cert, const char *cert, const char *key, const char *node_id, struct err *e)
{
    X509 *ca = cert_of(ca_cert), *c = cert_of(cert);
    EVP_PKEY *k = key ? key_of(key) : NULL;
    int rc;
    if (!ca)
        rc = ssl_err(e, E_AUTH, "the CA is not a certificate");
    else if (!c)
        rc = ssl_err(e, E_AUTH, "not a certificate");
    else if (!(rc = verify(ca, c, e))) {
        if (key && (!k || X509_check_private_key(c, k) != 1))
            rc = err_set(e, E_AUTH, "the private key does not belong to the certificate");
        else if (node_id && !names_node(c, node_id))
            rc = err_set(e, E_AUTH, "the certificate is not for node %s", node_id);
    }
    ERR_clear_error();
    X509_free(ca);
    X509_free(c);
    EVP_PKEY_free(k);
    return rc;
}

static void hex(const uint8_t *b, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        sprintf(ret + 2 * i, "%02x", b[i]);
}

void pki_sha256_hex(const void *data, size_t len, char ret_hex[65])
{
    uint8_t sum[SHA256_DIGEST_LENGTH];
    SHA256(data, len, sum);
    hex(sum, sizeof sum, ret_hex);
}

int pki_fingerprint(const char *cert, char ret_hex[65], struct err *e)
{
    X509 *c = cert_of(cert);
    uint8_t sum[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int rc = c && X509_digest(c, EVP_sha256(), sum, &n) ? 0 : ssl_err(e, E_INVAL, "not a certificate");
    if (!rc)
        hex(sum, n, ret_hex);
    X509_free(c);
    return rc;
}
