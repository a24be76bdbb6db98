/* The guest and the model of its disk: a linearizable register per 512-byte sector.
 *
 * The writes of the guest's present life are known in order; what an earlier life left unfinished is a candidate until a
 * read or a completed write decides. A read must return the newest write submitted before it (reads and writes that overlap
 * keep their order), or one of the candidates, and then that one for ever. A completed write must be durable on every
 * in-sync disk. A fenced owner completes nothing that it began after it was fenced. See sim.h. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/asan/sim.h"

#define CAND 48
#define UNDECIDED UINT32_MAX

struct sector {
    uint32_t cand[CAND];
    int n_cand;
    bool live, acked;          /* a write of this life was submitted / completed */
    uint32_t last, acked_id;
    uint64_t life;             /* of the last write submitted */
    unsigned open;             /* writes of this life under way */
};
static struct sector sector[SECTORS];

struct gop { /* a guest's request */
    struct owner_op op;
    uint64_t life;
    uint32_t id, first, count;
    bool in_core, issued, hopeless; /* issued: a core has had it at some time; hopeless: submitted to an owner that was already fenced */
    uint32_t expect[BORDER / 512];
    TAILQ_ENTRY(gop) entry;
};
static TAILQ_HEAD(, gop) active = TAILQ_HEAD_INITIALIZER(active); /* of this life, in order of submission */
int guest_node, guest_active, guest_depth;
bool guest_stopped;
static uint64_t guest_life;
static uint32_t next_id;

/* ---- the model ---- */

static void add_candidate(struct sector *s, uint32_t id)
{
    for (int k = 0; k < s->n_cand; k++)
        if (s->cand[k] == id)
            return;
    if (s->n_cand == CAND)
        violation("model: too many candidates");
    s->cand[s->n_cand++] = id;
}

static bool is_candidate(const struct sector *s, uint32_t id)
{
    for (int k = 0; k < s->n_cand; k++)
        if (s->cand[k] == id)
            return true;
    return false;
}

static void decide(struct sector *s, uint32_t id)
{
    s->cand[0] = id;
    s->n_cand = 1;
}

/* The guest is dead or paused for good: its unfinished writes may or may not have happened. */
void guest_end_life(void)
{
    struct gop *g, *next;
    for (uint32_t k = 0; k < SECTORS; k++)
        if (sector[k].acked)
            decide(&sector[k], sector[k].acked_id);
    for (g = TAILQ_FIRST(&active); g; g = next) {
        next = TAILQ_NEXT(g, entry);
        if (g->op.kind == OWNER_WRITE && g->issued)
            for (uint32_t k = g->first; k < g->first + g->count; k++)
                add_candidate(&sector[k], g->id);
        TAILQ_REMOVE(&active, g, entry);
        if (!g->in_core) {
            iobuf_unref(g->op.data);
            free(g);
        }
    }
    for (uint32_t k = 0; k < SECTORS; k++) {
        sector[k].live = sector[k].acked = false;
        sector[k].open = 0;
    }
    guest_active = 0;
    guest_life++;
}

/* ---- requests ---- */

/* The lease that lets a guest run was granted for the newest view, and its node serves nothing before it has that view. What
 * a core of an older view answers to others is guest_rogue_write()'s part. */
static void submit(struct gop *g)
{
    if (node[guest_node].core && node[guest_node].core_epoch == db.epoch) {
        g->in_core = g->issued = true;
        owner_submit(node[guest_node].core, &g->op, now_ms);
        core_after(guest_node);
    }
}

static struct gop *new_gop(bool write, bool zero, uint32_t first, uint32_t count)
{
    struct gop *g = xcalloc(1, sizeof *g);
    g->first = first;
    g->count = count;
    g->life = guest_life;
    g->op.kind = write ? OWNER_WRITE : OWNER_READ;
    g->op.offset = (uint64_t)first * 512;
    g->op.length = count * 512;
    g->op.zero = zero;
    g->op.arg = g;
    if (write) {
        g->id = zero ? 0 : ++next_id;
        if (!zero) {
            g->op.data = iobuf_new(g->op.length);
            memset(g->op.data->data, 0, g->op.length);
            for (uint32_t k = 0; k < count; k++)
                memcpy(g->op.data->data + (size_t)k * 512, &g->id, sizeof g->id);
        }
    }
    return g;
}

static void random_range(uint32_t *ret_first, uint32_t *ret_count)
{
    const uint32_t border = BORDER / 512;
    uint32_t max = chance(700) ? 6 : chance(700) ? CHUNK_SECTORS : border;
    uint32_t first = chance(600) ? below(CHUNK_SECTORS * 4) : below(SECTORS), count = 1 + below(max);
    if (chance(200)) /* around chunk borders */
        first = first / CHUNK_SECTORS * CHUNK_SECTORS + CHUNK_SECTORS - 1 - below(4);
    if (count > border - first % border)
        count = border - first % border;
    *ret_first = first;
    *ret_count = count;
}

static void guest_submit(bool write, bool zero, uint32_t first, uint32_t count)
{
    struct gop *g = new_gop(write, zero, first, count);
    for (uint32_t k = 0; k < count; k++) {
        struct sector *s = &sector[first + k];
        if (write) {
            s->live = true;
            s->life = guest_life;
            s->last = g->id;
            s->open++;
        } else {
            g->expect[k] = s->live ? s->last : UNDECIDED;
        }
    }
    TAILQ_INSERT_TAIL(&active, g, entry);
    guest_active++;
    submit(g);
}

