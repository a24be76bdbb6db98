/* Guest specification and QEMU's command line: all combinations, bad input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "compute/qemu/args.h"

static struct machine_spec good(void)
{
    struct machine_spec s = {.id = "0b0e3b8e-6f0a-4a53-9d0c-2f8f7f1f6a11", .name = "web1", .generation = 3, .vcpus = 2,
                             .memory_bytes = 512 << 20, .kernel = "/k/vmlinuz", .initrd = "/k/initrd", .cmdline = "console=ttyS0",
                             .n_disks = 2, .n_nics = 1};
    s.disks[0] = (struct machine_disk){1, "/run/cohort/vm/x/disk1.sock"};
    s.disks[1] = (struct machine_disk){0, "/run/cohort/vm/x/disk0.sock"};
    s.nics[0] = (struct machine_nic){.slot = 2, .tap = "ct0a1b2c3d", .mac = "02:00:00:00:00:01", .mtu = 1442};
    return s;
}

static char *joined(const struct machine_spec *s, const struct qemu_env *env)
{
    struct qemu_args a;
    struct buf b;
    buf_init(&b);
    qemu_args_build(s, env, &a);
    assert_null(a.v[a.n]);
    for (int i = 0; i < a.n; i++)
        buf_printf(&b, " %s", a.v[i]);
    qemu_args_free(&a);
    return buf_take(&b);
}

static void expect(const char *line, const char *part, bool there)
{
    if ((strstr(line, part) != NULL) != there)
        fail_msg("\"%s\" is %s in: %s", part, there ? "missing" : "unexpected", line);
}

static void test_args(void **state)
{
    for (int i = 0; i < 32; i++) {
        struct machine_spec s = good();
        bool disk_boot = i & 1, kvm = i & 4, incoming = i & 8, offload = i & 16, micro = (i & 2) && !disk_boot;
        s.type = micro ? MACHINE_MICROVM : MACHINE_Q35;
        s.accel = kvm ? MACHINE_KVM : MACHINE_TCG;
        s.incoming = incoming;
        s.nics[0].offload = offload;
        if (disk_boot)
            s.kernel[0] = s.initrd[0] = s.cmdline[0] = '\0';
        assert_int_equal(machine_spec_check(&s, NULL), E_OK);
        char *line = joined(&s, &(struct qemu_env){.dir = "/run/cohort/vm/x", .vhost_net = true, .tsc_khz = 2500000});
        expect(line, micro ? "-machine microvm," : "-machine pc-q35-7.2,", true);
        expect(line, kvm ? "-accel kvm -cpu host" : "-accel tcg -cpu max", true);
        expect(line, kvm ? "-m 524288K" : "-m 524296K", true);
        expect(line, kvm ? "size=524288K,share=on" : "size=524296K,share=on", true);
        expect(line, "-kernel /k/vmlinuz -initrd /k/initrd -append console=ttyS0", !disk_boot);
        expect(line, "tsc_early_khz=2500000", micro && !kvm);
        expect(line, "vhost-user-blk-pci,id=vd0,chardev=disk0,num-queues=2,queue-size=512,addr=0x8", true);
        expect(line, "addr=0x8,bootindex=0", disk_boot);
        expect(line, "addr=0x9,bootindex", false);
        expect(line, "path=/run/cohort/vm/x/disk1.sock,reconnect=1", true);
        expect(line, offload ? "vhost=on" : "vhost=off", true);
        expect(line, ",csum=off,", !offload);
        expect(line, "netdev=net2,mac=02:00:00:00:00:01,addr=0x12,romfile=,host_mtu=1442", true);
        expect(line, "-incoming defer", incoming);
        expect(line, " -S", true);
        free(line);
    }
    /* A comma in a path must not become an option of QEMU's. */
    struct machine_spec s = good();
    strcpy(s.disks[0].socket, "/run/a,server=on");
    char *line = joined(&s, &(struct qemu_env){.dir = "/run/d,x"});
    expect(line, "path=/run/a,,server=on,reconnect", true);
    expect(line, "path=/run/d,,x/qmp.sock", true);
    free(line);
}

static void test_json(void **state)
{
    struct machine_spec s = good(), t;
    struct err e;
    char *text = machine_spec_format(&s);
    assert_int_equal(machine_spec_parse(text, strlen(text), &t, &e), E_OK);
    char *again = machine_spec_format(&t);
    assert_string_equal(text, again);
    free(again);
    /* Cut anywhere: refused, never believed. */
    for (size_t n = 0; n + 1 < strlen(text); n++)
        assert_int_equal(machine_spec_parse(text, n, &t, &e), E_INVAL);
    /* Every single byte damaged: refused or still a valid specification. */
    for (size_t n = 0; n < strlen(text); n++) {
        char *bad = xstrdup(text);
        bad[n] = (char)(bad[n] ^ 0x15);
        if (machine_spec_parse(bad, strlen(bad), &t, &e) == E_OK)
            assert_int_equal(machine_spec_check(&t, &e), E_OK);
        free(bad);
    }
    free(text);
    static const char *const bad[] = {"", "[]", "{}", "null", "{\"format\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(machine_spec_parse(bad[i], strlen(bad[i]), &t, &e), E_INVAL);
}

static void test_check(void **state)
{
#define BAD(CHANGE)                                              \
    do {                                                         \
        struct machine_spec s = good();                          \
        CHANGE;                                                  \
        struct err e = {0};                                      \
        assert_int_equal(machine_spec_check(&s, &e), E_INVAL);   \
        assert_true(e.msg[0]);                                   \
    } while (0)
    BAD(s.id[3] = 'x');
    BAD(strcpy(s.name, "a b"));
    BAD(strcpy(s.name, "a,sandbox=off"));
    BAD(s.name[0] = '\0');
    BAD(s.generation = -1);
    BAD(s.vcpus = 0);
    BAD(s.memory_bytes = 1 << 20);
    BAD(s.memory_bytes = INT64_MAX);
    BAD(strcpy(s.kernel, "relative"));
    BAD(s.kernel[0] = '\0'); /* initrd without kernel */
    BAD(strcpy(s.cmdline, "a\nb"));
    BAD(strcpy(s.cpu, "host -monitor stdio"));
    BAD(s.disks[1].slot = 1);
    BAD(s.disks[1].slot = MACHINE_DISKS_MAX);
    BAD(s.disks[0].slot = -1);
    BAD(s.n_disks = MACHINE_DISKS_MAX + 1);
    BAD(strcpy(s.disks[0].socket, "x"));
    BAD(strcpy(s.nics[0].tap, "a/b"));
    BAD(strcpy(s.nics[0].mac, "02:00:00:00:00"));
    BAD(strcpy(s.nics[0].mac, "01:00:00:00:00:01"));
    BAD(s.nics[0].mtu = 100);
    BAD(s.memory_max_bytes = 1 << 20);
    BAD(s.type = MACHINE_MICROVM; s.kernel[0] = s.initrd[0] = s.cmdline[0] = '\0');
}

static void test_ram(void **state)
{
    struct machine_spec s = {.accel = MACHINE_TCG};
    for (int64_t b = 16 << 20; b < (17 << 20); b += 4097) {
        s.memory_bytes = b;
        int64_t ram = machine_ram_bytes(&s);
        assert_true(ram >= b && ram % (256 << 10) != 0 && ram % 4096 == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_args), cmocka_unit_test(test_json), cmocka_unit_test(test_check), cmocka_unit_test(test_ram)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
