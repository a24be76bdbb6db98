/* Desired state -> model, and model against model -> operations (net/anet/model.c, plan.c). The last test applies random
 * plans to a little database of its own with OVSDB's rules and expects agreement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "net/anet/plan.h"

static const struct anet_network net1 = {.id = "n1", .name = "one", .cidr = "198.18.1.0/24"};
static const struct anet_network net2 = {.id = "n2", .name = "two", .cidr = "198.18.2.0/24", .mtu = 1300};

static struct anet_port port(const char *id, const char *net, const char *ip, const char *host, const char *to)
{
    return (struct anet_port){id, net, "02:00:00:00:00:01", ip, host, to};
}

static struct nb_model *build(const struct anet_network *nets, size_t n_nets, const struct anet_port *ports, size_t n_ports)
{
    const struct anet_desired d = {.n_networks = n_nets, .networks = nets, .n_ports = n_ports, .ports = ports};
    struct nb_model *m;
    size_t skipped;
    struct err e = {0};
    assert_int_equal(nb_model_build(&d, &m, &skipped, &e), 0);
    assert_int_equal(skipped, 0);
    return m;
}

static const char *map_at(const struct nb_model *m, enum nb_kind kind, const char *key, int col, const char *name)
{
    const struct nb_obj *o = nb_model_find(m, kind, key);
    assert_non_null(o);
    for (size_t i = 0; i < o->col[col].n; i++)
        if (!strcmp(o->col[col].k[i], name))
            return o->col[col].v[i];
    return NULL;
}

/* "insert Logical_Switch n1; link n1 p1; …" */
static char *plan_text(const struct nb_model *want, const struct nb_model *have)
{
    static const char *const verbs[] = {"insert", "update", "link", "unlink", "delete"};
    struct nb_plan p;
    struct buf b;
    buf_init(&b);
    nb_plan_make(want, have, &p);
    for (size_t i = 0; i < p.n; i++) {
        const struct nb_op *op = &p.op[i];
        const struct nb_obj *o = op->have ? op->have : op->want;
        buf_printf(&b, "%s%s %s %s", i ? "; " : "", verbs[op->verb], nb_kinds[o->kind].table, o->key);
        if (op->verb == NB_UPDATE)
            buf_printf(&b, " %s", nb_kinds[o->kind].col[op->col].name);
        if (op->ref)
            buf_printf(&b, " %s", op->ref);
    }
    nb_plan_free(&p);
    return buf_take(&b);
}

static void expect_plan(struct nb_model *want, struct nb_model *have, const char *text)
{
    char *got = plan_text(want, have);
    assert_string_equal(got, text);
    free(got);
    nb_model_free(want);
    nb_model_free(have);
}

