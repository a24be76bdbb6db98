/* Blocks that no in-sync copy can read and that keep other copies from coming in sync: said in the database and by an event, and
 * what an administrator gave up of them (`cohort volume give-up`) told to the cores.
 *
 *   a core's join finds some -> Volume.unreadable, alarm -> give-up: they move to Volume.given_up -> the cores copy without them
 *
 * Ranges are of the volume: "<offset>+<length>", multiples of 4 KiB. Level-triggered: what the row lacks is added. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define AGAIN_MS 2000 /* until a transaction's outcome is surely in the view */
#define NAMED 8u      /* ranges named in the event */
#define CHUNK_BLOCKS (STORE_CHUNK / OWNER_CHECK_BLOCK)

/* ---- from the database to the cores ---- */

static bool parse(const char *text, uint64_t *ret_offset, uint64_t *ret_length)
{
    int end = 0;
    return sscanf(text, "%" SCNu64 "+%" SCNu64 "%n", ret_offset, ret_length, &end) == 2 && !text[end] && *ret_length &&
           *ret_offset % OWNER_CHECK_BLOCK == 0 && *ret_length % OWNER_CHECK_BLOCK == 0 && *ret_offset + *ret_length > *ret_offset;
}

static int by_chunk(const void *a, const void *b)
{
    const struct owner_lost *x = a, *y = b;
    return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

void lost_give(struct shard *s, const struct cdb_volume *row)
{
    const struct volume *v = s->v;
    struct owner_lost *list = NULL;
    size_t n = 0, cap = 0;
    uint64_t begin = (uint64_t)s->index * v->shard_bytes, offset, length;
    for (size_t i = 0; i < row->given_up.n; i++) {
        if (!parse(row->given_up.v[i], &offset, &length))
            continue; /* a damaged row gives nothing up */
        for (uint64_t at = offset; at < offset + length; at += OWNER_CHECK_BLOCK) {
            if (at < begin || at - begin >= v->shard_bytes)
                continue;
            uint64_t block = (at - begin) / OWNER_CHECK_BLOCK;
            if (n == cap)
                list = xrealloc(list, (cap = cap ? 2 * cap : 16) * sizeof *list);
            list[n++] = (struct owner_lost){block / CHUNK_BLOCKS, (uint16_t)(1u << block % CHUNK_BLOCKS)};
        }
    }
    if (n)
        qsort(list, n, sizeof *list, by_chunk);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) { /* one entry per chunk; the rest of each is zero, for the core compares memory */
        if (k && list[k - 1].chunk == list[i].chunk)
            list[k - 1].blocks |= list[i].blocks;
        else
            list[k++] = list[i];
    }
    owner_give_up(s->core, list, k, now_ms());
    free(list);
}

/* ---- from the cores to the database ---- */

struct found { char **text; size_t n, cap; };

static void add(struct found *f, const struct cdb_volume *row, uint64_t offset, uint32_t length)
{
    char text[48];
    snprintf(text, sizeof text, "%" PRIu64 "+%u", offset, length);
    if (cdb_strs_has(&row->unreadable, text))
        return;
    if (f->n == f->cap)
        f->text = xrealloc(f->text, (f->cap = f->cap ? 2 * f->cap : 16) * sizeof *f->text);
    f->text[f->n++] = xstrdup(text);
}

/* Runs of blocks of one chunk. */
static void add_chunk(struct found *f, const struct cdb_volume *row, uint64_t offset, unsigned blocks)
{
    while (blocks) {
        unsigned first = (unsigned)__builtin_ctz(blocks), n = 0;
        while (first + n < CHUNK_BLOCKS && blocks >> (first + n) & 1)
            blocks &= ~(1u << (first + n++));
        add(f, row, offset + (uint64_t)first * OWNER_CHECK_BLOCK, n * OWNER_CHECK_BLOCK);
    }
}

static void put_event(const struct volume *v, const struct found *f, struct cdb_txn *t)
{
    char object[128], text[600];
    size_t n = (size_t)snprintf(text, sizeof text, "no copy in sync can read some of its blocks, which keeps other copies from being made: at offset");
    for (size_t i = 0; i < f->n && i < NAMED; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s %s", i ? "," : "", f->text[i]);
    if (f->n > NAMED)
        n += (size_t)snprintf(text + n, sizeof text - n, " and %zu more", f->n - NAMED);
    snprintf(text + n, sizeof text - n, ". Bring back a disk that held a good copy. If there is none: cohort volume give-up %s", v->name);
    snprintf(object, sizeof object, "volume %s", v->name);
    log_warn("%s: %s", object, text);
    cdb_txn_event(t, clock_wall_ms(), "alarm", object, text, v->a->node_id);
}

/* Every copy is in sync again: a disk with good copies of them came back, or they were written again. */
static bool complete(const struct volume *v, const struct cdb_view *view)
{
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        for (size_t k = 0; row && k < row->replicas.n; k++)
            if (!cdb_shard_in_sync(view, row, row->replicas.v[k]))
                return false;
    }
    return true;
}

static void put_none(struct volume *v)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "ready");
    cdb_txn_set_strs(t, CDB_T_VOLUME, v->id, CDB_VOLUME_unreadable, 0, NULL);
    cdb_txn_commit(v->a->link, t, "all copies in sync", NULL, NULL);
    v->lost_ms = now_ms() + AGAIN_MS;
}

static void volume_tick(struct volume *v, const struct cdb_view *view)
{
    const struct cdb_volume *row = cdb_volume_get(view, v->id);
    struct found f = {0};
    if (!row || now_ms() < v->lost_ms)
        return;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct owner_lost *lost;
        size_t n = v->shard[i] && v->shard[i]->core ? owner_unreadable(v->shard[i]->core, &lost) : 0;
        for (size_t k = 0; k < n; k++)
            add_chunk(&f, row, i * v->shard_bytes + lost[k].chunk * STORE_CHUNK, lost[k].blocks);
    }
    if (!f.n) {
        if (row->unreadable.n && complete(v, view))
            put_none(v);
        return;
    }
    struct cdb_txn *t = cdb_txn_new();
    put_event(v, &f, t);
    for (size_t i = 0; i < row->unreadable.n; i++) {
        f.text = xrealloc(f.text, (f.n + 1) * sizeof *f.text);
        f.text[f.n++] = xstrdup(row->unreadable.v[i]);
    }
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "ready");
    cdb_txn_set_strs(t, CDB_T_VOLUME, v->id, CDB_VOLUME_unreadable, f.n, (const char *const *)f.text);
    cdb_txn_commit(v->a->link, t, "blocks no copy can read", NULL, NULL);
    v->lost_ms = now_ms() + AGAIN_MS;
    for (size_t i = 0; i < f.n; i++)
        free(f.text[i]);
    free(f.text);
}

void lost_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (view && a->view_seen && v->open && v->seen && !v->deleting && !v->gone)
            volume_tick(v, view);
    }
}
