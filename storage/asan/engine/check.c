/* Consistency check of a volume by its owner: every shard that exists, 256 KiB at a time, all in-sync copies compared by
 * OWNER_CHECK, wrong blocks written again from a good copy, and looked at again.
 *
 *   wanted (row: check_asked_ms > check_done_ms) -> [own the volume] -> for each range:
 *       check -> clean: next range
 *             -> blocks wrong: repair each run of them -> check again, up to ROUNDS times; what is left is unrepairable
 *   -> ending: the result goes to the row, with an event if anything was found; repeated until the database took it
 *
 * Level-triggered: whoever owns the volume does it; a new owner begins again. A volume that nobody owns is claimed for the time
 * by the node of its first in-sync copy. Guests come first: while the volume has requests of its own the rate is a quarter, and
 * guest writes wait for the one range that is being compared, never for the check. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "base/metric.h"
#include "cluster/copies.h"
#include "cluster/task.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");
METRIC_COUNTER(m_checked, "cohort_asan_check_bytes_total", "Bytes of volumes whose copies were compared");
METRIC_COUNTER(m_bad, "cohort_asan_check_bad_bytes_total", "Bytes that a check found wrong on a copy");

#define CHECKS_MAX 2u              /* volumes at a time, per node */
#define CHECK_RATE (64u << 20)     /* bytes per second and volume */
#define ROUNDS 3
#define RETRY_MS 500
#define BAD_MAX 64u                /* ranges named in the result */
#define WEEK_MS (7LL * 86400 * 1000)
#define FIRST_MS (86400 * 1000)    /* a volume that was never checked, after so long in our sight */

struct check {
    struct owner_op op;            /* in flight while `busy` */
    struct owner_check found;
    struct later later;
    struct volume *v;              /* NULL: given up */
    struct task *task;
    bool busy, stepping, ending, txn_busy;
    int status;                    /* of the last operation */
    int64_t asked_ms;
    int64_t budget;                /* bytes left in this tick */
    uint64_t retry_ms, task_ms;
    uint64_t pos;                  /* in the volume: ranges below are done */
    uint32_t length;               /* of the range at pos */
    int round;                     /* 0: nothing known of the range yet */
    uint64_t was_bad, todo;        /* blocks of the range: found bad so far; still to be repaired in this round */
    uint64_t checked, bad, repaired, unrepairable; /* bytes */
    char *bad_at[BAD_MAX];
    size_t n_bad_at;
};

static void step(struct check *c);

/* ---- life ---- */

static void check_free(struct check *c)
{
    for (size_t i = 0; i < c->n_bad_at; i++)
        free(c->bad_at[i]);
    free(c);
}

static void run_step(struct later *l)
{
    struct check *c = container_of(l, struct check, later);
    c->stepping = false;
    if (c->v)
        step(c);
    else if (!c->busy)
        check_free(c);
}

static void step_later(struct asan *a, struct check *c)
{
    if (c->stepping)
        return;
    c->stepping = true;
    later(a, &c->later, run_step);
}

void check_op_done(struct owner_op *op, int status)
{
    struct check *c = op->arg;
    c->busy = false;
    c->status = status;
    if (c->v)
        step_later(c->v->a, c);
    else if (!c->stepping)
        check_free(c);
}

void check_stop(struct volume *v, const char *state)
{
    struct check *c = v->check;
    if (!c)
        return;
    task_end(c->task, state, "");
    c->task = NULL;
    c->v = NULL;
    v->check = NULL;
    v->a->checks--;
    if (c->txn_busy)
        cdb_txn_cancel(v->a->link, c);
    c->txn_busy = false;
    if (!c->busy && !c->stepping)
        check_free(c);
}

/* ---- the end ---- */

static void ended(void *arg, int status, const struct err *e)
{
    struct check *c = arg;
    (void)e;
    c->txn_busy = false;
    c->retry_ms = now_ms() + RETRY_MS;
    if (status && status != E_CONFLICT && status != E_NOTFOUND)
        return; /* again with a later tick: the result must not be lost */
    c->v->check_served_ms = c->asked_ms;
    check_stop(c->v, "done");
}

