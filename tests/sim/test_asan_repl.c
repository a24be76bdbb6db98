/* Simulation of aSAN's replication: the real owner and replica cores on a cluster that loses frames, connections, nodes,
 * disks and transactions' answers at any moment, judged by what one guest may see of its disk.
 *
 *   test_asan_repl                 300 seeds, then each planted bug must be found
 *   test_asan_repl --seed N [-v]   one seed, with a trace
 *   test_asan_repl --seeds N       that many
 *   test_asan_repl --bug NAME      with a planted bug
 *
 * Model, per sector: the writes of the guest's present life are known in order; what an earlier life left unfinished is a
 * candidate until a read or a completed write decides. A read must return the newest write submitted before it (reads
 * and writes that overlap keep their order), or one of the candidates, and then that one for ever.
 * Checked besides: a completed write is durable on every in-sync disk; a replica that is added equals the others; the
 * in-sync set never shrinks below its minimum; a fenced owner completes nothing; once faults end everything completes,
 * every replica returns to the set, and all are equal, versions and bytes. */
#include "tests/sim/asan_world.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEEDS 300
#define RUN_MS 15000
#define SETTLE_MS 120000
#define UNDECIDED UINT32_MAX

struct sector {
    uint32_t cand[CAND];
    int n_cand;
    bool live, acked;          /* a write of this life was submitted / completed */
    uint32_t last, acked_id;
    uint64_t life;             /* of the last write submitted */
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
static TAILQ_HEAD(, gop) active;  /* of this life, in order of submission */
static int guest_node, n_active, guest_depth;
static uint64_t guest_life, seed, done_reads, done_writes, late_acks, adds;
static uint32_t next_id;
static bool faults_on, guest_stopped;
static int run_kind;              /* which faults this seed favours */
bool trace_on;

void trace(const char *fmt, ...)
{
    va_list ap;
    if (!trace_on)
        return;
    printf("%8lu ", now_ms);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

_Noreturn void violation(const char *fmt, ...)
{
    va_list ap;
    fflush(stdout);
    fprintf(stderr, "seed %lu at %lu ms: ", seed, now_ms);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

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
static void end_life(void)
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
    for (uint32_t k = 0; k < SECTORS; k++)
        sector[k].live = sector[k].acked = false;
    n_active = 0;
    guest_life++;
}

/* ---- requests ---- */

static void submit(struct gop *g)
{
    if (node[guest_node].core) {
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
    uint32_t max = chance(700) ? 12 : chance(700) ? CHUNK_SECTORS : border;
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
        } else {
            g->expect[k] = s->live ? s->last : UNDECIDED;
        }
    }
    TAILQ_INSERT_TAIL(&active, g, entry);
    n_active++;
    submit(g);
}

/* A guest on the wrong side of a partition that was not paused in time: it goes on writing. */
static void rogue_write(void)
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

static void guest_step(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    if (!guest_stopped && n_active < guest_depth) {
        uint32_t first, count;
        random_range(&first, &count);
        uint32_t what = below(100);
        guest_submit(what >= 40, what >= 92, first, count);
    }
    if (faults_on && chance(50))
        rogue_write();
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
    done_reads++;
}

static void write_done(struct gop *g)
{
    for (uint32_t k = g->first; k < g->first + g->count; k++) {
        sector[k].acked = true;
        sector[k].acked_id = g->id;
        for (int d = 0; d < n_nodes && db.exists; d++)
            if (db_in_sync(&db, d) && !node[d].raise && node[d].disk.dur.id[k] != g->id)
                violation("write %u is complete, but in-sync disk %d has not got sector %u durably (has %u)", g->id, d, k,
                          node[d].disk.dur.id[k]);
    }
    done_writes++;
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
    late_acks++;
}

void guest_done(int n, struct owner_op *op)
{
    struct gop *g = op->arg;
    if (op->status && op->status != E_CORRUPT)
        violation("request failed with %d", op->status);
    if (g->life != guest_life || n != guest_node) {
        if (op->kind == OWNER_WRITE)
            late_write_done(g);
    } else {
        TAILQ_REMOVE(&active, g, entry);
        n_active--;
        if (op->kind == OWNER_WRITE)
            write_done(g);
        else if (!op->status)
            read_done(g);
    }
    iobuf_unref(op->data);
    free(g);
}

void check_added(int disk)
{
    adds++;
    if (node[disk].raise) /* wiped meanwhile: its incarnation will say so before it serves */
        return;
    for (int d = 0; d < n_nodes; d++) {
        if (d == disk || !db_in_sync(&db, d) || node[d].raise)
            continue;
        for (uint32_t k = 0; k < SECTORS; k++) {
            uint32_t x = node[disk].disk.mem.id[k], y = node[d].disk.mem.id[k];
            if (x == y)
                continue;
            /* A write under way, or one of a dead guest, may have reached one only. */
            bool pending = is_candidate(&sector[k], x) && is_candidate(&sector[k], y);
            struct gop *g;
            TAILQ_FOREACH (g, &active, entry)
                pending = pending || (g->op.kind == OWNER_WRITE && k >= g->first && k < g->first + g->count);
            for (int i = 0; i < n_nodes; i++)
                pending = pending || node[i].rogue;
            if (!pending && !node[d].disk.corrupt[k] && !node[disk].disk.corrupt[k])
                violation("disk %d is added, but sector %u is %u there and %u on disk %d", disk, k, x, y, d);
        }
        return;
    }
}

/* ---- faults ---- */

static bool reachable(int i)
{
    return node[i].up && node[i].serving && !node[i].cut;
}

static void move_guest(int to)
{
    guest_node = to;
    db.owner = to;
    db.epoch++;
    trace("guest moves to node %d, epoch %lu", to, db.epoch);
    db_changed();
}

/* The coordinator's verdict about a node that has been away. */
static void declare_dead(void *a, uint64_t life)
{
    struct node *n = a;
    bool away = !n->up || n->cut || n->life != life;
    if (!away || !faults_on)
        return;
    if (n->cut && !n->rogue)
        n->lease = false;
    if (n->core) {
        owner_lease(n->core, n->lease, now_ms);
        core_after(n->id);
    }
    struct db d = db;
    d.incarnation[n->id]++;
    int left = 0;
    for (int i = 0; i < n_nodes; i++)
        left += db_in_sync(&d, i) && !node[i].raise;
    bool changed = false;
    if (db_in_sync(&db, n->id) && left >= 1) {
        trace("disk %d is declared out of date", n->id);
        db = d;
        changed = true;
    }
    if (guest_node == n->id) {
        int to = -1, tries = 8;
        while (to < 0 && tries--) {
            int k = (int)below((uint32_t)n_nodes);
            if (reachable(k) && k != n->id)
                to = k;
        }
        if (to >= 0) {
            end_life();
            move_guest(to);
            return;
        }
        at(200, declare_dead, n, life);
    }
    if (changed)
        db_changed();
}

static void restart(void *a, uint64_t unused)
{
    (void)unused;
    struct node *n = a;
    if (n->up)
        return;
    n->lease = true;
    n->rogue = false;
    node_start(n->id);
}

static void heal(void *a, uint64_t unused)
{
    (void)unused;
    struct node *n = a;
    if (!n->cut)
        return;
    n->lease = true;
    if (!n->core || n->core_epoch == db.epoch)
        n->rogue = false;
    node_cut(n->id, false);
    if (n->core && n->core_epoch == db.epoch) {
        owner_lease(n->core, true, now_ms);
        core_after(n->id);
    }
}

static void lease_back(void *a, uint64_t life)
{
    struct node *n = a;
    if (life != n->life || n->cut)
        return;
    n->lease = true;
    if (n->core) {
        owner_lease(n->core, true, now_ms);
        core_after(n->id);
    }
}

static int intact_isr(void)
{
    int n = 0;
    for (int d = 0; d < n_nodes; d++)
        n += db_in_sync(&db, d) && !node[d].raise;
    return n;
}

static void fault_crash(struct node *n, bool guest_survives, bool wipe)
{
    if (!n->up)
        return;
    if (n->id == guest_node && !guest_survives)
        end_life();
    uint64_t life = n->life;
    node_crash(n->id);
    if (wipe) {
        trace("disk %d is wiped", n->id);
        disk_wipe(n->id);
        n->raise = true;
    }
    at(guest_survives ? 100 + below(600) : 50 + below(5000), restart, n, 0);
    if (!guest_survives)
        at(500 + below(2500), declare_dead, n, life);
}

static void fault_corrupt(void)
{
    for (int d = 0; d < n_nodes; d++)
        for (uint32_t k = 0; k < SECTORS; k++)
            if (node[d].disk.corrupt[k])
                return; /* one at a time */
    int d = (int)below((uint32_t)n_nodes);
    if (db.exists && db_in_sync(&db, d) && intact_isr() >= 2) {
        uint32_t k = below(CHUNK_SECTORS * 4);
        trace("disk %d sector %u goes bad", d, k);
        node[d].disk.corrupt[k] = true;
    }
}

static void migrate(void *a, uint64_t tries)
{
    (void)a;
    if (!faults_on)
        tries = 0;
    if (n_active && tries) {
        at(20, migrate, NULL, tries - 1);
        return;
    }
    guest_stopped = false;
    int to = (int)below((uint32_t)n_nodes);
    if (!n_active && faults_on && reachable(guest_node) && reachable(to) && to != guest_node)
        move_guest(to);
}

static void chaos(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    if (!faults_on)
        return;
    struct node *n = &node[below((uint32_t)n_nodes)];
    if (chance(300))
        n = &node[guest_node];
    uint32_t what = below(100);
    if (run_kind == 1) /* mostly owner changes */
        what = what < 70 ? below(2) ? 5 : 70 : what;
    if (what < 22) {
        fault_crash(n, false, false);
    } else if (what < 34 && !n->cut && n->up) {
        node_cut(n->id, true);
        n->rogue = n->id == guest_node && chance(500);
        at(100 + below(5000), heal, n, 0);
        at(500 + below(2500), declare_dead, n, n->life);
    } else if (what < 46) {
        n->frozen_until = now_ms + 100 + below(5000);
        trace("node %d freezes", n->id);
    } else if (what < 62) {
        conn_break(n->id, (int)below((uint32_t)n_nodes));
    } else if (what < 74) {
        if (!guest_stopped) {
            guest_stopped = true;
            at(0, migrate, NULL, 50);
        }
    } else if (what < 84) {
        fault_crash(&node[guest_node], true, false);
    } else if (what < 89) {
        bool others = true;
        for (int i = 0; i < n_nodes; i++)
            others = others && !node[i].raise;
        if (db_in_sync(&db, n->id) ? intact_isr() >= 2 && others : others)
            fault_crash(n, false, true);
    } else if (what < 94) {
        fault_corrupt();
    } else {
        n->lease = false;
        if (n->core) {
            owner_lease(n->core, false, now_ms);
            core_after(n->id);
        }
        at(100 + below(2000), lease_back, n, n->life);
    }
    at(below(run_kind == 2 ? 5000 : run_kind ? 900 : 2000), chaos, NULL, 0);
}

/* Joins are short: connections are broken in the middle of some on purpose. */
static void break_join(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    struct owner_info info;
    for (int i = 0; i < n_nodes && faults_on; i++) {
        if (!node[i].core || !chance(150))
            continue;
        owner_info(node[i].core, &info);
        if (info.joining)
            conn_break(i, (int)info.join_disk);
    }
    at(5, break_join, NULL, 0);
}

/* ---- a run ---- */

static bool settled(void)
{
    for (int i = 0; i < n_nodes; i++)
        if (!node[i].serving || node[i].raise)
            return false;
    return !n_active && !guest_stopped && db.exists && db_isr_count(&db) == db.n_replicas;
}

static void stop_faults(void)
{
    faults_on = false;
    trace("faults end");
    for (int i = 0; i < n_nodes; i++) {
        node[i].frozen_until = 0;
        memset(node[i].disk.corrupt, 0, sizeof node[i].disk.corrupt);
        if (node[i].cut)
            heal(&node[i], 0);
        node[i].lease = true;
        if (node[i].core) {
            owner_lease(node[i].core, true, now_ms);
            core_after(i);
        }
        restart(&node[i], 0);
    }
    if (db.owner != guest_node)
        move_guest(guest_node);
    guest_stopped = false;
}

static void run_until_settled(const char *what)
{
    uint64_t limit = now_ms + SETTLE_MS;
    while (!settled()) {
        if (now_ms > limit || !run_one()) {
            struct owner_info info = {0};
            if (node[guest_node].core)
                owner_info(node[guest_node].core, &info);
            violation("no progress (%s): %d requests open, %d of %d replicas in sync, owner %s, parked: %s", what, n_active,
                      db_isr_count(&db), db.n_replicas, owner_state_name(info.state), info.parked ? info.parked : "no");
        }
    }
}

static void final_checks(void)
{
    for (uint32_t k = 0; k < SECTORS; k += BORDER / 512)
        guest_submit(false, false, k, BORDER / 512);
    guest_depth = 0;
    run_until_settled("last reads");
    int first = -1;
    for (int d = 0; d < n_nodes; d++) {
        if (!db_in_sync(&db, d))
            continue;
        if (first < 0)
            first = d;
        for (uint32_t k = 0; k < SECTORS; k++)
            if (node[d].disk.mem.id[k] != node[first].disk.mem.id[k])
                violation("in the end sector %u differs on disks %d and %d", k, first, d);
        for (uint32_t c = 0; c < CHUNKS; c++)
            if (store_version_cmp(node[d].disk.mem.version[c], node[first].disk.mem.version[c]))
                violation("in the end chunk %u has different versions on disks %d and %d", c, first, d);
    }
}

static void run_seed(uint64_t s)
{
    seed = s;
    rng_state = s * 0x9e3779b97f4a7c15ULL + 1;
    volume_replicas = chance(700) ? 3 : chance(700) ? 2 : 1;
    n_nodes = volume_replicas == 3 ? 3 + (int)below(2) : 2 + (int)below(2);
    store_counts_copies = chance(500);
    run_kind = (int)below(3);
    guest_depth = 1 + (int)below(GUEST_OPS);
    memset(sector, 0, sizeof sector);
    for (uint32_t k = 0; k < SECTORS; k++)
        add_candidate(&sector[k], 0);
    TAILQ_INIT(&active);
    guest_node = n_active = 0;
    guest_life = 1;
    next_id = 0;
    faults_on = true;
    guest_stopped = false;
    world_reset();
    at(50, guest_step, NULL, 0);
    at(500 + below(1000), chaos, NULL, 0);
    at(5, break_join, NULL, 0);
    while (now_ms < RUN_MS && run_one())
        ;
    stop_faults();
    int depth = guest_depth;
    guest_depth = 0;
    run_until_settled("after the faults");
    guest_depth = depth;
    final_checks();
    end_life();
    world_free();
}

/* ---- planted bugs: each must be found, or the simulation proves nothing ---- */

static const struct bug { const char *name; unsigned owner, replica; int seeds; } bugs[] = {
    {"early-ack", OWNER_BUG_EARLY_ACK, 0, 20},
    {"ack-before-txn", OWNER_BUG_ACK_BEFORE_TXN, 0, 100},
    {"no-reconcile", OWNER_BUG_NO_RECONCILE, 0, 200},
    {"join-uncopied", OWNER_BUG_JOIN_UNCOPIED, 0, 100},
    {"copy-unlocked", OWNER_BUG_COPY_UNLOCKED, 0, 200},
    {"no-overlap-order", OWNER_BUG_NO_OVERLAP, 0, 50},
    {"replica-no-epoch-check", 0, REPLICA_BUG_NO_EPOCH_CHECK, 200},
    {"replica-no-session", 0, REPLICA_BUG_NO_SESSION, 1000},
    {"replica-ack-early", 0, REPLICA_BUG_ACK_EARLY, 100},
};

static bool bug_found(const struct bug *b)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(2);
    }
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(0);
        owner_bugs = b->owner;
        replica_bugs = b->replica;
        for (int s = 1; s <= b->seeds; s++)
            run_seed((uint64_t)s);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

