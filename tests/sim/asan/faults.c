/* What goes wrong. Every seed has its own mixture, so that rare faults meet in some of them. Limits: at least one in-sync
 * disk keeps its content (what no protocol survives is not tested), and a disk is swapped or fails only if another in-sync
 * one is intact. See sim.h. */
#include <string.h>
#include "tests/sim/asan/sim.h"

bool faults_on;
static int mixture; /* 1: mostly changes of owner; 2: quiet, long joins; 3: dying processes and disks */

static void move_guest(int to)
{
    guest_node = to;
    db.owner = to;
    db.epoch++;
    TRACE("guest moves to node %d, epoch %lu", to, db.epoch);
    db_changed();
}

/* ---- nodes that go away ---- */

/* The coordinator's verdict about a node that has been away. */
static void declare_dead(void *a, uint64_t life)
{
    struct node *n = a;
    bool away = !n->up || n->cut || n->life != life;
    if (!away || !faults_on)
        return;
    if (n->cut && !n->rogue)
        n->lease = false;
    if (n->core)
        node_lease(n->id, n->lease);
    struct db old = db;
    bool changed = false;
    if (db_in_sync(&db, n->id)) {
        db.incarnation[n->id]++;
        if (db_intact(&db)) {
            TRACE("disk %d is declared out of date", n->id);
            changed = true;
        } else {
            db = old;
        }
    }
    if (guest_node == n->id) {
        int to = -1, tries = 8;
        while (to < 0 && tries--) {
            int k = (int)below((uint32_t)n_nodes);
            if (reachable(k) && k != n->id)
                to = k;
        }
        if (to >= 0) {
            guest_end_life();
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
    if (n->core && n->core_epoch == db.epoch)
        node_lease(n->id, true);
}

static void fault_crash(struct node *n, bool guest_survives, bool swap)
{
    if (!n->up)
        return;
    if (n->id == guest_node && !guest_survives)
        guest_end_life();
    uint64_t life = n->life;
    node_crash(n->id);
    if (swap) {
        TRACE("disk %d is swapped for an empty one", n->id);
        disk_swap(n->id);
        n->raise = true;
    }
    at(guest_survives ? 100 + below(600) : 50 + below(3000), restart, n, 0);
    if (!guest_survives)
        at(300 + below(2000), declare_dead, n, life);
}

static void fault_cut(struct node *n)
{
    if (n->cut || !n->up)
        return;
    node_cut(n->id, true);
    n->rogue = n->id == guest_node && chance(500);
    at(100 + below(3000), heal, n, 0);
    at(300 + below(2000), declare_dead, n, n->life);
}

/* ---- disks ---- */

static bool may_lose(int d)
{
    for (int i = 0; i < n_nodes; i++)
        if (node[i].raise || node[i].disk.dead)
            return false; /* one at a time */
    return !db_in_sync(&db, d) || db_intact(&db) >= 2;
}

/* The admin puts another one in: what was on it is gone. */
static void replace_disk(void *a, uint64_t unused)
{
    struct node *n = a;
    (void)unused;
    if (!n->disk.dead)
        return;
    if (!n->up) {
        TRACE("failed disk %d is replaced", n->id);
        disk_swap(n->id);
        n->raise = true;
        return;
    }
    fault_crash(n, chance(500), true);
}

static void fault_disk_fails(struct node *n)
{
    if (!n->up || !may_lose(n->id) || n->disk.fail_next)
        return;
    TRACE("disk %d is about to fail", n->id);
    n->disk.fail_next = true;
    at(800 + below(3000), replace_disk, n, 0);
}

static uint32_t some_block(int d)
{
    const struct disk_rec *r = TAILQ_LAST(&node[d].disk.journal, disk_recs);
    return r && chance(500) ? r->first / 8 : below(CHUNK_SECTORS * 4 / 8);
}

static void flip(int d, uint32_t block)
{
    TRACE("disk %d sectors %u..%u: bits flip", d, block * 8, block * 8 + 7);
    memset(node[d].disk.flipped + block * 8, true, 8);
}

/* On one disk at a time, so that a good copy is left as long as there is another one in sync; or the same blocks on all. */
static void fault_flip(void)
{
    int d = (int)below((uint32_t)n_nodes);
    bool all = chance(200);
    for (int i = 0; i < n_nodes; i++)
        if (memchr(node[i].disk.flipped, true, SECTORS))
            d = i;
    for (uint32_t n = 1 + below(4); n && db.exists; n--) {
        uint32_t block = some_block(d);
        for (int i = 0; i < n_nodes; i++)
            if (i == d || all)
                flip(i, block);
    }
}

/* ---- guest and owner ---- */

static void migrate(void *a, uint64_t tries)
{
    (void)a;
    if (!faults_on)
        tries = 0;
    if (guest_active && tries) {
        at(20, migrate, NULL, tries - 1);
        return;
    }
    guest_stopped = false;
    int to = (int)below((uint32_t)n_nodes);
    if (!guest_active && faults_on && reachable(guest_node) && reachable(to) && to != guest_node)
        move_guest(to);
}

static void lease_back(void *a, uint64_t life)
{
    struct node *n = a;
    if (life == n->life && !n->cut)
        node_lease(n->id, true);
}

static void dark_end(void *a, uint64_t to)
{
    struct node *n = a;
    if (n->up && n->conn[to].up && n->conn[to].dark_until)
        conn_break(n->id, (int)to);
}

/* Frames vanish; only a time-out tells. */
static void fault_dark(struct node *n)
{
    uint32_t to = below((uint32_t)n_nodes), ms = 100 + below(chance(300) ? 5000 : 1000);
    if (!n->conn[to].up || (int)to == n->id)
        return;
    TRACE("frames from node %d to %u vanish", n->id, to);
    n->conn[to].dark_until = now_ms + ms;
    at(ms, dark_end, n, to);
}

/* ---- the dice ---- */

enum kind { F_CRASH, F_CUT, F_FREEZE, F_BREAK, F_DARK, F_MIGRATE, F_RESTART, F_SWAP, F_FAIL, F_EIO, F_FLIP, F_LEASE, F_KINDS };
static const uint8_t weight[4][F_KINDS] = { /* of 100 */
    {15, 12, 8, 10, 6, 10, 9, 5, 4, 3, 12, 6},
    {14, 10, 3, 6, 3, 24, 21, 3, 2, 2, 6, 6},
    {15, 12, 8, 10, 6, 10, 9, 5, 4, 3, 12, 6},
    {24, 10, 4, 6, 2, 6, 12, 10, 8, 4, 12, 2},
};

static enum kind pick(void)
{
    int what = (int)below(100), k = 0;
    while (k < F_KINDS - 1 && (what -= weight[mixture][k]) >= 0)
        k++;
    return (enum kind)k;
}

static void chaos(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    static const uint32_t pause[] = {1300, 700, 4000, 800};
    if (!faults_on)
        return;
    struct node *n = &node[below((uint32_t)n_nodes)];
    if (chance(300))
        n = &node[guest_node];
    switch (pick()) {
    case F_CRASH: fault_crash(n, false, false); break;
    case F_CUT: fault_cut(n); break;
    case F_FREEZE:
        n->frozen_until = now_ms + 100 + below(4000);
        TRACE("node %d freezes", n->id);
        break;
    case F_BREAK: conn_break(n->id, (int)below((uint32_t)n_nodes)); break;
    case F_DARK: fault_dark(n); break;
    case F_MIGRATE:
        if (!guest_stopped) {
            guest_stopped = true;
            at(0, migrate, NULL, 50);
        }
        break;
    case F_RESTART: fault_crash(&node[guest_node], true, false); break;
    case F_SWAP:
        if (may_lose(n->id))
            fault_crash(n, false, true);
        break;
    case F_FAIL: fault_disk_fails(n); break;
    case F_EIO:
        n->disk.eio_until = now_ms + below(400);
        TRACE("disk %d reads fail", n->id);
        break;
    case F_FLIP: fault_flip(); break;
    case F_LEASE:
    case F_KINDS:
        node_lease(n->id, false);
        at(100 + below(1500), lease_back, n, n->life);
        break;
    }
    at(below(pause[mixture]), chaos, NULL, 0);
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
    if (faults_on)
        at(5 + below(20), break_join, NULL, 0);
}

void faults_start(void)
{
    faults_on = true;
    mixture = (int)below(4);
    net_mode.late = chance(500) ? 10 : below(80);
    net_mode.duplicate = chance(500) ? 0 : below(30);
    net_mode.links = chance(300);
    at(300 + below(1000), chaos, NULL, 0);
    at(5, break_join, NULL, 0);
}

/* The last in-sync copy of three is damaged: nothing can be copied from it and no write can heal it, for writes wait for a
 * second copy. The medium has to come back (docs/asan.md, failure table). */
static void heal_last_copy(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    for (int d = 0; d < n_nodes && db_isr_count(&db) < owner_min_isr(volume_replicas); d++)
        if (db_in_sync(&db, d))
            memset(node[d].disk.flipped, 0, sizeof node[d].disk.flipped);
    at(200, heal_last_copy, NULL, 0);
}

void faults_stop(void)
{
    faults_on = false;
    TRACE("faults end");
    heal_last_copy(NULL, 0);
    net_mode = (struct net_mode){0};
    for (int i = 0; i < n_nodes; i++) {
        struct node *n = &node[i];
        n->frozen_until = n->disk.eio_until = 0;
        n->disk.fail_next = false;
        for (int k = 0; k < n_nodes; k++)
            dark_end(n, (uint64_t)k);
        if (n->cut)
            heal(n, 0);
        node_lease(i, true);
        replace_disk(n, 0);
        restart(n, 0);
    }
    if (db.owner != guest_node)
        move_guest(guest_node);
    guest_stopped = false;
}
