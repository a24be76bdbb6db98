/* Repair of copies: the plan. Its transaction and its words are in repair_txn.c. See repair.h. */
#include "ha/repair.h"
#include <stdlib.h>
#include <string.h>
#include "cluster/copies.h"

struct look { /* one shard */
    const struct cdb_shard *s;
    const struct cdb_volume *vol;
    int in_sync;          /* all that count as in sync */
    int good;             /* in sync on kept disks */
    int kept;             /* on kept disks or away: need no replacement */
    const char *lost;     /* a lost copy that is not in sync */
    const char *leaving;  /* a copy on a draining disk, or on a lost one that is still believed */
    bool local;           /* the owner's node has a copy, or the volume has no owner */
};

struct plan {
    const struct cdb_view *v;
    const struct repair_conf *c;
    struct spread *sp;
    struct repair_step *out;
    int n, max, moves;
};

void repair_conf_of(const struct cdb_view *v, int64_t wall_ms, struct repair_conf *ret)
{
    const struct cdb_cluster *cl = cdb_cluster_get(v, "cluster");
    const char *balance = cl ? cdb_smap_get(&cl->settings, "repair_balance") : NULL;
    *ret = (struct repair_conf){.wall_ms = wall_ms, .absent_ms = cdb_setting(v, "repair_absent_s", 1, 86400, REPAIR_ABSENT_MS / 1000) * 1000,
                                .balance = !balance || strcmp(balance, "off")};
}

static bool look_at(const struct plan *p, const struct cdb_shard *s, struct look *l)
{
    *l = (struct look){.s = s, .vol = cdb_volume_get(p->v, s->volume)};
    if (!l->vol || strcmp(l->vol->state, "ready"))
        return false;
    l->local = !l->vol->owner[0];
    for (size_t k = 0; k < s->replicas.n; k++) {
        const char *disk = s->replicas.v[k];
        const struct cdb_disk *d = cdb_disk_get(p->v, disk);
        bool in_sync = cdb_shard_in_sync(p->v, s, disk);
        enum copies_worth worth = copies_worth(p->v, disk, p->c->wall_ms, p->c->absent_ms);
        l->in_sync += in_sync;
        l->good += in_sync && worth == COPIES_KEPT;
        l->kept += worth == COPIES_KEPT || worth == COPIES_AWAY;
        if (worth == COPIES_LOST && !in_sync && !l->lost)
            l->lost = disk;
        if ((worth == COPIES_LEAVING || (worth == COPIES_LOST && in_sync)) && !l->leaving)
            l->leaving = disk;
        l->local = l->local || (d && !strcmp(d->node, l->vol->owner));
    }
    return true;
}

static void add(struct plan *p, enum repair_why why, const struct look *l, const struct cdb_disk *to, const char *remove)
{
    int64_t bytes = copies_bytes(p->v, l->s);
    p->out[p->n++] = (struct repair_step){why, l->s, to, remove, l->in_sync};
    if (to)
        spread_take(p->sp, to->id, bytes);
    if (remove)
        spread_take(p->sp, remove, -bytes);
}

static const struct cdb_disk *pick(const struct plan *p, const struct look *l, const char *not_counting, int64_t need)
{
    const char *keep[8];
    struct spread_want w = {.medium = copies_class(l->vol), .shard = l->s->id, .prefer_node = l->local ? "" : l->vol->owner, .taken = keep, .need_bytes = need};
    for (size_t k = 0; k < l->s->replicas.n && w.n_taken < 8; k++)
        if (!not_counting || strcmp(l->s->replicas.v[k], not_counting))
            keep[w.n_taken++] = l->s->replicas.v[k];
    return spread_pick(p->sp, &w);
}

/* How full a disk is promised to be, percent. */
static int64_t fill(const struct plan *p, const char *disk)
{
    const struct cdb_disk *d = cdb_disk_get(p->v, disk);
    int64_t room = spread_room(p->sp, disk);
    return !d || room == INT64_MIN || d->size_bytes < 100 ? 0 : (d->size_bytes - room) / (d->size_bytes / 100);
}

/* Does a guest on the owner's node use the volume? (A tool may own a volume for a while; copies do not follow those.) */
static bool guest_at_owner(const struct cdb_view *v, const struct cdb_volume *vol)
{
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        for (size_t k = 0; k < m->disks.n && !strcmp(m->host, vol->owner); k++) {
            const char *colon = strchr(m->disks.v[k], ':');
            if (colon && !strcmp(colon + 1, vol->id))
                return true;
        }
    }
    return false;
}

