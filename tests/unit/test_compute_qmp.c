/* QMP: messages, and the client against a peer that misbehaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>
#include "base/buf.h"
#include "compute/qemu/qmp.h"
#include "compute/qemu/qmp_msg.h"

static int parse(const char *line, struct qmp_msg *m)
{
    struct err e = {0};
    int rc = qmp_msg_parse(line, strlen(line), m, &e);
    if (rc != E_OK)
        assert_true(e.msg[0]);
    return rc;
}

static void test_messages(void **state)
{
    struct qmp_msg m;
    assert_int_equal(parse("{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r", &m), E_OK);
    assert_int_equal(m.kind, QMP_GREETING);
    json_decref(m.root);
    assert_int_equal(parse("{\"return\": {\"status\": \"running\"}, \"id\": 7}", &m), E_OK);
    assert_true(m.kind == QMP_RETURN && m.id == 7 && json_is_object(m.data));
    json_decref(m.root);
    assert_int_equal(parse("{\"id\": 8, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}", &m), E_OK);
    assert_true(m.kind == QMP_ERROR && m.id == 8);
    assert_string_equal(m.text, "no");
    json_decref(m.root);
    assert_int_equal(parse("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}", &m), E_OK);
    assert_true(m.kind == QMP_EVENT && !m.data);
    json_decref(m.root);
    static const char *const bad[] = {"", "{", "null", "[]", "{}", "{\"QMP\": 1}", "{\"event\": 5}", "{\"event\": \"X\", \"data\": []}",
                                      "{\"error\": {}, \"id\": 1}", "{\"error\": 3}", "{\"return\": 1, \"id\": \"x\"}",
                                      "{\"return\": 1, \"id\": -4}", "{\"return\": {}} trailing", "\xff\xfe"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(parse(bad[i], &m), E_PROTO);
}

/* ---- client against a scripted server ---- */

struct peer {
    char path[64];
    int listener, fd;
    uv_poll_t poll;
    char in[4096];
    size_t n;
};

struct seen {
    int ups, downs, answers, last_status, events;
};

static void on_up(struct qmp *q, bool up, void *arg)
{
    struct seen *s = arg;
    if (up)
        s->ups++;
    else
        s->downs++;
}
static void on_event(struct qmp *q, const char *name, json_t *data, void *arg) { ((struct seen *)arg)->events++; }
static void on_answer(void *arg, int status, json_t *ret, const struct err *e)
{
    struct seen *s = arg;
    s->answers++;
    s->last_status = status;
    assert_true((status == E_OK) == (ret != NULL));
}

