/* Certificates and join tokens: what is right passes, everything else is refused for the right reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "cluster/pki.h"

#define A_ID "aaaaaaaa-0000-4000-8000-00000000000a"
#define B_ID "bbbbbbbb-0000-4000-8000-00000000000b"

static char *ca, *ca_key, *csr, *key, *cert;

static int setup(void **state)
{
    struct err e = {0};
    assert_int_equal(pki_make_ca("test", &ca, &ca_key, &e), 0);
    assert_int_equal(pki_make_csr(A_ID, "n1", "192.0.2.11", &csr, &key, &e), 0);
    assert_int_equal(pki_issue(ca, ca_key, csr, A_ID, "n1", "192.0.2.11", &cert, &e), 0);
    return 0;
}

static int teardown(void **state)
{
    free(ca);
    free(ca_key);
    free(csr);
    free(key);
    free(cert);
    return 0;
}

static void refused(int rc, int code, const struct err *e, const char *part)
{
    assert_int_equal(rc, code);
    if (!strstr(e->msg, part))
        fail_msg("'%s' does not mention '%s'", e->msg, part);
}

static void test_good(void **state)
{
    struct err e = {0};
    assert_int_equal(pki_check(ca, cert, key, A_ID, &e), 0);
    assert_int_equal(pki_check(ca, cert, NULL, NULL, &e), 0);
    char fp[65];
    assert_int_equal(pki_fingerprint(ca, fp, &e), 0);
    assert_int_equal(strlen(fp), 64);
}

static void test_refusals(void **state)
{
    struct err e = {0};
    char *ca2, *ca2_key, *csr2, *key2, *out = NULL;
    assert_int_equal(pki_make_ca("other", &ca2, &ca2_key, &e), 0);
    assert_int_equal(pki_make_csr(B_ID, "n2", "192.0.2.12", &csr2, &key2, &e), 0);
    refused(pki_check(ca2, cert, key, A_ID, &e), E_AUTH, &e, "not of this cluster's CA");
    refused(pki_check(ca, cert, key2, A_ID, &e), E_AUTH, &e, "does not belong");
    refused(pki_check(ca, cert, key, B_ID, &e), E_AUTH, &e, "not for node");
    refused(pki_check(ca, "rubbish", key, A_ID, &e), E_AUTH, &e, "not a certificate");
    refused(pki_issue(ca, ca_key, "rubbish", A_ID, "n1", "192.0.2.11", &out, &e), E_INVAL, &e, "not a valid certificate request");
    refused(pki_issue(ca, ca_key, csr2, A_ID, "n1,DNS:evil", "192.0.2.11", &out, &e), E_INVAL, &e, "not a node name");
    refused(pki_issue(ca, ca_key, csr2, A_ID, "n1", "192.0.2.11,DNS:evil", &out, &e), E_INVAL, &e, "not an IP address");
    /* A request whose signature was tampered with. */
    char *bad = strdup(csr2), *middle = bad + strlen(bad) / 2;
    *middle = *middle == 'A' ? 'B' : 'A';
    assert_int_equal(pki_issue(ca, ca_key, bad, B_ID, "n2", "192.0.2.12", &out, &e), E_INVAL);
    assert_null(out);
    free(bad);
    free(ca2);
    free(ca2_key);
    free(csr2);
    free(key2);
}

static void test_token(void **state)
{
    struct join_token t = {.address = "192.0.2.11", .port = 7443, .cluster = "lab"}, r;
    struct err e = {0};
    memset(t.ca_fingerprint, 'a', 64);
    memset(t.secret, '7', 64);
    char *text = join_token_format(&t);
    assert_int_equal(join_token_parse(text, &r, &e), 0);
    assert_memory_equal(&t, &r, sizeof t);
    for (size_t n = strlen(text) - 1; n > 8; n--) { /* every truncation */
        char *cut = strndup(text, n);
        refused(join_token_parse(cut, &r, &e), E_INVAL, &e, "damaged");
        free(cut);
    }
    text[20] = text[20] == 'A' ? 'B' : 'A';
    refused(join_token_parse(text, &r, &e), E_INVAL, &e, "damaged");
    refused(join_token_parse("hello", &r, &e), E_INVAL, &e, "not a join token");
    refused(join_token_parse("COHORT2.abc", &r, &e), E_VERSION, &e, "newer");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_refusals), cmocka_unit_test(test_token)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
