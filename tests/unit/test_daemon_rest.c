/* daemon: the REST API over its real sockets (unix and TLS) against the in-memory database: bad input, identity, uploads
 * with back-pressure, clients that leave, admission of nodes. The client is libcurl in a thread. */
#include "tests/lib/twin.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <jansson.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/file.h"
#include "cluster/pki.h"
#include "cluster/token.h"
#include "daemon/image_io.h"
#include "daemon/join.h"
#include "daemon/rest.h"
#include "daemon/wire.h"
#include "storage/asan/engine/asan.h"

#define MIB (INT64_C(1) << 20)
#define GIB (INT64_C(1) << 30)

/* What the rest of the daemon would do. */
int daemon_become_member(struct daemon *d, struct err *e) { return err_set(e, E_UNAVAIL, "mock"); }
void daemon_member_conf(struct daemon *d, struct member_conf *c, struct member_disk *disks) { *c = (struct member_conf){.state_dir = d->conf.state_dir}; }
size_t asan_link_states(struct asan *a, const char *node_id, struct asan_link_state *ret, size_t max) { return 0; }
char *asan_dump_json(struct asan *a, const char *volume_id) { return xstrdup("{}"); }
void asan_io(struct asan *a, struct asan_io *io) { abort(); }
void asan_claim(struct asan *a, struct asan_claim *c) { abort(); }
void asan_release(struct asan *a, const char *volume_id) { abort(); }
void asan_changed(struct asan *a, struct asan_changed *q) { abort(); /* there is no storage here */ }

static struct twin w;
static char dir[64];
static char *ca_pem, *ca_key;
static uint16_t port;

/* ---- client ---- */

struct call {
    const char *method, *path, *token, *body, *upload;
    size_t upload_len;
    bool tls, chunked;
    /* result */
    CURLcode curl;
    long status;
    struct buf answer, headers;
    json_t *json;
    size_t sent;
    int finished, leave; /* leave: the client is to give up */
};

static struct call last;

static size_t take(char *p, size_t s, size_t n, void *arg)
{
    buf_append(arg, p, s * n);
    return s * n;
}

static size_t give(char *p, size_t s, size_t n, void *arg)
{
    struct call *c = arg;
    size_t len = s * n < c->upload_len - c->sent ? s * n : c->upload_len - c->sent;
    memcpy(p, c->upload + c->sent, len);
    c->sent += len;
    return len;
}

static int leaving(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    return __atomic_load_n(&((struct call *)arg)->leave, __ATOMIC_ACQUIRE);
}

static void client(void *arg)
{
    struct call *c = arg;
    char url[256], path[128], auth[256];
    CURL *h = curl_easy_init();
    struct curl_slist *list = NULL;
    if (c->tls) {
        snprintf(url, sizeof url, "https://127.0.0.1:%u%s", port, c->path);
        snprintf(path, sizeof path, "%s/pki/ca.pem", dir);
        curl_easy_setopt(h, CURLOPT_CAINFO, path);
    } else {
        snprintf(url, sizeof url, "http://localhost%s", c->path);
        snprintf(path, sizeof path, "%s/api.sock", dir);
        curl_easy_setopt(h, CURLOPT_UNIX_SOCKET_PATH, path);
    }
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_PROXY, "");
    curl_easy_setopt(h, CURLOPT_TIMEOUT_MS, 60000L);
    curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, leaving);
    curl_easy_setopt(h, CURLOPT_XFERINFODATA, c);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, &c->answer);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, take);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, &c->headers);
    if (c->token) {
        snprintf(auth, sizeof auth, "Authorization: Bearer %s", c->token);
        list = curl_slist_append(list, auth);
    }
    list = curl_slist_append(list, "Expect:"); /* see the server cope with a body it does not want */
    if (c->chunked)
        list = curl_slist_append(list, "Transfer-Encoding: chunked");
    if (c->upload) {
        curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(h, CURLOPT_READFUNCTION, give);
        curl_easy_setopt(h, CURLOPT_READDATA, c);
        if (!c->chunked)
            curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)c->upload_len);
    } else if (c->body) {
        curl_easy_setopt(h, CURLOPT_POSTFIELDS, c->body);
    } else if (strcmp(c->method, "POST") == 0) {
        curl_easy_setopt(h, CURLOPT_POSTFIELDS, "");
    }
    curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, c->method);
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, list);
    c->curl = curl_easy_perform(h);
    curl_easy_getinfo(h, CURLINFO_RESPONSE_CODE, &c->status);
    curl_slist_free_all(list);
    curl_easy_cleanup(h);
    __atomic_store_n(&c->finished, 1, __ATOMIC_RELEASE);
}

