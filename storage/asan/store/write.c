/* Writes and copies: checked, cut at chunk borders, appended to the journal, entered into the index when durable. */
#include <assert.h>
#include <stdlib.h>
#include "base/obj.h"
#include "storage/asan/store/aside.h"
#include "storage/asan/store/direct.h"

static bool goes_direct(const struct direct_plan *d, uint64_t ext) { return d && ext - d->first < d->n; }

/* Extents of the range that have no place and none counted, but for those that go past the journal. */
static uint64_t places_needed(const struct store *s, const struct shard *sh, uint64_t offset, uint64_t length, const struct direct_plan *d)
{
    uint64_t need = 0;
    for (uint32_t i = (uint32_t)(offset / STORE_EXTENT); i <= (uint32_t)((offset + length - 1) / STORE_EXTENT); i++) {
        const struct ext *t = goes_direct(d, i) ? NULL : ext_find(&s->index, sh, i);
        need += !goes_direct(d, i) && (!t || (t->place == PLACE_NONE && !t->counted));
    }
    return need;
}

bool store_room(struct store *s, const struct store_shard_id *id, uint64_t offset, uint32_t length, bool use_reserve)
{
    const struct shard *sh = shard_find(&s->index, id);
    if (!length)
        return true;
    return places_room(&s->places, sh ? places_needed(s, sh, offset, length, NULL) : length / STORE_EXTENT + 2, use_reserve);
}

/* Counts a place for every extent of the range that will need its first one. */
static int reserve(struct store *s, struct shard *sh, uint64_t offset, uint64_t length, const struct direct_plan *d, struct err *e)
{
    uint32_t first = (uint32_t)(offset / STORE_EXTENT), last = (uint32_t)((offset + length - 1) / STORE_EXTENT);
    uint64_t need = places_needed(s, sh, offset, length, d);
    int rc = need ? places_reserve(&s->places, need, e) : E_OK;
    for (uint32_t i = first; i <= last && rc == E_OK && need; i++) {
        if (goes_direct(d, i))
            continue;
        struct ext *t = ext_get(&s->index, sh, i);
        if (t->place == PLACE_NONE)
            t->counted = true;
    }
    return rc;
}

struct append { struct store_op *op; struct shard *sh; struct store_version version; uint64_t offset; uint32_t length, crc;
                uint8_t type; uint16_t lost; struct iobuf *data; size_t data_off; const uint32_t *blocks; const struct direct_plan *direct; };

/* crc of a piece of the data: put together from those of its blocks where they are known. */
static uint32_t piece_crc(const struct append *a, uint64_t at, uint32_t n)
{
    uint32_t pos = (uint32_t)(at - a->offset), crc = 0;
    if (n == a->length)
        return a->crc;
    if (!a->blocks)
        return crc32c(0, a->data->data + a->data_off + pos, n);
    for (uint32_t b = pos / FMT_BLOCK; b < (pos + n) / FMT_BLOCK; b++)
        crc = crc32c_join(crc, a->blocks[b], FMT_BLOCK);
    return crc;
}

static struct rec *next_rec(struct store *s, const struct append *a, uint64_t at, uint32_t *ret_n)
{
    uint64_t end = a->offset + a->length, border = (at / STORE_CHUNK + 1) * STORE_CHUNK, ext = at / STORE_EXTENT;
    uint32_t n = *ret_n = (uint32_t)((end < border ? end : border) - at);
    struct ext *t = ext_get(&s->index, a->sh, (uint32_t)ext);
    uint64_t place = goes_direct(a->direct, ext) ? a->direct->place[ext - a->direct->first] : PLACE_NONE;
    if (place != PLACE_NONE) {
        *ret_n = STORE_EXTENT;
        return placed_new(s, a->sh, t, a->version, place, a->blocks + (at - a->offset) / FMT_BLOCK);
    }
    struct rec *r = rec_new(a->sh, t, a->version, at, n, goes_direct(a->direct, ext) ? FMT_ZERO : a->type);
    r->lost = a->lost; /* of a copy: one chunk, one record */
    if (!rec_is_zero(r)) {
        r->data = iobuf_ref(a->data);
        r->data_off = a->data_off + (at - a->offset);
        r->crc = piece_crc(a, at, n);
    }
    return r;
}

