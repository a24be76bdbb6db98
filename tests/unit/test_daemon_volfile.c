/* The file of volume export: what is written is read back, in pieces of any size; every damaged bit, cut and repetition is refused
 * before anything wrong is handed out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/volfile.h"

#define SIZE 65536u
#define ID1 "11111111-1111-4111-8111-111111111111"
#define ID2 "22222222-2222-4222-8222-222222222222"

static uint8_t file[16384], volume[SIZE], got[SIZE];
static size_t len, end_at;
static struct volfile_head head;
static int refuse;

static int on_head(void *arg, const struct volfile_head *h, struct err *e)
{
    head = *h;
    return E_OK;
}

static int on_data(void *arg, uint64_t offset, const uint8_t *data, uint32_t length, struct err *e)
{
    assert_true(offset + length <= SIZE);
    assert_memory_equal(data, volume + offset, length); /* never anything wrong */
    memcpy(got + offset, data, length);
    return refuse ? err_set(e, E_NOSPC, "full") : E_OK;
}

static int on_zero(void *arg, uint64_t offset, uint64_t length, struct err *e)
{
    assert_true(offset + length <= SIZE);
    memset(got + offset, 0, length);
    return E_OK;
}

static void put(enum volfile_type type, uint64_t offset, uint64_t length)
{
    volfile_put_record(type, offset, length, volume + offset, file + len);
    len += VOLFILE_RECORD;
    if (type == VOLFILE_DATA) {
        memcpy(file + len, volume + offset, length);
        len += length;
    }
}

static int setup(void **state)
{
    struct volfile_head h = {.size_bytes = SIZE, .created_ms = 42, .volume = "db1", .snapshot = "tue", .content = ID1, .base = ID2, .base_name = "mon"};
    for (size_t i = 0; i < SIZE; i++)
        volume[i] = (uint8_t)(i * 7 + i / 512);
    memset(volume + 8192, 0, 4096);
    memset(got, 0xee, sizeof got);
    volfile_put_head(&h, file);
    len = VOLFILE_HEADER;
    put(VOLFILE_DATA, 512, 1024);
    put(VOLFILE_ZERO, 8192, 4096);
    put(VOLFILE_DATA, 16384, 4096);
    end_at = len;
    volfile_put_record(VOLFILE_END, 3, 1024 + 4096, NULL, file + len);
    len += VOLFILE_RECORD;
    refuse = 0;
    return 0;
}

static int parse(const uint8_t *data, size_t n, size_t step, struct err *e)
{
    struct volfile_sink sink = {on_head, on_data, on_zero, NULL};
    struct volfile *f = volfile_new(&sink);
    int rc = E_OK;
    for (size_t at = 0; at < n && rc == E_OK; at += step)
        rc = volfile_feed(f, data + at, n - at < step ? n - at : step, e);
    if (rc == E_OK)
        rc = volfile_end(f, e);
    volfile_free(f);
    return rc;
}

static void test_round(void **state)
{
    struct err e;
    const size_t steps[] = {1, 7, 24, 511, 4096, sizeof file};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        setup(state);
        assert_int_equal(parse(file, len, steps[i], &e), E_OK);
        assert_int_equal(head.size_bytes, SIZE);
        assert_int_equal(head.created_ms, 42);
        assert_string_equal(head.volume, "db1");
        assert_string_equal(head.snapshot, "tue");
        assert_string_equal(head.content, ID1);
        assert_string_equal(head.base, ID2);
        assert_string_equal(head.base_name, "mon");
        assert_memory_equal(got + 512, volume + 512, 1024);
        assert_memory_equal(got + 8192, volume + 8192, 4096);
        assert_memory_equal(got + 16384, volume + 16384, 4096);
        assert_int_equal(got[0], 0xee); /* what no record covers is not touched */
        assert_int_equal(got[20480], 0xee);
    }
}

static void test_damage(void **state)
{
    struct err e;
    for (size_t n = 0; n < len; n++) /* cut anywhere */
        assert_int_equal(parse(file, n, 4096, &e), E_CORRUPT);
    assert_non_null(strstr(e.msg, "truncated"));
    for (size_t i = 0; i < len; i++) /* each byte flipped */
        for (int bit = 0; bit < 8; bit += 3) {
            file[i] ^= (uint8_t)(1 << bit);
            int rc = parse(file, len, 4096, &e);
            if (rc != E_CORRUPT && !(rc == E_VERSION && i >= 8 && i < 12))
                fail_msg("byte %zu bit %d flipped: %d", i, bit, rc);
            file[i] ^= (uint8_t)(1 << bit);
        }
    file[len] = 0;
    assert_int_equal(parse(file, len + 1, 4096, &e), E_CORRUPT);
    assert_non_null(strstr(e.msg, "follows"));
}

/* Records that are right by themselves, but not here. */
static void test_order(void **state)
{
    struct err e;
    uint8_t part[VOLFILE_RECORD + 1024];
    memcpy(part, file + VOLFILE_HEADER, sizeof part);
    memmove(file + VOLFILE_HEADER, file + VOLFILE_HEADER + sizeof part, len - VOLFILE_HEADER - sizeof part);
    assert_int_equal(parse(file, len - sizeof part, 4096, &e), E_CORRUPT); /* one left out */
    assert_non_null(strstr(e.msg, "missing"));
    setup(state);
    memmove(file + VOLFILE_HEADER + sizeof part, file + VOLFILE_HEADER, len - VOLFILE_HEADER);
    assert_int_equal(parse(file, len + sizeof part, 4096, &e), E_CORRUPT); /* one twice */
    setup(state);
    len = end_at;
    put(VOLFILE_ZERO, SIZE - 512, 1024);
    assert_int_equal(parse(file, len, 4096, &e), E_CORRUPT); /* beyond the volume */
    setup(state);
    refuse = 1;
    assert_int_equal(parse(file, len, 4096, &e), E_NOSPC);
}

static void test_other_files(void **state)
{
    struct err e;
    struct volfile_head h = {.size_bytes = SIZE, .volume = "db1", .snapshot = "s", .content = "not an id"};
    memset(file, 'x', sizeof file);
    assert_int_equal(parse(file, sizeof file, 4096, &e), E_CORRUPT);
    assert_non_null(strstr(e.msg, "no file of cohort volume export"));
    volfile_put_head(&h, file);
    assert_int_equal(parse(file, sizeof file, 4096, &e), E_CORRUPT);
    memcpy(h.content, ID1, sizeof ID1);
    h.size_bytes = 1000;
    volfile_put_head(&h, file);
    assert_int_equal(parse(file, sizeof file, 4096, &e), E_CORRUPT);
    setup(state);
    file[8] = 2;
    assert_int_equal(parse(file, len, 4096, &e), E_VERSION);
    assert_non_null(strstr(e.msg, "version 2"));
}

int main(void)
{
#define T(F) cmocka_unit_test_setup(F, setup)
    const struct CMUnitTest tests[] = {T(test_round), T(test_damage), T(test_order), T(test_other_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
