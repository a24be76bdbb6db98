/* Task reporter: long work as a row of the Task table, with progress, for as long as it runs.
 *
 * For the link's loop. Progress is written at most once a second and only while nothing of this task is under way; the end
 * is always written (it waits for a quorum if it must). The row may be missing when a transaction fails: reporting never
 * stops the work itself. */
#ifndef COHORT_CLUSTER_TASK_H
#define COHORT_CLUSTER_TASK_H

#include "cluster/cdb.h"

struct task;

/* `kind` "migrate", `object` "vm web1", `unit` bytes|items|percent; `total` in it, 0 = not known yet. Texts are copied. */
struct task *task_begin(struct cdb_link *l, const char *kind, const char *object, const char *node, const char *unit, int64_t total);
void task_progress(struct task *t, int64_t done, int64_t total);
bool task_cancel_asked(const struct task *t);
const char *task_id(const struct task *t); /* its row's */
/* `state` done|failed|canceled. `t` is gone for the caller; NULL is fine. */
void task_end(struct task *t, const char *state, const char *message);
/* The link is about to close: forgets the task (its row stays "running" until someone cleans up). */
void task_drop(struct task *t);

/* Ends the rows of `node` that a previous life of its daemon left "running". */
struct cdb_txn *task_txn_interrupted(const struct cdb_view *v, const char *node); /* NULL if there are none */

#endif
