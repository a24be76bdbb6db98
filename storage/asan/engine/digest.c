/* Replica side of consistency checks: a READ that is answered with the range's checksums instead of its bytes: a crc32c per
 * 4 KiB and, as a bit map, the blocks that cannot be read. One read for the whole range; only where that meets damage the blocks
 * are read one by one, to tell the bad ones from the rest. */
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "storage/asan/engine/priv.h"

struct digest {
    struct hreq *h;
    uint8_t *bytes;
    uint32_t block;              /* being read alone; UINT32_MAX: all at once */
    uint32_t n;
    struct repl_digest out;
};

static void next(struct digest *g);

static void end(struct digest *g, int status)
{
    struct hreq *h = g->h;
    if (!status) {
        for (uint32_t i = 0; i < g->n; i++)
            g->out.crc[i] = htole32(g->out.crc[i]);
        g->out.unreadable = htole64(g->out.unreadable);
        h->ans.data = iobuf_new(sizeof g->out);
        memcpy(h->ans.data->data, &g->out, sizeof g->out);
        h->ans.crc = crc32c(0, &g->out, sizeof g->out);
    }
    free(g->bytes);
    free(g);
    host_digest_done(h, status);
}

static void read_done(struct store_op *op, int status, const struct err *e)
{
    struct digest *g = op->arg;
    (void)e;
    if (status && status != E_CORRUPT) {
        end(g, status);
        return;
    }
    if (g->block == UINT32_MAX && !status) {
        for (uint32_t i = 0; i < g->n; i++)
            g->out.crc[i] = crc32c(0, g->bytes + (size_t)i * OWNER_CHECK_BLOCK, OWNER_CHECK_BLOCK);
        end(g, E_OK);
        return;
    }
    if (g->block != UINT32_MAX && status)
        g->out.unreadable |= 1ull << g->block;
    else if (g->block != UINT32_MAX)
        g->out.crc[g->block] = crc32c(0, g->bytes, OWNER_CHECK_BLOCK);
    if (++g->block == g->n)
        end(g, E_OK);
    else
        next(g);
}

static void next(struct digest *g)
{
    struct hreq *h = g->h;
    struct store_read *r = &h->st.read;
    bool all = g->block == UINT32_MAX;
    *r = (struct store_read){.op = {.done = read_done, .arg = g}, .shard = h->rs->id, .dst = g->bytes, .no_cache = true,
                             .offset = h->m.offset + (all ? 0 : (uint64_t)g->block * OWNER_CHECK_BLOCK),
                             .length = all ? h->m.length : OWNER_CHECK_BLOCK};
    store_read(h->rs->disk->store, r);
}

void digest_start(struct hreq *h)
{
    struct digest *g = xcalloc(1, sizeof *g);
    g->h = h;
    g->n = h->m.length / OWNER_CHECK_BLOCK;
    g->block = UINT32_MAX;
    g->bytes = xmalloc(h->m.length);
    next(g);
}