static void peer_open(struct peer *p)
{
    *p = (struct peer){.fd = -1};
    snprintf(p->path, sizeof p->path, "/tmp/cohort-test-qmp-%d.sock", (int)getpid());
    unlink(p->path);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    strcpy(sa.sun_path, p->path);
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(p->listener, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(p->listener, 4), 0);
}
static void peer_close(struct peer *p)
{
    close(p->listener);
    if (p->fd >= 0)
        close(p->fd);
    unlink(p->path);
}
static void turn(void) { uv_run(uv_default_loop(), UV_RUN_NOWAIT); usleep(1000); }
static void peer_accept(struct peer *p)
{
    if (p->fd >= 0)
        close(p->fd);
    do {
        turn();
        p->fd = accept4(p->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    } while (p->fd < 0);
    p->n = 0;
}
static void tell(struct peer *p, const char *text) { assert_int_equal(send(p->fd, text, strlen(text), MSG_NOSIGNAL), strlen(text)); }
/* Waits until the client has sent a line with `word`; its id. */
static long hear(struct peer *p, const char *word)
{
    for (int i = 0; i < 5000; i++) {
        ssize_t n = recv(p->fd, p->in + p->n, sizeof p->in - 1 - p->n, 0);
        p->n += n > 0 ? (size_t)n : 0;
        p->in[p->n] = '\0';
        char *at = strstr(p->in, word);
        if (at && strchr(at, '\n')) {
            char *id = strstr(p->in, "\"id\":");
            long v = atol(id + 5);
            p->n = 0;
            return v;
        }
        turn();
    }
    fail_msg("the client never sent %s", word);
    return 0;
}
static void negotiate(struct peer *p)
{
    peer_accept(p);
    tell(p, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n");
    char line[64];
    snprintf(line, sizeof line, "{\"return\": {}, \"id\": %ld}\r\n", hear(p, "qmp_capabilities"));
    tell(p, line);
}
#define UNTIL(COND)                                \
    do {                                           \
        for (int i_ = 0; !(COND) && i_ < 5000; i_++) \
            turn();                                \
        assert_true(COND);                         \
    } while (0)

static int setup(void **state)
{
    peer_open(*state = xcalloc(1, sizeof(struct peer)));
    return 0;
}
static int teardown(void **state)
{
    peer_close(*state);
    free(*state);
    for (int i = 0; i < 20; i++)
        turn();
    return 0;
}

static void test_client(void **state)
{
    struct peer *p = *state;
    struct seen s = {0};
    struct qmp *q = qmp_open(uv_default_loop(), p->path, &(struct qmp_handler){on_up, on_event, &s});
    qmp_call(q, "early", NULL, 1000, on_answer, &s); /* not connected: refused, but not inside the call */
    assert_int_equal(s.answers, 0);
    UNTIL(s.answers == 1);
    assert_int_equal(s.last_status, E_DISCONN);
    negotiate(p);
    UNTIL(s.ups == 1);
    char line[128];
    qmp_call(q, "a", json_pack("{s:i}", "x", 1), 1000, on_answer, &s);
    qmp_call(q, "b", NULL, 1000, on_answer, &s);
    long b = hear(p, "\"b\"");
    tell(p, "{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": 999}\n"); /* an id that nobody waits for */
    snprintf(line, sizeof line, "{\"error\": {\"desc\": \"no\"}, \"id\": %ld}\n", b);
    tell(p, line);
    UNTIL(s.answers == 2 && s.events == 1);
    assert_int_equal(s.last_status, E_INVAL);
    /* Broken in the middle: "a" ends with E_DISCONN, the client comes back by itself. */
    negotiate(p);
    UNTIL(s.ups == 2);
    assert_int_equal(s.downs, 1);
    assert_int_equal(s.answers, 3);
    assert_int_equal(s.last_status, E_DISCONN);
    qmp_call(q, "slow", NULL, 50, on_answer, &s);
    UNTIL(s.answers == 4);
    assert_int_equal(s.last_status, E_TIMEOUT);
    qmp_call(q, "pending", NULL, 1000, on_answer, &s);
    qmp_close(q);
    assert_int_equal(s.answers, 5);
    assert_int_equal(s.last_status, E_CANCELED);
}

static void test_garbage(void **state)
{
    struct peer *p = *state;
    struct seen s = {0};
    struct qmp *q = qmp_open(uv_default_loop(), p->path, &(struct qmp_handler){on_up, on_event, &s});
    static const char *const bad[] = {"hello\n", "{\"QMP\": 1}\n", "\n\n{]\n", "{\"QMP\": {}}\n{\"QMP\": {}}\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        peer_accept(p); /* each time it drops us and tries again */
        tell(p, bad[i]);
    }
    peer_accept(p); /* a line without end */
    char *big = xmalloc(64 << 10);
    memset(big, 'x', 64 << 10);
    for (int i = 0; i < 2000; i++) {
        if (send(p->fd, big, 64 << 10, MSG_NOSIGNAL) < 0 && i > 1000)
            break;
        turn();
    }
    free(big);
    negotiate(p);
    UNTIL(s.ups == 1);
    assert_int_equal(s.downs, 0);
    qmp_close(q);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_messages), cmocka_unit_test_setup_teardown(test_client, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_garbage, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
