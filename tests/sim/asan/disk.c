/* A disk as store/ promises it to be (store/README.md, invariants): a journal whose records become durable in order, in
 * groups; fences that are durable by themselves, in any order to the records; destage, which merges leading records at or
 * below the commit mark into what survives without the journal, and trims them afterwards. A power cut keeps a prefix of
 * what was submitted, then replays. See sim.h. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/asan/sim.h"

#define DESTAGE_AT 12 /* records in the journal */

bool disk_counts_copies, disk_reads_durable;

struct fence { int n; uint64_t life, epoch; struct frame *frame; TAILQ_ENTRY(fence) entry; };
static TAILQ_HEAD(, fence) fences = TAILQ_HEAD_INITIALIZER(fences);

static void raise_to(struct store_version *v, struct store_version to)
{
    if (store_version_cmp(to, *v) > 0)
        *v = to;
}

static void apply(struct disk_state *s, const struct disk_rec *r)
{
    memcpy(s->id + r->first, r->ids, r->count * sizeof *r->ids);
    for (uint32_t c = r->first / CHUNK_SECTORS; c <= (r->first + r->count - 1) / CHUNK_SECTORS; c++)
        s->version[c] = r->version;
    if (!r->copy || disk_counts_copies)
        raise_to(&s->last, r->version);
    if (r->commit_seq)
        raise_to(&s->commit, (struct store_version){r->version.epoch, r->commit_seq});
}

static void rec_free(struct disk_rec *r)
{
    free(r->ids);
    free(r);
}

static bool in_tail(const struct disk *d, const struct disk_rec *r)
{
    return !r->copy && store_version_cmp(r->version, d->mem.commit) > 0;
}

/* ---- destage: merge, and some time later trim ---- */

static void merge(struct disk *d)
{
    unsigned k = 0;
    struct disk_rec *r;
    TAILQ_FOREACH (r, &d->journal, entry) {
        if (k++ == d->destage)
            break;
        apply(&d->base, r);
    }
    raise_to(&d->base.commit, d->mem.commit);
    raise_to(&d->dur.commit, d->mem.commit);
}

static void trim(struct disk *d, struct disk_recs *limbo)
{
    for (unsigned k = 0; k < d->destage; k++) {
        struct disk_rec *r = TAILQ_FIRST(&d->journal);
        TAILQ_REMOVE(&d->journal, r, entry);
        d->n_journal--;
        if (limbo)
            TAILQ_INSERT_TAIL(limbo, r, entry);
        else
            rec_free(r);
    }
}

static void free_all(struct disk_recs *l)
{
    struct disk_rec *r;
    while ((r = TAILQ_FIRST(l))) {
        TAILQ_REMOVE(l, r, entry);
        rec_free(r);
    }
}

static void destage_end(void *a, uint64_t life)
{
    struct node *n = a;
    struct disk *d = &n->disk;
    if (life != n->life)
        return;
    if (MUTANT(HOST_TRIM_EARLY)) {
        struct disk_rec *r;
        TAILQ_FOREACH (r, &d->limbo, entry)
            apply(&d->base, r);
        free_all(&d->limbo);
    } else {
        trim(d, NULL);
    }
    d->destaging = false;
}

static void destage(struct node *n)
{
    struct disk *d = &n->disk;
    struct disk_rec *r;
    if (d->destaging || d->n_journal < DESTAGE_AT)
        return;
    d->destage = 0;
    TAILQ_FOREACH (r, &d->journal, entry) {
        if (in_tail(d, r) && !MUTANT(HOST_TRIM_TAIL))
            break;
        d->destage++;
    }
    if (!d->destage)
        return;
    d->destaging = true;
    if (MUTANT(HOST_TRIM_EARLY))
        trim(d, &d->limbo);
    else
        merge(d);
    at(below(40), destage_end, n, n->life);
}

/* ---- becoming durable ---- */

static void fail_queued(struct disk *d)
{
    struct disk_rec *r;
    d->dead = true;
    while ((r = TAILQ_FIRST(&d->queued))) {
        TAILQ_REMOVE(&d->queued, r, entry);
        host_durable(r->frame, E_IO);
        rec_free(r);
    }
}

static void keep(struct disk *d, struct disk_rec *r)
{
    TAILQ_REMOVE(&d->queued, r, entry);
    TAILQ_INSERT_TAIL(&d->journal, r, entry);
    d->n_journal++;
    apply(&d->dur, r);
}

static void disk_durable(void *a, uint64_t life)
{
    struct node *n = a;
    struct disk *d = &n->disk;
    struct disk_rec *r;
    if (life != n->life)
        return;
    /* What was in sync beside it when this was arranged may have left since: the last intact copy does not fail. */
    bool may_fail = !db_in_sync(&db, n->id) || db_intact(&db) >= 1;
    if (d->fail_next && !may_fail)
        d->fail_next = false;
    if (d->fail_next) {
        TRACE("disk %d fails", n->id);
        d->busy = d->fail_next = false;
        fail_queued(d);
        return;
    }
    uint32_t batch = 1 + below(4);
    while (batch-- && (r = TAILQ_FIRST(&d->queued))) {
        keep(d, r);
        struct frame *f = r->frame;
        r->frame = NULL;
        host_durable(f, E_OK);
    }
    destage(n);
    d->busy = !TAILQ_EMPTY(&d->queued);
    if (d->busy)
        at(below(4), disk_durable, n, n->life);
}

