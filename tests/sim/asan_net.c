/* Simulated cluster: connections, and the replica side of each node behind them. See asan_world.h. */
#include "tests/sim/asan_world.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct frame { /* a request on its way, then its answer */
    int from, to;
    uint64_t gen, from_life, to_life;
    bool lost, stuck;
    bool stray;             /* of a broken connection: still delivered, never answered */
    struct repl_msg m;
    struct repl_answer a;
    struct iobuf *data;
    struct store_tail_rec *tail;
    struct store_version *versions;
    struct replica_ticket ticket;
    uint64_t wait;
    bool fence_done, queued;
    TAILQ_ENTRY(frame) entry, pending;
};
static TAILQ_HEAD(, frame) frames = TAILQ_HEAD_INITIALIZER(frames);   /* all, for breaking connections */
static TAILQ_HEAD(frame_list, frame) waiting[NODES];                  /* answers that wait for durability */

static void frame_free(struct frame *f)
{
    TAILQ_REMOVE(&frames, f, entry);
    if (f->queued)
        TAILQ_REMOVE(&waiting[f->to], f, pending);
    iobuf_unref(f->m.data);
    iobuf_unref(f->data);
    free(f->tail);
    free(f->versions);
    free(f);
}

static void answer_arrives(void *a, uint64_t unused)
{
    (void)unused;
    struct frame *f = a;
    struct node *n = &node[f->from];
    bool current = !f->stray && f->gen == n->conn[f->to].gen && f->from_life == n->life && n->core &&
                   n->core_epoch == f->m.epoch;
    int from = f->from, to = f->to;
    struct repl_answer ans = f->a;
    ans.data = f->data;
    if (current) {
        owner_answer(n->core, (uint32_t)to, &ans, now_ms);
        core_after(from);
    }
    frame_free(f);
}

static void reply(struct frame *f, int status, uint64_t detail)
{
    f->a.tag = f->m.tag;
    f->a.session = f->m.session;
    f->a.status = status;
    f->a.detail = detail;
    struct node *n = &node[f->from];
    uint64_t delay = f->from == f->to ? below(2) : 1 + below(4);
    if (chance(10))
        delay += below(300);
    if (n->conn[f->to].reply_ms > now_ms + delay)
        delay = n->conn[f->to].reply_ms - now_ms;
    n->conn[f->to].reply_ms = now_ms + delay;
    at(delay, answer_arrives, f, 0);
}

/* Answers whose writes have become durable. */
static void release(int i)
{
    struct node *n = &node[i];
    struct frame *f, *next;
    for (f = TAILQ_FIRST(&waiting[i]); f; f = next) {
        next = TAILQ_NEXT(f, pending);
        if (replica_durable(&n->replica) < f->wait || (f->m.kind == REPL_FENCE && !f->fence_done))
            continue;
        TAILQ_REMOVE(&waiting[i], f, pending);
        f->queued = false;
        if (f->m.kind == REPL_FENCE)
            f->a.last = replica_last(&n->replica);
        reply(f, E_OK, 0);
    }
}

static void wait_durable(struct frame *f)
{
    f->queued = true;
    TAILQ_INSERT_TAIL(&waiting[f->to], f, pending);
}

static void disk_done(struct disk_op *op, void *arg)
{
    (void)op;
    struct frame *f = *(struct frame **)arg;
    int to = f->to;
    free(arg);
    if (f->m.kind == REPL_WRITE) {
        replica_written(&node[to].replica, &f->ticket, E_OK);
        if (!(replica_bugs & REPLICA_BUG_ACK_EARLY))
            reply(f, E_OK, 0);
    } else if (f->m.kind == REPL_COPY) {
        reply(f, E_OK, 0);
    } else {
        f->fence_done = true;
    }
    release(to);
}

static struct disk_op *disk_op(struct frame *f)
{
    struct disk_op *op = xcalloc(1, sizeof *op);
    struct frame **arg = xmalloc(sizeof *arg);
    *arg = f;
    op->done = disk_done;
    op->arg = arg;
    return op;
}