static void test_build(void **state)
{
    static const char *const dns[] = {"198.18.1.53", "198.18.1.54"};
    struct anet_network n = net1;
    n.n_dns = 2;
    n.dns = dns;
    const struct anet_port ports[] = {port("p2", "n1", "198.18.1.3", "a", "b"), port("p1", "n1", "198.18.1.2", "a", ""),
                                      port("p3", "n1", "198.18.1.4", "", NULL), port("p4", "n1", "198.18.1.5", "a", "a")};
    struct nb_model *m = build(&n, 1, ports, 4);
    assert_int_equal(m->n, 6);
    const struct nb_obj *sw = nb_model_find(m, NB_SWITCH, "n1");
    assert_int_equal(sw->col[NB_SWITCH_PORTS].n, 4);
    assert_string_equal(sw->col[NB_SWITCH_PORTS].k[0], "p1");
    assert_string_equal(map_at(m, NB_SWITCH, "n1", NB_SWITCH_EXTERNAL_IDS, "owner"), "cohort");
    assert_string_equal(map_at(m, NB_SWITCH, "n1", NB_SWITCH_EXTERNAL_IDS, "cohort-name"), "one");
    assert_string_equal(map_at(m, NB_DHCP, "n1", NB_DHCP_OPTIONS, "mtu"), "1442");
    assert_string_equal(map_at(m, NB_DHCP, "n1", NB_DHCP_OPTIONS, "router"), "198.18.1.1");
    assert_string_equal(map_at(m, NB_DHCP, "n1", NB_DHCP_OPTIONS, "server_id"), "198.18.1.1");
    assert_string_equal(map_at(m, NB_DHCP, "n1", NB_DHCP_OPTIONS, "dns_server"), "{198.18.1.53, 198.18.1.54}");
    const struct nb_obj *p = nb_model_find(m, NB_PORT, "p1");
    assert_string_equal(p->col[NB_PORT_ADDRESSES].k[0], "02:00:00:00:00:01 198.18.1.2");
    assert_string_equal(p->col[NB_PORT_SECURITY].k[0], "02:00:00:00:00:01 198.18.1.2");
    assert_string_equal(p->col[NB_PORT_DHCP].k[0], "n1");
    assert_string_equal(map_at(m, NB_PORT, "p1", NB_PORT_OPTIONS, "requested-chassis"), "a");
    assert_null(map_at(m, NB_PORT, "p1", NB_PORT_OPTIONS, "activation-strategy"));
    assert_string_equal(map_at(m, NB_PORT, "p2", NB_PORT_OPTIONS, "requested-chassis"), "a,b");
    assert_string_equal(map_at(m, NB_PORT, "p2", NB_PORT_OPTIONS, "activation-strategy"), "rarp");
    assert_null(map_at(m, NB_PORT, "p3", NB_PORT_OPTIONS, "requested-chassis"));
    assert_string_equal(map_at(m, NB_PORT, "p4", NB_PORT_OPTIONS, "requested-chassis"), "a"); /* to where it is */
    nb_model_free(m);
}

static void test_build_bad(void **state)
{
    const struct anet_network nets[] = {net1, {.id = "bad", .cidr = "198.18.9.1/24"}, net2, net1};
    const struct anet_port ports[] = {port("p1", "n1", "198.18.1.2", "a", ""), port("pb", "bad", "198.18.9.2", "a", ""),
                                      port("px", "n1", "198.18.2.2", "a", ""), port("p1", "n2", "198.18.2.2", "a", ""),
                                      port("pn", "nowhere", "198.18.2.2", "a", ""), port("pz", NULL, "198.18.2.2", "a", "")};
    const struct anet_desired d = {.n_networks = 4, .networks = nets, .n_ports = 6, .ports = ports};
    struct nb_model *m;
    size_t skipped;
    struct err e = {0};
    assert_int_equal(nb_model_build(&d, &m, &skipped, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "network bad"));
    assert_int_equal(skipped, 7); /* bad, the second n1; pb, px, pn, pz, the second p1 */
    assert_int_equal(m->n, 5);
    assert_string_equal(nb_model_find(m, NB_PORT, "p1")->col[NB_PORT_DHCP].k[0], "n1"); /* the first of two wins */
    assert_int_equal(nb_model_find(m, NB_SWITCH, "n2")->col[NB_SWITCH_PORTS].n, 0);
    nb_model_free(m);
}

