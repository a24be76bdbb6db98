/* Owner core: operations. Waiting ones are admitted in order unless they overlap one before them (rule 7); a read is
 * carried out by one in-sync member, a write by all required ones (rule 1). See owner.h. */
#include <assert.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

#define REPAIR_ALIGN STORE_CHUNK /* checksums cover less, but a chunk that was never written is not to be begun in part */

static bool internal(const struct owner *o, const struct owner_op *op)
{
    return op >= o->rewrite && op < o->rewrite + REWRITES;
}

/* Reads from a good member first, then writes that to all. */
static bool rewrites(const struct owner *o, const struct owner_op *op)
{
    return internal(o, op) || op->repair;
}

static void finish(struct owner *o, struct owner_op *op, int status)
{
    op->status = status;
    if (op->repair) {
        iobuf_unref(op->data);
        op->data = NULL;
    }
    if (internal(o, op)) {
        iobuf_unref(op->data);
        op->data = NULL;
        op->phase = PH_IDLE;
        return;
    }
    op->phase = PH_DONE;
    TAILQ_INSERT_TAIL(&o->done, op, entry);
}

static bool answered_by(const struct owner_op *op, unsigned members)
{
    return (op->acked & op->targets & members) == (op->targets & members);
}

/* Durable wherever it must be. It may still be held back while the set is below its minimum. */
static bool settled(const struct owner *o, const struct owner_op *op)
{
    return answered_by(op, required_mask(o)) && isr_mask(o);
}

bool write_in_flight(const struct owner *o, uint64_t offset, uint64_t length)
{
    const struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry)
        if (!settled(o, op) && overlaps(op->offset, op->length, offset, length))
            return true;
    return false;
}

/* Member i has entered the set. Writes that were not sent to it were settled before their chunks were compared or
 * copied, so it has their bytes. */
void ops_joined(struct owner *o, int i)
{
    struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry)
        if (!(op->targets & bit(i))) {
            assert(settled(o, op) || MUTATED);
            op->targets |= bit(i);
            op->acked |= bit(i);
        }
}

bool rewrite_pending(const struct owner *o)
{
    for (int k = 0; k < REWRITES; k++)
        if (o->rewrite[k].phase != PH_IDLE)
            return true;
    return false;
}

/* ---- reads ---- */