static void append(struct store *s, const struct append *a)
{
    uint64_t at = a->offset, end = a->offset + a->length;
    struct rec_list recs = TAILQ_HEAD_INITIALIZER(recs);
    while (at < end) {
        uint32_t n;
        struct rec *r = next_rec(s, a, at, &n);
        r->flags = (at == a->offset ? FMT_FIRST : 0) | (at + n == end ? FMT_LAST : 0);
        if (r->flags & FMT_LAST)
            r->op = a->op;
        r->ext->pending++;
        a->sh->pending++;
        TAILQ_INSERT_TAIL(&recs, r, queue);
        at += n;
    }
    direct_append(s, a->sh, &recs, a->data, a->data ? a->data->data + a->data_off : NULL, a->offset);
    uring_wake(&s->uring);
}

/* The shard an operation names, if it may be used now. */
static struct shard *usable(struct store *s, const struct store_shard_id *id, int *ret_status, struct err *e)
{
    char text[ID_LEN + 1];
    struct shard *sh = shard_find(&s->index, id);
    *ret_status = E_OK;
    if (!sh || !sh->exists || sh->dropping)
        *ret_status = err_set(e, E_NOTFOUND, SHARD_FMT ": not on this disk", SHARD_ARG(id, text));
    return *ret_status == E_OK ? sh : NULL;
}

/* `blocks`: NULL, or gets the crc of each block of the data. */
static int check_data(const struct store_shard_id *id, uint64_t offset, const struct iobuf *data, size_t data_off,
                      uint32_t length, uint32_t crc, uint32_t *blocks, struct err *e)
{
    char text[ID_LEN + 1];
    if (!data || data_off > data->cap || length > data->cap - data_off)
        return err_set(e, E_INVAL, SHARD_FMT " offset %llu: less data than announced", SHARD_ARG(id, text),
                       (unsigned long long)offset);
    if (blocks && data->summed && data_off % FMT_BLOCK == 0) { /* with `crc` made of them, just now */
        memcpy(blocks, data->sum + data_off / FMT_BLOCK, length / FMT_BLOCK * sizeof *blocks);
        return E_OK;
    }
    uint32_t is = 0;
    for (uint32_t i = 0; blocks && i < length / FMT_BLOCK; i++) {
        blocks[i] = crc32c(0, data->data + data_off + (size_t)i * FMT_BLOCK, FMT_BLOCK);
        is = crc32c_join(is, blocks[i], FMT_BLOCK);
    }
    if (!blocks)
        is = crc32c(0, data->data + data_off, length);
    if (is != crc)
        return err_set(e, E_CORRUPT, SHARD_FMT " offset %llu: data were damaged on their way here", SHARD_ARG(id, text),
                       (unsigned long long)offset);
    return E_OK;
}

static int check_write(const struct store_write *w, const struct shard *sh, uint32_t *blocks, struct err *e)
{
    char text[ID_LEN + 1];
    if (w->version.epoch < sh->epoch)
        return err_set(e, E_STALE, SHARD_FMT ": write of epoch %llu, installed is %llu", SHARD_ARG(&w->shard, text),
                       (unsigned long long)w->version.epoch, (unsigned long long)sh->epoch);
    if (w->version.epoch > sh->epoch || store_version_cmp(w->version, sh->last) <= 0)
        return err_set(e, E_INVAL, SHARD_FMT ": write %llu.%llu is out of order, last is %llu.%llu, epoch %llu",
                       SHARD_ARG(&w->shard, text), (unsigned long long)w->version.epoch, (unsigned long long)w->version.seq,
                       (unsigned long long)sh->last.epoch, (unsigned long long)sh->last.seq, (unsigned long long)sh->epoch);
    if (w->offset % 512 || w->length % 512 || w->length == 0 || w->length > STORE_WRITE_MAX || w->offset > sh->shard_bytes
        || w->length > sh->shard_bytes - w->offset)
        return err_set(e, E_INVAL, SHARD_FMT ": bad range %llu+%u", SHARD_ARG(&w->shard, text), (unsigned long long)w->offset,
                       w->length);
    return w->zero ? E_OK : check_data(&w->shard, w->offset, w->data, w->data_off, w->length, w->crc, blocks, e);
}

void store_write(struct store *s, struct store_write *w)
{
    struct err e;
    int rc;
    uint32_t crc[STORE_WRITE_MAX / FMT_BLOCK], *blocks = NULL;
    struct direct_plan direct = {.n = 0};
    if (store_refuses(s, &w->op))
        return;
    struct shard *sh = usable(s, &w->shard, &rc, &e);
    if (w->length > STORE_CHUNK && w->length <= STORE_WRITE_MAX && (w->offset | w->length) % FMT_BLOCK == 0)
        blocks = crc;
    if (sh)
        rc = check_write(w, sh, blocks, &e);
    if (rc == E_OK && blocks)
        direct_choose(s, w, &direct);
    if (rc == E_OK && !w->zero)
        rc = reserve(s, sh, w->offset, w->length, &direct, &e);
    if (rc < 0) {
        direct_give_back(s, &direct);
        op_later(s, &w->op, rc, &e);
        return;
    }
    if (w->commit_seq)
        store_commit_mark(s, &w->shard, (struct store_version){w->version.epoch, w->commit_seq});
    sh->last = w->version;
    append(s, &(struct append){.op = &w->op, .sh = sh, .version = w->version, .offset = w->offset, .length = w->length,
                               .crc = w->crc, .type = w->zero ? FMT_ZERO : FMT_WRITE, .data = w->data, .data_off = w->data_off,
                               .blocks = blocks, .direct = &direct});
}

