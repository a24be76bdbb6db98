/* Index of shards, extents and dirty records. See index.h. */
#include "storage/asan/store/index.h"

#include <assert.h>
#include <stdlib.h>
#include "base/obj.h"
#include "storage/asan/store/aside.h"

static uint64_t shard_hash(const struct store_shard_id *id)
{
    return hash_u64(id_hash(&id->volume) ^ id->index);
}

static uint64_t ext_hash(const struct shard *sh, uint32_t index)
{
    return hash_u64((uint64_t)(uintptr_t)sh * 31 + index);
}

void index_init(struct index *x)
{
    *x = (struct index){.arrivals = 1};
    htab_init(&x->shards);
    htab_init(&x->exts);
    TAILQ_INIT(&x->dirty);
    TAILQ_INIT(&x->batches);
    TAILQ_INIT(&x->leaving);
    TAILQ_INIT(&x->hide);
    TAILQ_INIT(&x->forget);
    TAILQ_INIT(&x->asides);
}

struct shard *shard_find(const struct index *x, const struct store_shard_id *id)
{
    struct htab_node *n;
    HTAB_FOR_EACH_WITH_HASH (n, shard_hash(id), &x->shards) {
        struct shard *sh = container_of(n, struct shard, node);
        if (sh->id.index == id->index && id_equal(&sh->id.volume, &id->volume))
            return sh;
    }
    return NULL;
}

struct shard *index_shard(struct index *x, const struct store_shard_id *id)
{
    struct shard *sh = shard_find(x, id);
    if (sh)
        return sh;
    sh = xcalloc(1, sizeof *sh);
    sh->id = *id;
    TAILQ_INIT(&sh->tail);
    TAILQ_INIT(&sh->held);
    LIST_INIT(&sh->exts);
    htab_insert(&x->shards, &sh->node, shard_hash(id));
    return sh;
}

struct ext *ext_find(const struct index *x, const struct shard *sh, uint32_t index)
{
    struct htab_node *n;
    HTAB_FOR_EACH_WITH_HASH (n, ext_hash(sh, index), &x->exts) {
        struct ext *t = container_of(n, struct ext, node);
        if (t->shard == sh && t->index == index)
            return t;
    }
    return NULL;
}

struct ext *ext_get(struct index *x, struct shard *sh, uint32_t index)
{
    struct ext *t = ext_find(x, sh, index);
    if (t)
        return t;
    t = xcalloc(1, sizeof *t);
    t->shard = sh;
    t->index = index;
    t->place = PLACE_NONE;
    t->gen = ++x->gens;
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        TAILQ_INIT(&t->recs[c]);
    htab_insert(&x->exts, &t->node, ext_hash(sh, index));
    LIST_INSERT_HEAD(&sh->exts, t, of_shard);
    return t;
}

static void ext_free(struct index *x, struct ext *t)
{
    assert(!t->on_dirty && t->n_recs == 0 && !t->destaging);
    htab_remove(&x->exts, &t->node);
    LIST_REMOVE(t, of_shard);
    free(t->crc);
    free(t);
}

void ext_put(struct index *x, struct ext *t)
{
    if (!t->has_meta && !t->n_recs && !t->pending && !t->destaging && !t->counted)
        ext_free(x, t);
}

struct rec *rec_new(struct shard *sh, struct ext *t, struct store_version v, uint64_t offset, uint32_t length, uint8_t type)
{
    struct rec *r = OBJ_NEW(struct rec);
    r->shard = sh;
    r->ext = t;
    r->version = v;
    r->offset = offset;
    r->length = length;
    r->type = type;
    return r;
}

void rec_settle(struct index *x, struct rec *r)
{
    if (r->segs || r->in_tail || r->pins || r->destaging)
        return;
    if (!r->batch) {
        aside_settled(x, r);
        return;
    }
    TAILQ_REMOVE(&r->batch->recs, r, by_batch);
    if (r->placed)
        r->placed->recs--;
    OBJ_FREE(r);
}