/* The copy that can be spared best; NULL if none may go. */
static const char *worst(const struct plan *p, const struct look *l)
{
    const char *found = NULL;
    int best = -1;
    int64_t best_fill = 0;
    for (size_t k = 0; k < l->s->replicas.n; k++) {
        const char *disk = l->s->replicas.v[k];
        const struct cdb_disk *d = cdb_disk_get(p->v, disk);
        enum copies_worth worth = copies_worth(p->v, disk, p->c->wall_ms, p->c->absent_ms);
        bool good = worth == COPIES_KEPT && cdb_shard_in_sync(p->v, l->s, disk);
        if (l->good - good < l->vol->replicas)
            continue;
        bool own = d && !strcmp(d->node, l->vol->owner);
        int rank = worth == COPIES_LOST ? 4 : worth == COPIES_LEAVING ? 3 : !good ? 2 : own ? 0 : 1;
        if (rank > best || (rank == best && fill(p, disk) > best_fill)) {
            found = disk;
            best = rank;
            best_fill = fill(p, disk);
        }
    }
    return best > 0 ? found : NULL;
}

static void urgent(struct plan *p, const struct look *l)
{
    const struct cdb_disk *to;
    bool source = l->in_sync > 0;
    if (l->lost && source && l->kept < l->vol->replicas && (to = pick(p, l, l->lost, INT64_MIN)))
        add(p, REPAIR_LOST, l, to, l->lost);
    else if ((int64_t)l->s->replicas.n < l->vol->replicas && source && (to = pick(p, l, NULL, INT64_MIN)))
        add(p, REPAIR_SHORT, l, to, NULL);
}

static void give_up_extra(struct plan *p, const struct look *l)
{
    const char *out = (int64_t)l->s->replicas.n > l->vol->replicas ? worst(p, l) : NULL;
    if (out)
        add(p, REPAIR_EXTRA, l, NULL, out);
}

static void move(struct plan *p, const struct look *l)
{
    const struct cdb_disk *to;
    int64_t bytes = copies_bytes(p->v, l->s);
    if (p->moves >= REPAIR_MOVES_MAX || l->lost || (int64_t)l->s->replicas.n != l->vol->replicas || l->in_sync < l->vol->replicas)
        return;
    if (l->leaving && (to = pick(p, l, l->leaving, bytes))) {
        add(p, REPAIR_DRAIN, l, to, NULL);
        p->moves++;
    } else if (!l->leaving && !l->local && guest_at_owner(p->v, l->vol) && (to = pick(p, l, NULL, bytes)) &&
               !strcmp(to->node, l->vol->owner)) {
        add(p, REPAIR_LOCAL, l, to, NULL);
        p->moves++;
    }
}

/* One copy from the fullest disk of a medium to the emptiest that may have it, if that makes them more alike. */
static void balance(struct plan *p, const char *medium)
{
    const struct cdb_disk *fullest = NULL;
    int64_t most = 0;
    for (size_t i = 0; i < cdb_disk_count(p->v); i++) {
        const struct cdb_disk *d = cdb_disk_at(p->v, i);
        if (!strcmp(d->medium, medium) && spread_room(p->sp, d->id) != INT64_MIN && (!fullest || fill(p, d->id) > most)) {
            fullest = d;
            most = fill(p, d->id);
        }
    }
    for (size_t i = 0; fullest && i < cdb_shard_count(p->v) && p->n < p->max; i++) {
        struct look l;
        const struct cdb_shard *s = cdb_shard_at(p->v, i);
        if (!cdb_strs_has(&s->replicas, fullest->id) || !look_at(p, s, &l) || l.good < l.vol->replicas ||
            (int64_t)s->replicas.n != l.vol->replicas || !strcmp(fullest->node, l.vol->owner))
            continue;
        int64_t bytes = copies_bytes(p->v, s);
        const struct cdb_disk *to = pick(p, &l, fullest->id, bytes);
        if (!to || to == fullest || to->size_bytes < 100)
            continue;
        int64_t after = (to->size_bytes - spread_room(p->sp, to->id) + bytes) / (to->size_bytes / 100);
        if (after + REPAIR_BALANCE_PERCENT > most)
            continue;
        if (!strcmp(to->node, fullest->node))
            continue; /* two copies on one node, if only for a while: no */
        add(p, REPAIR_BALANCE, &l, to, NULL);
        return;
    }
}

