/* RPC between two environments on one loop over 127.0.0.1, and what hostile or mistaken peers get. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>
#include "base/crc32c.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"
#include "proto/rpc.h"
#include "tests/lib/testcert.h"

#define A_ID "aaaaaaaa-0000-4000-8000-00000000000a"
#define B_ID "bbbbbbbb-0000-4000-8000-00000000000b"

static char dir[64];
static uv_loop_t loop;
static struct rpc_env *server;
static uint16_t port;
static struct rpc_req *held; /* a request that the handler keeps */

static struct rpc_tls_files files(const char *ca, const char *name)
{
    static char path[6][160];
    static int k;
    char **p = (char *[]){path[k % 6], path[(k + 1) % 6], path[(k + 2) % 6]};
    k += 3;
    snprintf(p[0], 160, "%s/%s-ca.pem", dir, ca);
    snprintf(p[1], 160, "%s/%s.pem", dir, name);
    snprintf(p[2], 160, "%s/%s.key", dir, name);
    return (struct rpc_tls_files){p[0], p[1], p[2]};
}

static void on_ping(struct rpc_req *req, void *arg)
{
    const Cohort__Control__Ping *m = (const Cohort__Control__Ping *)req->msg;
    if (!strcmp(m->text, "hold")) {
        held = req;
        return;
    }
    if (!strcmp(m->text, "refuse")) {
        rpc_reply_err(req, E_STALE, 42, "epoch %d is newer", 42);
        return;
    }
    Cohort__Control__Pong out = COHORT__CONTROL__PONG__INIT;
    out.text = m->text;
    rpc_reply(req, &out.base, req->data, 0, req->data_len);
}

struct result { struct rpc_call call; int status; bool done; char text[64]; size_t len; uint32_t crc; };

static void on_done(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct result *r = c->arg;
    r->status = status;
    r->done = true;
    r->len = len;
    if (!status)
        snprintf(r->text, sizeof r->text, "%s", ((const Cohort__Control__Pong *)msg)->text);
    r->crc = data ? crc32c(0, data->data, len) : 0;
}

static void on_up(struct rpc_peer *p, bool up, void *arg)
{
    *(int *)arg += up ? 1 : 100;
}

static void call(struct rpc_peer *p, struct result *r, const char *text, struct iobuf *data, size_t off, size_t len, unsigned ms)
{
    *r = (struct result){.call = {.out = &cohort__control__pong__descriptor, .max_data = RPC_DATA_MAX, .timeout_ms = ms,
                                  .done = on_done}};
    r->call.arg = r;
    Cohort__Control__Ping m = COHORT__CONTROL__PING__INIT;
    m.text = (char *)text;
    rpc_call(p, &r->call, RPC_PING, &m.base, data, off, len);
    assert_false(r->done); /* never from inside */
}

static void on_tick(uv_timer_t *t)
{
    if (++*(int *)t->data == 250)
        *(int *)t->data = -1;
}

/* Runs the loop until `cond`; false after 5 s. */
#define RUN_UNTIL(cond)                                              \
    ({                                                               \
        int late_ = 0;                                               \
        uv_timer_t t_;                                               \
        uv_timer_init(&loop, &t_);                                   \
        t_.data = &late_;                                            \
        uv_timer_start(&t_, on_tick, 20, 20); /* also wakes for what threads set */ \
        while (!(cond) && late_ >= 0)                                    \
            uv_run(&loop, UV_RUN_ONCE);                              \
        uv_close((uv_handle_t *)&t_, NULL);                          \
        uv_run(&loop, UV_RUN_NOWAIT);                                \
        (cond);                                                      \
    })

static struct rpc_env *env_of(const char *ca, const char *name)
{
    struct err e = {0};
    struct rpc_env *env = NULL;
    struct rpc_tls_files f = files(ca, name);
    if (rpc_env_open(&loop, &f, &env, &e))
        fail_msg("%s", e.msg);
    return env;
}

static struct rpc_peer *peer_of(struct rpc_env *env, const char *id, int *ups)
{
    struct err e = {0};
    struct rpc_peer *p = NULL;
    assert_int_equal(rpc_peer_open(env, id, "127.0.0.1", port, on_up, ups, &p, &e), 0);
    return p;
}

static int setup(void **state)
{
    struct rpc_server *s;
    struct err e = {0};
    snprintf(dir, sizeof dir, "/tmp/cohort-rpc-XXXXXX");
    assert_non_null(mkdtemp(dir));
    testcert_ca(dir, "good");
    testcert_ca(dir, "other");
    testcert_node(dir, "good", "a", A_ID, false);
    testcert_node(dir, "good", "b", B_ID, false);
    testcert_node(dir, "good", "old", B_ID, true);
    testcert_node(dir, "good", "nobody", NULL, false);
    testcert_node(dir, "other", "foreign", B_ID, false);
    uv_loop_init(&loop);
    server = env_of("good", "a");
    rpc_handle(server, RPC_PING, &cohort__control__ping__descriptor, RPC_DATA_MAX, on_ping, NULL);
    assert_int_equal(rpc_listen(server, "127.0.0.1", 0, &s, &e), 0);
    port = rpc_server_port(s);
    return 0;
}

