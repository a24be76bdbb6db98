/* cli: what people write: sizes, times, options, disks, names, image directories; and a table that is consistent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "cli/api.h"
#include "cli/cmds.h"
#include "cli/disk_arg.h"
#include "cli/image_files.h"
#include "cli/size.h"

#define N(a) (sizeof(a) / sizeof *(a))

static void sizes(void **s)
{
    static const struct { const char *text; int64_t bytes; } good[] = {
        {"0", 0}, {"1", 1}, {"4096", 4096}, {"4096B", 4096}, {"1K", 1024}, {"512M", INT64_C(512) << 20}, {"1G", INT64_C(1) << 30},
        {"1g", INT64_C(1) << 30}, {"1GB", INT64_C(1) << 30}, {"1GiB", INT64_C(1) << 30}, {"4T", INT64_C(4) << 40},
        {"9223372036854775807", INT64_MAX}, {"8388607T", INT64_C(8388607) << 40},
    };
    static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "1Q", "1iB", "1KK", "G", "1.5G", "0x10", "1GiBB", "9223372036854775808", "8388608T", "99999999999999999999"};
    for (size_t i = 0; i < N(good); i++) {
        int64_t v = -1;
        assert_true(size_parse(good[i].text, &v));
        assert_int_equal(v, good[i].bytes);
    }
    for (size_t i = 0; i < N(bad); i++) {
        int64_t v = -7;
        if (size_parse(bad[i], &v))
            fail_msg("\"%s\" was taken for a size", bad[i]);
        assert_int_equal(v, -7);
    }
}

static void durations(void **s)
{
    static const struct { const char *text; int64_t s; } good[] = {{"0", 0}, {"90", 90}, {"90s", 90}, {"30m", 1800}, {"1h", 3600}, {"7d", 604800}};
    static const char *const bad[] = {"", "h", "1w", "1hh", "1 h", "-1h", "9223372036854775807d"};
    int64_t v = 0;
    for (size_t i = 0; i < N(good); i++) {
        assert_true(duration_parse(good[i].text, &v));
        assert_int_equal(v, good[i].s);
    }
    for (size_t i = 0; i < N(bad); i++)
        assert_false(duration_parse(bad[i], &v));
}

static void formats(void **s)
{
    char t[SIZE_TEXT];
    static const struct { int64_t bytes; const char *text; } sizes[] = {
        {0, "0 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {INT64_C(512) << 20, "512 MiB"}, {INT64_C(1) << 30, "1 GiB"},
        {(INT64_C(1) << 30) - 1, "1 GiB"}, {1048526, "1 MiB"}, {1048473, "1023.9 KiB"}, {INT64_C(4) << 40, "4 TiB"}, {-5, "-5 B"},
    };
    static const struct { int64_t ms; const char *text; } times[] = {
        {0, "0 ms"}, {999, "999 ms"}, {1000, "1.0 s"}, {12345, "12.3 s"}, {59999, "59.9 s"}, {60000, "1m 00s"}, {250000, "4m 10s"},
        {7500000, "2h 05m"}, {273600000, "3d 4h"}, {-1, "0 ms"},
    };
    for (size_t i = 0; i < N(sizes); i++)
        assert_string_equal(size_format(sizes[i].bytes, t), sizes[i].text);
    for (size_t i = 0; i < N(times); i++)
        assert_string_equal(duration_format(times[i].ms, t), times[i].text);
}

/* ---- arguments ---- */

static const struct opt opts[] = {
    {"size", "SIZE", OPT_REQUIRED, ""}, {"disk", "SPEC", OPT_MANY, ""}, {"wait", NULL, 0, ""}, {"n", "N", 0, ""}, {"type", "T", 0, ""}, {0},
};
static const struct cmd cmd = {"thing", "make", "NAME LEVEL", NULL, opts, ""};

static struct cli c;
static int parse(const char *line)
{
    static char words[400];
    char *list[20], *at = NULL;
    int n = 0;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok_r(words, " ", &at); w; w = strtok_r(NULL, " ", &at))
        list[n++] = w;
    c = (struct cli){.cmd = &cmd};
    return args_parse(&c, n, list);
}

