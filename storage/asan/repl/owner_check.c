/* Owner core: consistency checks. An OWNER_CHECK holds back writes to its range, so all that were admitted before are settled:
 * every in-sync member must then hold the same bytes, whether they lie in its journal or in an extent. Each answers with a
 * crc32c per 4 KiB and says which blocks it cannot read. Who is wrong follows from the answers:
 *
 *   cannot read it, another one can                    wrong, the others are right
 *   readable copies differ, more than half of all agree those who do not are wrong
 *   readable copies differ otherwise, or none is left   unclear: nobody can tell, nothing is touched
 *
 * A check never takes a member out of the set and never waits for one: whatever happens to a member, or no answer for
 * `silent_ms`, ends it with E_UNAVAIL and the caller tries again. Repair is an operation of its own (owner_op.repair): it
 * reads from a member that is right and writes to all as an ordinary write, so it can never undo a newer one. */
#include <endian.h>
#include <string.h>
#include "storage/asan/repl/owner_priv.h"

static void start(struct owner *o, struct owner_op *op)
{
    unsigned targets = isr_mask(o);
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (targets & bit(i) && o->m[i].state != M_LIVE)
            targets = 0;
    if (!targets) {
        op_end_check(o, op, E_UNAVAIL);
        return;
    }
    memset(op->check, 0, sizeof *op->check);
    op->check->generation = o->generation;
    op->targets = (uint8_t)targets;
    op->acked = 0;
    op->tag = new_tag(o);
    op->sent_ms[0] = o->now;
    struct repl_msg msg = {.kind = REPL_READ, .digest = true, .tag = op->tag, .offset = op->offset, .length = op->length};
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (targets & bit(i))
            member_send(o, i, &msg);
}

/* Members whose block `b` is wrong; all of them: unclear. */
static unsigned judge(const struct owner_op *op, unsigned b)
{
    const struct owner_check *c = op->check;
    unsigned readable = 0, best = 0, all = (unsigned)__builtin_popcount(op->targets);
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (op->targets & bit(i) && !(c->unreadable[i] >> b & 1))
            readable |= bit(i);
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        unsigned same = 0;
        for (int k = 0; k < OWNER_MEMBERS_MAX; k++)
            if (readable & bit(i) && readable & bit(k) && c->crc[i][b] == c->crc[k][b])
                same |= bit(k);
        if (__builtin_popcount(same) > __builtin_popcount(best))
            best = same;
    }
    if (!readable || (best != readable && (unsigned)__builtin_popcount(best) * 2 <= all))
        return op->targets;
    return op->targets & ~best;
}

static void compare(struct owner_op *op)
{
    struct owner_check *c = op->check;
    for (unsigned b = 0; b < op->length / OWNER_CHECK_BLOCK; b++) {
        unsigned wrong = judge(op, b);
        if (wrong == op->targets)
            c->unclear |= 1ull << b;
        else
            c->wrong[b] = (uint8_t)wrong;
    }
}

void check_answer(struct owner *o, struct owner_op *op, int i, const struct repl_answer *a)
{
    struct owner_check *c = op->check;
    if (!(op->targets & bit(i)) || op->acked & bit(i))
        return;
    if (a->status || !a->data) {
        op_end_check(o, op, E_UNAVAIL);
        return;
    }
    struct repl_digest d;
    memcpy(&d, a->data->data + a->data_off, sizeof d);
    c->unreadable[i] = le64toh(d.unreadable);
    for (unsigned b = 0; b < op->length / OWNER_CHECK_BLOCK; b++)
        c->crc[i][b] = le32toh(d.crc[b]);
    op->acked |= bit(i);
}

void check_pump(struct owner *o, struct owner_op *op)
{
    if (!op->targets) {
        start(o, op);
        return;
    }
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++)
        if (op->targets & bit(i) && (!o->m[i].isr || o->m[i].state != M_LIVE)) {
            op_end_check(o, op, E_UNAVAIL);
            return;
        }
    if (op->acked == op->targets) {
        compare(op);
        op_end_check(o, op, E_OK);
    } else if (o->now - op->sent_ms[0] >= o->conf.silent_ms) {
        op_end_check(o, op, E_UNAVAIL);
    }
}