void store_copy(struct store *s, struct store_copy *c)
{
    struct err e;
    int rc;
    char text[ID_LEN + 1];
    if (store_refuses(s, &c->op))
        return;
    struct shard *sh = usable(s, &c->shard, &rc, &e);
    if (sh && c->chunk >= (sh->shard_bytes + STORE_CHUNK - 1) / STORE_CHUNK)
        rc = err_set(&e, E_INVAL, SHARD_FMT ": no chunk %llu", SHARD_ARG(&c->shard, text), (unsigned long long)c->chunk);
    uint64_t offset = c->chunk * STORE_CHUNK;
    if (rc == E_OK && c->zero && c->lost)
        rc = err_set(&e, E_INVAL, SHARD_FMT ": a chunk of zeroes with lost blocks", SHARD_ARG(&c->shard, text));
    if (rc == E_OK && !c->zero)
        rc = check_data(&c->shard, offset, c->data, c->data_off, STORE_CHUNK, c->crc, NULL, &e);
    if (rc == E_OK && !c->zero)
        rc = reserve(s, sh, offset, STORE_CHUNK, NULL, &e);
    if (rc < 0) {
        op_later(s, &c->op, rc, &e);
        return;
    }
    append(s, &(struct append){.op = &c->op, .sh = sh, .version = c->version, .offset = offset, .length = STORE_CHUNK,
                               .crc = c->crc, .type = c->zero ? FMT_COPY_ZERO : FMT_COPY, .lost = c->lost, .data = c->data, .data_off = c->data_off});
}

void store_commit_mark(struct store *s, const struct store_shard_id *id, struct store_version mark)
{
    struct shard *sh = shard_find(&s->index, id);
    if (!sh || !sh->exists)
        return;
    index_commit(&s->index, sh, mark);
    if (s->journal.stuck)
        destage_kick(s);
}

/* ---- the journal's answers ---- */

static void no_longer_pending(struct rec *r)
{
    assert(r->ext->pending > 0 && r->shard->pending > 0);
    r->ext->pending--;
    r->shard->pending--;
    iobuf_unref(r->data);
    r->data = NULL;
}

void write_durable(void *arg, struct rec *r)
{
    struct store *s = arg;
    TAILQ_INSERT_TAIL(&s->parts, r, queue);
    no_longer_pending(r);
    if (!(r->flags & FMT_LAST))
        return;
    struct store_op *op = r->op;
    struct shard *sh = r->shard;
    while ((r = TAILQ_FIRST(&s->parts))) {
        TAILQ_REMOVE(&s->parts, r, queue);
        r->op = NULL;
        if (!r->placed) {
            index_insert(&s->index, r);
            continue;
        }
        free(r->placed->block);
        r->placed->block = NULL;
        index_insert_placed(&s->index, r->placed);
    }
    op->done(op, E_OK, NULL);
    if (sh->dropping && sh->pending == 0)
        fence_kick(s);
    if (s->destage.wait_head || journal_used(&s->journal) > s->journal.ring_bytes / 4 || direct_wants_destage(s))
        destage_kick(s);
    if (s->closing)
        store_close_check(s);
}

/* Of a store that has failed or closes: its batch, if it was in one, is not trimmed any more. */
static void rec_free(struct store *s, struct rec *r)
{
    struct placed *p = r->placed;
    for (unsigned c = 0; r->batch && c < (p ? EXT_CHUNKS : 1); c++)
        TAILQ_REMOVE(&r->batch->recs, p ? p->part[c] : r, by_batch);
    for (unsigned c = 1; p && c < EXT_CHUNKS; c++)
        OBJ_FREE(p->part[c]);
    if (p && !r->batch) {
        s->index.n_placed--;
        free(p->block);
        free(p);
    }
    OBJ_FREE(r);
}

void write_fail_rec(struct store *s, struct rec *r, int code, const struct err *e)
{
    struct ext *t = r->ext;
    no_longer_pending(r);
    if (r->op)
        op_later(s, r->op, code, e);
    rec_free(s, r);
    ext_put(&s->index, t);
}

