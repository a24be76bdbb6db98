/* Aligned, counted I/O buffers and the pool of freed ones. See buf.h.
 *
 * Left to malloc, buffers that one thread makes and another frees keep every arena at its largest size ever: hundreds of MiB
 * after a burst of large writes. So freed buffers up to 4 MiB wait here for the next of their size, SMALL_BYTES and SLAB_BYTES at most.
 * Sizes from 64 KiB on are rounded up to four steps per power of two, so that those of a guest's odd requests (504 KiB) are found
 * again, too: new pages cost more than the data.
 *
 * Buffers from 64 KiB on are cut from slabs of one size, each a huge page if the kernel has one: a device then gets 512 KiB in
 * one segment instead of 128, which spares both sides work. A slab goes back to the kernel when all of it is free. */
#include "base/buf.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define SMALL_BYTES (8u << 20)
#define SLAB_BYTES (32u << 20)
#define POOL_FROM ((size_t)64 << 10)
#define POOL_SMALL 15   /* classes below 64 KiB: one per 4 KiB */
#define POOL_CLASSES (POOL_SMALL + 25) /* 64, 80, 96, 112, 128, 160 KiB ... 4 MiB */
#ifdef __has_feature /* how clang says it */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define SLAB_FROM SIZE_MAX /* overruns must be seen, and use after free */
#define POOL_MAX ((size_t)0)
#else
#define SLAB_FROM POOL_FROM
#define POOL_MAX ((size_t)4 << 20)
#endif

struct slab { /* memory of equal buffers; all of them exist as long as it does */
    uint8_t *map;
    size_t map_len;
    unsigned n, n_free;
    STAILQ_HEAD(, iobuf) free;
    TAILQ_ENTRY(slab) entry; /* in its class while n_free > 0 */
};

