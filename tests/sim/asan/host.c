/* The replica side of a node: judges a frame with the real replica core, does what it accepted on the simulated disk, and
 * answers when that is durable, as engine/host.c does. See sim.h. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/asan/sim.h"

#define EARLY_MS 1000

struct frame_list host_waiting[NODES], host_early[NODES];

void host_open(int i)
{
    const struct disk_state *s = &node[i].disk.mem;
    struct store_shard_info info = {.exists = s->exists, .epoch = s->epoch, .last = s->last, .commit = s->commit};
    replica_init(&node[i].replica, &info);
    check_opened(i, info.exists ? info.epoch : 0);
}

/* Answers whose writes have become durable, or never will. */
static void release(int i)
{
    struct replica *r = &node[i].replica;
    struct frame *f, *next;
    for (f = TAILQ_FIRST(&host_waiting[i]); f; f = next) {
        next = TAILQ_NEXT(f, pending);
        if (f->m.kind == REPL_FENCE && !f->fence_done)
            continue;
        if (!r->failed && replica_durable(r) < f->wait)
            continue;
        TAILQ_REMOVE(&host_waiting[i], f, pending);
        f->queued = false;
        if (f->m.kind == REPL_FENCE) {
            f->a.last = replica_last(r);
            check_fenced(i, f->m.epoch);
        }
        net_reply(f, r->failed ? E_IO : E_OK, 0);
    }
}

static void wait_durable(struct frame *f)
{
    f->queued = true;
    TAILQ_INSERT_TAIL(&host_waiting[f->to], f, pending);
}

void host_durable(struct frame *f, int status)
{
    int to = f->to;
    bool answered = f->m.kind == REPL_WRITE && MUTANT(HOST_ACK_EARLY);
    if (f->m.kind == REPL_WRITE || f->m.kind == REPL_COPY)
        replica_written(&node[to].replica, &f->ticket, status);
    if (answered)
        frame_free(f);
    else
        net_reply(f, status, 0);
    release(to);
}

void host_fenced(struct frame *f, int status)
{
    int to = f->to;
    if (status) {
        TAILQ_REMOVE(&host_waiting[to], f, pending);
        f->queued = false;
        net_reply(f, status, 0);
        return;
    }
    f->fence_done = true;
    release(to);
}

/* ---- what was accepted ---- */

static void do_tail(struct frame *f)
{
    size_t max = 1 + below(6); /* small pages */
    f->tail = xcalloc(max, sizeof *f->tail);
    f->a.tail = f->tail;
    f->a.n_tail = disk_tail(f->to, f->m.version, f->tail, max);
    f->a.more = f->a.n_tail == max;
    net_reply(f, E_OK, 0);
}

static void do_read(struct frame *f)
{
    const struct disk *d = &node[f->to].disk;
    const struct disk_state *s = disk_seen(f->to);
    uint32_t first = (uint32_t)(f->m.offset / 512), count = f->m.length / 512;
    if (d->eio_until > now_ms) {
        net_reply(f, E_IO, 0);
        return;
    }
    for (uint32_t k = first; k < first + count && !MUTANT(HOST_NO_READ_CRC); k++)
        if (d->flipped[k]) {
            net_reply(f, E_CORRUPT, 0);
            return;
        }
    f->data = iobuf_new(f->m.length);
    memset(f->data->data, 0, f->m.length);
    for (uint32_t k = 0; k < count; k++) {
        uint32_t id = d->flipped[first + k] ? FLIPPED : s->id[first + k];
        memcpy(f->data->data + (size_t)k * 512, &id, sizeof id);
    }
    net_reply(f, E_OK, 0);
}

static uint32_t *ids_of(const struct repl_msg *m, uint32_t count)
{
    uint32_t *ids = xcalloc(count, sizeof *ids);
    if (!m->zero)
        for (uint32_t k = 0; k < count; k++)
            memcpy(&ids[k], m->data->data + m->data_off + (size_t)k * 512, sizeof ids[k]);
    return ids;
}