static int teardown(void **state)
{
    char cmd[128];
    rpc_env_close(server);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    return system(cmd);
}

static void test_calls(void **state)
{
    int ups = 0;
    struct rpc_env *env = env_of("good", "b");
    struct rpc_peer *p = peer_of(env, A_ID, &ups);
    struct result r[3];
    call(p, &r[0], "too early", NULL, 0, 0, 0);
    assert_true(RUN_UNTIL(r[0].done));
    assert_int_equal(r[0].status, E_DISCONN);
    assert_true(RUN_UNTIL(ups == 1));
    struct iobuf *b = iobuf_new(RPC_DATA_MAX);
    for (size_t i = 0; i < b->cap; i++)
        b->data[i] = (uint8_t)(i * 7 + (i >> 9));
    call(p, &r[0], "small", NULL, 0, 0, 0);
    call(p, &r[1], "large", b, 512, RPC_DATA_MAX - 512, 0);
    call(p, &r[2], "refuse", b, 0, 4096, 0);
    assert_true(RUN_UNTIL(r[0].done && r[1].done && r[2].done));
    assert_int_equal(r[0].status, 0);
    assert_string_equal(r[0].text, "small");
    assert_int_equal(r[1].status, 0);
    assert_int_equal(r[1].len, RPC_DATA_MAX - 512);
    assert_int_equal(r[1].crc, crc32c(0, b->data + 512, RPC_DATA_MAX - 512));
    assert_int_equal(r[2].status, E_STALE);
    assert_int_equal(r[2].call.detail, 42);
    assert_string_equal(r[2].call.text, "epoch 42 is newer");
    iobuf_unref(b);
    rpc_env_close(env);
    RUN_UNTIL(true);
}

static void test_timeout_and_loss(void **state)
{
    int ups = 0;
    struct rpc_env *env = env_of("good", "b");
    struct rpc_peer *p = peer_of(env, A_ID, &ups);
    struct result r;
    assert_true(RUN_UNTIL(ups == 1));
    held = NULL;
    call(p, &r, "hold", NULL, 0, 0, 100);
    assert_true(RUN_UNTIL(r.done));
    assert_int_equal(r.status, E_TIMEOUT);
    assert_non_null(held);
    rpc_reply(held, NULL, NULL, 0, 0); /* the late answer is dropped */
    call(p, &r, "still there", NULL, 0, 0, 0);
    assert_true(RUN_UNTIL(r.done));
    assert_int_equal(r.status, 0);
    held = NULL;
    call(p, &r, "hold", NULL, 0, 0, 0);
    assert_true(RUN_UNTIL(held));
    rpc_peer_reset(p);
    assert_true(RUN_UNTIL(r.done));
    assert_int_equal(r.status, E_DISCONN);
    assert_true(RUN_UNTIL(ups == 102)); /* up, down, up again */
    rpc_reply_err(held, E_BUSY, 0, "its connection is gone: dropped");
    held = NULL;
    call(p, &r, "hold", NULL, 0, 0, 0);
    assert_true(RUN_UNTIL(held));
    rpc_peer_close(p);
    assert_true(RUN_UNTIL(r.done));
    assert_int_equal(r.status, E_CANCELED);
    rpc_reply(held, NULL, NULL, 0, 0);
    rpc_env_close(env);
    RUN_UNTIL(true);
}

/* Peers that must never come up: certificate of another CA, expired, without node id, and the right one of another node. */
static void test_wrong_certificates(void **state)
{
    const struct { const char *name, *expect; } cases[] = {{"foreign", A_ID}, {"old", A_ID}, {"nobody", A_ID}, {"b", B_ID}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err e = {0};
        struct rpc_env *env = NULL;
        struct rpc_tls_files f = files("good", cases[i].name);
        int ups = 0, rc = rpc_env_open(&loop, &f, &env, &e);
        if (!strcmp(cases[i].name, "nobody")) { /* refuses to start with it */
            assert_int_equal(rc, E_INVAL);
            continue;
        }
        assert_int_equal(rc, 0);
        struct rpc_peer *p = peer_of(env, cases[i].expect, &ups);
        struct result r = {.done = false};
        /* A TLS 1.3 client may believe itself connected for a moment before the refusal arrives; no call ever succeeds. */
        for (int k = 0; k < 4; k++) {
            call(p, &r, "x", NULL, 0, 0, 300);
            assert_true(RUN_UNTIL(r.done));
            assert_int_not_equal(r.status, 0);
        }
        rpc_env_close(env);
        RUN_UNTIL(true);
    }
}

