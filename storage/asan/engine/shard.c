/* An owner core and what it asks for: messages, database transactions. A shard object outlives its core while something
 * of it is on its way; answers for a core that is gone are dropped. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "base/log.h"
#include "base/obj.h"
#include "cluster/copies.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

struct ref { /* something on its way */
    struct shard *s;
    uint64_t epoch;
    uint32_t disk;
    struct later later;
    int status;
    struct repl_msg m;           /* READ: what was asked */
    struct repl_answer ans;
    struct owner_txn want;       /* a change of the in-sync set */
    TAILQ_ENTRY(ref) entry;
};
TAILQ_HEAD(refs, ref);

/* Changes of in-sync sets: one transaction for those that were asked for in one turn of the loop, or while the one before was
 * under way. When a node is lost, every shard with a write under way asks in the same turn (peers.c).
 * If what one of them rests on is no longer so, all are refused. Those that the view shows to be out of date are told so; the
 * others go again in two halves, and so on, until the culprits are alone: a few transactions more, not one per shard. */
struct batch {
    struct asan *a;
    struct refs refs;
    int n;
    bool queued;                 /* `later` is */
    struct later later;
    LIST_ENTRY(batch) out;
};
#define BATCH_MAX 2048 /* two operations and some 800 bytes of JSON each: 1.6 MB, well within what the database takes at once */

static struct ref *ref_new(struct shard *s, uint32_t disk)
{
    struct ref *r = OBJ_NEW(struct ref);
    r->s = s;
    r->epoch = s->epoch;
    r->disk = disk;
    s->refs++;
    return r;
}

/* Is its core still the one that asked? */
static bool ref_current(const struct ref *r)
{
    return r->s->core && r->s->epoch == r->epoch;
}

static void ref_free(struct ref *r)
{
    shard_unref(r->s);
    OBJ_FREE(r);
}

void shard_unref(struct shard *s)
{
    if (--s->refs == 0)
        free(s);
}

/* ---- messages ---- */

static void give_answer(struct ref *r, const struct repl_answer *ans)
{
    if (ref_current(r)) {
        lease_check(r->s->v->a);
        owner_answer(r->s->core, r->disk, ans, now_ms());
        shard_after(r->s);
    }
    ref_free(r);
}

static void filled(void *arg, int status, struct iobuf *data, size_t data_off)
{
    struct ref *r = arg;
    r->ans.status = status ? E_UNAVAIL : 0; /* the member is not to blame: it is asked again */
    r->ans.data = data;
    r->ans.data_off = data_off;
    r->ans.crc = data ? crc32c(0, data->data + data_off, r->m.length) : 0;
    give_answer(r, &r->ans);
}

static void answered(void *arg, const struct repl_answer *ans)
{
    struct ref *r = arg;
    struct volume *v = r->s->v;
    if (r->m.through && !ans->status && ref_current(r) && *v->parent) {
        layer_known(r->s, &r->m, ans->absent);
        if (r->m.fill && ans->absent) {
            r->ans = *ans;
            const struct lwant bytes = {0};
            layer_fill(v, r->s->index * v->shard_bytes + r->m.offset, r->m.length, &bytes, ans->absent, ans->data, ans->data_off,
                       filled, r);
            return;
        }
    }
    give_answer(r, ans);
}

static void env_send(void *arg, uint32_t disk, const struct repl_msg *m)
{
    struct shard *s = arg;
    struct asan *a = s->v->a;
    assert(disk < a->n_gdisks);
    struct ref *r = ref_new(s, disk);
    if (m->kind == REPL_READ)
        r->m = *m;
    link_send(a, a->gdisk[disk], &s->v->bin, s->index, m, false, answered, r);
}

/* ---- transactions ---- */

static void shard_id(const struct volume *v, uint32_t index, char *ret, size_t size)
{
    snprintf(ret, size, "%s/%u", v->data, index);
}

const struct cdb_shard *shard_row(const struct cdb_view *view, const struct volume *v, uint32_t index)
{
    char id[ID_LEN + 16];
    shard_id(v, index, id, sizeof id);
    return cdb_shard_get(view, id);
}

/* A batch has many shards of one volume, all of them on few disks: what they require and set alike is said once. `batch` 0: a
 * transaction of its own. */
static void require_mine(struct cdb_txn *t, const struct shard *s, uint64_t batch)
{
    struct volume *v = s->v;
    if (batch && v->batch == batch && v->batch_epoch == s->epoch)
        return;
    v->batch = batch;
    v->batch_epoch = s->epoch;
    cdb_txn_require_str(t, CDB_T_VOLUME, s->v->id, CDB_VOLUME_owner, s->v->a->node_id);
    cdb_txn_require_int(t, CDB_T_VOLUME, s->v->id, CDB_VOLUME_epoch, (int64_t)s->epoch);
}

