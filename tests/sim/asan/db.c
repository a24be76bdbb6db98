/* The cluster database: one volume with one shard, views that arrive late, transactions that are refused, come late, or
 * whose outcome stays unknown (done, not done, or done long after the caller was told so). See sim.h. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/asan/sim.h"

struct db db;

bool db_in_sync(const struct db *d, int disk)
{
    return d->in_sync[disk] && d->in_sync[disk] == d->incarnation[disk];
}

int db_isr_count(const struct db *d)
{
    int n = 0;
    for (int i = 0; i < NODES; i++)
        n += db_in_sync(d, i);
    return n;
}

int db_intact(const struct db *d)
{
    int n = 0;
    for (int i = 0; i < NODES; i++)
        n += db_in_sync(d, i) && !node[i].raise && !node[i].disk.dead && !node[i].disk.fail_next;
    return n;
}

static void view_arrives(void *a, uint64_t life)
{
    struct node *n = a;
    if (life == n->life && n->up && !n->cut)
        node_view(n->id);
}

void db_changed(void)
{
    db.rev++;
    for (int i = 0; i < n_nodes; i++)
        if (node[i].up && !node[i].cut)
            at(chance(80) ? below(500) : below(8), view_arrives, &node[i], node[i].life);
}

/* ---- transactions ---- */

struct txn {
    int from;
    uint64_t life, epoch_of_core;
    enum { T_CREATE, T_ISR, T_CLAIM } kind;
    struct owner_txn t;
    uint64_t epoch;
    int status;
    bool unknown;
    TAILQ_ENTRY(txn) entry;
};
static TAILQ_HEAD(, txn) txns = TAILQ_HEAD_INITIALIZER(txns);

static struct txn *txn_new(int from)
{
    struct txn *t = xcalloc(1, sizeof *t);
    t->from = from;
    t->life = node[from].life;
    t->epoch_of_core = node[from].core_epoch;
    TAILQ_INSERT_TAIL(&txns, t, entry);
    return t;
}

static void txn_free(struct txn *t)
{
    TAILQ_REMOVE(&txns, t, entry);
    free(t);
}

static int run_create(const struct txn *p)
{
    if (db.epoch != p->epoch || db.owner != p->from || db.exists)
        return E_CONFLICT;
    db.exists = true;
    db.generation = 1;
    db.n_replicas = 0;
    memset(db.in_sync, 0, sizeof db.in_sync);
    for (int k = 0; k < n_nodes && db.n_replicas < volume_replicas; k++) {
        int d = (p->from + k) % n_nodes;
        if ((!node[d].up || node[d].disk.dead) && n_nodes - k > volume_replicas - db.n_replicas)
            continue;
        db.replica[db.n_replicas++] = d;
        db.in_sync[d] = db.incarnation[d];
    }
    return E_OK;
}

static int run_isr(const struct txn *p)
{
    if (db.epoch != p->t.epoch || db.owner != p->from || !db.exists || db.generation != p->t.generation)
        return E_CONFLICT;
    for (int k = 0; k < p->t.n; k++)
        if (db.incarnation[p->t.in_sync[k].disk] != p->t.in_sync[k].incarnation)
            return E_CONFLICT;
    struct db old = db;
    memset(db.in_sync, 0, sizeof db.in_sync);
    for (int k = 0; k < p->t.n; k++)
        db.in_sync[p->t.in_sync[k].disk] = p->t.in_sync[k].incarnation;
    db.generation++;
    if (!db_intact(&db) && db_intact(&old)) { /* the last good disk was just lost: no protocol survives that */
        db = old;
        return E_CONFLICT;
    }
    TRACE("isr now %d%d%d%d gen %lu", db_in_sync(&db, 0), db_in_sync(&db, 1), db_in_sync(&db, 2), db_in_sync(&db, 3),
          db.generation);
    check_isr_change(&old);
    return E_OK;
}

static void txn_result(void *a, uint64_t unused)
{
    (void)unused;
    struct txn *p = a;
    struct node *n = &node[p->from];
    if (n->life == p->life && n->up) {
        if (p->status == E_OK && !n->cut)
            node_view(p->from);
        if (p->status == E_OK && n->cut) /* the connection broke before the answer came */
            p->status = E_UNKNOWN;
        if (p->kind == T_CLAIM) {
            n->claim_busy = false;
            core_poll(p->from);
        } else if (n->core && n->core_epoch == p->epoch_of_core) {
            if (p->kind == T_CREATE)
                owner_created(n->core, p->status, now_ms);
            else
                owner_txn_done(n->core, p->status, now_ms);
            core_after(p->from);
        }
    }
    txn_free(p);
}

static void txn_run(void *a, uint64_t late)
{
    struct txn *p = a;
    struct node *n = &node[p->from];
    if (n->cut && n->life == p->life && n->up && !late) { /* without quorum it waits */
        at(50, txn_run, p, 0);
        return;
    }
    if (n->cut && !late) { /* never left the node */
        txn_free(p);
        return;
    }
    uint64_t rev = db.rev;
    switch (p->kind) {
    case T_CREATE: p->status = run_create(p); break;
    case T_ISR: p->status = run_isr(p); break;
    case T_CLAIM:
        p->status = E_CONFLICT;
        if (db.owner == p->from && db.epoch == p->epoch) {
            db.epoch++;
            p->status = E_OK;
        }
        break;
    }
    if (p->status == E_OK && db.rev == rev)
        db_changed();
    if (late) {
        txn_free(p);
        return;
    }
    if (p->unknown)
        p->status = E_UNKNOWN;
    at(below(10), txn_result, p, 0);
}

static void txn_submit(struct txn *p)
{
    uint64_t delay = 2 + below(chance(50) ? 400 : 20);
    if (chance(30)) { /* refused for a reason of the database's own, a precondition that another row broke for a moment */
        p->status = E_CONFLICT;
        at(delay, txn_result, p, 0);
        return;
    }
    if (chance(60)) { /* the outcome stays unknown: done, not done, or done after the caller was told so */
        uint32_t how = below(3);
        if (how == 0) {
            p->unknown = true;
        } else {
            if (how == 1) {
                struct txn *late = txn_new(p->from);
                late->kind = p->kind;
                late->t = p->t;
                late->epoch = p->epoch;
                at(delay + below(600), txn_run, late, 1);
            }
            p->status = E_UNKNOWN;
            at(delay, txn_result, p, 0);
            return;
        }
    }
    at(delay, txn_run, p, 0);
}

void db_create(void *arg)
{
    struct node *n = arg;
    struct txn *p = txn_new(n->id);
    p->kind = T_CREATE;
    p->epoch = n->core_epoch;
    txn_submit(p);
}

void db_txn(void *arg, const struct owner_txn *t)
{
    struct node *n = arg;
    struct txn *p = txn_new(n->id);
    p->kind = T_ISR;
    p->t = *t;
    txn_submit(p);
}

void db_claim(int i, uint64_t epoch)
{
    struct txn *p = txn_new(i);
    p->kind = T_CLAIM;
    p->epoch = epoch;
    txn_submit(p);
}

void db_reset(void)
{
    while (!TAILQ_EMPTY(&txns))
        txn_free(TAILQ_FIRST(&txns));
    memset(&db, 0, sizeof db);
    db.rev = 1;
    db.owner = 0;
    db.epoch = 1;
    for (int i = 0; i < NODES; i++)
        db.incarnation[i] = 1;
}