static uint32_t *ids_of(const struct repl_msg *m, uint32_t count)
{
    uint32_t *ids = xcalloc(count, sizeof *ids);
    if (!m->zero)
        for (uint32_t k = 0; k < count; k++)
            memcpy(&ids[k], m->data->data + m->data_off + (size_t)k * 512, sizeof ids[k]);
    return ids;
}

static void do_tail(struct frame *f)
{
    const struct disk_state *s = &node[f->to].disk.mem;
    size_t n = 0, max = 1 + below(6); /* small pages */
    f->tail = xcalloc(max, sizeof *f->tail);
    struct store_version after = f->m.version;
    if (store_version_cmp(s->commit, after) > 0)
        after = s->commit;
    while (n < max) { /* ascending by version; the journal may hold an older epoch's record behind a younger one's */
        const struct disk_rec *best = NULL;
        for (size_t k = 0; k < s->n_rec; k++)
            if (store_version_cmp(s->rec[k].version, after) > 0 &&
                (!best || store_version_cmp(s->rec[k].version, best->version) < 0))
                best = &s->rec[k];
        if (!best)
            break;
        f->tail[n++] = (struct store_tail_rec){best->version, (uint64_t)best->first * 512, best->count * 512, false};
        after = best->version;
    }
    f->a.tail = f->tail;
    f->a.n_tail = n;
    f->a.more = n == max;
    reply(f, E_OK, 0);
}

static void do_read(struct frame *f)
{
    const struct disk *d = &node[f->to].disk;
    uint32_t first = (uint32_t)(f->m.offset / 512), count = f->m.length / 512;
    f->data = iobuf_new(f->m.length);
    memset(f->data->data, 0, f->m.length);
    for (uint32_t k = 0; k < count; k++) {
        if (d->corrupt[first + k]) {
            iobuf_unref(f->data);
            f->data = NULL;
            reply(f, E_CORRUPT, 0);
            return;
        }
        memcpy(f->data->data + (size_t)k * 512, &d->mem.id[first + k], 4);
    }
    reply(f, E_OK, 0);
}

static void do_accepted(struct frame *f)
{
    struct node *n = &node[f->to];
    struct disk_op *op;
    switch (f->m.kind) {
    case REPL_FENCE:
        op = disk_op(f);
        op->kind = D_FENCE;
        op->epoch = f->m.epoch;
        wait_durable(f);
        disk_submit(f->to, op);
        break;
    case REPL_WRITE:
    case REPL_COPY:
        op = disk_op(f);
        op->kind = f->m.kind == REPL_WRITE ? D_WRITE : D_COPY;
        op->version = f->m.kind == REPL_WRITE ? (struct store_version){f->m.epoch, f->m.seq} : f->m.version;
        op->commit_seq = f->m.commit_seq;
        op->first = (uint32_t)(f->m.offset / 512);
        op->count = f->m.length / 512;
        op->ids = ids_of(&f->m, op->count);
        disk_submit(f->to, op);
        if (f->m.kind == REPL_WRITE && replica_bugs & REPLICA_BUG_ACK_EARLY) {
            struct frame *copy = xcalloc(1, sizeof *copy);
            copy->from = f->from, copy->to = f->to, copy->gen = f->gen, copy->from_life = f->from_life;
            copy->m = f->m;
            copy->m.data = NULL;
            TAILQ_INSERT_TAIL(&frames, copy, entry);
            reply(copy, E_OK, 0);
        }
        break;
    case REPL_TAIL: do_tail(f); break;
    case REPL_READ: do_read(f); break;
    case REPL_VERSIONS:
        f->versions = xcalloc(f->m.count, sizeof *f->versions);
        memcpy(f->versions, n->disk.mem.version + f->m.chunk, f->m.count * sizeof *f->versions);
        f->a.versions = f->versions;
        reply(f, E_OK, 0);
        break;
    case REPL_COMMIT: {
        struct store_version mark = {f->m.epoch, f->m.commit_seq};
        if (store_version_cmp(mark, n->disk.mem.commit) > 0)
            n->disk.mem.commit = mark;
        reply(f, E_OK, 0);
        break;
    }
    }
}

