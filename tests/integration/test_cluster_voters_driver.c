/* The drivers of voters, one per node on one loop, with real servers: a node that is to serve joins, a leaving one goes,
 * a dead one is replaced and its server kicked out of RAFT, a killed server is started again. */
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "cluster/voters.h"
#include "tests/lib/dbnodes.h"

#define NODES 4

static struct stepper st;          /* node 0's link is the coordinator's, and the test's */
static struct actor { struct cdb *db; struct cdb_link *link; struct voters *voters; bool serving; } actors[NODES];

static void on_serving(bool on, void *arg)
{
    struct actor *a = arg;
    a->serving = on;
    say("node %d: %s", (int)(a - actors) + 1, on ? "serves" : "no longer serves");
    if (on)
        cdb_set_remotes(a->db, nodes[a - actors].sock);
}

static void on_changed(struct cdb_link *l, void *arg)
{
    struct actor *a = arg;
    if (a->voters)
        voters_changed(a->voters);
}

static void actor_open(int i)
{
    struct actor *a = &actors[i];
    char *remotes = db_remotes(1, (const char *const[]){nodes[0].address}, nodes[0].db.client_port);
    OK(cdb_open(&(struct cdb_conf){.remotes = remotes, .local_sock = nodes[i].sock, .local_unixctl = nodes[i].ctl,
                                   .ca_pem = nodes[i].db.ca_pem, .cert_pem = nodes[i].db.cert_pem, .key_pem = nodes[i].db.key_pem,
                                   .client = i ? nodes[i].id.node_id : NULL /* the test has it */}, &a->db, e));
    free(remotes);
    a->link = cdb_link_open(a->db, &st.loop, on_changed, a);
    struct voters_conf c = {.loop = &st.loop, .link = a->link, .db = nodes[i].db, .self = nodes[i].id.node_id, .serving = on_serving, .arg = a};
    OK(voters_open(&c, &a->voters, e));
}

static void add_row(int i, const char *state)
{
    const char *id = nodes[i].id.node_id, *address = nodes[i].address;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_NODE, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_name, nodes[i].name);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_addresses, 1, &address);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, state);
    OK(step_commit(&st, t, e));
}

static void set_state(int i, const char *state, bool voter)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, nodes[i].id.node_id, CDB_NODE_state, state);
    cdb_txn_set_bool(t, CDB_T_NODE, nodes[i].id.node_id, CDB_NODE_voter, voter);
    OK(step_commit(&st, t, e));
}

static bool in_raft(int i) /* as node 0's server knows it, in all three databases */
{
    bool all = true;
    for (int db = 0; db < DB_N; db++) {
        struct db_status s;
        char *remote = db_remote(nodes[i].address, nodes[i].db.raft_port[db]);
        bool there = false;
        OK(dbserver_status(&nodes[0].db, db, &s, e));
        for (int k = 0; k < s.n_servers; k++)
            there |= !strcmp(s.servers[k].address, remote);
        all &= there;
        free(remote);
    }
    return all;
}

static void wait_serving(int i, bool on)
{
    uint64_t begin = clock_boot_ms();
    while (actors[i].serving != on || in_raft(i) != on || db_files_exist(&nodes[i].db) != on) {
        uv_run(&st.loop, UV_RUN_ONCE);
        CHECK(clock_boot_ms() - begin < 60000);
    }
    say("node %d %s RAFT", i + 1, on ? "is in" : "is out of");
}

static int run(void)
{
    say("begin");
    dbnode_init();
    for (int i = 1; i < NODES; i++)
        dbnode_join(i, false);
    struct cdb *db = dbnode_open_local(0);
    stepper_open(&st, db);

    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_coordinator, nodes[0].id.node_id);
    OK(step_commit(&st, t, e));
    actor_open(0);
    add_row(1, "joining"); /* not yet to be trusted */
    add_row(2, "joining");
    for (int i = 1; i < NODES; i++)
        actor_open(i);
    wait_serving(0, true);
    CHECK(!db_files_exist(&nodes[1].db));
    set_state(1, "up", false);
    wait_serving(1, true);
    set_state(2, "up", false);
    wait_serving(2, true);
    char *r = voters_remotes(actors[3].voters);
    CHECK(r && strstr(r, nodes[0].address) && strstr(r, nodes[1].address) && strstr(r, nodes[2].address));
    free(r);
    r = voters_remotes(actors[1].voters);
    CHECK(!strcmp(r, nodes[1].sock));
    free(r);

    add_row(3, "up"); /* a fourth is not needed … */
    set_state(1, "leaving", true); /* … until another leaves */
    wait_serving(3, true);
    wait_serving(1, false);

    /* Node 3 dies: its driver and server are gone, and the coordinator has given it up. */
    voters_close(actors[2].voters);
    actors[2].voters = NULL;
    kill_server(2);
    set_state(2, "dead", false);
    actors[2].serving = false;
    uint64_t begin = clock_boot_ms();
    while (in_raft(2)) {
        uv_run(&st.loop, UV_RUN_ONCE);
        CHECK(clock_boot_ms() - begin < VOTERS_KICK_MS + 30000);
    }
    say("the dead node's server was kicked after %llu ms", (unsigned long long)(clock_boot_ms() - begin));

    kill_server(0); /* -9 behind the supervisor's back */
    t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_lease_ms, 4000);
    OK(step_commit(&st, t, e));
    say("a killed server runs again");

    for (int i = 0; i < NODES; i++)
        voters_close(actors[i].voters);
    for (int i = 0; i < NODES; i++)
        cdb_link_close(actors[i].link);
    stepper_close(&st);
    for (int i = 0; i < NODES; i++)
        cdb_close(actors[i].db);
    cdb_close(db);
    say("done");
    return 0;
}

int main(void)
{
    return dbnodes_main(COHORT_TEST_DIR, 1, 240, run);
}
