/* Throw-away CAs and node certificates for unit tests of layers below cluster/pki.h. */
#ifndef COHORT_TESTS_TESTCERT_H
#define COHORT_TESTS_TESTCERT_H

#include <stdbool.h>

/* Writes DIR/<name>-ca.pem and DIR/<name>-ca.key. */
void testcert_ca(const char *dir, const char *name);
/* Writes DIR/<name>.pem and DIR/<name>.key, signed by <ca>; SAN URI cohort:node:<node_id>, or none when node_id is NULL. */
void testcert_node(const char *dir, const char *ca, const char *name, const char *node_id, bool expired);

#endif
