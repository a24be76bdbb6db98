/* Transactions as recorded lists of operations. Private to cluster/; building them is in cdb.h.
 *
 * A transaction is evaluated by txn_apply() against one view: all preconditions look at the view as it is before, then
 * the changes are made in their order. That is what the twin does; with OVSDB the server does the same by the operations
 * of ovsdb_json.c.
 */
#ifndef COHORT_CLUSTER_TXN_H
#define COHORT_CLUSTER_TXN_H

#include <sys/queue.h>
#include "base/mailbox.h"
#include "cluster/cdb.h"
#include "cluster/row.h"
#include "cluster/view.h"

enum txn_kind { TXN_INSERT, TXN_DELETE, TXN_DISCARD /* delete if it is there */, TXN_SET, TXN_REQUIRE, TXN_REQUIRE_EXISTS, TXN_REQUIRE_ABSENT };

struct txn_op {
    enum txn_kind kind;
    enum cdb_table table;
    char *id;
    int col;            /* TXN_SET, TXN_REQUIRE */
    struct cdb_value v; /* likewise */
};

struct cdb_txn {
    struct txn_op *ops;
    size_t n, cap;

    /* Once committed. `link` and `canceled` change under the db's lock; `fn`, `arg`, `entry` belong to the link's loop. */
    struct cdb_link *link; /* NULL: the link is closed, nobody waits */
    bool canceled;         /* not to be carried out if not yet sent */
    char *note;
    cdb_txn_done *fn;      /* NULL: cancelled, no callback */
    void *arg;
    TAILQ_ENTRY(cdb_txn) entry; /* the link's pending list */

    /* The backend's, between submit and db_finish(). */
    TAILQ_ENTRY(cdb_txn) queue;
    const void *source;    /* identifies the link even after it is closed: keeps its transactions in order */

    int status;
    struct err err;
    struct mail mail;
};
TAILQ_HEAD(txn_list, cdb_txn);

void txn_destroy(struct cdb_txn *t); /* in any state that nobody refers to any more; NULL is fine */
/* If `t` writes events or tasks, also lets go of the oldest ones of `v` beyond CDB_EVENTS_KEPT, CDB_TASKS_KEPT (not of running
 * tasks). No precondition: two that trim the same row do not hinder each other. */
void txn_trim_logs(struct cdb_txn *t, const struct cdb_view *v);
MUST_CHECK int txn_check_values(const struct cdb_txn *t, struct err *e); /* E_INVAL: a text is not UTF-8 */
/* E_INVAL: a text is not UTF-8. E_CONFLICT: a precondition or a unique column. On failure `edit` is in an undefined
 * state and must be aborted. */
MUST_CHECK int txn_apply(const struct cdb_txn *t, const struct cdb_view *v, struct view_edit *edit, struct err *e);

#endif
