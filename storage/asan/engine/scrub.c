/* Scrub: each node reads all that its own disks hold, round after round, so that damage is found while other copies are
 * still good. Reading verifies every checksum; where one does not match, a check of the volume is asked for in the database
 * (check.c), which repairs.
 *
 * One read of 256 KiB at a time per disk; after each the scrub rests four times as long as it took, and at least as long as
 * SCRUB_RATE demands: it takes a fifth of a busy disk and less of an idle one, so guests do not starve. Holes cost no read. A
 * round that ends early rests until a day after its beginning. The position (shard and offset) is kept in the file "scrub"
 * beside the data, so a restart goes on there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");
METRIC_COUNTER(m_bytes, "cohort_asan_scrub_bytes_total", "Bytes of this node's disks that the scrub has read");
METRIC_COUNTER(m_rounds, "cohort_asan_scrub_rounds_total", "Times that the scrub came to a disk's end, since the start");
METRIC_COUNTER(m_bad, "cohort_asan_scrub_bad_total", "Ranges of 256 KiB in which the scrub met a checksum that does not match");

#define SCRUB_READ (256u << 10)
#define SCRUB_RATE (20u << 20)    /* bytes per second and disk */
#define SCRUB_REST 4u             /* rests so many times as long as a read took */
#define SAVE_MS 60000
#define EMPTY_MS 1000 /* an empty disk is looked at again so soon: that costs nothing */
#define ROUND_MS (86400 * 1000LL)

struct scrub {
    struct ldisk *disk;
    struct store_read read;
    uint8_t *bytes;
    bool busy, closing;
    struct store_shard_id at;     /* the shard being read; all zero: none yet */
    uint64_t offset;
    int64_t round_ms;             /* wall clock of the round's beginning, 0: none is under way */
    uint64_t next_ms, started_ms, saved_ms;
};

/* ---- position ---- */

static void path_of(const struct ldisk *d, char *ret, size_t size)
{
    snprintf(ret, size, "%s/scrub", d->capacity);
}

/* A position that cannot be read or makes no sense costs a round begun anew, nothing else. */
static void load(struct scrub *s)
{
    char path[512], *text, volume[ID_LEN + 1];
    size_t len;
    path_of(s->disk, path, sizeof path);
    if (file_read(path, 256, &text, &len, NULL))
        return;
    int64_t round;
    uint32_t index;
    uint64_t offset;
    if (sscanf(text, "1 %" SCNd64 " %36s %" SCNu32 " %" SCNu64, &round, volume, &index, &offset) == 4 &&
        id_parse(volume, &s->at.volume) && offset % SCRUB_READ == 0) {
        s->at.index = index;
        s->offset = offset;
        s->round_ms = round;
    }
    free(text);
}

static void save(struct scrub *s)
{
    char path[512], text[160], volume[ID_LEN + 1];
    struct err e;
    path_of(s->disk, path, sizeof path);
    id_format(&s->at.volume, volume);
    int n = snprintf(text, sizeof text, "1 %" PRId64 " %s %" PRIu32 " %" PRIu64 "\n", s->round_ms, volume, s->at.index, s->offset);
    if (file_write(path, text, (size_t)n, 0600, &e))
        log_dbg("%s", e.msg);
    s->saved_ms = now_ms();
}

/* ---- the walk: shards in the order of their ids ---- */

static int order(const struct store_shard_id *a, const struct store_shard_id *b)
{
    int c = memcmp(&a->volume, &b->volume, sizeof a->volume);
    return c ? c : a->index < b->index ? -1 : a->index > b->index;
}

struct search { const struct store_shard_id *from; bool equal_ok, have; struct store_shard_id best; };

static void consider(void *arg, const struct store_shard_id *id)
{
    struct search *s = arg;
    int c = order(id, s->from);
    if (c < 0 || (c == 0 && !s->equal_ok) || (s->have && order(id, &s->best) > 0))
        return;
    s->best = *id;
    s->have = true;
}

/* Stands on a shard with something left to read; false: the round is over. */
static bool find_shard(struct scrub *s)
{
    struct store_shard_info info;
    for (bool same = true;; same = false) {
        struct search q = {.from = &s->at, .equal_ok = same};
        store_each_shard(s->disk->store, consider, &q);
        if (!q.have)
            return false;
        if (order(&q.best, &s->at)) {
            s->at = q.best;
            s->offset = 0;
        }
        store_shard_info(s->disk->store, &s->at, &info);
        if (info.exists && s->offset < info.shard_bytes)
            return true;
    }
}