static void never(uv_timer_t *t) {}

static void (*each_turn)(void); /* called while the loop waits for a client */

static void run_until(int *flag)
{
    uv_timer_t poll; /* the client's thread cannot wake this loop */
    uv_timer_init(&w.loop, &poll);
    uv_timer_start(&poll, never, 1, 1);
    while (!__atomic_load_n(flag, __ATOMIC_ACQUIRE)) {
        uv_run(&w.loop, UV_RUN_ONCE);
        if (each_turn)
            each_turn();
    }
    uv_close((uv_handle_t *)&poll, NULL);
    uv_run(&w.loop, UV_RUN_NOWAIT);
}

static void forget(void)
{
    json_decref(last.json);
    buf_free(&last.answer);
    buf_free(&last.headers);
    last = (struct call){0};
}

static long perform(struct call c)
{
    uv_thread_t t;
    forget();
    last = c;
    uv_thread_create(&t, client, &last);
    run_until(&last.finished);
    uv_thread_join(&t);
    if (last.answer.data)
        last.json = json_loadb(last.answer.data, last.answer.len, JSON_DECODE_ANY, NULL);
    return last.curl == CURLE_OK ? last.status : -(long)last.curl;
}

static long get(const char *path) { return perform((struct call){.method = "GET", .path = path}); }
static long post(const char *path, const char *body) { return perform((struct call){.method = "POST", .path = path, .body = body}); }
static long del(const char *path) { return perform((struct call){.method = "DELETE", .path = path}); }
static long tls(const char *method, const char *path, const char *token, const char *body)
{
    return perform((struct call){.method = method, .path = path, .token = token, .body = body, .tls = true});
}
static const char *text(const char *key)
{
    const char *s = json_string_value(json_object_get(last.json, key));
    return s ? s : "(none)";
}
#define assert_message(PART) assert_non_null(strstr(text("message"), PART))

/* ---- storage in memory ---- */

static struct store {
    uint8_t *data;
    size_t size;
    int in_flight, most;
    bool hold; /* completes nothing until released */
    int fail;
    struct write { uv_timer_t timer; struct iobuf *b; size_t off, len; void (*done)(void *arg, int status); void *arg; } *held[64];
    int n_held;
} store;

static void write_freed(uv_handle_t *h) { free(h->data); }

static void write_end(uv_timer_t *t)
{
    struct write *x = t->data;
    store.in_flight--;
    int status = store.fail;
    if (status == E_OK) {
        assert_true(x->off + x->len <= store.size);
        memcpy(store.data + x->off, x->b->data, x->len);
    }
    iobuf_unref(x->b);
    uv_close((uv_handle_t *)t, write_freed);
    x->done(x->arg, status);
}

static void store_write(void *ctx, const char *volume_id, uint64_t off, struct iobuf *b, size_t len, void (*done)(void *arg, int status), void *arg)
{
    struct write *x = calloc(1, sizeof *x);
    assert_int_equal(len % 4096, 0);
    assert_int_equal(off % 4096, 0);
    *x = (struct write){.b = iobuf_ref(b), .off = off, .len = len, .done = done, .arg = arg};
    x->timer.data = x;
    uv_timer_init(&w.loop, &x->timer);
    if (++store.in_flight > store.most)
        store.most = store.in_flight;
    if (store.hold)
        store.held[store.n_held++] = x;
    else
        uv_timer_start(&x->timer, write_end, 2, 0);
}

static void store_release(void)
{
    store.hold = false;
    while (store.n_held)
        uv_timer_start(&store.held[--store.n_held]->timer, write_end, 1, 0);
}

/* For each_turn: storage holds everything until the server has stopped reading; then it answers, or the client leaves. */
static void release_when_full(void)
{
    if (store.n_held == 4)
        store_release();
}

static void leave_when_full(void)
{
    if (store.n_held == 4)
        __atomic_store_n(&last.leave, 1, __ATOMIC_RELEASE);
}

static bool op_waits;
static void leave_when_waiting(void)
{
    if (op_waits) /* the server had the request for some turns of the loop */
        __atomic_store_n(&last.leave, 1, __ATOMIC_RELEASE);
    struct rest_req *rq;
    op_waits = false;
    LIST_FOREACH (rq, &w.d.rest->requests, entry)
        op_waits = op_waits || (rq->started && !rq->answered);
}

static const struct image_io io = {store_write, NULL};

/* ---- fixture ---- */

static void write_text(const char *name, const char *t)
{
    char path[128];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write(path, t, strlen(t), 0600, &e), E_OK);
}

static uint16_t free_port(void)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    getsockname(fd, (struct sockaddr *)&sa, &len);
    close(fd);
    return ntohs(sa.sin_port);
}

