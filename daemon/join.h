/* The joining node's side of `cluster join`: asks a member over HTTPS and becomes one. Blocking, for a worker thread.
 *
 *   token --(CA by its fingerprint)--> fetch CA, compare -> send CSR and facts over TLS checked against that CA
 *         -> certificate, voters -> databases joined -> node.json
 *
 * The secret of the token is sent only over a connection whose certificate chain ends in the pinned CA. */
#ifndef COHORT_DAEMON_JOIN_H
#define COHORT_DAEMON_JOIN_H

#include "cluster/member.h"

MUST_CHECK int join_cluster(const struct member_conf *c, const struct join_token *t, struct member_id *ret_id, struct err *e);

#endif
