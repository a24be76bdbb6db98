/* Shared by member.c and init.c. */
#ifndef COHORT_CLUSTER_MEMBER_PRIV_H
#define COHORT_CLUSTER_MEMBER_PRIV_H

#include <uv.h>
#include "cluster/member.h"

/* Not a member yet: clears away what an interrupted attempt left. */
MUST_CHECK int member_begin(const struct member_conf *c, struct err *e);
MUST_CHECK int member_write_id(const struct member_conf *c, const struct member_id *id, struct err *e);
/* Each text may be NULL: not written. */
MUST_CHECK int member_write_pki(const struct member_conf *c, const char *ca_pem, const char *cert_pem, const char *key_pem,
                                struct err *e);
/* Starts the database server, which stays; meanwhile `work` (may be NULL) runs on a loop of its own: it returns when
 * it has no more handles than it was given. */
MUST_CHECK int member_run_server(const struct db_conf *db, int (*work)(uv_loop_t *loop, void *arg, struct err *e), void *arg,
                                 struct err *e);

#endif