static int setup(void **s)
{
    struct err e;
    char *key, *csr, *cert, path[128];
    const char *address = "127.0.0.1";
    twin_open(&w);
    snprintf(dir, sizeof dir, "/tmp/cohort-rest-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/pki", dir);
    mkdir(path, 0700);
    assert_int_equal(pki_ca_new("test", &ca_pem, &ca_key, &e), E_OK);
    assert_int_equal(pki_key_new(&key, &e), E_OK);
    assert_int_equal(pki_csr_new(key, w.d.node_id, 1, &address, &csr, &e), E_OK);
    assert_int_equal(pki_issue(ca_pem, ca_key, csr, w.d.node_id, 10, &cert, &e), E_OK);
    write_text("pki/ca.pem", ca_pem);
    write_text("pki/node.pem", cert);
    write_text("pki/node.key", key);
    free(key);
    free(csr);
    free(cert);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_ca_cert, ca_pem);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_ca_key, ca_key);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_uuid, "00000000-0000-4000-8000-000000000001");
    twin_commit(&w, t);
    w.d.conf.run_dir = w.d.conf.state_dir = dir;
    w.d.conf.address = "127.0.0.1";
    w.d.conf.api_port = port = free_port();
    assert_int_equal(rest_open(&w.d, &w.d.rest, &e), E_OK);
    assert_int_equal(rest_listen_tls(w.d.rest, &e), E_OK);
    w.d.rest->image_io = &io;
    store = (struct store){.size = 64u << 20};
    store.data = calloc(1, store.size);
    return 0;
}

static int teardown(void **s)
{
    char cmd[96];
    forget();
    rest_close(w.d.rest);
    while (store.in_flight) { /* what the engine had in hand is answered after the API is gone */
        store_release();
        uv_run(&w.loop, UV_RUN_ONCE);
    }
    twin_close(&w);
    free(store.data);
    free(ca_pem);
    free(ca_key);
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    return system(cmd);
}

static void token(const char *name, const char *role, const char *secret, int64_t expires_ms)
{
    char hash[65];
    pki_sha256_hex(secret, hash);
    struct token_spec t = {.name = name, .role = role, .hash = hash, .expires_ms = expires_ms, .creator = "test"};
    assert_int_equal(twin_end(&w, op_token_create(w.ops, &t, twin_done, &w, &w.err)), E_OK);
}

/* ---- tests ---- */

static void routing(void **s)
{
    assert_int_equal(get("/api/v1/cluster"), 200);
    assert_string_equal(text("name"), "test");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(last.json, "nodes"), "up")), 3);
    assert_int_equal(get("/api/v1/nope"), 404);
    assert_string_equal(text("code"), "not_found");
    assert_int_equal(get("/api/v1/vms/"), 404);
    assert_int_equal(get("/api/v1/vms/x"), 404);
    assert_message("no vm \"x\"");
    assert_int_equal(get("/api/v1/vms/%2e%2e%2f%00x"), 404);
    assert_int_equal(perform((struct call){.method = "PATCH", .path = "/api/v1/vms/x"}), 405);
    assert_non_null(strstr(last.headers.data, "Allow: GET, DELETE"));
    assert_int_equal(get("/"), 200);
    assert_non_null(strstr(last.headers.data, "Content-Security-Policy: default-src 'none'; script-src 'self'"));
    assert_null(strstr(last.answer.data, "onclick"));
    assert_int_equal(get("/app.js"), 200);
    assert_null(strstr(last.answer.data, "innerHTML"));
    assert_int_equal(get("/app.css"), 200);
    assert_int_equal(get("/metrics"), 200);
    assert_non_null(strstr(last.answer.data, "cohort_api_requests_total"));
    assert_int_equal(post("/api/v1/debug/log", "{\"module\":\"rest\",\"level\":\"dbg\"}"), 200);
    assert_int_equal(post("/api/v1/debug/log", "{\"module\":\"rest\",\"level\":\"loud\"}"), 400);
    assert_int_equal(post("/api/v1/debug/log", "{\"module\":\"no\",\"level\":\"dbg\"}"), 404);
}

