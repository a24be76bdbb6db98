/* Owner core: bringing a replica up to date (rule 6). The shard is walked in batches of chunks:
 *
 *   IDLE -> FENCE (a session) -> LOCK -> COMPARE -> COPY -> next batch ... -> BARRIER -> ADD -> in sync
 *                                 ^________________________|
 *   LOCK     writes to the batch wait until those in flight are over, so both sides' versions stand still
 *   COMPARE  versions of source and joiner; any difference means copy
 *   COPY     chunk by chunk, with the source's version, writes to that chunk waiting
 *   BARRIER  the joiner has answered all writes numbered up to here, so `last` of its next FENCE tells the truth even if
 *            the store counts copied versions
 *   ADD      the transaction; the joiner's answers are required whatever comes of it
 *
 * Which writes the joiner gets follows from the chunks: before the batch and the same: yes; not yet the same: no, their
 * version must stay different. An operation never crosses a border and batches are whole borders, so it lies in one
 * batch; if some of its chunks are the same and some are not it waits until all are, and they are copied first.
 * Any failure of the joiner ends the join; the next one compares again and copies only what differs, so work is kept. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "storage/asan/repl/owner_priv.h"

#define BACKOFF_MIN_MS 500
#define BACKOFF_MAX_MS 30000

static uint64_t total_chunks(const struct owner *o)
{
    return o->conf.shard_bytes / STORE_CHUNK;
}

bool join_wanted(const struct owner *o, int *ret_m)
{
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) {
        const struct member *m = &o->m[i];
        if (m->used && m->listed && m->usable && m->up && !m->silent && !m->full && !required(m) && o->now >= m->join_retry_ms) {
            if (ret_m)
                *ret_m = i;
            return true;
        }
    }
    return false;
}

static void copies_clear(struct join *j)
{
    for (int k = 0; k < JOIN_COPIES; k++)
        iobuf_unref(j->copy[k].whole);
    memset(j->copy, 0, sizeof j->copy);
}

void join_free(struct owner *o)
{
    copies_clear(&o->join);
    free(o->join.src);
    free(o->join.dst);
    free(o->join.same);
    free(o->given);
}

void join_abort(struct owner *o, const char *why)
{
    (void)why;
    struct join *j = &o->join;
    struct member *m = &o->m[j->m];
    assert(!m->add_pending);
    j->state = J_IDLE;
    copies_clear(j);
    m->joining = false;
    uint64_t wait = (uint64_t)BACKOFF_MIN_MS << (m->join_failures < 6 ? m->join_failures : 6);
    m->join_failures++;
    m->join_retry_ms = o->now + (wait < BACKOFF_MAX_MS ? wait : BACKOFF_MAX_MS);
    if (!m->isr)
        member_out(o, j->m);
}

void join_added(struct owner *o)
{
    struct join *j = &o->join;
    assert(j->state == J_ADD); /* rule 6: nobody but us adds, and only a member that has caught up */
    j->state = J_IDLE;
    o->m[j->m].joining = false;
    o->m[j->m].join_failures = 0;
    ops_joined(o, j->m);
}

/* Its session broke. */
void join_member_lost(struct owner *o, int i)
{
    struct join *j = &o->join;
    if (j->state == J_IDLE)
        return;
    if (i == j->m) {
        if (!o->m[i].add_pending)
            join_abort(o, "session lost");
        return;
    }
    if (j->source == i) /* a source is replaced; what it was asked is asked again */
        j->source = -1;
    for (int k = 0; k < JOIN_COPIES; k++)
        if (j->copy[k].state == C_READ && j->copy[k].source == i)
            j->copy[k].source = -1;
}

/* ---- which writes the joiner gets ---- */

static void chunks_of(const struct owner_op *op, uint64_t *ret_first, uint64_t *ret_end)
{
    *ret_first = op->offset / STORE_CHUNK;
    *ret_end = (op->offset + op->length + STORE_CHUNK - 1) / STORE_CHUNK;
}

bool join_blocks(const struct owner *o, const struct owner_op *op)
{
    const struct join *j = &o->join;
    uint64_t first, end;
    chunks_of(op, &first, &end);
    if (j->state == J_LOCK || j->state == J_COMPARE)
        return !MUTANT(OWNER_JOIN_NO_QUIET) && overlaps(first, end - first, j->first, j->count);
    if (j->state != J_COPY || MUTANT(OWNER_COPY_UNLOCKED))
        return false;
    for (int k = 0; k < JOIN_COPIES; k++)
        if (j->copy[k].state != C_FREE && j->copy[k].chunk >= first && j->copy[k].chunk < end)
            return true;
    return false;
}