static void require_incarnation(struct cdb_txn *t, struct gdisk *g, uint64_t incarnation, uint64_t batch)
{
    if (batch && g->batch == batch && g->batch_incarnation == incarnation)
        return;
    g->batch = batch;
    g->batch_incarnation = incarnation;
    cdb_txn_require_int(t, CDB_T_DISK, g->id, CDB_DISK_incarnation, (int64_t)incarnation);
}

struct member_disk { struct gdisk *g; uint64_t incarnation; };

/* The shard's in-sync set becomes `m`, each with the incarnation it has now; see copies_critical(). */
static void set_in_sync(struct cdb_txn *t, const struct volume *v, const char *id, int n, const struct member_disk *m, uint64_t batch)
{
    struct cdb_imap map = {0};
    char *k[OWNER_MEMBERS_MAX];
    int64_t val[OWNER_MEMBERS_MAX];
    for (int i = 0; i < n; i++) { /* sorted by key */
        size_t at = map.n;
        for (; at > 0 && strcmp(k[at - 1], m[i].g->id) > 0; at--) {
            k[at] = k[at - 1];
            val[at] = val[at - 1];
        }
        k[at] = m[i].g->id;
        val[at] = (int64_t)m[i].incarnation;
        map.n++;
        require_incarnation(t, m[i].g, m[i].incarnation, batch);
    }
    map.k = k;
    map.v = val;
    cdb_txn_set_imap(t, CDB_T_SHARD, id, CDB_SHARD_in_sync, &map);
    for (int i = 0; i < n && n <= copies_min(v->replicas); i++) {
        if (!batch || m[i].g->batch_guard != batch)
            copies_guard(t, m[i].g->id);
        m[i].g->batch_guard = batch;
    }
}

static void created(void *arg, int status, const struct err *e)
{
    struct ref *r = arg;
    if (ref_current(r)) {
        if (status && status != E_CONFLICT && status != E_UNKNOWN)
            log_warn("volume %s shard %u: cannot be made: %s", r->s->v->name, r->s->index, e ? e->msg : err_code_name(status));
        owner_created(r->s->core, status, now_ms());
        shard_after(r->s);
    }
    ref_free(r);
}

static void create_failed(struct later *l)
{
    struct ref *r = container_of(l, struct ref, later);
    created(r, r->status, NULL);
}

static void env_create(void *arg)
{
    struct shard *s = arg;
    struct asan *a = s->v->a;
    struct ref *r = ref_new(s, 0);
    const struct cdb_view *view = view_of(a);
    const struct cdb_volume *vol = view ? cdb_volume_get(view, s->v->id) : NULL;
    struct placement p;
    struct err e;
    r->status = vol ? place_shard(view, a->node_id, vol, s->index, &p, &e) : E_UNAVAIL;
    if (r->status) {
        if (vol)
            log_warn("%s", e.msg);
        later(a, &r->later, create_failed);
        return;
    }
    char id[ID_LEN + 16];
    const char *disk[3];
    struct member_disk m[3];
    for (int i = 0; i < p.n; i++) {
        disk[i] = p.at[i].disk;
        m[i] = (struct member_disk){gdisk_get(a, p.at[i].disk), (uint64_t)p.at[i].incarnation};
    }
    shard_id(s->v, s->index, id, sizeof id);
    struct cdb_txn *t = cdb_txn_new();
    require_mine(t, s, 0);
    cdb_txn_require_absent(t, CDB_T_SHARD, id);
    cdb_txn_require_str(t, CDB_T_VOLUME, s->v->id, CDB_VOLUME_data, strcmp(s->v->data, s->v->id) ? s->v->data : "");
    cdb_txn_insert(t, CDB_T_SHARD, id);
    cdb_txn_set_str(t, CDB_T_SHARD, id, CDB_SHARD_volume, s->v->id);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_idx, s->index);
    cdb_txn_set_strs(t, CDB_T_SHARD, id, CDB_SHARD_replicas, (size_t)p.n, disk);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_generation, 1);
    set_in_sync(t, s->v, id, p.n, m, 0);
    cdb_txn_commit(a->link, t, "create shard", created, r);
}

static void put_change(struct cdb_txn *t, const struct ref *r, uint64_t batch)
{
    const struct shard *s = r->s;
    const struct owner_txn *o = &r->want;
    char id[ID_LEN + 16];
    struct member_disk m[OWNER_MEMBERS_MAX];
    for (int i = 0; i < o->n; i++)
        m[i] = (struct member_disk){s->v->a->gdisk[o->in_sync[i].disk], o->in_sync[i].incarnation};
    shard_id(s->v, s->index, id, sizeof id);
    require_mine(t, s, batch);
    cdb_txn_require_int(t, CDB_T_SHARD, id, CDB_SHARD_generation, (int64_t)o->generation);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_generation, (int64_t)o->generation + 1);
    set_in_sync(t, s->v, id, o->n, m, batch);
}