static void test_plans(void **state)
{
    const struct anet_network both[] = {net1, net2};
    struct anet_network mtu = net1;
    mtu.mtu = 1400;
    struct anet_port p1 = port("p1", "n1", "198.18.1.2", "a", ""), moving = p1, moved = p1, other = p1, addr = p1;
    moving.migrate_to = "b";
    moved.host = "b";
    other.network = "n2";
    other.ip = "198.18.2.2";
    addr.ip = "198.18.1.9";
    const struct anet_port two[] = {p1, port("p2", "n1", "198.18.1.3", "a", "")};

    expect_plan(build(NULL, 0, NULL, 0), build(NULL, 0, NULL, 0), "");
    expect_plan(build(both, 2, two, 2), build(both, 2, two, 2), "");
    expect_plan(build(&net1, 1, &p1, 1), build(NULL, 0, NULL, 0),
                "insert Logical_Switch n1; insert DHCP_Options n1; insert Logical_Switch_Port p1");
    expect_plan(build(&net1, 1, two, 2), build(&net1, 1, &p1, 1), "link Logical_Switch n1 p2; insert Logical_Switch_Port p2");
    expect_plan(build(&net1, 1, &p1, 1), build(&net1, 1, two, 2), "unlink Logical_Switch n1 p2");
    expect_plan(build(&net1, 1, &moving, 1), build(&net1, 1, &p1, 1), "update Logical_Switch_Port p1 options");
    expect_plan(build(&net1, 1, &moved, 1), build(&net1, 1, &moving, 1), "update Logical_Switch_Port p1 options");
    expect_plan(build(&net1, 1, &addr, 1), build(&net1, 1, &p1, 1),
                "update Logical_Switch_Port p1 addresses; update Logical_Switch_Port p1 port_security");
    expect_plan(build(&mtu, 1, &p1, 1), build(&net1, 1, &p1, 1), "update DHCP_Options n1 options");
    expect_plan(build(both, 2, &other, 1), build(both, 2, &p1, 1),
                "unlink Logical_Switch n1 p1; link Logical_Switch n2 p1; update Logical_Switch_Port p1 addresses; "
                "update Logical_Switch_Port p1 port_security; update Logical_Switch_Port p1 dhcpv4_options");
    expect_plan(build(&net2, 1, NULL, 0), build(both, 2, &p1, 1), "delete Logical_Switch n1; delete DHCP_Options n1");
    expect_plan(build(NULL, 0, NULL, 0), build(&net1, 1, two, 2), "delete Logical_Switch n1; delete DHCP_Options n1");
}

/* Two rows with one key, as a repeated transaction of unknown outcome may leave: the surplus goes, whichever it is. */
static void test_surplus(void **state)
{
    struct nb_model *have = build(&net1, 1, NULL, 0), *again = build(&net1, 1, NULL, 0);
    for (size_t i = 0; i < again->n; i++) {
        struct nb_obj *o = nb_model_add(have, again->obj[i].kind, again->obj[i].key);
        for (int c = 0; c < nb_kinds[o->kind].n_cols; c++)
            for (size_t k = 0; k < again->obj[i].col[c].n; k++)
                nb_value_add(&o->col[c], again->obj[i].col[c].k[k], again->obj[i].col[c].v ? again->obj[i].col[c].v[k] : NULL);
    }
    nb_model_sort(have);
    nb_model_free(again);
    expect_plan(build(&net1, 1, NULL, 0), have, "delete Logical_Switch n1; delete DHCP_Options n1");
}

/* ---- a database of its own ---- */

static void copy_value(struct nb_value *to, const struct nb_value *from)
{
    for (size_t i = 0; i < from->n; i++)
        nb_value_add(to, from->k[i], from->v ? from->v[i] : NULL);
}

static bool linked(const struct nb_model *m, const struct nb_op *ops, size_t n, const struct nb_obj *o, int c, size_t i)
{
    for (size_t k = 0; k < n; k++)
        if (ops[k].verb == NB_UNLINK && ops[k].have == o && ops[k].col == c && !strcmp(ops[k].ref, o->col[c].k[i]))
            return false;
    return true;
}

static bool deleted(const struct nb_plan *p, const struct nb_obj *o)
{
    for (size_t k = 0; k < p->n; k++)
        if (p->op[k].verb == NB_DELETE && p->op[k].have == o)
            return true;
    return false;
}

static const struct nb_value *updated(const struct nb_plan *p, const struct nb_obj *o, int c)
{
    for (size_t k = 0; k < p->n; k++)
        if (p->op[k].verb == NB_UPDATE && p->op[k].have == o && p->op[k].col == c)
            return &p->op[k].want->col[c];
    return &o->col[c];
}

