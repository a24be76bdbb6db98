/* Simulated cluster: time, disks, connections, the database and the glue between cores. See asan_world.h. */
#include "tests/sim/asan_world.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t rng_state, now_ms;
struct db db;
struct node node[NODES];
int n_nodes, volume_replicas;
unsigned owner_bugs, replica_bugs;
bool store_counts_copies;

uint64_t rnd(void) /* splitmix64 */
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

/* ---- events: a binary heap by (time, order of entry) ---- */

struct event { uint64_t ms, order; event_fn *fn; void *a; uint64_t b; };
static struct event *heap;
static size_t heap_n, heap_cap;
static uint64_t event_order;

static bool before(const struct event *x, const struct event *y)
{
    return x->ms != y->ms ? x->ms < y->ms : x->order < y->order;
}

void at(uint64_t delay_ms, event_fn *fn, void *a, uint64_t b)
{
    if (heap_n == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 256;
        heap = xrealloc(heap, heap_cap * sizeof *heap);
    }
    struct event e = {now_ms + delay_ms, event_order++, fn, a, b};
    size_t i = heap_n++;
    for (; i && before(&e, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

bool run_one(void)
{
    if (!heap_n)
        return false;
    struct event e = heap[0], last = heap[--heap_n];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < heap_n; i = c) {
        if (c + 1 < heap_n && before(&heap[c + 1], &heap[c]))
            c++;
        if (!before(&heap[c], &last))
            break;
        heap[i] = heap[c];
    }
    heap[i] = last;
    now_ms = e.ms;
    e.fn(e.a, e.b);
    return true;
}

/* ---- disks ---- */

static void state_apply(struct disk_state *s, const struct disk_op *op)
{
    if (op->kind == D_FENCE) {
        s->exists = true;
        if (op->epoch > s->epoch)
            s->epoch = op->epoch;
        return;
    }
    memcpy(s->id + op->first, op->ids, op->count * sizeof *op->ids);
    for (uint32_t c = op->first / CHUNK_SECTORS; c <= (op->first + op->count - 1) / CHUNK_SECTORS; c++)
        s->version[c] = op->version;
    if (op->kind == D_COPY) {
        if (store_counts_copies && store_version_cmp(op->version, s->last) > 0)
            s->last = op->version;
        return;
    }
    if (store_version_cmp(op->version, s->last) > 0)
        s->last = op->version;
    struct store_version mark = {op->version.epoch, op->commit_seq};
    if (op->commit_seq && store_version_cmp(mark, s->commit) > 0)
        s->commit = mark;
    if (s->n_rec == s->cap_rec) { /* destage: what is below the mark leaves the journal */
        size_t n = 0;
        for (size_t k = 0; k < s->n_rec; k++)
            if (store_version_cmp(s->rec[k].version, s->commit) > 0)
                s->rec[n++] = s->rec[k];
        s->n_rec = n;
    }
    if (s->n_rec == s->cap_rec) {
        s->cap_rec = s->cap_rec ? s->cap_rec * 2 : 64;
        s->rec = xrealloc(s->rec, s->cap_rec * sizeof *s->rec);
    }
    s->rec[s->n_rec++] = (struct disk_rec){op->version, op->first, op->count, false};
}

static void op_free(struct disk_op *op)
{
    free(op->ids);
    free(op);
}

static void disk_durable(void *a, uint64_t life)
{
    struct node *n = a;
    struct disk *d = &n->disk;
    if (life != n->life)
        return;
    uint32_t batch = 1 + below(4); /* group commit */
    while (batch-- && d->head) {
        struct disk_op *op = d->head;
        if (!(d->head = op->next))
            d->tail = &d->head;
        state_apply(&d->dur, op);
        if (op->done)
            op->done(op, op->arg);
        op_free(op);
    }
    d->busy = d->head != NULL;
    if (d->busy)
        at(below(4), disk_durable, n, n->life);
}

void disk_submit(int i, struct disk_op *op)
{
    struct node *n = &node[i];
    struct disk *d = &n->disk;
    op->next = NULL;
    *d->tail = op;
    d->tail = &op->next;
    state_apply(&d->mem, op);
    if (op->kind != D_FENCE)
        memset(d->corrupt + op->first, 0, op->count);
    if (!d->busy) {
        d->busy = true;
        at(chance(20) ? 20 + below(400) : below(4), disk_durable, n, n->life);
    }
}

static void state_copy(struct disk_state *to, const struct disk_state *from)
{
    struct disk_rec *rec = to->rec;
    size_t cap = to->cap_rec;
    if (cap < from->n_rec) {
        cap = from->n_rec;
        rec = xrealloc(rec, cap * sizeof *rec);
    }
    if (from->n_rec)
        memcpy(rec, from->rec, from->n_rec * sizeof *rec);
    *to = *from;
    to->rec = rec;
    to->cap_rec = cap;
}

/* Power cut: of what was submitted and not yet reported durable, any prefix is there afterwards. */
void disk_crash(int i)
{
    struct disk *d = &node[i].disk;
    bool keep = true;
    while (d->head) {
        struct disk_op *op = d->head;
        d->head = op->next;
        keep = keep && chance(500);
        if (keep)
            state_apply(&d->dur, op);
        free(op->arg);
        op_free(op);
    }
    d->tail = &d->head;
    d->busy = false;
    state_copy(&d->mem, &d->dur);
}

void disk_wipe(int i)
{
    struct disk *d = &node[i].disk;
    for (int k = 0; k < 2; k++) {
        struct disk_state *s = k ? &d->mem : &d->dur;
        struct disk_rec *rec = s->rec;
        size_t cap = s->cap_rec;
        memset(s, 0, sizeof *s);
        s->rec = rec;
        s->cap_rec = cap;
    }
    memset(d->corrupt, 0, sizeof d->corrupt);
}

/* ---- the database ---- */

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

static void view_arrives(void *a, uint64_t rev);

void db_changed(void)
{
    db.rev++;
    for (int i = 0; i < n_nodes; i++)
        if (node[i].up && !node[i].cut)
            at(chance(50) ? below(300) : below(8), view_arrives, &node[i], node[i].life);
}

static void to_core(int i)
{
    struct node *n = &node[i];
    const struct db *v = &n->view;
    if (!n->core)
        return;
    struct owner_view ov = {.epoch = v->epoch, .mine = v->owner == i, .exists = v->exists, .generation = v->generation,
                            .n = v->n_replicas};
    for (int k = 0; k < v->n_replicas; k++) {
        int d = v->replica[k];
        ov.replica[k] = (struct owner_view_replica){(uint32_t)d, v->incarnation[d], db_in_sync(v, d), true, d == i,
                                                    n->conn[d].up};
    }
    owner_view(n->core, &ov, now_ms);
    core_after(i);
}

static void take_view(int i)
{
    struct node *n = &node[i];
    if (n->view.rev >= db.rev)
        return;
    n->view = db;
    if (!n->first_epoch)
        n->first_epoch = db.epoch;
    to_core(i);
    core_poll(i);
}

static void view_arrives(void *a, uint64_t life)
{
    struct node *n = a;
    if (life == n->life && n->up && !n->cut)
        take_view(n->id);
}

/* ---- nodes ---- */

static void opened(void *a, uint64_t life)
{
    struct node *n = a;
    if (life != n->life)
        return;
    if (n->cut) {
        at(100, opened, n, life);
        return;
    }
    if (n->raise) { /* own-disk check: what was wiped is in sync with nothing */
        n->raise = false;
        db.incarnation[n->id]++;
        db_changed();
    }
    take_view(n->id);
    if (!n->view.rev)
        n->view = db, n->first_epoch = db.epoch;
    n->serving = true;
    const struct disk_state *s = &n->disk.mem;
    struct store_shard_info info = {.exists = s->exists, .epoch = s->epoch, .last = s->last, .commit = s->commit};
    replica_init(&n->replica, &info);
    n->replica.test_bugs = replica_bugs;
    for (int i = 0; i < n_nodes; i++)
        at(below(50), conn_up, n, n->life << 8 | (uint64_t)i);
    core_poll(n->id);
}

void node_start(int i)
{
    struct node *n = &node[i];
    if (n->up)
        return;
    trace("node %d starts", i);
    n->up = true;
    memset(&n->view, 0, sizeof n->view);
    n->view.owner = -1;
    n->first_epoch = n->used_epoch = 0;
    n->claim_busy = false;
    n->frozen_until = 0;
    at(below(100), opened, n, n->life);
}

static void core_close(int i)
{
    struct node *n = &node[i];
    struct owner_ops ops = TAILQ_HEAD_INITIALIZER(ops);
    struct owner_op *op;
    if (!n->core)
        return;
    owner_drain(n->core, &ops);
    while ((op = owner_take_done(n->core)))
        TAILQ_INSERT_TAIL(&ops, op, entry);
    owner_free(n->core);
    n->core = NULL;
    while ((op = TAILQ_FIRST(&ops))) {
        TAILQ_REMOVE(&ops, op, entry);
        guest_dropped(op);
    }
}

void node_crash(int i)
{
    struct node *n = &node[i];
    if (!n->up)
        return;
    trace("node %d crashes", i);
    core_close(i);
    n->up = n->serving = false;
    n->life++;
    net_crash(i);
    disk_crash(i);
}

void node_cut(int i, bool cut)
{
    struct node *n = &node[i];
    n->cut = cut;
    trace("node %d %s", i, cut ? "cut" : "healed");
    for (int k = 0; k < n_nodes && cut; k++)
        if (k != i) {
            conn_break(k, i);
            conn_break(i, k);
        }
    if (!cut && n->up)
        at(below(50), view_arrives, n, n->life);
}

bool newest_core_serving(void)
{
    for (int i = 0; i < n_nodes; i++) {
        struct owner_info info;
        if (!node[i].core || node[i].core_epoch != db.epoch)
            continue;
        owner_info(node[i].core, &info);
        return info.state == OWNER_SERVING;
    }
    return false;
}

/* ---- transactions ---- */

struct pending_txn {
    int from;
    uint64_t life, epoch_of_core;
    enum { T_CREATE, T_ISR, T_CLAIM } kind;
    struct owner_txn t;
    uint64_t epoch;
    int status;
    bool unknown;
    TAILQ_ENTRY(pending_txn) entry;
};
static TAILQ_HEAD(, pending_txn) txns = TAILQ_HEAD_INITIALIZER(txns);

static struct pending_txn *txn_new(struct node *n)
{
    struct pending_txn *p = xcalloc(1, sizeof *p);
    p->from = n->id;
    TAILQ_INSERT_TAIL(&txns, p, entry);
    return p;
}

static void txn_free(struct pending_txn *p)
{
    TAILQ_REMOVE(&txns, p, entry);
    free(p);
}

static int run_create(struct pending_txn *p)
{
    if (db.epoch != p->epoch || db.owner != p->from || db.exists)
        return E_CONFLICT;
    db.exists = true;
    db.generation = 1;
    db.n_replicas = 0;
    memset(db.in_sync, 0, sizeof db.in_sync);
    for (int k = 0; k < n_nodes && db.n_replicas < volume_replicas; k++) {
        int d = (p->from + k) % n_nodes;
        if (!node[d].up && n_nodes - k > volume_replicas - db.n_replicas)
            continue;
        db.replica[db.n_replicas++] = d;
        db.in_sync[d] = db.incarnation[d];
    }
    return E_OK;
}

static int run_isr(struct pending_txn *p)
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
    bool intact = false;
    for (int d = 0; d < n_nodes; d++)
        intact = intact || (db_in_sync(&db, d) && !node[d].raise);
    if (!intact) { /* the last good disk was just wiped: a loss that no protocol survives is not what is tested here */
        db = old;
        return E_CONFLICT;
    }
    if (db_isr_count(&db) < owner_min_isr(volume_replicas) && db_isr_count(&db) < db_isr_count(&old))
        violation("in-sync set made smaller than the minimum");
    for (int d = 0; d < n_nodes; d++)
        if (db_in_sync(&db, d) && !db_in_sync(&old, d))
            check_added(d);
    trace("isr now %d%d%d%d gen %lu", db_in_sync(&db, 0), db_in_sync(&db, 1), db_in_sync(&db, 2), db_in_sync(&db, 3),
          db.generation);
    return E_OK;
}

static void txn_result(void *a, uint64_t unused)
{
    (void)unused;
    struct pending_txn *p = a;
    struct node *n = &node[p->from];
    if (n->life == p->life && n->up) {
        if (p->status == E_OK && !n->cut)
            take_view(p->from);
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
    struct pending_txn *p = a;
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

static void txn_submit(struct pending_txn *p)
{
    p->life = node[p->from].life;
    uint64_t delay = 2 + below(chance(50) ? 400 : 20);
    if (chance(60)) { /* the outcome stays unknown: done, not done, or done after the caller was told so */
        uint32_t how = below(3);
        if (how == 0) {
            p->unknown = true;
        } else {
            if (how == 1) {
                struct pending_txn *late = txn_new(&node[p->from]);
                late->life = p->life;
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

static void env_create(void *arg)
{
    struct node *n = arg;
    struct pending_txn *p = txn_new(n);
    p->kind = T_CREATE;
    p->epoch = p->epoch_of_core = n->core_epoch;
    txn_submit(p);
}

static void env_txn(void *arg, const struct owner_txn *t)
{
    struct node *n = arg;
    struct pending_txn *p = txn_new(n);
    p->kind = T_ISR;
    p->t = *t;
    p->epoch_of_core = n->core_epoch;
    txn_submit(p);
}

/* What the engine does: a core for the volume while this node owns it, in an epoch that nobody used before. */
void core_poll(int i)
{
    struct node *n = &node[i];
    if (!n->up || !n->serving || !n->view.rev)
        return;
    bool mine = n->view.owner == i;
    if (n->core && (!mine || n->view.epoch > n->core_epoch))
        core_close(i);
    if (!mine || n->core)
        return;
    if (n->view.epoch <= n->used_epoch || n->view.epoch == n->first_epoch) {
        if (n->claim_busy)
            return;
        n->claim_busy = true;
        struct pending_txn *p = txn_new(n);
        p->kind = T_CLAIM;
        p->epoch = n->view.epoch;
        txn_submit(p);
        return;
    }
    struct owner_conf conf = {.env = {send_frame, env_create, env_txn, n}, .epoch = n->view.epoch,
                              .shard_bytes = (uint64_t)CHUNKS * STORE_CHUNK, .replicas = volume_replicas,
                              .batch_chunks = 4, .op_border = BORDER, .window_bytes = 512 << 10, .test_bugs = owner_bugs};
    n->core_epoch = n->used_epoch = n->view.epoch;
    n->core = owner_new(&conf, now_ms);
    trace("node %d owns epoch %lu", i, n->core_epoch);
    owner_lease(n->core, n->lease, now_ms);
    owner_allow_join(n->core, true, now_ms);
    to_core(i);
    guest_resubmit(i);
}

void core_after(int i)
{
    struct node *n = &node[i];
    struct owner_op *op;
    while (n->core && (op = owner_take_done(n->core)))
        guest_done(i, op);
}

static void tick(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    for (int i = 0; i < n_nodes; i++) {
        if (node[i].core) {
            owner_tick(node[i].core, now_ms);
            core_after(i);
        }
        core_poll(i);
    }
    at(50, tick, NULL, 0);
}

void world_reset(void)
{
    memset(&db, 0, sizeof db);
    memset(node, 0, sizeof node);
    now_ms = 1000;
    db.rev = 1;
    db.owner = 0;
    db.epoch = 1;
    for (int i = 0; i < NODES; i++) {
        db.incarnation[i] = 1;
        node[i].id = i;
        node[i].lease = true;
        node[i].disk.tail = &node[i].disk.head;
        TAILQ_INIT(&node[i].replica.writes);
    }
    net_reset();
    for (int i = 0; i < n_nodes; i++)
        node_start(i);
    at(50, tick, NULL, 0);
}

void world_free(void)
{
    for (int i = 0; i < n_nodes; i++) {
        node_crash(i);
        free(node[i].disk.mem.rec);
        free(node[i].disk.dur.rec);
    }
    heap_n = 0;
    net_free();
    while (!TAILQ_EMPTY(&txns))
        txn_free(TAILQ_FIRST(&txns));
}
