/* See vring.h. Happy path: the guest puts a head in the avail ring, we mark it in the inflight region, walk its chain,
 * and later put it in the used ring: element, then index, then the inflight mark is taken back.
 *
 * Killed between any two steps, the next process finds either the mark (request runs again: block requests may) or the
 * raised used index that tells how many marks of the last batch are leftovers. x86 keeps the order of stores; the
 * release stores keep the compiler from changing it. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "storage/asan/front/vhost/vring.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio 1.x rings are little-endian");

#define LOAD(P) __atomic_load_n((P), __ATOMIC_RELAXED)
#define LOAD_ACQ(P) __atomic_load_n((P), __ATOMIC_ACQUIRE)
#define STORE_REL(P, V) __atomic_store_n((P), (V), __ATOMIC_RELEASE)

static bool is_busy(const struct vq *q, uint16_t head)
{
    return q->busy[head / 64] >> (head % 64) & 1;
}

static void set_busy(struct vq *q, uint16_t head, bool on)
{
    if (on)
        q->busy[head / 64] |= 1ull << (head % 64);
    else
        q->busy[head / 64] &= ~(1ull << (head % 64));
}

static void log_used(const struct vq *q, uint64_t offset, uint64_t len)
{
    if (q->log)
        vhost_log_mark(q->log, q->log_used_gpa + offset, len);
}

/* --- inflight region --- */

struct order {
    uint64_t counter;
    uint16_t head;
};

static int by_counter(const void *a, const void *b)
{
    uint64_t x = ((const struct order *)a)->counter, y = ((const struct order *)b)->counter;
    return x < y ? -1 : x > y;
}

/* The used index was raised but its marks not taken back: do that now. */
static void finish_batch(struct vq_inflight *f, uint16_t num, uint16_t used_idx)
{
    uint16_t batch = (uint16_t)(used_idx - f->used_idx), head = f->last_batch_head;
    for (; batch && batch <= num && head < num; batch--) {
        STORE_REL(&f->desc[head].inflight, 0);
        head = f->desc[head].next;
    }
    STORE_REL(&f->used_idx, used_idx);
}

static void read_back(struct vq *q)
{
    struct vq_inflight *f = q->inflight;
    struct order order[VQ_NUM_MAX];
    unsigned n = 0;
    finish_batch(f, q->num, q->used_idx);
    for (uint16_t i = 0; i < q->inflight_num; i++) {
        if (!f->desc[i].inflight)
            continue;
        if (i >= q->num)
            f->desc[i].inflight = 0; /* of a longer ring than today's: no request of this one */
        else
            order[n++] = (struct order){f->desc[i].counter, i};
    }
    qsort(order, n, sizeof order[0], by_counter);
    for (unsigned i = 0; i < n; i++) {
        q->resubmit[i] = order[i].head;
        set_busy(q, order[i].head, true);
        q->counter = order[i].counter + 1;
    }
    q->n_resubmit = (uint16_t)n;
}

unsigned vq_start(struct vq *q, uint16_t base)
{
    assert(q->num && q->num <= VQ_NUM_MAX && !(q->num & (q->num - 1)) && q->desc && q->avail && q->used);
    memset(q->busy, 0, sizeof q->busy);
    q->n_resubmit = q->at_resubmit = q->staged = 0;
    q->counter = 0;
    q->signalled = false;
    q->used_idx = LOAD_ACQ(&q->used->idx);
    q->last_avail = base;
    struct vq_inflight *f = q->inflight;
    if (!f)
        return 0;
    assert(q->inflight_num >= q->num && q->inflight_num <= VQ_NUM_MAX);
    if (f->version == 0) {
        f->desc_num = q->inflight_num;
        f->used_idx = q->used_idx;
        STORE_REL(&f->version, 1);
        return 0;
    }
    read_back(q);
    /* Every head taken so far is either published or marked, whatever the front end thinks. */
    q->last_avail = (uint16_t)(q->used_idx + q->n_resubmit);
    return q->n_resubmit;
}

/* --- taking requests --- */

int vq_next(struct vq *q, uint16_t *ret_head)
{
    if (q->at_resubmit < q->n_resubmit) {
        *ret_head = q->resubmit[q->at_resubmit++];
        return 1;
    }
    uint16_t waiting = (uint16_t)(LOAD_ACQ(&q->avail->idx) - q->last_avail);
    if (waiting == 0)
        return 0;
    if (waiting > q->num)
        return E_PROTO;
    uint16_t head = LOAD(&q->avail->ring[q->last_avail & (q->num - 1)]);
    if (head >= q->num || is_busy(q, head))
        return E_PROTO;
    set_busy(q, head, true);
    if (q->inflight) {
        q->inflight->desc[head].counter = q->counter++;
        STORE_REL(&q->inflight->desc[head].inflight, 1);
    }
    q->last_avail++;
    *ret_head = head;
    return 1;
}

