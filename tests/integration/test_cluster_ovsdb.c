/* The cluster database for real: three nodes on 127.77.0.x, each with its own ovsdb-server (RAFT over ssl:), made by
 * member_init() and joined by member_join_*(). Clients on several threads count with preconditions while servers are
 * killed (-9), restarted, and lose their quorum.
 *
 * The invariant: the counter equals the number of transactions reported as successful, and every one of them left its
 * Event row: nothing lost, nothing done twice. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/metric.h"
#include "tests/lib/dbnodes.h"

#define NODES 3
#define COUNTER "11111111-2222-4333-8444-555555555555"

static int leader(void)
{
    struct db_status s;
    for (int i = 0; i < NODES; i++)
        if (!dbserver_status(&nodes[i].db, DB_COHORT, &s, NULL) && !strcmp(s.role, "leader"))
            return i;
    return -1;
}

/* ---- a client on its own thread ---- */

struct client {
    struct cdb *db;
    pthread_t thread;
    uv_loop_t loop;
    uv_timer_t timer;
    struct cdb_link *link;
    char event_id[ID_LEN + 1];
    bool busy, begun;
    atomic_bool stop, connected, leader;
    atomic_int ok, conflicts, unknown, other;
    atomic_llong epoch; /* of the counter, in the newest view */
    int64_t last_seen;
};

static void count_one(struct client *c);

static void counted(void *arg, int status, const struct err *e)
{
    struct client *c = arg;
    c->busy = false;
    if (status == 0) {
        c->ok++;
        /* The view includes what we did. */
        CHECK(cdb_event_get(cdb_link_view(c->link), c->event_id));
    } else if (status == E_CONFLICT) {
        c->conflicts++;
    } else if (status == E_UNKNOWN) {
        c->unknown++;
    } else {
        fprintf(stderr, "status %d: %s\n", status, e->msg);
        c->other++;
    }
    count_one(c);
}

static void count_one(struct client *c)
{
    const struct cdb_view *v = cdb_link_view(c->link);
    const struct cdb_volume *vol = v ? cdb_volume_get(v, COUNTER) : NULL;
    if (c->busy || !vol)
        return;
    if (c->stop) {
        if (!uv_is_closing((uv_handle_t *)&c->timer))
            uv_close((uv_handle_t *)&c->timer, NULL);
        return;
    }
    CHECK(vol->epoch >= c->last_seen); /* views do not go back */
    c->last_seen = vol->epoch;
    id_new(c->event_id);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_VOLUME, COUNTER, CDB_VOLUME_epoch, vol->epoch);
    cdb_txn_set_int(t, CDB_T_VOLUME, COUNTER, CDB_VOLUME_epoch, vol->epoch + 1);
    cdb_txn_insert(t, CDB_T_EVENT, c->event_id);
    cdb_txn_set_int(t, CDB_T_EVENT, c->event_id, CDB_EVENT_time_ms, vol->epoch + 1);
    c->busy = true;
    cdb_txn_commit(c->link, t, "count", counted, c);
}

static void client_changed(struct cdb_link *l, void *arg)
{
    struct client *c = arg;
    c->connected = cdb_link_connected(l);
    c->leader = cdb_link_local_leader(l);
    const struct cdb_volume *vol = cdb_volume_get(cdb_link_view(l), COUNTER);
    c->epoch = vol ? vol->epoch : 0;
    count_one(c);
}

static void client_tick(uv_timer_t *t) { count_one(t->data); }

static void *client_main(void *arg)
{
    struct client *c = arg;
    uv_loop_init(&c->loop);
    uv_timer_init(&c->loop, &c->timer);
    c->timer.data = c;
    uv_timer_start(&c->timer, client_tick, 50, 50); /* keeps the loop alive, notices `stop` */
    c->link = cdb_link_open(c->db, &c->loop, client_changed, c);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    cdb_link_close(c->link);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&c->loop) == 0);
    return NULL;
}

/* ---- the parts ---- */

static void make_cluster(void)
{
    dbnode_init();
    struct cdb *db = dbnode_open_local(0);
    struct stepper s;
    stepper_open(&s, db);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_VOLUME, COUNTER);
    cdb_txn_set_str(t, CDB_T_VOLUME, COUNTER, CDB_VOLUME_name, "counter");
    OK(step_commit(&s, t, e));
    stepper_close(&s);
    cdb_close(db);
    for (int i = 1; i < NODES; i++)
        dbnode_join(i, true);
}