static bool replaced(const struct cdb_view *v, const struct cdb_disk *d)
{
    return d->replaced_by[0] && cdb_disk_get(v, d->replaced_by);
}

static bool holds_copies(const struct cdb_view *v, const char *disk)
{
    for (size_t i = 0; i < cdb_shard_count(v); i++)
        if (cdb_strs_has(&cdb_shard_at(v, i)->replicas, disk))
            return true;
    return false;
}

/* A spare of the same medium for each failed or isolated disk that holds copies: of its own node if there is one. */
static void spares(struct plan *p)
{
    const struct cdb_disk *used[REPAIR_STEPS_MAX];
    int n_used = 0;
    for (size_t i = 0; i < cdb_disk_count(p->v) && p->n < p->max && n_used < REPAIR_STEPS_MAX; i++) {
        const struct cdb_disk *d = cdb_disk_at(p->v, i), *best = NULL;
        if ((strcmp(d->state, "failed") && strcmp(d->state, "isolated")) || replaced(p->v, d) || !holds_copies(p->v, d->id))
            continue;
        for (size_t k = 0; k < cdb_disk_count(p->v); k++) {
            const struct cdb_disk *s = cdb_disk_at(p->v, k);
            const struct cdb_node *n = cdb_node_get(p->v, s->node);
            bool taken = strcmp(s->state, "spare") || strcmp(s->medium, d->medium) || !n || strcmp(n->state, "up") || n->maintenance;
            for (int u = 0; u < n_used; u++)
                taken = taken || used[u] == s;
            if (!taken && (!best || (!strcmp(s->node, d->node) && strcmp(best->node, d->node))))
                best = s;
        }
        if (!best)
            continue;
        used[n_used++] = best;
        p->out[p->n++] = (struct repair_step){REPAIR_SPARE, NULL, best, d->id, 0};
    }
}

static int more_urgent(const void *a, const void *b)
{
    const struct look *x = a, *y = b;
    if (x->in_sync != y->in_sync)
        return x->in_sync - y->in_sync;
    return strcmp(x->s->id, y->s->id);
}

int repair_plan(const struct cdb_view *v, const struct repair_conf *c, struct repair_step *ret, int max)
{
    struct plan p = {.v = v, .c = c, .sp = spread_new(v), .out = ret, .max = max};
    size_t n = 0, shards = cdb_shard_count(v);
    struct look *work = xcalloc(shards + 1, sizeof *work);
    spares(&p);
    for (size_t i = 0; i < shards; i++) {
        struct look l;
        if (!look_at(&p, cdb_shard_at(v, i), &l))
            continue;
        p.moves += (int64_t)l.s->replicas.n > l.vol->replicas;
        if (l.lost || l.leaving || !l.local || (int64_t)l.s->replicas.n != l.vol->replicas)
            work[n++] = l;
    }
    qsort(work, n, sizeof *work, more_urgent);
    for (size_t i = 0; i < n && p.n < max; i++)
        urgent(&p, &work[i]);
    for (size_t i = 0; i < n && p.n < max; i++)
        give_up_extra(&p, &work[i]);
    bool calm = p.n == 0 && !c->no_moves;
    for (size_t i = 0; calm && i < n && p.n < max; i++)
        move(&p, &work[i]);
    if (calm && p.n == 0 && p.moves == 0 && c->balance)
        balance(&p, CLASS_STORAGE);
    if (calm && p.n == 0 && p.moves == 0 && c->balance)
        balance(&p, CLASS_MEMORY);
    free(work);
    spread_free(p.sp);
    return p.n;
}

void repair_stuck(const struct cdb_view *v, const struct repair_conf *c, int *ret_no_place, int *ret_no_copy)
{
    struct plan p = {.v = v, .c = c, .sp = spread_new(v)};
    int no_place = 0, no_copy = 0;
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        struct look l;
        if (!look_at(&p, cdb_shard_at(v, i), &l) || !l.lost)
            continue;
        no_copy += l.in_sync == 0;
        no_place += l.in_sync > 0 && !pick(&p, &l, l.lost, INT64_MIN);
    }
    spread_free(p.sp);
    *ret_no_place = no_place;
    *ret_no_copy = no_copy;
}
