/* The database thread: libopenvswitch's poll loop, one per process.
 *
 * libopenvswitch keeps per-thread and per-process state (poll loop, TLS identity, log), so everything that uses it runs
 * here: the cluster database client, aNet's clients of OVN and of the local switch. A user adds a hook: run() does what can
 * be done now, wait() registers with poll-loop.h what to wake up for. Hooks must not block.
 *
 * dbthread_ref() and dbthread_unref() count users; the thread lives from the first to the last. Functions without another
 * note may be called from any thread.
 */
#ifndef COHORT_CLUSTER_DBTHREAD_H
#define COHORT_CLUSTER_DBTHREAD_H

#include <stdbool.h>

typedef void dbthread_fn(void *arg);

void dbthread_ref(void);
void dbthread_unref(void); /* not from the database thread; hooks must be removed before */

/* Calls run(arg), later wait(arg), on the thread in every turn, beginning soon. Needs a dbthread_ref(). */
void dbthread_add(dbthread_fn *run, dbthread_fn *wait, void *arg);
/* When it returns, the hook with `arg` is not running and never will again. Also from within a hook's run(). */
void dbthread_remove(void *arg);
/* A turn follows soon. */
void dbthread_wake(void);
/* Runs fn(arg) on the thread and waits for its end (at once if called there). For set-up and closing: it must be short. */
void dbthread_call(dbthread_fn *fn, void *arg);
bool dbthread_here(void); /* is this the database thread? */

/* TLS identity for all ssl: connections of the process. Needs a dbthread_ref(). */
void dbthread_set_ssl(const char *key_pem, const char *cert_pem, const char *ca_pem);

#endif
