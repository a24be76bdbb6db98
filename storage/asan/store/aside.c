/* Setting records aside. See aside.h. */
#include "storage/asan/store/aside.h"

#include <assert.h>
#include <stdlib.h>
#include "base/metric.h"
#include "base/obj.h"

METRIC_COUNTER(m_records, "cohort_store_aside_records_total",
               "Records of writes that were not settled for so long that they were moved out of the journal");

#define ROUND_RECORDS 256u /* at most 16 MiB of data */

/* ---- the index's part ---- */

void aside_hidden(struct index *x, struct rec *r)
{
    if (!r->keyed || !r->shown || r->segs || r->destaging || r->hiding)
        return;
    r->hiding = true;
    TAILQ_INSERT_TAIL(&x->hide, r, queue);
}

static void gone(struct index *x, struct rec *r)
{
    x->aside_bytes -= r->length;
    if (r->aside)
        r->aside->recs--; /* sweep() frees the place */
    OBJ_FREE(r);
}

void aside_settled(struct index *x, struct rec *r)
{
    if (r->hiding)
        TAILQ_REMOVE(&x->hide, r, queue);
    r->hiding = false;
    if (r->keyed)
        TAILQ_INSERT_TAIL(&x->forget, r, queue);
    else
        gone(x, r);
}

void aside_free_all(struct index *x)
{
    struct rec *r;
    struct aside *a;
    while ((r = TAILQ_FIRST(&x->forget))) {
        TAILQ_REMOVE(&x->forget, r, queue);
        gone(x, r);
    }
    while ((a = TAILQ_FIRST(&x->asides))) {
        TAILQ_REMOVE(&x->asides, a, entry);
        free(a);
    }
}

/* ---- places ---- */

static struct aside *aside_new(struct index *x, uint64_t place)
{
    struct aside *a = xcalloc(1, sizeof *a);
    a->place = place;
    TAILQ_INSERT_TAIL(&x->asides, a, entry);
    return a;
}

static void aside_free(struct index *x, struct aside *a)
{
    TAILQ_REMOVE(&x->asides, a, entry);
    free(a);
}

static void sweep(struct store *s)
{
    struct aside *a, *next;
    for (a = TAILQ_FIRST(&s->index.asides); a; a = next) {
        next = TAILQ_NEXT(a, entry);
        if (a->recs || a->in_journal)
            continue;
        places_free(&s->places, a->place);
        aside_free(&s->index, a);
    }
}

void aside_only(struct store *s, struct aside *a)
{
    a->in_journal = false;
    sweep(s);
}

int aside_open(struct store *s, struct rec *r, uint64_t data_at, struct err *e)
{
    struct aside *a;
    if (data_at == PLACE_NONE)
        return E_OK;
    TAILQ_FOREACH (a, &s->index.asides, entry)
        if (a->place == data_at / STORE_EXTENT)
            break;
    if (!a) {
        int rc = places_mark(&s->places, data_at / STORE_EXTENT, e);
        if (rc < 0)
            return rc;
        a = aside_new(&s->index, data_at / STORE_EXTENT);
    }
    a->recs++;
    r->aside = a;
    r->file_off = data_at;
    return E_OK;
}

/* ---- choosing ---- */

static struct meta_aside value_of(const struct rec *r)
{
    return (struct meta_aside){.version = r->version, .offset = r->offset, .length = r->length, .crc = r->crc, .lost = r->lost,
                               .type = r->placed ? FMT_WRITE : r->type, .shown = r->segs > 0,
                               .batch_seq = r->batch ? r->batch->seq : r->batch_seq,
                               .data_at = rec_is_zero(r) ? PLACE_NONE : r->file_off};
}

static struct merge_aside *add(struct merge_aside **list, size_t *n, struct rec *r)
{
    if ((*n & (*n + 1)) == 0) /* 0, 1, 3, 7, ... */
        *list = xrealloc(*list, (2 * *n + 1) * sizeof **list);
    struct merge_aside *k = &(*list)[(*n)++];
    *k = (struct merge_aside){.id = r->shard->id, .arrival = r->arrival, .value = value_of(r), .rec = r};
    return k;
}