static void change_ended(struct ref *r, int status)
{
    if (ref_current(r)) {
        if (status)
            log_info("volume %s shard %u: in-sync set not changed: %s", r->s->v->name, r->s->index, err_code_name(status));
        owner_txn_done(r->s->core, status, now_ms());
        shard_after(r->s);
    }
    ref_free(r);
}

static void batch_queue(struct batch *b);
static void batch_add(struct ref *r);
static void batch_done(void *arg, int status, const struct err *e);

static struct batch *batch_new(struct asan *a)
{
    struct batch *b = xcalloc(1, sizeof *b);
    b->a = a;
    TAILQ_INIT(&b->refs);
    return b;
}

/* Does the view contradict what `r` requires? */
static bool out_of_date(const struct ref *r, const struct cdb_view *view)
{
    const struct volume *v = r->s->v;
    const struct cdb_volume *vol = cdb_volume_get(view, v->id);
    const struct cdb_shard *row = shard_row(view, v, r->s->index);
    if (!vol || !row || strcmp(vol->owner, v->a->node_id) || (uint64_t)vol->epoch != r->epoch || (uint64_t)row->generation != r->want.generation)
        return true;
    for (int i = 0; i < r->want.n; i++) {
        const struct cdb_disk *d = cdb_disk_get(view, v->a->gdisk[r->want.in_sync[i].disk]->id);
        if (!d || (uint64_t)d->incarnation != r->want.in_sync[i].incarnation)
            return true;
    }
    return false;
}

static void batch_send(struct batch *b, struct cdb_txn *t)
{
    LIST_INSERT_HEAD(&b->a->batches_out, b, out);
    cdb_txn_commit(b->a->link, t, "change replicas", batch_done, b);
}

static void batch_again(struct batch *b)
{
    const struct cdb_view *view = view_of(b->a);
    struct ref *r;
    int half = (b->n + 1) / 2;
    struct batch *part[2] = {batch_new(b->a), batch_new(b->a)};
    while ((r = TAILQ_FIRST(&b->refs))) {
        TAILQ_REMOVE(&b->refs, r, entry);
        if (!ref_current(r) || !view || out_of_date(r, view)) {
            change_ended(r, E_CONFLICT);
            continue;
        }
        struct batch *p = part[part[0]->n >= half];
        TAILQ_INSERT_TAIL(&p->refs, r, entry);
        p->n++;
    }
    for (int i = 0; i < 2; i++) {
        uint64_t number = ++b->a->batches;
        if (!part[i]->n) {
            free(part[i]);
            continue;
        }
        struct cdb_txn *t = cdb_txn_new();
        TAILQ_FOREACH (r, &part[i]->refs, entry)
            put_change(t, r, number);
        batch_send(part[i], t);
    }
}

static void batch_done(void *arg, int status, const struct err *e)
{
    struct batch *b = arg;
    struct ref *r;
    (void)e;
    LIST_REMOVE(b, out);
    if (status == E_CONFLICT && b->n > 1)
        batch_again(b);
    if (b->a->batch && LIST_EMPTY(&b->a->batches_out))
        batch_queue(b->a->batch);
    while ((r = TAILQ_FIRST(&b->refs))) {
        TAILQ_REMOVE(&b->refs, r, entry);
        change_ended(r, status);
    }
    free(b);
}

/* Puts what of `b` still counts into `t`, BATCH_MAX at most; the rest is the next batch. */
static void batch_fill(struct batch *b, struct cdb_txn *t)
{
    struct asan *a = b->a;
    struct ref *r, *next;
    uint64_t number = ++a->batches;
    int put = 0;
    for (r = TAILQ_FIRST(&b->refs); r; r = next) {
        next = TAILQ_NEXT(r, entry);
        bool current = ref_current(r) && a->link;
        if (current && put < BATCH_MAX) {
            put_change(t, r, number);
            put++;
            continue;
        }
        TAILQ_REMOVE(&b->refs, r, entry);
        b->n--;
        if (current)
            batch_add(r);
        else
            ref_free(r);
    }
}

static void batch_commit(struct later *l)
{
    struct batch *b = container_of(l, struct batch, later);
    struct asan *a = b->a;
    b->queued = false;
    if (!LIST_EMPTY(&a->batches_out))
        return; /* batch_done() comes back */
    a->batch = NULL;
    struct cdb_txn *t = cdb_txn_new();
    batch_fill(b, t);
    if (!b->n) {
        cdb_txn_free(t);
        free(b);
        return;
    }
    if (b->n > 1)
        log_info("in-sync sets of %d shards change in one transaction", b->n);
    batch_send(b, t);
}

