/* A seeded cluster of coordinators: nodes with delayed and lost heartbeats, partitions, power cuts and a database whose
 * leader moves with the majority (and whose old leader learns late that it lost office). Checked at every step:
 *   never do two nodes that hold a lease believe they run the same guest, and in the end every guest runs on a living node.
 * test_ha_failover [--seed N | --seeds N]; a failing seed is printed. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include "ha/coord.h"

#define NODES 5
#define GUESTS 6
#define STEP_MS 50
#define LEASE_MS 5000
#define MAIL_MAX 4096

struct mail { uint64_t at, sent; int from, to; bool reply, granted; int64_t epoch; };

struct sim {
    uint64_t seed, rng, now;
    uv_loop_t loop;
    uv_timer_t alive;                   /* libuv polls nothing in a loop without an active handle */
    struct cdb *db;
    struct cdb_link *link;              /* the database's true content */
    struct coord coord[NODES];
    const struct cdb_view *view[NODES]; /* what each node has seen last */
    bool up[NODES];
    int side[NODES];                    /* partition: only equal sides hear each other */
    uint64_t lease[NODES];              /* as the node holds it */
    int leader, old_leader;
    uint64_t old_leader_until, leader_free_at;
    struct mail mail[MAIL_MAX];
    int n_mail;
    int busy;                           /* transactions under way */
};

static const char *node_ids[NODES] = {"00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002",
                                      "00000000-0000-4000-8000-000000000003", "00000000-0000-4000-8000-000000000004",
                                      "00000000-0000-4000-8000-000000000005"};

static uint64_t rnd(struct sim *s, uint64_t n)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return (s->rng >> 11) % n;
}

static void fail(struct sim *s, const char *why)
{
    fprintf(stderr, "seed %llu, t=%llu ms: %s\n", (unsigned long long)s->seed, (unsigned long long)s->now, why);
    exit(1);
}

static void settle(struct sim *s)
{
    do
        uv_run(&s->loop, UV_RUN_NOWAIT);
    while (s->busy);
    for (int i = 0; i < 3; i++)
        uv_run(&s->loop, UV_RUN_NOWAIT);
}

static void on_setup(void *arg, int status, const struct err *e)
{
    assert(status == 0);
    ((struct sim *)arg)->busy--;
}

static void set_up(struct sim *s)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_CLUSTER, "cluster");
    cdb_txn_set_int(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_lease_ms, LEASE_MS);
    for (int i = 0; i < NODES; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i);
        cdb_txn_insert(t, CDB_T_NODE, node_ids[i]);
        cdb_txn_set_str(t, CDB_T_NODE, node_ids[i], CDB_NODE_name, name);
        cdb_txn_set_str(t, CDB_T_NODE, node_ids[i], CDB_NODE_state, "up");
        cdb_txn_set_bool(t, CDB_T_NODE, node_ids[i], CDB_NODE_voter, true);
        cdb_txn_set_int(t, CDB_T_NODE, node_ids[i], CDB_NODE_memory_bytes, 16ll << 30);
    }
    for (int i = 0; i < GUESTS; i++) {
        char id[ID_LEN + 1], name[16];
        snprintf(id, sizeof id, "10000000-0000-4000-8000-%012d", i);
        snprintf(name, sizeof name, "vm%d", i);
        cdb_txn_insert(t, CDB_T_MACHINE, id);
        cdb_txn_set_str(t, CDB_T_MACHINE, id, CDB_MACHINE_name, name);
        cdb_txn_set_str(t, CDB_T_MACHINE, id, CDB_MACHINE_desired, "running");
        cdb_txn_set_str(t, CDB_T_MACHINE, id, CDB_MACHINE_state, "running");
        cdb_txn_set_str(t, CDB_T_MACHINE, id, CDB_MACHINE_ha_policy, "restart");
        cdb_txn_set_str(t, CDB_T_MACHINE, id, CDB_MACHINE_host, node_ids[i % NODES]);
        cdb_txn_set_int(t, CDB_T_MACHINE, id, CDB_MACHINE_memory_bytes, 1ll << 30);
    }
    s->busy++;
    cdb_txn_commit(s->link, t, "set up", on_setup, s);
    settle(s);
}

static bool hears(const struct sim *s, int a, int b)
{
    return s->up[a] && s->up[b] && s->side[a] == s->side[b];
}

static bool in_majority(const struct sim *s, int a)
{
    int n = 0;
    for (int b = 0; b < NODES; b++)
        n += hears(s, a, b);
    return n * 2 > NODES;
}

