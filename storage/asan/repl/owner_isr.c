/* Owner core: the in-sync set. One transaction at a time, each conditioned on the generation before it; until its
 * outcome is known a member that it may have added stays required, one that it removes too (rule 2, rule 6).
 * An unknown outcome is resolved by a view of a newer generation, or by repeating: a transaction on the same generation
 * that succeeds proves that no other one did. */
#include <assert.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

#define RETRY_MS 200

/* The set we want: without those that fail, as far as the minimum allows, and with a joiner that has caught up. */
static unsigned wanted_set(const struct owner *o)
{
    unsigned isr = isr_mask(o), want = isr;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].isr && o->m[i].failing)
            want &= ~bit(i);
    if (__builtin_popcount(want) < o->min_isr && !(want && MUTANT(OWNER_MIN_IGNORED)))
        want = isr;
    const struct member *j = &o->m[o->join.m];
    if (o->join.state == J_ADD && !j->failing && j->state == M_LIVE)
        want |= bit(o->join.m);
    return want;
}

void isr_pump(struct owner *o)
{
    if (o->txn_busy || o->now < o->txn_retry_ms || o->state < OWNER_FENCING || o->state == OWNER_STALE)
        return;
    unsigned want = wanted_set(o), isr = isr_mask(o);
    if (!want || (want == isr && !o->txn_uncertain))
        return;
    struct owner_txn *t = &o->txn;
    memset(t, 0, sizeof *t);
    t->epoch = o->conf.epoch;
    t->generation = o->generation;
    t->adds = (want & ~isr) != 0;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        if (!(want & bit(i)))
            continue;
        t->in_sync[t->n].disk = o->m[i].disk;
        t->in_sync[t->n++].incarnation = o->m[i].incarnation;
        if (!o->m[i].isr)
            o->m[i].add_pending = true;
    }
    o->txn_busy = true;
    o->env.txn(o->env.arg, t);
}

/* The members are as the database says now; what a lost transaction might have added is settled. */
void isr_resolved(struct owner *o)
{
    o->txn_uncertain = false;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        struct member *m = &o->m[i];
        if (m->used && !required(m))
            member_out(o, i);
    }
    /* A joiner that waited to be added while it was lost: its session has gaps nobody keeps data for. */
    if (o->join.state == J_ADD && !o->m[o->join.m].add_pending && o->m[o->join.m].state != M_LIVE)
        join_abort(o, "lost while being added");
}

static bool in_txn(const struct owner_txn *t, const struct member *m)
{
    for (int k = 0; k < t->n; k++)
        if (t->in_sync[k].disk == m->disk && t->in_sync[k].incarnation == m->incarnation)
            return true;
    return false;
}

static void applied(struct owner *o)
{
    const struct owner_txn *t = &o->txn;
    if (o->generation > t->generation)
        return; /* the view came first */
    o->generation = t->generation + 1;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        struct member *m = &o->m[i];
        if (!m->used)
            continue;
        m->isr = in_txn(t, m);
        m->add_pending = false;
        if (m->isr && o->join.state == J_ADD && o->join.m == i)
            join_added(o);
    }
    isr_resolved(o);
}

void owner_txn_done(struct owner *o, int status, uint64_t now_ms)
{
    o->now = now_ms;
    assert(o->txn_busy);
    o->txn_busy = false;
    if (o->state == OWNER_STALE)
        return;
    if ((status == E_UNKNOWN && MUTANT(OWNER_UNKNOWN_IS_DONE)) || (status == E_CONFLICT && MUTANT(OWNER_REFUSED_IS_DONE)))
        status = E_OK;
    if (status == E_OK) {
        applied(o);
    } else if (o->generation == o->txn.generation) {
        o->txn_retry_ms = now_ms + RETRY_MS; /* or the next view, if that is sooner */
        if (status == E_UNKNOWN)
            o->txn_uncertain = true;
        else if (!o->txn_uncertain) {
            for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
                o->m[i].add_pending = false;
            isr_resolved(o);
        }
    }
    owner_tick(o, now_ms);
}