/* Server-side refusals, as the twin has them. */
static void semantics(struct cdb *db)
{
    struct stepper st;
    stepper_open(&st, db);
    struct err why;
    struct cdb_imap m = {2, (char *[]){"d1", "d2"}, (int64_t[]){1, 2}}, m2 = {2, (char *[]){"d2", "d3"}, (int64_t[]){5, 3}};
    struct cdb_smap sm = {1, (char *[]){"k"}, (char *[]){"v\"\\ü"}}, sm2 = {1, (char *[]){"k2"}, (char *[]){"v"}};
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_SHARD, "v/0");
    cdb_txn_set_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &m);
    cdb_txn_set_strs(t, CDB_T_SHARD, "v/0", CDB_SHARD_replicas, 3, (const char *const[]){"c", "a", "b"});
    cdb_txn_insert(t, CDB_T_VOLUME, "v");
    cdb_txn_set_str(t, CDB_T_VOLUME, "v", CDB_VOLUME_name, "v");
    cdb_txn_set_bool(t, CDB_T_VOLUME, "v", CDB_VOLUME_sealed, true);
    cdb_txn_set_int(t, CDB_T_VOLUME, "v", CDB_VOLUME_size_bytes, INT64_MAX);
    cdb_txn_set_smap(t, CDB_T_VOLUME, "v", CDB_VOLUME_policy, &sm);
    OK(step_commit(&st, t, e));
    const struct cdb_view *v = cdb_link_view(st.link);
    CHECK(cdb_shard_get(v, "v/0")->in_sync.n == 2 && cdb_shard_get(v, "v/0")->in_sync.v[1] == 2);
    CHECK(cdb_strs_has(&cdb_shard_get(v, "v/0")->replicas, "c") && cdb_shard_get(v, "v/0")->replicas.n == 3);
    CHECK(cdb_volume_get(v, "v")->sealed && cdb_volume_get(v, "v")->size_bytes == INT64_MAX);
    CHECK(!strcmp(cdb_smap_get(&cdb_volume_get(v, "v")->policy, "k"), "v\"\\ü"));

    /* differences of sets and maps arrive as such */
    t = cdb_txn_new();
    cdb_txn_require_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &m);
    cdb_txn_set_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &m2);
    cdb_txn_set_strs(t, CDB_T_SHARD, "v/0", CDB_SHARD_replicas, 2, (const char *const[]){"b", "d"});
    cdb_txn_set_smap(t, CDB_T_VOLUME, "v", CDB_VOLUME_policy, &sm2);
    cdb_txn_set_bool(t, CDB_T_VOLUME, "v", CDB_VOLUME_sealed, false);
    OK(step_commit(&st, t, e));
    v = cdb_link_view(st.link);
    const struct cdb_shard *s = cdb_shard_get(v, "v/0");
    int64_t x;
    CHECK(s->in_sync.n == 2 && cdb_imap_get(&s->in_sync, "d2", &x) && x == 5 && cdb_imap_get(&s->in_sync, "d3", &x) && x == 3);
    CHECK(s->replicas.n == 2 && cdb_strs_has(&s->replicas, "b") && cdb_strs_has(&s->replicas, "d"));
    CHECK(cdb_volume_get(v, "v")->policy.n == 1 && !cdb_volume_get(v, "v")->sealed);

    t = cdb_txn_new();
    cdb_txn_require_imap(t, CDB_T_SHARD, "v/0", CDB_SHARD_in_sync, &m);
    cdb_txn_set_int(t, CDB_T_SHARD, "v/0", CDB_SHARD_generation, 1);
    CHECK(step_commit(&st, t, &why) == E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_VOLUME, "w");
    cdb_txn_set_str(t, CDB_T_VOLUME, "w", CDB_VOLUME_name, "v");
    CHECK(step_commit(&st, t, &why) == E_CONFLICT && strstr(why.msg, "name"));
    t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_VOLUME, "v");
    CHECK(step_commit(&st, t, &why) == E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_require_absent(t, CDB_T_VOLUME, "v");
    cdb_txn_set_int(t, CDB_T_VOLUME, COUNTER, CDB_VOLUME_size_bytes, 1);
    CHECK(step_commit(&st, t, &why) == E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_delete(t, CDB_T_VOLUME, "gone");
    CHECK(step_commit(&st, t, &why) == E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_VOLUME, "gone", CDB_VOLUME_epoch, 1);
    CHECK(step_commit(&st, t, &why) == E_CONFLICT);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, "v", CDB_VOLUME_name, "\xff\xfe");
    CHECK(step_commit(&st, t, &why) == E_INVAL);
    t = cdb_txn_new(); /* nothing but preconditions */
    cdb_txn_require_str(t, CDB_T_VOLUME, "v", CDB_VOLUME_name, "v");
    cdb_txn_require_absent(t, CDB_T_VOLUME, "gone");
    OK(step_commit(&st, t, e));
    t = cdb_txn_new();
    cdb_txn_delete(t, CDB_T_VOLUME, "v");
    cdb_txn_delete(t, CDB_T_SHARD, "v/0");
    OK(step_commit(&st, t, e));
    CHECK(!cdb_volume_get(cdb_link_view(st.link), "v") && !cdb_shard_get(cdb_link_view(st.link), "v/0"));

    uint64_t begin = clock_boot_ns();
    for (int i = 0; i < 100; i++) {
        t = cdb_txn_new();
        cdb_txn_set_int(t, CDB_T_VOLUME, COUNTER, CDB_VOLUME_size_bytes, i);
        OK(step_commit(&st, t, e));
    }
    printf("          %.2f ms per transaction, one after the other\n", (double)(clock_boot_ns() - begin) / 1e8);
    stepper_close(&st);
}

