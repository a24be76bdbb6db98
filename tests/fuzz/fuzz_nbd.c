/* An NBD client that says anything: the input is a program of pieces (kind, length, content): raw bytes, options and
 * requests with a proper header around odd values; parking and failures of the volume; the loop runs in between. Input that
 * starts with an even byte has the negotiation done for it. With its second bit the connection counts as TCP, which begins with
 * STARTTLS: the pieces then go through TLS, some of them as bytes that are none. The third bit leaves the client's certificate out,
 * the fourth takes one that is not the CA's, known for its fingerprint: what it may do changes as the program says. */
#include <assert.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"
#include "tests/lib/testcert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz {
    struct vol *vol;
    struct nbd_lookup *later;
    int given;
    bool closed;
    enum nbd_access access;
};

static void find(void *arg, const char *client, const char *name, struct nbd_lookup *l)
{
    struct fuzz *f = arg;
    if (name[0] == 'l' && !f->later) {
        f->later = l;
    } else if (name[0] == 'x') {
        nbd_lookup_done(l, E_NOTFOUND, NULL, "no such volume");
    } else {
        f->given++;
        nbd_lookup_done(l, E_OK, f->vol, NULL);
    }
}

static void release(void *arg, struct vol *v)
{
    ((struct fuzz *)arg)->given--;
}

static void list(void *arg, const char *client, struct nbd_list *l)
{
    nbd_list_add(l, "vol");
}

static void bases(void *arg, struct vol *v, struct nbd_bases *b)
{
    for (int i = 0; i < 10; i++)
        nbd_base_add(b, "s", "11111111-1111-1111-1111-111111111111");
}

static bool known(void *arg, const char *client)
{
    assert(strlen(client) == NBD_CLIENT_HEX);
    return true;
}

static enum nbd_access access_of(void *arg, const char *client, const struct vol *v)
{
    return ((struct fuzz *)arg)->access;
}

static void on_closed(void *arg)
{
    ((struct fuzz *)arg)->closed = true;
}

/* ---- the client's side of the connection ---- */

static struct client {
    int sock;
    SSL *ssl; /* NULL: plain */
} client;

static void turns(uv_loop_t *loop, int n)
{
    uint8_t sink[4096];
    ssize_t got;
    while (n--) {
        uv_run(loop, UV_RUN_NOWAIT);
        while (client.sock >= 0 && (got = recv(client.sock, sink, sizeof sink, MSG_DONTWAIT)) > 0)
            if (client.ssl)
                (void)!BIO_write(SSL_get_rbio(client.ssl), sink, (int)got);
        while (client.ssl && SSL_is_init_finished(client.ssl) && SSL_read(client.ssl, sink, sizeof sink) > 0) {
        }
    }
}

static void flush_tls(void)
{
    static char out[80000];
    int n = BIO_read(SSL_get_wbio(client.ssl), out, sizeof out);
    if (n > 0)
        (void)!send(client.sock, out, (size_t)n, MSG_NOSIGNAL);
}

static void say(const void *p, size_t n)
{
    if (client.ssl && SSL_is_init_finished(client.ssl)) {
        if (n)
            (void)!SSL_write(client.ssl, p, (int)n);
        flush_tls();
    } else {
        (void)!send(client.sock, p, n, MSG_NOSIGNAL);
    }
}

/* A CA, the server's files and the client's context, made once. */
static struct { char dir[64]; SSL_CTX *with, *without, *other, *server; } certs;

static void make_certs(void)
{
    char ca[128], cert[128], key[128];
    struct err e;
    strcpy(certs.dir, "/tmp/cohort-fuzz-nbd-XXXXXX");
    if (!mkdtemp(certs.dir))
        abort();
    testcert_ca(certs.dir, "t");
    testcert_node(certs.dir, "t", "node", "00000000-0000-4000-8000-000000000001", false);
    snprintf(ca, sizeof ca, "%s/t-ca.pem", certs.dir);
    snprintf(cert, sizeof cert, "%s/node.pem", certs.dir);
    snprintf(key, sizeof key, "%s/node.key", certs.dir);
    struct nbd_conf conf = {.tls_ca = ca, .tls_cert = cert, .tls_key = key};
    int rc = nbd_tls_open(&conf, &certs.server, &e);
    assert(!rc);
    certs.with = SSL_CTX_new(TLS_client_method());
    certs.without = SSL_CTX_new(TLS_client_method());
    certs.other = SSL_CTX_new(TLS_client_method());
    assert(SSL_CTX_use_certificate_file(certs.with, cert, SSL_FILETYPE_PEM) == 1 && SSL_CTX_use_PrivateKey_file(certs.with, key, SSL_FILETYPE_PEM) == 1);
    testcert_ca(certs.dir, "u");
    testcert_node(certs.dir, "u", "client", NULL, false);
    snprintf(cert, sizeof cert, "%s/client.pem", certs.dir);
    snprintf(key, sizeof key, "%s/client.key", certs.dir);
    assert(SSL_CTX_use_certificate_file(certs.other, cert, SSL_FILETYPE_PEM) == 1 && SSL_CTX_use_PrivateKey_file(certs.other, key, SSL_FILETYPE_PEM) == 1);
}

