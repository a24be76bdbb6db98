/* cli: what people see: tables, objects, progress, failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "cli/progress.h"
#include "cli/show.h"
#include "cli/size.h"
#include "cli/table.h"

static void expect(struct buf *out, const char *want)
{
    assert_string_equal(out->len ? out->data : "", want);
    buf_free(out);
}

static void print(const char *const *heads, size_t n, const char *const *cells, size_t n_cells, struct buf *out)
{
    struct table *t = table_new(heads, n);
    for (size_t i = 0; i < n_cells; i++)
        table_cell(t, cells[i]);
    buf_init(out);
    table_print(t, out);
    table_free(t);
}

static void aligned(void **s)
{
    static const char *const heads[] = {"NAME", ">SIZE", "WHY"};
    static const char *const cells[] = {"a", "1 GiB", "x", "longer", "512 MiB", "", "\xc3\xa4\xc3\xb6", "1 B", "z"};
    struct buf out;
    print(heads, 3, cells, 9, &out);
    expect(&out, "NAME       SIZE  WHY\n"
                 "a         1 GiB  x\n"
                 "longer  512 MiB\n"
                 "\xc3\xa4\xc3\xb6          1 B  z\n");
    print(heads, 3, NULL, 0, &out);
    expect(&out, "NAME  SIZE  WHY\n");
    table_free(NULL);
}

/* A guest's message must not clear the administrator's screen. */
static void harmless(void **s)
{
    size_t width;
    char *t = text_clean("a\033[2Jb\nc\x7f\xc2\x9b" "d", &width);
    assert_string_equal(t, "a?[2Jb?c???d");
    assert_int_equal(width, strlen(t));
    free(t);
    t = text_clean("\xc3\xa4\xe2\x82\xac", &width);
    assert_string_equal(t, "\xc3\xa4\xe2\x82\xac");
    assert_int_equal(width, 2);
    free(t);
    static const char *const heads[] = {"M"}, *const cells[] = {"\r\033]0;x\a"};
    struct buf out;
    print(heads, 1, cells, 1, &out);
    assert_null(memchr(out.data, '\033', out.len));
    assert_null(memchr(out.data, '\r', out.len));
    buf_free(&out);
}

static char *cell_fn(const json_t *o) { return xasprintf("<%s>", text_of(o, "name")); }

static const struct field fields[] = {
    {"NAME", "name"}, {"SIZE", "size_bytes", F_SIZE}, {"UP", "up"}, {"DNS", "dns", F_LIST}, {"N", "n", F_NUMBER}, {"FN", .fn = cell_fn},
    {"UNTIL", "until", F_UNTIL}, {"SECRET", "x", F_ONE}, {0},
};

static void objects(void **s)
{
    struct buf out;
    json_t *rows = json_pack("[{s:s, s:I, s:b, s:[s, s], s:i, s:i, s:s}, {s:s}]", "name", "a", "size_bytes", (json_int_t)(INT64_C(3) << 29),
                             "up", 1, "dns", "192.0.2.1", "192.0.2.2", "n", 7, "until", 0, "x", "y", "name", "");
    assert_non_null(rows);
    buf_init(&out);
    show_table(rows, fields, &out);
    expect(&out, "NAME     SIZE  UP   DNS                   N  FN   UNTIL\n"
                 "a     1.5 GiB  yes  192.0.2.1, 192.0.2.2  7  <a>  never\n"
                 "-         0 B  -    -                     -  <>   never\n");
    buf_init(&out);
    show_object(json_array_get(rows, 0), fields, &out);
    assert_non_null(strstr(out.data, "size:    1.5 GiB\n"));
    assert_non_null(strstr(out.data, "secret:  y\n"));
    buf_free(&out);
    buf_init(&out);
    show_part(json_array_get(rows, 1), "dns", "Dns", fields, &out);
    assert_int_equal(out.len, 0); /* nothing there, no title */
    json_decref(rows);
    static const struct field until = {"", "t", F_UNTIL}, age = {"", "t", F_AGE};
    json_t *o = json_pack("{s:I}", "t", (json_int_t)(clock_wall_ms() - 5000));
    char *t = field_text(&until, o);
    assert_string_equal(t, "expired");
    free(t);
    t = field_text(&age, o);
    assert_non_null(strstr(t, "5."));
    free(t);
    json_decref(o);
}

static void progress(void **s)
{
    char line[PROGRESS_LINE];
    progress_format("kernel", 0, 50 << 20, 100 << 20, true, 5000, line);
    assert_string_equal(line, "kernel [############............]  50%  50 MiB of 100 MiB  10 MiB/s  5.0 s left");
    progress_format("", 0, 0, 100, false, 0, line);
    assert_string_equal(line, "[........................]   0%  0 of 100");
    progress_format("", 0, 7, 0, true, 100, line); /* total not known */
    assert_string_equal(line, "7 B");
    progress_format("", 0, 200, 100, true, 1000, line); /* more than announced: stays in its frame */
    assert_non_null(strstr(line, "100%"));
    progress_format("", 80, 90, 100, true, 1000, line); /* joined late: the rate is of what was seen */
    assert_non_null(strstr(line, "10 B/s  1.0 s left"));
    char label[300];
    memset(label, 'x', sizeof label - 1);
    label[sizeof label - 1] = '\0';
    progress_format(label, INT64_MIN / 4, INT64_MAX / 4, INT64_MAX, true, INT64_MAX / 4, line);
    assert_true(strlen(line) < PROGRESS_LINE);
}

static void failures(void **s)
{
    struct fail f;
    api_fail_of(404, "{\"code\":\"not_found\",\"message\":\"no vm \\\"x\\\"\",\"hint\":\"\"}", &f);
    assert_int_equal(f.exit, EXIT_REFUSED);
    assert_string_equal(f.code, "not_found");
    assert_string_equal(f.message, "no vm \"x\"");
    assert_string_equal(f.hint, "");
    api_fail_of(503, "{\"code\":\"unavailable\",\"message\":\"no quorum\",\"hint\":\"bring back nodes\"}", &f);
    assert_int_equal(f.exit, EXIT_REFUSED);
    assert_string_equal(f.hint, "bring back nodes");
    static const char *const unsettled[] = {"timeout", "unknown_outcome", "disconnected"};
    for (size_t i = 0; i < 3; i++) {
        char text[100];
        snprintf(text, sizeof text, "{\"code\":\"%s\",\"message\":\"m\"}", unsettled[i]);
        api_fail_of(504, text, &f);
        assert_int_equal(f.exit, EXIT_TIMEOUT);
    }
    static const char *const odd[] = {"", "<html>", "[]", "{}", "{\"message\":7}", "null", "{\"message\":\"\"}"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        api_fail_of(502, odd[i], &f);
        assert_int_equal(f.exit, EXIT_REFUSED);
        assert_string_equal(f.message, "HTTP status 502 without an explanation");
    }
    api_fail_of(500, NULL, &f);
    assert_int_equal(f.exit, EXIT_REFUSED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(aligned), cmocka_unit_test(harmless), cmocka_unit_test(objects), cmocka_unit_test(progress), cmocka_unit_test(failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
