/* Asking an OVS daemon's control socket: one JSON-RPC request, one text as answer. Blocking with a time limit, so for
 * worker threads; libopenvswitch's own client has no limit and would hang with a hung server. */
#ifndef COHORT_CLUSTER_UNIXCTL_H
#define COHORT_CLUSTER_UNIXCTL_H

#include <stddef.h>
#include "base/err.h"

/* Caller frees *ret_text. E_UNAVAIL: nobody listens. E_TIMEOUT. E_INVAL: the daemon refused, in its words. E_PROTO. */
MUST_CHECK int unixctl_call(const char *socket_path, const char *method, size_t n_args, const char *const *args,
                            int timeout_ms, char **ret_text, struct err *e);

#endif
