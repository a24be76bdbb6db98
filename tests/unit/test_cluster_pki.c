/* CA, node certificates, join tokens: what must be accepted is, and everything else is refused with the right words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include "cluster/pki.h"
#include "cluster/token.h"

static char *ca, *ca_key, *key, *csr, *cert;
static char node[ID_LEN + 1];
static const char *const addresses[] = {"192.0.2.7", "2001:db8::7", "n7.example.org"};

static int setup(void **state)
{
    struct err e;
    id_new(node);
    return pki_ca_new("test", &ca, &ca_key, &e) || pki_key_new(&key, &e) || pki_csr_new(key, node, 3, addresses, &csr, &e) ||
           pki_issue(ca, ca_key, csr, node, PKI_NODE_DAYS, &cert, &e);
}

static int teardown(void **state)
{
    free(ca);
    free(ca_key);
    free(key);
    free(csr);
    free(cert);
    return 0;
}

static void refused(int status, int want, const struct err *e, const char *words)
{
    assert_int_equal(status, want);
    if (!strstr(e->msg, words))
        fail_msg("\"%s\" does not say \"%s\"", e->msg, words);
}

static void test_good(void **state)
{
    struct err e = {0};
    char id[ID_LEN + 1];
    assert_int_equal(pki_check(ca, cert, key, node, &e), 0);
    assert_int_equal(pki_check(ca, cert, NULL, NULL, &e), 0);
    assert_int_equal(pki_cert_node(cert, id, &e), 0);
    assert_string_equal(id, node);

    BIO *b = BIO_new_mem_buf(cert, -1);
    X509 *x = PEM_read_bio_X509(b, NULL, NULL, NULL);
    assert_int_equal(X509_check_ip_asc(x, "127.0.0.1", 0), 1);
    assert_int_equal(X509_check_ip_asc(x, "192.0.2.7", 0), 1);
    assert_int_equal(X509_check_ip_asc(x, "2001:db8::7", 0), 1);
    assert_int_equal(X509_check_host(x, "localhost", 0, 0, NULL), 1);
    assert_int_equal(X509_check_host(x, "n7.example.org", 0, 0, NULL), 1);
    assert_int_equal(X509_check_ip_asc(x, "192.0.2.8", 0), 0);
    assert_int_equal(X509_check_ca(x), 0);
    X509_free(x);
    BIO_free(b);
}

static void test_refused(void **state)
{
    struct err e;
    char other[ID_LEN + 1], *other_key, *other_ca, *other_ca_key, *bad;
    id_new(other);
    assert_int_equal(pki_ca_new("test", &other_ca, &other_ca_key, &e), 0); /* the same name, another key */
    assert_int_equal(pki_key_new(&other_key, &e), 0);

    refused(pki_check(ca, cert, key, other, &e), E_AUTH, &e, "is of node");
    refused(pki_check(ca, cert, other_key, node, &e), E_AUTH, &e, "does not belong");
    refused(pki_check(other_ca, cert, key, node, &e), E_AUTH, &e, "not issued by this cluster's CA");
    refused(pki_check(ca, other_ca, NULL, NULL, &e), E_AUTH, &e, "not issued by this cluster's CA");
    refused(pki_check(ca, ca, NULL, NULL, &e), E_AUTH, &e, "not one of a Cohort node"); /* right chain, not a node */
    refused(pki_check(ca, "nonsense", NULL, NULL, &e), E_INVAL, &e, "not a PEM certificate");
    refused(pki_check(ca, cert, "nonsense", NULL, &e), E_INVAL, &e, "not a PEM private key");

    assert_int_equal(pki_issue(ca, ca_key, csr, node, -3, &bad, &e), 0);
    refused(pki_check(ca, bad, key, node, &e), E_AUTH, &e, "expired on");
    free(bad);
    assert_int_equal(pki_issue(other_ca, other_ca_key, csr, node, 10, &bad, &e), 0);
    refused(pki_check(ca, bad, key, node, &e), E_AUTH, &e, "not issued by this cluster's CA");
    free(bad);
    free(other_key);
    free(other_ca);
    free(other_ca_key);
}

static void test_requests(void **state)
{
    struct err e;
    char other[ID_LEN + 1], *bad = NULL;
    id_new(other);
    refused(pki_issue(ca, ca_key, csr, other, 10, &bad, &e), E_AUTH, &e, "is for node");
    refused(pki_issue(ca, ca_key, "nonsense", node, 10, &bad, &e), E_INVAL, &e, "not PEM");
    refused(pki_issue(ca, ca_key, cert, node, 10, &bad, &e), E_INVAL, &e, "not PEM");
    char *damaged = strdup(csr); /* some byte of the signature */
    char *end = strstr(damaged, "-----END") - 12;
    *end = *end == 'A' ? 'B' : 'A';
    int r = pki_issue(ca, ca_key, damaged, node, 10, &bad, &e);
    assert_true(r == E_AUTH || r == E_INVAL);
    free(damaged);
    const char *odd[] = {"192.0.2.1,URI:cohort:node:evil"};
    refused(pki_csr_new(key, node, 1, odd, &bad, &e), E_INVAL, &e, "neither an IP address nor a host name");
    refused(pki_csr_new(key, "x", 0, NULL, &bad, &e), E_INVAL, &e, "not a node id");
    assert_null(bad);
}

