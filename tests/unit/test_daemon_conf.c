/* cohortd.json: what is right loads, everything else is refused with the file and the field named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/daemon.h"

static int load(const char *text, struct conf *c, struct err *e)
{
    char path[] = "/tmp/cohort-conf-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    int rc = conf_load(path, c, e);
    unlink(path);
    return rc;
}

static void test_good(void **state)
{
    struct conf c;
    struct err e = {0};
    assert_int_equal(load("{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"journal_bytes\":67108864,"
                          "\"storage_addresses\":[\"198.51.100.11\",\"203.0.113.11\"],"
                          "\"disks\":[{\"name\":\"d0\",\"fast\":\"/srv/f\",\"capacity\":\"/srv/c\"}]}", &c, &e), 0);
    assert_string_equal(c.node_name, "n1");
    assert_int_equal(c.control_port, 7700);
    assert_int_equal(c.n_disks, 1);
    assert_int_equal(c.n_storage_addresses, 2);
    assert_string_equal(c.storage_addresses[1], "203.0.113.11");
    assert_string_equal(c.disks[0].capacity, "/srv/c");
    conf_free(&c);
}

static void test_bad(void **state)
{
    static const struct { const char *text, *part; } cases[] = {
        {"", "node_name"},
        {"{", "not"},
        {"[]", "object"},
        {"{\"node_name\":\"n1\"}", "address"},
        {"{\"node_name\":\"n1\",\"address\":\"here\"}", "address"},
        {"{\"node_name\":\"n1\",\"address\":\"no.place.at.all\"}", "not an IPv4 address"},
        {"{\"node_name\":\"../n1\",\"address\":\"192.0.2.11\"}", "node_name"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"colour\":1}", "colour"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"api_port\":0}", "api_port"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"storage_addresses\":[\"198.51.100.1\",7]}", "storage_addresses\"[1]"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"storage_addresses\":[\"0.0.0.0\"]}", "not an IPv4 address"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"storage_addresses\":[\"192.0.2.11\"]}", "stands by"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"storage_addresses\":[\"198.51.100.1\",\"198.51.100.1\"]}", "twice"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"storage_addresses\":[\"198.51.100.1\",\"198.51.100.2\",\"198.51.100.3\","
         "\"198.51.100.4\",\"198.51.100.5\"]}", "storage_addresses"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"api_port\":\"x\"}", "api_port"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"journal_bytes\":17000000}", "journal_bytes"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"journal_bytes\":1048576}", "journal_bytes"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"run_dir\":\"run\"}", "run_dir"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"disks\":[{\"name\":\"d\",\"fast\":\"f\",\"capacity\":\"/c\"}]}", "disks.fast"},
        {"{\"node_name\":\"n1\",\"address\":\"192.0.2.11\",\"disks\":[{\"name\":\"d\",\"fast\":\"/f\",\"capacity\":\"/c\"},"
         "{\"name\":\"e\",\"fast\":\"/f\",\"capacity\":\"/c\"}]}", "disks[1]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct conf c;
        struct err e = {0};
        assert_int_not_equal(load(cases[i].text, &c, &e), 0);
        if (!strstr(e.msg, cases[i].part) || !strstr(e.msg, "/tmp/cohort-conf-"))
            fail_msg("case %zu: \"%s\" does not mention \"%s\" and the file", i, e.msg, cases[i].part);
    }
    struct conf c;
    struct err e = {0};
    assert_int_equal(conf_load("/nonexistent/cohortd.json", &c, &e), E_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