struct batch *batch_new(struct index *x, uint64_t seq, uint64_t pos, uint64_t life)
{
    struct batch *b = OBJ_NEW(struct batch);
    b->seq = seq;
    b->pos = pos;
    b->life = life;
    TAILQ_INIT(&b->placed);
    TAILQ_INIT(&b->recs);
    TAILQ_INSERT_TAIL(&x->batches, b, entry);
    return b;
}

void batch_free(struct index *x, struct batch *b)
{
    struct placed *p;
    TAILQ_FOREACH (p, &b->placed, entry)
        p->pos = b->pos;
    TAILQ_CONCAT(&x->leaving, &b->placed, entry);
    TAILQ_REMOVE(&x->batches, b, entry);
    OBJ_FREE(b);
}

static void seg_free(struct seg *g)
{
    assert(g->rec->segs > 0);
    g->rec->segs--;
    OBJ_FREE(g);
}

/* `r` lost its last segment: it leaves the chunk's list and perhaps the extent the dirty list. */
static void rec_leave(struct index *x, struct rec *r)
{
    struct ext *t = r->ext;
    TAILQ_REMOVE(&t->recs[rec_chunk(r)], r, by_chunk);
    if (!r->placed)
        x->dirty_bytes -= r->length;
    else if (--r->placed->dirty == 0 && t->fresh == r->placed)
        t->fresh = NULL; /* superseded altogether, or destaged */
    r->ext = NULL;
    aside_hidden(x, r);
    if (--t->n_recs == 0 && t->on_dirty) {
        TAILQ_REMOVE(&x->dirty, t, dirty);
        t->on_dirty = false;
    }
    rec_settle(x, r);
}

static struct seg *seg_new(struct rec *r, uint32_t begin, uint32_t end, struct seg *next)
{
    struct seg *g = OBJ_NEW(struct seg);
    *g = (struct seg){.next = next, .rec = r, .begin = begin, .end = end};
    r->segs++;
    return g;
}

/* Cuts [begin, end) out of the list; returns where a segment of that range is to be linked. */
static struct seg **carve(struct index *x, struct seg **at, uint32_t begin, uint32_t end)
{
    while (*at && (*at)->end <= begin)
        at = &(*at)->next;
    struct seg *g = *at;
    if (g && g->begin < begin) {
        if (g->end > end) { /* the new one lies inside */
            g->next = seg_new(g->rec, end, g->end, g->next);
            g->end = begin;
            return &g->next;
        }
        g->end = begin;
        at = &g->next;
    }
    while ((g = *at) && g->begin < end) {
        if (g->end > end) {
            g->begin = end;
            break;
        }
        struct rec *r = g->rec;
        *at = g->next;
        seg_free(g);
        if (r->segs == 0)
            rec_leave(x, r);
    }
    return at;
}

static void show(struct index *x, struct rec *r)
{
    struct ext *t = r->ext;
    unsigned c = rec_chunk(r);
    uint32_t begin = (uint32_t)(r->offset % STORE_CHUNK), end = begin + r->length;
    assert(end <= STORE_CHUNK && r->length > 0);
    TAILQ_INSERT_TAIL(&t->recs[c], r, by_chunk);
    t->n_recs++;
    if (r->placed)
        r->placed->dirty++;
    else
        x->dirty_bytes += r->length;
    if (!t->on_dirty) {
        TAILQ_INSERT_TAIL(&x->dirty, t, dirty);
        t->on_dirty = true;
    }
    struct seg **at = carve(x, &t->segs[c], begin, end);
    *at = seg_new(r, begin, end, *at);
}

static void enter_tail(struct rec *r)
{
    if (!rec_is_copy(r) && store_version_cmp(r->version, r->shard->durable_last) > 0) {
        r->shard->durable_last = r->version;
        r->shard->progress_dirty = true;
    }
    if (!rec_is_copy(r) && store_version_cmp(r->version, r->shard->commit) > 0) {
        r->in_tail = true;
        TAILQ_INSERT_TAIL(&r->shard->tail, r, by_shard);
    }
}

