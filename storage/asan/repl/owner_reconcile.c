/* Owner core: reconciling after a change of owner (rule 5). Members differ only where one of them holds a write that was
 * never acknowledged, and such writes are in the tails above the commit marks. The union of the tails' ranges is read
 * from one member (any one is right, see owner.h) and written to all under our epoch, so that no chunk keeps a version
 * that only some members have. Ranges may overlap and repeat: writing a range too many does no harm.
 *
 * A piece that no in-sync member can read (damaged on all of them) is not skipped whole: all blocks of its chunks, then
 * sectors, are tried one by one, so that only what is really gone stays as it is, and the chunk's version changes in any
 * case: else a replica outside the set, with other bytes, could have an equal one. What is gone reads as E_CORRUPT. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

void reconcile_reset(struct owner *o)
{
    o->n_ranges = o->range_at = 0;
    o->range_off = 0;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        o->m[i].tail_done = false;
        o->m[i].tail_after = (struct store_version){0, 0};
        o->m[i].ctl_tag = 0;
    }
}

static int by_start(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static void merge_ranges(struct owner *o)
{
    size_t n = 0;
    if (o->n_ranges)
        qsort(o->ranges, o->n_ranges, sizeof *o->ranges, by_start);
    for (size_t k = 0; k < o->n_ranges; k++) {
        if (n && o->ranges[k].start <= o->ranges[n - 1].end) {
            if (o->ranges[k].end > o->ranges[n - 1].end)
                o->ranges[n - 1].end = o->ranges[k].end;
        } else {
            o->ranges[n++] = o->ranges[k];
        }
    }
    o->n_ranges = n;
}

static void grow_ranges(struct owner *o)
{
    o->cap_ranges = o->cap_ranges ? o->cap_ranges * 2 : 64;
    o->ranges = xrealloc(o->ranges, o->cap_ranges * sizeof *o->ranges);
}

void reconcile_unreadable(struct owner *o, const struct owner_op *op)
{
    uint64_t start = op->offset, end = op->offset + op->length;
    uint32_t unit = o->rewrite_unit[op - o->rewrite];
    if (MUTANT(OWNER_SKIP_UNREADABLE))
        return;
    if (o->conf.layered) { /* a chunk that is absent here must not begin in part, over what lies below */
        o->lost_bytes += op->length;
        return;
    }
    if (unit == REWRITE_MAX) {
        start = start / STORE_CHUNK * STORE_CHUNK;
        end = (end + STORE_CHUNK - 1) / STORE_CHUNK * STORE_CHUNK;
        unit = BLOCK;
    } else if (unit == BLOCK) {
        unit = 512;
    } else {
        o->lost_bytes += op->length;
        return;
    }
    if (o->n_ranges == o->cap_ranges)
        grow_ranges(o);
    o->ranges[o->n_ranges++] = (struct range){start, end, unit};
}

void reconcile_tail(struct owner *o, int i, const struct repl_answer *a)
{
    struct member *m = &o->m[i];
    if (a->status) { /* E_CORRUPT: its journal cannot be believed */
        m->broken = m->failing = true;
        member_reset(o, i, 1000);
        return;
    }
    for (size_t k = 0; k < a->n_tail; k++) {
        const struct store_tail_rec *r = &a->tail[k];
        if (!r->length || r->offset % 512 || r->length % 512 || r->offset + r->length > o->conf.shard_bytes)
            continue; /* outside the shard: the wire decoder refuses it, so does this */
        if (o->n_ranges == o->cap_ranges) {
            merge_ranges(o);
            if (o->n_ranges >= o->cap_ranges / 2)
                grow_ranges(o);
        }
        o->ranges[o->n_ranges++] = (struct range){r->offset, r->offset + r->length, REWRITE_MAX};
        m->tail_after = r->version;
    }
    if (!a->more || !a->n_tail)
        m->tail_done = true;
}

static bool tails_complete(struct owner *o)
{
    bool all = true;
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        struct member *m = &o->m[i];
        if (!m->isr || m->tail_done)
            continue;
        if (MUTANT(OWNER_ONE_TAIL) && i != __builtin_ctz(isr_mask(o)))
            continue;
        all = false;
        if (m->state != M_LIVE || m->ctl_tag)
            continue;
        m->ctl_tag = new_tag(o);
        m->ctl_ms = o->now;
        struct repl_msg msg = {.kind = REPL_TAIL, .tag = m->ctl_tag, .version = m->tail_after};
        member_send(o, i, &msg);
    }
    return all && isr_mask(o);
}

/* Cuts the next piece off the ranges. */
static bool next_piece(struct owner *o, uint64_t *ret_offset, uint32_t *ret_length, uint32_t *ret_unit)
{
    if (o->range_at == o->n_ranges)
        return false;
    const struct range *r = &o->ranges[o->range_at];
    uint64_t start = r->start + o->range_off, end = r->end;
    uint64_t border = (start / o->conf.op_border + 1) * o->conf.op_border;
    if (end > border)
        end = border;
    if (end - start > r->unit) /* no chunk in two large pieces: a member that lacks it must get it whole */
        end = r->unit < STORE_CHUNK ? start + r->unit : (start + r->unit) / STORE_CHUNK * STORE_CHUNK;
    *ret_unit = r->unit;
    *ret_offset = start;
    *ret_length = (uint32_t)(end - start);
    o->range_off += end - start;
    if (end == r->end) {
        o->range_at++;
        o->range_off = 0;
    }
    return true;
}

void reconcile_pump(struct owner *o)
{
    if (o->state != OWNER_RECONCILING || !tails_complete(o))
        return;
    if (o->next_seq == 1 && o->range_at == 0 && o->range_off == 0)
        merge_ranges(o);
    if (MUTANT(OWNER_NO_RECONCILE))
        o->range_at = o->n_ranges;
    for (int k = 0; k < REWRITES; k++) {
        struct owner_op *op = &o->rewrite[k];
        uint64_t offset;
        uint32_t length;
        if (op->phase != PH_IDLE || !next_piece(o, &offset, &length, &o->rewrite_unit[k]))
            continue;
        memset(op, 0, sizeof *op);
        op->kind = OWNER_WRITE;
        op->offset = offset;
        op->length = length;
        op->source = -1;
        TAILQ_INSERT_TAIL(&o->reading, op, entry);
        op_start_read(o, op);
    }
    if (o->range_at == o->n_ranges && !rewrite_pending(o)) {
        set_state(o, OWNER_SERVING);
        free(o->ranges);
        o->ranges = NULL;
        o->n_ranges = o->cap_ranges = o->range_at = 0;
    }
}
