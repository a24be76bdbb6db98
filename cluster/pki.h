/* The cluster's own certificate authority: EC P-256 keys, one CA certificate (10 years, kept in the Cluster row), one
 * certificate per node.
 *
 * A node's certificate names it by SAN URI "cohort:node:<node id>"; its addresses, 127.0.0.1 and localhost are further SANs,
 * so the same certificate serves RPC, OVSDB and HTTPS. The CA takes the names from the request only after checking them.
 *
 * Pure functions over PEM texts; thread-safe. Returned texts are the caller's to free(). Failures say what is wrong in words
 * for people: E_AUTH for a certificate that must not be trusted, E_INVAL for a text that is not what it should be.
 */
#ifndef COHORT_CLUSTER_PKI_H
#define COHORT_CLUSTER_PKI_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"

#define PKI_HEX_SHA256 64 /* characters, without NUL */

MUST_CHECK int pki_ca_new(const char *cluster_name, char **ret_cert_pem, char **ret_key_pem, struct err *e);
MUST_CHECK int pki_key_new(char **ret_key_pem, struct err *e);
/* `addresses`: IP addresses or host names besides localhost. */
MUST_CHECK int pki_csr_new(const char *key_pem, const char *node_id, size_t n, const char *const *addresses,
                           char **ret_csr_pem, struct err *e);
/* Certificate for `node_id` of `days` (negative: already expired, for tests) from a request that must be signed by its own
 * key and name exactly that node. */
MUST_CHECK int pki_issue(const char *ca_cert_pem, const char *ca_key_pem, const char *csr_pem, const char *node_id, int days,
                         char **ret_cert_pem, struct err *e);
#define PKI_NODE_DAYS 3650

/* A certificate for a client that the database knows by its fingerprint: `ret_ca_pem` is a CA made for it alone, whose key is gone.
 * The cluster's CA must not issue it: the database takes its certificates for those of nodes. `name` becomes its CN. */
MUST_CHECK int pki_client_new(const char *name, int days, char **ret_ca_pem, char **ret_cert_pem, char **ret_key_pem, struct err *e);
#define PKI_CLIENT_DAYS 3650

/* Is the certificate valid now, from this CA, for `node_id` (NULL: any node), and does `key_pem` (NULL: not checked)
 * belong to it? */
MUST_CHECK int pki_check(const char *ca_cert_pem, const char *cert_pem, const char *key_pem, const char *node_id, struct err *e);
/* The node named by the certificate; nothing else is checked. */
MUST_CHECK int pki_cert_node(const char *cert_pem, char ret_node_id[ID_LEN + 1], struct err *e);
/* sha256 of the certificate (DER), hex: what a join token pins. */
MUST_CHECK int pki_fingerprint(const char *cert_pem, char ret_hex[PKI_HEX_SHA256 + 1], struct err *e);

/* sha256 of a text, hex: how token secrets are kept in the database. */
void pki_sha256_hex(const char *text, char ret_hex[PKI_HEX_SHA256 + 1]);

#endif
