/* I/O buffers: contents stay apart, memory comes back, odd sizes are found again, threads may share the pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

static const size_t sizes[] = {1, 4096, 4097, 61440, 65535, 65536, 65537, 100000, 262144, 516096, 524288, 524289, 1048576, 1500000,
                               2097152, 2097153, 4194304, 4194305, 9000000};
#define N (sizeof sizes / sizeof sizes[0])

static void sizes_and_alignment(void **state)
{
    (void)state;
    for (size_t i = 0; i < N; i++) {
        struct iobuf *b = iobuf_new(sizes[i]);
        assert_true(b->cap >= sizes[i] && b->cap % IOBUF_ALIGN == 0 && (uintptr_t)b->data % IOBUF_ALIGN == 0);
        assert_true(sizes[i] < 65536 || sizes[i] > 4u << 20 || b->cap <= sizes[i] + sizes[i] / 4 + IOBUF_ALIGN); /* little is wasted */
        memset(b->data, (int)i, b->cap);
        assert_false(b->summed);
        iobuf_sums(b)[b->cap / IOBUF_ALIGN - 1] = 7;
        b->summed = true;
        iobuf_unref(b);
    }
    struct iobuf *b = iobuf_new(262144); /* had sums a moment ago */
    assert_false(b->summed);
    iobuf_unref(b);
    iobuf_unref(NULL);
}

/* Many at once, freed in another order: nobody writes into another's bytes. */
static void apart(void **state)
{
    (void)state;
    enum { MANY = 400 };
    static struct iobuf *b[MANY];
    unsigned seed = 1;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < MANY; i++) {
            seed = seed * 1103515245u + 12345u;
            if (b[i]) {
                assert_int_equal(b[i]->data[0], i & 0xff);
                assert_int_equal(b[i]->data[b[i]->cap - 1], i >> 8 | 0x40);
                if (seed >> 16 & 1)
                    continue;
                iobuf_unref(b[i]);
            }
            b[i] = iobuf_new(sizes[(seed >> 17) % (N - 3)] / 4 + 1);
            b[i]->data[0] = (uint8_t)(i & 0xff);
            b[i]->data[b[i]->cap - 1] = (uint8_t)(i >> 8 | 0x40);
        }
    }
    for (int i = 0; i < MANY; i++)
        iobuf_unref(b[i]);
}

static size_t rss_kib(void)
{
    char line[256];
    size_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %zu", &kib) == 1)
            break;
    fclose(f);
    return kib;
}

/* After a burst of large buffers the memory is the kernel's again. */
static void burst_is_given_back(void **state)
{
    (void)state;
    enum { MANY = 300 };
    static struct iobuf *b[MANY];
    size_t before = rss_kib();
    for (int i = 0; i < MANY; i++) {
        b[i] = iobuf_new(1u << 20);
        memset(b[i]->data, 1, 1u << 20);
    }
    assert_true(rss_kib() > before + 200 * 1024);
    for (int i = 0; i < MANY; i++)
        iobuf_unref(b[i]);
    size_t after = rss_kib();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(after < before + 64 * 1024);
#else
    (void)after; /* those keep freed memory on purpose */
#endif
}

static void *worker(void *arg)
{
    unsigned seed = *(unsigned *)arg;
    for (int i = 0; i < 3000; i++) {
        seed = seed * 1103515245u + 12345u;
        struct iobuf *b = iobuf_new(sizes[(seed >> 16) % 12]), *again = iobuf_ref(b);
        b->data[0] = (uint8_t)seed;
        b->data[b->cap - 1] = (uint8_t)(seed >> 8);
        iobuf_unref(again);
        if (b->data[0] != (uint8_t)seed || b->data[b->cap - 1] != (uint8_t)(seed >> 8))
            abort();
        iobuf_unref(b);
    }
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    pthread_t t[4];
    unsigned seed[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, worker, &seed[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes_and_alignment), cmocka_unit_test(apart),
                                       cmocka_unit_test(burst_is_given_back), cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
