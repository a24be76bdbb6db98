/* Owner core, private to owner*.c: its state and what the parts offer each other.
 *
 *   owner.c        life, events, states, parking        owner_op.c         admission, overlap, reads, writes, completion
 *   owner_member.c sessions with replicas, time-outs    owner_isr.c        in-sync set: transactions
 *   owner_reconcile.c tails after a change of owner      owner_join.c       bringing a replica up to date
 */
#ifndef COHORT_STORAGE_REPL_OWNER_PRIV_H
#define COHORT_STORAGE_REPL_OWNER_PRIV_H

#include "storage/asan/repl/mutant.h"
#include "storage/asan/repl/owner.h"

#define REWRITES 8          /* ranges rewritten at a time when reconciling */
#define REWRITE_MAX (1u << 20)
#define BLOCK 4096u         /* checksums on disk cover so much */
#define JOIN_COPIES 4       /* chunks copied at a time */
#define FULL_LATCH_MS 3000  /* an E_NOSPC counts until the database has had time to tell the same */
#define SCAN_MAX 64         /* waiting operations looked at per step: bounds the work of overlap checks */

enum phase { PH_IDLE, PH_WAITING, PH_READING, PH_READ /* internal: has its data, is to be written */, PH_WRITING, PH_DONE };

enum member_state {
    M_OUT,     /* no session wanted */
    M_WAIT,    /* wanted: no connection, or retry_ms not reached */
    M_FENCE,   /* FENCE sent */
    M_LIVE,    /* obeys our epoch, has the chain up to `chain` or a gapless part of what was sent */
};

struct member {
    bool used, listed, usable, local;
    uint32_t disk;
    uint64_t incarnation;
    bool up;                /* connection */
    bool silent;            /* its node answers nothing */
    bool isr;               /* in sync, as the database says as far as known */
    bool joining;           /* not (known to be) in sync, yet its answers are required */
    bool add_pending;       /* a transaction that adds it may have happened */
    bool failing;           /* too slow or gone: to be taken out */
    bool broken;            /* refused for a reason of its own (disk failed): no use waiting */
    bool full, view_full;   /* its disk has little room left: by its own answer or by the database; the database alone */
    uint64_t full_ms;       /* its last E_NOSPC */
    enum member_state state;
    uint64_t session, fence_tag, ctl_tag; /* ctl: the tail or versions request that is out, 0 = none */
    uint64_t retry_ms, down_ms, not_live_ms, ctl_ms;
    uint64_t chain;         /* seq of the last write sent in this session */
    uint64_t copies;        /* sent in this session */
    int64_t told_commit;    /* mark told in this session, -1 = none. Mark 0 settles what older epochs left behind. */
    bool tail_done;         /* its tail is among the ranges */
    struct store_version tail_after;
    uint64_t join_retry_ms; /* not before */
    uint32_t join_failures;
};

struct range { uint64_t start, end; uint32_t unit; }; /* rewritten in pieces of at most `unit` */

enum join_state { J_IDLE, J_FENCE, J_LOCK, J_COMPARE, J_COPY, J_BARRIER, J_ADD };

struct join_copy { /* one chunk on its way */
    enum { C_FREE, C_LOCK, C_READ, C_SEND } state;
    uint64_t chunk, tag;
    uint8_t bad;            /* members that could not read it */
    struct iobuf *whole;    /* no member can read it in one piece: put together block by block; then: */
    unsigned block;         /* being read */
    uint16_t lost;          /* blocks that no member can read */
    int8_t source;
    uint64_t sent_ms;
};

enum { DIFFERENT, SAME, SKIPPED };

struct join {
    enum join_state state;
    int m;                            /* member index */
    uint64_t first;                   /* chunks below are the same on the joiner, and it gets their writes */
    uint32_t count;                   /* of the batch [first, first + count) */
    struct store_version *src, *dst;  /* of the batch; batch_chunks each */
    uint8_t *same;                    /* per chunk of the batch: SAME: equal, or copied; SKIPPED: cannot be copied now */
    uint32_t skipped;
    bool have_src, have_dst;
    int8_t source;
    uint32_t hint;                    /* where in the batch to look for the next chunk to copy */
    bool urgent;                      /* a guest's write waits for that one: it is copied without credit */
    uint32_t left;                    /* chunks of the batch that are not the same */
    uint64_t barrier;                 /* joiner must have answered every write up to this seq */
    uint64_t copied;
    struct join_copy copy[JOIN_COPIES];
};

