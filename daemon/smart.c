/* SMART of a drive. See smart.h. */
#include "daemon/smart.h"
#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "base/buf.h"

#define LIFE_USED_PERCENT 90
#define DEPTH_MAX 8 /* dm on md on dm … */

const char *smart_state_name(enum smart_state s)
{
    static const char *const name[] = {"", "ok", "warning", "failing"};
    return name[s];
}

/* ---- judging ---- */

static const json_t *at(const json_t *o, const char *a, const char *b)
{
    const json_t *x = json_object_get(o, a);
    return b ? json_object_get(x, b) : x;
}

static int64_t number(const json_t *x, int64_t otherwise)
{
    return json_is_integer(x) ? json_integer_value(x) : otherwise;
}

struct judge {
    struct smart *s;
    struct buf text;
    bool finding;
};

static void raise_to(struct judge *j, enum smart_state state)
{
    if (state > j->s->state)
        j->s->state = state;
}

static void find(struct judge *j, enum smart_state state, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void find(struct judge *j, enum smart_state state, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    buf_printf(&j->text, "%s", j->finding ? ", " : "; ");
    buf_vprintf(&j->text, fmt, ap);
    va_end(ap);
    j->finding = true;
    raise_to(j, state);
}

static void judge_ata(struct judge *j, const json_t *o)
{
    static const struct { int id; const char *what; } counts[] = {
        {5, "reallocated sectors"}, {187, "uncorrectable errors"}, {197, "sectors that wait to be reallocated"}, {198, "sectors unreadable offline"}};
    const json_t *table = at(o, "ata_smart_attributes", "table");
    for (size_t i = 0; i < json_array_size(table); i++) {
        const json_t *a = json_array_get(table, i), *name = at(a, "name", NULL), *failed = at(a, "when_failed", NULL);
        int64_t id = number(at(a, "id", NULL), 0), raw = number(at(a, "raw", "value"), 0);
        if (json_is_string(failed) && !strcmp(json_string_value(failed), "now"))
            find(j, SMART_FAILING, "%.40s is below its threshold", json_is_string(name) ? json_string_value(name) : "an attribute");
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++)
            if (counts[k].id == id && raw > 0)
                find(j, SMART_WARNING, "%" PRId64 " %s", raw, counts[k].what);
    }
}

static void judge_nvme(struct judge *j, const json_t *log)
{
    int64_t spare = number(at(log, "available_spare", NULL), 100), least = number(at(log, "available_spare_threshold", NULL), 0);
    int64_t errors = number(at(log, "media_errors", NULL), 0), critical = number(at(log, "critical_warning", NULL), 0);
    if (critical)
        find(j, SMART_FAILING, "critical warning 0x%" PRIx64, (uint64_t)critical);
    if (errors > 0)
        find(j, SMART_WARNING, "%" PRId64 " media errors", errors);
    if (spare <= least)
        find(j, SMART_WARNING, "%" PRId64 " %% spare left", spare);
}