/* A guest on the wrong side of a partition that was not paused in time: it goes on writing. */
void guest_rogue_write(void)
{
    for (int i = 0; i < n_nodes; i++) {
        if (i == guest_node || !node[i].core || node[i].core_epoch == db.epoch || !node[i].rogue)
            continue;
        uint32_t first, count;
        random_range(&first, &count);
        struct gop *g = new_gop(true, false, first, count);
        g->life = 0;
        g->in_core = true;
        g->hopeless = newest_core_serving();
        for (uint32_t k = first; k < first + count && !g->hopeless; k++)
            add_candidate(&sector[k], g->id);
        owner_submit(node[i].core, &g->op, now_ms);
        core_after(i);
    }
}

void guest_step(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    if (!guest_stopped && guest_active < guest_depth) {
        uint32_t first, count;
        random_range(&first, &count);
        uint32_t what = below(100);
        guest_submit(what >= 40, what >= 92, first, count);
    }
    if (faults_on && chance(50))
        guest_rogue_write();
    at(below(chance(50) ? 60 : 8), guest_step, NULL, 0);
}

void guest_resubmit(int n)
{
    struct gop *g;
    if (n != guest_node || !node[n].core || node[n].core_epoch != db.epoch)
        return;
    TAILQ_FOREACH (g, &active, entry) {
        if (g->in_core)
            continue;
        g->in_core = g->issued = true;
        owner_submit(node[n].core, &g->op, now_ms);
    }
    core_after(n);
}

void guest_dropped(struct owner_op *op)
{
    struct gop *g = op->arg;
    g->in_core = false;
    if (g->op.kind == OWNER_READ) {
        iobuf_unref(g->op.data);
        g->op.data = NULL;
    }
    if (g->life != guest_life) {
        iobuf_unref(g->op.data);
        free(g);
    }
}

static void read_done(struct gop *g)
{
    for (uint32_t k = 0; k < g->count; k++) {
        struct sector *s = &sector[g->first + k];
        uint32_t id = 0;
        if (g->op.data)
            memcpy(&id, g->op.data->data + g->op.data_off + (size_t)k * 512, sizeof id);
        if (g->expect[k] != UNDECIDED) {
            if (id != g->expect[k])
                violation("sector %u reads write %u, must be %u", g->first + k, id, g->expect[k]);
            continue;
        }
        if (!is_candidate(s, id))
            violation("sector %u reads write %u, which it cannot hold", g->first + k, id);
        decide(s, id);
    }
    stats.reads++;
}

static void write_done(struct gop *g)
{
    for (uint32_t k = g->first; k < g->first + g->count; k++) {
        sector[k].acked = true;
        sector[k].acked_id = g->id;
        sector[k].open--;
        for (int d = 0; d < n_nodes && db.exists; d++)
            if (db_in_sync(&db, d) && !node[d].raise && node[d].disk.dur.id[k] != g->id)
                violation("write %u is complete, but in-sync disk %d has not got sector %u durably (has %u)", g->id, d, k,
                          node[d].disk.dur.id[k]);
    }
    stats.writes++;
}

/* An owner that lost the volume reports a write it had begun before. */
static void late_write_done(struct gop *g)
{
    if (g->hopeless)
        violation("a fenced owner completed write %u", g->id);
    for (uint32_t k = g->first; k < g->first + g->count; k++) {
        struct sector *s = &sector[k];
        if (s->life > g->life || g->life == 0)
            continue; /* overwritten since; two rogue writes have no order between each other that we know */
        if (!is_candidate(s, g->id))
            violation("write %u (sector %u) was reported complete by the old owner, but the new one had decided otherwise", g->id, k);
    }
    stats.late++;
}

void guest_done(int n, struct owner_op *op)
{
    struct gop *g = op->arg;
    if (op->status && op->status != E_CORRUPT)
        violation("request failed with %d", op->status);
    if (op->kind == OWNER_READ && !op->status && !node[n].lease)
        violation("node %d answers a read without a lease", n);
    if (g->life != guest_life || n != guest_node) {
        if (op->kind == OWNER_WRITE)
            late_write_done(g);
    } else {
        TAILQ_REMOVE(&active, g, entry);
        guest_active--;
        if (op->kind == OWNER_WRITE)
            write_done(g);
        else if (!op->status)
            read_done(g);
    }
    iobuf_unref(op->data);
    free(g);
}

bool guest_pending(uint32_t k, uint32_t x, uint32_t y)
{
    const struct gop *g;
    if (is_candidate(&sector[k], x) && is_candidate(&sector[k], y))
        return true;
    TAILQ_FOREACH (g, &active, entry)
        if (g->op.kind == OWNER_WRITE && k >= g->first && k < g->first + g->count)
            return true;
    for (int i = 0; i < n_nodes; i++)
        if (node[i].rogue)
            return true;
    return false;
}

bool guest_acked(uint32_t k, uint32_t *ret_id)
{
    const struct sector *s = &sector[k];
    *ret_id = s->acked_id;
    return s->acked && !s->open;
}

void guest_restore(void)
{
    for (uint32_t k = 0; k < SECTORS; k += 8) {
        bool bad = false;
        for (int i = 0; i < n_nodes; i++)
            bad = bad || memchr(node[i].disk.flipped + k, true, 8);
        if (bad)
            guest_submit(true, false, k, 8);
    }
}

void guest_read_all(void)
{
    for (uint32_t k = 0; k < SECTORS; k += BORDER / 512)
        guest_submit(false, false, k, BORDER / 512);
}

void guest_reset(void)
{
    memset(sector, 0, sizeof sector);
    for (uint32_t k = 0; k < SECTORS; k++)
        add_candidate(&sector[k], 0);
    guest_node = guest_active = 0;
    guest_life = 1;
    next_id = 0;
    guest_stopped = false;
}
