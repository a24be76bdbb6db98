/* Growing strings, aborting allocation. See buf.h. */
#include "base/buf.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *xmust(void *p, size_t bytes)
{
    if (!p && bytes) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        abort();
    }
    return p;
}

void *xmalloc(size_t bytes) { return xmust(malloc(bytes ? bytes : 1), bytes); }
void *xcalloc(size_t n, size_t bytes) { return xmust(calloc(n ? n : 1, bytes ? bytes : 1), n && bytes ? bytes : 0); }
void *xrealloc(void *p, size_t bytes) { return xmust(realloc(p, bytes ? bytes : 1), bytes); }

void *xaligned(size_t align, size_t bytes)
{
    void *p = NULL;
    return xmust(posix_memalign(&p, align, bytes) == 0 ? p : NULL, bytes);
}

char *xstrdup(const char *s) { return xmust(strdup(s), 1); }

char *xasprintf(const char *fmt, ...)
{
    va_list ap;
    char *s = NULL;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return xmust(n < 0 ? NULL : s, 1);
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