enum join_class join_classify(struct owner *o, const struct owner_op *op)
{
    struct join *j = &o->join;
    uint64_t first, end;
    chunks_of(op, &first, &end);
    if (j->state == J_IDLE || j->state == J_FENCE)
        return JOIN_NONE;
    if (MUTANT(OWNER_JOIN_SEND_ALL))
        return JOIN_SEND;
    if (j->state == J_BARRIER || j->state == J_ADD || end <= j->first)
        return JOIN_SEND;
    if (first >= j->first + j->count)
        return JOIN_NONE;
    assert(first >= j->first && end <= j->first + j->count);
    uint32_t same = 0, different = 0, first_different = 0;
    for (uint64_t c = first; c < end; c++) {
        uint32_t k = (uint32_t)(c - j->first);
        if (j->same[k] == SAME)
            same++;
        else if (!different++)
            first_different = k;
    }
    if (!different)
        return JOIN_SEND;
    if (!same)
        return JOIN_NONE;
    j->hint = first_different;
    j->urgent = true;
    return JOIN_HOLD;
}

/* A write was issued: its chunks on the source get its version. */
void join_wrote(struct owner *o, const struct owner_op *op)
{
    struct join *j = &o->join;
    uint64_t first, end;
    if (j->state != J_COPY)
        return;
    chunks_of(op, &first, &end);
    for (uint64_t c = first; c < end; c++)
        if (c >= j->first && c < j->first + j->count)
            j->src[c - j->first] = (struct store_version){o->conf.epoch, op->seq};
}

/* ---- batches ---- */

static void begin_batch(struct owner *o, uint64_t first)
{
    struct join *j = &o->join;
    uint64_t left = total_chunks(o) - first;
    j->first = first;
    if (!left || (first && MUTANT(OWNER_ADD_EARLY))) {
        j->state = J_BARRIER;
        j->count = 0;
        j->barrier = o->next_seq - 1;
        return;
    }
    j->count = left < o->conf.batch_chunks ? (uint32_t)left : o->conf.batch_chunks;
    j->state = J_LOCK;
    j->have_src = j->have_dst = false;
    j->source = -1;
    j->hint = 0;
    j->urgent = false;
    j->skipped = 0;
    memset(j->same, DIFFERENT, j->count);
}

static void ask_versions(struct owner *o, int i)
{
    struct repl_msg msg = {.kind = REPL_VERSIONS, .chunk = o->join.first, .count = o->join.count};
    msg.tag = new_tag(o);
    member_send(o, i, &msg);
    /* Told apart by the member that answers; a late answer is of an older session or of an older batch, see tags. */
    if (i == o->join.m)
        o->join.copy[1].tag = msg.tag;
    else
        o->join.copy[0].tag = msg.tag;
}

static void compare(struct owner *o)
{
    struct join *j = &o->join;
    j->left = 0;
    for (uint32_t k = 0; k < j->count; k++) {
        int diff = store_version_cmp(j->src[k], j->dst[k]);
        j->same[k] = diff == 0 || (diff < 0 && MUTANT(OWNER_KEEP_HIGHER)) ? SAME : DIFFERENT;
        j->left += j->same[k] == DIFFERENT;
    }
    copies_clear(j);
    j->state = J_COPY;
}

/* ---- copying ---- */

static bool copying(const struct join *j, uint64_t chunk)
{
    for (int k = 0; k < JOIN_COPIES; k++)
        if (j->copy[k].state != C_FREE && j->copy[k].chunk == chunk)
            return true;
    return false;
}

static void pick_chunk(struct owner *o, struct join_copy *c)
{
    struct join *j = &o->join;
    for (uint32_t n = 0; n < j->count; n++) {
        uint32_t k = (j->hint + n) % j->count;
        if (j->same[k] != DIFFERENT || copying(j, j->first + k))
            continue;
        if (o->join_paced && !j->urgent && o->join_credit-- == 0) {
            o->join_credit = 0;
            return; /* with the next credit */
        }
        j->urgent = false;
        j->hint = k + 1 < j->count ? k + 1 : 0;
        memset(c, 0, sizeof *c);
        c->state = C_LOCK;
        c->chunk = j->first + k;
        c->source = -1;
        return;
    }
}

static void send_copy(struct owner *o, struct join_copy *c, struct iobuf *data, size_t data_off, uint32_t crc)
{
    struct join *j = &o->join;
    c->state = C_SEND;
    c->tag = new_tag(o);
    c->sent_ms = o->now;
    struct repl_msg msg = {.kind = REPL_COPY, .tag = c->tag, .seq = ++o->m[j->m].copies, .chunk = c->chunk, .version = j->src[c->chunk - j->first],
                           .zero = !data, .data = data, .data_off = data_off, .crc = crc, .lost = data ? c->lost : 0,
                           .offset = c->chunk * STORE_CHUNK, .length = STORE_CHUNK};
    member_send(o, j->m, &msg);
}