static void bad_bodies(void **s)
{
    static const struct { const char *body, *part, *to; } bad[] = { /* to: volumes, if nothing is said */
        {"", "\"name\" is missing"}, {"{", "not valid JSON"}, {"[]", "must be a JSON object"},
        {"\"x\"", "not valid JSON"}, {"{} x", "not valid JSON"},
        {"{\"name\":\"a\",\"name\":\"b\",\"size_bytes\":1}", "not valid JSON"},
        {"{\"name\":\"v\",\"size_bytes\":1073741824,\"colour\":\"red\"}", "unknown field \"colour\""},
        {"{\"name\":5,\"size_bytes\":1073741824}", "field \"name\": must be a text"},
        {"{\"name\":\"v\",\"size_bytes\":\"1G\"}", "field \"size_bytes\": must be a whole number"},
        {"{\"name\":\"v\",\"size_bytes\":1.5}", "field \"size_bytes\": must be a whole number"},
        {"{\"name\":\"v\",\"size_bytes\":-1}", "field \"size_bytes\": must be from 1048576"},
        {"{\"name\":\"v\",\"size_bytes\":99999999999999999999}", "not valid JSON"},
        {"{\"name\":\"v\",\"size_bytes\":1073741825}", "size_bytes 1073741825 is not allowed"},
        {"{\"name\":\"v\",\"size_bytes\":1073741824,\"replicas\":4}", "field \"replicas\": must be from 1 to 3"},
        {"{\"name\":\"v\",\"size_bytes\":1073741824,\"shard_bytes\":1500000000}", "shard_bytes 1500000000 is not allowed"},
        {"{\"name\":\"../etc\",\"size_bytes\":1073741824}", "is not allowed"},
        {"{\"name\":\"\xff\xfe\",\"size_bytes\":1073741824}", "not valid JSON"},
        {"{\"name\":\"a\\u0000b\",\"size_bytes\":1073741824}", ""},
        {"{\"name\":\"v\",\"size_bytes\":1073741824,\"class\":\"tape\"}", "class \"tape\" is not allowed"},
        {"{\"node\":\"n1\",\"name\":\"d\"}", "\"fast_path\": missing", "disks"}, {"{\"node\":\"n1\",\"name\":\"d\",\"fast_path\":\"/f\"}", "\"capacity_path\": missing", "disks"},
        {"{\"node\":\"n1\",\"name\":\"d\",\"memory_bytes\":1048576}", "memory_bytes 1048576 is not allowed", "disks"},
        {"{\"node\":\"n1\",\"name\":\"d\",\"memory_bytes\":-1}", "must be from 1", "disks"},
        {"{\"node\":\"n1\",\"name\":\"d\",\"memory_bytes\":268435456,\"capacity_path\":\"/c\"}", "a disk in memory has no paths", "disks"},
        {"{\"name\":\"a\",\"memory_bytes\":536870912,\"disks\":[{\"size_bytes\":1073741824,\"x\":1}]}", "unknown field \"disks[0].x\"", "vms"},
        {"{\"name\":\"a\",\"memory_bytes\":536870912,\"disks\":[{}]}", "", "vms"}, {"{\"name\":\"a\",\"memory_bytes\":536870912,\"networks\":[1]}", "", "vms"},
        {"{}", "", "vms/a/migrate"}, {"{\"token\":\"COHORT1.garbage\"}", "", "cluster/join"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[64];
        snprintf(path, sizeof path, "/api/v1/%s", bad[i].to ? bad[i].to : "volumes");
        assert_int_equal(post(path, bad[i].body), 400);
        assert_string_equal(text("code"), "invalid");
        assert_message(bad[i].part);
    }
    assert_int_equal(post("/api/v1/cluster/init", "{\"name\":\"again\"}"), 409);
    assert_int_equal(get("/api/v1/volumes"), 200);
    assert_int_equal(json_array_size(last.json), 0);
    /* deep nesting must not overflow anything */
    struct buf deep;
    buf_init(&deep);
    for (int i = 0; i < 8000; i++)
        buf_append(&deep, "[", 1);
    assert_int_equal(post("/api/v1/volumes", deep.data), 400);
    buf_free(&deep);
}

static void oversize(void **s)
{
    char *big = xmalloc(1u << 20);
    memset(big, ' ', (1u << 20) - 1);
    big[(1u << 20) - 1] = '\0';
    assert_int_equal(post("/api/v1/volumes", big), 413);
    assert_string_equal(text("code"), "too_large");
    assert_int_equal(perform((struct call){.method = "POST", .path = "/api/v1/volumes", .upload = big, .upload_len = 1u << 20, .chunked = true}), 413);
    assert_int_equal(perform((struct call){.method = "DELETE", .path = "/api/v1/volumes/x", .body = "{}"}), 413); /* takes no body */
    free(big);
    assert_int_equal(get("/api/v1/cluster"), 200);
}

static void identity(void **s)
{
    token("v", "viewer", "secret-v", 0);
    token("o", "operator", "secret-o", clock_wall_ms() + 60000);
    token("a", "admin", "secret-a", 0);
    token("old", "admin", "secret-old", 1000000000000);
    token("j", "join", "secret-j", 0);
    const char *vol = "{\"name\":\"v1\",\"size_bytes\":1073741824}";
    assert_int_equal(tls("GET", "/api/v1/nodes", NULL, NULL), 401);
    assert_non_null(strstr(last.headers.data, "WWW-Authenticate: Bearer"));
    assert_int_equal(tls("GET", "/api/v1/nodes", "wrong", NULL), 401);
    assert_message("not known");
    assert_int_equal(tls("GET", "/api/v1/nodes", "secret-j", NULL), 401);
    assert_int_equal(tls("GET", "/api/v1/nodes", "secret-old", NULL), 401);
    assert_message("token expired on 2001-09-09T01:46:40");
    assert_int_equal(tls("GET", "/api/v1/nodes", "secret-v", NULL), 200);
    assert_int_equal(json_array_size(last.json), 3);
    assert_int_equal(tls("POST", "/api/v1/volumes", "secret-v", vol), 403);
    assert_int_equal(tls("POST", "/api/v1/volumes", "secret-o", vol), 200);
    assert_int_equal(tls("GET", "/api/v1/tokens", "secret-o", NULL), 403);
    assert_int_equal(tls("GET", "/api/v1/tokens", "secret-a", NULL), 200);
    assert_null(strstr(last.answer.data, "hash"));
    assert_int_equal(tls("POST", "/api/v1/cluster/init", "secret-a", "{\"name\":\"x\"}"), 403);
    assert_message("unix socket");
    assert_int_equal(tls("GET", "/", NULL, NULL), 200);
    /* one made through the API works, and no longer once deleted */
    assert_int_equal(tls("POST", "/api/v1/tokens", "secret-a", "{\"name\":\"ci\",\"role\":\"operator\",\"ttl_s\":3600}"), 200);
    char made[128];
    snprintf(made, sizeof made, "%s", text("token"));
    assert_int_equal(tls("GET", "/api/v1/vms", made, NULL), 200);
    assert_int_equal(tls("DELETE", "/api/v1/tokens/ci", "secret-a", NULL), 200);
    assert_int_equal(tls("GET", "/api/v1/vms", made, NULL), 401);
    assert_int_equal(tls("POST", "/api/v1/tokens", "secret-a", "{\"name\":\"x\",\"role\":\"root\"}"), 400);
}

static void objects(void **s)
{
    assert_int_equal(post("/api/v1/networks", "{\"name\":\"net1\",\"cidr\":\"198.18.1.0/24\",\"dns\":[\"198.18.1.1\"]}"), 200);
    assert_int_equal(post("/api/v1/vms", "{\"name\":\"web1\",\"memory_bytes\":536870912,\"disks\":[{\"size_bytes\":1073741824,\"replicas\":3}],\"networks\":[\"net1\"]}"), 200);
    char path[96];
    snprintf(path, sizeof path, "/api/v1/vms/%s", text("id"));
    assert_int_equal(get(path), 200); /* by id as well as by name */
    assert_string_equal(text("name"), "web1");
    assert_string_equal(text("state"), "stopped");
    assert_int_equal(get("/api/v1/ports"), 200);
    assert_string_equal(json_string_value(json_object_get(json_array_get(last.json, 0), "ip")), "198.18.1.2");
    assert_string_equal(json_string_value(json_object_get(json_array_get(last.json, 0), "vm")), "web1");
    assert_int_equal(post("/api/v1/vms/web1/start", NULL), 200);
    assert_int_equal(post("/api/v1/vms/web1/start", "{}"), 409);
    assert_string_equal(text("code"), "busy");
    assert_int_equal(get("/api/v1/vms/web1"), 200);
    assert_string_not_equal(text("host"), "");
    assert_int_equal(get("/api/v1/volumes/web1-disk0"), 200);
    assert_string_equal(text("health"), "healthy");
    assert_string_equal(text("vm"), "web1");
    assert_int_equal(del("/api/v1/vms/web1?disks=maybe"), 400);
    assert_int_equal(del("/api/v1/vms/web1?disks=true"), 409);
    assert_int_equal(get("/api/v1/events?limit=1"), 200);
    assert_int_equal(json_array_size(last.json), 1);
    assert_int_equal(get("/api/v1/disks"), 200);
    assert_int_equal(get("/api/v1/tasks"), 200);
    assert_int_equal(del("/api/v1/nodes/n1"), 409);
    assert_int_equal(post("/api/v1/tasks/none/cancel", "{}"), 404);
}

/* ---- uploads ---- */

static char *kernel(size_t len)
{
    char *k = xmalloc(len);
    for (size_t i = 0; i < len; i++)
        k[i] = (char)(i * 2654435761u >> 13);
    memcpy(k + 0x202, "HdrS", 4);
    return k;
}

static long put(const char *path, const char *data, size_t len)
{
    return perform((struct call){.method = "PUT", .path = path, .upload = data, .upload_len = len});
}

static void make_image(const char *name, size_t kernel_len, const char *sha)
{
    char body[400];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"kind\":\"kernel\",\"files\":[{\"name\":\"kernel\",\"size_bytes\":%zu%s%s%s},{\"name\":\"initrd\",\"size_bytes\":100}]}",
             name, kernel_len, sha ? ",\"sha256\":\"" : "", sha ? sha : "", sha ? "\"" : "");
    assert_int_equal(post("/api/v1/images", body), 200);
}

