/* Replica core: fence, session and order of one replica's writes. See replica.h. */
#include "storage/asan/repl/replica.h"

#include <assert.h>
#include <string.h>

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
    if (m->epoch < r->epoch && !(r->test_bugs & REPLICA_BUG_NO_EPOCH_CHECK))
        return refuse(E_STALE, r->epoch, ret_status, ret_detail);
    if (m->epoch == r->epoch && m->session <= r->session && !(r->test_bugs & REPLICA_BUG_NO_SESSION))
        return refuse(E_PROTO, r->session, ret_status, ret_detail); /* overtaken by a younger connection's */
    if (m->epoch != r->epoch) {
        r->epoch = m->epoch;
        r->last_seq = 0;
    }
    r->session = m->session;
    *ret_wait = r->tickets;
    return REPLICA_ACCEPT;
}

static enum replica_verdict judge_write(struct replica *r, const struct repl_msg *m, bool room, struct replica_ticket *t,
                                        uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail)
{
    if (m->seq <= r->last_seq) { /* had it: durable unless still among `writes` */
        struct replica_ticket *w;
        *ret_wait = 0;
        TAILQ_FOREACH (w, &r->writes, entry)
            if (w->seq <= m->seq)
                *ret_wait = w->number;
        return REPLICA_WAIT;
    }
    if (m->prev_seq != r->last_seq)
        return refuse(E_PROTO, r->last_seq, ret_status, ret_detail);
    if (!room)
        return refuse(E_NOSPC, 0, ret_status, ret_detail);
    r->last_seq = m->seq;
    t->number = ++r->tickets;
    t->seq = m->seq;
    t->done = false;
    TAILQ_INSERT_TAIL(&r->writes, t, entry);
    return REPLICA_ACCEPT;
}

enum replica_verdict replica_judge(struct replica *r, const struct repl_msg *m, uint64_t incarnation, bool sealed, bool room,
                                   struct replica_ticket *t, uint64_t *ret_wait, int *ret_status, uint64_t *ret_detail)
{
    if (m->incarnation != incarnation)
        return refuse(E_CONFLICT, incarnation, ret_status, ret_detail);
    if (r->failed)
        return refuse(E_IO, 0, ret_status, ret_detail);
    if (m->kind == REPL_READ && m->epoch == 0)
        return sealed ? REPLICA_ACCEPT : refuse(E_STALE, r->epoch, ret_status, ret_detail);
    if (m->kind == REPL_FENCE)
        return judge_fence(r, m, ret_wait, ret_status, ret_detail);
    if (!(r->test_bugs & REPLICA_BUG_NO_EPOCH_CHECK)) {
        if (m->epoch < r->epoch)
            return refuse(E_STALE, r->epoch, ret_status, ret_detail);
        if (m->epoch > r->epoch) /* never fenced: a frame may not install an epoch by itself */
            return refuse(E_PROTO, r->epoch, ret_status, ret_detail);
    }
    if ((m->kind == REPL_WRITE || m->kind == REPL_COPY) && m->session != r->session &&
        !(r->test_bugs & REPLICA_BUG_NO_SESSION))
        return refuse(E_PROTO, r->session, ret_status, ret_detail);
    if (m->kind == REPL_WRITE)
        return judge_write(r, m, room, t, ret_wait, ret_status, ret_detail);
    if (m->kind == REPL_COPY && !room)
        return refuse(E_NOSPC, 0, ret_status, ret_detail);
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
    if (status) /* later writes may become durable without this one: what is here is no longer a prefix */
        r->failed = true;
    else if (!r->failed && t->number > r->durable)
        r->durable = t->number; /* the store makes writes durable in order: those before are too */
}
