/* Real QEMUs through compute/machine.h: life, daemon restart, lease expiry, bad specifications. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"
#include "compute/hostcheck/hostcheck.h"
#include "tests/lib/guest_run.h"

#define LONG_MS 60000 /* the machine may be very busy */

struct answer {
    bool came;
    int status;
};
static void on_done(struct machine *m, int status, const struct err *e, void *arg)
{
    *(struct answer *)arg = (struct answer){true, status};
}
static bool answered(void *arg) { return ((struct answer *)arg)->came; }

static int setup(void **state)
{
    struct rig *r = xcalloc(1, sizeof *r);
    rig_open(r, uv_default_loop());
    *state = r;
    return 0;
}
static int teardown(void **state)
{
    rig_close(*state);
    free(*state);
    return 0;
}

static struct machine *start(struct rig *r, const struct machine_spec *s)
{
    struct machine *m;
    struct err e;
    if (machine_start(r->ms, s, &m, &e) != E_OK)
        fail_msg("%s", e.msg);
    return m;
}

static void resume_gives(struct rig *r, struct machine *m, int want)
{
    struct answer a = {0};
    machine_resume(m, on_done, &a);
    assert_true(rig_until(r->loop, answered, &a, LONG_MS));
    assert_int_equal(a.status, want);
}

/* start with disk and NIC, run, pause, resume, power button, nothing left */
static void test_life(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    struct answer a = {0};
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    s.n_disks = s.n_nics = 1;
    snprintf(s.disks[0].socket, sizeof s.disks[0].socket, "%s/d0.sock", r->dir);
    s.nics[0] = (struct machine_nic){.slot = 0, .tap = "ct00c0ffee", .mac = "02:00:00:c0:ff:ee", .mtu = 1442};
    pid_t disk = rig_disk(r, s.disks[0].socket, 1 << 20);
    struct machine *m = start(r, &s);
    assert_int_equal(machine_state(m), MACHINE_STARTING);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(if_nametoindex("ct00c0ffee") > 0);
    assert_true(rig_guest_goes_on(r, &s, 3, LONG_MS));

    machine_pause(m, on_done, &a);
    assert_true(rig_until_state(m, MACHINE_PAUSED, LONG_MS));
    assert_true(a.came && a.status == E_OK);
    long at = rig_guest_sweep(r, &s);
    rig_run_ms(r->loop, 300);
    assert_int_equal(rig_guest_sweep(r, &s), at);
    resume_gives(r, m, E_OK);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));

    machine_stop(m, LONG_MS);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_GUEST);
    assert_int_equal(if_nametoindex("ct00c0ffee"), 0);
    machine_free(m);
    rig_disk_end(disk);
}

/* A guest that ignores the power button is killed after the grace. */
static void test_stop_by_force(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    rig_spec(&s, MACHINE_MICROVM, MACHINE_TCG);
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));
    machine_stop(m, 200);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_KILLED);
}

static void test_daemon_restart(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    s.generation = 7;
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    pid_t pid = machine_pid(m);
    machines_close(r->ms);
    rig_run_ms(r->loop, 10);

    rig_reopen(r);
    assert_int_equal(machines_adopt(r->ms), 1);
    m = machines_find(r->ms, s.id);
    assert_non_null(m);
    assert_int_equal(machine_pid(m), pid);
    assert_int_equal(machine_spec(m)->generation, 7);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));

    /* Killed by someone else: seen, named a failure, cleaned up. */
    kill(pid, SIGKILL);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_FAILED);
    assert_true(machine_message(m)[0]);
    machine_free(m);

    /* Dies while no daemon is there: the next one removes what it left. */
    m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    pid = machine_pid(m);
    machines_close(r->ms);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0); /* ours by descent, in this test only */
    rig_reopen(r);
    assert_int_equal(machines_adopt(r->ms), 0);
    while (waitpid(-1, NULL, WNOHANG) > 0) /* its guard */
        ;
}

