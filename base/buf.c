/* Growing strings, aligned I/O buffers, aborting allocation. See buf.h. */
#include "base/buf.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void *must(void *p, size_t bytes)
{
    if (!p && bytes) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        abort();
    }
    return p;
}

void *xmalloc(size_t bytes) { return must(malloc(bytes ? bytes : 1), bytes); }
void *xcalloc(size_t n, size_t bytes) { return must(calloc(n ? n : 1, bytes ? bytes : 1), n && bytes ? bytes : 0); }
void *xrealloc(void *p, size_t bytes) { return must(realloc(p, bytes ? bytes : 1), bytes); }
char *xstrdup(const char *s) { return must(strdup(s), 1); }

char *xasprintf(const char *fmt, ...)
{
    va_list ap;
    char *s = NULL;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return must(n < 0 ? NULL : s, 1);
}

void buf_init(struct buf *b) { *b = (struct buf){0}; }

void buf_free(struct buf *b)
{
    free(b->data);
    buf_init(b);
}

/* Room for `more` bytes and the NUL. */
static void grow(struct buf *b, size_t more)
{
    size_t need = b->len + more + 1;
    assert(need > b->len);
    if (need <= b->cap)
        return;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    b->data = xrealloc(b->data, cap);
    b->cap = cap;
}

void buf_append(struct buf *b, const void *data, size_t len)
{
    grow(b, len);
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_vprintf(struct buf *b, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    grow(b, 0);
    int n = vsnprintf(b->data + b->len, b->cap - b->len, fmt, ap);
    assert(n >= 0);
    if ((size_t)n >= b->cap - b->len) {
        grow(b, (size_t)n);
        vsnprintf(b->data + b->len, b->cap - b->len, fmt, again);
    }
    b->len += (size_t)n;
    va_end(again);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    buf_vprintf(b, fmt, ap);
    va_end(ap);
}

char *buf_take(struct buf *b)
{
    char *s = b->data ? b->data : xstrdup("");
    buf_init(b);
    return s;
}

/* Freed buffers up to 4 MiB wait here for the next of their size, POOL_BYTES at most. Left to malloc, buffers that one thread
 * makes and another frees keep every arena at its largest size ever: hundreds of MiB after a burst of large writes. Buffers
 * from 64 KiB on are mappings of their own, so that the rest goes back to the kernel; their sizes are rounded up to four steps
 * per power of two, so that those of a guest's odd requests (504 KiB) are found again, too: new pages cost more than the data. */
#define POOL_BYTES (32u << 20)
#define POOL_FROM ((size_t)64 << 10)
#define POOL_SMALL 15   /* classes below 64 KiB: one per 4 KiB */
#define POOL_CLASSES (POOL_SMALL + 25) /* 64, 80, 96, 112, 128, 160 KiB ... 4 MiB */
#ifdef __has_feature /* how clang says it */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define MAP_FROM SIZE_MAX /* overruns must be seen, and use after free */
#define POOL_MAX ((size_t)0)
#else
#define MAP_FROM POOL_FROM
#define POOL_MAX ((size_t)4 << 20)
#endif

static struct {
    pthread_mutex_t lock;
    size_t bytes;
    struct iobuf *free[POOL_CLASSES]; /* linked through their data */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int log2_of(size_t n) { return 63 - __builtin_clzll(n); }

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

static size_t pool_cap(size_t bytes)
{
    size_t cap = bytes ? round_up(bytes, IOBUF_ALIGN) : IOBUF_ALIGN;
    return cap > MAP_FROM && cap <= POOL_MAX ? round_up(cap, (size_t)1 << (log2_of(cap) - 2)) : cap;
}

static int pool_class(size_t cap)
{
    if (cap > POOL_MAX)
        return -1;
    if (cap < POOL_FROM)
        return (int)(cap / IOBUF_ALIGN) - 1;
    int log = log2_of(cap);
    return POOL_SMALL + (log - log2_of(POOL_FROM)) * 4 + (int)(cap >> (log - 2) & 3);
}

static struct iobuf *pool_get(size_t cap)
{
    int k = pool_class(cap);
    if (k < 0)
        return NULL;
    pthread_mutex_lock(&pool.lock);
    struct iobuf *b = pool.free[k];
    if (b) {
        memcpy(&pool.free[k], b->data, sizeof b);
        pool.bytes -= cap;
    }
    pthread_mutex_unlock(&pool.lock);
    return b;
}

static bool pool_put(struct iobuf *b)
{
    int k = pool_class(b->cap);
    bool room = false;
    if (k < 0)
        return false;
    pthread_mutex_lock(&pool.lock);
    if (pool.bytes + b->cap <= POOL_BYTES) {
        room = true;
        memcpy(b->data, &pool.free[k], sizeof b);
        pool.free[k] = b;
        pool.bytes += b->cap;
    }
    pthread_mutex_unlock(&pool.lock);
    return room;
}

struct iobuf *iobuf_new(size_t bytes)
{
    assert(bytes <= SIZE_MAX - IOBUF_ALIGN);
    size_t cap = pool_cap(bytes);
    struct iobuf *b = pool_get(cap);
    if (b) {
        b->refs = 1;
        return b;
    }
    b = xmalloc(sizeof *b);
    b->refs = 1;
    b->cap = cap;
    void *p = NULL;
    if (cap >= MAP_FROM) {
        p = mmap(NULL, cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            p = NULL;
    } else if (posix_memalign(&p, IOBUF_ALIGN, cap) != 0) {
        p = NULL;
    }
    b->data = must(p, cap);
    return b;
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
    if (left || pool_put(b))
        return;
    if (b->cap >= MAP_FROM)
        munmap(b->data, b->cap);
    else
        free(b->data);
    free(b);
}