struct owner {
    struct owner_conf conf;
    struct owner_env env;
    enum owner_state state;
    uint64_t now;
    bool lease, in_step, allow_join;
    uint64_t generation, stale_epoch;
    uint64_t create_retry_ms;
    int create_status;
    int min_isr;
    struct member m[OWNER_MEMBERS_MAX];

    uint64_t next_seq, next_tag, next_session;
    uint64_t commit_seq;       /* every write up to here is on all required members */
    uint64_t last_write_ms;    /* for idle commit marks */
    uint64_t bytes_in_flight;
    struct owner_ops waiting, reading, writing /* ascending seq */, done;

    /* the transaction */
    bool txn_busy, txn_uncertain;
    struct owner_txn txn;
    uint64_t txn_retry_ms;

    /* reconcile */
    struct range *ranges;
    size_t n_ranges, cap_ranges, range_at;
    uint64_t range_off;
    struct owner_op rewrite[REWRITES]; /* also repairs, when serving: one at a time, rewrite[0] */
    uint32_t rewrite_unit[REWRITES];
    uint64_t lost_bytes;               /* no in-sync member could read them when they were to be reconciled */

    struct join join;
    bool join_paced;           /* join_credit counts */
    uint32_t join_credit;      /* chunks that may be begun */
    uint64_t copied_total;
    struct owner_lost *given;  /* up, ascending */
    size_t n_given;
    struct owner_lost unreadable[OWNER_LOST_MAX]; /* and not given up: found by the last join */
    size_t n_unreadable;
};

static inline bool required(const struct member *m) { return m->isr || m->joining || m->add_pending; }
static inline unsigned bit(int i) { return 1u << i; }
unsigned isr_mask(const struct owner *o);
unsigned required_mask(const struct owner *o);
int isr_count(const struct owner *o);
bool isr_full(const struct owner *o);                  /* a member's disk has no room: guests' writes of data wait */
uint64_t new_tag(struct owner *o);
bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len);

/* owner.c */
void go_stale(struct owner *o, uint64_t epoch);
bool may_issue(const struct owner *o);
void set_state(struct owner *o, enum owner_state s);

/* owner_op.c */
void ops_pump(struct owner *o);                        /* issue what may be, retarget reads, complete */
void op_answer_read(struct owner *o, struct owner_op *op, int i, const struct repl_answer *a);
void op_send_write(struct owner *o, struct owner_op *op, int i);
void op_start_read(struct owner *o, struct owner_op *op);
void op_start_write(struct owner *o, struct owner_op *op, unsigned targets);
int pick_source(const struct owner *o, unsigned except); /* ISR member to read from, -1 if none is live */
bool write_in_flight(const struct owner *o, uint64_t offset, uint64_t length);
void ops_joined(struct owner *o, int i);
bool rewrite_pending(const struct owner *o);

/* owner_member.c */
int member_find(const struct owner *o, uint32_t disk);
void member_want(struct owner *o, int i);              /* begin or continue its session */
void member_out(struct owner *o, int i);               /* end it */
void member_reset(struct owner *o, int i, uint64_t retry_in_ms);
void members_tick(struct owner *o);
void member_send(struct owner *o, int i, struct repl_msg *m);
void member_answer(struct owner *o, int i, const struct repl_answer *a);

/* owner_check.c */
void check_pump(struct owner *o, struct owner_op *op);
void check_answer(struct owner *o, struct owner_op *op, int i, const struct repl_answer *a);
void op_end_check(struct owner *o, struct owner_op *op, int status); /* owner_op.c */

/* owner_isr.c */
void isr_pump(struct owner *o);
void isr_resolved(struct owner *o);                    /* the database has told which of our transactions happened */

/* owner_reconcile.c */
void reconcile_pump(struct owner *o);
void reconcile_tail(struct owner *o, int i, const struct repl_answer *a);
void reconcile_reset(struct owner *o);
void reconcile_unreadable(struct owner *o, const struct owner_op *op);

/* owner_join.c */
void join_pump(struct owner *o);
void join_abort(struct owner *o, const char *why);
bool join_blocks(const struct owner *o, const struct owner_op *op);     /* a chunk of it is being compared or copied */
enum join_class { JOIN_NONE, JOIN_SEND, JOIN_HOLD };
enum join_class join_classify(struct owner *o, const struct owner_op *op); /* does the joiner get this write? */
void join_wrote(struct owner *o, const struct owner_op *op);
bool join_answer(struct owner *o, int i, const struct repl_answer *a);  /* false: not an answer to the join's requests */
void join_member_lost(struct owner *o, int i);
void join_added(struct owner *o);                        /* the database has the joiner in sync */
bool join_wanted(const struct owner *o, int *ret_m);
void join_free(struct owner *o);

#endif