static void args_good(void **s)
{
    assert_int_equal(parse("a --size 1G b --disk x --disk=y=1 --wait --json"), EXIT_DONE);
    assert_string_equal(c.pos[0], "a");
    assert_string_equal(c.pos[1], "b");
    assert_string_equal(args_get(&c, "size"), "1G");
    assert_string_equal(args_get_n(&c, "disk", 1), "y=1");
    assert_null(args_get_n(&c, "disk", 2));
    assert_true(args_has(&c, "wait") && c.json && !c.help);
    assert_false(args_has(&c, "n"));
    assert_int_equal(parse("--size=1 --api https://x:1 --ca f a - "), EXIT_DONE);
    assert_string_equal(c.pos[1], "-");
    assert_string_equal(c.url, "https://x:1");
    assert_int_equal(parse("--size 1 -- --a --b"), EXIT_DONE);
    assert_string_equal(c.pos[1], "--b");
    assert_int_equal(parse("--help"), EXIT_DONE); /* explains, even if nothing else is there */
    assert_true(c.help);
}

static void args_bad(void **s)
{
    static const struct { const char *line, *message; } bad[] = {
        {"", "NAME is missing"}, {"a --size 1", "LEVEL is missing"}, {"a b", "--size SIZE is missing"},
        {"a b c --size 1", "\"c\" is one argument too many"}, {"a b --siz 1", "unknown option --siz"}, {"a b -x", "unknown option -x"},
        {"a b --size", "--size needs a value"}, {"a b --size --wait", "--size needs a value"}, {"a b --size 1 --size 2", "--size is given twice"},
        {"a b --size 1 --wait=yes", "--wait takes no value"},
    };
    for (size_t i = 0; i < N(bad); i++) {
        assert_int_equal(parse(bad[i].line), EXIT_USAGE);
        if (!strstr(c.fail.message, bad[i].message))
            fail_msg("\"%s\" gave \"%s\"", bad[i].line, c.fail.message);
        assert_string_equal(c.fail.hint, "see: cohort thing make --help");
    }
    struct cli many = {.cmd = &cmd};
    char *words[100];
    for (size_t i = 0; i < N(words); i++)
        words[i] = (char *)(i % 2 ? "x" : "--disk");
    assert_int_equal(args_parse(&many, N(words), words), EXIT_USAGE);
    char empty[] = "", *one[] = {empty};
    assert_int_equal(args_parse(&many, 1, one), EXIT_USAGE);
    assert_non_null(strstr(many.fail.message, "NAME is empty"));
}

static void typed(void **s)
{
    int64_t v = 5;
    assert_int_equal(parse("a b --size 2K --n 7 --type q35"), EXIT_DONE);
    assert_int_equal(args_size(&c, "size", &v), EXIT_DONE);
    assert_int_equal(v, 2048);
    assert_int_equal(args_int(&c, "n", 1, 7, &v), EXIT_DONE);
    assert_int_equal(args_word(&c, "type", "microvm|q35"), EXIT_DONE);
    assert_int_equal(args_word(&c, "absent", "x"), EXIT_DONE);
    assert_int_equal(args_int(&c, "n", 1, 6, &v), EXIT_USAGE);
    assert_string_equal(c.fail.message, "--n \"7\" must be a number from 1 to 6");
    assert_int_equal(v, 7); /* untouched */
    assert_int_equal(args_word(&c, "type", "microvm|q3|q355"), EXIT_USAGE);
    assert_int_equal(parse("a b --size 2Q"), EXIT_DONE);
    assert_int_equal(args_size(&c, "size", &v), EXIT_USAGE);
    assert_non_null(strstr(c.fail.message, "\"2Q\" is no size"));
    assert_int_equal(args_duration(&c, "size", &v), EXIT_USAGE);
}

