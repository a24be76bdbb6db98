/* Owner core: replication of one shard by the node that owns its volume. A pure step machine: every owner_*() call is an
 * event (with the time in milliseconds), what must happen comes out through `struct owner_env` and owner_take_done().
 * No I/O, no clock, no loop. Memory: one allocation in owner_new(), one batch of versions for the first join, and the list
 * of ranges while reconciling, which is bounded by the members' journals; operations and their data are the caller's.
 *
 *            view without a row            view with a row
 *   (new) ---------------------> ABSENT ---------------------+
 *     |                            | first write             v
 *     |                            +--> CREATING --view--> FENCING --every ISR member obeys our epoch--> RECONCILING
 *     +---------------- view with a row --------------------^                                                 |
 *                                                                  tails of all ISR members made the same     v
 *   any state --E_STALE, or a view that says so--> STALE (for good: the caller frees it)                   SERVING
 *
 * Over the states lie the reasons to park: no lease, fewer in-sync members than the minimum, no view. Parked requests wait.
 *
 * Members are the shard's replicas. One is required (its answer needed for every completion) from the moment it joins
 * until the database says that it is out. Its session (connection up -> FENCE answered -> live) may break and return at
 * any time; what it had not answered is sent again, in order, from the operations that still wait.
 *
 * Reconciling: an acknowledged write is on every ISR member, so any member's bytes are right for any sector, and members
 * differ only where some hold an unacknowledged write; those are in the tails above their commit marks. The ranges of
 * all tails are read from one member and written to all as new writes of our epoch. No commit mark of the new epoch is
 * given out before that is finished, for a mark settles everything of older epochs.
 *
 * Rules are numbered in storage/asan/README.md; the asserts name them.
 */
#ifndef COHORT_STORAGE_REPL_OWNER_H
#define COHORT_STORAGE_REPL_OWNER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include "storage/asan/repl/msg.h"

#define OWNER_MEMBERS_MAX 4             /* three replicas and one more while one is being replaced */
#define OWNER_OP_BORDER (4u << 20)      /* an operation never crosses a multiple of it (see owner_join.c) */

struct owner;

/* ---- operations ---- */

enum owner_op_kind { OWNER_READ, OWNER_WRITE, OWNER_CHECK };

/* What an OWNER_CHECK found (owner_check.c). Per block: copies that are wrong, as a mask of members that means something to the
 * core only, while `generation` lasts: hand it back in a repair. */
struct owner_check {
    uint64_t generation;
    uint8_t wrong[OWNER_CHECK_BYTES / OWNER_CHECK_BLOCK];
    uint64_t unclear;       /* bit per block: no good copy, or nobody can tell which one is */
    uint64_t unreadable[OWNER_MEMBERS_MAX];
    uint32_t crc[OWNER_MEMBERS_MAX][OWNER_CHECK_BYTES / OWNER_CHECK_BLOCK];
};

struct owner_op { /* caller-owned until owner_take_done() or owner_drain() gave it back */
    enum owner_op_kind kind;
    bool zero;              /* WRITE: no data */
    bool map;               /* READ: which blocks hold data, instead of the data (store_map) */
    uint64_t offset;        /* 512-multiples; does not cross an OWNER_OP_BORDER */
    uint32_t length;
    uint32_t crc;           /* WRITE: crc32c of the data */
    struct iobuf *data;     /* WRITE: the caller's. READ, when done: a reference for the caller, NULL = zeroes */
    size_t data_off;
    int status;             /* when done: 0; READ, repair: E_CORRUPT (no good copy); CHECK: E_UNAVAIL (a copy came or went) */
    struct owner_check *check; /* CHECK: the caller's, filled when done. 4096-multiples, within a multiple of OWNER_CHECK_BYTES */
    bool repair;            /* WRITE without data: what a member has that is not in `avoid`, to all. E_CONFLICT: generation over */
    uint8_t avoid;
    uint64_t generation;
    uint64_t absent;        /* READ, when done: bit per chunk touched, from the first: never written in this shard */
    bool nowhere;           /* READ, when done: the shard does not exist */
    void *arg;
    /* the core's */
    uint8_t phase, targets, sent, acked, bad;
    int8_t source;
    uint64_t seq, tag, sent_ms[OWNER_MEMBERS_MAX];
    TAILQ_ENTRY(owner_op) entry;
};
TAILQ_HEAD(owner_ops, owner_op);

/* ---- what the core asks for; none of these may call the core ---- */

struct owner_txn {
    uint64_t epoch, generation;   /* preconditions: the volume's and the shard's */
    int n;                        /* the new in-sync set; generation + 1 */
    struct { uint32_t disk; uint64_t incarnation; } in_sync[OWNER_MEMBERS_MAX]; /* precondition: the disks' incarnations */
    bool adds;                    /* for the log: "add replica", else "remove replica" */
};

struct owner_env {
    /* Sends `m` to the replica on `disk`. Exactly one owner_answer() follows (E_DISCONN when the connection ends), unless
     * owner_conn(false) comes first. Frames may overtake each other: the replica's host puts writes and copies in order
     * (replica_early). Any may be delivered more than once. */
    void (*send)(void *arg, uint32_t disk, const struct repl_msg *m);
    /* Makes the shard's row: chooses disks, conditioned on the epoch. Answer: owner_created(). */
    void (*create)(void *arg);
    /* Changes the in-sync set. Answer: owner_txn_done(). */
    void (*txn)(void *arg, const struct owner_txn *t);
    void *arg;
};

