/* Negotiation: greeting, client flags, options. See conn.h; messages per doc/proto.md, "Fixed newstyle negotiation".
 *
 * A lookup by name is asynchronous: the connection waits in NBD_LOOKUP and reads nothing meanwhile. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/log.h"
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"

LOG_MODULE("nbd");

#define OPT_DATA_MAX 8192u       /* more than any name with its information requests */
#define OPT_SKIP_MAX (1u << 20)  /* longer options are answered and skipped up to here, then the client is cut off */
#define INFO_REQS_MAX 64u

void nbd_greet(struct nbd_conn *c)
{
    uint8_t out[18];
    put16(put64(put64(out, NBD_MAGIC), NBD_OPT_MAGIC), NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_conn_send(c, out, sizeof out);
}

bool nbd_take_flags(struct nbd_conn *c)
{
    if (c->rlen < 4)
        return false;
    uint32_t flags = get32(c->rbuf + c->rpos);
    nbd_conn_consume(c, 4);
    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        nbd_conn_close(c);
        return false;
    }
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    sm_move(&c->sm, NBD_OPTIONS);
    return true;
}

void nbd_reply(struct nbd_conn *c, uint32_t opt, uint32_t type, const void *data, uint32_t len)
{
    uint8_t out[20 + 4 + NBD_NAME_MAX + 64];
    assert(len <= sizeof out - 20);
    memcpy(put32(put32(put32(put64(out, NBD_REP_MAGIC), opt), type), len), data ? data : "", len);
    nbd_conn_send(c, out, 20 + len);
}

static void reply_error(struct nbd_conn *c, uint32_t opt, uint32_t type, const char *msg)
{
    size_t n = strlen(msg);
    nbd_reply(c, opt, type, msg, n < NBD_NAME_MAX ? (uint32_t)n : NBD_NAME_MAX);
}

/* --- list --- */

struct nbd_list {
    struct nbd_conn *c;
};

void nbd_list_add(struct nbd_list *l, const char *name)
{
    uint8_t out[4 + NBD_NAME_MAX];
    size_t n = strlen(name);
    if (n > NBD_NAME_MAX)
        return;
    memcpy(put32(out, (uint32_t)n), name, n);
    nbd_reply(l->c, NBD_OPT_LIST, NBD_REP_SERVER, out, (uint32_t)(4 + n));
}