bool vq_want_kick(struct vq *q)
{
    if (q->event_idx) {
        /* avail_event sits behind the used ring's elements. */
        __atomic_store_n((uint16_t *)&q->used->ring[q->num], q->last_avail, __ATOMIC_RELAXED);
        log_used(q, offsetof(struct vring_used, ring) + (uint64_t)q->num * sizeof(vring_used_elem_t), 2);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return LOAD_ACQ(&q->avail->idx) != q->last_avail;
}

/* A private copy of a descriptor, which an indirect table may hold at any alignment; the barrier keeps the compiler from
 * reading the guest's memory a second time. */
static struct vring_desc read_desc(const void *d)
{
    struct vring_desc copy;
    memcpy(&copy, d, sizeof copy);
    __asm__ volatile("" : "+m"(copy) : : "memory");
    return copy;
}

/* Adds [addr, addr+len), which may span regions, to the side `*n` counts. False if unmapped or too many pieces. */
static bool add_buffer(struct vq_chain *c, const struct vhost_mem *mem, uint64_t addr, uint64_t len, int *n)
{
    while (len) {
        uint64_t room;
        uint8_t *p = vhost_mem_gpa(mem, addr, &room);
        if (!p)
            return false;
        uint64_t take = len < room ? len : room;
        struct iovec *last = *n ? &c->iov[c->n_out + c->n_in - 1] : NULL;
        if (last && (uint8_t *)last->iov_base + last->iov_len == p) {
            last->iov_len += take;
        } else {
            if (c->n_out + c->n_in == VQ_IOV_MAX)
                return false;
            c->iov[c->n_out + c->n_in] = (struct iovec){p, take};
            ++*n;
        }
        addr += take;
        len -= take;
    }
    return true;
}

static void add_desc(struct vq_chain *c, const struct vhost_mem *mem, const struct vring_desc *d)
{
    bool in = d->flags & VRING_DESC_F_WRITE;
    if (!d->len)
        return;
    if (d->addr + (d->len - 1) < d->addr) {
        c->bad = true;
        return;
    }
    if (in) {
        uint64_t room;
        c->status = vhost_mem_gpa(mem, d->addr + (d->len - 1), &room);
        c->in_bytes += d->len;
    } else {
        c->out_bytes += d->len;
        if (c->in_bytes)
            c->bad = true; /* readable parts come before writable ones (2.6.4.2) */
    }
    /* A bad chain is still walked to its end: its status byte is there. */
    if (!c->bad && !add_buffer(c, mem, d->addr, d->len, in ? &c->n_in : &c->n_out))
        c->bad = true;
}

static void walk_indirect(struct vq_chain *c, const struct vhost_mem *mem, const struct vring_desc *table)
{
    uint32_t n = table->len / sizeof(struct vring_desc), seen = 0, i = 0;
    uint64_t room;
    const uint8_t *d = vhost_mem_gpa(mem, table->addr, &room);
    if (!d || room < table->len || table->len % sizeof(struct vring_desc) || !n || n > VQ_CHAIN_MAX) {
        c->bad = true;
        return;
    }
    for (;;) {
        struct vring_desc e = read_desc(d + i * sizeof(struct vring_desc));
        if (e.flags & VRING_DESC_F_INDIRECT)
            c->bad = true; /* no tables in tables (2.6.5.3.1) */
        else
            add_desc(c, mem, &e);
        if (!(e.flags & VRING_DESC_F_NEXT))
            return;
        if (++seen >= n || e.next >= n) {
            c->bad = true; /* loop, or out of the table */
            return;
        }
        i = e.next;
    }
}

void vq_walk(const struct vq *q, const struct vhost_mem *mem, uint16_t head, bool indirect, struct vq_chain *c)
{
    c->n_out = c->n_in = 0;
    c->out_bytes = c->in_bytes = 0;
    c->status = NULL;
    c->bad = false;
    uint16_t i = head, seen = 0;
    for (;;) {
        struct vring_desc d = read_desc(&q->desc[i]);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (!indirect || seen || (d.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE))) {
                c->bad = true;
                return;
            }
            walk_indirect(c, mem, &d);
            return;
        }
        add_desc(c, mem, &d);
        if (!(d.flags & VRING_DESC_F_NEXT))
            return;
        if (++seen >= q->num || d.next >= q->num) {
            c->bad = true;
            return;
        }
        i = d.next;
    }
}

/* --- giving them back --- */

void vq_complete(struct vq *q, uint16_t head, uint32_t written)
{
    assert(head < q->num && is_busy(q, head) && q->staged < q->num);
    uint16_t slot = (uint16_t)(q->used_idx + q->staged) & (q->num - 1);
    q->used->ring[slot].id = head;
    q->used->ring[slot].len = written;
    log_used(q, offsetof(struct vring_used, ring) + (uint64_t)slot * sizeof(vring_used_elem_t),
             sizeof(vring_used_elem_t));
    q->batch[q->staged++] = head;
    if (q->inflight) {
        q->inflight->desc[head].next = q->inflight->last_batch_head;
        STORE_REL(&q->inflight->last_batch_head, head);
    }
}

bool vq_publish(struct vq *q)
{
    if (!q->staged)
        return false;
    uint16_t old = q->used_idx;
    q->used_idx = (uint16_t)(q->used_idx + q->staged);
    STORE_REL(&q->used->idx, q->used_idx);
    log_used(q, offsetof(struct vring_used, idx), 2);
    for (uint16_t i = 0; i < q->staged; i++) {
        set_busy(q, q->batch[i], false);
        if (q->inflight)
            STORE_REL(&q->inflight->desc[q->batch[i]].inflight, 0);
    }
    if (q->inflight)
        STORE_REL(&q->inflight->used_idx, q->used_idx);
    q->staged = 0;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->event_idx)
        return !(LOAD(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    /* The first time there is no knowing what the guest was told by the process before us: notify. */
    bool notify = !q->signalled || vring_need_event(LOAD(&q->avail->ring[q->num]), q->used_idx, old);
    q->signalled = true;
    return notify;
}