struct owner_conf {
    struct owner_env env;
    uint64_t epoch;               /* ours: never used before by anyone (the engine raises it when in doubt) */
    uint64_t shard_bytes;
    int replicas;                 /* the volume's: fixes the minimum */
    bool layered;                 /* what was never written is not zero but what lies below: zeroes need a shard, too */
    uint32_t silent_ms;           /* a replica that owes an answer for so long is taken out; 0 = 2500 */
    uint32_t down_ms;             /* so is one without connection; 0 = 1500 */
    uint32_t batch_chunks;        /* chunks compared at a time when joining; 0 = 1024; a multiple of the border */
    uint32_t op_border;           /* 0 = OWNER_OP_BORDER */
    uint64_t window_bytes;        /* of writes in flight; 0 = 16 MiB */
};

struct owner *owner_new(const struct owner_conf *conf, uint64_t now_ms);
void owner_free(struct owner *o); /* after owner_drain() */
/* At least this many in-sync members, or everything waits: 2 of 3, 1 of 2, 1 of 1. */
int owner_min_isr(int replicas);

/* Blocks of a chunk, a bit each. */
struct owner_lost { uint64_t chunk; uint16_t blocks; };
#define OWNER_LOST_MAX 64u

/* ---- events ---- */

/* The database's state of this shard. Older views than what is known are ignored. */
struct owner_view {
    uint64_t epoch;               /* the volume's */
    bool mine;                    /* the volume's owner is this node */
    bool exists;                  /* there is a row */
    uint64_t generation;
    int n;                        /* replicas */
    struct owner_view_replica {
        uint32_t disk;            /* the caller's number for it */
        uint64_t incarnation;     /* the disk's, now */
        bool in_sync;             /* the row's in_sync names it with that incarnation */
        bool usable;              /* disk and node may be used: worth joining */
        bool local;               /* on this node */
        bool up;                  /* connected now */
        bool full;                /* its disk says so: no new writes of data for now */
        bool silent;              /* as owner_silent() */
    } replica[OWNER_MEMBERS_MAX];
};
void owner_view(struct owner *o, const struct owner_view *v, uint64_t now_ms);
void owner_lease(struct owner *o, bool on, uint64_t now_ms);
void owner_conn(struct owner *o, uint32_t disk, bool up, uint64_t now_ms);
/* The connection is up, but the disk's node answers nothing, whoever asks. While that is so its member fails as soon as something
 * waits for it, not each shard after a time-out of its own: all shards leave a lost node in one transaction. */
void owner_silent(struct owner *o, uint32_t disk, bool silent, uint64_t now_ms);
void owner_submit(struct owner *o, struct owner_op *op, uint64_t now_ms);
void owner_answer(struct owner *o, uint32_t disk, const struct repl_answer *a, uint64_t now_ms);
void owner_created(struct owner *o, int status, uint64_t now_ms);
void owner_txn_done(struct owner *o, int status, uint64_t now_ms);
void owner_tick(struct owner *o, uint64_t now_ms); /* every 100 ms or so */
/* The volume is to be cut or closed: tells the commit marks at once where nothing is under way, not after a pause. */
void owner_settle(struct owner *o, uint64_t now_ms);
/* May a replica be brought up to date now? The caller bounds how many shards do so at once. Default no. */
void owner_allow_join(struct owner *o, bool allowed, uint64_t now_ms);
/* From the first call on a join copies only what it was given: `chunks` from now until the next call; more only where a guest's
 * write waits for it. Returns what was left of the last credit. */
uint32_t owner_join_credit(struct owner *o, uint32_t chunks, uint64_t now_ms);

/* Blocks that an administrator gave up, ascending by chunk, copied: where no in-sync member can read them, a replica is brought up
 * to date without them; they read as E_CORRUPT there, too, until written whole. All others keep it out of the set. */
void owner_give_up(struct owner *o, const struct owner_lost *lost, size_t n, uint64_t now_ms);
/* What keeps a replica out: blocks that no in-sync member could read and that are not given up, as the last attempt found them (in
 * the batch it got to, OWNER_LOST_MAX chunks at most). The core's, valid until the next event. */
size_t owner_unreadable(const struct owner *o, const struct owner_lost **ret);

/* A finished operation, NULL if none is left. Call after each event. */
struct owner_op *owner_take_done(struct owner *o);
/* Gives back every unfinished operation, in an order in which they may be submitted again (to a core of a newer epoch).
 * A write among them may or may not have happened; nobody was told. */
void owner_drain(struct owner *o, struct owner_ops *ret_ops);

/* ---- looking at it ---- */

enum owner_state { OWNER_NEW, OWNER_ABSENT, OWNER_CREATING, OWNER_FENCING, OWNER_RECONCILING, OWNER_SERVING, OWNER_STALE };

struct owner_info {
    enum owner_state state;
    const char *parked;           /* why requests wait, in words; NULL = they do not */
    uint64_t epoch, generation, stale_epoch;
    int n_replicas, n_isr;
    struct { uint32_t disk; bool isr, joining, live, failing; } member[OWNER_MEMBERS_MAX];
    unsigned waiting, reading, writing; /* operations */
    uint64_t next_seq, commit_seq;
    uint64_t lost_bytes;          /* damaged on every in-sync replica when tails were reconciled: they read as E_CORRUPT */
    bool quiet;                   /* no operation under way, commit marks told: may be closed without leaving a tail */
    bool at_rest;                 /* quiet, and nobody is being brought up to date */
    bool wants_join, joining;     /* a usable replica is not in sync; one is being brought up to date */
    uint32_t join_disk;
    uint64_t join_done, join_total, join_copied; /* chunks */
    uint32_t join_left;           /* of the batch that is being copied; 0 while comparing */
};
void owner_info(const struct owner *o, struct owner_info *ret);
uint64_t owner_copied(const struct owner *o); /* chunks, by all joins of this core */
const char *owner_state_name(enum owner_state s);

#endif
