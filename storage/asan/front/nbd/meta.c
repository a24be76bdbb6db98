/* Metadata contexts and block status. See conn.h; doc/proto.md, "Metadata querying" and "Block status".
 *
 * A context is a row of `contexts`: its name and what the volume's map says in its words. Its number in the protocol is
 * its place in the table + 1. Several contexts of one request are answered one after the other, each with a chunk of
 * its own, the last one with the done flag. */
#include <assert.h>
#include <stdlib.h>
#include "base/buf.h"
#include "storage/asan/front/nbd/conn.h"
#include "storage/asan/front/nbd/wire.h"

#define STATUS_MAX (256u << 20) /* bytes looked at per request: the client asks on from where the answer ends */
#define EXTENTS_MAX 8192u
_Static_assert(STATUS_MAX <= VOL_MAP_MAX, "one map per request");

static uint32_t allocation(uint8_t block)
{
    return block & VOL_MAP_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
}

static const struct nbd_context {
    const char *name;                /* "namespace:leaf" */
    uint32_t (*flags)(uint8_t block); /* of one byte of VOL_MAP */
} contexts[] = {
    {"base:allocation", allocation},
};
#define N_CONTEXTS (sizeof contexts / sizeof contexts[0])
_Static_assert(N_CONTEXTS <= 32, "a bit each");

/* --- negotiation --- */

/* A query names a context; in a list "namespace:" stands for all of that namespace. */
static uint32_t matching(bool set, const uint8_t *q, uint32_t len)
{
    uint32_t found = 0;
    for (unsigned i = 0; i < N_CONTEXTS; i++) {
        const char *name = contexts[i].name;
        bool all = !set && len && q[len - 1] == ':' && len < strlen(name);
        if ((all || len == strlen(name)) && !memcmp(name, q, len))
            found |= 1u << i;
    }
    return found;
}

bool nbd_meta_parse(bool set, const uint8_t *data, uint32_t len, const uint8_t **ret_name, uint32_t *ret_len,
                    uint32_t *ret_contexts)
{
    uint32_t name_len = len >= 8 ? get32(data) : UINT32_MAX, found = 0;
    if (len < 8 || name_len > len - 8 || !nbd_name_ok(data + 4, name_len))
        return false;
    uint32_t n = get32(data + 4 + name_len), at = 8 + name_len;
    if (!n && !set)
        found = (1u << N_CONTEXTS) - 1;
    for (; n; n--) {
        uint32_t q = len - at >= 4 ? get32(data + at) : UINT32_MAX;
        if (len - at < 4 || q > len - at - 4)
            return false;
        found |= matching(set, data + at + 4, q);
        at += 4 + q;
    }
    *ret_name = data + 4;
    *ret_len = name_len;
    *ret_contexts = found;
    return at == len;
}

void nbd_meta_found(struct nbd_conn *c, const struct nbd_lookup *l)
{
    bool set = l->opt == NBD_OPT_SET_META_CONTEXT;
    uint8_t out[4 + 64];
    for (unsigned i = 0; i < N_CONTEXTS; i++) {
        size_t n = strlen(contexts[i].name);
        if (!(l->contexts >> i & 1))
            continue;
        assert(n <= sizeof out - 4);
        memcpy(put32(out, set ? i + 1 : 0), contexts[i].name, n);
        nbd_reply(c, l->opt, NBD_REP_META_CONTEXT, out, (uint32_t)(4 + n));
    }
    nbd_reply(c, l->opt, NBD_REP_ACK, NULL, 0);
    if (!set)
        return;
    c->contexts = l->contexts;
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
    r->iov = (struct iovec){r->data->data, g.bytes / VOL_MAP_BLOCK};
    front_io_map(&r->io, r->c->vol, g.first, g.bytes, &r->iov, done);
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
        uint32_t flags = contexts[context].flags(map[i]);
        while (i < blocks && contexts[context].flags(map[i]) == flags)
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