static void backups(void **s)
{
    static char file[4096];
    assert_int_equal(post("/api/v1/volumes", "{\"name\":\"v\",\"size_bytes\":1073741824,\"replicas\":1}"), 200);
    assert_int_equal(get("/api/v1/volumes/v/changed"), 400);
    assert_message("from=SNAPSHOT is missing");
    assert_int_equal(get("/api/v1/volumes/v/changed?from=v"), 404);
    assert_int_equal(post("/api/v1/volumes/v/flatten", NULL), 400);
    assert_int_equal(put("/api/v1/imports?name=w", file, sizeof file), 503);
}

static void upload(void **s)
{
    size_t len = 20u << 20 | 123;
    char *k = kernel(len), initrd[100] = "070701", want[65];
    unsigned char md[32];
    SHA256((unsigned char *)k, len, md);
    for (int i = 0; i < 32; i++)
        snprintf(want + 2 * i, 3, "%02x", md[i]);
    make_image("deb", len, want);
    assert_int_equal(put("/api/v1/images/deb/files/kernel", k, len - 1), 400);
    assert_message("Content-Length");
    assert_int_equal(put("/api/v1/images/deb/files/disk", k, len), 404);
    assert_int_equal(put("/api/v1/images/none/files/kernel", k, len), 404);
    assert_int_equal(perform((struct call){.method = "PUT", .path = "/api/v1/images/deb/files/kernel", .upload = k, .upload_len = len, .chunked = true}), 400);
    store.hold = true;
    each_turn = release_when_full;
    assert_int_equal(put("/api/v1/images/deb/files/kernel", k, len), 200);
    each_turn = NULL;
    assert_string_equal(text("sha256"), want);
    assert_int_equal(store.most, 4); /* several at once, never more than allowed */
    assert_memory_equal(store.data, k, len);
    assert_int_equal(put("/api/v1/images/deb/files/kernel", k, len), 409); /* there already */
    assert_int_equal(put("/api/v1/images/deb/files/initrd", initrd, sizeof initrd), 200);
    assert_int_equal(get("/api/v1/images/deb"), 200);
    assert_string_equal(text("state"), "ready");
    assert_int_equal(get("/api/v1/tasks"), 200);
    assert_string_equal(json_string_value(json_object_get(json_array_get(last.json, 0), "state")), "done");
    assert_int_equal(put("/api/v1/images/deb/files/initrd", initrd, sizeof initrd), 409);
    free(k);
}

