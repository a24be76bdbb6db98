/* Connections: frames are late, overtake each other between two links, come twice, vanish until the connection is noticed
 * to be broken, and may arrive long after it broke: they lay in a socket's buffer. See sim.h. */
#include <assert.h>
#include <stdlib.h>
#include "tests/sim/asan/sim.h"

struct net_mode net_mode;
static TAILQ_HEAD(, frame) frames = TAILQ_HEAD_INITIALIZER(frames); /* all, for breaking connections */

void frame_free(struct frame *f)
{
    TAILQ_REMOVE(&frames, f, entry);
    if (f->queued)
        TAILQ_REMOVE(&host_waiting[f->to], f, pending);
    if (f->early)
        TAILQ_REMOVE(&host_early[f->to], f, pending);
    iobuf_unref(f->m.data);
    iobuf_unref(f->data);
    free(f->tail);
    free(f->versions);
    free(f);
}

struct frame *net_copy(const struct frame *f)
{
    struct frame *c = xcalloc(1, sizeof *c);
    c->from = f->from;
    c->to = f->to;
    c->gen = f->gen;
    c->from_life = f->from_life;
    c->to_life = f->to_life;
    c->m = f->m;
    if (c->m.data)
        iobuf_ref(c->m.data);
    TAILQ_INSERT_TAIL(&frames, c, entry);
    return c;
}

/* When it arrives: a link keeps the order of its frames, two links do not. */
static uint64_t delay_of(struct conn *c, bool back, bool local)
{
    int link = net_mode.links && !local && chance(100);
    uint64_t *last = &c->last_ms[back][link], delay = local ? 0 : 1 + below(4);
    if (chance(net_mode.late))
        delay += below(250);
    if (*last > now_ms + delay)
        delay = *last - now_ms;
    *last = now_ms + delay;
    return delay;
}

/* ---- answers ---- */

static void answer_arrives(void *a, uint64_t unused)
{
    (void)unused;
    struct frame *f = a;
    struct node *n = &node[f->from];
    int from = f->from, to = f->to;
    bool current = !f->detained && f->gen == n->conn[to].gen && f->from_life == n->life && n->core &&
                   n->core_epoch == f->m.epoch && now_ms >= n->conn[to].dark_until;
    TRACE("%d <- %d kind %d session %lu seq %lu status %d%s", f->from, f->to, f->m.kind, f->m.session, f->m.seq, f->a.status, current ? "" : " (late)");
    if (current) {
        struct repl_answer ans = f->a;
        ans.data = f->data;
        owner_answer(n->core, (uint32_t)to, &ans, now_ms);
        core_after(from);
    }
    frame_free(f);
}

void net_reply(struct frame *f, int status, uint64_t detail)
{
    f->a.tag = f->m.tag;
    f->a.session = f->m.session;
    f->a.status = status;
    f->a.detail = detail;
    at(delay_of(&node[f->from].conn[f->to], true, f->from == f->to), answer_arrives, f, 0);
}

/* ---- requests ---- */

static void frame_arrives(void *a, uint64_t unused)
{
    (void)unused;
    struct frame *f = a;
    struct node *n = &node[f->to];
    if (f->lost || f->to_life != n->life || !n->serving) { /* the process it was sent to is gone */
        frame_free(f);
        return;
    }
    if (f->detained && !f->stuck) {
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
    host_frame(f);
}

void net_send(void *arg, uint32_t disk, const struct repl_msg *m)
{
    struct node *n = arg;
    int to = (int)disk;
    struct conn *c = &n->conn[to];
    struct frame first = {.from = n->id, .to = to, .gen = c->gen, .from_life = n->life, .to_life = node[to].life, .m = *m};
    assert(c->up);
    if (m->kind == REPL_WRITE)
        check_write_sent(m, n->id);
    TRACE("%d -> %d kind %d epoch %lu session %lu seq %lu (%lu) sectors %lu+%u chunk %lu+%u version %lu.%lu", n->id, to, m->kind, m->epoch,
          m->session, m->seq, m->prev_seq, m->offset / 512, m->length / 512, m->chunk, m->count, m->version.epoch, m->version.seq);
    struct frame *f = net_copy(&first);
    f->lost = now_ms < c->dark_until;
    at(delay_of(c, false, to == n->id), frame_arrives, f, 0);
    if (chance(net_mode.duplicate) && to != n->id) /* sent again on another link, and both arrive */
        at(below(chance(500) ? 10 : 600), frame_arrives, net_copy(&first), 0);
}

/* ---- connections ---- */

void conn_up(void *a, uint64_t key)
{
    struct node *n = a;
    int to = (int)(key & 0xff);
    struct conn *c = &n->conn[to];
    if (key >> 8 != (n->life & 0xffffffffffff) || !n->up || c->up)
        return;
    if (node[to].up && node[to].serving && !node[to].cut && (!n->cut || to == n->id)) {
        uint64_t gen = c->gen;
        *c = (struct conn){.up = true, .gen = gen}; /* younger frames may overtake those of the broken connection */
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
            f->detained = true;
            f->lost = f->lost || lost;
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
    for (int k = 0; k < n_nodes; k++) {
        node[i].conn[k].up = false;
        node[i].conn[k].gen++;
        if (k != i)
            conn_break(k, i);
    }
}

void net_reset(void)
{
    assert(TAILQ_EMPTY(&frames));
}

void net_free(void)
{
    while (!TAILQ_EMPTY(&frames))
        frame_free(TAILQ_FIRST(&frames));
}