static void test_lease(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));
    rig_lease_ms(r, 0);
    assert_true(rig_until_state(m, MACHINE_PAUSED, LONG_MS));
    resume_gives(r, m, E_UNAVAIL);
    rig_lease_ms(r, 3600000);
    rig_run_ms(r->loop, 300); /* the guard does not resume by itself */
    assert_int_equal(machine_state(m), MACHINE_PAUSED);
    resume_gives(r, m, E_OK);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));

    /* The daemon hangs (here: is gone) when the lease runs out. */
    machines_close(r->ms);
    rig_lease_ms(r, 0);
    rig_run_ms(r->loop, 1500);
    long at = rig_guest_sweep(r, &s);
    rig_run_ms(r->loop, 500);
    assert_int_equal(rig_guest_sweep(r, &s), at);
    rig_lease_ms(r, 3600000);
    rig_reopen(r);
    assert_int_equal(machines_adopt(r->ms), 1);
    m = machines_find(r->ms, s.id);
    assert_true(rig_until_state(m, MACHINE_PAUSED, LONG_MS));
    resume_gives(r, m, E_OK);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));
}

static bool process_state(pid_t pid, char want)
{
    char path[64], *text;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (file_read(path, 4096, &text, NULL, NULL) != E_OK)
        return false;
    bool is = strrchr(text, ')')[2] == want;
    free(text);
    return is;
}
static bool is_stopped(void *arg) { return process_state(*(pid_t *)arg, 'T'); }

/* QEMU's monitor does not answer when the lease runs out (here: its main thread is traced away by SIGSTOP, then let go
 * again while the lease is still expired): the guard stops the process itself; resuming wakes it. */
static void test_frozen(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    pid_t pid = machine_pid(m);
    kill(pid, SIGSTOP);
    assert_true(rig_until(r->loop, is_stopped, &pid, LONG_MS));
    rig_lease_ms(r, 0);
    rig_run_ms(r->loop, 1500); /* the guard's 1 s is over: it has sent SIGSTOP too */
    machines_close(r->ms);
    rig_reopen(r);
    assert_int_equal(machines_adopt(r->ms), 1);
    m = machines_find(r->ms, s.id);
    assert_int_equal(machine_state(m), MACHINE_PAUSED);
    rig_lease_ms(r, 3600000);
    rig_run_ms(r->loop, 300);
    assert_true(is_stopped(&pid));
    resume_gives(r, m, E_OK);
    /* The guard's `stop` still lay in the monitor's queue and may come out after our `cont`. */
    rig_run_ms(r->loop, 300);
    if (machine_state(m) != MACHINE_RUNNING)
        resume_gives(r, m, E_OK);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(r, &s, 2, LONG_MS));
}

static void test_guard_killed(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    char path[160], *text;
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    snprintf(path, sizeof path, "%s/vm/%s/guard.pid", r->dir, s.id);
    assert_int_equal(file_read(path, 100, &text, NULL, NULL), E_OK);
    kill((pid_t)atol(text), SIGKILL);
    free(text);
    rig_run_ms(r->loop, 500);
    rig_lease_ms(r, 0);
    assert_true(rig_until_state(m, MACHINE_PAUSED, LONG_MS)); /* its successor did it */
}

static void test_failures(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    struct machine *m;
    struct err e;
    /* QEMU refuses to start: the reason is in the message. */
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    strcpy(s.kernel, "/nonexistent/kernel");
    m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_FAILED);
    assert_non_null(strstr(machine_message(m), "/nonexistent/kernel"));
    machine_free(m);
    /* Twice the same. */
    rig_spec(&s, MACHINE_Q35, MACHINE_TCG);
    m = start(r, &s);
    struct machine *second;
    assert_int_equal(machine_start(r->ms, &s, &second, &e), E_EXISTS);
    /* Killed at once, before its monitor is there. */
    machine_kill(m);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_KILLED);
    machine_free(m);
    /* No guard program: the guest must not run. */
    struct machines *ms;
    struct machines_conf c = {.loop = r->loop, .run_dir = r->dir, .lease_path = r->lease_path, .guard_path = "/nonexistent/guard"};
    assert_int_equal(machines_open(&c, &ms, &e), E_OK);
    assert_int_equal(machine_start(ms, &s, &m, &e), E_OK);
    assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
    assert_int_equal(machine_end(m), MACHINE_END_FAILED);
    machine_free(m);
    machines_close(ms);
}