/* Will destage never take it as things are? What is not committed, and what lies behind such in its chunk. */
static bool stays(const struct rec *r)
{
    if (!rec_committed(r))
        return true;
    if (!r->segs)
        return false;
    const struct ext *t = r->ext;
    return !rec_committed(TAILQ_FIRST(&t->recs[rec_chunk(r)])) ||
           (t->fresh && store_version_cmp(t->fresh->version, r->shard->commit) > 0);
}

static bool movable(const struct rec *r)
{
    return (r->in_tail || r->segs) && !r->destaging && !r->pins && stays(r);
}

struct room { struct aside *a; uint32_t used; }; /* a place that is being filled */

/* Where `length` bytes of data go; false: the disk is full. */
static bool find_room(struct store *s, struct room *room, uint32_t length)
{
    uint64_t place;
    if (room->a && room->used + length <= STORE_EXTENT)
        return true;
    if (places_reserve(&s->places, 1, NULL) < 0)
        return false;
    if (!places_take(&s->places, true, &place))
        abort(); /* reserved just now */
    cache_forget(s->cache, place);
    *room = (struct room){aside_new(&s->index, place), 0};
    return true;
}

/* The parts of a large write go together and stay where they are. The place is theirs from then on and will not become the
 * extent's, which therefore needs one reserved as for any other record. */
static void keep_placed(struct store *s, struct merge_round *round, struct batch *b, struct placed *p)
{
    struct rec *r;
    struct ext *t = NULL;
    unsigned n = 0;
    TAILQ_FOREACH (r, &b->recs, by_batch) {
        n += r->placed == p && movable(r);
        t = r->placed == p && r->segs ? r->ext : t;
    }
    if (n == 0 || n != p->recs)
        return;
    if (t && t->place == PLACE_NONE && !t->counted) {
        if (places_reserve(&s->places, 1, NULL) < 0)
            return; /* the disk is full: it holds the journal until it is settled */
        t->counted = true;
    }
    struct aside *a = aside_new(&s->index, p->place);
    a->in_journal = true;
    TAILQ_FOREACH (r, &b->recs, by_batch) {
        if (r->placed != p)
            continue;
        struct merge_aside *k = add(&round->keep, &round->n_keep, r);
        uint32_t at = rec_chunk(r) * STORE_CHUNK;
        k->value.data_at = p->place * STORE_EXTENT + at;
        k->value.crc = 0;
        for (unsigned i = 0; i < CHUNK_BLOCKS; i++)
            k->value.crc = crc32c_join(k->value.crc, p->crc[at / FMT_BLOCK + i], FMT_BLOCK);
        k->to = a;
        a->recs++;
        r->destaging = true;
    }
}

static bool keep_rec(struct store *s, struct merge_round *round, struct rec *r, struct room *room)
{
    uint32_t n = rec_is_zero(r) ? 0 : journal_padded(r->length);
    if (n && !find_room(s, room, n))
        return false;
    struct merge_aside *k = add(&round->keep, &round->n_keep, r);
    if (n) {
        k->from = &s->journal.dev;
        k->from_off = r->file_off;
        k->value.data_at = room->a->place * STORE_EXTENT + room->used;
        k->to = room->a;
        room->a->recs++;
        room->used += n;
    }
    r->destaging = true;
    return true;
}

static void choose_keep(struct store *s, struct merge_round *round)
{
    const struct journal *j = &s->journal;
    struct room room = {NULL, 0};
    uint64_t after = s->aside_after ? s->aside_after : j->ring_bytes / 2;
    struct batch *b;
    struct rec *r;
    TAILQ_FOREACH (b, &s->index.batches, entry) {
        if (!b->durable || b->pos + after >= j->head_pos || round->n_keep >= ROUND_RECORDS)
            break;
        TAILQ_FOREACH (r, &b->recs, by_batch) {
            if (!movable(r))
                continue;
            if (r->placed)
                keep_placed(s, round, b, r->placed);
            else if (!keep_rec(s, round, r, &room))
                return;
        }
    }
}

