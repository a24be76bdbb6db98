/* Owner core: life, events, states and parking. See owner.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

const char *owner_state_name(enum owner_state s)
{
    static const char *const name[] = {"new", "absent", "creating", "fencing", "reconciling", "serving", "stale"};
    return name[s];
}

int owner_min_isr(int replicas)
{
    return replicas >= 3 ? 2 : 1;
}

unsigned isr_mask(const struct owner *o)
{
    unsigned mask = 0;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].isr)
            mask |= bit(i);
    return mask;
}

unsigned required_mask(const struct owner *o)
{
    unsigned mask = 0;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (required(&o->m[i]))
            mask |= bit(i);
    return mask;
}

int isr_count(const struct owner *o)
{
    return __builtin_popcount(isr_mask(o));
}

bool isr_full(const struct owner *o)
{
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].isr && o->m[i].full)
            return true;
    return false;
}

uint64_t new_tag(struct owner *o)
{
    return ++o->next_tag;
}

bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

void set_state(struct owner *o, enum owner_state s)
{
    static const uint32_t allowed[] = {
        [OWNER_NEW] = 1u << OWNER_ABSENT | 1u << OWNER_FENCING | 1u << OWNER_STALE,
        [OWNER_ABSENT] = 1u << OWNER_CREATING | 1u << OWNER_FENCING | 1u << OWNER_STALE,
        [OWNER_CREATING] = 1u << OWNER_FENCING | 1u << OWNER_STALE,
        [OWNER_FENCING] = 1u << OWNER_RECONCILING | 1u << OWNER_STALE,
        [OWNER_RECONCILING] = 1u << OWNER_SERVING | 1u << OWNER_STALE,
        [OWNER_SERVING] = 1u << OWNER_STALE,
        [OWNER_STALE] = 0,
    };
    assert(allowed[o->state] & 1u << s);
    o->state = s;
}

struct owner *owner_new(const struct owner_conf *conf, uint64_t now_ms)
{
    assert(conf->epoch && conf->shard_bytes && conf->shard_bytes % STORE_CHUNK == 0);
    struct owner *o = xcalloc(1, sizeof *o);
    o->conf = *conf;
    o->env = conf->env;
    struct owner_conf *c = &o->conf;
    c->silent_ms = c->silent_ms ? c->silent_ms : 2500;
    c->down_ms = c->down_ms ? c->down_ms : 1500;
    c->batch_chunks = c->batch_chunks ? c->batch_chunks : 1024;
    c->op_border = c->op_border ? c->op_border : OWNER_OP_BORDER;
    c->window_bytes = c->window_bytes ? c->window_bytes : 16u << 20;
    assert((uint64_t)c->batch_chunks * STORE_CHUNK % c->op_border == 0);
    o->min_isr = owner_min_isr(c->replicas);
    o->next_seq = 1;
    o->now = now_ms;
    TAILQ_INIT(&o->waiting);
    TAILQ_INIT(&o->reading);
    TAILQ_INIT(&o->writing);
    TAILQ_INIT(&o->done);
    return o;
}

void owner_free(struct owner *o)
{
    if (!o)
        return;
    assert(TAILQ_EMPTY(&o->waiting) && TAILQ_EMPTY(&o->reading) && TAILQ_EMPTY(&o->writing) && TAILQ_EMPTY(&o->done));
    free(o->ranges);
    join_free(o);
    free(o);
}

void go_stale(struct owner *o, uint64_t epoch)
{
    if (epoch > o->stale_epoch)
        o->stale_epoch = epoch;
    if (o->state == OWNER_STALE)
        return;
    set_state(o, OWNER_STALE);
    o->join.state = J_IDLE;
}

/* May guest requests be issued? */
bool may_issue(const struct owner *o)
{
    return (o->lease || MUTANT(OWNER_READ_NO_LEASE)) &&
           (o->state == OWNER_SERVING || (o->state == OWNER_RECONCILING && MUTANT(OWNER_SERVE_RECONCILING))) &&
           isr_count(o) >= o->min_isr;
}