/* RAFT as seen from outside: a leader only with a majority; a successor after an election; the old one learns up to 5 s late. */
static void move_leader(struct sim *s)
{
    if (s->leader >= 0 && in_majority(s, s->leader))
        return;
    if (s->leader >= 0) {
        s->old_leader = s->leader;
        s->old_leader_until = s->now + rnd(s, 5000);
        s->leader = -1;
        s->leader_free_at = s->now + 1000 + rnd(s, 1000);
    }
    if (s->now < s->leader_free_at)
        return;
    for (int k = 0, at = (int)rnd(s, NODES); k < NODES; k++)
        if (in_majority(s, (at + k) % NODES)) {
            s->leader = (at + k) % NODES;
            return;
        }
}

static void post(struct sim *s, struct mail m)
{
    if (s->n_mail < MAIL_MAX && rnd(s, 50)) { /* 2 % are lost */
        m.at = s->now + rnd(s, 150);
        s->mail[s->n_mail++] = m;
    }
}

static void deliver(struct sim *s)
{
    for (int i = 0; i < s->n_mail; i++) {
        struct mail m = s->mail[i];
        if (m.at > s->now)
            continue;
        s->mail[i--] = s->mail[--s->n_mail];
        if (!hears(s, m.from, m.to))
            continue;
        if (!m.reply)
            post(s, (struct mail){.sent = m.sent, .from = m.to, .to = m.from, .reply = true,
                                  .granted = s->view[m.to] && coord_heartbeat(&s->coord[m.to], s->now, s->view[m.to],
                                                                              node_ids[m.from], m.epoch)});
        else if (m.granted && m.sent + LEASE_MS > s->lease[m.to])
            s->lease[m.to] = m.sent + LEASE_MS;
    }
}

struct run { struct sim *s; int node; struct coord_action a; };

static void on_action(void *arg, int status, const struct err *e)
{
    struct run *r = arg;
    coord_done(&r->s->coord[r->node], r->s->now, &r->a, status);
    r->s->busy--;
    free(r);
}

static void step_node(struct sim *s, int i)
{
    struct coord_action a[COORD_ACTIONS_MAX];
    bool leads = i == s->leader || (i == s->old_leader && s->now < s->old_leader_until);
    int n = coord_step(&s->coord[i], s->now, (int64_t)s->now, s->view[i], leads, a, COORD_ACTIONS_MAX);
    for (int k = 0; k < n; k++) {
        struct cdb_txn *t = in_majority(s, i) ? coord_txn(s->view[i], &a[k], 0, node_ids[i]) : NULL;
        if (!t) { /* out of reach of the quorum: outcome unknown to the node (here: it did not happen) */
            coord_done(&s->coord[i], s->now, &a[k], E_UNKNOWN);
            continue;
        }
        struct run *r = malloc(sizeof *r);
        *r = (struct run){s, i, a[k]};
        s->busy++;
        cdb_txn_commit(s->link, t, "action", on_action, r);
    }
    settle(s);
}

static void refresh_views(struct sim *s)
{
    for (int i = 0; i < NODES; i++)
        if (s->up[i] && in_majority(s, i)) {
            if (s->view[i])
                cdb_view_unref(s->view[i]);
            s->view[i] = cdb_view_ref(cdb_link_view(s->link));
        }
}

static void check(struct sim *s)
{
    const struct cdb_view *v = cdb_link_view(s->link);
    for (size_t g = 0; g < cdb_machine_count(v); g++) {
        const char *id = cdb_machine_at(v, g)->id;
        int running = 0;
        for (int i = 0; i < NODES; i++) {
            const struct cdb_machine *m = s->up[i] && s->view[i] ? cdb_machine_get(s->view[i], id) : NULL;
            running += m && !strcmp(m->host, node_ids[i]) && s->now < s->lease[i];
        }
        if (running > 1)
            fail(s, "two nodes with a lease run the same guest");
    }
}

static void disturb(struct sim *s)
{
    int i = s->leader >= 0 && rnd(s, 2) ? s->leader : (int)rnd(s, NODES);
    switch (rnd(s, 7)) {
    case 0: /* power cut; what it knew is gone */
        s->up[i] = false;
        s->lease[i] = 0;
        break;
    case 1:
    case 2:
        for (int k = 0; k < NODES; k++)
            if (!s->up[k]) {
                struct coord_conf cc = s->coord[k].conf;
                coord_init(&s->coord[k], &cc);
                s->up[k] = true;
            }
        break;
    case 3:
    case 4:
        s->side[i] = 1 + (int)rnd(s, 2);
        break;
    default:
        for (int k = 0; k < NODES; k++)
            s->side[k] = 0;
    }
}