static void not_an_image(void **s)
{
    size_t len = 3u << 20;
    char *junk = xcalloc(1, len);
    memset(junk, 'x', len);
    make_image("a", len, NULL);
    assert_int_equal(put("/api/v1/images/a/files/kernel", junk, len), 400);
    assert_message("not a Linux kernel");
    assert_int_equal(get("/api/v1/images/a"), 200);
    assert_string_equal(text("state"), "failed");
    assert_int_equal(put("/api/v1/images/a/files/kernel", junk, len), 409);
    assert_int_equal(del("/api/v1/images/a"), 200);
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"d\",\"kind\":\"disk\",\"files\":[{\"name\":\"disk\",\"size_bytes\":%zu}]}", len);
    assert_int_equal(post("/api/v1/images", body), 200);
    memcpy(junk, "QFI\xfb", 4);
    assert_int_equal(put("/api/v1/images/d/files/disk", junk, len), 400);
    assert_message("qcow2");
    assert_non_null(strstr(text("hint"), "qemu-img convert"));
    /* a wrong checksum ends the import too */
    char *k = kernel(len), sha[65];
    memset(sha, '0', 64);
    sha[64] = 0;
    make_image("b", len, sha);
    assert_int_equal(put("/api/v1/images/b/files/kernel", k, len), 400);
    assert_message("sha256");
    assert_int_equal(get("/api/v1/images/b"), 200);
    assert_string_equal(text("state"), "failed");
    free(k);
    free(junk);
}

