/* Host check and lease page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <jansson.h>
#include "base/clock.h"
#include "compute/hostcheck/hostcheck.h"
#include "compute/lease.h"

static void test_judge(void **state)
{
    struct hostcheck h = {.guest_loops_s = 9e5, .native_loops_s = 3e9};
    hostcheck_judge(&h);
    assert_true(h.kvm == HOSTCHECK_KVM_EMULATED && h.accel == MACHINE_TCG && h.reason[0]);
    h.guest_loops_s = 2.8e9;
    hostcheck_judge(&h);
    assert_true(h.kvm == HOSTCHECK_KVM_NATIVE && h.accel == MACHINE_KVM && strcmp(h.kvm_cpu, "host") == 0);
}

static void test_probe(void **state)
{
    struct hostcheck h;
    hostcheck_run("/nonexistent", &h);
    assert_true(h.kvm == HOSTCHECK_KVM_ABSENT && h.accel == MACHINE_TCG);
    hostcheck_run("/dev/null", &h); /* opens, but is not KVM */
    assert_true(h.kvm == HOSTCHECK_KVM_UNUSABLE && h.accel == MACHINE_TCG && h.reason[0]);
    uint64_t start = clock_boot_ms();
    hostcheck_run(NULL, &h); /* whatever is here: an answer, in time, with a reason */
    assert_true(clock_boot_ms() - start < HOSTCHECK_MAX_MS + 1000);
    assert_true(h.reason[0] && (h.accel == MACHINE_KVM) == (h.kvm == HOSTCHECK_KVM_NATIVE));
    printf("this host: %s: %s\n", machine_accel_name(h.accel), h.reason);
    char *text = hostcheck_json(&h);
    json_t *j = json_loads(text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(j, "accel")), machine_accel_name(h.accel));
    json_decref(j);
    free(text);
}

static void test_lease(void **state)
{
    char path[] = "/tmp/cohort-test-lease-XXXXXX";
    int fd = mkstemp(path);
    struct lease w, r, again;
    struct err e;
    assert_true(fd >= 0);
    assert_int_equal(lease_open(path, &r, &e), E_CORRUPT); /* empty file */
    assert_int_equal(lease_create(path, &w, &e), E_OK);
    assert_int_equal(lease_open(path, &r, &e), E_OK);
    assert_false(lease_valid(&r));
    lease_set(&w, clock_boot_ns() + 1000000000u);
    assert_true(lease_valid(&r));
    assert_int_equal(lease_create(path, &again, &e), E_OK); /* a restarted daemon finds it as it was */
    assert_true(lease_valid(&again) && again.inode == r.inode);
    lease_set(&again, clock_boot_ns() - 1);
    assert_false(lease_valid(&r));
    lease_close(&w);
    lease_close(&again);
    lease_close(&r);
    assert_false(lease_valid(&r));
    unlink(path);
    close(fd);
    assert_int_equal(lease_open(path, &r, &e), E_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_judge), cmocka_unit_test(test_probe), cmocka_unit_test(test_lease)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
