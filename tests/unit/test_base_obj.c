/* Objects of requests: zeroed whatever they held before, reused by the thread that freed them, bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/obj.h"

static bool all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* Sizes at the borders of what is kept, each used again after another one of about its size has dirtied the memory. */
static void zeroed(void **state)
{
    static const size_t sizes[] = {1, 63, 64, 65, 500, 512, 1999, 2048, 2049, 100000};
    (void)state;
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            uint8_t *p[4];
            for (int k = 0; k < 4; k++) {
                p[k] = obj_new(sizes[i]);
                assert_true(all_zero(p[k], sizes[i]));
                memset(p[k], 0xa5, sizes[i]);
            }
            for (int k = 0; k < 4; k++)
                obj_free(p[k], sizes[i]);
        }
    obj_free(NULL, 64);
}

enum { N = 10000 };

static void *free_all(void *arg)
{
    void **p = arg;
    for (int i = 0; i < N; i++)
        obj_free(p[i], 100);
    for (int i = 0; i < N; i++) { /* this thread's own from now on */
        p[i] = obj_new(100);
        memset(p[i], 0x5a, 100);
    }
    for (int i = 0; i < N; i++)
        obj_free(p[i], 100);
    return NULL; /* what is kept goes with the thread: the leak checker sees it if not */
}

static void freed_elsewhere(void **state)
{
    static void *p[N];
    pthread_t t;
    (void)state;
    for (int i = 0; i < N; i++)
        p[i] = memset(obj_new(100), 0xff, 100);
    assert_int_equal(pthread_create(&t, NULL, free_all, p), 0);
    assert_int_equal(pthread_join(t, NULL), 0);
    for (int i = 0; i < N; i++) {
        p[i] = obj_new(100);
        assert_true(all_zero(p[i], 100));
    }
    for (int i = 0; i < N; i++)
        obj_free(p[i], 100);
}

#ifndef __SANITIZE_ADDRESS__
static void used_again(void **state)
{
    (void)state;
    void *p = obj_new(300);
    obj_free(p, 300);
    void *q = obj_new(310); /* of the same class */
    assert_ptr_equal(p, q);
    obj_free(q, 310);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zeroed),
        cmocka_unit_test(freed_elsewhere),
#ifndef __SANITIZE_ADDRESS__
        cmocka_unit_test(used_again),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
