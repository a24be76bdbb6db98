/* TLS 1.3 contexts and peer identity. Private to proto/. */
#ifndef COHORT_PROTO_TLS_H
#define COHORT_PROTO_TLS_H

#include <openssl/ssl.h>
#include "proto/rpc.h"

/* One context for both directions: our certificate, the cluster's CA as the only trust, peers must have one too. */
MUST_CHECK int tls_context(const struct rpc_tls_files *files, SSL_CTX **ret_ctx, char ret_self[ID_LEN + 1], struct err *e);
/* The node id of a certificate: its SAN URI "cohort:node:<id>". False if it has none. */
bool tls_cert_node(X509 *cert, char ret_id[ID_LEN + 1]);
/* The peer's, after the handshake. */
bool tls_peer_node(SSL *ssl, char ret_id[ID_LEN + 1]);
/* Appends OpenSSL's pending error to `e` under `what`, and clears it. */
int tls_err(struct err *e, int code, const char *what);

#endif