void index_insert(struct index *x, struct rec *r)
{
    r->arrival = x->arrivals++;
    show(x, r);
    enter_tail(r);
}

void index_insert_aside(struct index *x, struct rec *r, bool shown)
{
    if (r->arrival >= x->arrivals)
        x->arrivals = r->arrival + 1;
    if (shown)
        show(x, r);
    enter_tail(r);
    rec_settle(x, r);
}

void index_insert_placed(struct index *x, struct placed *p)
{
    struct ext *t = p->part[0]->ext;
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        p->recs++;
        index_insert(x, p->part[c]);
        p->part[c] = NULL;
    }
    assert(!t->fresh); /* an older one has lost its last segment just now */
    t->fresh = p;
}

void index_remove(struct index *x, struct rec *r)
{
    struct seg **at = &r->ext->segs[rec_chunk(r)];
    while (r->segs > 0) {
        struct seg *g = *at;
        assert(g);
        if (g->rec != r) {
            at = &g->next;
            continue;
        }
        *at = g->next;
        seg_free(g);
    }
    rec_leave(x, r);
}

void index_commit(struct index *x, struct shard *sh, struct store_version mark)
{
    if (store_version_cmp(mark, sh->commit) <= 0)
        return;
    sh->commit = mark;
    sh->progress_dirty = true;
    struct rec *r;
    while ((r = TAILQ_FIRST(&sh->tail)) && store_version_cmp(r->version, mark) <= 0) {
        TAILQ_REMOVE(&sh->tail, r, by_shard);
        r->in_tail = false;
        rec_settle(x, r);
    }
}

static void tail_clear(struct index *x, struct shard *sh)
{
    struct rec *r;
    while ((r = TAILQ_FIRST(&sh->tail))) {
        TAILQ_REMOVE(&sh->tail, r, by_shard);
        r->in_tail = false;
        rec_settle(x, r);
    }
}

void index_drop(struct index *x, struct shard *sh, void (*place_gone)(void *arg, struct ext *t), void *arg)
{
    struct ext *t;
    tail_clear(x, sh);
    while ((t = LIST_FIRST(&sh->exts))) {
        assert(!t->pending && !t->destaging);
        for (unsigned c = 0; c < EXT_CHUNKS; c++)
            while (!TAILQ_EMPTY(&t->recs[c]))
                index_remove(x, TAILQ_FIRST(&t->recs[c]));
        if (place_gone)
            place_gone(arg, t);
        ext_free(x, t);
    }
    sh->last = sh->durable_last = sh->commit = (struct store_version){0, 0};
    sh->progress_dirty = false;
    sh->places = 0;
}

struct store_version index_version(const struct index *x, const struct shard *sh, uint64_t chunk)
{
    const struct ext *t = ext_find(x, sh, (uint32_t)(chunk / EXT_CHUNKS));
    if (!t)
        return (struct store_version){0, 0};
    const struct rec *r = TAILQ_LAST(&t->recs[chunk % EXT_CHUNKS], rec_list);
    return r ? r->version : t->version[chunk % EXT_CHUNKS];
}

void index_free(struct index *x)
{
    struct htab_node *n, *next;
    HTAB_FOR_EACH_SAFE (n, next, &x->shards) {
        struct shard *sh = container_of(n, struct shard, node);
        htab_remove(&x->shards, n);
        index_drop(x, sh, NULL, NULL);
        free(sh);
    }
    while (!TAILQ_EMPTY(&x->batches))
        batch_free(x, TAILQ_FIRST(&x->batches));
    struct placed *p;
    while ((p = TAILQ_FIRST(&x->leaving))) {
        TAILQ_REMOVE(&x->leaving, p, entry);
        free(p->block);
        free(p);
    }
    aside_free_all(x);
    htab_destroy(&x->shards);
    htab_destroy(&x->exts);
}