static void frame_arrives(void *a, uint64_t unused)
{
    (void)unused;
    struct frame *f = a;
    struct node *n = &node[f->to];
    if (f->lost || f->to_life != n->life || !n->serving) { /* the process it was sent to is gone */
        frame_free(f);
        return;
    }
    if (f->stray && !f->stuck) { /* lay in a socket buffer of the connection that is gone */
        f->stuck = true;
        if (chance(600)) {
            at(below(3000), frame_arrives, f, 0);
            return;
        }
    }
    if (n->frozen_until > now_ms) {
        at(n->frozen_until - now_ms, frame_arrives, f, 0); /* entry order keeps them in order */
        return;
    }
    int status;
    uint64_t detail;
    switch (replica_judge(&n->replica, &f->m, n->view.incarnation[f->to], false, true, &f->ticket, &f->wait, &status, &detail)) {
    case REPLICA_ACCEPT: do_accepted(f); break;
    case REPLICA_WAIT:
        wait_durable(f);
        release(f->to);
        break;
    case REPLICA_REFUSE: reply(f, status, detail); break;
    }
}

void send_frame(void *arg, uint32_t disk, const struct repl_msg *m)
{
    struct node *n = arg;
    int to = (int)disk;
    struct frame *f = xcalloc(1, sizeof *f);
    f->from = n->id;
    f->to = to;
    f->m = *m;
    if (f->m.data)
        iobuf_ref(f->m.data);
    f->from_life = n->life;
    f->to_life = node[to].life;
    f->gen = n->conn[to].gen;
    TAILQ_INSERT_TAIL(&frames, f, entry);
    assert(n->conn[to].up);
    uint64_t delay = to == n->id ? 0 : 1 + below(4);
    if (chance(10))
        delay += below(200);
    if (n->conn[to].last_ms > now_ms + delay)
        delay = n->conn[to].last_ms - now_ms;
    n->conn[to].last_ms = now_ms + delay;
    at(delay, frame_arrives, f, 0);
}

void conn_up(void *a, uint64_t key)
{
    struct node *n = a;
    int to = (int)(key & 0xff);
    if (key >> 8 != (n->life & 0xffffffffffff) || !n->up || n->conn[to].up)
        return;
    struct node *p = &node[to];
    if (p->up && p->serving && !p->cut && (!n->cut || to == n->id)) {
        n->conn[to].up = true;
        n->conn[to].last_ms = n->conn[to].reply_ms = 0; /* younger frames may overtake strays of the broken connection */
        if (n->core) {
            owner_conn(n->core, (uint32_t)to, true, now_ms);
            core_after(n->id);
        }
        return;
    }
    at(20 + below(150), conn_up, n, key);
}

void conn_break(int from, int to)
{
    struct node *n = &node[from];
    if (!n->conn[to].up)
        return;
    n->conn[to].up = false;
    n->conn[to].gen++;
    struct frame *f;
    bool lost = false;
    TAILQ_FOREACH (f, &frames, entry)
        if (f->from == from && f->to == to) {
            lost = lost || chance(300); /* of what is under way a prefix arrives, maybe late */
            f->stray = true;
            f->lost = lost;
        }
    if (n->up) {
        if (n->core) {
            owner_conn(n->core, (uint32_t)to, false, now_ms);
            core_after(from);
        }
        at(20 + below(150), conn_up, n, n->life << 8 | (uint64_t)to);
    }
}

/* The node's process is gone: nobody waits for durability any more. */
void net_crash(int i)
{
    struct frame *f;
    for (int k = 0; k < n_nodes; k++) {
        node[i].conn[k].up = false;
        node[i].conn[k].gen++;
        if (k != i)
            conn_break(k, i);
    }
    while ((f = TAILQ_FIRST(&waiting[i])))
        frame_free(f);
}

void net_reset(void)
{
    for (int i = 0; i < NODES; i++)
        TAILQ_INIT(&waiting[i]);
}

void net_free(void)
{
    struct frame *f;
    while ((f = TAILQ_FIRST(&frames)))
        frame_free(f);
}