static int total(struct client *c, int n)
{
    int ok = 0;
    for (int i = 0; i < n; i++)
        ok += c[i].ok;
    return ok;
}

static void wait_progress(struct client *c, int n, int more, const char *what)
{
    int from = total(c, n);
    uint64_t begin = clock_boot_ms();
    while (total(c, n) < from + more) {
        CHECK(clock_boot_ms() - begin < 30000);
        pause_ms(20);
    }
    say("%s: %d more transactions after %llu ms", what, more, (unsigned long long)(clock_boot_ms() - begin));
}

static int64_t newest_epoch(struct client *c, int n)
{
    int64_t max = 0;
    for (int i = 0; i < n; i++)
        max = c[i].epoch > max ? c[i].epoch : max;
    return max;
}

#define CLIENTS 4
static void storm(struct cdb **dbs)
{
    static struct client c[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        c[i].db = dbs[i % 3];
        pthread_create(&c[i].thread, NULL, client_main, &c[i]);
    }
    wait_progress(c, CLIENTS, 100, "calm");
    int leaders = 0;
    for (int i = 0; i < 2; i++) /* two of the clients have a server of their own to watch */
        leaders += c[i].leader;
    CHECK(leaders <= 1);
    for (int round = 0; round < 4; round++) {
        int l = leader();
        CHECK(l >= 0);
        kill_server(l);
        wait_progress(c, CLIENTS, 20, "leader killed");
        start_server(l);
        wait_progress(c, CLIENTS, 20, "and started again");
    }
    for (int i = 0; i < NODES; i++) {
        kill_server(i);
        start_server(i); /* at once */
    }
    wait_progress(c, CLIENTS, 20, "every server killed and restarted");

    kill_server(1);
    kill_server(2);
    pause_ms(1000);
    int before = total(c, CLIENTS);
    int64_t epoch = newest_epoch(c, CLIENTS);
    pause_ms(3500);
    /* Parked, not failed, and nothing happens without quorum. (A success from before may still be reported, by a client
     * that changed to the living server: its effect is in the newest view already.) */
    CHECK(newest_epoch(c, CLIENTS) == epoch && total(c, CLIENTS) <= epoch);
    if (total(c, CLIENTS) != before)
        say("%d successes from before reported late", total(c, CLIENTS) - before);
    for (int i = 0; i < CLIENTS; i++)
        CHECK(!c[i].connected);
    say("no quorum: transactions wait");
    start_server(1);
    wait_progress(c, CLIENTS, 20, "quorum again");
    start_server(2);
    wait_progress(c, CLIENTS, 20, "all servers again");

    int ok = 0, conflicts = 0, unknown = 0;
    for (int i = 0; i < CLIENTS; i++)
        c[i].stop = true;
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(c[i].thread, NULL);
        ok += c[i].ok;
        conflicts += c[i].conflicts;
        unknown += c[i].unknown;
        CHECK(c[i].other == 0);
        CHECK(c[i].ok > 0);
    }
    printf("          %d successes, %d conflicts, %d unknown\n", ok, conflicts, unknown);
    CHECK(unknown == 0);
    struct buf metrics = {0};
    metric_print_all(&metrics);
    for (char *l = strtok(metrics.data, "\n"); l; l = strtok(NULL, "\n"))
        if (!strncmp(l, "cohort_cdb", 10))
            printf("          %s\n", l);
    buf_free(&metrics);

    for (int i = 0; i < 3; i++) {
        struct stepper st;
        stepper_open(&st, dbs[i]);
        while ((int)cdb_volume_get(cdb_link_view(st.link), COUNTER)->epoch < ok) /* a follower may lag for a moment */
            uv_run(&st.loop, UV_RUN_ONCE);
        CHECK(cdb_volume_get(cdb_link_view(st.link), COUNTER)->epoch == ok);
        int events = (int)cdb_event_count(cdb_link_view(st.link)); /* the oldest ones are let go */
        CHECK(ok <= CDB_EVENTS_KEPT ? events == ok : events >= CDB_EVENTS_KEPT && events < ok);
        stepper_close(&st);
    }
    say("counter and events match: nothing lost, nothing twice");
}

