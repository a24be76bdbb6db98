/* S3-FIFO. See s3fifo.h. */
#include "storage/asan/store/s3fifo.h"

#include <assert.h>
#include <stdlib.h>
#include "base/buf.h"
#include "base/htab.h"

#define NONE S3FIFO_NONE
#define USES_MAX 3
#define TO_MAIN 1u     /* uses in the small queue that earn a place in main */
#define GHOST_WAYS 4u

enum queue { FREE, SMALL, MAIN };

struct node { /* one per slot */
    uint64_t key;
    uint32_t prev, next;   /* in its queue; `next` also in the free list */
    uint32_t chain;        /* next of the same hash bucket */
    uint8_t queue, uses;
};

struct fifo { uint32_t newest, oldest, n; };

struct ghost { uint32_t print, time; }; /* time 0 = empty */

struct s3fifo {
    uint32_t slots, small_target, free_slot, mask, ghost_mask, ghost_time;
    struct fifo small, main;
    struct node *node;
    uint32_t *bucket;
    struct ghost *ghost;
};

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t n = 16;
    while (n < at_least && n < 1u << 31)
        n *= 2;
    return n;
}

struct s3fifo *s3fifo_new(uint32_t slots)
{
    struct s3fifo *c = xcalloc(1, sizeof *c);
    assert(slots >= 16 && slots < 1u << 31);
    uint32_t buckets = power_of_two(slots / 2);
    c->slots = slots;
    c->small_target = slots / 10;
    c->mask = buckets - 1;
    c->ghost_mask = power_of_two(slots / 2) / GHOST_WAYS - 1;
    c->node = xcalloc(slots, sizeof *c->node);
    c->bucket = xmalloc(buckets * sizeof *c->bucket);
    c->ghost = xcalloc((size_t)(c->ghost_mask + 1) * GHOST_WAYS, sizeof *c->ghost);
    c->small = c->main = (struct fifo){NONE, NONE, 0};
    for (uint32_t i = 0; i < buckets; i++)
        c->bucket[i] = NONE;
    for (uint32_t i = 0; i < slots; i++)
        c->node[i].next = i + 1 < slots ? i + 1 : NONE;
    return c;
}

void s3fifo_free(struct s3fifo *c)
{
    if (!c)
        return;
    free(c->node);
    free(c->bucket);
    free(c->ghost);
    free(c);
}

uint32_t s3fifo_count(const struct s3fifo *c) { return c->small.n + c->main.n; }

/* ---- queues and the table ---- */

static struct fifo *fifo_of(struct s3fifo *c, const struct node *n) { return n->queue == SMALL ? &c->small : &c->main; }

static void push(struct s3fifo *c, uint32_t i, enum queue q)
{
    struct node *n = &c->node[i];
    n->queue = (uint8_t)q;
    struct fifo *f = fifo_of(c, n);
    n->prev = NONE;
    n->next = f->newest;
    if (f->newest != NONE)
        c->node[f->newest].prev = i;
    else
        f->oldest = i;
    f->newest = i;
    f->n++;
}

static void unlink_node(struct s3fifo *c, uint32_t i)
{
    struct node *n = &c->node[i];
    struct fifo *f = fifo_of(c, n);
    if (n->prev != NONE)
        c->node[n->prev].next = n->next;
    else
        f->newest = n->next;
    if (n->next != NONE)
        c->node[n->next].prev = n->prev;
    else
        f->oldest = n->prev;
    f->n--;
}

uint32_t s3fifo_peek(const struct s3fifo *c, uint64_t key)
{
    uint32_t i = c->bucket[hash_u64(key) & c->mask];
    while (i != NONE && c->node[i].key != key)
        i = c->node[i].chain;
    return i;
}

static void release(struct s3fifo *c, uint32_t i)
{
    struct node *n = &c->node[i];
    uint32_t *at = &c->bucket[hash_u64(n->key) & c->mask];
    while (*at != i)
        at = &c->node[*at].chain;
    *at = n->chain;
    unlink_node(c, i);
    *n = (struct node){.next = c->free_slot};
    c->free_slot = i;
}

/* ---- ghosts: in sets of GHOST_WAYS, the oldest of a set gives way; too old ones do not count ---- */

static struct ghost *ghost_set(const struct s3fifo *c, uint64_t key) { return &c->ghost[(hash_u64(key) >> 32 & c->ghost_mask) * GHOST_WAYS]; }

static uint32_t print_of(uint64_t key) { return (uint32_t)hash_u64(key ^ UINT64_C(0x9e3779b97f4a7c15)); }

static void ghost_add(struct s3fifo *c, uint64_t key)
{
    struct ghost *set = ghost_set(c, key), *oldest = set;
    if (++c->ghost_time == 0)
        c->ghost_time = 1;
    for (unsigned w = 0; w < GHOST_WAYS && oldest->time; w++)
        if (!set[w].time || c->ghost_time - set[w].time > c->ghost_time - oldest->time)
            oldest = &set[w];
    *oldest = (struct ghost){print_of(key), c->ghost_time};
}

static bool ghost_take(struct s3fifo *c, uint64_t key)
{
    struct ghost *set = ghost_set(c, key);
    uint32_t print = print_of(key);
    for (unsigned w = 0; w < GHOST_WAYS; w++)
        if (set[w].time && set[w].print == print) {
            bool recent = c->ghost_time - set[w].time < c->slots;
            set[w].time = 0;
            return recent;
        }
    return false;
}

/* ---- what the header promises ---- */

static void evict_main(struct s3fifo *c)
{
    for (;;) { /* ends: each round lowers a counter */
        uint32_t i = c->main.oldest;
        struct node *n = &c->node[i];
        if (n->uses == 0) {
            release(c, i);
            return;
        }
        n->uses--;
        unlink_node(c, i);
        push(c, i, MAIN);
    }
}

static void evict(struct s3fifo *c)
{
    while (c->small.n > c->small_target || (c->small.n && !c->main.n)) {
        uint32_t i = c->small.oldest;
        struct node *n = &c->node[i];
        if (n->uses < TO_MAIN) {
            ghost_add(c, n->key);
            release(c, i);
            return;
        }
        n->uses = 0;
        unlink_node(c, i);
        push(c, i, MAIN);
    }
    evict_main(c);
}

uint32_t s3fifo_get(struct s3fifo *c, uint64_t key)
{
    uint32_t i = s3fifo_peek(c, key);
    if (i != NONE && c->node[i].uses < USES_MAX)
        c->node[i].uses++;
    return i;
}

uint32_t s3fifo_put(struct s3fifo *c, uint64_t key)
{
    assert(key && s3fifo_peek(c, key) == NONE);
    bool seen = ghost_take(c, key);
    if (c->free_slot == NONE)
        evict(c);
    uint32_t i = c->free_slot, *at = &c->bucket[hash_u64(key) & c->mask];
    struct node *n = &c->node[i];
    c->free_slot = n->next;
    *n = (struct node){.key = key, .chain = *at};
    *at = i;
    push(c, i, seen ? MAIN : SMALL);
    return i;
}

void s3fifo_remove(struct s3fifo *c, uint64_t key)
{
    uint32_t i = s3fifo_peek(c, key);
    if (i != NONE)
        release(c, i);
}