/* STARTTLS and the handshake, as far as it comes. */
static void start_tls(uv_loop_t *loop, SSL_CTX *ctx)
{
    uint8_t b[4 + 16], *p = put32(b, 3);
    p = put32(put32(put64(p, NBD_OPT_MAGIC), NBD_OPT_STARTTLS), 0);
    (void)!send(client.sock, b, sizeof b, MSG_NOSIGNAL);
    turns(loop, 3);
    client.ssl = SSL_new(ctx);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(client.ssl, in, out);
    SSL_set_connect_state(client.ssl);
    for (int i = 0; i < 6 && !SSL_is_init_finished(client.ssl); i++) {
        (void)!SSL_do_handshake(client.ssl);
        flush_tls();
        turns(loop, 2);
    }
}

static void negotiate(bool flags)
{
    static const char context[] = "base:allocation";
    uint8_t b[4 + 16 + 16 + 12 + sizeof context - 1 + 16 + 6], *p = flags ? put32(b, 3) : b;
    p = put32(put32(put64(p, NBD_OPT_MAGIC), NBD_OPT_STRUCTURED_REPLY), 0);
    p = put32(put32(put64(p, NBD_OPT_MAGIC), NBD_OPT_SET_META_CONTEXT), 12 + sizeof context - 1);
    p = put32(put32(put32(p, 0), 1), sizeof context - 1);
    memcpy(p, context, sizeof context - 1);
    p += sizeof context - 1;
    p = put32(put32(put64(p, NBD_OPT_MAGIC), NBD_OPT_GO), 6);
    p = put16(put32(p, 0), 0);
    say(b, (size_t)(p - b));
}

static void piece(struct vol *v, uint8_t kind, const uint8_t *in, uint8_t n)
{
    static uint8_t out[70000];
    uint8_t *p = out, fill[8] = {0};
    memcpy(fill, in, n < sizeof fill ? n : sizeof fill);
    switch (kind % 6) {
    case 0: /* an option: in[0] which, the rest its data */
        p = put32(put32(put64(p, NBD_OPT_MAGIC), fill[0] % 12), n ? n - 1u : 0);
        memcpy(p, in + 1, n ? n - 1u : 0);
        p += n ? n - 1 : 0;
        break;
    case 1: { /* a request with its payload: command, flags, offset and length in sectors, off by a little */
        uint16_t cmd = fill[0] % 8;
        uint32_t len = (uint32_t)fill[3] * 512 + (fill[4] > 240), payload = cmd == NBD_CMD_WRITE ? len : 0;
        uint64_t offset = (uint64_t)fill[2] * 5120 + (fill[5] > 240) - (fill[6] > 250 ? 1ull << 40 : 0);
        p = put32(put64(put64(put16(put16(put32(p, NBD_REQUEST_MAGIC), fill[1] & 7), cmd), fill[7]), offset), len);
        p += payload < sizeof out - 28 ? payload : 0;
        break;
    }
    case 2:
        vol_mem_park(v, n & 1);
        break;
    case 3:
        vol_mem_fail_next(v, n & 1 ? E_CANCELED : E_NOSPC);
        break;
    default:
        memcpy(p, in, n);
        p += n;
    }
    if (client.ssl && kind > 250)
        (void)!send(client.sock, out, (size_t)(p - out), MSG_NOSIGNAL); /* no TLS at all */
    else
        say(out, (size_t)(p - out));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uv_loop_t loop;
    struct fuzz f = {0};
    struct nbd_exports ex = {.find = find, .release = release, .list = list, .known = known, .access = access_of, .bases = bases, .arg = &f};
    int sv[2];
    signal(SIGPIPE, SIG_IGN);
    log_set_level("*", LOG_LVL_ERR);
    uv_loop_init(&loop);
    f.vol = vol_mem_new(&loop, 1 << 20);
    struct nbd_server *srv = nbd_server_new(&loop, &ex);
    int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv);
    assert(!rc);
    nbd_server_adopt(srv, sv[1]);
    client = (struct client){.sock = sv[0]};
    bool tls = size && data[0] & 2;
    if (tls) {
        if (!certs.server)
            make_certs();
        srv->tls = certs.server;
        LIST_FIRST(&srv->conn)->tcp = true;
        start_tls(&loop, data[0] & 8 ? certs.other : data[0] & 4 ? certs.without : certs.with);
    }
    f.access = size ? (data[0] >> 4) % 3u : 0;
    if (size && !(data[0] & 1))
        negotiate(!tls);
    for (size_t at = 1; at + 2 < size;) {
        uint8_t kind = data[at], n = data[at + 1];
        at += 2;
        n = n > size - at ? (uint8_t)(size - at) : n;
        piece(f.vol, kind, data + at, n);
        if (kind % 6 == 2) {
            f.access = (n >> 1) % 3u;
            nbd_server_recheck(srv);
        }
        at += n;
        turns(&loop, 2);
    }
    vol_mem_park(f.vol, false);
    if (f.later) {
        f.given++;
        nbd_lookup_done(f.later, E_OK, f.vol, NULL);
    }
    turns(&loop, 4);
    close(sv[0]);
    client.sock = -1;
    srv->tls = NULL; /* ours, for the next input */
    nbd_server_close(srv, on_closed, &f);
    turns(&loop, 20);
    SSL_free(client.ssl);
    client.ssl = NULL;
    assert(f.closed && f.given == 0); /* every volume was given back */
    vol_mem_free(f.vol);
    uv_run(&loop, UV_RUN_DEFAULT);
    rc = uv_loop_close(&loop);
    assert(!rc);
    return 0;
}