/* A voter leaves by itself, another is dead and kicked: one remains and serves. */
static void shrink(void)
{
    struct db_status s;
    while (dbserver_status(&nodes[2].db, DB_OVN_SB, &s, NULL) || strcmp(s.status, "cluster member"))
        pause_ms(20); /* it has only just been started */
    OK(dbserver_leave(&nodes[2].db, e));
    while (!dbserver_left(&nodes[2].db))
        pause_ms(50);
    kill_server(2);
    OK(db_files_remove(&nodes[2].db, e));
    CHECK(!db_files_exist(&nodes[2].db));
    OK(dbserver_status(&nodes[0].db, DB_COHORT, &s, e));
    CHECK(s.n_servers == 2);
    say("a voter left");
    const char *peers[] = {nodes[0].address, nodes[1].address};
    OK(db_files_join(&nodes[2].db, 2, peers, e));
    start_server(2);
    do {
        pause_ms(50);
        OK(dbserver_status(&nodes[0].db, DB_COHORT, &s, e));
    } while (s.n_servers < 3);
    do
        pause_ms(50);
    while (dbserver_status(&nodes[2].db, DB_OVN_SB, &s, NULL) || strcmp(s.status, "cluster member"));
    say("and came back");
    kill_server(2);
    OK(dbserver_kick(&nodes[0].db, nodes[2].address, e));
    do {
        pause_ms(50);
        OK(dbserver_status(&nodes[0].db, DB_COHORT, &s, e));
    } while (s.n_servers > 2);
    say("a dead voter was kicked");
}

static int run(void)
{
    say("begin");
    make_cluster();
    struct cdb *dbs[3];
    for (int i = 0; i < 2; i++)
        dbs[i] = dbnode_open_local(i);
    const char *all[] = {nodes[0].address, nodes[1].address, nodes[2].address};
    char *remotes = db_remotes(3, all, nodes[0].db.client_port);
    OK(cdb_open(&(struct cdb_conf){.remotes = remotes, .ca_pem = nodes[2].db.ca_pem, .cert_pem = nodes[2].db.cert_pem,
                                   .key_pem = nodes[2].db.key_pem, .client = nodes[2].id.node_id}, &dbs[2], e));
    free(remotes);
    semantics(dbs[2]);
    say("semantics");
    storm(dbs);
    shrink();
    for (int i = 0; i < 3; i++)
        cdb_close(dbs[i]);
    for (int i = 0; i < NODES; i++) {
        OK(member_forget(&nodes[i].conf, e));
        struct member_id id;
        CHECK(member_load(nodes[i].conf.state_dir, &id, NULL) == E_NOTFOUND);
    }
    say("done");
    return 0;
}

int main(void)
{
    return dbnodes_main(COHORT_TEST_DIR, 0, 240, run);
}