static void on_started(void *arg, int status, const struct err *e)
{
    ((struct sim *)arg)->busy--;
}

/* The hosts' part: what is to be started on a living node runs a tick later. */
static void start_guests(struct sim *s)
{
    const struct cdb_view *v = cdb_link_view(s->link);
    for (size_t g = 0; g < cdb_machine_count(v); g++) {
        const struct cdb_machine *m = cdb_machine_at(v, g);
        for (int i = 0; i < NODES; i++)
            if (!strcmp(m->state, "starting") && !strcmp(m->host, node_ids[i]) && s->up[i] && in_majority(s, i)) {
                struct cdb_txn *t = cdb_txn_new();
                cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
                cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "running");
                s->busy++;
                cdb_txn_commit(s->link, t, "started", on_started, s);
            }
    }
    settle(s);
}

static void tick(struct sim *s)
{
    s->now += STEP_MS;
    move_leader(s);
    refresh_views(s);
    deliver(s);
    for (int i = 0; i < NODES; i++) {
        if (!s->up[i] || !s->view[i])
            continue;
        if ((s->now / STEP_MS + (uint64_t)i) % 10 == 0) {
            int64_t epoch = cdb_node_get(s->view[i], node_ids[i])->epoch;
            for (int k = 0; k < NODES; k++)
                if (k != i)
                    post(s, (struct mail){.sent = s->now, .from = i, .to = k, .epoch = epoch});
            if (coord_heartbeat(&s->coord[i], s->now, s->view[i], node_ids[i], epoch))
                s->lease[i] = s->now + LEASE_MS;
        }
        step_node(s, i);
    }
    start_guests(s);
    refresh_views(s);
    check(s);
}

static void on_alive(uv_timer_t *t)
{
}

static void run_seed(uint64_t seed)
{
    struct sim *s = calloc(1, sizeof *s);
    s->seed = seed;
    s->rng = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    s->now = 1000;
    s->leader = s->old_leader = -1;
    uv_loop_init(&s->loop);
    uv_timer_init(&s->loop, &s->alive);
    uv_timer_start(&s->alive, on_alive, 1000000000, 0);
    s->db = cdb_mem_open();
    s->link = cdb_link_open(s->db, &s->loop, NULL, NULL);
    for (int i = 0; i < NODES; i++) {
        struct coord_conf cc = {.margin_ms = 2000, .hear_ms = 1500};
        snprintf(cc.self, sizeof cc.self, "%s", node_ids[i]);
        coord_init(&s->coord[i], &cc);
        s->up[i] = true;
    }
    set_up(s);
    uint64_t quiet = s->now + 120000, end = quiet + 40000;
    while (s->now < end) {
        if (s->now < quiet && rnd(s, 50) == 0)
            disturb(s);
        if (s->now >= quiet) /* all is well again: everything must come to order by itself */
            for (int i = 0; i < NODES; i++) {
                s->side[i] = 0;
                s->up[i] = true;
            }
        tick(s);
    }
    const struct cdb_view *v = cdb_link_view(s->link);
    for (size_t i = 0; i < cdb_node_count(v); i++)
        if (strcmp(cdb_node_at(v, i)->state, "up"))
            fail(s, "a node that is well is not up in the end");
    for (int i = 0; i < NODES; i++) {
        if (s->now >= s->lease[i])
            fail(s, "a node that is well has no lease in the end");
        cdb_view_unref(s->view[i]);
    }
    cdb_link_close(s->link);
    uv_close((uv_handle_t *)&s->alive, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    cdb_close(s->db);
    if (uv_loop_close(&s->loop))
        fail(s, "handles left");
    free(s);
}

int main(int argc, char **argv)
{
    uint64_t from = 1, count = 40;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--seed")) {
            from = strtoull(argv[i + 1], NULL, 10);
            count = 1;
        } else if (!strcmp(argv[i], "--seeds")) {
            count = strtoull(argv[i + 1], NULL, 10);
        }
    }
    for (uint64_t s = from; s < from + count; s++)
        run_seed(s);
    printf("%llu seeds from %llu passed\n", (unsigned long long)count, (unsigned long long)from);
    return 0;
}