static const char *parked_reason(const struct owner *o)
{
    switch (o->state) {
    case OWNER_NEW: return "the database has not answered yet";
    case OWNER_STALE: return "a newer owner has taken over";
    case OWNER_CREATING: return o->create_status ? "no room for a new shard's replicas" : "creating the shard";
    default: break;
    }
    if (!o->lease)
        return "no node lease";
    if (o->state == OWNER_ABSENT)
        return NULL;
    if (isr_count(o) == 0)
        return "no replica is in sync";
    if (o->state == OWNER_FENCING)
        return "fencing the previous owner";
    if (o->state == OWNER_RECONCILING)
        return "reconciling replicas";
    if (isr_count(o) < o->min_isr)
        return "too few replicas in sync";
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].isr && o->m[i].failing)
            return o->txn_busy ? "taking a failed replica out" : "a replica does not answer";
    if (isr_full(o))
        return "the disk of a replica is full: writes wait for space";
    return NULL;
}

/* ---- the database ---- */

static struct member *member_slot(struct owner *o, const struct owner_view_replica *r)
{
    int i = member_find(o, r->disk);
    for (int k = 0; i < 0 && k < OWNER_MEMBERS_MAX; k++)
        if (!o->m[k].used)
            i = k;
    if (i < 0)
        return NULL; /* more replicas than slots: the database refuses such rows */
    struct member *m = &o->m[i];
    if (!m->used) {
        memset(m, 0, sizeof *m);
        m->used = true;
        m->disk = r->disk;
        m->incarnation = r->incarnation;
        m->up = r->up;
        m->down_ms = m->not_live_ms = o->now;
    }
    return m;
}

/* The disk's content was declared worthless, or its node dead: whatever we knew of the member is void. */
static void member_incarnation(struct owner *o, struct member *m, uint64_t incarnation)
{
    int i = (int)(m - o->m);
    m->isr = m->add_pending = false;
    if (o->join.state != J_IDLE && o->join.m == i)
        join_abort(o, "incarnation");
    member_out(o, i);
    m->incarnation = incarnation;
    m->join_retry_ms = 0;
}

static void view_members(struct owner *o, const struct owner_view *v, bool newer)
{
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        o->m[i].listed = false;
    for (int k = 0; k < v->n; k++) {
        const struct owner_view_replica *r = &v->replica[k];
        struct member *m = member_slot(o, r);
        if (!m)
            continue;
        int i = (int)(m - o->m);
        m->listed = true;
        m->usable = r->usable;
        m->local = r->local;
        m->silent = r->silent;
        m->view_full = r->full;
        m->full = m->full || r->full;
        if (r->incarnation > m->incarnation && MUTANT(OWNER_INCARNATION))
            m->incarnation = r->incarnation;
        if (r->incarnation > m->incarnation)
            member_incarnation(o, m, r->incarnation);
        bool in_sync = r->in_sync && r->incarnation == m->incarnation;
        in_sync = in_sync || (MUTANT(OWNER_INCARNATION) && m->isr && !newer);
        if (newer) {
            bool added = in_sync && !m->isr;
            m->isr = in_sync;
            m->add_pending = false;
            if (added && o->join.state != J_IDLE && o->join.m == i)
                join_added(o);
        } else if (!in_sync && m->isr) {
            m->isr = false;
        }
        if (required(m))
            member_want(o, i);
        else
            member_out(o, i);
    }
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        struct member *m = &o->m[i];
        if (!m->used || m->listed)
            continue;
        m->isr = m->add_pending = false;
        if (o->join.state != J_IDLE && o->join.m == i)
            join_abort(o, "no longer a replica");
        member_out(o, i);
        m->used = false;
    }
}

static void pump(struct owner *o)
{
    assert(!o->in_step); /* the environment must not call back */
    o->in_step = true;
    if (o->state == OWNER_FENCING) {
        bool all = isr_count(o) > 0;
        for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
            if (o->m[i].isr && o->m[i].state != M_LIVE)
                all = false;
        if (all) {
            set_state(o, OWNER_RECONCILING); /* rule 3: every in-sync member obeys our epoch */
            reconcile_reset(o);
        }
    }
    reconcile_pump(o);
    ops_pump(o);
    reconcile_pump(o); /* slots that have become free */
    ops_pump(o);
    if (o->state != OWNER_STALE) {
        join_pump(o);
        isr_pump(o);
        ops_pump(o);
    }
    o->in_step = false;
}

