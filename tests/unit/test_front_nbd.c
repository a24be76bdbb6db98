/* NBD over a socket pair: negotiation, refusals, limits, order of replies, endings. The everyday path is judged by
 * libnbd, QEMU and fio in tests/integration/test_front_nbd.sh. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"

#define VOL_BYTES (16u << 20)

struct fix {
    uv_loop_t loop;
    struct vol *vol;
    struct nbd_server *srv;
    struct nbd_lookup *pending; /* of the export "later" */
    int sock, released;
    enum nbd_access access; /* of a client to "vol" */
    bool closed;
};

static void find(void *arg, const char *client, const char *name, struct nbd_lookup *l)
{
    struct fix *f = arg;
    if (!strcmp(name, "vol"))
        nbd_lookup_done(l, E_OK, f->vol, NULL);
    else if (!strcmp(name, "later"))
        f->pending = l;
    else
        nbd_lookup_done(l, client ? E_PERM : E_NOTFOUND, NULL, client ? NULL : "no such volume");
}

static enum nbd_access access_of(void *arg, const char *client, const struct vol *v)
{
    struct fix *f = arg;
    assert_string_equal(client, "c1");
    assert_ptr_equal(v, f->vol);
    return f->access;
}

static void release(void *arg, struct vol *v)
{
    ((struct fix *)arg)->released++;
}

static void list(void *arg, const char *client, struct nbd_list *l)
{
    nbd_list_add(l, "vol");
    if (!client)
        nbd_list_add(l, "later");
}

static void bases(void *arg, struct vol *v, struct nbd_bases *b)
{
    nbd_base_add(b, "vol@s1", "11111111-1111-1111-1111-111111111111");
    nbd_base_add(b, "vol@s2", "22222222-2222-2222-2222-222222222222");
}

static void turns(struct fix *f)
{
    for (int i = 0; i < 10; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void connect_client(struct fix *f)
{
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
    f->sock = sv[0];
    nbd_server_adopt(f->srv, sv[1]);
}

static int setup(void **state)
{
    struct fix *f = test_calloc(1, sizeof *f);
    struct nbd_exports ex = {.find = find, .release = release, .list = list, .access = access_of, .bases = bases, .arg = f};
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&f->loop);
    f->vol = vol_mem_new(&f->loop, VOL_BYTES);
    f->srv = nbd_server_new(&f->loop, &ex);
    connect_client(f);
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    ((struct fix *)arg)->closed = true;
}

static int teardown(void **state)
{
    struct fix *f = *state;
    close(f->sock);
    vol_mem_park(f->vol, false);
    nbd_server_close(f->srv, on_closed, f);
    turns(f);
    assert_true(f->closed);
    vol_mem_free(f->vol);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    test_free(f);
    return 0;
}

/* Exactly `n` bytes from the server; false if it hangs up or stays silent. */
static bool get(struct fix *f, void *buf, size_t n)
{
    size_t got = 0;
    for (int i = 0; i < 200 && got < n; i++) {
        turns(f);
        ssize_t r = recv(f->sock, (char *)buf + got, n - got, 0);
        if (r == 0)
            return false;
        if (r > 0)
            got += (size_t)r;
    }
    return got == n;
}

static bool hung_up(struct fix *f)
{
    char c[4096];
    for (int i = 0; i < 50; i++) {
        turns(f);
        ssize_t r = recv(f->sock, c, sizeof c, 0);
        if (r == 0 || (r < 0 && errno == ECONNRESET))
            return true;
    }
    return false;
}

static void put(struct fix *f, const void *buf, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t r = send(f->sock, (const char *)buf + at, n - at, MSG_NOSIGNAL);
        if (r > 0)
            at += (size_t)r;
        else if (errno != EAGAIN)
            return;
        turns(f);
    }
}

static void greet(struct fix *f)
{
    uint8_t b[18], flags[4];
    assert_true(get(f, b, sizeof b));
    assert_true(get64(b) == NBD_MAGIC && get64(b + 8) == NBD_OPT_MAGIC && get16(b + 16) == 3);
    put32(flags, 3);
    put(f, flags, 4);
}

static void option(struct fix *f, uint32_t opt, const void *data, uint32_t len)
{
    uint8_t b[16];
    put32(put32(put64(b, NBD_OPT_MAGIC), opt), len);
    put(f, b, 16);
    put(f, data, len);
}

/* Type of the next option reply; its data is thrown away. */
static uint32_t opt_reply(struct fix *f, uint32_t opt)
{
    uint8_t b[20], data[8192];
    assert_true(get(f, b, sizeof b));
    assert_true(get64(b) == NBD_REP_MAGIC && get32(b + 8) == opt && get32(b + 16) <= sizeof data);
    assert_true(get(f, data, get32(b + 16)));
    return get32(b + 12);
}

