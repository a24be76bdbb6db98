/* base: errors, buffers, clock text, crc32c, ids and the hash table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/htab.h"
#include "base/id.h"
#include "base/sm.h"

static void codes(void **s)
{
    assert_string_equal(err_code_name(E_STALE), "stale_epoch");
    assert_string_equal(err_code_name(-999), "unknown_error");
    assert_true(err_code_known(E_VERSION));
    assert_true(err_code_known(0));
    assert_false(err_code_known(1));
    assert_false(err_code_known(-21));
    assert_int_equal(err_from_errno(ENOSPC), E_NOSPC);
    assert_int_equal(err_from_errno(-ENOENT), E_NOTFOUND);
    assert_int_equal(err_from_errno(123456), E_IO);
}

static void gathering(void **s)
{
    struct err e;
    assert_int_equal(err_set(&e, E_NOSPC, "no disk with %d GiB free", 1), E_NOSPC);
    err_wrap(&e, "place shard %d", 0);
    assert_int_equal(e.code, E_NOSPC);
    err_wrap(&e, "create volume %s", "db1");
    assert_string_equal(e.msg, "create volume db1: place shard 0: no disk with 1 GiB free");
    assert_int_equal(err_sys(&e, ENOENT, "open x"), E_NOTFOUND);
    assert_non_null(strstr(e.msg, "open x: No such file"));
    assert_int_equal(err_set(NULL, E_IO, "nobody listens"), E_IO);
    err_wrap(NULL, "x");
    char big[2 * ERR_MSG_MAX];
    memset(big, 'a', sizeof big);
    big[sizeof big - 1] = 0;
    err_set(&e, E_IO, "%s", big);
    err_wrap(&e, "%s", big);
    assert_int_equal(strlen(e.msg), ERR_MSG_MAX - 1);
}

static void growing(void **s)
{
    struct buf b;
    buf_init(&b);
    size_t n = 0;
    for (int i = 0; i < 1000; i++) {
        buf_printf(&b, "%d,", i);
        buf_append(&b, "\0", 1); /* binary safe */
        n += (i < 10 ? 1u : i < 100 ? 2u : 3u) + 2u;
    }
    assert_int_equal(b.len, n);
    assert_int_equal(b.data[b.len], 0);
    assert_memory_equal(b.data, "0,\0" "1,\0" "2,", 8);
    buf_free(&b);
    char *t = buf_take(&b);
    assert_string_equal(t, "");
    free(t);
}

static void aligned(void **s)
{
    struct iobuf *b = iobuf_new(1);
    assert_int_equal(b->cap, IOBUF_ALIGN);
    assert_int_equal((uintptr_t)b->data % IOBUF_ALIGN, 0);
    memset(b->data, 1, b->cap);
    struct iobuf *again = iobuf_ref(b);
    iobuf_unref(b);
    again->data[0] = 2; /* still there */
    iobuf_unref(again);
    iobuf_unref(NULL);
    for (int round = 0; round < 2; round++) { /* the second time from the pool, where there is one */
        for (size_t bytes = 1; bytes < (size_t)6 << 20; bytes += bytes / 7 + 1) {
            b = iobuf_new(bytes);
            assert_in_range(b->cap, bytes, bytes + bytes / 4 + IOBUF_ALIGN);
            assert_int_equal((uintptr_t)b->data % IOBUF_ALIGN, 0);
            memset(b->data, 1, b->cap);
            iobuf_unref(b);
        }
    }
}

static void checksum(void **s)
{
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
    assert_int_equal(crc32c(0, NULL, 0), 0);
    uint8_t zero[32] = {0};
    assert_int_equal(crc32c(0, zero, 32), 0x8a9136aau); /* RFC 3720 B.4 */
}