static void do_write(struct frame *f)
{
    struct disk_rec *r = xcalloc(1, sizeof *r);
    r->copy = f->m.kind == REPL_COPY;
    r->version = r->copy ? f->m.version : (struct store_version){f->m.epoch, f->m.seq};
    r->commit_seq = f->m.commit_seq;
    r->first = (uint32_t)(f->m.offset / 512);
    r->count = f->m.length / 512;
    r->ids = ids_of(&f->m, r->count);
    r->frame = f;
    if (MUTANT(HOST_ACK_EARLY) && !r->copy)
        net_reply(net_copy(f), E_OK, 0);
    disk_submit(f->to, r);
}

static void do_accepted(struct frame *f)
{
    switch (f->m.kind) {
    case REPL_FENCE:
        if (f->m.settled)
            disk_mark(f->to, (struct store_version){f->m.epoch, f->m.commit_seq});
        wait_durable(f);
        disk_fence(f->to, f->m.epoch, f);
        break;
    case REPL_WRITE:
    case REPL_COPY: do_write(f); break;
    case REPL_TAIL: do_tail(f); break;
    case REPL_READ: do_read(f); break;
    case REPL_VERSIONS:
        f->versions = xcalloc(f->m.count, sizeof *f->versions);
        memcpy(f->versions, disk_seen(f->to)->version + f->m.chunk, f->m.count * sizeof *f->versions);
        f->a.versions = f->versions;
        net_reply(f, E_OK, 0);
        break;
    case REPL_COMMIT:
        disk_mark(f->to, (struct store_version){f->m.epoch, f->m.commit_seq});
        net_reply(f, E_OK, 0);
        break;
    }
}

static void judge(struct frame *f)
{
    struct node *n = &node[f->to];
    int status;
    uint64_t detail;
    switch (replica_judge(&n->replica, &f->m, n->view.incarnation[f->to], false, true, &f->ticket, &f->wait, &status, &detail)) {
    case REPLICA_ACCEPT: do_accepted(f); break;
    case REPLICA_WAIT:
        wait_durable(f);
        release(f->to);
        break;
    case REPLICA_REFUSE: net_reply(f, status, detail); break;
    }
}

static void early_keep(struct frame *f)
{
    struct frame *at;
    f->early = true;
    f->early_ms = now_ms;
    TAILQ_FOREACH_REVERSE (at, &host_early[f->to], frame_list, pending)
        if (at->m.seq <= f->m.seq) {
            TAILQ_INSERT_AFTER(&host_early[f->to], at, f, pending);
            return;
        }
    TAILQ_INSERT_HEAD(&host_early[f->to], f, pending);
}

static void early_take(struct frame *f)
{
    TAILQ_REMOVE(&host_early[f->to], f, pending);
    f->early = false;
}

void host_frame(struct frame *f)
{
    int to = f->to;
    struct node *n = &node[to];
    uint64_t incarnation = n->view.incarnation[to];
    if (n->disk.dead) {
        net_reply(f, E_IO, 0);
        return;
    }
    if (replica_early(&n->replica, &f->m, incarnation) && !MUTANT(REPLICA_NO_CHAIN)) {
        early_keep(f);
        return;
    }
    judge(f);
    while ((f = TAILQ_FIRST(&host_early[to])) && !replica_early(&n->replica, &f->m, incarnation)) {
        early_take(f);
        judge(f);
    }
}

/* A predecessor that never comes. */
void host_tick(int i)
{
    struct frame *f, *next;
    for (f = TAILQ_FIRST(&host_early[i]); f; f = next) {
        next = TAILQ_NEXT(f, pending);
        if (now_ms - f->early_ms < EARLY_MS)
            continue;
        early_take(f);
        net_reply(f, E_PROTO, node[i].replica.last_seq);
    }
}

/* Nobody waits for durability any more. */
void host_crash(int i)
{
    struct frame *f;
    struct disk_rec *r;
    while ((f = TAILQ_FIRST(&host_waiting[i])))
        frame_free(f);
    while ((f = TAILQ_FIRST(&host_early[i])))
        frame_free(f);
    TAILQ_FOREACH (r, &node[i].disk.queued, entry) {
        if (r->frame)
            frame_free(r->frame);
        r->frame = NULL;
    }
    TAILQ_INIT(&node[i].replica.writes);
}

void host_reset(void)
{
    for (int i = 0; i < NODES; i++) {
        TAILQ_INIT(&host_waiting[i]);
        TAILQ_INIT(&host_early[i]);
    }
}
