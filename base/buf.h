/* Buffers: growing byte strings, and reference-counted, 4096-aligned I/O buffers that travel from the socket to the
 * disk without a copy. Threading: a buffer belongs to one thread at a time; the count of iobuf is atomic. */
#ifndef COHORT_BASE_BUF_H
#define COHORT_BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/queue.h>

struct buf {
    char *data; /* NUL-terminated beyond len when not NULL */
    size_t len, cap;
};

void buf_init(struct buf *b);
void buf_free(struct buf *b); /* back to the initialised state */
void buf_append(struct buf *b, const void *data, size_t len);   /* aborts on out of memory, as every base allocation */
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *b, const char *fmt, va_list ap);
/* Hands the NUL-terminated string to the caller (free()) and resets `b`; "" if nothing was appended. */
char *buf_take(struct buf *b);

#define IOBUF_ALIGN 4096u

struct iobuf {
    unsigned refs; /* atomic */
    size_t cap;    /* bytes at data, a multiple of IOBUF_ALIGN */
    uint8_t *data; /* IOBUF_ALIGN-aligned */
    bool summed;   /* `sum` holds the crc32c of each IOBUF_ALIGN bytes, made in this process together with the bytes */
    uint32_t *sum; /* cap / IOBUF_ALIGN of them; NULL until iobuf_sums() */
    struct slab *slab; /* the pool's (iobuf.c) */
    STAILQ_ENTRY(iobuf) free;
};

/* A buffer of at least `bytes` (rounded up to IOBUF_ALIGN), one reference. Contents undefined. */
struct iobuf *iobuf_new(size_t bytes);
struct iobuf *iobuf_ref(struct iobuf *b);
void iobuf_unref(struct iobuf *b); /* NULL is fine */
/* Where whoever fills the buffer may put its checksums, then setting `summed`. The buffer's. */
uint32_t *iobuf_sums(struct iobuf *b);

/* malloc family that aborts with a message instead of returning NULL: memory for our own bookkeeping is bounded by
 * admission, so running out is a bug or a dying machine. Never used with a size that a peer chose unchecked. */
void *xmalloc(size_t bytes);
void *xcalloc(size_t n, size_t bytes);
void *xrealloc(void *p, size_t bytes);
void *xaligned(size_t align, size_t bytes); /* for free(); `align` a power of two */
void *xmust(void *p, size_t bytes);         /* returns `p`; ends as these do if it is NULL */
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