void write_fail_pending(struct store *s, int code, const struct err *e)
{
    struct rec *r;
    while ((r = TAILQ_FIRST(&s->parts))) {
        TAILQ_REMOVE(&s->parts, r, queue);
        rec_free(s, r);
    }
    while ((r = journal_take_pending(&s->journal)))
        write_fail_rec(s, r, code, e);
}

void write_failed(void *arg, int status)
{
    struct store *s = arg;
    struct err e;
    int code = err_sys(&e, -status, "write %s", s->journal.dev.path);
    store_fail(s, code, &e);
    write_fail_pending(s, code, &s->failure);
    if (s->closing)
        store_close_check(s);
}

/* The large write that a record found by replay tells of: its place is taken from now on, if the extent does not have it already. */
static int replay_placed(struct store *s, struct shard *sh, const struct journal_found *f, struct err *e)
{
    struct ext *t = ext_get(&s->index, sh, (uint32_t)(le64toh(f->rec.offset) / STORE_EXTENT));
    int rc = E_OK;
    if (t->place != f->place)
        rc = places_mark(&s->places, f->place, e);
    else if (t->home)
        rc = err_set(e, E_CORRUPT, "two records name place %llu", (unsigned long long)f->place);
    if (rc < 0) {
        err_wrap(e, "%s", s->journal.dev.path);
        ext_put(&s->index, t);
        return rc;
    }
    struct placed *p = placed_new(s, sh, t, (struct store_version){le64toh(f->rec.epoch), le64toh(f->rec.seq)}, f->place, f->crc)->placed;
    if (t->place == f->place)
        direct_adopted(t, p);
    for (unsigned c = 0; c < EXT_CHUNKS; c++) {
        p->part[c]->batch = f->batch;
        TAILQ_INSERT_TAIL(&f->batch->recs, p->part[c], by_batch);
        p->part[c]->flags = f->rec.flags;
    }
    TAILQ_INSERT_TAIL(&f->batch->placed, p, entry);
    if (store_version_cmp(p->version, sh->last) > 0)
        sh->last = p->version;
    index_insert_placed(&s->index, p);
    return E_OK;
}

/* One record that replay found. */
int write_replay(void *arg, const struct journal_found *f, struct err *e)
{
    struct store *s = arg;
    const struct fmt_record *d = &f->rec;
    struct store_shard_id id = {.index = le32toh(d->shard)};
    char text[ID_LEN + 1];
    memcpy(id.volume.b, d->volume, 16);
    uint64_t offset = le64toh(d->offset);
    uint32_t length = le32toh(d->length);
    struct shard *sh = shard_find(&s->index, &id);
    if (sh && f->batch->pos < sh->floor_pos)
        return E_OK; /* of a predecessor that was dropped */
    if (!sh || !sh->exists)
        return err_set(e, E_CORRUPT, "%s has a record of " SHARD_FMT ", which the metadata do not know", s->journal.dev.path,
                       SHARD_ARG(&id, text));
    uint64_t limit = (sh->shard_bytes + STORE_CHUNK - 1) / STORE_CHUNK * STORE_CHUNK;
    if (offset > limit || length > limit - offset)
        return err_set(e, E_CORRUPT, "%s: a record of " SHARD_FMT " lies outside it", s->journal.dev.path, SHARD_ARG(&id, text));
    index_commit(&s->index, sh, (struct store_version){le64toh(d->commit_epoch), le64toh(d->commit_seq)});
    if (d->type == FMT_PLACED)
        return replay_placed(s, sh, f, e);
    bool zero = d->type == FMT_ZERO || d->type == FMT_COPY_ZERO;
    int rc = zero ? E_OK : reserve(s, sh, offset, length, NULL, e);
    if (rc < 0)
        return rc;
    struct store_version v = {le64toh(d->epoch), le64toh(d->seq)};
    struct rec *r = rec_new(sh, ext_get(&s->index, sh, (uint32_t)(offset / STORE_EXTENT)), v, offset, length, d->type);
    r->crc = le32toh(d->crc);
    r->file_off = f->file_off;
    r->batch = f->batch;
    TAILQ_INSERT_TAIL(&r->batch->recs, r, by_batch);
    r->flags = d->flags;
    r->lost = le16toh(d->lost);
    if (!rec_is_copy(r) && store_version_cmp(v, sh->last) > 0)
        sh->last = v;
    index_insert(&s->index, r);
    return E_OK;
}