static void disks(void **s)
{
    struct fail f;
    json_t *d = disk_arg_parse("size=1G,replicas=3", &f);
    assert_int_equal(json_integer_value(json_object_get(d, "size_bytes")), INT64_C(1) << 30);
    assert_int_equal(json_integer_value(json_object_get(d, "replicas")), 3);
    json_decref(d);
    d = disk_arg_parse("volume=db1", &f);
    assert_string_equal(json_string_value(json_object_get(d, "volume")), "db1");
    json_decref(d);
    static const struct { const char *text, *message; } bad[] = {
        {"", "is not KEY=VALUE"}, {"1G", "\"1G\" is not KEY=VALUE"}, {"size=1G,", "is not KEY=VALUE"}, {"size=big", "\"size=big\" is no size"},
        {"size=1G,replicas=4", "must be 1, 2 or 3"}, {"size=1G,size=2G", "is given twice"}, {"colour=red", "is not known"},
        {"volume=a,size=1G", "exists already"}, {"replicas=2", "needs a size or a volume"}, {"volume=a,replicas=2", "has its own"},
        {"volume=", "needs the name"}, {"averyveryverylongkeyname=1", "is not KEY=VALUE"},
    };
    for (size_t i = 0; i < N(bad); i++) {
        assert_null(disk_arg_parse(bad[i].text, &f));
        assert_int_equal(f.exit, EXIT_USAGE);
        if (!strstr(f.message, bad[i].message))
            fail_msg("\"%s\" gave \"%s\"", bad[i].text, f.message);
    }
    char huge[500];
    memset(huge, 'a', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    assert_null(disk_arg_parse(huge, &f));
}

static void paths(void **s)
{
    struct fail f;
    static const char *const bad[] = {"", "a/b", "/", ".", ".."};
    char *p = api_path("/vms", "web-1.a_B", "/start", &f);
    assert_string_equal(p, "/vms/web-1.a_B/start");
    free(p);
    p = api_path("/vms", "a b?c#%\xc3\xa4", "", &f);
    assert_string_equal(p, "/vms/a%20b%3Fc%23%25%C3%A4");
    free(p);
    for (size_t i = 0; i < N(bad); i++) {
        assert_null(api_path("/vms", bad[i], "", &f));
        assert_int_equal(f.exit, EXIT_USAGE);
    }
    static const char *const good_url[] = {"https://n1", "https://192.0.2.1:7443", "https://[::1]:7443/", "https://x/prefix"};
    static const char *const bad_url[] = {"http://n1", "n1:7443", "https://", "https:///x", "https://:1", "https://user@n1", "ftp://n1", "https://n1?x"};
    for (size_t i = 0; i < N(good_url); i++)
        assert_int_equal(api_url_check(good_url[i], &f), EXIT_DONE);
    for (size_t i = 0; i < N(bad_url); i++)
        if (api_url_check(bad_url[i], &f) != EXIT_USAGE)
            fail_msg("%s was taken", bad_url[i]);
}

/* ---- image directories ---- */

static char dir[64];

static void file(const char *name, const char *text)
{
    char path[128];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_write(path, text, strlen(text), 0600, &e) != E_OK)
        fail_msg("%s", e.msg);
}

static void image_dir(void **s)
{
    struct image_files i;
    struct fail f;
    snprintf(dir, sizeof dir, "/tmp/cohort-cli-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(image_files_find("/nonexistent/x", &i, &f), EXIT_USAGE);
    assert_non_null(strstr(f.message, "No such file"));
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_USAGE);
    assert_non_null(strstr(f.message, "there is no kernel in it"));
    file("vmlinuz-6.1", "kernel");
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_USAGE);
    assert_non_null(strstr(f.message, "there is no initrd in it"));
    file("initrd.img-6.1", "initrd!");
    file("info", "left out");
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_DONE);
    assert_int_equal(i.n, 2);
    assert_string_equal(i.kind, "kernel");
    assert_string_equal(i.file[1].name, "initrd");
    assert_int_equal(i.file[1].size, 7);
    file("vmlinuz-6.2", "kernel");
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_USAGE);
    assert_non_null(strstr(f.message, "several files vmlinuz*"));
    file("kernel", "the one");
    file("cmdline", "");
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_USAGE);
    assert_non_null(strstr(f.message, "cmdline is empty"));
    file("cmdline", "quiet");
    assert_int_equal(image_files_find(dir, &i, &f), EXIT_DONE);
    assert_int_equal(i.n, 3);
    assert_int_equal(i.file[0].size, 7);
    char path[128];
    snprintf(path, sizeof path, "%s/kernel", dir);
    assert_int_equal(image_files_find(path, &i, &f), EXIT_USAGE); /* as a disk: 7 bytes */
    assert_non_null(strstr(f.hint, "qemu-img convert"));
    snprintf(path, sizeof path, "rm -r %s", dir);
    assert_int_equal(system(path), 0);
}

/* ---- the real tables ---- */

static void tables(void **s)
{
    for (const struct cli_group *g = cli_groups; g->name; g++)
        for (const struct cmd *k = g->cmds; k->verb; k++) {
            assert_string_equal(k->group, g->name);
            assert_non_null(k->run);
            assert_non_null(k->help);
            assert_non_null(k->args);
            for (const struct opt *o = k->opts; o && o->name; o++)
                for (const struct opt *x = args_global; x->name; x++)
                    assert_string_not_equal(o->name, x->name);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes), cmocka_unit_test(durations), cmocka_unit_test(formats), cmocka_unit_test(args_good), cmocka_unit_test(args_bad),
        cmocka_unit_test(typed), cmocka_unit_test(disks), cmocka_unit_test(paths), cmocka_unit_test(image_dir), cmocka_unit_test(tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