static void go(struct fix *f, uint32_t opt, const char *name)
{
    uint8_t b[256];
    uint8_t *p = put32(b, (uint32_t)strlen(name));
    memcpy(p, name, strlen(name));
    p = put16(put16(p + strlen(name), 1), NBD_INFO_NAME);
    option(f, opt, b, (uint32_t)(p - b));
}

static void open_vol(struct fix *f)
{
    greet(f);
    go(f, NBD_OPT_GO, "vol");
    for (int i = 0; i < 3; i++)
        assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_INFO);
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ACK);
}

static void request(struct fix *f, uint16_t flags, uint16_t cmd, uint64_t handle, uint64_t offset, uint32_t len)
{
    uint8_t b[28];
    put32(put64(put64(put16(put16(put32(b, NBD_REQUEST_MAGIC), flags), cmd), handle), offset), len);
    put(f, b, sizeof b);
}

static uint32_t simple(struct fix *f, uint64_t handle)
{
    uint8_t b[16];
    assert_true(get(f, b, sizeof b));
    assert_true(get32(b) == NBD_SIMPLE_MAGIC && get64(b + 8) == handle);
    return get32(b + 4);
}

static void test_options(void **state)
{
    struct fix *f = *state;
    static uint8_t big[20000];
    greet(f);
    option(f, NBD_OPT_STARTTLS, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_STARTTLS), NBD_REP_ERR_UNSUP);
    option(f, NBD_OPT_LIST, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_SERVER);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_SERVER);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_ACK);
    option(f, NBD_OPT_LIST, "x", 1);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_ERR_INVALID);
    option(f, 4711, big, 100);
    assert_int_equal(opt_reply(f, 4711), NBD_REP_ERR_UNSUP);
    option(f, NBD_OPT_INFO, big, sizeof big);
    assert_int_equal(opt_reply(f, NBD_OPT_INFO), NBD_REP_ERR_TOO_BIG);
    for (uint32_t len = 0; len < 6; len++) {
        option(f, NBD_OPT_GO, big, len);
        assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_INVALID);
    }
    option(f, NBD_OPT_GO, "\xff\xff\xff\xff\0\0\0\0", 8);
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_INVALID);
    option(f, NBD_OPT_GO, "\0\0\0\2a\0\0\0", 8); /* NUL in a name */
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_INVALID);
    go(f, NBD_OPT_GO, "nope");
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_UNKNOWN);
    go(f, NBD_OPT_INFO, "vol");
    for (int i = 0; i < 3; i++)
        assert_int_equal(opt_reply(f, NBD_OPT_INFO), NBD_REP_INFO);
    assert_int_equal(opt_reply(f, NBD_OPT_INFO), NBD_REP_ACK);
    assert_int_equal(f->released, 1);
    option(f, NBD_OPT_ABORT, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_ABORT), NBD_REP_ACK);
    assert_true(hung_up(f));
}

static void meta(struct fix *f, uint32_t opt, int n, const char *const *queries)
{
    uint8_t b[512], *p = put32(b, 3);
    memcpy(p, "vol", 3);
    p = put32(p + 3, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        size_t len = strlen(queries[i]);
        memcpy(put32(p, (uint32_t)len), queries[i], len);
        p += 4 + len;
    }
    option(f, opt, b, (uint32_t)(p - b));
}

/* The names that a reply tells, up to the ACK; -1: refused. */
static int meta_names(struct fix *f, uint32_t opt, char names[4][64], uint32_t ids[4])
{
    uint8_t b[20], data[256];
    for (int n = 0;; n++) {
        assert_true(get(f, b, sizeof b) && get32(b + 16) < sizeof data && get(f, data, get32(b + 16)));
        if (get32(b + 12) != NBD_REP_META_CONTEXT)
            return get32(b + 12) == NBD_REP_ACK ? n : -1;
        assert_in_range(n, 0, 3);
        ids[n] = get32(data);
        snprintf(names[n], 64, "%.*s", (int)get32(b + 16) - 4, (char *)data + 4);
    }
}

/* One chunk of a block status with two extents: bytes and flags of each. */
static void status_chunk(struct fix *f, bool last, uint32_t id, const uint32_t want[4])
{
    uint8_t b[20 + 20];
    assert_true(get(f, b, sizeof b));
    assert_int_equal(get32(b), NBD_CHUNK_MAGIC);
    assert_int_equal(get16(b + 4), last ? NBD_CHUNK_FLAG_DONE : 0);
    assert_int_equal(get16(b + 6), NBD_CHUNK_BLOCK_STATUS);
    assert_int_equal(get32(b + 16), 20);
    assert_int_equal(get32(b + 20), id);
    for (int i = 0; i < 4; i++)
        assert_int_equal(get32(b + 24 + 4 * i), want[i]);
}

