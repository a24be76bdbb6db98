/* Encryption: XTS known answers of IEEE 1619-2007 (annex B), holes, and the keys' locks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "cluster/keyring.h"
#include "storage/asan/engine/crypt.h"

static void unhex(const char *t, uint8_t *to)
{
    for (; *t; t += 2, to++) {
        unsigned v;
        assert_int_equal(sscanf(t, "%2x", &v), 1);
        *to = (uint8_t)v;
    }
}

static struct crypt *crypt_of(const char *hex)
{
    uint8_t key[CRYPT_KEY];
    struct crypt *c;
    struct err e;
    unhex(hex, key);
    assert_int_equal(crypt_new(key, &c, &e), 0);
    return c;
}

#define KEY_10 "2718281828459045235360287471352662497757247093699959574966967627" \
               "3141592653589793238462643383279502884197169399375105820974944592"

/* Annex B, vectors 10 to 12: 512 bytes 00 01 .. ff 00 .. ff in data units 0xff, 0xffff, 0xffffff. */
static void known_answers(void **state)
{
    static const struct { uint64_t sector; const char *begins; } v[] = {
        {0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44"},
        {0xffff, "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11e1d0225438e093242d6db274fde801d4"},
        {0xffffff, "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200a8b490e42ee646802dc6ee2b471b278195d60918ececb44b"},
    };
    (void)state;
    struct crypt *c = crypt_of(KEY_10);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        uint8_t data[512], want[64];
        for (int b = 0; b < 512; b++)
            data[b] = (uint8_t)b;
        unhex(v[i].begins, want);
        crypt_encrypt(c, v[i].sector, data, 512);
        assert_memory_equal(data, want, strlen(v[i].begins) / 2);
        crypt_decrypt(c, v[i].sector, data, 512);
        for (int b = 0; b < 512; b++)
            assert_int_equal(data[b], (uint8_t)b);
    }
    crypt_free(c);
}

static void sectors_are_independent(void **state)
{
    uint8_t all[8 * 512], one[8 * 512];
    (void)state;
    struct crypt *c = crypt_of(KEY_10);
    memset(all, 7, sizeof all);
    memset(one, 7, sizeof one);
    crypt_encrypt(c, UINT64_C(1) << 40, all, sizeof all);
    for (unsigned i = 0; i < 8; i++)
        crypt_encrypt(c, (UINT64_C(1) << 40) + i, one + i * 512, 512);
    assert_memory_equal(all, one, sizeof all);
    for (unsigned i = 1; i < 8; i++)
        assert_memory_not_equal(all, all + i * 512, 512);
    crypt_decrypt(c, (UINT64_C(1) << 40) + 3, all + 3 * 512, 512);
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(all[3 * 512 + i], 7);
    crypt_free(c);
}

static void holes_read_as_zeroes(void **state)
{
    uint8_t data[4 * 512] = {0};
    (void)state;
    struct crypt *c = crypt_of(KEY_10);
    memset(data + 512, 0xa5, 512);
    crypt_encrypt(c, 9, data + 512, 512);
    crypt_encrypt(c, 10, data + 1024, 512); /* zeroes that were written are data: not stored as zeroes */
    assert_int_not_equal(data[1024] | data[1025] | data[1026] | data[1027], 0);
    crypt_decrypt(c, 8, data, sizeof data);
    for (unsigned i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], i >= 512 && i < 1024 ? 0xa5 : 0);
    crypt_free(c);
}

static void equal_halves_are_refused(void **state)
{
    uint8_t key[CRYPT_KEY];
    struct crypt *c = NULL;
    struct err e;
    (void)state;
    memset(key, 1, sizeof key);
    assert_int_equal(crypt_new(key, &c, &e), E_INVAL);
    assert_null(c);
}

static void cluster_key(void **state)
{
    char text[KEYRING_TEXT], again[KEYRING_TEXT];
    uint8_t key[KEYRING_KEY], got[KEYRING_KEY];
    struct err e;
    (void)state;
    keyring_forget();
    assert_int_equal(keyring_lock("short", 5, key, text, &e), E_INVAL);
    assert_int_equal(keyring_lock("correct horse", 13, key, text, &e), 0);
    assert_false(keyring_has());
    assert_int_equal(keyring_unlock(text, "correct horsf", 13, got, &e), E_AUTH);
    assert_int_equal(keyring_unlock(text, "correct horse", 13, got, &e), 0);
    assert_memory_equal(got, key, sizeof key);
    assert_true(keyring_fits(text, key));
    got[5] ^= 1;
    assert_false(keyring_fits(text, got));
    keyring_put(key);
    assert_int_equal(keyring_lock("another pass", 12, got, again, &e), 0); /* the same key under a new lock */
    assert_memory_equal(got, key, sizeof key);
    assert_string_not_equal(again, text);
    for (size_t i = 0; text[i]; i++) { /* every damage is told */
        char c = text[i];
        text[i] = c == '0' ? '1' : '0';
        int rc = keyring_unlock(text, "correct horse", 13, got, &e);
        assert_true(rc == E_AUTH || rc == E_CORRUPT);
        text[i] = c;
        i += 11; /* each try costs an scrypt */
    }
    keyring_forget();
}

static void volume_keys(void **state)
{
    char text[KEYRING_TEXT], other[KEYRING_TEXT];
    uint8_t key[KEYRING_KEY] = {1, 2, 3}, a[KEYRING_VOLUME_KEY], b[KEYRING_VOLUME_KEY];
    struct err e;
    (void)state;
    keyring_forget();
    assert_int_equal(keyring_volume_new(text, &e), E_UNAVAIL);
    keyring_put(key);
    assert_int_equal(keyring_volume_new(text, &e), 0);
    assert_int_equal(keyring_volume_new(other, &e), 0);
    assert_int_equal(keyring_volume_open(text, a, &e), 0);
    assert_int_equal(keyring_volume_open(text, b, &e), 0);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(keyring_volume_open(other, b, &e), 0);
    assert_memory_not_equal(a, b, sizeof a);
    for (size_t i = 0; text[i]; i++) {
        char c = text[i];
        text[i] = c == '0' ? '1' : '0';
        assert_int_equal(keyring_volume_open(text, b, &e), E_CORRUPT);
        text[i] = c;
    }
    text[20] = '\0';
    assert_int_equal(keyring_volume_open(text, b, &e), E_CORRUPT);
    key[0] = 9;
    keyring_put(key); /* another cluster's */
    assert_int_equal(keyring_volume_open(other, b, &e), E_CORRUPT);
    keyring_forget();
    assert_int_equal(keyring_volume_open(other, b, &e), E_UNAVAIL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(sectors_are_independent),
        cmocka_unit_test(holes_read_as_zeroes),
        cmocka_unit_test(equal_halves_are_refused),
        cmocka_unit_test(cluster_key),
        cmocka_unit_test(volume_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
