/* Replica core: decides what one replica of one shard may accept. Pure: no I/O, no clock, no memory of its own.
 *
 * Fence: the replica obeys exactly one epoch, the highest that a FENCE installed (durably, by the store). The epoch counts
 * from the moment FENCE is accepted, before it is durable: nothing of an older epoch is accepted behind it.
 * Session: each FENCE begins one, numbered upward by the owner. WRITE and COPY must name the current one, so a frame that
 * was stuck in an earlier connection cannot land on top of what was resent or copied since. Sessions live in memory: a
 * restarted replica accepts no write before it was fenced again.
 * Chain: a WRITE is accepted if it follows the last accepted write of this epoch (prev_seq), so the replica always holds
 * a prefix of what it was sent. A duplicate is answered like the original: when that one is durable. Copies are
 * numbered within the session and carried out once: a duplicate may come after a later write to its chunk. The first one
 * cannot: the owner holds writes to the chunk back until it is answered. So nothing here relies on a network that keeps
 * order or delivers once.
 * Tickets: accepted writes and copies get ascending tickets; FENCE and duplicates are answered when those before are
 * durable. So what a session finds at its replica (VERSIONS!) cannot vanish in a power cut.
 *
 * Use: the caller asks, does what the verdict says, and reports each accepted write's and copy's end with replica_written().
 */
#ifndef COHORT_STORAGE_REPL_REPLICA_H
#define COHORT_STORAGE_REPL_REPLICA_H

#include <sys/queue.h>
#include "storage/asan/repl/msg.h"

struct replica_ticket { /* caller-owned, one per accepted write or copy, until replica_written() */
    uint64_t number, seq;
    bool done;
    TAILQ_ENTRY(replica_ticket) entry;
};

struct replica {
    uint64_t epoch;        /* fence accepted; 0 = none */
    uint64_t session;      /* of that epoch; 0 = none yet */
    uint64_t last_seq;     /* last accepted write of `epoch` */
    uint64_t copies;       /* highest number of a copy accepted in this session */
    uint64_t copies_seen;  /* bit k: so was copy number `copies` - k */
    uint64_t tickets;      /* number of the last one given */
    uint64_t durable;      /* every ticket up to here has ended well */
    bool failed;           /* a write ended badly: the store must not be believed until it is opened again */
    TAILQ_HEAD(, replica_ticket) writes; /* accepted, not ended, copies too; ascending */
};

/* What the store knew when it was opened. */
void replica_init(struct replica *r, const struct store_shard_info *info);

enum replica_verdict {
    REPLICA_ACCEPT, /* do it */
    REPLICA_WAIT,   /* WRITE, COPY: had it already: answer OK when replica_durable() reaches *ret_wait */
    REPLICA_REFUSE, /* answer *ret_status, *ret_detail */
};

/* Judges `m` against the fence, the session, the chain and `incarnation` (the disk's own). On REPLICA_ACCEPT of a WRITE
 * or COPY `t` is entered; of a FENCE the new epoch counts from now on, and the answer must wait for the store's fence and for
 * *ret_wait. READ of epoch 0 is accepted only with `sealed`. `room` = false refuses data with E_NOSPC before it could
 * make a hole in the chain. */
enum replica_verdict replica_judge(struct replica *r, const struct repl_msg *m, uint64_t incarnation, bool sealed, bool room,
                                   struct replica_ticket *t, uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail);
/* A WRITE of the current session whose predecessor has not come yet: with several links to the owner a frame may overtake
 * another. The caller keeps it and judges it once last_seq has reached its prev_seq; when the session ends it is refused.
 * Judged at once it would be refused as a gap. */
bool replica_early(const struct replica *r, const struct repl_msg *m, uint64_t incarnation);
/* The store ended the write or copy of `t`. After a failed write nothing more is accepted. */
void replica_written(struct replica *r, struct replica_ticket *t, int status);
/* Highest ticket so that it and all before are durable. */
static inline uint64_t replica_durable(const struct replica *r) { return r->durable; }
/* The `last` of a FENCE answer. */
static inline struct store_version replica_last(const struct replica *r)
{
    return (struct store_version){r->epoch, r->last_seq};
}

#endif
