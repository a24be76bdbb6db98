/* Keys and certificates of the cluster, and join tokens.
 *
 * One CA per cluster (EC P-256, ten years; certificate and key live in the database, so any node can admit another). Each
 * node has a key of its own and a certificate whose SAN holds URI "cohort:node:<node id>" (RPC, proto/tls.h), its address,
 * 127.0.0.1 and localhost (HTTPS). All texts are PEM. Pure apart from the generator and the clock; any thread.
 * Ownership: every ret_ text is malloc'ed, the caller frees. */
#ifndef COHORT_CLUSTER_PKI_H
#define COHORT_CLUSTER_PKI_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"

MUST_CHECK int pki_make_ca(const char *cluster_name, char **ret_cert, char **ret_key, struct err *e);
/* A fresh key and a request for `node_id` at `address`. */
MUST_CHECK int pki_make_csr(const char *node_id, const char *node_name, const char *address, char **ret_csr, char **ret_key, struct err *e);
/* Signs the request for exactly this node and address: what the request itself asks for beyond its public key is ignored.
 * E_INVAL: not a valid request (its own signature is checked). */
MUST_CHECK int pki_issue(const char *ca_cert, const char *ca_key, const char *csr, const char *node_id, const char *node_name,
                         const char *address, char **ret_cert, struct err *e);
/* Is `cert` a valid certificate of this CA, now, for `node_id` (NULL: any) and, if `key` is not NULL, for that key?
 * E_AUTH says what is wrong: expired on …, of another cluster's CA, for node …, key does not fit. */
MUST_CHECK int pki_check(const char *ca_cert, const char *cert, const char *key, const char *node_id, struct err *e);
/* sha256 of the certificate's DER form, 64 hex digits. */
MUST_CHECK int pki_fingerprint(const char *cert, char ret_hex[65], struct err *e);
void pki_sha256_hex(const void *data, size_t len, char ret_hex[65]);

/* ---- join token: what a new node needs to find the cluster and to trust it ---- */

struct join_token {
    char address[64];
    uint16_t port;            /* REST API of the node that made it */
    char ca_fingerprint[65];  /* the API's certificate must chain to the CA with this sha256 */
    char secret[65];          /* 64 hex digits; the database has its sha256 only */
    char cluster[64];
};
/* "COHORT1." and base64url; caller frees. */
char *join_token_format(const struct join_token *t);
/* E_INVAL says what is wrong: not a token, cut off, of a newer version. */
MUST_CHECK int join_token_parse(const char *text, struct join_token *ret_token, struct err *e);

#endif