/* A request that was not made by pki_csr_new(): no name, or one too many. */
static char *request_with(const char *san)
{
    BIO *kb = BIO_new_mem_buf(key, -1);
    EVP_PKEY *k = PEM_read_bio_PrivateKey(kb, NULL, NULL, NULL);
    X509_REQ *q = X509_REQ_new();
    X509_REQ_set_pubkey(q, k);
    if (san) {
        X509V3_CTX ctx;
        X509V3_set_ctx(&ctx, NULL, NULL, q, NULL, 0);
        STACK_OF(X509_EXTENSION) *exts = sk_X509_EXTENSION_new_null();
        sk_X509_EXTENSION_push(exts, X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, san));
        X509_REQ_add_extensions(q, exts);
        sk_X509_EXTENSION_pop_free(exts, X509_EXTENSION_free);
    }
    X509_REQ_sign(q, k, EVP_sha256());
    BIO *b = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_REQ(b, q);
    char *data, *r;
    long n = BIO_get_mem_data(b, &data);
    r = strndup(data, (size_t)n);
    BIO_free(b);
    BIO_free(kb);
    X509_REQ_free(q);
    EVP_PKEY_free(k);
    return r;
}

static void test_foreign_requests(void **state)
{
    char both[200], mail[200], other[ID_LEN + 1];
    id_new(other);
    snprintf(both, sizeof both, "URI:cohort:node:%s,URI:cohort:node:%s", node, other);
    snprintf(mail, sizeof mail, "URI:cohort:node:%s,email:root@example.org", node);
    const char *sans[] = {NULL, "DNS:localhost", both, mail, "URI:https://example.org/", "URI:cohort:node:short"};
    for (size_t i = 0; i < sizeof sans / sizeof *sans; i++) {
        struct err e;
        char *bad = NULL, *q = request_with(sans[i]);
        assert_int_equal(pki_issue(ca, ca_key, q, node, 10, &bad, &e), E_AUTH);
        assert_null(bad);
        free(q);
    }
}

/* The cluster's CA does not know it: the database would take it for a node's. */
static void test_client(void **state)
{
    struct err e = {0};
    char *own_ca, *client, *client_key;
    assert_int_equal(pki_client_new("backup1", PKI_CLIENT_DAYS, &own_ca, &client, &client_key, &e), 0);
    refused(pki_check(ca, client, NULL, NULL, &e), E_AUTH, &e, "not issued by this cluster's CA");
    refused(pki_check(own_ca, client, client_key, NULL, &e), E_AUTH, &e, "not one of a Cohort node"); /* the chain is good, though */
    free(own_ca);
    free(client);
    free(client_key);
}

static void test_digests(void **state)
{
    char hex[PKI_HEX_SHA256 + 1], again[PKI_HEX_SHA256 + 1];
    pki_sha256_hex("abc", hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180-2 B.1 */
    struct err e;
    assert_int_equal(pki_fingerprint(ca, hex, &e), 0);
    assert_int_equal(pki_fingerprint(cert, again, &e), 0);
    assert_string_not_equal(hex, again);
    refused(pki_fingerprint("x", hex, &e), E_INVAL, &e, "not a PEM certificate");
}

static void test_token(void **state)
{
    struct join_token t = {.address = "2001:db8::1", .port = 7443, .cluster = "Häuschen"}, u;
    struct err e;
    token_new_secret(t.secret);
    assert_int_equal(pki_fingerprint(ca, t.ca_sha256, &e), 0);
    char *text = token_format(&t), *padded = malloc(strlen(text) + 8);
    assert_int_equal(strncmp(text, "COHORT1.", 8), 0);
    assert_null(strpbrk(text, "+/= \n"));
    sprintf(padded, "  %s\r\n", text);
    assert_int_equal(token_parse(padded, &u, &e), 0);
    assert_memory_equal(&t, &u, sizeof t);

    for (size_t n = 0; n < strlen(text); n++) { /* every cut-off token is refused */
        char *cut = strndup(text, n);
        assert_int_not_equal(token_parse(cut, &u, &e), 0);
        free(cut);
    }
    refused(token_parse("hello", &u, &e), E_INVAL, &e, "not a join token");
    refused(token_parse("COHORT2.abcd", &u, &e), E_VERSION, &e, "another version");
    refused(token_parse("COHORT1.a+b/", &u, &e), E_INVAL, &e, "damaged");
    refused(token_parse("COHORT1.e30", &u, &e), E_INVAL, &e, "damaged"); /* {} */
    refused(token_parse("COHORT1.W10", &u, &e), E_INVAL, &e, "damaged"); /* [] */
    sprintf(padded, "%s x", text);
    refused(token_parse(padded, &u, &e), E_INVAL, &e, "more behind it");
    free(padded);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),             cmocka_unit_test(test_refused), cmocka_unit_test(test_requests),
        cmocka_unit_test(test_foreign_requests), cmocka_unit_test(test_client), cmocka_unit_test(test_digests), cmocka_unit_test(test_token),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