static struct {
    pthread_mutex_t lock;
    size_t small_bytes, slab_bytes; /* of free buffers */
    struct iobuf *small[POOL_SMALL];
    TAILQ_HEAD(slab_list, slab) slabs[POOL_CLASSES];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int log2_of(size_t n) { return 63 - __builtin_clzll(n); }

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

static size_t pool_cap(size_t bytes)
{
    size_t cap = bytes ? round_up(bytes, IOBUF_ALIGN) : IOBUF_ALIGN;
    return cap > SLAB_FROM && cap <= POOL_MAX ? round_up(cap, (size_t)1 << (log2_of(cap) - 2)) : cap;
}

static int pool_class(size_t cap)
{
    if (cap < POOL_FROM)
        return (int)(cap / IOBUF_ALIGN) - 1;
    int log = log2_of(cap);
    return POOL_SMALL + (log - log2_of(POOL_FROM)) * 4 + (int)(cap >> (log - 2) & 3);
}

/* ---- slabs; the pool is locked ---- */

/* Aligned to huge pages, and asks for them. */
static uint8_t *map_huge(size_t len)
{
    void *m = mmap(NULL, len + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *p = xmust(m == MAP_FAILED ? NULL : m, len);
    uint8_t *at = (uint8_t *)round_up((uintptr_t)p, HUGE_PAGE);
    if (at > p)
        munmap(p, (size_t)(at - p));
    munmap(at + len, (size_t)(p + HUGE_PAGE - at));
    madvise(at, len, MADV_HUGEPAGE); /* a kernel without them refuses, and that is fine */
    return at;
}

static struct slab *slab_new(size_t cap)
{
    struct slab *s = xcalloc(1, sizeof *s);
    s->n = s->n_free = cap < HUGE_PAGE ? (unsigned)(HUGE_PAGE / cap) : 1;
    s->map_len = cap < HUGE_PAGE ? HUGE_PAGE : cap;
    s->map = map_huge(s->map_len);
    STAILQ_INIT(&s->free);
    for (unsigned i = 0; i < s->n; i++) {
        struct iobuf *b = xcalloc(1, sizeof *b);
        b->cap = cap;
        b->data = s->map + i * cap;
        b->slab = s;
        STAILQ_INSERT_TAIL(&s->free, b, free);
    }
    pool.slab_bytes += s->n * cap;
    return s;
}

static void buffer_free(struct iobuf *b)
{
    free(b->sum);
    free(b);
}

/* `s` is in no list. */
static void slab_free(struct slab *s)
{
    struct iobuf *b;
    while ((b = STAILQ_FIRST(&s->free))) {
        STAILQ_REMOVE_HEAD(&s->free, free);
        pool.slab_bytes -= b->cap;
        buffer_free(b);
    }
    munmap(s->map, s->map_len);
    free(s);
}

/* The slabs of a size that have free buffers; larger ones than the pool keeps have none. */
static struct slab_list *list_of(size_t cap)
{
    static struct slab_list none = TAILQ_HEAD_INITIALIZER(none);
    struct slab_list *list = cap <= POOL_MAX ? &pool.slabs[pool_class(cap)] : &none;
    if (!list->tqh_last)
        TAILQ_INIT(list);
    return list;
}

static struct iobuf *slab_get(size_t cap)
{
    struct slab_list *list = list_of(cap);
    struct slab *s = TAILQ_FIRST(list);
    if (!s) {
        s = slab_new(cap);
        TAILQ_INSERT_HEAD(list, s, entry);
    }
    struct iobuf *b = STAILQ_FIRST(&s->free);
    STAILQ_REMOVE_HEAD(&s->free, free);
    pool.slab_bytes -= cap;
    if (--s->n_free == 0)
        TAILQ_REMOVE(list, s, entry);
    return b;
}

static void slab_put(struct iobuf *b)
{
    struct slab *s = b->slab;
    struct slab_list *list = list_of(b->cap);
    size_t cap = b->cap;
    STAILQ_INSERT_HEAD(&s->free, b, free); /* the next one finds it in the processor's cache */
    pool.slab_bytes += cap;
    if (s->n_free++ > 0)
        TAILQ_REMOVE(list, s, entry);
    if (s->n_free == s->n && (pool.slab_bytes > SLAB_BYTES || cap > POOL_MAX))
        slab_free(s);
    else if (s->n_free == s->n)
        TAILQ_INSERT_TAIL(list, s, entry); /* comes last, so that it stays whole */
    else
        TAILQ_INSERT_HEAD(list, s, entry);
}

/* ---- small ones ---- */

static struct iobuf *small_get(size_t cap)
{
    struct iobuf *b = cap <= POOL_MAX ? pool.small[pool_class(cap)] : NULL;
    if (b) {
        pool.small[pool_class(cap)] = STAILQ_NEXT(b, free);
        pool.small_bytes -= cap;
    }
    return b;
}

static bool small_put(struct iobuf *b)
{
    if (b->cap > POOL_MAX || pool.small_bytes + b->cap > SMALL_BYTES)
        return false;
    STAILQ_NEXT(b, free) = pool.small[pool_class(b->cap)];
    pool.small[pool_class(b->cap)] = b;
    pool.small_bytes += b->cap;
    return true;
}

static struct iobuf *plain_new(size_t cap)
{
    struct iobuf *b = xcalloc(1, sizeof *b);
    b->cap = cap;
    b->data = xaligned(IOBUF_ALIGN, cap);
    return b;
}

struct iobuf *iobuf_new(size_t bytes)
{
    assert(bytes <= SIZE_MAX - IOBUF_ALIGN);
    size_t cap = pool_cap(bytes);
    pthread_mutex_lock(&pool.lock);
    struct iobuf *b = cap >= SLAB_FROM ? slab_get(cap) : small_get(cap);
    pthread_mutex_unlock(&pool.lock);
    if (!b)
        b = plain_new(cap);
    b->refs = 1;
    b->summed = false;
    return b;
}

uint32_t *iobuf_sums(struct iobuf *b)
{
    if (!b->sum)
        b->sum = xmalloc(b->cap / IOBUF_ALIGN * sizeof *b->sum);
    return b->sum;
}

struct iobuf *iobuf_ref(struct iobuf *b)
{
    __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
    return b;
}

void iobuf_unref(struct iobuf *b)
{
    if (!b)
        return;
    unsigned left = __atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL);
    assert(left != UINT32_MAX);
    if (left)
        return;
    bool kept = true;
    pthread_mutex_lock(&pool.lock);
    if (b->slab)
        slab_put(b);
    else
        kept = small_put(b);
    pthread_mutex_unlock(&pool.lock);
    if (kept)
        return;
    free(b->data);
    buffer_free(b);
}
