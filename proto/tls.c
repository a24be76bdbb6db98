/* TLS 1.3 contexts and peer identity. */
#include "proto/tls.h"
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>

#define NODE_URI "cohort:node:"

int tls_err(struct err *e, int code, const char *what)
{
    unsigned long n = ERR_get_error();
    char text[256] = "no detail";
    if (n)
        ERR_error_string_n(n, text, sizeof text);
    ERR_clear_error();
    return err_set(e, code, "%s: %s", what, text);
}

bool tls_cert_node(X509 *cert, char ret_id[ID_LEN + 1])
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    bool found = false;
    for (int i = 0; names && !found && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
        if (n->type != GEN_URI)
            continue;
        const char *uri = (const char *)ASN1_STRING_get0_data(n->d.uniformResourceIdentifier);
        size_t len = (size_t)ASN1_STRING_length(n->d.uniformResourceIdentifier), plen = strlen(NODE_URI);
        struct id id;
        if (len != plen + ID_LEN || memcmp(uri, NODE_URI, plen))
            continue;
        memcpy(ret_id, uri + plen, ID_LEN);
        ret_id[ID_LEN] = 0;
        found = id_parse(ret_id, &id);
    }
    GENERAL_NAMES_free(names);
    return found;
}

bool tls_peer_node(SSL *ssl, char ret_id[ID_LEN + 1])
{
    X509 *cert = SSL_get1_peer_certificate(ssl);
    bool ok = cert && SSL_get_verify_result(ssl) == X509_V_OK && tls_cert_node(cert, ret_id);
    X509_free(cert);
    return ok;
}

static int bad_file(struct err *e, const char *what, const char *path, const char *why)
{
    int rc = tls_err(e, E_INVAL, why);
    err_wrap(e, "%s %s", what, path);
    return rc;
}

static int load(SSL_CTX *ctx, const struct rpc_tls_files *f, struct err *e)
{
    if (SSL_CTX_use_certificate_file(ctx, f->cert_pem, SSL_FILETYPE_PEM) != 1)
        return bad_file(e, "certificate", f->cert_pem, "cannot be used");
    if (SSL_CTX_use_PrivateKey_file(ctx, f->key_pem, SSL_FILETYPE_PEM) != 1)
        return bad_file(e, "key", f->key_pem, "cannot be used, or does not fit the certificate");
    if (SSL_CTX_load_verify_file(ctx, f->ca_pem) != 1)
        return bad_file(e, "CA", f->ca_pem, "cannot be used");
    return 0;
}

int tls_context(const struct rpc_tls_files *files, SSL_CTX **ret_ctx, char ret_self[ID_LEN + 1], struct err *e)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    if (!ctx)
        return tls_err(e, E_NOMEM, "TLS context");
    int rc = load(ctx, files, e);
    if (rc)
        goto fail;
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    /* AES-128 first: the fastest of TLS 1.3's suites on every x86 with AES-NI. */
    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384");
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    /* Both roles use one certificate: its purpose is the cluster, not client or server. */
    X509_VERIFY_PARAM_set_purpose(SSL_CTX_get0_param(ctx), X509_PURPOSE_ANY);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(ctx, 1);
    if (!tls_cert_node(SSL_CTX_get0_certificate(ctx), ret_self)) {
        rc = err_set(e, E_INVAL, "certificate %s names no node (SAN URI %s<id> is missing)", files->cert_pem, NODE_URI);
        goto fail;
    }
    *ret_ctx = ctx;
    return 0;
fail:
    SSL_CTX_free(ctx);
    return rc;
}
