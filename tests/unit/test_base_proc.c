/* base: processes that outlive us, mailboxes, small files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"
#include "base/htab.h"
#include "base/mailbox.h"
#include "base/proc.h"

static char dir[] = "/tmp/cohort-test-XXXXXX";

static char *in_dir(const char *name)
{
    static char path[4][256];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

static int setup(void **s) { return mkdtemp(dir) ? 0 : -1; }

static int teardown(void **s)
{
    char *cmd = xasprintf("rm -rf %s", dir);
    int rc = system(cmd);
    free(cmd);
    return rc;
}

static void wait_end(struct proc *p)
{
    struct pollfd f = {.fd = p->pidfd, .events = POLLIN};
    assert_int_equal(poll(&f, 1, 10000), 1);
    assert_false(proc_alive(p));
}

static void start_adopt_end(void **s)
{
    struct err e;
    struct proc p, q;
    const char *argv[] = {"sleep", "60", NULL};
    struct proc_spec spec = {.argv = argv, .pid_file = in_dir("sleep.pid")};
    assert_int_equal(proc_start(&spec, &p, &e), E_OK);
    assert_true(proc_alive(&p));
    assert_int_equal(getsid(p.pid), p.pid);
    assert_int_equal(proc_adopt(in_dir("sleep.pid"), &q, &e), E_OK);
    assert_int_equal(q.pid, p.pid);
    proc_signal(&q, SIGKILL);
    wait_end(&p);
    assert_int_equal(proc_adopt(in_dir("sleep.pid"), &q, &e), E_NOTFOUND);
    proc_close(&q);
    proc_close(&p);
    proc_close(&p); /* harmless */
    assert_int_equal(p.pid, 0);
}

static void pid_reuse(void **s)
{
    struct proc q;
    struct err e;
    char *line = xasprintf("%d 1 x\n", (int)getpid()); /* the pid lives, its start time is another */
    assert_int_equal(file_write(in_dir("re.pid"), line, strlen(line), 0600, &e), E_OK);
    free(line);
    assert_int_equal(proc_adopt(in_dir("re.pid"), &q, &e), E_NOTFOUND);
    assert_int_equal(file_write(in_dir("re.pid"), "garbage", 7, 0600, &e), E_OK);
    assert_int_equal(proc_adopt(in_dir("re.pid"), &q, &e), E_NOTFOUND);
    assert_int_equal(proc_adopt(in_dir("none.pid"), &q, &e), E_NOTFOUND);
}

static void exec_failure(void **s)
{
    struct proc p;
    struct err e;
    const char *argv[] = {"/no/such/program", NULL};
    struct proc_spec spec = {.argv = argv};
    assert_int_equal(proc_start(&spec, &p, &e), E_NOTFOUND);
    assert_non_null(strstr(e.msg, "/no/such/program"));
}

static void inherits(void **s)
{
    struct proc p;
    struct err e;
    char *out;
    int keep = open("/dev/null", O_RDONLY | O_CLOEXEC), other = open("/dev/null", O_RDONLY); /* `other` must not leak */
    char *script = xasprintf("echo $V $HOME; [ -e /proc/self/fd/%d ] && echo kept; [ -e /proc/self/fd/%d ] && echo leaked; true", keep, other);
    const char *argv[] = {"sh", "-c", script, NULL}, *env[] = {"V=1", "HOME=/x", NULL};
    int fds[] = {keep, -1};
    struct proc_spec spec = {.argv = argv, .env = env, .log_file = in_dir("log"), .keep_fds = fds};
    assert_int_equal(proc_start(&spec, &p, &e), E_OK);
    wait_end(&p);
    proc_close(&p);
    assert_int_equal(file_read(in_dir("log"), 1000, &out, NULL, &e), E_OK);
    assert_string_equal(out, "1 /x\nkept\n");
    free(out);
    free(script);
    close(keep);
    close(other);
}

static void files(void **s)
{
    struct err e;
    char *out;
    size_t n;
    assert_int_equal(file_mkdirs(in_dir("a/b/c"), 0700, &e), E_OK);
    assert_int_equal(file_mkdirs(in_dir("a/b/c"), 0700, &e), E_OK);
    struct stat st;
    assert_int_equal(stat(in_dir("a/b/c"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(file_write(in_dir("a/b/c/f"), "old", 3, 0600, &e), E_OK);
    assert_int_equal(file_write(in_dir("a/b/c/f"), "new", 3, 0640, &e), E_OK);
    assert_int_equal(file_read(in_dir("a/b/c/f"), 3, &out, &n, &e), E_OK);
    assert_int_equal(n, 3);
    assert_string_equal(out, "new");
    free(out);
    assert_int_equal(file_read(in_dir("a/b/c/f"), 2, &out, &n, &e), E_TOOBIG);
    assert_int_equal(file_read(in_dir("a/none"), 2, &out, &n, &e), E_NOTFOUND);
    assert_int_not_equal(file_mkdirs(in_dir("a/b/c/f"), 0700, &e), E_OK);
    assert_int_not_equal(file_write(in_dir("none/f"), "x", 1, 0600, &e), E_OK);
}

struct msg {
    struct mail mail;
    int value;
};
static int got[64], n_got, n_closed;

static void take(struct mail *m)
{
    struct msg *x = container_of(m, struct msg, mail);
    got[n_got++] = x->value;
    free(x);
}

static struct mailbox box;

static void poster(void *arg)
{
    for (int i = 0; i < 50; i++) {
        struct msg *x = xcalloc(1, sizeof *x);
        x->mail.run = take;
        x->value = i;
        mailbox_post(&box, &x->mail);
    }
}

static void on_closed(void *arg) { n_closed++; }

static void posts(void **s)
{
    uv_loop_t loop;
    uv_thread_t t;
    uv_loop_init(&loop);
    mailbox_open(&box, &loop);
    assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0); /* does not keep the loop alive */
    mailbox_keep_alive(&box, true);
    uv_thread_create(&t, poster, NULL);
    while (n_got < 50)
        uv_run(&loop, UV_RUN_ONCE);
    uv_thread_join(&t);
    for (int i = 0; i < 50; i++)
        assert_int_equal(got[i], i);
    struct msg *last = xcalloc(1, sizeof *last);
    last->mail.run = take;
    mailbox_post(&box, &last->mail);
    mailbox_close(&box, on_closed, NULL);
    assert_int_equal(n_got, 51); /* what is queued still runs */
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(n_closed, 1);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(start_adopt_end), cmocka_unit_test(pid_reuse), cmocka_unit_test(exec_failure),
        cmocka_unit_test(inherits),        cmocka_unit_test(files),     cmocka_unit_test(posts),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
