/* Who serves the databases: the plan over all small clusters, and the texts of ovsdb-server's cluster/status. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/buf.h"
#include "cluster/view.h"
#include "cluster/row.h"
#include "cluster/voters.h"

/* One letter per node: V voter, n non-voter, D dead voter (long), d dead voter (just now), x dead non-voter, L voter that
 * leaves, l non-voter that leaves, j joining non-voter. */
static const struct cdb_view *cluster(const char *nodes)
{
    const struct cdb_view *v0 = view_empty();
    struct view_edit *edit = view_edit_new(v0);
    for (int i = 0; nodes[i]; i++) {
        char id[8];
        snprintf(id, sizeof id, "%d%c", i, nodes[i]);
        struct cdb_node *n = row_new(CDB_T_NODE, id);
        n->voter = strchr("VDdL", nodes[i]) != NULL;
        n->joined_ms = i;
        free(n->state);
        n->state = xstrdup(strchr("Vn", nodes[i]) ? "up" : strchr("Ddx", nodes[i]) ? "dead" : nodes[i] == 'j' ? "joining" : "leaving");
        view_edit_put(edit, CDB_T_NODE, n);
    }
    cdb_view_unref(v0);
    return view_edit_end(edit);
}

static int64_t dead(const char *id, void *arg) { return id[1] == 'D' ? VOTERS_REPLACE_MS : id[1] == 'd' ? 1000 : 0; }

static void check(const char *nodes, const char *promote, const char *demote)
{
    const struct cdb_view *v = cluster(nodes);
    struct voters_plan p;
    voters_plan(v, dead, NULL, &p);
    if (strcmp(p.promote, promote) || strcmp(p.demote, demote))
        fail_msg("%s: promote \"%s\" demote \"%s\", not \"%s\" and \"%s\"", nodes, p.promote, p.demote, promote, demote);
    cdb_view_unref(v);
}

static void test_plan(void **state)
{
    check("V", "", "");
    check("Vn", "1n", "");
    check("VVn", "2n", "");
    check("VVVn", "", "");         /* four voters would need three of four */
    check("VVVnn", "3n", "");      /* five */
    check("VVVVn", "4n", "");
    check("VVVVVnn", "", "");
    check("VVd", "", "");          /* may be back soon */
    check("VVdn", "", "");
    check("VVVd", "", "3d");       /* three of four nodes are enough, and this one is not there */
    check("VVDn", "3n", "2D");     /* replaced */
    check("VVD", "", "");          /* by whom? */
    check("VVDx", "", "");
    check("VVDj", "", "");
    check("VVLn", "3n", "2L");
    check("VVL", "", "2L");        /* two remain */
    check("VL", "", "1L");
    check("L", "", "");            /* the last one stays */
    check("Ln", "1n", "0L");
    check("VVVV", "", "3V");       /* shrunk to four nodes: the youngest voter goes */
    check("VVVVl", "", "3V");
    check("VVVVVL", "", "5L");
    check("VVVVDn", "5n", "4D");
}

/* Whatever a cluster looks like, the steps end, and at the end the number of voters is the wanted one. */
static void test_settles(void **state)
{
    unsigned seed = 7;
    for (int round = 0; round < 2000; round++) {
        char nodes[10] = "V";
        int n = 1 + rand_r(&seed) % 8;
        for (int i = 1; i < n; i++)
            nodes[i] = "VnDdxLlj"[rand_r(&seed) % 8];
        nodes[n] = '\0';
        int steps = 0;
        for (;; steps++) {
            const struct cdb_view *v = cluster(nodes);
            struct voters_plan p;
            voters_plan(v, dead, NULL, &p);
            cdb_view_unref(v);
            if (!p.promote[0] && !p.demote[0])
                break;
            assert_true(steps < 20);
            if (p.promote[0])
                nodes[atoi(p.promote)] = 'V';
            if (p.demote[0])
                nodes[atoi(p.demote)] = p.demote[1] == 'D' ? 'x' : p.demote[1] == 'L' ? 'l' : 'n';
        }
        int voters = 0, counted = 0, ups = 0, leaving = 0;
        for (int i = 0; i < n; i++) {
            voters += strchr("VDdL", nodes[i]) != NULL;
            counted += !strchr("Ll", nodes[i]);
            ups += strchr("Vn", nodes[i]) != NULL;
            leaving += nodes[i] == 'L';
        }
        assert_true(voters >= 1 && voters <= VOTERS_MAX);
        assert_int_equal(leaving, 0);
        if (ups == counted)
            assert_int_equal(voters, voters_wanted(counted));
    }
}

static void test_join(void **state)
{
    const struct { const char *nodes; bool join; } cases[] = {
        {"V", true}, {"VV", true}, {"VVV", false}, {"VVVn", true}, {"VVVV", true}, {"VVVVV", false}, {"VVl", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct cdb_view *v = cluster(cases[i].nodes);
        assert_int_equal(voters_join(v), cases[i].join);
        cdb_view_unref(v);
    }
}

static void test_status(void **state)
{
    const char *text =
        "1b0e\nName: Cohort\nCluster ID: 29ab (29ab5b9a-4f2b-4f6c-8d8c-1d1d2e2f3a3b)\nServer ID: 1b0e (1b0e0a0b-1111-4222-8333-944455566677)\n"
        "Address: ssl:192.0.2.1:6645\nStatus: cluster member\nRole: leader\nTerm: 2\nLeader: self\nVote: self\n\nElection timer: 1000\n"
        "Log: [2, 14]\nEntries not yet committed: 0\nEntries not yet applied: 0\nConnections: ->0000 <-33aa\nDisconnections: 0\nServers:\n"
        "    1b0e (1b0e at ssl:192.0.2.1:6645) (self) next_index=12 match_index=13\n"
        "    33aa (33aa at ssl:[2001:db8::2]:6645) next_index=14 match_index=13 last msg 2 ms ago\n";
    struct db_status s;
    struct err e;
    assert_int_equal(db_status_parse(text, &s, &e), 0);
    assert_string_equal(s.status, "cluster member");
    assert_string_equal(s.role, "leader");
    assert_string_equal(s.cluster_id, "29ab5b9a-4f2b-4f6c-8d8c-1d1d2e2f3a3b");
    assert_true(s.has_leader);
    assert_int_equal(s.n_servers, 2);
    assert_true(s.servers[0].self && !s.servers[1].self);
    assert_string_equal(s.servers[1].sid, "33aa");
    assert_string_equal(s.servers[1].address, "ssl:[2001:db8::2]:6645");

    assert_int_equal(db_status_parse("1b0e\nName: Cohort\nCluster ID: not yet known\nStatus: joining cluster\nLeader: unknown\n", &s, &e), 0);
    assert_false(s.has_leader);
    assert_string_equal(s.cluster_id, "");
    assert_int_equal(db_status_parse("", &s, &e), E_PROTO);
    assert_int_equal(db_status_parse("Servers:\nStatus: x\n(((", &s, &e), E_PROTO);
}

static void test_remotes(void **state)
{
    char *r = db_remotes(2, (const char *const[]){"192.0.2.1", "2001:db8::1"}, 6641);
    assert_string_equal(r, "ssl:192.0.2.1:6641,ssl:[2001:db8::1]:6641");
    free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan), cmocka_unit_test(test_settles), cmocka_unit_test(test_join),
                                       cmocka_unit_test(test_status), cmocka_unit_test(test_remotes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
