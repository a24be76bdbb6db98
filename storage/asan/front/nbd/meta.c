/* Metadata contexts and block status. See conn.h; doc/proto.md, "Metadata querying" and "Block status".
 *
 * Its number in the protocol is a context's bit in nbd_conn.contexts + 1: bit 0 is base:allocation, the others are
 * cohort:changed:SNAPSHOT, in the order in which they were chosen. Each has a map of its own (VOL_MAP, with `since` or
 * without) and is answered by a chunk of its own, the last one with the done flag. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/buf.h"
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"

#define STATUS_MAX (256u << 20) /* bytes looked at per request: the client asks on from where the answer ends */
#define EXTENTS_MAX 8192u
#define CONTEXT_NAME_MAX 256u
#define ALLOCATION "base:allocation"
#define CHANGED "cohort:changed:"
_Static_assert(STATUS_MAX <= VOL_MAP_MAX, "one map per request");
_Static_assert(NBD_SINCE_MAX < 32, "a bit each");

/* What a byte of the map says in the words of a context. */
static uint32_t state_of(unsigned context, uint8_t block)
{
    if (context)
        return block & VOL_MAP_CHANGED ? NBD_STATE_DIRTY : 0;
    return block & VOL_MAP_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
}

/* --- negotiation --- */

bool nbd_meta_parse(uint8_t *data, uint32_t len, const uint8_t **ret_name, uint32_t *ret_len, struct nbd_queries *ret_queries)
{
    uint32_t name_len = len >= 8 ? get32(data) : UINT32_MAX;
    if (len < 8 || name_len > len - 8 || !nbd_name_ok(data + 4, name_len))
        return false;
    uint32_t n = get32(data + 4 + name_len), at = 8 + name_len;
    struct nbd_queries queries = {n, len - at, data + at};
    for (; n; n--) {
        uint32_t q = len - at >= 4 ? get32(data + at) : UINT32_MAX;
        if (len - at < 4 || q > len - at - 4)
            return false;
        at += 4 + q;
    }
    *ret_name = data + 4;
    *ret_len = name_len;
    *ret_queries = queries;
    return at == len;
}

/* A query names a context; in a list "namespace:" or "cohort:changed:" stands for all that begin so, no query for all. */
static bool wanted(const struct nbd_lookup *l, const char *name)
{
    bool set = l->opt == NBD_OPT_SET_META_CONTEXT;
    size_t len = strlen(name);
    const uint8_t *q = l->queries.data;
    for (uint32_t i = 0; i < l->queries.n; i++) {
        uint32_t n = get32(q);
        bool all = !set && n && q[4 + n - 1] == ':' && n < len;
        if ((all || n == len) && !memcmp(q + 4, name, n))
            return true;
        q += 4 + n;
    }
    return !set && !l->queries.n;
}

struct nbd_bases {
    struct nbd_conn *c;
    const struct nbd_lookup *l;
    unsigned n; /* chosen */
};

static void offer(struct nbd_bases *b, const char *name, unsigned bit)
{
    uint8_t out[4 + CONTEXT_NAME_MAX];
    size_t n = strlen(name);
    bool set = b->l->opt == NBD_OPT_SET_META_CONTEXT;
    assert(n <= CONTEXT_NAME_MAX);
    memcpy(put32(out, set ? bit + 1 : 0), name, n);
    nbd_reply(b->c, b->l->opt, NBD_REP_META_CONTEXT, out, (uint32_t)(4 + n));
    if (set)
        b->c->contexts |= 1u << bit;
}

void nbd_base_add(struct nbd_bases *b, const char *name, const char *id)
{
    char full[CONTEXT_NAME_MAX];
    if (snprintf(full, sizeof full, CHANGED "%s", name) >= (int)sizeof full || !wanted(b->l, full) || b->n == NBD_SINCE_MAX)
        return;
    if (b->l->opt == NBD_OPT_SET_META_CONTEXT)
        snprintf(b->c->since[b->n++], sizeof *b->c->since, "%s", id);
    offer(b, full, b->n);
}

void nbd_meta_found(struct nbd_conn *c, const struct nbd_lookup *l, struct vol *v)
{
    bool set = l->opt == NBD_OPT_SET_META_CONTEXT;
    struct nbd_bases b = {c, l, 0};
    if (set)
        c->contexts = 0;
    if (wanted(l, ALLOCATION))
        offer(&b, ALLOCATION, 0);
    if (c->srv->exports.bases)
        c->srv->exports.bases(c->srv->exports.arg, v, &b);
    nbd_reply(c, l->opt, NBD_REP_ACK, NULL, 0);
    if (!set)
        return;
    free(c->meta_export);
    c->meta_export = xstrdup(l->name);
}

void nbd_meta_begin(struct nbd_conn *c, const char *name)
{
    if (!c->structured || (c->meta_export && strcmp(c->meta_export, name)))
        c->contexts = 0;
    free(c->meta_export);
    c->meta_export = NULL;
}

/* --- block status --- */

struct range { /* what is looked at: whole blocks */
    uint64_t first, bytes;
};

static struct range blocks_of(uint64_t offset, uint32_t length)
{
    uint64_t first = offset / VOL_MAP_BLOCK * VOL_MAP_BLOCK;
    uint64_t end = (offset + length + VOL_MAP_BLOCK - 1) / VOL_MAP_BLOCK * VOL_MAP_BLOCK;
    return (struct range){first, end - first < STATUS_MAX ? end - first : STATUS_MAX};
}

static uint32_t extents_max(const struct range *g)
{
    uint64_t n = g->bytes / VOL_MAP_BLOCK;
    return n < EXTENTS_MAX ? (uint32_t)n : EXTENTS_MAX;
}

uint32_t nbd_meta_bytes(uint64_t offset, uint32_t length)
{
    struct range g = blocks_of(offset, length);
    return (uint32_t)(g.bytes / VOL_MAP_BLOCK) + 4 + 8 * extents_max(&g);
}

void nbd_meta_start(struct nbd_req *r, front_io_done *done)
{
    struct range g = blocks_of(r->offset, r->length);
    unsigned context = (unsigned)__builtin_ctz(r->contexts);
    r->iov = (struct iovec){r->data->data, g.bytes / VOL_MAP_BLOCK};
    front_io_map(&r->io, r->c->vol, context ? r->c->since[context - 1] : NULL, g.first, g.bytes, &r->iov, done);
}

const uint8_t *nbd_meta_chunk(struct nbd_req *r)
{
    struct range g = blocks_of(r->offset, r->length);
    unsigned context = (unsigned)__builtin_ctz(r->contexts);
    uint32_t blocks = (uint32_t)(g.bytes / VOL_MAP_BLOCK), most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : extents_max(&g);
    const uint8_t *map = r->data->data;
    uint8_t *out = r->data->data + blocks, *p = put32(out, context + 1);
    uint64_t at = r->offset, end = r->offset + r->length;
    for (uint32_t i = 0, n = 0; i < blocks && n < most; n++) {
        uint32_t flags = state_of(context, map[i]);
        while (i < blocks && state_of(context, map[i]) == flags)
            i++;
        uint64_t stop = g.first + (uint64_t)i * VOL_MAP_BLOCK;
        stop = stop < end ? stop : end;
        p = put32(put32(p, (uint32_t)(stop - at)), flags);
        at = stop;
    }
    r->contexts &= r->contexts - 1;
    r->status_bytes = (uint32_t)(p - out);
    return out;
}
