/* The host's transactions about its guests. Each requires that the guest is still ours in this generation. */
#ifndef COHORT_DAEMON_GUEST_TXN_H
#define COHORT_DAEMON_GUEST_TXN_H

#include "daemon/daemon.h"

/* State and message as the host sees them. */
struct cdb_txn *guest_txn_state(struct daemon *d, const struct cdb_machine *m, const char *state, const char *message);
/* It no longer runs here and shall not: host and volumes are given up; `failed`: state failed instead of stopped. */
struct cdb_txn *guest_txn_stopped(struct daemon *d, const struct cdb_view *v, const struct cdb_machine *m, const char *message,
                                  bool failed);
/* Its process died: the next life, on this node. */
struct cdb_txn *guest_txn_again(struct daemon *d, const struct cdb_machine *m, const char *message);
/* Live migration's switchover: host, generation, owners and epochs in one. */
struct cdb_txn *guest_txn_moved(struct daemon *d, const struct cdb_view *v, const struct cdb_machine *m, const char *to);
/* The wish to migrate is dropped, with the reason. */
struct cdb_txn *guest_txn_not_moved(struct daemon *d, const struct cdb_machine *m, const char *message);

#endif