struct want_text {
    char path[160];
    const char *text;
};
static bool on_serial(void *arg)
{
    struct want_text *w = arg;
    char *text;
    if (file_read(w->path, 8 << 20, &text, NULL, NULL) != E_OK)
        return false;
    bool there = strstr(text, w->text) != NULL;
    free(text);
    return there;
}

/* Linux reaches its first process on both machine types, with disk and NIC, however busy this host is. */
static void test_linux(void **state)
{
    struct rig *r = *state;
    char kernel[MACHINE_PATH_MAX], initrd[MACHINE_PATH_MAX];
    snprintf(kernel, sizeof kernel, "%s/kernel", TEST_LINUX);
    snprintf(initrd, sizeof initrd, "%s/initrd", TEST_LINUX);
    if (access(kernel, R_OK) != 0 || access(initrd, R_OK) != 0) {
        printf("skipped: no Linux guest in %s (deploy/image-debian makes it)\n", TEST_LINUX);
        skip();
    }
    for (int i = 0; i < 2; i++) {
        struct machine_spec s;
        rig_spec(&s, i ? MACHINE_MICROVM : MACHINE_Q35, MACHINE_TCG);
        s.memory_bytes = 192 << 20;
        s.vcpus = 2;
        strcpy(s.kernel, kernel);
        strcpy(s.initrd, initrd);
        strcpy(s.cmdline, "console=ttyS0");
        s.n_disks = s.n_nics = 1;
        snprintf(s.disks[0].socket, sizeof s.disks[0].socket, "%s/d%d.sock", r->dir, i);
        s.nics[0] = (struct machine_nic){.tap = "ct00c0ffee", .mac = "02:00:00:c0:ff:ee", .mtu = 1442};
        pid_t disk = rig_disk(r, s.disks[0].socket, 1 << 20);
        struct machine *m = start(r, &s);
        struct want_text w = {.text = "virtio_blk virtio"}; /* its driver found the disk */
        snprintf(w.path, sizeof w.path, "%s/vm/%s/serial.log", r->dir, s.id);
        assert_true(rig_until(r->loop, on_serial, &w, LONG_MS));
        machine_kill(m);
        assert_true(rig_until_state(m, MACHINE_ENDED, LONG_MS));
        machine_free(m);
        rig_disk_end(disk);
    }
}

/* A guest that insists on kvm gets it, with the processor model that the host check found fit. */
static void test_kvm(void **state)
{
    struct rig *r = *state;
    struct machine_spec s;
    struct hostcheck h;
    hostcheck_run(NULL, &h);
    if (h.kvm != HOSTCHECK_KVM_EMULATED && h.kvm != HOSTCHECK_KVM_NATIVE) {
        printf("skipped: %s\n", h.reason);
        skip();
    }
    rig_spec(&s, MACHINE_MICROVM, MACHINE_KVM);
    strcpy(s.cpu, h.kvm_cpu);
    struct machine *m = start(r, &s);
    assert_true(rig_until_state(m, MACHINE_RUNNING, LONG_MS));
    struct want_text w = {.text = "hello"};
    snprintf(w.path, sizeof w.path, "%s/vm/%s/serial.log", r->dir, s.id);
    assert_true(rig_until(r->loop, on_serial, &w, LONG_MS));
}

int main(void)
{
    rig_require();
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_by_force, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lease, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frozen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_guard_killed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
        cmocka_unit_test_setup_teardown(test_linux, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kvm, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