int main(int argc, char **argv)
{
    uint64_t first = 1, seeds = SEEDS;
    bool hunt = true;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            seeds = 1;
            hunt = false;
        } else if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            seeds = strtoull(argv[++i], NULL, 10);
            hunt = false;
        } else if (!strcmp(argv[i], "-v")) {
            trace_on = true;
        } else if (!strcmp(argv[i], "--bug") && i + 1 < argc) {
            const char *name = argv[++i];
            for (size_t k = 0; k < sizeof bugs / sizeof bugs[0]; k++)
                if (!strcmp(bugs[k].name, name))
                    owner_bugs = bugs[k].owner, replica_bugs = bugs[k].replica;
            hunt = false;
        } else {
            fprintf(stderr, "usage: %s [--seed N | --seeds N] [--bug NAME] [-v]\n", argv[0]);
            return 2;
        }
    }
    for (uint64_t s = first; s < first + seeds; s++)
        run_seed(s);
    printf("%lu seeds: %lu reads, %lu writes, %lu late answers, %lu replicas added: all right\n", seeds, done_reads,
           done_writes, late_acks, adds);
    int missed = 0;
    for (size_t k = 0; hunt && k < sizeof bugs / sizeof bugs[0]; k++) {
        bool found = bug_found(&bugs[k]);
        printf("planted bug %-24s %s\n", bugs[k].name, found ? "found" : "NOT FOUND");
        missed += !found;
    }
    return missed ? 1 : 0;
}