static void put_event(struct check *c, struct cdb_txn *t)
{
    char object[128], text[400];
    const struct volume *v = c->v;
    size_t n = (size_t)snprintf(text, sizeof text, "check found %llu KiB wrong on one copy or more, %llu KiB repaired from good copies",
                                (unsigned long long)c->bad >> 10, (unsigned long long)c->repaired >> 10);
    if (c->unrepairable)
        n += (size_t)snprintf(text + n, sizeof text - n, "; %llu KiB have no good copy left: restore them from a backup; they begin at offset",
                              (unsigned long long)c->unrepairable >> 10);
    for (size_t i = 0; i < c->n_bad_at && n < sizeof text - 48; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s %s", i ? "," : "", c->bad_at[i]);
    log_warn("volume %s: %s", v->name, text);
    snprintf(object, sizeof object, "volume %s", v->name);
    cdb_txn_event(t, clock_wall_ms(), c->unrepairable ? "alarm" : "warning", object, text, v->a->node_id);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void put_end(struct check *c)
{
    struct volume *v = c->v;
    char *keys[] = {"bad_bytes", "checked_bytes", "repaired_bytes", "unrepairable_bytes"}; /* sorted */
    int64_t values[] = {(int64_t)c->bad, (int64_t)c->checked, (int64_t)c->repaired, (int64_t)c->unrepairable};
    struct cdb_imap result = {4, keys, values};
    const struct cdb_volume *row = cdb_volume_get(view_of(v->a), v->id);
    int64_t done = clock_wall_ms();
    struct cdb_txn *t = cdb_txn_new();
    if (done < c->asked_ms || (row && row->check_asked_ms > c->asked_ms))
        done = c->asked_ms; /* asked again meanwhile, of what this check had passed already: that one is still wanted */
    qsort(c->bad_at, c->n_bad_at, sizeof *c->bad_at, by_text);
    cdb_txn_require_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_state, "ready");
    cdb_txn_set_int(t, CDB_T_VOLUME, v->id, CDB_VOLUME_check_done_ms, done);
    cdb_txn_set_imap(t, CDB_T_VOLUME, v->id, CDB_VOLUME_check_result, &result);
    cdb_txn_set_strs(t, CDB_T_VOLUME, v->id, CDB_VOLUME_check_bad, c->n_bad_at, (const char *const *)c->bad_at);
    if (c->bad)
        put_event(c, t);
    c->ending = c->txn_busy = true;
    cdb_txn_commit(v->a->link, t, "volume checked", ended, c);
}

/* Asked to stop: the row's wish goes, the result of the check before stays. */
static void put_cancel(struct check *c)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_VOLUME, c->v->id, CDB_VOLUME_check_asked_ms, c->asked_ms);
    cdb_txn_set_int(t, CDB_T_VOLUME, c->v->id, CDB_VOLUME_check_asked_ms, 0);
    cdb_txn_commit(c->v->a->link, t, "check canceled", NULL, NULL);
    c->v->check_served_ms = c->asked_ms;
    log_info("volume %s: check canceled", c->v->name);
    check_stop(c->v, "canceled");
}

/* ---- ranges ---- */

static void submit(struct check *c, uint64_t offset, uint32_t length, bool repair, uint8_t avoid)
{
    struct volume *v = c->v;
    struct shard *s = shard_get(v, (uint32_t)(offset / v->shard_bytes));
    c->op = (struct owner_op){.kind = repair ? OWNER_WRITE : OWNER_CHECK, .offset = offset % v->shard_bytes, .length = length,
                              .arg = c, .repair = repair, .avoid = avoid, .generation = c->found.generation,
                              .check = repair ? NULL : &c->found};
    c->busy = true;
    owner_submit(s->core, &c->op, now_ms());
    shard_after(s);
}

