/* The database thread: woken before it has waited for the first time (the rest of it is used by every test with a database). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cluster/dbthread.h"

#define LIVES 40 /* in some the hook comes before the thread's first turn */

static void wake_again(void *arg) { dbthread_wake(); }

static void nothing(void *arg) { (void)arg; }

static void life(void)
{
    int hook;
    dbthread_ref();
    dbthread_add(wake_again, nothing, &hook);
    dbthread_call(nothing, NULL);
    dbthread_remove(&hook);
    dbthread_unref();
    _exit(0);
}

static void woken_first(void **state)
{
    for (int i = 0; i < LIVES; i++) {
        int status;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            life();
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            fail_msg("life %d ended with status 0x%x", i, status);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(woken_first)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