static void opt_list(struct nbd_conn *c, uint32_t len)
{
    struct nbd_list l = {c};
    if (len) {
        reply_error(c, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data");
    } else if (!c->srv->exports.list) {
        reply_error(c, NBD_OPT_LIST, NBD_REP_ERR_POLICY, "exports are not listed here");
    } else {
        c->srv->exports.list(c->srv->exports.arg, nbd_client(c), &l);
        nbd_reply(c, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
    }
}

/* --- choosing an export --- */

static uint16_t transmission_flags(const struct nbd_conn *c, const struct vol *v)
{
    return (uint16_t)(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                      NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | (c->structured ? NBD_FLAG_SEND_DF : 0) |
                      (v->read_only || c->read_only ? NBD_FLAG_READ_ONLY : 0));
}

static void begin(struct nbd_conn *c, const struct nbd_lookup *l, struct vol *v)
{
    c->vol = v;
    nbd_meta_begin(c, l->name);
    uv_timer_stop(&c->timer);
    if (c->sm.state != NBD_CLOSED)
        sm_move(&c->sm, NBD_TRANSMISSION);
}

static void found_old(struct nbd_conn *c, const struct nbd_lookup *l, struct vol *v)
{
    uint8_t out[10 + 124] = {0};
    put16(put64(out, v->size_bytes), transmission_flags(c, v));
    nbd_conn_send(c, out, c->no_zeroes ? 10 : sizeof out);
    begin(c, l, v);
}

static void send_info(struct nbd_conn *c, const struct nbd_lookup *l, const struct vol *v)
{
    uint8_t out[2 + NBD_NAME_MAX];
    put16(put64(put16(out, NBD_INFO_EXPORT), v->size_bytes), transmission_flags(c, v));
    nbd_reply(c, l->opt, NBD_REP_INFO, out, 12);
    put32(put32(put32(put16(out, NBD_INFO_BLOCK_SIZE), VOL_SECTOR), 4096), VOL_REQ_MAX);
    nbd_reply(c, l->opt, NBD_REP_INFO, out, 14);
    if (l->want_name) {
        size_t n = strlen(l->name);
        memcpy(put16(out, NBD_INFO_NAME), l->name, n);
        nbd_reply(c, l->opt, NBD_REP_INFO, out, (uint32_t)(2 + n));
    }
    nbd_reply(c, l->opt, NBD_REP_ACK, NULL, 0);
}

static void found(struct nbd_conn *c, struct nbd_lookup *l, struct vol *v)
{
    if (l->opt == NBD_OPT_EXPORT_NAME) {
        found_old(c, l, v);
        return;
    }
    if (l->opt == NBD_OPT_LIST_META_CONTEXT || l->opt == NBD_OPT_SET_META_CONTEXT)
        nbd_meta_found(c, l, v);
    else
        send_info(c, l, v);
    if (l->opt == NBD_OPT_GO) {
        begin(c, l, v);
        return;
    }
    c->srv->exports.release(c->srv->exports.arg, v);
    if (c->sm.state != NBD_CLOSED)
        sm_move(&c->sm, NBD_OPTIONS);
}

static void not_found(struct nbd_conn *c, struct nbd_lookup *l, int code, const char *msg)
{
    if (l->opt == NBD_OPT_EXPORT_NAME) { /* this option has no way to say no */
        nbd_conn_close(c);
        return;
    }
    uint32_t type = code == E_NOTFOUND ? NBD_REP_ERR_UNKNOWN
                    : code == E_PERM || code == E_AUTH ? NBD_REP_ERR_POLICY : NBD_REP_ERR_SHUTDOWN;
    if (type == NBD_REP_ERR_POLICY && !msg)
        msg = "this client's certificate gives no access to such an export: cohort nbd-client allow";
    reply_error(c, l->opt, type, msg ? msg : err_code_name(code));
    if (c->sm.state != NBD_CLOSED)
        sm_move(&c->sm, NBD_OPTIONS);
}

static void lookup_free(struct nbd_lookup *l)
{
    free(l->queries.data);
    free(l);
}

void nbd_lookup_done(struct nbd_lookup *l, int code, struct vol *v, const char *msg)
{
    assert(!l->answered && (code == E_OK) == (v != NULL));
    struct nbd_server *srv = l->srv;
    struct nbd_conn *c = l->c;
    l->answered = true;
    if (!c || srv->closing) {
        if (v)
            srv->exports.release(srv->exports.arg, v);
    } else {
        c->lookup = NULL;
        enum nbd_access may = v && nbd_client(c) ? srv->exports.access(srv->exports.arg, c->client, v) : NBD_READ_WRITE;
        if (!may) { /* taken away while it was looked for */
            srv->exports.release(srv->exports.arg, v);
            v = NULL;
            code = E_PERM;
            msg = NULL;
        }
        c->read_only = may == NBD_READ_ONLY;
        if (v)
            found(c, l, v);
        else
            not_found(c, l, code, msg);
    }
    srv->lookups--;
    if (!l->in_find) {
        lookup_free(l);
        if (c)
            nbd_conn_process(c);
        nbd_server_check_closed(srv);
    }
}

/* `queries`: NULL = none; copied. */
static void look_up(struct nbd_conn *c, uint32_t opt, const uint8_t *name, size_t len, bool want_name, const struct nbd_queries *queries)
{
    struct nbd_lookup *l = xcalloc(1, sizeof *l);
    l->c = c;
    l->srv = c->srv;
    l->opt = opt;
    l->want_name = want_name;
    if (queries) {
        l->queries = *queries;
        l->queries.data = xmalloc(queries->len + 1);
        memcpy(l->queries.data, queries->data, queries->len);
    }
    memcpy(l->name, name, len);
    c->lookup = l;
    c->srv->lookups++;
    sm_move(&c->sm, NBD_LOOKUP);
    l->in_find = true;
    c->srv->exports.find(c->srv->exports.arg, nbd_client(c), l->name, l);
    l->in_find = false;
    if (l->answered) /* inside find(): we are in the loop that takes the next option anyway */
        lookup_free(l);
}

bool nbd_name_ok(const uint8_t *name, size_t len)
{
    return len <= NBD_NAME_MAX && !memchr(name, 0, len);
}

/* NBD_OPT_INFO and NBD_OPT_GO: u32 name length, name, u16 count, count * u16. */
static void opt_info(struct nbd_conn *c, uint32_t opt, const uint8_t *data, uint32_t len)
{
    uint32_t name_len = len >= 6 ? get32(data) : UINT32_MAX;
    if (len < 6 || name_len > len - 6 || len - 6 - name_len != 2u * get16(data + 4 + name_len) ||
        !nbd_name_ok(data + 4, name_len) || get16(data + 4 + name_len) > INFO_REQS_MAX) {
        reply_error(c, opt, NBD_REP_ERR_INVALID, "malformed option");
        return;
    }
    bool want_name = false;
    for (uint32_t at = 4 + name_len + 2; at < len; at += 2)
        want_name |= get16(data + at) == NBD_INFO_NAME;
    look_up(c, opt, data + 4, name_len, want_name, NULL);
}

static void opt_meta(struct nbd_conn *c, uint32_t opt, uint8_t *data, uint32_t len)
{
    const uint8_t *name;
    uint32_t name_len;
    struct nbd_queries queries;
    bool set = opt == NBD_OPT_SET_META_CONTEXT;
    if (set && !c->structured)
        reply_error(c, opt, NBD_REP_ERR_INVALID, "structured replies must be negotiated first");
    else if (!nbd_meta_parse(data, len, &name, &name_len, &queries))
        reply_error(c, opt, NBD_REP_ERR_INVALID, "malformed option");
    else
        look_up(c, opt, name, name_len, false, &queries);
}

/* What came in clear text after the request would be taken for the client's: a man in the middle's chance. What was
 * negotiated before counts no more. */
static void opt_starttls(struct nbd_conn *c, uint32_t len)
{
    if (len || c->ssl) {
        reply_error(c, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, len ? "NBD_OPT_STARTTLS takes no data" : "this is TLS already");
    } else if (!c->srv->tls || !c->tcp) {
        reply_error(c, NBD_OPT_STARTTLS, c->srv->tls ? NBD_REP_ERR_POLICY : NBD_REP_ERR_UNSUP, "no TLS here");
    } else if (c->rlen) {
        log_info("client cut off: data behind NBD_OPT_STARTTLS");
        nbd_conn_close(c);
    } else {
        nbd_reply(c, NBD_OPT_STARTTLS, NBD_REP_ACK, NULL, 0);
        if (c->sm.state == NBD_CLOSED)
            return;
        c->structured = false;
        c->contexts = 0;
        free(c->meta_export);
        c->meta_export = NULL;
        nbd_tls_start(c);
    }
}

/* Over TCP nothing is told before the client has shown its certificate. */
static bool refuse_plain(struct nbd_conn *c, uint32_t opt)
{
    if (!c->srv->tls || !c->tcp || c->ssl || opt == NBD_OPT_STARTTLS || opt == NBD_OPT_ABORT)
        return false;
    if (opt == NBD_OPT_EXPORT_NAME)
        nbd_conn_close(c);
    else
        reply_error(c, opt, NBD_REP_ERR_TLS_REQD, "TLS with a certificate that this cluster knows is needed");
    return true;
}

static void take(struct nbd_conn *c, uint32_t opt, uint8_t *data, uint32_t len)
{
    if (refuse_plain(c, opt))
        return;
    switch (opt) {
    case NBD_OPT_EXPORT_NAME:
        if (nbd_name_ok(data, len))
            look_up(c, opt, data, len, false, NULL);
        else
            nbd_conn_close(c);
        break;
    case NBD_OPT_ABORT:
        nbd_reply(c, opt, NBD_REP_ACK, NULL, 0);
        nbd_conn_close(c);
        break;
    case NBD_OPT_LIST:
        opt_list(c, len);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        opt_info(c, opt, data, len);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        opt_meta(c, opt, data, len);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        c->structured = c->structured || !len;
        nbd_reply(c, opt, len ? NBD_REP_ERR_INVALID : NBD_REP_ACK, NULL, 0);
        break;
    case NBD_OPT_STARTTLS:
        opt_starttls(c, len);
        break;
    default:
        reply_error(c, opt, NBD_REP_ERR_UNSUP, "option not supported");
        break;
    }
}

bool nbd_take_option(struct nbd_conn *c)
{
    if (c->rlen < NBD_OPT_BYTES)
        return false;
    const uint8_t *p = c->rbuf + c->rpos;
    uint32_t opt = get32(p + 8), len = get32(p + 12);
    if (get64(p) != NBD_OPT_MAGIC || len > OPT_SKIP_MAX) {
        nbd_conn_close(c);
        return false;
    }
    if (len > OPT_DATA_MAX) {
        nbd_conn_consume(c, NBD_OPT_BYTES);
        c->skip = len;
        reply_error(c, opt, NBD_REP_ERR_TOO_BIG, "option too long");
        if (opt == NBD_OPT_EXPORT_NAME)
            nbd_conn_close(c);
        return c->sm.state != NBD_CLOSED;
    }
    if (c->rlen < NBD_OPT_BYTES + len)
        return false;
    uint8_t data[OPT_DATA_MAX];
    memcpy(data, p + NBD_OPT_BYTES, len);
    nbd_conn_consume(c, NBD_OPT_BYTES + len);
    take(c, opt, data, len);
    return c->sm.state != NBD_CLOSED;
}