static void storage_fails_then_works(void **s)
{
    size_t len = 5u << 20;
    char *k = kernel(len);
    make_image("a", len, NULL);
    store.fail = E_CORRUPT;
    assert_int_equal(put("/api/v1/images/a/files/kernel", k, len), 400);
    assert_message("write to the image's volume failed");
    store.fail = E_OK;
    assert_int_equal(put("/api/v1/images/a/files/kernel", k, len), 200); /* still importing: sent again */
    free(k);
}

static void client_leaves(void **s)
{
    size_t len = 20u << 20;
    char *k = kernel(len);
    make_image("a", len, NULL);
    store.hold = true; /* storage stalls: the server stops reading, the client gives up */
    each_turn = leave_when_full;
    assert_int_equal(perform((struct call){.method = "PUT", .path = "/api/v1/images/a/files/kernel", .upload = k, .upload_len = len}), -CURLE_ABORTED_BY_CALLBACK);
    each_turn = NULL;
    store_release();
    while (store.in_flight)
        uv_run(&w.loop, UV_RUN_ONCE);
    for (int i = 0; i < 20; i++) /* the connection's end is noticed */
        uv_run(&w.loop, UV_RUN_NOWAIT);
    long status = 0;
    for (int i = 0; i < 5000 && status != 200; i++) /* 409 while the old upload is being taken down */
        status = put("/api/v1/images/a/files/kernel", k, len);
    assert_int_equal(status, 200);
    assert_memory_equal(store.data, k, len);
    free(k);
    /* during an operation: it goes on */
    cdb_mem_park(w.d.db, true);
    each_turn = leave_when_waiting;
    assert_int_equal(perform((struct call){.method = "POST", .path = "/api/v1/volumes", .body = "{\"name\":\"v\",\"size_bytes\":1073741824}"}), -CURLE_ABORTED_BY_CALLBACK);
    each_turn = NULL;
    cdb_mem_park(w.d.db, false);
    for (int i = 0; i < 5000 && !cdb_find_name(twin_view(&w), CDB_T_VOLUME, "v"); i++)
        assert_int_equal(get("/api/v1/cluster"), 200);
    assert_non_null(cdb_find_name(twin_view(&w), CDB_T_VOLUME, "v"));
    /* and one that is still pending when the daemon stops */
    cdb_mem_park(w.d.db, true);
    each_turn = leave_when_waiting;
    assert_int_equal(perform((struct call){.method = "POST", .path = "/api/v1/volumes", .body = "{\"name\":\"x\",\"size_bytes\":1073741824}"}), -CURLE_ABORTED_BY_CALLBACK);
    each_turn = NULL;
}

/* An upload under way while the daemon stops. */
static void stop_during_upload(void **s)
{
    size_t len = 20u << 20;
    char *k = kernel(len);
    make_image("a", len, NULL);
    store.hold = true;
    each_turn = leave_when_full;
    assert_int_equal(perform((struct call){.method = "PUT", .path = "/api/v1/images/a/files/kernel", .upload = k, .upload_len = len}), -CURLE_ABORTED_BY_CALLBACK);
    each_turn = NULL;
    free(k);
}

/* ---- joining ---- */

static json_t *join_body(const char *secret, const char *node_id, const char *csr)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:I, s:s, s:s, s:s, s:[{s:s, s:s, s:s, s:I}]}", "secret", secret, "node_id", node_id,
                     "csr_pem", csr, "name", "n4", "address", "192.0.2.4", "control_port", 7700, "storage_port", 7701, "migrate_port", 7702,
                     "api_port", 7443, "cpus", 2, "memory_bytes", (json_int_t)GIB, "accel", "tcg", "accel_reason", "", "version", "0", "disks",
                     "name", "d0", "fast_path", "/f", "capacity_path", "/c", "size_bytes", (json_int_t)GIB);
}

static long join_request(json_t *body)
{
    char *t = json_dumps(body, 0);
    long status = tls("POST", "/api/v1/cluster/join-requests", NULL, t);
    free(t);
    return status;
}