static void batch_queue(struct batch *b)
{
    if (!b->queued)
        later(b->a, &b->later, batch_commit);
    b->queued = true;
}

static void batch_add(struct ref *r)
{
    struct asan *a = r->s->v->a;
    if (!a->batch) {
        a->batch = batch_new(a);
        batch_queue(a->batch);
    }
    TAILQ_INSERT_TAIL(&a->batch->refs, r, entry);
    a->batch->n++;
}

static void batch_forget(struct batch *b)
{
    struct ref *r;
    while ((r = TAILQ_FIRST(&b->refs))) {
        TAILQ_REMOVE(&b->refs, r, entry);
        ref_free(r);
    }
    if (b->queued)
        TAILQ_REMOVE(&b->a->laters, &b->later, entry);
    free(b);
}

void shard_batches_forget(struct asan *a)
{
    struct batch *b;
    while ((b = LIST_FIRST(&a->batches_out))) {
        LIST_REMOVE(b, out);
        batch_forget(b);
    }
    if (a->batch)
        batch_forget(a->batch);
    a->batch = NULL;
}

static void env_txn(void *arg, const struct owner_txn *o)
{
    struct shard *s = arg;
    struct ref *r = ref_new(s, 0);
    r->want = *o;
    log_info("volume %s shard %u: %s, %d in sync", s->v->name, s->index, o->adds ? "a replica is up to date" :
             "taking out a replica that does not answer", o->n);
    batch_add(r);
}

/* ---- life ---- */

void shard_view(struct shard *s, const struct cdb_view *view)
{
    struct asan *a = s->v->a;
    const struct cdb_volume *vol = cdb_volume_get(view, s->v->id);
    const struct cdb_shard *row = shard_row(view, s->v, s->index);
    if (!s->core || !vol)
        return;
    struct owner_view ov = {.epoch = (uint64_t)vol->epoch, .mine = !strcmp(vol->owner, a->node_id), .exists = row != NULL};
    if (row) {
        ov.generation = (uint64_t)row->generation;
        for (size_t i = 0; i < row->replicas.n && ov.n < OWNER_MEMBERS_MAX; i++) {
            struct gdisk *g = gdisk_get(a, row->replicas.v[i]);
            ov.replica[ov.n++] = (struct owner_view_replica){
                .disk = g->number, .incarnation = g->incarnation, .in_sync = cdb_shard_in_sync(view, row, g->id),
                .usable = g->usable, .local = g->local != NULL, .up = gdisk_up(a, g), .full = g->full,
                .silent = gdisk_silent(a, g)};
        }
    }
    owner_view(s->core, &ov, now_ms());
    lost_give(s, vol);
    shard_after(s);
}

struct shard *shard_get(struct volume *v, uint32_t index)
{
    struct asan *a = v->a;
    assert(v->open && index < v->n_shards);
    struct shard *s = v->shard[index];
    if (s && s->core)
        return s;
    if (!s) {
        s = v->shard[index] = xcalloc(1, sizeof *s);
        s->v = v;
        s->index = index;
        s->refs = 1;
    }
    struct owner_conf conf = {.env = {env_send, env_create, env_txn, s}, .epoch = v->used_epoch,
                              .shard_bytes = v->shard_bytes, .replicas = v->replicas, .layered = *v->parent};
    s->epoch = v->used_epoch;
    s->may_join = false;
    s->core = owner_new(&conf, now_ms());
    owner_lease(s->core, a->lease, now_ms());
    const struct cdb_view *view = view_of(a);
    if (view)
        shard_view(s, view);
    return s;
}

void shard_after(struct shard *s)
{
    struct owner_op *op;
    if (s->core) /* now, not with the next tick: a copy that people see in sync has all its bytes counted */
        resync_count(s);
    while (s->core && (op = owner_take_done(s->core)))
        if (op->check || op->repair)
            check_op_done(op, op->status);
        else
            volume_part_done(op->arg, op->status);
}

void shard_close(struct shard *s)
{
    struct owner_ops ops = TAILQ_HEAD_INITIALIZER(ops);
    struct owner_op *op;
    if (!s->core)
        return;
    shard_after(s);
    owner_drain(s->core, &ops);
    s->copied_seen = 0;
    owner_free(s->core);
    s->core = NULL;
    free(s->have);
    s->have = NULL;
    while ((op = TAILQ_FIRST(&ops))) {
        TAILQ_REMOVE(&ops, op, entry);
        if (op->check || op->repair) {
            check_op_done(op, E_UNAVAIL);
            continue;
        }
        struct part *p = op->arg;
        layer_write_parked(p);
        TAILQ_INSERT_TAIL(&s->v->parked, p, entry);
    }
}