static struct nb_model *apply(const struct nb_model *have, const struct nb_plan *p)
{
    struct nb_model *m = nb_model_new();
    for (size_t i = 0; i < have->n; i++) {
        const struct nb_obj *o = &have->obj[i];
        if (deleted(p, o))
            continue;
        struct nb_obj *n = nb_model_add(m, o->kind, o->key);
        for (int c = 0; c < nb_kinds[o->kind].n_cols; c++) {
            if (nb_kinds[o->kind].col[c].type != NB_REFS) {
                copy_value(&n->col[c], updated(p, o, c));
                continue;
            }
            for (size_t k = 0; k < o->col[c].n; k++)
                if (linked(have, p->op, p->n, o, c, k))
                    nb_value_add(&n->col[c], o->col[c].k[k], NULL);
            for (size_t k = 0; k < p->n; k++)
                if (p->op[k].verb == NB_LINK && p->op[k].have == o && p->op[k].col == c)
                    nb_value_add(&n->col[c], p->op[k].ref, NULL);
        }
    }
    for (size_t k = 0; k < p->n; k++)
        if (p->op[k].verb == NB_INSERT) {
            struct nb_obj *n = nb_model_add(m, p->op[k].want->kind, p->op[k].want->key);
            for (int c = 0; c < nb_kinds[n->kind].n_cols; c++)
                copy_value(&n->col[c], &p->op[k].want->col[c]);
        }
    nb_model_sort(m);
    /* Garbage collection: a port that no switch refers to goes. */
    struct nb_model *kept = nb_model_new();
    for (size_t i = 0; i < m->n; i++) {
        bool held = nb_kinds[m->obj[i].kind].root;
        for (size_t j = 0; j < m->n && !held; j++)
            if (m->obj[j].kind == NB_SWITCH)
                for (size_t k = 0; k < m->obj[j].col[NB_SWITCH_PORTS].n; k++)
                    held |= !strcmp(m->obj[j].col[NB_SWITCH_PORTS].k[k], m->obj[i].key);
        if (!held)
            continue;
        struct nb_obj *n = nb_model_add(kept, m->obj[i].kind, m->obj[i].key);
        for (int c = 0; c < nb_kinds[n->kind].n_cols; c++)
            copy_value(&n->col[c], &m->obj[i].col[c]);
    }
    nb_model_sort(kept);
    nb_model_free(m);
    return kept;
}

static struct nb_model *random_model(unsigned *seed)
{
    static char ids[64][8], ips[64][20], hosts[3][4] = {"a", "b", ""};
    struct anet_network nets[3];
    struct anet_port ports[24];
    size_t n_nets = 0, n_ports = 0;
    static const char *const cidr[] = {"198.18.0.0/24", "198.18.1.0/24", "198.18.2.0/24"}, *const nid[] = {"n0", "n1", "n2"};
    for (int i = 0; i < 3; i++)
        if (rand_r(seed) % 4)
            nets[n_nets++] = (struct anet_network){.id = nid[i], .name = rand_r(seed) % 2 ? "x" : "y", .cidr = cidr[i],
                                                   .mtu = rand_r(seed) % 3 ? 0 : 1400};
    for (int i = 0; i < 24 && n_nets; i++) {
        if (rand_r(seed) % 2)
            continue;
        const struct anet_network *n = &nets[(unsigned)rand_r(seed) % n_nets];
        snprintf(ids[i], sizeof ids[i], "p%d", i);
        snprintf(ips[i], sizeof ips[i], "198.18.%c.%d", n->id[1], 2 + i + rand_r(seed) % 2 * 100);
        const char *host = hosts[rand_r(seed) % 3];
        ports[n_ports++] = port(ids[i], n->id, ips[i], host, *host && rand_r(seed) % 3 == 0 ? "c" : "");
    }
    return build(nets, n_nets, ports, n_ports);
}

static void test_random(void **state)
{
    unsigned seed = 7;
    struct nb_model *db = nb_model_new();
    for (int round = 0; round < 500; round++) {
        struct nb_model *want = random_model(&seed);
        struct nb_plan p;
        nb_plan_make(want, db, &p);
        struct nb_model *next = apply(db, &p);
        nb_plan_free(&p);
        nb_model_free(db);
        db = next;
        char *left = plan_text(want, db);
        assert_string_equal(left, "");
        free(left);
        assert_int_equal(want->n, db->n);
        nb_model_free(want);
    }
    nb_model_free(db);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_build), cmocka_unit_test(test_build_bad), cmocka_unit_test(test_plans),
                                       cmocka_unit_test(test_surplus), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
