/* Replica core: fence, session and order of one replica's writes. See replica.h. */
#include "storage/asan/repl/replica.h"
#include "storage/asan/repl/mutant.h"

#include <assert.h>
#include <string.h>

#define COPY_SEQ UINT64_MAX /* of a ticket: it is no part of the chain */

void replica_init(struct replica *r, const struct store_shard_info *info)
{
    memset(r, 0, sizeof *r);
    TAILQ_INIT(&r->writes);
    if (!info->exists)
        return;
    r->epoch = info->epoch;
    r->last_seq = info->last.epoch == info->epoch ? info->last.seq : 0;
}

static enum replica_verdict refuse(int status, uint64_t detail, int *ret_status, uint64_t *ret_detail)
{
    *ret_status = status;
    *ret_detail = detail;
    return REPLICA_REFUSE;
}

static enum replica_verdict judge_fence(struct replica *r, const struct repl_msg *m, uint64_t *ret_wait, int *ret_status,
                                        uint64_t *ret_detail)
{
    if (m->epoch == 0)
        return refuse(E_INVAL, 0, ret_status, ret_detail);
    if (m->epoch < r->epoch && !MUTANT(REPLICA_NO_EPOCH))
        return refuse(E_STALE, r->epoch, ret_status, ret_detail);
    if (m->epoch == r->epoch && m->session <= r->session && !MUTANT(REPLICA_NO_SESSION))
        return refuse(E_PROTO, r->session, ret_status, ret_detail); /* overtaken by a younger connection's */
    if (m->epoch != r->epoch) {
        r->epoch = m->epoch;
        r->last_seq = 0;
    }
    r->session = m->session;
    r->copies = r->copies_seen = 0;
    *ret_wait = MUTANT(REPLICA_FENCE_EARLY) ? 0 : r->tickets;
    return REPLICA_ACCEPT;
}

static void enter(struct replica *r, struct replica_ticket *t, uint64_t seq)
{
    t->number = ++r->tickets;
    t->seq = seq;
    t->done = false;
    TAILQ_INSERT_TAIL(&r->writes, t, entry);
}

static enum replica_verdict judge_write(struct replica *r, const struct repl_msg *m, bool room, struct replica_ticket *t,
                                        uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail)
{
    if (m->seq <= r->last_seq) { /* had it: durable unless still among `writes` */
        struct replica_ticket *w;
        *ret_wait = 0;
        TAILQ_FOREACH (w, &r->writes, entry)
            if (w->seq <= m->seq && !MUTANT(REPLICA_DUP_EARLY))
                *ret_wait = w->number;
        return REPLICA_WAIT;
    }
    if (m->prev_seq != r->last_seq && !MUTANT(REPLICA_NO_CHAIN))
        return refuse(E_PROTO, r->last_seq, ret_status, ret_detail);
    if (!room)
        return refuse(E_NOSPC, 0, ret_status, ret_detail);
    r->last_seq = m->seq;
    enter(r, t, m->seq);
    return REPLICA_ACCEPT;
}

/* Copies of a session may overtake each other, at most as many as the owner has under way; 64 are far more. */
static enum replica_verdict judge_copy(struct replica *r, const struct repl_msg *m, bool room, struct replica_ticket *t,
                                       uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail)
{
    uint64_t behind = m->seq > r->copies ? 0 : r->copies - m->seq;
    if (behind >= 64)
        return refuse(E_PROTO, r->copies, ret_status, ret_detail);
    if (m->seq <= r->copies && r->copies_seen >> behind & 1 && !MUTANT(REPLICA_COPY_TWICE)) {
        *ret_wait = r->tickets;
        return REPLICA_WAIT;
    }
    if (!room)
        return refuse(E_NOSPC, 0, ret_status, ret_detail);
    if (m->seq > r->copies) {
        uint64_t ahead = m->seq - r->copies;
        r->copies_seen = ahead < 64 ? r->copies_seen << ahead : 0;
        r->copies = m->seq;
    }
    r->copies_seen |= 1ull << behind;
    enter(r, t, COPY_SEQ);
    if (MUTANT(REPLICA_COPY_UNTRACKED))
        t->number = --r->tickets;
    return REPLICA_ACCEPT;
}

enum replica_verdict replica_judge(struct replica *r, const struct repl_msg *m, uint64_t incarnation, bool sealed, bool room,
                                   struct replica_ticket *t, uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail)
{
    if (m->incarnation != incarnation && !MUTANT(REPLICA_NO_INCARNATION))
        return refuse(E_CONFLICT, incarnation, ret_status, ret_detail);
    if (r->failed)
        return refuse(E_IO, 0, ret_status, ret_detail);
    if (m->kind == REPL_READ && m->epoch == 0)
        return sealed ? REPLICA_ACCEPT : refuse(E_STALE, r->epoch, ret_status, ret_detail);
    if (m->kind == REPL_FENCE)
        return judge_fence(r, m, ret_wait, ret_status, ret_detail);
    if (!MUTANT(REPLICA_NO_EPOCH)) {
        if (m->epoch < r->epoch)
            return refuse(E_STALE, r->epoch, ret_status, ret_detail);
        if (m->epoch > r->epoch) /* never fenced: a frame may not install an epoch by itself */
            return refuse(E_PROTO, r->epoch, ret_status, ret_detail);
    }
    if ((m->kind == REPL_WRITE || m->kind == REPL_COPY) && m->session != r->session &&
        !MUTANT(REPLICA_NO_SESSION))
        return refuse(E_PROTO, r->session, ret_status, ret_detail);
    if (m->kind == REPL_WRITE)
        return judge_write(r, m, room, t, ret_wait, ret_status, ret_detail);
    if (m->kind == REPL_COPY)
        return judge_copy(r, m, room, t, ret_wait, ret_status, ret_detail);
    return REPLICA_ACCEPT;
}

bool replica_early(const struct replica *r, const struct repl_msg *m, uint64_t incarnation)
{
    return m->kind == REPL_WRITE && m->incarnation == incarnation && !r->failed && r->session && m->epoch == r->epoch &&
           m->session == r->session && m->prev_seq > r->last_seq;
}

void replica_written(struct replica *r, struct replica_ticket *t, int status)
{
    assert(!t->done);
    t->done = true;
    TAILQ_REMOVE(&r->writes, t, entry);
    if (status && t->seq != COPY_SEQ) /* later writes may become durable without this one: what is here is no longer a prefix */
        r->failed = true;
    else if (!r->failed && t->number > r->durable)
        r->durable = t->number; /* the store makes writes durable in order: those before are too */
}