static void advance_copy(struct owner *o, struct join_copy *c)
{
    struct join *j = &o->join;
    if (c->state == C_LOCK) {
        if (write_in_flight(o, c->chunk * STORE_CHUNK, STORE_CHUNK) && !MUTANT(OWNER_COPY_UNLOCKED))
            return;
        struct store_version v = j->src[c->chunk - j->first];
        if (!v.epoch) { /* never written in sync: the joiner holds a leftover */
            send_copy(o, c, NULL, 0, 0);
            return;
        }
        c->state = C_READ;
    }
    if (c->state == C_READ && c->source < 0) {
        c->source = (int8_t)pick_source(o, c->bad);
        if (c->source < 0)
            return;
        c->tag = new_tag(o);
        c->sent_ms = o->now;
        struct repl_msg msg = {.kind = REPL_READ, .tag = c->tag, .offset = c->chunk * STORE_CHUNK, .length = STORE_CHUNK};
        if (c->whole) {
            msg.offset += (uint64_t)c->block * BLOCK;
            msg.length = BLOCK;
        }
        member_send(o, c->source, &msg);
    }
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* ---- a chunk that no member can read in one piece ---- */

static uint16_t given_up(const struct owner *o, uint64_t chunk)
{
    for (size_t k = 0; k < o->n_given; k++)
        if (o->given[k].chunk == chunk)
            return o->given[k].blocks;
    return 0;
}

/* All blocks were tried. Only what an administrator gave up may be missing from the joiner's copy; else the chunk is passed over, so
 * that one attempt finds all that is missing of the batch. */
static void blocks_tried(struct owner *o, struct join_copy *c)
{
    struct join *j = &o->join;
    uint16_t missing = c->lost & (uint16_t)~given_up(o, c->chunk);
    struct iobuf *whole = c->whole;
    c->whole = NULL;
    if (!missing) {
        send_copy(o, c, whole, 0, crc32c(0, whole->data, STORE_CHUNK));
    } else {
        if (o->n_unreadable < OWNER_LOST_MAX)
            o->unreadable[o->n_unreadable++] = (struct owner_lost){c->chunk, missing};
        j->same[c->chunk - j->first] = SKIPPED;
        j->skipped++;
        j->left--;
        c->state = C_FREE;
    }
    iobuf_unref(whole);
}

static void next_block(struct owner *o, struct join_copy *c)
{
    c->bad = 0;
    c->source = -1;
    if (++c->block == STORE_CHUNK / BLOCK)
        blocks_tried(o, c);
}

/* `c->source` could not read what it was asked for; another member has the same bytes (rule 5). */
static void unreadable(struct owner *o, struct join_copy *c)
{
    c->bad |= bit(c->source);
    c->source = -1;
    if (isr_mask(o) & ~(unsigned)c->bad)
        return;
    if (c->whole) {
        c->lost |= (uint16_t)(1u << c->block);
        next_block(o, c);
        return;
    }
    c->whole = iobuf_new(STORE_CHUNK);
    memset(c->whole->data, 0, STORE_CHUNK);
    c->bad = 0;
}

void owner_give_up(struct owner *o, const struct owner_lost *lost, size_t n, uint64_t now_ms)
{
    if (n == o->n_given && (!n || !memcmp(lost, o->given, n * sizeof *lost)))
        return;
    o->now = now_ms;
    free(o->given);
    o->given = n ? xmalloc(n * sizeof *lost) : NULL;
    o->n_given = n;
    for (size_t k = 0; k < n; k++)
        o->given[k] = lost[k];
    for (int i = 0; i < OWNER_MEMBERS_MAX; i++) /* who waits because of them need not wait longer */
        o->m[i].join_retry_ms = o->m[i].join_failures = 0;
}

size_t owner_unreadable(const struct owner *o, const struct owner_lost **ret)
{
    *ret = o->unreadable;
    return o->n_unreadable;
}

/* ---- answers ---- */

static void copy_answer(struct owner *o, struct join_copy *c, const struct repl_answer *a)
{
    struct join *j = &o->join;
    if (c->state == C_READ && a->status) {
        unreadable(o, c);
        return;
    }
    if (c->state == C_READ && c->whole) {
        if (a->data)
            memcpy(c->whole->data + (size_t)c->block * BLOCK, a->data->data + a->data_off, BLOCK);
        next_block(o, c);
        return;
    }
    if (c->state == C_READ) {
        bool zero = !a->data || all_zero(a->data->data + a->data_off, STORE_CHUNK);
        send_copy(o, c, zero ? NULL : a->data, a->data_off, a->crc);
        return;
    }
    if (a->status) {
        join_abort(o, "copy refused");
        return;
    }
    uint32_t k = (uint32_t)(c->chunk - j->first);
    assert(j->same[k] == DIFFERENT);
    j->same[k] = SAME;
    j->left--;
    j->copied++;
    o->copied_total++;
    c->state = C_FREE;
}

bool join_answer(struct owner *o, int i, const struct repl_answer *a)
{
    struct join *j = &o->join;
    if (j->state == J_COMPARE) {
        struct store_version *to = i == j->m && a->tag == j->copy[1].tag ? j->dst
                                   : i == j->source && a->tag == j->copy[0].tag ? j->src : NULL;
        if (!to)
            return false;
        if (a->status || !a->versions) {
            join_abort(o, "versions refused");
            return true;
        }
        memcpy(to, a->versions, j->count * sizeof *to);
        *(to == j->dst ? &j->have_dst : &j->have_src) = true;
        return true;
    }
    if (j->state != J_COPY)
        return false;
    for (int k = 0; k < JOIN_COPIES; k++) {
        struct join_copy *c = &j->copy[k];
        if (c->tag == a->tag && ((c->state == C_READ && i == c->source) || (c->state == C_SEND && i == j->m))) {
            copy_answer(o, c, a);
            return true;
        }
    }
    return false;
}

/* A read or copy that nobody answers: the member is failing, though no write says so. */
static bool silent(const struct owner *o)
{
    const struct join *j = &o->join;
    for (int k = 0; k < JOIN_COPIES; k++)
        if ((j->copy[k].state == C_READ || j->copy[k].state == C_SEND) && j->copy[k].source >= -1 &&
            o->now - j->copy[k].sent_ms >= o->conf.silent_ms)
            return true;
    return false;
}

static void pump_compare(struct owner *o)
{
    struct join *j = &o->join;
    if (j->state == J_LOCK) {
        if (write_in_flight(o, j->first * STORE_CHUNK, (uint64_t)j->count * STORE_CHUNK) && !MUTANT(OWNER_JOIN_NO_QUIET))
            return;
        j->state = J_COMPARE;
        copies_clear(j);
        ask_versions(o, j->m);
        j->copy[0].sent_ms = o->now;
    }
    if (!j->have_src && j->source < 0) {
        j->source = (int8_t)pick_source(o, 0);
        if (j->source >= 0)
            ask_versions(o, j->source);
    }
    if (j->have_src && j->have_dst)
        compare(o);
    else if (o->now - j->copy[0].sent_ms >= o->conf.silent_ms)
        join_abort(o, "no answer");
}

static void pump_copy(struct owner *o)
{
    struct join *j = &o->join;
    bool busy = false;
    for (int k = 0; k < JOIN_COPIES && j->state == J_COPY; k++) {
        if (j->copy[k].state == C_FREE && j->left)
            pick_chunk(o, &j->copy[k]);
        if (j->copy[k].state != C_FREE) {
            busy = true;
            advance_copy(o, &j->copy[k]);
        }
    }
    if (j->state != J_COPY)
        return;
    if (!busy && !j->left && j->skipped)
        join_abort(o, "no member can read a block");
    else if (!busy && !j->left)
        begin_batch(o, j->first + j->count);
    else if (silent(o))
        join_abort(o, "no answer");
}

static void pump_barrier(struct owner *o)
{
    const struct owner_op *op;
    TAILQ_FOREACH (op, &o->writing, entry)
        if (op->seq <= o->join.barrier && op->targets & bit(o->join.m) && !(op->acked & bit(o->join.m)))
            return;
    o->join.state = J_ADD; /* isr_pump() does it */
}

void join_pump(struct owner *o)
{
    struct join *j = &o->join;
    int i;
    if (j->state == J_IDLE && o->allow_join && o->state == OWNER_SERVING && isr_mask(o) && !o->txn_uncertain &&
        join_wanted(o, &i)) {
        if (!j->src) { /* most shards never need them */
            j->src = xcalloc(o->conf.batch_chunks, sizeof *j->src);
            j->dst = xcalloc(o->conf.batch_chunks, sizeof *j->dst);
            j->same = xcalloc(o->conf.batch_chunks, 1);
        }
        j->m = i;
        j->copied = 0;
        o->n_unreadable = 0;
        j->state = J_FENCE;
        o->m[i].joining = true;
        member_want(o, i);
    }
    if (j->state == J_FENCE && o->m[j->m].state == M_LIVE)
        begin_batch(o, 0);
    if (j->state == J_LOCK || j->state == J_COMPARE)
        pump_compare(o);
    if (j->state == J_COPY)
        pump_copy(o);
    /* A batch that was the same throughout leads on to the next at the next step: bounded work per step. */
    if (j->state == J_LOCK)
        pump_compare(o);
    if (j->state == J_BARRIER)
        pump_barrier(o);
}
