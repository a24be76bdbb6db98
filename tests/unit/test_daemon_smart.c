/* Health of drives: what smartctl (7.3) writes for ATA, NVMe and SCSI drives, healthy and not, shortened to what matters; output that
 * is none; and which drives are behind a device, on a made-up sysfs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "daemon/smart.h"

#define TOOL "\"smartctl\":{\"version\":[7,3],\"svn_revision\":\"5338\",\"argv\":[\"smartctl\",\"--json=c\",\"--all\",\"/dev/x\"],\"exit_status\":0}"

static struct smart parse(const char *json)
{
    struct smart s;
    struct err e = {0};
    int rc = smart_parse(json, strlen(json), &s, &e);
    if (rc)
        fail_msg("%s", e.msg);
    return s;
}

static void expect(const char *json, enum smart_state state, const char *text)
{
    struct smart s = parse(json);
    assert_string_equal(s.text, text);
    assert_int_equal(s.state, state);
}

#define ATA(PASSED, R5, R187, R197, FAILED) \
    "{\"json_format_version\":[1,0]," TOOL ",\"device\":{\"name\":\"/dev/sda\",\"type\":\"sat\",\"protocol\":\"ATA\"}," \
    "\"model_name\":\"HGST HUS724020ALE640\",\"serial_number\":\"PK1\",\"rotation_rate\":7200,\"smart_status\":{\"passed\":" PASSED "}," \
    "\"ata_smart_attributes\":{\"revision\":16,\"table\":[" \
    "{\"id\":5,\"name\":\"Reallocated_Sector_Ct\",\"value\":100,\"worst\":100,\"thresh\":5,\"when_failed\":\"" FAILED "\",\"raw\":{\"value\":" R5 ",\"string\":\"0\"}}," \
    "{\"id\":9,\"name\":\"Power_On_Hours\",\"value\":95,\"worst\":95,\"thresh\":0,\"when_failed\":\"\",\"raw\":{\"value\":41000,\"string\":\"41000\"}}," \
    "{\"id\":187,\"name\":\"Reported_Uncorrect\",\"value\":100,\"worst\":100,\"thresh\":0,\"when_failed\":\"\",\"raw\":{\"value\":" R187 "}}," \
    "{\"id\":197,\"name\":\"Current_Pending_Sector\",\"value\":100,\"worst\":100,\"thresh\":0,\"when_failed\":\"\",\"raw\":{\"value\":" R197 "}}]}," \
    "\"power_on_time\":{\"hours\":41000},\"temperature\":{\"current\":31}}"

static void test_ata(void **state)
{
    (void)state;
    expect(ATA("true", "0", "0", "0", ""), SMART_OK, "HGST HUS724020ALE640: 31 °C");
    expect(ATA("true", "12", "0", "1", ""), SMART_WARNING,
           "HGST HUS724020ALE640: 31 °C; 12 reallocated sectors, 1 sectors that wait to be reallocated");
    expect(ATA("false", "1999", "3", "0", "now"), SMART_FAILING,
           "HGST HUS724020ALE640: 31 °C; it says itself that it fails, Reallocated_Sector_Ct is below its threshold, 1999 reallocated sectors, "
           "3 uncorrectable errors");
}

#define NVME(CRITICAL, SPARE, USED, ERRORS) \
    "{" TOOL ",\"device\":{\"name\":\"/dev/nvme0\",\"type\":\"nvme\",\"protocol\":\"NVMe\"},\"model_name\":\"INTEL SSDPE2KX080T8\"," \
    "\"smart_status\":{\"passed\":true,\"nvme\":{\"value\":0}},\"nvme_smart_health_information_log\":{\"critical_warning\":" CRITICAL "," \
    "\"temperature\":34,\"available_spare\":" SPARE ",\"available_spare_threshold\":10,\"percentage_used\":" USED ",\"data_units_written\":48000000," \
    "\"power_on_hours\":3150,\"unsafe_shutdowns\":7,\"media_errors\":" ERRORS ",\"num_err_log_entries\":0},\"temperature\":{\"current\":34}}"

static void test_nvme(void **state)
{
    (void)state;
    expect(NVME("0", "100", "4", "0"), SMART_OK, "INTEL SSDPE2KX080T8: 34 °C, 4 % of its life used");
    expect(NVME("0", "100", "93", "0"), SMART_WARNING, "INTEL SSDPE2KX080T8: 34 °C, 93 % of its life used");
    expect(NVME("0", "100", "4", "2"), SMART_WARNING, "INTEL SSDPE2KX080T8: 34 °C, 4 % of its life used; 2 media errors");
    expect(NVME("1", "9", "130", "0"), SMART_FAILING,
           "INTEL SSDPE2KX080T8: 34 °C, 130 % of its life used; critical warning 0x1, 9 % spare left");
}

static void test_scsi(void **state)
{
    (void)state;
    expect("{" TOOL ",\"device\":{\"protocol\":\"SCSI\"},\"scsi_model_name\":\"HITACHI H109060SESUN600G\",\"smart_status\":{\"passed\":true},"
           "\"temperature\":{\"current\":29,\"drive_trip\":65},\"scsi_grown_defect_list\":0,"
           "\"scsi_error_counter_log\":{\"read\":{\"total_uncorrected_errors\":0},\"write\":{\"total_uncorrected_errors\":0}}}",
           SMART_OK, "HITACHI H109060SESUN600G: 29 °C");
    expect("{" TOOL ",\"scsi_model_name\":\"HITACHI H109060SESUN600G\",\"smart_status\":{\"passed\":true},\"scsi_grown_defect_list\":4,"
           "\"scsi_error_counter_log\":{\"read\":{\"total_uncorrected_errors\":2},\"write\":{\"total_uncorrected_errors\":1}}}",
           SMART_WARNING, "HITACHI H109060SESUN600G: read; 4 grown defects, 3 uncorrected errors");
}

static void test_nothing_known(void **state)
{
    struct smart s = {SMART_FAILING, "kept"};
    struct err e;
    (void)state;
    expect("{\"smartctl\":{\"version\":[7,3],\"messages\":[{\"string\":\"/dev/vda: Unable to detect device type\",\"severity\":\"error\"}],"
           "\"exit_status\":1}}", SMART_UNKNOWN, "no SMART: /dev/vda: Unable to detect device type");
    expect("{\"smartctl\":{\"exit_status\":2}}", SMART_UNKNOWN, "no SMART: the device tells nothing");
    static const char *const bad[] = {"", "x", "[]", "{}", "{\"smartctl\":3}", "{\"smartctl\":{}", "null"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(smart_parse(bad[i], strlen(bad[i]), &s, &e), E_INVAL);
        assert_string_equal(s.text, "kept");
    }
    /* Members of other types than expected are as if they were not there. */
    expect("{" TOOL ",\"model_name\":7,\"smart_status\":{\"passed\":true},\"temperature\":[],\"ata_smart_attributes\":{\"table\":[3,{\"id\":\"5\"}]}}",
           SMART_OK, "drive: read");
}

