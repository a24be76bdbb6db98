/* The cluster database as the rest of the daemon sees it: immutable views and conditional transactions.
 *
 * One `struct cdb` is the process's link to the database (the OVSDB client thread, or the in-memory twin for tests and
 * simulation). Each libuv loop that wants to see the database opens a `struct cdb_link` on it: views and transaction
 * results arrive on that loop. All cdb_link_* and cdb_txn_* functions are for that loop's thread.
 *
 * Consistency: a view is one state the database really had. A transaction is all or nothing and requires its
 * preconditions at commit time in the database, not in the view. When its result is E_OK, the link's view already
 * includes it. E_CONFLICT: a precondition failed (or a unique column clashed): re-read, decide again. E_UNKNOWN: the
 * connection broke after sending: it may or may not have happened, and the caller must find out from a later view;
 * preconditions are what makes a repetition safe. E_INVAL: the database refused the values.
 * Without a reachable quorum a transaction waits; it does not fail. Cancel it with cdb_txn_cancel().
 */
#ifndef COHORT_CLUSTER_CDB_H
#define COHORT_CLUSTER_CDB_H

#include <uv.h>
#include "base/err.h"
#include "cluster/schema.h"

struct cdb;
struct cdb_link;
struct cdb_txn;

/* ---- opening ---- */

struct cdb_conf {
    const char *remotes;      /* "unix:/run/cohort/db.sock" or "ssl:192.0.2.1:6641,ssl:…" */
    const char *ca_pem, *cert_pem, *key_pem; /* for ssl: */
    const char *local_unixctl; /* ctl socket of the ovsdb-server on this node, NULL if none here */
    const char *local_sock;    /* its db socket ("unix:…"), watched for RAFT leadership; may be given although no server
                                  is there yet; NULL if never */
    const char *client;        /* names this client for good (the node id), one open at a time; NULL = random,
                                  but each random name leaves a small row behind. See ovsdb.c, "Exactly once" */
};
MUST_CHECK int cdb_open(const struct cdb_conf *conf, struct cdb **ret_db, struct err *e); /* starts the thread */
struct cdb *cdb_mem_open(void); /* in-memory twin; same semantics, thread-safe */
void cdb_close(struct cdb *db); /* joins the thread; links must be closed before */
/* Changes where to connect (voters come and go); any thread. */
void cdb_set_remotes(struct cdb *db, const char *remotes);

/* Twin only, to test callers: the next `n` transactions end with `code` (E_CONFLICT, E_UNKNOWN); for E_UNKNOWN
 * `applied` says whether they took effect. While parked, transactions wait as without quorum. */
void cdb_mem_fail_next(struct cdb *db, int n, int code, bool applied);
void cdb_mem_park(struct cdb *db, bool parked);

/* ---- links and views ---- */

struct cdb_view; /* immutable, reference-counted, thread-safe to read */

typedef void cdb_changed(struct cdb_link *l, void *arg); /* a new view is current; calls are coalesced */
struct cdb_link *cdb_link_open(struct cdb *db, uv_loop_t *loop, cdb_changed *fn, void *arg);
void cdb_link_close(struct cdb_link *l); /* pending transactions are cancelled without callback; memory goes with the loop */

/* The current view, owned by the link: valid until control returns to the loop; cdb_view_ref() to keep it. NULL before
 * the first contact. */
const struct cdb_view *cdb_link_view(const struct cdb_link *l);
const struct cdb_view *cdb_view_ref(const struct cdb_view *v);
void cdb_view_unref(const struct cdb_view *v);

/* Connected to a server that has contact with a quorum, as far as is known. Display only: never decides data safety. */
bool cdb_link_connected(const struct cdb_link *l);
/* The ovsdb-server on this node leads the RAFT cluster of the cluster database. */
bool cdb_link_local_leader(const struct cdb_link *l);

size_t cdb_count(const struct cdb_view *v, enum cdb_table t);
const void *cdb_at(const struct cdb_view *v, enum cdb_table t, size_t i);         /* sorted by id */
const void *cdb_get(const struct cdb_view *v, enum cdb_table t, const char *id);  /* NULL if absent */

/* Rows of a table that differ between two views of one database (`was` NULL: an empty one), by id. `before` or `now` is NULL
 * for a row that was made or deleted. Costs what changed and the chunks of the table, not its rows: views share the rest. */
