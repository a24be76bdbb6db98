/* Address arithmetic, checks of networks and ports, MTU (net/anet/addr.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "net/anet/addr.h"
#include "net/anet/anet.h"

static void test_ip(void **state)
{
    static const char *const bad[] = {"", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.04", "1.2.3.4 ", " 1.2.3.4",
                                      "1.2..4", "1.2.3.", "-1.2.3.4", "1.2.3.4/24", "a.b.c.d", "1.2.3.1000", "::1", NULL};
    uint32_t ip;
    char text[16];
    assert_true(addr_parse_ip("198.18.1.200", &ip));
    assert_int_equal(ip, 0xc61201c8u);
    addr_format_ip(ip, text);
    assert_string_equal(text, "198.18.1.200");
    assert_true(addr_parse_ip("0.0.0.0", &ip));
    assert_true(addr_parse_ip("255.255.255.255", &ip));
    for (size_t i = 0; bad[i]; i++)
        assert_false(addr_parse_ip(bad[i], &ip));
    assert_false(addr_parse_ip(NULL, &ip));
}

static void test_cidr(void **state)
{
    static const char *const bad[] = {"", "198.18.1.0", "198.18.1.0/", "198.18.1.0/30", "198.18.1.0/7", "198.18.1.0/024",
                                      "198.18.1.0/2x", "198.18.1.1/24", "198.18.1.0/24/24", "198.18.1.0/-1", "0.0.0.0/8",
                                      "127.0.0.0/8", "224.0.0.0/8", "240.0.0.0/8", "198.18.1/24", "/24",
                                      "198.18.1.0/111111111111111111111", "1111111111111111111111111111.0.0.0/24", NULL};
    struct addr_range r;
    struct err e = {0};
    assert_int_equal(addr_parse_cidr("198.18.0.0/15", &r, &e), 0);
    assert_int_equal(r.net, 0xc6120000u);
    assert_int_equal(r.mask, 0xfffe0000u);
    assert_int_equal(addr_parse_cidr("10.0.0.0/8", &r, &e), 0);
    assert_int_equal(addr_parse_cidr("198.18.1.8/29", &r, &e), 0);
    for (size_t i = 0; bad[i]; i++) {
        e = (struct err){0};
        assert_int_equal(addr_parse_cidr(bad[i], &r, &e), E_INVAL);
        assert_true(strlen(e.msg) > 0);
    }
    assert_int_equal(addr_parse_cidr("198.18.1.77/24", &r, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "198.18.1.0/24")); /* says what would be right */
}

static void test_mac(void **state)
{
    static const char *const bad[] = {"", "02:00:00:00:00", "02:00:00:00:00:0", "02-00-00-00-00-01", "03:00:00:00:00:01",
                                      "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00:0g", "02:00:00:00:00:011", NULL};
    uint8_t mac[6];
    char text[18], again[18];
    assert_true(addr_parse_mac("02:aB:cd:EF:00:01", mac));
    assert_memory_equal(mac, "\x02\xab\xcd\xef\x00\x01", 6);
    for (size_t i = 0; bad[i]; i++)
        assert_false(addr_parse_mac(bad[i], mac));
    anet_mac_of("6d1f2c1a-0000-4000-8000-000000000001", text);
    anet_mac_of("6d1f2c1a-0000-4000-8000-000000000001", again);
    assert_string_equal(text, again);
    assert_true(addr_parse_mac(text, mac));
    anet_mac_of("6d1f2c1a-0000-4000-8000-000000000002", again);
    assert_string_not_equal(text, again);
}

static void test_overlap(void **state)
{
    static const struct { const char *a, *b; bool yes; } t[] = {
        {"10.0.0.0/8", "10.9.0.0/16", true}, {"10.9.0.0/16", "10.0.0.0/8", true}, {"10.0.0.0/24", "10.0.1.0/24", false},
        {"10.0.0.0/24", "10.0.0.0/24", true}, {"198.18.0.0/15", "198.20.0.0/16", false}, {"198.18.0.0/15", "198.19.255.0/24", true}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct addr_range a, b;
        assert_int_equal(addr_parse_cidr(t[i].a, &a, NULL), 0);
        assert_int_equal(addr_parse_cidr(t[i].b, &b, NULL), 0);
        assert_int_equal(addr_overlap(&a, &b), t[i].yes);
    }
}