static void test_contexts(void **state)
{
    struct fix *f = *state;
    char names[4][64];
    uint32_t ids[4];
    greet(f);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    meta(f, NBD_OPT_LIST_META_CONTEXT, 0, NULL);
    assert_int_equal(meta_names(f, NBD_OPT_LIST_META_CONTEXT, names, ids), 3);
    assert_string_equal(names[0], "base:allocation");
    assert_string_equal(names[1], "cohort:changed:vol@s1");
    meta(f, NBD_OPT_LIST_META_CONTEXT, 1, (const char *[]){"cohort:"});
    assert_int_equal(meta_names(f, NBD_OPT_LIST_META_CONTEXT, names, ids), 2);
    assert_string_equal(names[1], "cohort:changed:vol@s2");
    meta(f, NBD_OPT_SET_META_CONTEXT, 2, (const char *[]){"cohort:", "cohort:changed:vol@s3"}); /* chosen by full names only */
    assert_int_equal(meta_names(f, NBD_OPT_SET_META_CONTEXT, names, ids), 0);
    meta(f, NBD_OPT_SET_META_CONTEXT, 2, (const char *[]){"cohort:changed:vol@s2", "base:allocation"});
    assert_int_equal(meta_names(f, NBD_OPT_SET_META_CONTEXT, names, ids), 2);
    assert_string_equal(names[1], "cohort:changed:vol@s2");
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[1], 2);
    go(f, NBD_OPT_GO, "vol");
    for (int i = 0; i < 3; i++)
        assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_INFO);
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ACK);
    memset((uint8_t *)vol_mem_data(f->vol) + 65536, 1, 65536);
    request(f, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 131072);
    status_chunk(f, false, 1, (const uint32_t[]){65536, NBD_STATE_HOLE | NBD_STATE_ZERO, 65536, 0});
    status_chunk(f, true, 2, (const uint32_t[]){65536, 0, 65536, NBD_STATE_DIRTY});
}

static void test_bad_greetings(void **state)
{
    struct fix *f = *state;
    put(f, "\xff\xff\xff\xff", 4); /* unknown client flags */
    assert_true(hung_up(f));
    close(f->sock);
    connect_client(f);
    greet(f);
    put(f, "GET / HTTP/1.1\r\nHost: x\r\n", 25);
    assert_true(hung_up(f));
    close(f->sock);
    connect_client(f);
    greet(f);
    option(f, NBD_OPT_EXPORT_NAME, "nope", 4);
    assert_true(hung_up(f));
    close(f->sock);
    connect_client(f);
    greet(f);
    uint8_t b[16];
    put32(put32(put64(b, NBD_OPT_MAGIC), NBD_OPT_INFO), 0x7fffffff);
    put(f, b, sizeof b);
    assert_true(hung_up(f));
}

static void test_client_leaves_during_lookup(void **state)
{
    struct fix *f = *state;
    greet(f);
    go(f, NBD_OPT_GO, "later");
    turns(f);
    assert_non_null(f->pending);
    close(f->sock);
    turns(f);
    /* The connection reads nothing during a lookup, so it may not have noticed. Either way the volume comes back. */
    nbd_lookup_done(f->pending, E_OK, f->vol, NULL);
    turns(f);
    assert_int_equal(f->released, 1);
    connect_client(f);
    f->pending = NULL;
    greet(f);
    go(f, NBD_OPT_GO, "later");
    turns(f);
    nbd_lookup_done(f->pending, E_UNAVAIL, NULL, "no quorum");
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_SHUTDOWN);
    go(f, NBD_OPT_GO, "vol");
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_INFO);
}