static void test_merge(void **state)
{
    (void)state;
    struct smart all = {0}, a = {SMART_OK, "A: 31 °C"}, b = {SMART_WARNING, "B: 2 media errors"}, c = {SMART_UNKNOWN, "no SMART: C"};
    smart_merge(&all, &a);
    smart_merge(&all, &b);
    smart_merge(&all, &c);
    assert_int_equal(all.state, SMART_WARNING);
    assert_string_equal(all.text, "A: 31 °C | B: 2 media errors | no SMART: C");
    assert_string_equal(smart_state_name(SMART_UNKNOWN), "");
    for (int i = 0; i < 40; i++) /* never beyond its buffer */
        smart_merge(&all, &b);
    assert_true(strlen(all.text) < sizeof all.text);
}

/* ---- sysfs ---- */

static char root[64];

static void make(const char *fmt, const char *target, ...) __attribute__((format(printf, 1, 3)));
static void make(const char *fmt, const char *target, ...)
{
    char path[256], command[600];
    va_list ap;
    va_start(ap, target);
    vsnprintf(path, sizeof path, fmt, ap);
    va_end(ap);
    if (target)
        snprintf(command, sizeof command, "mkdir -p %s/$(dirname %s) && ln -s %s %s/%s", root, path, target, root, path);
    else
        snprintf(command, sizeof command, "mkdir -p %s/%s", root, path);
    assert_int_equal(system(command), 0);
}

static void drives(unsigned major, unsigned minor, int n, const char *a, const char *b)
{
    char names[SMART_DEVICES_MAX][32];
    assert_int_equal(smart_drives_of(root, major, minor, names), n);
    if (n > 0)
        assert_string_equal(names[0], a);
    if (n > 1) { /* a directory's order is its own */
        const char *other = strcmp(names[1], b) ? names[0] : names[1];
        assert_string_equal(other, b);
    }
}

static void test_devices(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "smart_sysfs.XXXXXX");
    assert_non_null(mkdtemp(root));
    make("devices/pci/block/sda/sda2/partition", NULL);
    make("devices/pci/block/sda/slaves", NULL);
    make("devices/pci/block/nvme0n1", NULL);
    make("dev/block/8:0", "../../devices/pci/block/sda");
    make("dev/block/8:2", "../../devices/pci/block/sda/sda2");
    make("dev/block/259:0", "../../devices/pci/block/nvme0n1");
    make("devices/virtual/block/dm-0/slaves/sda2", "../../../../pci/block/sda/sda2");
    make("devices/virtual/block/md1/slaves/dm-0", "../../dm-0");
    make("devices/virtual/block/md2/slaves/loop", "../../md2");
    make("dev/block/253:0", "../../devices/virtual/block/dm-0");
    make("dev/block/9:1", "../../devices/virtual/block/md1");
    make("dev/block/9:2", "../../devices/virtual/block/md2");
    drives(8, 0, 1, "sda", NULL);
    drives(8, 2, 1, "sda", NULL);
    drives(259, 0, 1, "nvme0n1", NULL);
    drives(253, 0, 1, "sda", NULL);
    drives(9, 1, 1, "sda", NULL);
    drives(9, 2, 0, NULL, NULL); /* a loop ends */
    drives(0, 45, 0, NULL, NULL); /* tmpfs, overlay, btrfs */
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ata),  cmocka_unit_test(test_nvme),    cmocka_unit_test(test_scsi), cmocka_unit_test(test_nothing_known),
        cmocka_unit_test(test_merge), cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