void owner_view(struct owner *o, const struct owner_view *v, uint64_t now_ms)
{
    o->now = now_ms;
    if (v->epoch < o->conf.epoch || o->state == OWNER_STALE)
        return; /* from before we became the owner */
    if (v->epoch > o->conf.epoch || !v->mine) {
        go_stale(o, v->epoch);
    } else if (!v->exists) {
        if (o->state == OWNER_NEW)
            set_state(o, OWNER_ABSENT);
        else if (o->state > OWNER_CREATING)
            go_stale(o, v->epoch); /* the row is gone: the volume is being deleted */
    } else if (v->generation >= o->generation) {
        bool newer = v->generation > o->generation;
        o->generation = v->generation;
        if (o->state < OWNER_FENCING)
            set_state(o, OWNER_FENCING);
        view_members(o, v, newer);
        if (newer)
            isr_resolved(o);
        o->txn_retry_ms = 0;
    }
    pump(o);
}

void owner_created(struct owner *o, int status, uint64_t now_ms)
{
    o->now = now_ms;
    o->create_status = status == E_OK || status == E_CONFLICT || status == E_UNKNOWN ? 0 : status;
    /* The view tells what happened; ask again if it does not within a while. */
    o->create_retry_ms = now_ms + (o->create_status ? 1000 : 300);
    pump(o);
}

void owner_lease(struct owner *o, bool on, uint64_t now_ms)
{
    o->now = now_ms;
    o->lease = on;
    pump(o);
}

void owner_allow_join(struct owner *o, bool allowed, uint64_t now_ms)
{
    o->now = now_ms;
    o->allow_join = allowed;
    pump(o);
}

uint32_t owner_join_credit(struct owner *o, uint32_t chunks, uint64_t now_ms)
{
    uint32_t left = o->join_paced ? o->join_credit : 0;
    o->now = now_ms;
    o->join_paced = true;
    o->join_credit = chunks;
    pump(o);
    return left;
}

void owner_conn(struct owner *o, uint32_t disk, bool up, uint64_t now_ms)
{
    o->now = now_ms;
    int i = member_find(o, disk);
    if (i < 0 || o->m[i].up == up)
        return;
    struct member *m = &o->m[i];
    m->up = up;
    if (!up) {
        m->down_ms = now_ms;
        if (m->state != M_OUT)
            member_reset(o, i, 0);
    } else {
        m->retry_ms = 0;
        m->join_retry_ms = 0;
        if (required(m) && o->state != OWNER_STALE)
            member_want(o, i);
    }
    pump(o);
}

void owner_silent(struct owner *o, uint32_t disk, bool silent, uint64_t now_ms)
{
    int i = member_find(o, disk);
    if (i < 0 || o->m[i].silent == silent)
        return;
    o->m[i].silent = silent;
    owner_tick(o, now_ms);
}

void owner_submit(struct owner *o, struct owner_op *op, uint64_t now_ms)
{
    o->now = now_ms;
    assert(op->length && op->offset % 512 == 0 && op->length % 512 == 0);
    assert(op->offset + op->length <= o->conf.shard_bytes);
    assert(op->offset / o->conf.op_border == (op->offset + op->length - 1) / o->conf.op_border);
    op->phase = PH_WAITING;
    op->targets = op->sent = op->acked = 0;
    op->bad = op->repair ? op->avoid : 0;
    op->source = -1;
    op->seq = op->tag = 0;
    op->status = 0;
    TAILQ_INSERT_TAIL(&o->waiting, op, entry);
    pump(o);
}

void owner_answer(struct owner *o, uint32_t disk, const struct repl_answer *a, uint64_t now_ms)
{
    o->now = now_ms;
    int i = member_find(o, disk);
    if (i < 0 || o->state == OWNER_STALE)
        return;
    member_answer(o, i, a);
    pump(o);
}

