/* Inside of the operations: one attempt loop for all of them. Private to daemon/ops*.c. */
#ifndef COHORT_DAEMON_OP_H
#define COHORT_DAEMON_OP_H

#include <sys/queue.h>
#include "daemon/ops.h"

struct op {
    struct ops *ops;
    const char *note; /* names the transaction in logs */
    /* Checks the request against `v` and fills `t`. May run several times; must not change the op but its scratch fields. */
    int (*build)(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e);
    /* After E_UNKNOWN or on a retry: is it already so? NULL: cannot be told. */
    bool (*happened)(const struct op *op, const struct cdb_view *v);
    op_done *done;
    void *arg;
    char id[ID_LEN + 1 + 15 + 1]; /* (a port's is its network's, "/" and the address) of the row made (fresh at allocation) or, set by build, changed */
    /* the loop's own */
    uv_timer_t timer;
    const struct cdb_view *built_on;
    uint64_t deadline_ms;
    int tries;
    bool committing, ended;
    LIST_ENTRY(op) entry;
};

/* Zeroed, `bytes` large (struct op is its first member), with a fresh id. */
void *op_new(struct ops *o, size_t bytes, const char *note, op_done *done, void *arg);
/* First attempt. On an error returned here the op is gone and `done` is not called. */
MUST_CHECK int op_start(struct op *op, struct err *e);

struct daemon *ops_daemon(const struct ops *o);
/* Adds a line to the cluster's event log in the same transaction. */
void op_event(struct op *op, struct cdb_txn *t, const char *severity, const char *object, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* Row inserts that several operations share. */
MUST_CHECK int volume_check(const struct cdb_view *v, const struct volume_spec *s, int64_t *ret_replicas, int64_t *ret_shard_bytes, struct err *e);
MUST_CHECK int volume_insert(const struct cdb_view *v, struct cdb_txn *t, const char *id, const struct volume_spec *s,
                             const char *owner, struct err *e);
MUST_CHECK int volume_deletable(const struct cdb_view *v, const struct cdb_volume *vol, const struct cdb_machine *but_for, struct err *e);
void volume_remove(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_volume *vol);
/* New owner ("" = none) under the next epoch, required to be the next. */
void volume_hand_over(struct cdb_txn *t, const struct cdb_volume *vol, const char *owner);
/* The volume in "<slot>:<volume id>"; NULL if the row is gone. */
const struct cdb_volume *disk_volume(const struct cdb_view *v, const char *entry);
/* What was written to the volume goes to a row of its own, to be dropped like a deleted volume; give it another `data` in `t`. */
void volume_doom_data(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_volume *vol);
/* Copies of the shard that count and whose node and disk are there. */
int volume_live_copies(const struct cdb_view *v, const struct cdb_shard *s);
/* Task row `op->id` by which the engine takes a snapshot (storage/asan/engine/snap.c says what `what` holds). */
void ops_snapshot_task(const struct op *op, struct cdb_txn *t, const char *object, const char *node, int n, const struct cdb_smap *what);
/* Text behind "<slot>:". */
const char *slot_value(const char *entry);

#endif