static void test_refused_requests(void **state)
{
    struct fix *f = *state;
    static uint8_t data[8192];
    open_vol(f);
    request(f, 0, NBD_CMD_READ, 1, 1, 512);
    assert_int_equal(simple(f, 1), NBD_EINVAL);
    request(f, 0, NBD_CMD_READ, 2, 0, 0);
    assert_int_equal(simple(f, 2), NBD_EINVAL);
    request(f, 0, NBD_CMD_READ, 3, VOL_BYTES, 512);
    assert_int_equal(simple(f, 3), NBD_EINVAL);
    request(f, 0, NBD_CMD_READ, 4, UINT64_MAX - 511, 512);
    assert_int_equal(simple(f, 4), NBD_EINVAL);
    request(f, 0, NBD_CMD_READ, 5, 0, NBD_LEN_MAX + 512);
    assert_int_equal(simple(f, 5), NBD_EINVAL);
    request(f, 0, NBD_CMD_WRITE, 6, VOL_BYTES - 512, 1024); /* its payload is skipped */
    put(f, data, 1024);
    assert_int_equal(simple(f, 6), NBD_ENOSPC);
    request(f, 0, 99, 7, 0, 0);
    assert_int_equal(simple(f, 7), NBD_EINVAL);
    request(f, 0x80, NBD_CMD_FLUSH, 8, 0, 0);
    assert_int_equal(simple(f, 8), NBD_EINVAL);
    vol_mem_fail_next(f->vol, E_CORRUPT);
    request(f, 0, NBD_CMD_READ, 9, 0, 512);
    assert_int_equal(simple(f, 9), NBD_EIO);
    f->vol->read_only = true;
    request(f, 0, NBD_CMD_WRITE, 10, 0, 8192);
    put(f, data, 8192);
    assert_int_equal(simple(f, 10), NBD_EPERM);
    f->vol->read_only = false;
    memset(data, 0x5a, sizeof data);
    request(f, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 11, 512, 8192);
    put(f, data, 8192);
    assert_int_equal(simple(f, 11), 0);
    assert_memory_equal((uint8_t *)vol_mem_data(f->vol) + 512, data, 8192);
    request(f, 0, NBD_CMD_TRIM, 12, 512, 512);
    assert_int_equal(simple(f, 12), 0);
    request(f, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 13, 1024, 512);
    assert_int_equal(simple(f, 13), 0);
    assert_int_equal(((uint8_t *)vol_mem_data(f->vol))[1535], 0);
    request(f, 0, NBD_CMD_WRITE, 14, 0, NBD_LEN_MAX + 512);
    assert_true(hung_up(f));
}

static void test_disc_drains(void **state)
{
    struct fix *f = *state;
    static uint8_t data[65536];
    open_vol(f);
    vol_mem_park(f->vol, true);
    memset(data, 1, sizeof data);
    request(f, 0, NBD_CMD_WRITE, 1, 0, sizeof data);
    put(f, data, sizeof data);
    request(f, 0, NBD_CMD_DISC, 2, 0, 0);
    turns(f);
    vol_mem_park(f->vol, false);
    assert_int_equal(simple(f, 1), 0);
    assert_true(hung_up(f));
    assert_int_equal(f->released, 1);
}

static void test_back_pressure(void **state)
{
    struct fix *f = *state;
    uint8_t b[16 + 512];
    open_vol(f);
    vol_mem_park(f->vol, true);
    for (unsigned i = 0; i < NBD_REQS_MAX + 40; i++)
        request(f, 0, NBD_CMD_READ, i, 0, 512);
    turns(f);
    struct nbd_conn *c = LIST_FIRST(&f->srv->conn);
    assert_int_equal(c->reqs, NBD_REQS_MAX);
    assert_false(c->reading);
    vol_mem_park(f->vol, false);
    for (unsigned i = 0; i < NBD_REQS_MAX + 40; i++)
        assert_true(get(f, b, sizeof b));
    for (unsigned i = 0; i < 3; i++) /* by bytes */
        request(f, 0, NBD_CMD_READ, i, 0, VOL_BYTES);
    vol_mem_park(f->vol, true);
    for (unsigned i = 0; i < 3; i++)
        request(f, 0, NBD_CMD_READ, i, 0, VOL_BYTES);
    turns(f);
    assert_true(c->held <= NBD_BYTES_MAX);
}

static void test_drop_while_parked(void **state)
{
    struct fix *f = *state;
    open_vol(f);
    vol_mem_park(f->vol, true);
    request(f, 0, NBD_CMD_READ, 1, 0, 4096);
    turns(f);
    assert_true(nbd_server_uses(f->srv, f->vol));
    nbd_server_drop(f->srv, f->vol);
    assert_false(nbd_server_uses(f->srv, f->vol));
    assert_true(hung_up(f));
    assert_int_equal(f->released, 0); /* its request is still there */
    vol_mem_park(f->vol, false);
    turns(f);
    assert_int_equal(f->released, 1);
}

static void test_torn_payload(void **state)
{
    struct fix *f = *state;
    open_vol(f);
    request(f, 0, NBD_CMD_WRITE, 1, 0, 65536);
    put(f, "abc", 3);
    turns(f);
    close(f->sock);
    turns(f);
    assert_int_equal(f->released, 1);
    assert_int_equal(((uint8_t *)vol_mem_data(f->vol))[0], 0);
    connect_client(f);
}