/* A peer with a good certificate that sends `bytes` and then waits for the end of the connection. */
struct rogue { uint8_t bytes[FRAME_SIZE + 64]; size_t len; bool hang_up, refused, done; pthread_t thread; };

static void *rogue_main(void *arg)
{
    struct rogue *g = arg;
    struct rpc_tls_files f = files("good", "b");
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_use_certificate_file(ctx, f.cert_pem, SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(ctx, f.key_pem, SSL_FILETYPE_PEM);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    SSL *ssl = SSL_new(ctx);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && SSL_set_fd(ssl, fd) && SSL_connect(ssl) == 1 &&
        SSL_write(ssl, g->bytes, (int)g->len) == (int)g->len) {
        char c;
        if (g->hang_up)
            shutdown(fd, SHUT_WR);
        g->refused = SSL_read(ssl, &c, 1) <= 0;
    }
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
    __atomic_store_n(&g->done, true, __ATOMIC_RELEASE);
    return NULL;
}

static void rogue_run(struct rogue *g)
{
    pthread_create(&g->thread, NULL, rogue_main, g);
    assert_true(RUN_UNTIL(__atomic_load_n(&g->done, __ATOMIC_ACQUIRE)));
    pthread_join(g->thread, NULL);
    assert_true(g->refused);
}

static void test_rogue_frames(void **state)
{
    struct rogue garbage = {.len = FRAME_SIZE}, oversized = {.len = FRAME_SIZE}, data = {.len = FRAME_SIZE},
                 malformed = {.len = FRAME_SIZE + 4}, truncated = {.len = 20, .hang_up = true}, reply = {.len = FRAME_SIZE};
    memset(garbage.bytes, 0xa5, FRAME_SIZE);
    frame_encode(&(struct frame){0, RPC_PING, 1, RPC_PB_MAX + 1, 0}, oversized.bytes);
    frame_encode(&(struct frame){0, RPC_PING, 1, 0, RPC_DATA_MAX + 1}, data.bytes);
    frame_encode(&(struct frame){0, RPC_PING, 1, 4, 0}, malformed.bytes);
    memset(malformed.bytes + FRAME_SIZE, 0xff, 4);
    frame_encode(&(struct frame){0, RPC_PING, 1, 9, 0}, truncated.bytes);
    frame_encode(&(struct frame){FRAME_REPLY, RPC_PING, 1, 0, 0}, reply.bytes);
    rogue_run(&garbage);
    rogue_run(&oversized);
    rogue_run(&data);
    rogue_run(&malformed);
    rogue_run(&truncated);
    rogue_run(&reply);
    test_calls(state); /* the server is as before */
}

static void test_frame_codec(void **state)
{
    uint8_t b[FRAME_SIZE];
    struct frame f = {FRAME_REPLY, RPC_STORE_WRITE, 77, 12, 4096}, g;
    frame_encode(&f, b);
    assert_true(frame_decode(b, &g));
    assert_true(f.flags == g.flags && f.kind == g.kind && f.id == g.id && f.pb_len == g.pb_len && f.data_len == g.data_len);
    for (int i = 0; i < FRAME_SIZE * 8; i++) {
        b[i / 8] ^= (uint8_t)(1 << i % 8);
        assert_false(frame_decode(b, &g));
        b[i / 8] ^= (uint8_t)(1 << i % 8);
    }
}

static void test_bounded_unpack(void **state)
{
    /* A packed message whose bytes are all tiny unknown fields: protobuf-c's worst case in scratch memory. */
    size_t len = 1u << 20;
    uint8_t *hostile = malloc(len);
    for (size_t i = 0; i + 1 < len; i += 2) {
        hostile[i] = 0x78; /* field 15, varint */
        hostile[i + 1] = 1;
    }
    ProtobufCMessage *m = rpc_unpack(&cohort__control__ping__descriptor, hostile, len);
    rpc_unpack_free(m); /* decoded within the bound or refused: either is fine, growing without bound is not */
    memset(hostile, 0xff, len);
    assert_null(rpc_unpack(&cohort__control__ping__descriptor, hostile, len));
    free(hostile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_timeout_and_loss),
        cmocka_unit_test(test_wrong_certificates),
        cmocka_unit_test(test_rogue_frames),
        cmocka_unit_test(test_frame_codec),
        cmocka_unit_test(test_bounded_unpack),
    };
    signal(SIGPIPE, SIG_IGN); /* as the daemon */
    return cmocka_run_group_tests(tests, setup, teardown);
}
