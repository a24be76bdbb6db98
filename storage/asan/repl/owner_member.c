/* Owner core: sessions with the replicas. A session begins with FENCE; its answer tells the last write the replica has of
 * our epoch, and everything after it is sent again from the operations that still wait for it. See owner.h. */
#include <assert.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

#define RETRY_MS 100

int member_find(const struct owner *o, uint32_t disk)
{
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].used && o->m[i].disk == disk)
            return i;
    return -1;
}

void member_send(struct owner *o, int i, struct repl_msg *msg)
{
    struct member *m = &o->m[i];
    assert(m->state == M_LIVE || msg->kind == REPL_FENCE);
    msg->incarnation = m->incarnation;
    msg->epoch = o->conf.epoch;
    msg->session = m->session;
    o->env.send(o->env.arg, m->disk, msg);
}

void member_want(struct owner *o, int i)
{
    struct member *m = &o->m[i];
    if (m->state == M_OUT) {
        m->state = M_WAIT;
        m->not_live_ms = o->now;
        m->retry_ms = 0;
        m->failing = m->broken = false;
    }
    if (m->state != M_WAIT || !m->up || o->now < m->retry_ms)
        return;
    m->state = M_FENCE;
    m->session = ++o->next_session;
    m->copies = 0;
    m->fence_tag = new_tag(o);
    m->ctl_ms = o->now;
    struct repl_msg msg = {.kind = REPL_FENCE, .tag = m->fence_tag, .shard_bytes = o->conf.shard_bytes,
                           .settled = o->state == OWNER_SERVING, .commit_seq = o->state == OWNER_SERVING ? o->commit_seq : 0};
    member_send(o, i, &msg);
}

void member_reset(struct owner *o, int i, uint64_t retry_in_ms)
{
    struct member *m = &o->m[i];
    if (m->state == M_LIVE)
        m->not_live_ms = o->now;
    m->state = M_WAIT;
    m->retry_ms = o->now + retry_in_ms;
    m->fence_tag = m->ctl_tag = m->ctl_ms = 0;
    m->session = ++o->next_session; /* answers to what was sent so far are not ours any more */
    struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry)
        op->sent &= ~bit(i);
    TAILQ_FOREACH (op, &o->reading, entry)
        if (op->source == i)
            op->source = -1;
    join_member_lost(o, i);
}

void member_out(struct owner *o, int i)
{
    struct member *m = &o->m[i];
    if (m->state == M_OUT)
        return;
    assert(!m->isr && !m->add_pending);
    member_reset(o, i, 0);
    m->state = M_OUT;
    m->failing = m->broken = m->joining = m->tail_done = false;
    struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry) {
        op->targets &= ~bit(i);
        op->acked &= ~bit(i);
    }
}

static void fenced(struct owner *o, int i, const struct repl_answer *a)
{
    struct member *m = &o->m[i];
    uint64_t last = a->last.epoch == o->conf.epoch ? a->last.seq : 0;
    if (a->last.epoch > o->conf.epoch || last >= o->next_seq) { /* cannot be: it would have refused us */
        m->broken = m->failing = true;
        member_reset(o, i, 1000);
        return;
    }
    m->state = M_LIVE;
    m->fence_tag = m->ctl_ms = 0;
    uint64_t sent_to = m->chain;
    (void)sent_to;
    m->chain = last;
    m->told_commit = -1;
    m->failing = m->broken = false;
    struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry) {
        if (!(op->targets & bit(i)) || op->acked & bit(i))
            continue;
        if (op->seq <= last || (MUTANT(OWNER_NO_RESEND) && op->seq <= sent_to)) /* rule 4: it holds a prefix, so it has this one */
            op->acked |= bit(i);
        else
            op_send_write(o, op, i);
    }
}

static struct owner_op *find_op(struct owner_ops *l, uint64_t tag)
{
    struct owner_op *op;
    TAILQ_FOREACH (op, l, entry)
        if (op->tag == tag)
            return op;
    return NULL;
}

/* What a refusal means for the session. E_CORRUPT of a read is not among them: it is the block's fault. A full disk keeps
 * its replica in the set, as the others are likely to be full soon, too: what is under way goes again and takes from the
 * disk's reserve; new writes of data wait (admit()). */
static void refused(struct owner *o, int i, int status)
{
    struct member *m = &o->m[i];
    uint64_t retry_ms = RETRY_MS;
    if (status == E_NOSPC) {
        retry_ms = m->full ? 1000 : 0;
        m->full = true;
        m->full_ms = o->now;
    } else if (status == E_IO || status == E_NOTFOUND) {
        m->broken = m->failing = true;
        retry_ms = 1000;
    }
    member_reset(o, i, retry_ms);
}