/* Buffers of large requests change hands: those of writes are left alone afterwards (the volume in memory keeps some and looks),
 * answers come in the volume's. Small requests in between use their own again. */
static void test_large_requests(void **state)
{
    struct fix *f = *state;
    enum { BYTES = 256 << 10 };
    uint8_t *data = test_calloc(1, BYTES), *got = test_calloc(1, BYTES);
    open_vol(f);
    for (unsigned i = 0; i < 24; i++) {
        uint32_t length = i % 3 == 2 ? 4096 : BYTES >> i % 2;
        memset(data, (int)i + 1, length);
        request(f, 0, NBD_CMD_WRITE, i, i * 512, length);
        put(f, data, length);
        assert_int_equal(simple(f, i), 0);
        request(f, 0, NBD_CMD_READ, 100 + i, i * 512, length);
        assert_int_equal(simple(f, 100 + i), 0);
        assert_true(get(f, got, length));
        assert_memory_equal(got, data, length);
    }
    vol_mem_park(f->vol, true); /* the client leaves before the answer comes */
    request(f, 0, NBD_CMD_READ, 200, 0, BYTES);
    turns(f);
    close(f->sock);
    turns(f);
    vol_mem_park(f->vol, false);
    turns(f);
    assert_int_equal(f->released, 1);
    connect_client(f);
    test_free(data);
    test_free(got);
}

/* A new connection of a client whose certificate was found good. */
static void connect_known(struct fix *f)
{
    close(f->sock);
    turns(f);
    connect_client(f);
    strcpy(LIST_FIRST(&f->srv->conn)->client, "c1");
}

static uint32_t write_512(struct fix *f)
{
    uint8_t data[512] = {1};
    request(f, 0, NBD_CMD_WRITE, 7, 0, sizeof data);
    put(f, data, sizeof data);
    return simple(f, 7);
}

static void test_access(void **state)
{
    struct fix *f = *state;
    connect_known(f); /* nothing is given to it: all looks the same */
    greet(f);
    go(f, NBD_OPT_GO, "nope");
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_POLICY);
    go(f, NBD_OPT_INFO, "vol");
    assert_int_equal(opt_reply(f, NBD_OPT_INFO), NBD_REP_ERR_POLICY);
    go(f, NBD_OPT_GO, "vol");
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_POLICY);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    meta(f, NBD_OPT_LIST_META_CONTEXT, 0, NULL);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST_META_CONTEXT), NBD_REP_ERR_POLICY);
    assert_int_equal(f->released, 3);
    option(f, NBD_OPT_LIST, NULL, 0);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_SERVER);
    assert_int_equal(opt_reply(f, NBD_OPT_LIST), NBD_REP_ACK);
    option(f, NBD_OPT_EXPORT_NAME, "vol", 3);
    assert_true(hung_up(f));

    f->access = NBD_READ_ONLY;
    connect_known(f);
    open_vol(f);
    assert_int_equal(write_512(f), NBD_EPERM);
    nbd_server_recheck(f->srv);
    request(f, 0, NBD_CMD_FLUSH, 8, 0, 0);
    assert_int_equal(simple(f, 8), 0);
    f->access = NBD_NO_ACCESS; /* taken away while it is connected */
    nbd_server_recheck(f->srv);
    assert_true(hung_up(f));

    f->access = NBD_READ_WRITE;
    connect_known(f);
    open_vol(f);
    assert_int_equal(write_512(f), 0);
    nbd_server_recheck(f->srv);
    assert_int_equal(write_512(f), 0);
    f->access = NBD_READ_ONLY;
    nbd_server_recheck(f->srv);
    assert_true(hung_up(f));

    f->access = NBD_NO_ACCESS; /* while it is looked for: the answer counts as it is then */
    connect_known(f);
    greet(f);
    go(f, NBD_OPT_GO, "later");
    turns(f);
    f->released = 0;
    nbd_lookup_done(f->pending, E_OK, f->vol, NULL);
    assert_int_equal(opt_reply(f, NBD_OPT_GO), NBD_REP_ERR_POLICY);
    assert_int_equal(f->released, 1);
    connect_client(f);
}

int main(void)
{
#define T(F) cmocka_unit_test_setup_teardown(F, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_options), T(test_contexts), T(test_bad_greetings), T(test_client_leaves_during_lookup), T(test_refused_requests),
        T(test_disc_drains), T(test_back_pressure), T(test_drop_while_parked), T(test_torn_payload), T(test_large_requests), T(test_access),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
