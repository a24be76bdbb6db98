/* Nodes: processes that start, crash and are cut off; which of them runs an owner core, in which epoch (engine/own.c).
 * See sim.h. */
#include <string.h>
#include "tests/sim/asan/sim.h"

struct node node[NODES];
int n_nodes, volume_replicas;

bool reachable(int i)
{
    return node[i].up && node[i].serving && !node[i].cut;
}

/* ---- views ---- */

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
                                                    n->conn[d].up, false, n->conn[d].silent};
    }
    owner_view(n->core, &ov, now_ms);
    core_after(i);
}

void node_view(int i)
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

/* ---- life ---- */

static void opened(void *a, uint64_t life)
{
    struct node *n = a;
    if (life != n->life)
        return;
    if (n->cut) {
        at(100, opened, n, life);
        return;
    }
    if (n->raise) { /* own-disk check: an empty disk is in sync with nothing */
        n->raise = false;
        if (!MUTANT(HOST_SWAP_SILENT))
            db.incarnation[n->id]++;
        db_changed();
    }
    node_view(n->id);
    if (!n->first_epoch) {
        n->view = db;
        n->first_epoch = db.epoch;
    }
    n->serving = true;
    host_open(n->id);
    for (int i = 0; i < n_nodes; i++)
        at(below(50), conn_up, n, n->life << 8 | (uint64_t)i);
    core_poll(n->id);
}

void node_start(int i)
{
    struct node *n = &node[i];
    if (n->up)
        return;
    TRACE("node %d starts", i);
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
    TRACE("node %d crashes", i);
    stats.crashes++;
    core_close(i);
    n->up = n->serving = false;
    n->life++;
    net_crash(i);
    host_crash(i);
    disk_crash(i);
}

static void healed(void *a, uint64_t life)
{
    struct node *n = a;
    if (life == n->life && n->up && !n->cut)
        node_view(n->id);
}

void node_cut(int i, bool cut)
{
    struct node *n = &node[i];
    n->cut = cut;
    TRACE("node %d %s", i, cut ? "cut" : "healed");
    for (int k = 0; k < n_nodes && cut; k++)
        if (k != i) {
            conn_break(k, i);
            conn_break(i, k);
        }
    if (!cut && n->up)
        at(below(50), healed, n, n->life);
}

void node_lease(int i, bool on)
{
    struct node *n = &node[i];
    n->lease = on;
    if (n->core) {
        owner_lease(n->core, on, now_ms);
        core_after(i);
    }
}

/* ---- owner cores ---- */

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

/* A core for the volume while this node owns it, in an epoch that nobody used before. */
void core_poll(int i)
{
    struct node *n = &node[i];
    if (!n->up || !n->serving || !n->view.rev)
        return;
    bool mine = n->view.owner == i;
    if (n->core && (!mine || n->view.epoch > n->core_epoch)) {
        core_close(i);
        n->rogue = false; /* whoever went on without the volume has noticed */
    }
    if (!mine || n->core)
        return;
    bool fresh = n->view.epoch > n->used_epoch && n->view.epoch != n->first_epoch;
    if (!fresh && !(MUTANT(HOST_EPOCH_REUSED) && n->view.epoch > n->used_epoch)) {
        if (!n->claim_busy) {
            n->claim_busy = true;
            db_claim(i, n->view.epoch);
        }
        return;
    }
    struct owner_conf conf = {.env = {net_send, db_create, db_txn, n}, .epoch = n->view.epoch,
                              .shard_bytes = (uint64_t)CHUNKS * STORE_CHUNK, .replicas = volume_replicas,
                              .batch_chunks = 4, .op_border = BORDER, .window_bytes = 64 << 10};
    n->core_epoch = n->used_epoch = n->view.epoch;
    TRACE("node %d owns epoch %lu", i, n->core_epoch);
    check_core_opened(i, n->core_epoch);
    n->core = owner_new(&conf, now_ms);
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

/* The node that says nothing is called silent after a while; now and then one that is merely slow. */
static void judge_silence(struct node *n)
{
    for (int k = 0; k < n_nodes; k++) {
        struct conn *c = &n->conn[k];
        bool quiet = c->up && k != n->id && (now_ms < c->dark_until || now_ms < node[k].frozen_until);
        if (c->up && k != n->id)
            c->silent = faults_on && (c->silent ? quiet || chance(900) : chance(quiet ? 60 : 1));
        owner_silent(n->core, (uint32_t)k, c->silent, now_ms);
    }
}

static void tick(void *a, uint64_t unused)
{
    (void)a, (void)unused;
    for (int i = 0; i < n_nodes; i++) {
        if (node[i].core) {
            if (node[i].core_epoch % 2) /* every other owner copies by credit: none, one or two chunks until the next tick */
                owner_join_credit(node[i].core, (uint32_t)(now_ms / 50 % 3), now_ms);
            judge_silence(&node[i]);
            owner_tick(node[i].core, now_ms);
            core_after(i);
        }
        core_poll(i);
        host_tick(i);
    }
    check_state();
    at(40 + below(20), tick, NULL, 0);
}

void world_reset(void)
{
    memset(node, 0, sizeof node);
    clock_reset();
    db_reset();
    net_reset();
    host_reset();
    for (int i = 0; i < NODES; i++) {
        node[i].id = i;
        node[i].lease = true;
        disk_reset(i);
        TAILQ_INIT(&node[i].replica.writes);
    }
    for (int i = 0; i < n_nodes; i++)
        node_start(i);
    at(50, tick, NULL, 0);
}

void world_free(void)
{
    for (int i = 0; i < n_nodes; i++)
        node_crash(i);
    clock_reset();
    net_free();
    for (int i = 0; i < NODES; i++)
        disk_free(i);
    db_reset();
}
