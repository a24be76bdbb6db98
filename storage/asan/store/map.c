/* Which blocks hold data. Space is taken per extent, so all of a placed extent counts unless a zeroing that is still in the
 * journal covers it. Nothing is read: the answer comes from the index. */
#include <string.h>
#include "storage/asan/store/priv.h"

_Static_assert(STORE_MAP_BLOCK == FMT_BLOCK, "a block of the map is a block of the extent");

static void map_extent(const struct ext *t, uint8_t *blocks)
{
    memset(blocks, t->place != PLACE_NONE, EXT_BLOCKS);
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        uint8_t *chunk = blocks + c * CHUNK_BLOCKS;
        const struct seg *g;
        for (g = t->segs[c]; g; g = g->next) /* a block is empty only if one zeroing covers all of it */
            if (rec_is_zero(g->rec))
                for (uint32_t b = (g->begin + FMT_BLOCK - 1) / FMT_BLOCK; b < g->end / FMT_BLOCK; b++)
                    chunk[b] = 0;
        for (g = t->segs[c]; g; g = g->next)
            if (!rec_is_zero(g->rec))
                memset(chunk + g->begin / FMT_BLOCK, 1, (g->end - 1) / FMT_BLOCK - g->begin / FMT_BLOCK + 1);
    }
}

int store_map(const struct store *s, const struct store_shard_id *id, uint64_t offset, uint32_t length, uint8_t *ret)
{
    const struct shard *sh = shard_find(&s->index, id);
    if (!sh || !sh->exists || sh->dropping)
        return E_NOTFOUND;
    if (offset % FMT_BLOCK || length % FMT_BLOCK || offset > sh->shard_bytes || length > sh->shard_bytes - offset)
        return E_INVAL;
    for (uint64_t at = offset, end = offset + length; at < end;) {
        uint64_t border = (at / STORE_EXTENT + 1) * STORE_EXTENT, stop = end < border ? end : border;
        const struct ext *t = ext_find(&s->index, sh, (uint32_t)(at / STORE_EXTENT));
        uint8_t blocks[EXT_BLOCKS] = {0};
        if (t)
            map_extent(t, blocks);
        memcpy(ret, blocks + at % STORE_EXTENT / FMT_BLOCK, (stop - at) / FMT_BLOCK);
        ret += (stop - at) / FMT_BLOCK;
        at = stop;
    }
    return E_OK;
}