/* Moves over what was never written to the next offset in the shard that holds anything. False: not found yet, at most 1 GiB
 * is looked at in one go. */
static bool find_data(struct scrub *s)
{
    struct store_shard_info info;
    uint8_t map[(1u << 20) / STORE_MAP_BLOCK];
    store_shard_info(s->disk->store, &s->at, &info);
    for (int i = 0; i < 4096 && info.exists && s->offset < info.shard_bytes; i++) {
        uint32_t n = SCRUB_READ;
        if (info.shard_bytes - s->offset < n)
            n = (uint32_t)(info.shard_bytes - s->offset);
        if (store_map(s->disk->store, &s->at, s->offset, n, map) || memchr(map, 1, n / STORE_MAP_BLOCK)) {
            s->read.length = n;
            return true;
        }
        s->offset += n;
    }
    return false;
}

/* ---- reading ---- */

static void scrub_free(struct scrub *s)
{
    free(s->bytes);
    free(s);
}

static void found_bad(struct scrub *s, const struct err *e)
{
    struct asan *a = s->disk->a;
    char volume[ID_LEN + 1];
    id_format(&s->at.volume, volume);
    struct volume *v = volume_find_data(a, volume);
    metric_add(&m_bad, 1);
    log_warn("disk %s: scrub: volume %s: %s; the volume is checked and repaired", s->disk->name, v ? v->name : volume, e->msg);
    if (!v || now_ms() < v->check_ask_ms)
        return; /* asked for already */
    v->check_ask_ms = now_ms() + 60000;
    check_ask(a, v->id, clock_wall_ms());
}

static void read_done(struct store_op *op, int status, const struct err *e)
{
    struct scrub *s = op->arg;
    uint64_t took = now_ms() - s->started_ms, rest = took * SCRUB_REST;
    s->busy = false;
    if (s->closing) {
        scrub_free(s);
        return;
    }
    if (status == E_CORRUPT)
        found_bad(s, e);
    metric_add(&m_bytes, s->read.length);
    s->offset += s->read.length;
    uint64_t least = s->read.length * UINT64_C(1000) / SCRUB_RATE;
    s->next_ms = now_ms() + (rest > least ? rest : least);
}

static void read_next(struct scrub *s)
{
    s->read = (struct store_read){.op = {.done = read_done, .arg = s}, .shard = s->at, .offset = s->offset,
                                  .length = s->read.length, .dst = s->bytes, .no_cache = true};
    s->busy = true;
    s->started_ms = now_ms();
    store_read(s->disk->store, &s->read);
}

static void round_over(struct scrub *s)
{
    log_info("disk %s: scrub: a round is over", s->disk->name);
    metric_add(&m_rounds, 1);
    memset(&s->at, 0, sizeof s->at);
    s->offset = 0;
    save(s);
    s->next_ms = now_ms() + 60000;
}

static void tick(struct scrub *s)
{
    int64_t wall = clock_wall_ms();
    static const struct store_shard_id none;
    if (s->busy || now_ms() < s->next_ms)
        return;
    bool begins = order(&s->at, &none) == 0 && s->offset == 0;
    if (begins && s->round_ms && wall >= s->round_ms && wall - s->round_ms < ROUND_MS) {
        s->next_ms = now_ms() + 60000;
        return;
    }
    if (!find_shard(s)) {
        if (!begins)
            round_over(s);
        else
            s->next_ms = now_ms() + EMPTY_MS;
        return;
    }
    if (begins)
        s->round_ms = wall;
    if (find_data(s))
        read_next(s);
    if (now_ms() - s->saved_ms > SAVE_MS)
        save(s);
}

void scrub_tick(struct asan *a)
{
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        if (d->state != LD_READY || d->reopening)
            continue;
        if (!d->scrub) {
            d->scrub = xcalloc(1, sizeof *d->scrub);
            d->scrub->disk = d;
            d->scrub->bytes = xmalloc(SCRUB_READ);
            d->scrub->saved_ms = now_ms();
            load(d->scrub);
        }
        tick(d->scrub);
    }
}

/* The store is about to close, or the disk has failed. */
void scrub_stop(struct ldisk *d)
{
    struct scrub *s = d->scrub;
    d->scrub = NULL;
    if (!s)
        return;
    s->closing = true;
    if (!s->busy)
        scrub_free(s);
}