static void name_bad(struct check *c, uint64_t blocks)
{
    while (blocks) {
        unsigned first = (unsigned)__builtin_ctzll(blocks), n = 0;
        while (first + n < 64 && blocks >> (first + n) & 1)
            blocks &= ~(1ull << (first + n++));
        if (c->n_bad_at < BAD_MAX)
            c->bad_at[c->n_bad_at++] = xasprintf("%llu+%u", (unsigned long long)(c->pos + (uint64_t)first * OWNER_CHECK_BLOCK),
                                                 n * OWNER_CHECK_BLOCK);
    }
}

static uint64_t bytes_of(uint64_t blocks)
{
    return (uint64_t)__builtin_popcountll(blocks) * OWNER_CHECK_BLOCK;
}

static void range_over(struct check *c, uint64_t still)
{
    c->bad += bytes_of(c->was_bad);
    c->repaired += bytes_of(c->was_bad & ~still);
    c->unrepairable += bytes_of(still);
    metric_add(&m_bad, (int64_t)bytes_of(c->was_bad));
    name_bad(c, still);
    c->checked += c->length;
    metric_add(&m_checked, c->length);
    c->pos += c->length;
    c->round = 0;
    c->was_bad = c->todo = 0;
}

/* Nothing but zeroes, on every copy: mostly holes, which cost next to nothing. */
static bool all_zero(const struct check *c)
{
    static uint32_t zero_crc;
    if (!zero_crc) {
        static const uint8_t zeroes[OWNER_CHECK_BLOCK];
        zero_crc = crc32c(0, zeroes, sizeof zeroes);
    }
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        for (uint32_t b = 0; c->op.targets >> i & 1 && b < c->length / OWNER_CHECK_BLOCK; b++)
            if (c->found.crc[i][b] != zero_crc)
                return false;
    return true;
}

static void checked(struct check *c)
{
    uint64_t wrong = 0;
    for (uint32_t b = 0; b < c->length / OWNER_CHECK_BLOCK; b++)
        wrong |= (uint64_t)(c->found.wrong[b] != 0) << b;
    uint64_t still = wrong | c->found.unclear;
    c->was_bad |= still;
    if (!still && all_zero(c))
        c->budget += c->length - c->length / 16;
    if (!still || !wrong || c->round == ROUNDS) {
        range_over(c, still);
        return;
    }
    log_warn("volume %s: copies of offset %llu+%u differ or cannot be read: repairing %llu KiB", c->v->name,
             (unsigned long long)c->pos, c->length, (unsigned long long)bytes_of(wrong) >> 10);
    c->todo = wrong;
    c->round++;
}

/* The next run of blocks that are wrong on the same copies. */
static void repair_next(struct check *c)
{
    unsigned first = (unsigned)__builtin_ctzll(c->todo), n = 0;
    uint8_t avoid = c->found.wrong[first];
    while (first + n < 64 && c->todo >> (first + n) & 1 && c->found.wrong[first + n] == avoid)
        c->todo &= ~(1ull << (first + n++));
    submit(c, c->pos + (uint64_t)first * OWNER_CHECK_BLOCK, n * OWNER_CHECK_BLOCK, true, avoid);
}

/* The next range that may hold something; false: the volume is through. */
static bool find_range(struct check *c, const struct cdb_view *view)
{
    struct volume *v = c->v;
    while (c->pos < v->vol.size_bytes && !shard_row(view, v, (uint32_t)(c->pos / v->shard_bytes)))
        c->pos = (c->pos / v->shard_bytes + 1) * v->shard_bytes;
    if (c->pos >= v->vol.size_bytes)
        return false;
    uint64_t border = (c->pos / OWNER_CHECK_BYTES + 1) * OWNER_CHECK_BYTES;
    c->length = (uint32_t)((border < v->vol.size_bytes ? border : v->vol.size_bytes) - c->pos);
    return true;
}