static void admission(void **s)
{
    struct err e;
    char id[ID_LEN + 1], other[ID_LEN + 1], *key, *csr, *csr_other;
    const char *address = "192.0.2.4";
    struct join_token t;
    assert_int_equal(post("/api/v1/cluster/tokens", "{\"role\":\"admin\"}"), 400);
    assert_int_equal(post("/api/v1/cluster/tokens", "{\"role\":\"join\",\"ttl_s\":600}"), 200);
    assert_int_equal(token_parse(text("token"), &t, &e), E_OK);
    assert_string_equal(t.address, "127.0.0.1");
    assert_int_equal(t.port, port);
    id_new(id);
    id_new(other);
    assert_int_equal(pki_key_new(&key, &e), E_OK);
    assert_int_equal(pki_csr_new(key, id, 1, &address, &csr, &e), E_OK);
    assert_int_equal(pki_csr_new(key, other, 1, &address, &csr_other, &e), E_OK);
    json_t *body = join_body("wrong", id, csr);
    assert_int_equal(join_request(body), 401);
    json_decref(body);
    body = join_body(t.secret, id, csr_other); /* a request that names another node */
    assert_true(join_request(body) >= 400);
    json_decref(body);
    body = join_body(t.secret, id, "garbage");
    assert_int_equal(join_request(body), 400);
    json_decref(body);
    body = join_body(t.secret, id, csr);
    json_object_set_new(body, "address", json_string("not an address"));
    assert_int_equal(join_request(body), 400);
    json_object_set_new(body, "address", json_string(address));
    json_object_set_new(body, "extra", json_true());
    assert_int_equal(join_request(body), 400);
    json_object_del(body, "extra");
    assert_int_equal(cdb_node_count(twin_view(&w)), 3);
    assert_int_equal(join_request(body), 200);
    assert_string_equal(text("ca_pem"), ca_pem);
    assert_int_equal(pki_check(ca_pem, text("cert_pem"), key, id, &e), E_OK);
    assert_int_equal(json_array_size(json_object_get(last.json, "voters")), 3);
    assert_int_equal(join_request(body), 401); /* used up */
    json_decref(body);
    assert_non_null(cdb_node_get(twin_view(&w), id));
    free(key);
    free(csr);
    free(csr_other);
}

struct joining {
    struct join_token t;
    struct err err;
    int rc, finished;
};

static void join_thread(void *arg)
{
    struct joining *j = arg;
    char state[96];
    struct member_disk disk = {"d0", "/f", "/c", GIB};
    struct member_id id;
    snprintf(state, sizeof state, "%s/joiner", dir);
    struct member_conf c = {.state_dir = state, .run_dir = state, .node_name = "n4", .address = "127.0.0.1", .control_port = 1, .storage_port = 1,
                            .migrate_port = 1, .api_port = 1, .cpus = 1, .memory_bytes = GIB, .accel = "tcg", .accel_reason = "", .version = "0",
                            .n_disks = 1, .disks = &disk};
    mkdir(state, 0700);
    j->rc = join_cluster(&c, &j->t, &id, &j->err);
    __atomic_store_n(&j->finished, 1, __ATOMIC_RELEASE);
}

static int join_with(struct joining *j)
{
    uv_thread_t t;
    j->finished = 0;
    uv_thread_create(&t, join_thread, j);
    run_until(&j->finished);
    uv_thread_join(&t);
    return j->rc;
}

static void joiner_is_careful(void **s)
{
    struct err e;
    struct joining j = {0};
    char *other_ca, *other_key;
    assert_int_equal(pki_ca_new("other", &other_ca, &other_key, &e), E_OK);
    snprintf(j.t.address, sizeof j.t.address, "127.0.0.1");
    j.t.port = port;
    snprintf(j.t.secret, sizeof j.t.secret, "whatever");
    assert_int_equal(pki_fingerprint(other_ca, j.t.ca_sha256, &e), E_OK);
    assert_int_equal(join_with(&j), E_AUTH); /* wrong cluster: the secret is not sent */
    assert_non_null(strstr(j.err.msg, "another cluster"));
    assert_int_equal(pki_fingerprint(ca_pem, j.t.ca_sha256, &e), E_OK);
    assert_int_equal(join_with(&j), E_AUTH); /* right cluster, unknown token */
    assert_non_null(strstr(j.err.msg, "unknown or was used"));
    j.t.port = free_port();
    assert_int_equal(join_with(&j), E_UNAVAIL);
    assert_non_null(strstr(j.err.msg, "no answer from the member"));
    free(other_ca);
    free(other_key);
}

static void without_database(void **s)
{
    struct cdb_link *l = w.d.link;
    w.d.link = NULL;
    w.d.member = false;
    assert_int_equal(get("/api/v1/cluster"), 200);
    assert_true(json_is_false(json_object_get(last.json, "member")));
    assert_non_null(strstr(text("hint"), "cohort cluster init"));
    assert_int_equal(get("/api/v1/nodes"), 503);
    assert_int_equal(post("/api/v1/volumes", "{\"name\":\"v\",\"size_bytes\":1073741824}"), 503);
    w.d.link = l;
    w.d.member = true;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        T(routing),      T(bad_bodies), T(oversize),      T(identity),     T(objects),          T(upload), T(backups),
        T(not_an_image), T(storage_fails_then_works),     T(client_leaves), T(stop_during_upload), T(admission), T(joiner_is_careful), T(without_database),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return rc;
}
