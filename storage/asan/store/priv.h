/* The store's own state, shared by its files: store.c (open, close), write.c, read.c, fence.c, destage.c, merge.c. */
#ifndef COHORT_STORAGE_STORE_PRIV_H
#define COHORT_STORAGE_STORE_PRIV_H

#include "storage/asan/store/alloc.h"
#include "storage/asan/store/batch.h"
#include "storage/asan/store/cache.h"
#include "storage/asan/store/index.h"
#include "storage/asan/store/journal.h"
#include "storage/asan/store/meta.h"
#include "storage/asan/store/store.h"

struct meta_op;
struct destage_job;

struct store {
    uv_loop_t *loop;
    char *fast, *capacity;
    uint64_t aside_after;    /* bytes of journal (aside.h); 0: half of it */
    uint64_t limit_bytes, raw_bytes; /* raw: size of the capacity device, 0 = it is a directory */
    struct uring uring;
    struct index index;
    struct journal journal;
    struct dev extents;
    struct places places;
    struct cache *cache;     /* NULL = none */
    struct meta *meta;

    bool failed;             /* a write to a device failed: nothing is acknowledged any more */
    struct err failure;
    void (*on_failure)(void *arg, const struct err *e);
    void *on_failure_arg;

    struct store_op *later_head, **later_tail; /* completions that must not run inside the call that made them */
    uv_check_t check;        /* runs them, at the end of the turn if it can */
    uv_idle_t idle;          /* active while there are any: the loop does not sleep */
    struct rec_list parts;   /* durable parts of a write whose last part is not durable yet */

    struct {                 /* large writes (direct.c) */
        bool on;
        unsigned syncs;      /* on their way */
        struct direct_list all, written;
    } direct;

    TAILQ_HEAD(, meta_op) metaq; /* fences and drops, in order */
    bool meta_running;
    unsigned drops;          /* in metaq or running: destage stands still */

    struct {
        bool running;
        uint64_t drain_to;   /* goes on while more of the journal is used; UINT64_MAX: for no such reason */
        uint64_t old_pos;    /* and while the journal holds what lies before */
        uint64_t mark_pos, mark_ms; /* where the journal's head was then: the next old_pos */
        uint64_t seen_seq, busy_ms; /* the journal grew by then, as the timer saw it */
        uint64_t futile_ms;
        struct destage_job *job;
        struct dev_batch batch;  /* the worker's */
        struct store_op *wait_head, **wait_tail; /* store_destage_now() */
        uv_timer_t timer;
    } destage;

    unsigned reads;
    bool closing;
    unsigned closing_parts;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* Completes `op` from the loop. */
void op_later(struct store *s, struct store_op *op, int status, const struct err *e);
/* A device write failed: fails what waits, tells the owner once. */
void store_fail(struct store *s, int code, const struct err *e);
/* True and completes `op` if the store takes no more operations. */
bool store_refuses(struct store *s, struct store_op *op);
void store_close_check(struct store *s); /* anything that store_close() waits for has ended */

/* write.c */
void write_durable(void *arg, struct rec *r);  /* journal's callbacks */
void write_failed(void *arg, int status);
void write_fail_pending(struct store *s, int code, const struct err *e);
void write_fail_rec(struct store *s, struct rec *r, int code, const struct err *e); /* one that is in no queue */
int write_replay(void *arg, const struct journal_found *f, struct err *e);
int write_replay_aside(struct store *s, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e);

/* fence.c */
void fence_kick(struct store *s);
void fence_fail_all(struct store *s, const struct err *e);

/* destage.c */
void destage_init(struct store *s);
void destage_kick(struct store *s);
void destage_fail_waiting(struct store *s, const struct err *e);

/* label.c: makes or checks the two directories and opens journal, extents and metadata. */
MUST_CHECK int label_open(struct store *s, const struct store_conf *conf, struct err *e);

#define SHARD_FMT "shard %s/%u"
#define SHARD_ARG(ID, TEXT) (id_format(&(ID)->volume, TEXT), TEXT), (ID)->index

#endif
