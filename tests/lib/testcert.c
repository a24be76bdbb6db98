/* Throw-away certificates by OpenSSL. */
#include "tests/lib/testcert.h"
#include <assert.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>

static FILE *file(const char *dir, const char *name, const char *suffix, const char *mode)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s%s", dir, name, suffix);
    FILE *f = fopen(path, mode);
    assert(f);
    return f;
}

static void put(const char *dir, const char *name, const char *cert_suffix, const char *key_suffix, X509 *cert, EVP_PKEY *key)
{
    FILE *f = file(dir, name, cert_suffix, "w");
    assert(PEM_write_X509(f, cert));
    fclose(f);
    f = file(dir, name, key_suffix, "w");
    assert(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL));
    fclose(f);
}

static void extend(X509 *cert, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, cert, cert, NULL, NULL, 0);
    X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    assert(x && X509_add_ext(cert, x, -1));
    X509_EXTENSION_free(x);
}

static X509 *blank(const char *cn, EVP_PKEY *key, bool expired)
{
    static int serial;
    X509 *c = X509_new();
    X509_set_version(c, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(c), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(c), -7200);
    X509_gmtime_adj(X509_getm_notAfter(c), expired ? -3600 : 3600);
    X509_set_pubkey(c, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(c), "CN", MBSTRING_ASC, (const unsigned char *)cn, -1, -1, 0);
    return c;
}

void testcert_ca(const char *dir, const char *name)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *c = blank(name, key, false);
    X509_set_issuer_name(c, X509_get_subject_name(c));
    extend(c, NID_basic_constraints, "critical,CA:TRUE");
    assert(X509_sign(c, key, EVP_sha256()));
    put(dir, name, "-ca.pem", "-ca.key", c, key);
    X509_free(c);
    EVP_PKEY_free(key);
}

void testcert_node(const char *dir, const char *ca, const char *name, const char *node_id, bool expired)
{
    FILE *f = file(dir, ca, "-ca.pem", "r");
    X509 *issuer = PEM_read_X509(f, NULL, NULL, NULL);
    fclose(f);
    f = file(dir, ca, "-ca.key", "r");
    EVP_PKEY *ca_key = PEM_read_PrivateKey(f, NULL, NULL, NULL), *key = EVP_EC_gen("P-256");
    fclose(f);
    assert(issuer && ca_key);
    X509 *c = blank(name, key, expired);
    X509_set_issuer_name(c, X509_get_subject_name(issuer));
    if (node_id) {
        char san[128];
        snprintf(san, sizeof san, "URI:cohort:node:%s", node_id);
        extend(c, NID_subject_alt_name, san);
    }
    assert(X509_sign(c, ca_key, EVP_sha256()));
    put(dir, name, ".pem", ".key", c, key);
    X509_free(c);
    X509_free(issuer);
    EVP_PKEY_free(key);
    EVP_PKEY_free(ca_key);
}