int pick_source(const struct owner *o, unsigned except)
{
    int best = -1, best_score = -1;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        const struct member *m = &o->m[i];
        if (!m->isr || m->state != M_LIVE || except & bit(i))
            continue;
        int score = (m->failing ? 0 : 2) + (m->local ? 1 : 0);
        if (score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

void op_start_read(struct owner *o, struct owner_op *op)
{
    op->phase = PH_READING;
    op->source = (int8_t)pick_source(o, op->bad);
    if (op->source < 0)
        return; /* tried again at every step */
    op->tag = new_tag(o);
    op->sent_ms[op->source] = o->now;
    struct repl_msg msg = {.kind = REPL_READ, .tag = op->tag, .offset = op->offset, .length = op->length, .map = op->map,
                           .through = true, .fill = internal(o, op) || op->repair};
    member_send(o, op->source, &msg);
}

/* A member's copy was bad and another one's good: write the good one again, to all, through the normal path. */
static void start_repair(struct owner *o, const struct owner_op *read)
{
    struct owner_op *r = &o->rewrite[0];
    if (o->state != OWNER_SERVING || r->phase != PH_IDLE)
        return; /* the next read of the block finds it again */
    uint64_t end = (read->offset + read->length + REPAIR_ALIGN - 1) / REPAIR_ALIGN * REPAIR_ALIGN;
    memset(r, 0, sizeof *r);
    r->kind = OWNER_WRITE;
    r->offset = read->offset / REPAIR_ALIGN * REPAIR_ALIGN;
    r->length = (uint32_t)(end - r->offset);
    r->bad = read->bad;
    r->source = -1;
    r->phase = PH_WAITING;
    if (MUTANT(OWNER_REPAIR_RACES)) {
        TAILQ_INSERT_TAIL(&o->reading, r, entry);
        op_start_read(o, r);
        return;
    }
    TAILQ_INSERT_HEAD(&o->waiting, r, entry);
}

void op_answer_read(struct owner *o, struct owner_op *op, int i, const struct repl_answer *a)
{
    if (op->source != i)
        return;
    op->source = -1;
    op->tag = 0;
    if (a->status == E_CORRUPT) {
        op->bad |= bit(i);
        return;
    }
    if (!rewrites(o, op)) {
        if (!o->lease && !MUTANT(OWNER_READ_NO_LEASE))
            return; /* it may have been read after the lease ended, when another owner could write: read again */
        TAILQ_REMOVE(&o->reading, op, entry);
        op->data = a->data ? iobuf_ref(a->data) : NULL;
        op->data_off = a->data_off;
        op->crc = a->crc;
        op->absent = a->absent;
        finish(o, op, E_OK);
        if (op->bad & isr_mask(o))
            start_repair(o, op);
        return;
    }
    op->data = a->data ? iobuf_ref(a->data) : NULL;
    op->data_off = a->data_off;
    op->crc = a->crc;
    op->zero = !a->data;
    op->phase = PH_READ; /* moves to writing in pump_reading() */
}

/* ---- writes ---- */

void op_send_write(struct owner *o, struct owner_op *op, int i)
{
    struct member *m = &o->m[i];
    assert(m->chain < op->seq); /* rule 4: in order of seq */
    struct repl_msg msg = {.kind = REPL_WRITE, .tag = op->tag, .seq = op->seq, .prev_seq = m->chain, .offset = op->offset,
                           .length = op->length, .zero = op->zero, .crc = op->crc, .data = op->zero ? NULL : op->data,
                           .data_off = op->data_off, .use_reserve = m->full || internal(o, op)};
    if ((o->state == OWNER_SERVING || MUTANT(OWNER_EARLY_MARK)) && o->commit_seq) {
        msg.commit_seq = o->commit_seq;
        m->told_commit = (int64_t)o->commit_seq;
    }
    m->chain = op->seq;
    op->sent |= bit(i);
    op->sent_ms[i] = o->now;
    member_send(o, i, &msg);
}

void op_start_write(struct owner *o, struct owner_op *op, unsigned targets)
{
    op->phase = PH_WRITING;
    op->seq = o->next_seq++;
    op->tag = new_tag(o);
    op->targets = (uint8_t)targets;
    op->sent = op->acked = 0;
    o->bytes_in_flight += op->length;
    o->last_write_ms = o->now;
    TAILQ_INSERT_TAIL(&o->writing, op, entry);
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (targets & bit(i) && o->m[i].state == M_LIVE)
            op_send_write(o, op, i);
}

/* Who gets a write: every in-sync member, and one that may be about to become so. JOIN_HOLD: not yet. */
static enum join_class write_targets(struct owner *o, const struct owner_op *op, unsigned *ret_targets)
{
    unsigned targets = isr_mask(o);
    enum join_class c = join_classify(o, op);
    if (c == JOIN_SEND)
        targets |= bit(o->join.m);
    *ret_targets = targets;
    return c;
}

static void start_write(struct owner *o, struct owner_op *op, unsigned targets)
{
    op_start_write(o, op, targets);
    join_wrote(o, op);
}

static bool write_complete(const struct owner *o, const struct owner_op *op)
{
    if (MUTANT(OWNER_ACK_FIRST))
        return op->acked != 0;
    if (MUTANT(OWNER_ACK_BEFORE_TXN)) {
        unsigned need = op->targets & required_mask(o);
        for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
            if (o->m[i].failing)
                need &= ~bit(i);
        return need && (op->acked & need) == need;
    }
    if (!settled(o, op))
        return false;
    if (!rewrites(o, op) && isr_count(o) < o->min_isr && !MUTANT(OWNER_MIN_IGNORED))
        return false; /* rule 2 */
    assert((op->acked & isr_mask(o)) == isr_mask(o) || MUTATED); /* rule 1 */
    return true;
}

static void complete_writes(struct owner *o)
{
    struct owner_op *op, *next;
    unsigned required = required_mask(o);
    for (op = TAILQ_FIRST(&o->writing); op; op = next) {
        next = TAILQ_NEXT(op, entry);
        if (!answered_by(op, required) && !MUTATED) /* most of them, at every answer: no need to look closer */
            continue;
        if (!write_complete(o, op))
            continue;
        TAILQ_REMOVE(&o->writing, op, entry);
        o->bytes_in_flight -= op->length;
        finish(o, op, E_OK);
    }
    if (o->state == OWNER_SERVING || MUTANT(OWNER_EARLY_MARK)) {
        op = TAILQ_FIRST(&o->writing);
        o->commit_seq = (op ? op->seq : o->next_seq) - 1;
    }
}

void op_end_check(struct owner *o, struct owner_op *op, int status)
{
    TAILQ_REMOVE(&o->reading, op, entry);
    finish(o, op, status);
}

/* ---- admission ---- */

static bool conflict(const struct owner_op *a, const struct owner_op *b)
{
    return (a->kind == OWNER_WRITE || b->kind == OWNER_WRITE) && overlaps(a->offset, a->length, b->offset, b->length);
}

static bool conflicts(const struct owner *o, const struct owner_op *op)
{
    const struct owner_op *other;
    if (MUTANT(OWNER_NO_OVERLAP))
        return false;
    TAILQ_FOREACH (other, &o->writing, entry)
        if (conflict(op, other))
            return true;
    TAILQ_FOREACH (other, &o->reading, entry)
        if (conflict(op, other))
            return true;
    for (other = TAILQ_FIRST(&o->waiting); other != op; other = TAILQ_NEXT(other, entry))
        if (conflict(op, other))
            return true;
    return false;
}

static void admit(struct owner *o)
{
    struct owner_op *op, *next;
    unsigned scanned = 0;
    bool full = isr_full(o);
    for (op = TAILQ_FIRST(&o->waiting); op && scanned < SCAN_MAX; op = next) {
        next = TAILQ_NEXT(op, entry);
        if (full && op->kind == OWNER_WRITE && !op->zero && !internal(o, op))
            continue; /* not even sent; discards behind it may bring the space it waits for */
        scanned++;
        unsigned targets = 0;
        if (op->kind == OWNER_WRITE && !rewrites(o, op) && o->bytes_in_flight &&
            o->bytes_in_flight + op->length > o->conf.window_bytes)
            break;
        if (conflicts(o, op))
            continue;
        if (op->kind == OWNER_WRITE && !rewrites(o, op) &&
            (join_blocks(o, op) || write_targets(o, op, &targets) == JOIN_HOLD))
            continue;
        TAILQ_REMOVE(&o->waiting, op, entry);
        if (op->kind != OWNER_WRITE || rewrites(o, op)) {
            TAILQ_INSERT_TAIL(&o->reading, op, entry);
            if (op->kind == OWNER_CHECK)
                check_pump(o, op);
            else
                op_start_read(o, op);
        } else {
            start_write(o, op, targets);
        }
    }
}

/* No row: nothing was ever written here (thin). */
static void admit_absent(struct owner *o)
{
    struct owner_op *op, *next;
    for (op = TAILQ_FIRST(&o->waiting); op; op = next) {
        next = TAILQ_NEXT(op, entry);
        if (op->kind == OWNER_WRITE && (!op->zero || o->conf.layered)) {
            set_state(o, OWNER_CREATING);
            o->env.create(o->env.arg);
            return;
        }
        TAILQ_REMOVE(&o->waiting, op, entry);
        op->data = NULL;
        op->nowhere = true;
        finish(o, op, E_OK);
    }
}

static void pump_reading(struct owner *o)
{
    struct owner_op *op, *next;
    for (op = TAILQ_FIRST(&o->reading); op; op = next) {
        next = TAILQ_NEXT(op, entry);
        if (op->kind == OWNER_CHECK) {
            check_pump(o, op);
        } else if (op->repair && op->phase != PH_READ && op->generation != o->generation) {
            TAILQ_REMOVE(&o->reading, op, entry); /* `avoid` means other members by now */
            finish(o, op, E_CONFLICT);
        } else if (op->phase == PH_READ) { /* internal: write it as soon as the join lets it */
            unsigned targets;
            if (join_blocks(o, op) || write_targets(o, op, &targets) == JOIN_HOLD)
                continue;
            if (MUTANT(OWNER_REPLAY_MISSING) && o->state == OWNER_RECONCILING && targets & (targets - 1))
                targets &= targets - 1; /* the first one was the source */
            TAILQ_REMOVE(&o->reading, op, entry);
            start_write(o, op, targets);
        } else if (op->source < 0) {
            unsigned isr = isr_mask(o);
            if (isr && (isr & ~(unsigned)op->bad) == 0) {
                TAILQ_REMOVE(&o->reading, op, entry);
                if (internal(o, op) && o->state == OWNER_RECONCILING)
                    reconcile_unreadable(o, op);
                finish(o, op, E_CORRUPT);
            } else if (rewrites(o, op) || o->lease) {
                op_start_read(o, op);
            }
        }
    }
}

void ops_pump(struct owner *o)
{
    if (o->state == OWNER_STALE)
        return;
    complete_writes(o);
    pump_reading(o);
    if (o->state == OWNER_ABSENT && o->lease)
        admit_absent(o);
    else if (may_issue(o))
        admit(o);
}