void owner_settle(struct owner *o, uint64_t now_ms)
{
    o->last_write_ms = 0;
    owner_tick(o, now_ms);
}

void owner_tick(struct owner *o, uint64_t now_ms)
{
    o->now = now_ms;
    if (o->state == OWNER_STALE)
        return;
    if (o->state == OWNER_CREATING && o->create_retry_ms && now_ms >= o->create_retry_ms) {
        o->create_retry_ms = 0;
        o->env.create(o->env.arg);
    }
    members_tick(o);
    pump(o);
}

struct owner_op *owner_take_done(struct owner *o)
{
    struct owner_op *op = TAILQ_FIRST(&o->done);
    if (op)
        TAILQ_REMOVE(&o->done, op, entry);
    return op;
}

void owner_drain(struct owner *o, struct owner_ops *ret_ops)
{
    struct owner_ops *from[] = {&o->writing, &o->reading, &o->waiting};
    for (int k = 0; k < 3; k++) {
        struct owner_op *op;
        while ((op = TAILQ_FIRST(from[k]))) {
            TAILQ_REMOVE(from[k], op, entry);
            if (op >= o->rewrite && op < o->rewrite + REWRITES) {
                iobuf_unref(op->data);
                op->data = NULL;
                op->phase = PH_IDLE;
                continue;
            }
            if (op->repair) {
                iobuf_unref(op->data);
                op->data = NULL;
            }
            op->phase = PH_IDLE;
            TAILQ_INSERT_TAIL(ret_ops, op, entry);
        }
    }
    o->bytes_in_flight = 0;
}

/* Nothing under way, and every in-sync member that is there knows that all is committed: it can destage everything. */
static bool quiet(const struct owner *o)
{
    if (!TAILQ_EMPTY(&o->waiting) || !TAILQ_EMPTY(&o->reading) || !TAILQ_EMPTY(&o->writing) || o->txn_busy)
        return false;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (o->m[i].isr && o->m[i].state == M_LIVE && o->m[i].told_commit < (int64_t)o->commit_seq)
            return false;
    return o->state == OWNER_ABSENT || o->state == OWNER_SERVING;
}

static unsigned count(const struct owner_ops *l)
{
    unsigned n = 0;
    const struct owner_op *op;
    TAILQ_FOREACH (op, l, entry)
        n++;
    return n;
}

uint64_t owner_copied(const struct owner *o)
{
    return o->copied_total;
}

void owner_info(const struct owner *o, struct owner_info *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->state = o->state;
    ret->parked = parked_reason(o);
    ret->epoch = o->conf.epoch;
    ret->generation = o->generation;
    ret->stale_epoch = o->stale_epoch;
    ret->n_isr = isr_count(o);
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        const struct member *m = &o->m[i];
        if (!m->used)
            continue;
        int k = ret->n_replicas++;
        ret->member[k].disk = m->disk;
        ret->member[k].isr = m->isr;
        ret->member[k].joining = m->joining;
        ret->member[k].live = m->state == M_LIVE;
        ret->member[k].failing = m->failing;
    }
    ret->waiting = count(&o->waiting);
    ret->reading = count(&o->reading);
    ret->writing = count(&o->writing);
    ret->next_seq = o->next_seq;
    ret->commit_seq = o->commit_seq;
    ret->lost_bytes = o->lost_bytes;
    ret->quiet = quiet(o);
    ret->at_rest = ret->quiet && o->join.state == J_IDLE;
    ret->joining = o->join.state != J_IDLE;
    ret->wants_join = ret->joining || join_wanted(o, NULL);
    if (ret->joining) {
        ret->join_disk = o->m[o->join.m].disk;
        ret->join_total = o->conf.shard_bytes / STORE_CHUNK;
        ret->join_done = o->join.first;
        if (o->join.state == J_COPY) {
            ret->join_done += o->join.count - o->join.left;
            ret->join_left = o->join.left;
        }
        ret->join_copied = o->join.copied;
    }
}