static void judge_scsi(struct judge *j, const json_t *o)
{
    int64_t grown = number(at(o, "scsi_grown_defect_list", NULL), 0), errors = 0;
    static const char *const kinds[] = {"read", "write", "verify"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        errors += number(json_object_get(at(o, "scsi_error_counter_log", kinds[i]), "total_uncorrected_errors"), 0);
    if (grown > 0)
        find(j, SMART_WARNING, "%" PRId64 " grown defects", grown);
    if (errors > 0)
        find(j, SMART_WARNING, "%" PRId64 " uncorrected errors", errors);
}

/* What it is and how it is, findings aside. */
static void describe(struct judge *j, const json_t *o, int64_t used)
{
    const json_t *model = at(o, "model_name", NULL);
    int64_t celsius = number(at(o, "temperature", "current"), 0);
    model = json_is_string(model) ? model : at(o, "scsi_model_name", NULL);
    buf_printf(&j->text, "%.60s:", json_is_string(model) ? json_string_value(model) : "drive");
    if (celsius)
        buf_printf(&j->text, " %" PRId64 " °C", celsius);
    if (used >= 0)
        buf_printf(&j->text, "%s %" PRId64 " %% of its life used", celsius ? "," : "", used);
    if (!celsius && used < 0)
        buf_printf(&j->text, " read");
}

static void unknown(struct smart *s, const json_t *o)
{
    const json_t *why = json_object_get(json_array_get(at(o, "smartctl", "messages"), 0), "string");
    snprintf(s->text, sizeof s->text, "no SMART: %.200s", json_is_string(why) ? json_string_value(why) : "the device tells nothing");
}

int smart_parse(const char *json, size_t len, struct smart *ret, struct err *e)
{
    json_error_t je;
    json_t *o = json_loadb(json, len, 0, &je);
    if (!json_is_object(o) || !json_is_object(at(o, "smartctl", NULL))) {
        json_decref(o);
        return err_set(e, E_INVAL, "not what smartctl --json writes: %s", o ? "no member \"smartctl\"" : je.text);
    }
    *ret = (struct smart){.state = SMART_UNKNOWN};
    const json_t *passed = at(o, "smart_status", "passed"), *nvme = at(o, "nvme_smart_health_information_log", NULL);
    if (!json_is_boolean(passed) && !nvme && !at(o, "ata_smart_attributes", NULL)) {
        unknown(ret, o);
        json_decref(o);
        return E_OK;
    }
    struct judge j = {.s = ret};
    buf_init(&j.text);
    int64_t used = number(at(nvme, "percentage_used", NULL), -1);
    used = used < 0 ? number(at(o, "scsi_percentage_used_endurance_indicator", NULL), -1) : used;
    used = used < 0 ? number(at(o, "endurance_used", "current_percent"), -1) : used;
    describe(&j, o, used);
    raise_to(&j, SMART_OK);
    if (json_is_false(passed))
        find(&j, SMART_FAILING, "it says itself that it fails");
    judge_ata(&j, o);
    judge_nvme(&j, nvme);
    judge_scsi(&j, o);
    if (used >= LIFE_USED_PERCENT)
        raise_to(&j, SMART_WARNING);
    snprintf(ret->text, sizeof ret->text, "%s", j.text.data);
    buf_free(&j.text);
    json_decref(o);
    return E_OK;
}

void smart_merge(struct smart *into, const struct smart *other)
{
    size_t n = strlen(into->text);
    if (other->state > into->state)
        into->state = other->state;
    snprintf(into->text + n, sizeof into->text - n, "%s%s", n ? " | " : "", other->text);
}

/* ---- which drives ---- */

static bool is_there(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    return snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path && stat(path, &st) == 0;
}

static int add(char (*names)[32], int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return n;
    if (n < SMART_DEVICES_MAX && strlen(name) < sizeof *names)
        memcpy(names[n++], name, strlen(name) + 1);
    return n;
}

static int walk(const char *dir, int depth, char (*names)[32], int n)
{
    char real[PATH_MAX], next[PATH_MAX];
    bool stacked = false;
    if (depth == DEPTH_MAX || !realpath(dir, real))
        return n;
    if (is_there(real, "partition")) { /* the drive's directory is above */
        *strrchr(real, '/') = 0;
        return walk(real, depth + 1, names, n);
    }
    if (snprintf(next, sizeof next, "%s/slaves", real) >= (int)sizeof next)
        return n;
    DIR *d = opendir(next);
    for (const struct dirent *entry; d && (entry = readdir(d)); ) {
        char below[PATH_MAX];
        if (entry->d_name[0] == '.' || snprintf(below, sizeof below, "%s/%s", next, entry->d_name) >= (int)sizeof below)
            continue;
        stacked = true;
        n = walk(below, depth + 1, names, n);
    }
    if (d)
        closedir(d);
    return stacked ? n : add(names, n, strrchr(real, '/') + 1);
}

int smart_drives_of(const char *sysfs, unsigned major, unsigned minor, char (*ret_names)[32])
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s/dev/block/%u:%u", sysfs, major, minor);
    return walk(dir, 0, ret_names, 0);
}

int smart_devices(const char *sysfs, const char *path, char (*ret_names)[32])
{
    struct stat st;
    if (stat(path, &st))
        return 0;
    dev_t dev = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    return smart_drives_of(sysfs, major(dev), minor(dev), ret_names);
}