void aside_choose(struct store *s, struct merge_round *round)
{
    struct index *x = &s->index;
    struct rec *r;
    for (size_t i = 0; i < round->n_items; i++)
        for (size_t k = 0; k < round->items[i].n_recs; k++)
            if (round->items[i].which[k]->keyed)
                add(&round->forget, &round->n_forget, round->items[i].which[k])->rec = NULL; /* apply_item() sees to it */
    while ((r = TAILQ_FIRST(&x->forget))) {
        TAILQ_REMOVE(&x->forget, r, queue);
        r->destaging = true;
        add(&round->forget, &round->n_forget, r);
    }
    while ((r = TAILQ_FIRST(&x->hide))) {
        TAILQ_REMOVE(&x->hide, r, queue);
        r->hiding = false;
        r->destaging = true;
        if (r->in_tail)
            add(&round->hide, &round->n_hide, r);
        else /* only a read holds it */
            add(&round->forget, &round->n_forget, r);
    }
    choose_keep(s, round);
}

/* ---- applying ---- */

/* `r` is no part of its large write any more but a record like others. */
static void leave_placed(struct index *x, struct rec *r, struct aside *a)
{
    struct placed *p = r->placed;
    p->aside = a;
    p->recs--;
    r->placed = NULL;
    r->type = FMT_WRITE;
    if (!r->segs)
        return;
    x->dirty_bytes += r->length;
    if (--p->dirty == 0 && r->ext->fresh == p)
        r->ext->fresh = NULL;
}

static void kept(struct index *x, const struct merge_aside *k)
{
    struct rec *r = k->rec;
    if (r->placed)
        leave_placed(x, r, k->to);
    TAILQ_REMOVE(&r->batch->recs, r, by_batch);
    r->batch = NULL;
    r->batch_seq = k->value.batch_seq;
    r->aside = k->to;
    r->file_off = k->value.data_at;
    r->crc = k->value.crc;
    r->keyed = true;
    r->shown = k->value.shown;
    r->destaging = false;
    x->aside_bytes += r->length;
    aside_hidden(x, r);
    rec_settle(x, r);
}

void aside_apply(struct store *s, struct merge_round *round)
{
    struct index *x = &s->index;
    for (size_t i = 0; i < round->n_keep; i++)
        kept(x, &round->keep[i]);
    for (size_t i = 0; i < round->n_hide; i++) {
        round->hide[i].rec->destaging = round->hide[i].rec->shown = false;
        rec_settle(x, round->hide[i].rec);
    }
    for (size_t i = 0; i < round->n_forget; i++) {
        struct rec *r = round->forget[i].rec;
        if (!r)
            continue;
        r->destaging = r->keyed = false;
        rec_settle(x, r);
    }
    metric_add(&m_records, (int64_t)round->n_keep);
    sweep(s);
}

void aside_undo(struct store *s, struct merge_round *round)
{
    struct index *x = &s->index;
    for (size_t i = 0; i < round->n_keep; i++) {
        const struct merge_aside *k = &round->keep[i];
        if (k->to && --k->to->recs == 0 && k->rec->placed)
            aside_free(x, k->to); /* the place is the large write's, as before */
        k->rec->destaging = false;
        rec_settle(x, k->rec);
    }
    for (size_t i = 0; i < round->n_hide + round->n_forget; i++) {
        struct rec *r = i < round->n_hide ? round->hide[i].rec : round->forget[i - round->n_hide].rec;
        if (!r)
            continue;
        r->destaging = false;
        aside_hidden(x, r);
        rec_settle(x, r);
    }
    sweep(s);
}
