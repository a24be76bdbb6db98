/* TLS 1.3 under an NBD connection (NBD_OPT_STARTTLS), by memory BIOs: the socket's bytes go in and out through conn.c. We
 * show a certificate of the CA, the client another one of it or one that is known by its fingerprint: that it has the key, the
 * handshake proves; who signed it does not matter. See conn.h. */
#include <assert.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"

LOG_MODULE("nbd");

static int ssl_err(struct err *e, const char *what)
{
    char text[256] = "no detail";
    unsigned long n = ERR_get_error();
    if (n)
        ERR_error_string_n(n, text, sizeof text);
    ERR_clear_error();
    return err_set(e, E_INVAL, "NBD over TLS: %s: %s", what, text);
}

/* False: not one of a client. Fills ret_hex if it is. */
static bool known_client(const struct nbd_conn *c, X509 *x, char ret_hex[NBD_CLIENT_HEX + 1])
{
    const struct nbd_exports *ex = &c->srv->exports;
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (!x || !ex->known || X509_digest(x, EVP_sha256(), md, &n) != 1 || n != NBD_CLIENT_HEX / 2 ||
        X509_cmp_current_time(X509_get0_notBefore(x)) >= 0 || X509_cmp_current_time(X509_get0_notAfter(x)) <= 0)
        return false;
    char hex[NBD_CLIENT_HEX + 1];
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * (size_t)i, 3, "%02x", md[i]);
    if (!ex->known(ex->arg, hex))
        return false;
    memcpy(ret_hex, hex, sizeof hex);
    return true;
}

static int verify(X509_STORE_CTX *ctx, void *arg)
{
    (void)arg;
    if (X509_verify_cert(ctx) == 1)
        return 1;
    SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct nbd_conn *c = SSL_get_app_data(ssl);
    if (!known_client(c, X509_STORE_CTX_get0_cert(ctx), c->client))
        return 0; /* why, X509_verify_cert() has said */
    X509_STORE_CTX_set_error(ctx, X509_V_OK);
    return 1;
}

int nbd_tls_open(const struct nbd_conf *conf, struct ssl_ctx_st **ret_ctx, struct err *e)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return ssl_err(e, "context");
    if (SSL_CTX_use_certificate_file(ctx, conf->tls_cert, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, conf->tls_key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_load_verify_file(ctx, conf->tls_ca) != 1) {
        int rc = ssl_err(e, conf->tls_cert);
        SSL_CTX_free(ctx);
        return rc;
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(ctx, verify, NULL);
    /* The cluster's certificates serve both roles. */
    X509_VERIFY_PARAM_set_purpose(SSL_CTX_get0_param(ctx), X509_PURPOSE_ANY);
    *ret_ctx = ctx;
    return E_OK;
}

void nbd_tls_close(struct ssl_ctx_st *ctx)
{
    SSL_CTX_free(ctx);
}

void nbd_tls_start(struct nbd_conn *c)
{
    SSL *ssl = SSL_new(c->srv->tls);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    if (!ssl || !in || !out)
        abort(); /* no memory */
    SSL_set_bio(ssl, in, out);
    SSL_set_app_data(ssl, c);
    SSL_set_accept_state(ssl);
    c->ssl = ssl;
    c->cipher = xmalloc(NBD_RBUF_BYTES);
}

void nbd_tls_free(struct nbd_conn *c)
{
    SSL_free(c->ssl);
    free(c->cipher);
}

bool nbd_tls_input(struct nbd_conn *c, size_t n)
{
    int taken = BIO_write(SSL_get_rbio(c->ssl), c->cipher, (int)n);
    return taken == (int)n;
}

char *nbd_tls_output(struct nbd_conn *c, size_t *ret_len)
{
    int have = (int)BIO_ctrl_pending(SSL_get_wbio(c->ssl));
    char *out = have > 0 ? xmalloc((size_t)have) : NULL;
    if (out)
        have = BIO_read(SSL_get_wbio(c->ssl), out, have);
    *ret_len = have > 0 ? (size_t)have : 0;
    return out;
}

bool nbd_tls_encrypt(struct nbd_conn *c, const void *data, size_t len)
{
    assert(len <= INT_MAX);
    return !len || SSL_write(c->ssl, data, (int)len) == (int)len; /* a memory BIO takes all */
}

/* What the handshake wants to say goes out; false: it failed. */
static bool handshake(struct nbd_conn *c)
{
    int rc = SSL_do_handshake(c->ssl), why = SSL_get_error(c->ssl, rc);
    nbd_conn_flush_tls(c);
    if (rc == 1 || why == SSL_ERROR_WANT_READ)
        return true;
    struct err e = {0};
    ssl_err(&e, "client refused");
    log_info("%s", e.msg);
    return false;
}

int nbd_tls_read(struct nbd_conn *c, void *to, size_t room)
{
    if (!SSL_is_init_finished(c->ssl)) {
        if (!handshake(c))
            return -1;
        if (!SSL_is_init_finished(c->ssl))
            return 0;
    }
    int n = room ? SSL_read(c->ssl, to, room < INT_MAX ? (int)room : INT_MAX) : 0;
    if (n > 0)
        return n;
    bool wait = !room || SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_READ;
    ERR_clear_error();
    return wait ? 0 : -1;
}