void disk_submit(int i, struct disk_rec *r)
{
    struct node *n = &node[i];
    struct disk *d = &n->disk;
    TAILQ_INSERT_TAIL(&d->queued, r, entry);
    if (d->dead) {
        fail_queued(d);
        return;
    }
    apply(&d->mem, r);
    memset(d->flipped + r->first, 0, r->count);
    if (!d->busy) {
        d->busy = true;
        at(chance(40) ? 20 + below(400) : below(4), disk_durable, n, n->life);
    }
}

static void install(struct disk *d, uint64_t epoch)
{
    struct disk_state *all[] = {&d->mem, &d->dur, &d->base};
    for (int k = 0; k < 3; k++) {
        all[k]->exists = true;
        if (epoch > all[k]->epoch && !(MUTANT(HOST_FENCE_MEMORY) && all[k]->epoch))
            all[k]->epoch = epoch;
    }
}

static void fence_durable(void *a, uint64_t unused)
{
    (void)unused;
    struct fence *f = a;
    struct node *n = &node[f->n];
    TAILQ_REMOVE(&fences, f, entry);
    if (f->life == n->life) {
        if (!n->disk.dead)
            install(&n->disk, f->epoch);
        host_fenced(f->frame, n->disk.dead ? E_IO : E_OK);
    }
    free(f);
}

void disk_fence(int i, uint64_t epoch, struct frame *frame)
{
    struct fence *f = xcalloc(1, sizeof *f);
    *f = (struct fence){.n = i, .life = node[i].life, .epoch = epoch, .frame = frame};
    TAILQ_INSERT_TAIL(&fences, f, entry);
    node[i].disk.mem.exists = true;
    at(below(6), fence_durable, f, 0);
}

void disk_mark(int i, struct store_version mark)
{
    raise_to(&node[i].disk.mem.commit, mark);
}

static void tail_of(const struct disk *d, const struct disk_recs *l, struct store_version after, const struct disk_rec **best)
{
    const struct disk_rec *r;
    TAILQ_FOREACH (r, l, entry)
        if (in_tail(d, r) && store_version_cmp(r->version, after) > 0 &&
            (!*best || store_version_cmp(r->version, (*best)->version) < 0))
            *best = r;
}

/* The journal may hold an older epoch's record behind a younger one's: lost, and sent again by a stale owner's successor. */
size_t disk_tail(int i, struct store_version after, struct store_tail_rec *ret, size_t max)
{
    const struct disk *d = &node[i].disk;
    size_t n = 0;
    for (; n < max; n++) {
        const struct disk_rec *best = NULL;
        tail_of(d, &d->journal, after, &best);
        if (!disk_reads_durable)
            tail_of(d, &d->queued, after, &best);
        if (!best)
            break;
        ret[n] = (struct store_tail_rec){best->version, (uint64_t)best->first * 512, best->count * 512, false};
        after = best->version;
    }
    return n;
}

/* ---- power cuts, swaps ---- */

static void replay(struct disk *d)
{
    struct disk_rec *r;
    d->mem = d->base;
    TAILQ_FOREACH (r, &d->journal, entry)
        apply(&d->mem, r);
    d->dur = d->mem;
}

/* Of what was submitted and not yet reported durable a prefix is there afterwards; the record behind it may be torn. */
void disk_crash(int i)
{
    struct disk *d = &node[i].disk;
    struct disk_rec *r;
    struct fence *f;
    while ((r = TAILQ_FIRST(&d->queued)) && !d->dead && chance(500)) {
        r->frame = NULL;
        keep(d, r);
    }
    if (r && r->count > 1 && MUTANT(HOST_TORN_ACCEPTED)) {
        for (uint32_t k = r->count / 2; k < r->count; k++)
            r->ids[k] = d->dur.id[r->first + k];
        keep(d, r);
    }
    free_all(&d->queued);
    free_all(&d->limbo);
    TAILQ_FOREACH (f, &fences, entry)
        if (f->n == i && f->life + 1 == node[i].life && !d->dead && chance(500))
            install(d, f->epoch);
    d->busy = d->destaging = d->fail_next = false;
    replay(d);
}

void disk_reset(int i)
{
    struct disk *d = &node[i].disk;
    memset(d, 0, sizeof *d);
    TAILQ_INIT(&d->journal);
    TAILQ_INIT(&d->queued);
    TAILQ_INIT(&d->limbo);
}

void disk_swap(int i)
{
    struct disk *d = &node[i].disk;
    free_all(&d->journal);
    free_all(&d->queued);
    free_all(&d->limbo);
    disk_reset(i);
}

void disk_free(int i)
{
    struct fence *f, *next;
    disk_swap(i);
    for (f = TAILQ_FIRST(&fences); f; f = next) {
        next = TAILQ_NEXT(f, entry);
        if (f->n != i)
            continue;
        TAILQ_REMOVE(&fences, f, entry);
        free(f);
    }
}