static void wall_text(void **s)
{
    char b[32];
    assert_string_equal(clock_wall_format(0, b), "1970-01-01T00:00:00.000Z");
    assert_string_equal(clock_wall_format(1795222923123, b), "2026-11-21T01:02:03.123Z");
    assert_string_equal(clock_wall_format(-1, b), "1969-12-31T23:59:59.999Z");
    clock_wall_format(INT64_MAX, b);
    clock_wall_format(INT64_MIN, b);
    assert_true(clock_boot_ns() <= clock_boot_ns());
}

static void ids(void **s)
{
    char a[ID_LEN + 1], b[ID_LEN + 1];
    struct id i, j;
    id_new(a);
    assert_true(id_parse(a, &i));
    id_format(&i, b);
    assert_string_equal(a, b);
    assert_int_equal(a[14], '4');
    id_new(b);
    assert_true(id_parse(b, &j));
    assert_false(id_equal(&i, &j));
    assert_int_equal(id_hash(&i), id_hash(&i));
    assert_false(id_parse("", &i));
    assert_false(id_parse("00000000-0000-4000-8000-00000000000", &i));
    assert_false(id_parse("00000000-0000-4000-8000-0000000000000", &i));
    assert_false(id_parse("00000000x0000-4000-8000-000000000000", &i));
    assert_false(id_parse("0000000g-0000-4000-8000-000000000000", &i));
    assert_true(id_parse("ABCDEF00-0000-4000-8000-000000000000", &i));
    char h[17];
    id_random_hex(h, 8);
    assert_int_equal(strlen(h), 16);
    assert_int_equal(strspn(h, "0123456789abcdef"), 16);
}

struct item {
    int key;
    struct htab_node node;
};

static void table(void **s)
{
    enum { N = 5000 };
    struct htab t;
    htab_init(&t);
    assert_null(htab_first(&t));
    assert_null(htab_first_with_hash(&t, 1));
    struct item *items = xcalloc(N, sizeof *items);
    for (int i = 0; i < N; i++) {
        items[i].key = i;
        htab_insert(&t, &items[i].node, hash_u64((uint64_t)i / 2)); /* pairs collide on purpose */
    }
    assert_int_equal(t.n, N);
    for (int i = 0; i < N; i++) {
        struct htab_node *n;
        int found = 0, same = 0;
        HTAB_FOR_EACH_WITH_HASH (n, hash_u64((uint64_t)i / 2), &t) {
            same++;
            found += container_of(n, struct item, node)->key == i;
        }
        assert_int_equal(found, 1);
        assert_int_equal(same, 2);
    }
    struct htab_node *n, *next;
    HTAB_FOR_EACH_SAFE (n, next, &t)
        if (container_of(n, struct item, node)->key & 1)
            htab_remove(&t, n);
    assert_int_equal(t.n, N / 2);
    int left = 0;
    HTAB_FOR_EACH (n, &t) {
        assert_int_equal(container_of(n, struct item, node)->key & 1, 0);
        left++;
    }
    assert_int_equal(left, N / 2);
    htab_destroy(&t);
    free(items);
    assert_int_not_equal(hash_str("a"), hash_str("b"));
    assert_int_not_equal(hash_bytes("\0", 1, 0), hash_bytes("\0\0", 2, 0));
}

static void machine(void **s)
{
    enum { IDLE, BUSY, DONE };
    static const struct sm_conf conf[] = {
        [IDLE] = {"idle", SM_TO(BUSY), .initial = true},
        [BUSY] = {"busy", SM_TO(IDLE) | SM_TO(DONE)},
        [DONE] = {"done", 0, .final = true},
    };
    struct sm sm;
    sm_init(&sm, conf, 3, IDLE, "test");
    sm_move(&sm, BUSY);
    sm_move(&sm, DONE);
    assert_string_equal(sm_name(&sm), "done");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes),     cmocka_unit_test(gathering), cmocka_unit_test(growing),
        cmocka_unit_test(aligned),   cmocka_unit_test(checksum),  cmocka_unit_test(wall_text),
        cmocka_unit_test(ids),       cmocka_unit_test(table),     cmocka_unit_test(machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
