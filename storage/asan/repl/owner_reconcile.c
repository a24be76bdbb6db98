/* Owner core: reconciling after a change of owner (rule 5). Members differ only where one of them holds a write that was
 * never acknowledged, and such writes are in the tails above the commit marks. The union of the tails' ranges is read
 * from one member (any one is right, see owner.h) and written to all under our epoch, so that no chunk keeps a version
 * that only some members have. Ranges may overlap and repeat: writing a range too many does no harm. */
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
            if (o->n_ranges > o->cap_ranges / 2 || !o->cap_ranges) {
                o->cap_ranges = o->cap_ranges ? o->cap_ranges * 2 : 64;
                o->ranges = xrealloc(o->ranges, o->cap_ranges * sizeof *o->ranges);
            }
        }
        o->ranges[o->n_ranges++] = (struct range){r->offset, r->offset + r->length};
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
static bool next_piece(struct owner *o, uint64_t *ret_offset, uint32_t *ret_length)
{
    if (o->range_at == o->n_ranges)
        return false;
    const struct range *r = &o->ranges[o->range_at];
    uint64_t start = r->start + o->range_off, end = r->end;
    uint64_t border = (start / o->conf.op_border + 1) * o->conf.op_border;
    if (end > border)
        end = border;
    if (end - start > REWRITE_MAX) /* no chunk in two pieces: a member that lacks it must get it whole */
        end = (start + REWRITE_MAX) / STORE_CHUNK * STORE_CHUNK;
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
    if (o->conf.test_bugs & OWNER_BUG_NO_RECONCILE)
        o->range_at = o->n_ranges;
    for (int k = 0; k < REWRITES; k++) {
        struct owner_op *op = &o->rewrite[k];
        uint64_t offset;
        uint32_t length;
        if (op->phase != PH_IDLE || !next_piece(o, &offset, &length))
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