void member_answer(struct owner *o, int i, const struct repl_answer *a)
{
    struct member *m = &o->m[i];
    if (a->status == E_STALE && a->detail > o->conf.epoch) {
        go_stale(o, a->detail); /* even from an old session: it is true for ever */
        return;
    }
    if (m->state == M_OUT || a->session != m->session)
        return;
    if (m->fence_tag && a->tag == m->fence_tag) {
        if (a->status)
            refused(o, i, a->status);
        else
            fenced(o, i, a);
        return;
    }
    if (m->state != M_LIVE)
        return;
    struct owner_op *op;
    if (a->status && a->status != E_CORRUPT) {
        refused(o, i, a->status);
    } else if (m->ctl_tag && a->tag == m->ctl_tag) {
        m->ctl_tag = m->ctl_ms = 0;
        reconcile_tail(o, i, a);
    } else if ((op = find_op(&o->writing, a->tag))) {
        if (a->status) {
            refused(o, i, a->status);
        } else {
            op->acked |= bit(i);
            if (!m->broken && !o->txn_busy)
                m->failing = false; /* slow, but there */
        }
    } else if ((op = find_op(&o->reading, a->tag))) {
        if (op->kind == OWNER_CHECK)
            check_answer(o, op, i, a);
        else
            op_answer_read(o, op, i, a);
    } else {
        join_answer(o, i, a);
    }
}

/* Does something wait for this member, and since when does it owe an answer? */
static bool work_waits(const struct owner *o, int i, uint64_t *ret_oldest_ms)
{
    const struct owner_op *op;
    bool work = o->m[i].isr && (o->state == OWNER_FENCING || o->state == OWNER_RECONCILING);
    uint64_t oldest = UINT64_MAX;
    if (o->m[i].state != M_OUT && o->m[i].ctl_ms)
        oldest = o->m[i].ctl_ms;
    TAILQ_FOREACH (op, &o->writing, entry)
        if (op->targets & bit(i) && !(op->acked & bit(i))) {
            work = true;
            if (op->sent & bit(i) && op->sent_ms[i] < oldest)
                oldest = op->sent_ms[i];
        }
    TAILQ_FOREACH (op, &o->reading, entry)
        if (op->source == i) {
            work = true;
            if (op->sent_ms[i] < oldest)
                oldest = op->sent_ms[i];
        }
    *ret_oldest_ms = oldest;
    return work;
}

static bool is_failing(const struct owner *o, int i)
{
    const struct member *m = &o->m[i];
    uint64_t oldest;
    bool work = work_waits(o, i, &oldest);
    if (m->broken)
        return true;
    if (o->join.state != J_IDLE && o->join.m == i && !m->isr)
        work = true;
    if (!work)
        return false;
    return m->silent || (!m->up && o->now - m->down_ms >= o->conf.down_ms) ||
           (m->state != M_LIVE && o->now - m->not_live_ms >= o->conf.silent_ms) ||
           (oldest != UINT64_MAX && o->now - oldest >= o->conf.silent_ms);
}

/* A mark piggybacks on writes; when they stop the last one is told by itself, so that idle shards destage. */
static void tell_commit(struct owner *o, int i)
{
    struct member *m = &o->m[i];
    if ((o->state != OWNER_SERVING && !MUTANT(OWNER_EARLY_MARK)) || m->state != M_LIVE || m->told_commit >= (int64_t)o->commit_seq || o->now - o->last_write_ms < 100)
        return;
    m->told_commit = (int64_t)o->commit_seq;
    struct repl_msg msg = {.kind = REPL_COMMIT, .commit_seq = o->commit_seq};
    member_send(o, i, &msg);
}

void members_tick(struct owner *o)
{
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        struct member *m = &o->m[i];
        if (m->full && !m->view_full && o->now - m->full_ms >= FULL_LATCH_MS)
            m->full = false;
        if (!m->used || !required(m))
            continue;
        member_want(o, i);
        if (!m->failing && is_failing(o, i)) {
            m->failing = true;
            struct owner_op *op;
            TAILQ_FOREACH (op, &o->reading, entry) /* ask another one */
                if (op->source == i)
                    op->source = -1;
        }
        if (m->failing && m->joining && !m->add_pending) {
            join_abort(o, "does not answer");
            continue;
        }
        tell_commit(o, i);
    }
}