static void test_network(void **state)
{
    static const char *const dns[] = {"198.18.1.53"}, *const bad_dns[] = {"ns.example"};
    const struct anet_network good = {.id = "n1", .name = "one", .cidr = "198.18.1.0/24", .n_dns = 1, .dns = dns};
    struct anet_network n = good;
    struct err e = {0};
    char gw[16];
    assert_int_equal(anet_check_network(&n, NULL, 0, &e), 0);
    assert_int_equal(anet_gateway(&n, gw, &e), 0);
    assert_string_equal(gw, "198.18.1.1");
    n.gateway = "198.18.1.254";
    assert_int_equal(anet_check_network(&n, NULL, 0, &e), 0);
    assert_int_equal(anet_gateway(&n, gw, &e), 0);
    assert_string_equal(gw, "198.18.1.254");
    static const char *const bad_gw[] = {"198.18.1.0", "198.18.1.255", "198.18.2.1", "nonsense", NULL};
    for (size_t i = 0; bad_gw[i]; i++) {
        n.gateway = bad_gw[i];
        assert_int_equal(anet_check_network(&n, NULL, 0, &e), E_INVAL);
    }
    n = good;
    n.dns = bad_dns;
    assert_int_equal(anet_check_network(&n, NULL, 0, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "ns.example"));
    static const int bad_mtu[] = {-1, 100, 575, 9001};
    for (size_t i = 0; i < sizeof bad_mtu / sizeof *bad_mtu; i++) {
        n = good;
        n.mtu = bad_mtu[i];
        assert_int_equal(anet_check_network(&n, NULL, 0, &e), E_INVAL);
    }
    n = good;
    n.id = "";
    assert_int_equal(anet_check_network(&n, NULL, 0, &e), E_INVAL);

    const struct anet_network others[] = {good, {.id = "n2", .name = "two", .cidr = "198.18.0.0/16"}, {.id = "n3", .cidr = "junk"}};
    assert_int_equal(anet_check_network(&good, others, 1, &e), 0); /* itself */
    assert_int_equal(anet_check_network(&good, others, 3, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "two"));
}

static void test_port(void **state)
{
    const struct anet_network net = {.id = "n1", .cidr = "198.18.1.0/24"};
    const struct anet_port good = {.id = "p", .network = "n1", .mac = "02:00:00:00:00:01", .ip = "198.18.1.2", .host = "h"};
    struct anet_port p = good;
    struct err e = {0};
    assert_int_equal(anet_check_port(&net, &p, &e), 0);
    static const char *const bad_ip[] = {"198.18.1.0", "198.18.1.1", "198.18.1.255", "198.18.2.2", "", "x", NULL};
    for (size_t i = 0; bad_ip[i]; i++) {
        p.ip = bad_ip[i];
        assert_int_equal(anet_check_port(&net, &p, &e), E_INVAL);
    }
    p = good;
    p.mac = "01:00:5e:00:00:01";
    assert_int_equal(anet_check_port(&net, &p, &e), E_INVAL);
    p = good;
    p.host = "";
    p.migrate_to = "h2";
    assert_int_equal(anet_check_port(&net, &p, &e), E_INVAL);
    p = good;
    p.id = NULL;
    assert_int_equal(anet_check_port(&net, &p, &e), E_INVAL);
}

static void test_pick(void **state)
{
    const struct anet_network net = {.id = "n", .cidr = "198.18.1.0/29"}; /* .1 gateway, .2 to .6 for guests */
    static const char *const used[] = {"198.18.1.5", "198.18.1.2", "junk", "198.18.1.3", "198.18.1.3", "10.0.0.4", "198.18.1.4",
                                       "198.18.1.6"};
    char ip[16];
    struct err e = {0};
    assert_int_equal(anet_pick_ip(&net, NULL, 0, ip, &e), 0);
    assert_string_equal(ip, "198.18.1.2");
    assert_int_equal(anet_pick_ip(&net, used, 1, ip, &e), 0);
    assert_string_equal(ip, "198.18.1.2");
    assert_int_equal(anet_pick_ip(&net, used, 6, ip, &e), 0);
    assert_string_equal(ip, "198.18.1.4");
    assert_int_equal(anet_pick_ip(&net, used, 7, ip, &e), 0);
    assert_string_equal(ip, "198.18.1.6");
    assert_int_equal(anet_pick_ip(&net, used, 8, ip, &e), E_NOSPC);
    const struct anet_network gw = {.id = "n", .cidr = "198.18.1.0/29", .gateway = "198.18.1.3"};
    assert_int_equal(anet_pick_ip(&gw, used, 2, ip, &e), 0);
    assert_string_equal(ip, "198.18.1.1");
}

static void test_mtu(void **state)
{
    assert_int_equal(anet_guest_mtu(1500), 1442);
    assert_int_equal(anet_guest_mtu(0), 1442);
    assert_int_equal(anet_guest_mtu(9000), 8942);
    assert_int_equal(anet_guest_mtu(600), 576);
    assert_int_equal(anet_guest_mtu(65535), 9000);
    /* The same sum by its parts: outer IPv4, UDP, Geneve header, OVN's option, the guest's Ethernet header. */
    assert_int_equal(ANET_GENEVE_OVERHEAD, 20 + 8 + 8 + 8 + 14);
}

static void test_ifname(void **state)
{
    assert_true(addr_is_ifname("vm-tap0"));
    assert_true(addr_is_ifname("fifteen-letters"));
    static const char *const bad[] = {"", ".", "..", "sixteen-letters!", "a/b", "a b", "a:1", "a\n", NULL};
    for (size_t i = 0; bad[i]; i++)
        assert_false(addr_is_ifname(bad[i]));
    assert_false(addr_is_ifname(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ip), cmocka_unit_test(test_cidr), cmocka_unit_test(test_mac), cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_network), cmocka_unit_test(test_port), cmocka_unit_test(test_pick), cmocka_unit_test(test_mtu),
        cmocka_unit_test(test_ifname)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
