/* Waiting for long work. The API has no way to be told, so a row is read again every POLL_MS until it says the end. */
#ifndef COHORT_CLI_WAIT_H
#define COHORT_CLI_WAIT_H

#include "cli/show.h"

/* Options of commands that can wait. */
#define WAIT_OPTS                                                            \
    {"wait", NULL, 0, "return when it is done"},                             \
    {"timeout", "TIME", 0, "with --wait: give up after this (default 5m; exit status 4)"}

enum waited { WAIT_ON, WAIT_OK, WAIT_FAILED }; /* FAILED: the judge has set c->fail */
/* Looks at the row; NULL: it does not exist (any more). */
typedef enum waited wait_judge(struct cli *c, const json_t *row, void *arg);

/* Reads `path` until `judge` is content. `ret` (may be NULL) gets the last answer. `what`: "vm web1 to run". A daemon that
 * is gone for a moment is asked again: --wait goes on over a restart of the daemon. */
int wait_for(struct cli *c, const char *path, wait_judge *judge, void *arg, const char *what, struct answer *ret);
int wait_gone(struct cli *c, const char *collection, const char *name);
/* Until the task ends; progress on a terminal. Failed or cancelled: EXIT_REFUSED with its message. */
int wait_task(struct cli *c, const char *id, struct answer *ret);
/* The same for the task that answer `a` names as its "id"; frees `a` unless it ends well. */
int wait_answer(struct cli *c, struct answer *a);

#endif
