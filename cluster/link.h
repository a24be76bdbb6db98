/* What the twin and the OVSDB client have in common: the current view, the links that follow it, and the way results
 * travel back to the loops. Private to cluster/.
 *
 * Threads: the backend publishes and finishes from its own thread (the twin: from any). Everything that both sides touch
 * is under `lock`; view contents and transaction operations are immutable once shared. A link's mailbox carries news and
 * results in order, so a view published before a result is installed before that result's callback.
 */
#ifndef COHORT_CLUSTER_LINK_H
#define COHORT_CLUSTER_LINK_H

#include <pthread.h>
#include "cluster/cdb.h"
#include "cluster/txn.h"

struct cdb_ops {
    /* Owns `t` until db_finish(). Called on a link's loop without the lock. */
    void (*submit)(struct cdb *db, struct cdb_txn *t);
    void (*canceled)(struct cdb *db); /* some transactions got their `canceled` flag: look for them */
    void (*set_remotes)(struct cdb *db, const char *remotes);
    void (*close)(struct cdb *db);    /* finishes what is left, frees the db */
};

struct cdb {
    const struct cdb_ops *ops;
    pthread_mutex_t lock;
    const struct cdb_view *view; /* NULL before the first contact */
    bool connected, local_leader;
    TAILQ_HEAD(, cdb_link) links;
};

void db_init(struct cdb *db, const struct cdb_ops *ops);
void db_destroy(struct cdb *db); /* the members, not the memory */
/* Makes `view` (a reference is taken; NULL: unchanged) and the flags current for all links. */
void db_publish(struct cdb *db, const struct cdb_view *view, bool connected, bool local_leader);
void db_finish(struct cdb *db, struct cdb_txn *t, int status, const struct err *e);
/* With the lock held; the same otherwise. */
void db_publish_locked(struct cdb *db, const struct cdb_view *view, bool connected, bool local_leader);
void db_finish_locked(struct cdb *db, struct cdb_txn *t, int status, const struct err *e);

#endif