typedef void cdb_diff_fn(void *arg, const void *before, const void *now);
void cdb_diff(const struct cdb_view *was, const struct cdb_view *is, enum cdb_table t, cdb_diff_fn *fn, void *arg);
/* The table is certainly the same in both. */
bool cdb_same(const struct cdb_view *was, const struct cdb_view *is, enum cdb_table t);

/* Typed: cdb_node_get(v, id), cdb_node_at(v, i), cdb_node_count(v), … for every table. */
#define X(T, s, n)                                                                                              \
    static inline const struct cdb_##s *cdb_##s##_get(const struct cdb_view *v, const char *id)                  \
    { return (const struct cdb_##s *)cdb_get(v, CDB_T_##T, id); }                                               \
    static inline const struct cdb_##s *cdb_##s##_at(const struct cdb_view *v, size_t i)                         \
    { return (const struct cdb_##s *)cdb_at(v, CDB_T_##T, i); }                                                 \
    static inline size_t cdb_##s##_count(const struct cdb_view *v) { return cdb_count(v, CDB_T_##T); }
CDB_TABLES(X)
#undef X
/* By the STR column `name`; NULL if absent. Linear in the table. */
const void *cdb_find_name(const struct cdb_view *v, enum cdb_table t, const char *name);

bool cdb_strs_has(const struct cdb_strs *s, const char *text);
const char *cdb_smap_get(const struct cdb_smap *m, const char *key);                  /* NULL if absent */
/* A number among the cluster's settings; `otherwise` if it is not set or out of [min, max]. */
int64_t cdb_setting(const struct cdb_view *v, const char *key, int64_t min, int64_t max, int64_t otherwise);
bool cdb_imap_get(const struct cdb_imap *m, const char *key, int64_t *ret_value);

/* Does the replica on `disk` count as in sync for `s` (listed, and the incarnation still the disk's)? */
bool cdb_shard_in_sync(const struct cdb_view *v, const struct cdb_shard *s, const char *disk);
/* How many do. */
int cdb_shard_in_sync_count(const struct cdb_view *v, const struct cdb_shard *s);

/* ---- transactions ---- */

struct cdb_txn *cdb_txn_new(void);
void cdb_txn_free(struct cdb_txn *t); /* only if not committed */

/* `col` is CDB_<TABLE>_<column>; a type mismatch asserts. Texts are copied. Setters address a row that exists or was
 * inserted in the same transaction. */
void cdb_txn_insert(struct cdb_txn *t, enum cdb_table tb, const char *id); /* columns default to ""/0/false/empty */
void cdb_txn_delete(struct cdb_txn *t, enum cdb_table tb, const char *id); /* fails with E_CONFLICT if absent */
void cdb_txn_set_str(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const char *v);
void cdb_txn_set_int(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, int64_t v);
#define CDB_EVENTS_KEPT 1000
#define CDB_TASKS_KEPT 500 /* running ones stay in any case */
/* A fresh row in Event (the oldest beyond CDB_EVENTS_KEPT go in the same transaction): what people are to know. severity: "info", "warning", "alarm"; `object`: "node n1", "volume v"; `node`: id. */
void cdb_txn_event(struct cdb_txn *t, int64_t wall_ms, const char *severity, const char *object, const char *message, const char *node);
void cdb_txn_set_bool(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, bool v);
void cdb_txn_set_strs(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, size_t n, const char *const *v);
void cdb_txn_set_imap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_imap *v);
void cdb_txn_set_smap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_smap *v);

/* Preconditions, checked atomically with the changes. The row must exist in every require but _absent. */
void cdb_txn_require_str(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const char *v);
void cdb_txn_require_int(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, int64_t v);
void cdb_txn_require_imap(struct cdb_txn *t, enum cdb_table tb, const char *id, int col, const struct cdb_imap *v);
void cdb_txn_require_exists(struct cdb_txn *t, enum cdb_table tb, const char *id);
void cdb_txn_require_absent(struct cdb_txn *t, enum cdb_table tb, const char *id);

typedef void cdb_txn_done(void *arg, int status, const struct err *e);
/* Takes ownership of `t`; `fn` runs on the link's loop, never inside this call. Transactions of one link are carried
 * out in the order of their commits. Several may be pending. `note` names it in the log ("remove replica"). */
void cdb_txn_commit(struct cdb_link *l, struct cdb_txn *t, const char *note, cdb_txn_done *fn, void *arg);
/* Drops pending transactions whose callback argument is `arg` (no callback follows). One already sent may take effect. */
void cdb_txn_cancel(struct cdb_link *l, void *arg);

#endif
