/* daemon: ports without a machine (op_port_create, op_port_delete) against the in-memory database. */
#include "tests/lib/twin.h"

static struct twin w;

static int setup(void **s)
{
    twin_open(&w);
    return 0;
}

static int teardown(void **s)
{
    twin_close(&w);
    return 0;
}

static int make_network(const char *name, const char *cidr)
{
    struct network_spec n = {.name = name, .cidr = cidr, .gateway = ""};
    return twin_end(&w, op_network_create(w.ops, &n, twin_done, &w, &w.err));
}

static int make_port(const char *name, const char *network)
{
    struct port_spec p = {.name = name, .network = network};
    return twin_end(&w, op_port_create(w.ops, &p, twin_done, &w, &w.err));
}

static int delete_port(const char *name) { return twin_end(&w, op_port_delete(w.ops, name, twin_done, &w, &w.err)); }
static const struct cdb_port *port(const char *name) { return cdb_find_name(twin_view(&w), CDB_T_PORT, name); }

static void create_and_delete(void **s)
{
    assert_int_equal(make_network("net1", "198.18.1.0/29"), E_OK);
    assert_int_equal(make_port("probe", "net1"), E_OK);
    assert_non_null(port("probe"));
    assert_string_equal(w.id, port("probe")->id); /* what the API answers is the port's own id */
    assert_string_equal(port("probe")->ip, "198.18.1.2"); /* .1 is the gateway */
    assert_string_equal(port("probe")->machine, "");
    assert_int_equal(strncmp(port("probe")->mac, "02:", 3), 0);
    assert_int_equal(make_port("probe", "net1"), E_EXISTS);
    assert_int_equal(twin_end(&w, op_network_delete(w.ops, "net1", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(delete_port("probe"), E_OK);
    assert_null(port("probe"));
    assert_int_equal(delete_port("probe"), E_NOTFOUND);
    assert_int_equal(twin_end(&w, op_network_delete(w.ops, "net1", twin_done, &w, &w.err)), E_OK);
}

static void refusals(void **s)
{
    char name[8];
    assert_int_equal(make_port("p", "none"), E_NOTFOUND);
    assert_int_equal(make_network("net1", "198.18.1.0/29"), E_OK);
    assert_int_equal(make_port("a b", "net1"), E_INVAL);
    for (int i = 2; i <= 6; i++) { /* .1 gateway, .7 broadcast */
        snprintf(name, sizeof name, "p%d", i);
        assert_int_equal(make_port(name, "net1"), E_OK);
    }
    assert_int_equal(make_port("one-more", "net1"), E_NOSPC);
}

static void a_machines_port_goes_with_it(void **s)
{
    assert_int_equal(make_network("net1", "198.18.1.0/24"), E_OK);
    struct vm_spec v = {.name = "web", .type = "q35", .accel = "auto", .image = "", .cmdline = "", .ha_policy = "restart", .affinity = "none",
                        .vcpus = 1, .memory_bytes = INT64_C(512) << 20, .priority = 50, .n_disks = 1,
                        .disks = {{.size_bytes = INT64_C(1) << 30}}, .n_networks = 1, .networks = {"net1"}};
    assert_int_equal(twin_end(&w, op_vm_create(w.ops, &v, twin_done, &w, &w.err)), E_OK);
    assert_int_equal(delete_port("web-0"), E_BUSY);
    assert_non_null(port("web-0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(create_and_delete, setup, teardown),
        cmocka_unit_test_setup_teardown(refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(a_machines_port_goes_with_it, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