/* A record that the metadata say was set aside. What is in the journal arrived later. */
int write_replay_aside(struct store *s, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e)
{
    char text[ID_LEN + 1];
    struct shard *sh = shard_find(&s->index, id);
    if (!sh || !sh->exists || a->offset + a->length > (sh->shard_bytes + STORE_CHUNK - 1) / STORE_CHUNK * STORE_CHUNK)
        return err_set(e, E_CORRUPT, "metadata of %s: a record set aside lies outside " SHARD_FMT, s->capacity, SHARD_ARG(id, text));
    struct rec *r = rec_new(sh, NULL, a->version, a->offset, a->length, a->type);
    r->crc = a->crc;
    r->lost = a->lost;
    r->arrival = arrival;
    r->keyed = true;
    r->shown = a->shown;
    r->batch_seq = a->batch_seq;
    bool in_journal = a->batch_seq >= le64toh(s->journal.sb.trim_seq); /* and so is all that arrived later */
    int rc = in_journal ? E_OK : aside_open(s, r, a->data_at, e);
    if (rc == E_OK && a->shown && !in_journal && !rec_is_zero(r))
        rc = reserve(s, sh, r->offset, r->length, NULL, e);
    if (rc < 0) {
        OBJ_FREE(r);
        return rc;
    }
    if (in_journal) { /* only its key is left to go */
        if (arrival >= s->index.arrivals)
            s->index.arrivals = arrival + 1;
        rec_settle(&s->index, r);
        return E_OK;
    }
    s->index.aside_bytes += r->length;
    r->ext = a->shown ? ext_get(&s->index, sh, (uint32_t)(r->offset / STORE_EXTENT)) : NULL;
    if (!rec_is_copy(r) && store_version_cmp(r->version, sh->last) > 0)
        sh->last = r->version;
    index_insert_aside(&s->index, r, a->shown);
    return E_OK;
}

/* ---- shard state and owner change ---- */

void store_shard_info(const struct store *s, const struct store_shard_id *id, struct store_shard_info *ret)
{
    const struct shard *sh = shard_find(&s->index, id);
    *ret = (struct store_shard_info){.exists = false};
    if (!sh)
        return;
    *ret = (struct store_shard_info){.exists = sh->exists && !sh->dropping, .epoch = sh->epoch, .shard_bytes = sh->shard_bytes,
                                     .last = sh->last, .commit = sh->commit};
}

void store_io_stats(struct store *s, uint64_t *ret_n, uint64_t *ret_sum_us, uint64_t *ret_oldest_ms)
{
    uring_stats(&s->uring, ret_n, ret_sum_us, ret_oldest_ms);
}

void store_each_shard(const struct store *s, void (*fn)(void *arg, const struct store_shard_id *id), void *arg)
{
    struct htab_node *n;
    HTAB_FOR_EACH (n, &s->index.shards) {
        const struct shard *sh = container_of(n, struct shard, node);
        if (sh->exists && !sh->dropping)
            fn(arg, &sh->id);
    }
}

uint64_t store_shard_used(const struct store *s, const struct store_shard_id *id)
{
    const struct shard *sh = shard_find(&s->index, id);
    return sh ? sh->places * STORE_EXTENT : 0;
}

size_t store_tail(const struct store *s, const struct store_shard_id *id, struct store_tail_rec **ret)
{
    const struct shard *sh = shard_find(&s->index, id);
    const struct rec *r;
    size_t n = 0, i = 0;
    *ret = NULL;
    if (!sh || !sh->exists)
        return 0;
    TAILQ_FOREACH (r, &sh->tail, by_shard)
        n++;
    *ret = xmalloc(n * sizeof **ret);
    TAILQ_FOREACH (r, &sh->tail, by_shard)
        (*ret)[i++] = (struct store_tail_rec){.version = r->version, .offset = r->offset, .length = r->length,
                                              .zero = rec_is_zero(r)};
    return n;
}

void store_versions(struct store *s, struct store_versions *v)
{
    struct err e;
    int rc;
    if (store_refuses(s, &v->op))
        return;
    struct shard *sh = usable(s, &v->shard, &rc, &e);
    for (uint32_t i = 0; sh && i < v->count; i++)
        v->ret[i] = index_version(&s->index, sh, v->first_chunk + i);
    op_later(s, &v->op, rc, &e);
}

uint64_t store_absent(const struct store *s, const struct store_shard_id *id, uint64_t first_chunk, unsigned count)
{
    const struct shard *sh = shard_find(&s->index, id);
    uint64_t map = 0;
    assert(count <= 64);
    for (unsigned i = 0; i < count; i++)
        if (!sh || !sh->exists || !index_version(&s->index, sh, first_chunk + i).epoch)
            map |= 1ull << i;
    return map;
}
