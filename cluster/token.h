/* Join tokens: what an operator carries to a new node. "COHORT1." and base64url (RFC 4648 section 5, no padding) of
 * a JSON object {"a": address, "p": port, "f": CA fingerprint, "s": secret, "c": cluster name}.
 *
 * The fingerprint lets the new node trust the first connection; the secret, of which the database holds only the sha256,
 * lets the cluster trust the new node, once. Pure; thread-safe. */
#ifndef COHORT_CLUSTER_TOKEN_H
#define COHORT_CLUSTER_TOKEN_H

#include <stdint.h>
#include "base/err.h"
#include "cluster/pki.h"

#define TOKEN_SECRET_BYTES 24
#define TOKEN_TEXT_MAX 1024

struct join_token {
    char address[256];
    uint16_t port;      /* of the REST API (https) */
    char ca_sha256[PKI_HEX_SHA256 + 1];
    char secret[2 * TOKEN_SECRET_BYTES + 1];
    char cluster[64];
};

void token_new_secret(char ret_secret[2 * TOKEN_SECRET_BYTES + 1]);
/* Caller frees the text. */
char *token_format(const struct join_token *t);
/* E_INVAL with what is wrong with it: not a token, cut off, from a newer version. */
MUST_CHECK int token_parse(const char *text, struct join_token *ret_token, struct err *e);

#endif