static void step(struct check *c)
{
    struct volume *v = c->v;
    const struct cdb_view *view = view_of(v->a);
    if (c->busy || c->ending || !v->open || !view || now_ms() < c->retry_ms)
        return;
    if (c->op.arg) { /* an operation has ended */
        bool was_check = c->op.check != NULL;
        c->op.arg = NULL;
        if (was_check && c->status) { /* a copy came or went: once more */
            c->retry_ms = now_ms() + RETRY_MS;
            return;
        }
        if (was_check)
            checked(c);
    }
    if (c->todo) {
        repair_next(c);
    } else if (!find_range(c, view)) {
        put_end(c);
    } else if (c->budget > 0) {
        c->budget -= c->length;
        submit(c, c->pos, c->length, false, 0);
    }
}

/* ---- which, when ---- */

static bool ours(struct asan *a, const struct cdb_view *view, const struct volume *v)
{
    if (v->mine || !v->owner_dead)
        return v->mine;
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *row = shard_row(view, v, i);
        for (size_t k = 0; row && k < row->replicas.n; k++) {
            const struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
            if (g->usable && gdisk_up(a, g) && cdb_shard_in_sync(view, row, g->id))
                return g->local != NULL;
        }
    }
    return false;
}

static void begin(struct volume *v, const struct cdb_volume *row)
{
    char object[128];
    struct check *c = v->check = xcalloc(1, sizeof *c);
    c->v = v;
    c->asked_ms = row->check_asked_ms;
    snprintf(object, sizeof object, "volume %s", v->name);
    c->task = task_begin(v->a->link, "check", object, v->a->node_id, "bytes", (int64_t)v->vol.size_bytes);
    v->a->checks++;
    own_update(v);
}

/* Once a week by itself. */
static void ask_when_due(struct volume *v, const struct cdb_volume *row)
{
    int64_t now = clock_wall_ms();
    if (!v->seen_ms)
        v->seen_ms = now_ms();
    bool due = row->check_done_ms ? now - row->check_done_ms > WEEK_MS : now_ms() - v->seen_ms > FIRST_MS;
    if (!v->mine || !due || row->check_asked_ms > row->check_done_ms || now_ms() < v->check_ask_ms)
        return;
    v->check_ask_ms = now_ms() + 60000;
    check_ask(v->a, v->id, now);
}

/* Asks for a check of the volume in the database, whoever is to do it. */
void check_ask(struct asan *a, const char *volume_id, int64_t wall_ms)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_VOLUME, volume_id, CDB_VOLUME_state, "ready");
    cdb_txn_set_int(t, CDB_T_VOLUME, volume_id, CDB_VOLUME_check_asked_ms, wall_ms);
    cdb_txn_commit(a->link, t, "check wanted", NULL, NULL);
}

static void volume_tick(struct volume *v, const struct cdb_view *view)
{
    const struct cdb_volume *row = cdb_volume_get(view, v->id);
    struct check *c = v->check;
    if (!row || !v->n_shards)
        return;
    if (copies_volume_lost(view, row)) { /* there is nothing to look at, and nobody needs to own it for that */
        check_stop(v, "canceled");
        return;
    }
    ask_when_due(v, row);
    bool wanted = row->check_asked_ms > row->check_done_ms && row->check_asked_ms != v->check_served_ms;
    if (!c && wanted && v->a->checks < CHECKS_MAX && ours(v->a, view, v))
        begin(v, row);
    c = v->check;
    if (!c)
        return;
    if (!c->ending && task_cancel_asked(c->task)) {
        put_cancel(c);
        return;
    }
    if (!v->mine && !v->owner_dead) { /* someone else owns it now, and does it */
        check_stop(v, "canceled");
        return;
    }
    int64_t share = CHECK_RATE / 1000 * TICK_MS;
    c->budget = volume_idle(v) ? share : share / 4;
    if (now_ms() - c->task_ms >= 1000) {
        task_progress(c->task, (int64_t)c->pos, (int64_t)v->vol.size_bytes);
        c->task_ms = now_ms();
    }
    if (c->ending && !c->txn_busy && now_ms() >= c->retry_ms)
        put_end(c);
    else
        step_later(v->a, c);
}

void check_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (view && a->view_seen && a->lease && v->seen && !v->deleting && !v->gone)
            volume_tick(v, view);
    }
}
