/* Contents of files: what is below, and over it the pages that are not synced. See lossyfs.h. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "deploy/lossyfs/lossyfs.h"

static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t max64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static struct page *find(const struct node *n, uint64_t index)
{
    struct htab_node *h;
    HTAB_FOR_EACH_WITH_HASH (h, hash_u64(index), &n->pages) {
        struct page *p = container_of(h, struct page, node);
        if (p->index == index)
            return p;
    }
    return NULL;
}

static void drop_page(struct node *n, struct page *p)
{
    htab_remove(&n->pages, &p->node);
    free(p->data);
    free(p);
}

void data_drop(struct node *n)
{
    struct htab_node *h, *next;
    HTAB_FOR_EACH_SAFE (h, next, &n->pages)
        drop_page(n, container_of(h, struct page, node));
}

/* What is below, with zeroes where it ends. */
static int read_lower(const struct node *n, uint8_t *buf, size_t length, uint64_t offset)
{
    size_t want = offset < n->lower_valid ? (size_t)min64(length, n->lower_valid - offset) : 0, got = 0;
    while (got < want) {
        ssize_t k = pread(n->fd, buf + got, want - got, (off_t)(offset + got));
        if (k < 0)
            return -errno;
        if (k == 0)
            break;
        got += (size_t)k;
    }
    memset(buf + got, 0, length - got);
    return 0;
}

static int write_lower(const struct node *n, const uint8_t *buf, size_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t k = pwrite(n->fd, buf, length, (off_t)offset);
        if (k < 0)
            return -errno;
        buf += k;
        length -= (size_t)k;
        offset += (uint64_t)k;
    }
    return 0;
}

ssize_t data_read(struct node *n, void *buf, size_t length, uint64_t offset)
{
    if (offset >= n->size)
        return 0;
    length = (size_t)min64(length, n->size - offset);
    int rc = read_lower(n, buf, length, offset);
    if (rc < 0)
        return rc;
    for (uint64_t at = offset; n->pages.n > 0 && at < offset + length;) {
        size_t in = at % PAGE, piece = (size_t)min64(PAGE - in, offset + length - at);
        const struct page *p = find(n, at / PAGE);
        if (p && p->data)
            memcpy((char *)buf + (at - offset), p->data + in, piece);
        else if (p)
            memset((char *)buf + (at - offset), 0, piece);
        at += piece;
    }
    return (ssize_t)length;
}

/* The page, made from what is below; without that if it is about to be overwritten as a whole. */
static struct page *page_for(struct node *n, uint64_t index, bool whole)
{
    struct page *p = find(n, index);
    if (!p) {
        p = xcalloc(1, sizeof *p);
        p->index = index;
        p->data = xmalloc(PAGE);
        if (!whole && read_lower(n, p->data, PAGE, index * PAGE) < 0)
            memset(p->data, 0, PAGE); /* a broken disk below the test: the verification above will say so */
        htab_insert(&n->pages, &p->node, hash_u64(index));
    } else if (!p->data) {
        p->data = xcalloc(1, PAGE);
    }
    return p;
}

/* buf = NULL: zeroes. */
static void put(struct node *n, const uint8_t *buf, uint64_t length, uint64_t offset)
{
    for (uint64_t at = offset; at < offset + length;) {
        size_t in = at % PAGE, piece = (size_t)min64(PAGE - in, offset + length - at);
        struct page *p = page_for(n, at / PAGE, piece == PAGE);
        for (size_t s = in / SECTOR; s <= (in + piece - 1) / SECTOR; s++)
            p->dirty |= (uint8_t)(1u << s);
        if (!buf && piece == PAGE) {
            free(p->data);
            p->data = NULL;
        } else if (buf) {
            memcpy(p->data + in, buf + (at - offset), piece);
        } else {
            memset(p->data + in, 0, piece);
        }
        at += piece;
    }
}

void data_write(struct node *n, const void *buf, size_t length, uint64_t offset)
{
    put(n, buf, length, offset);
    n->size = max64(n->size, offset + length);
}

void data_zero(struct node *n, uint64_t offset, uint64_t length, bool keep_size)
{
    uint64_t end = offset + length;
    if (!keep_size)
        n->size = max64(n->size, end);
    end = min64(end, n->size);
    if (offset < end)
        put(n, NULL, end - offset, offset);
}

void data_truncate(struct node *n, uint64_t size)
{
    if (size < n->size) {
        struct htab_node *h, *next;
        if (size % PAGE) /* what is past the end must read as zeroes if the file grows again */
            put(n, NULL, PAGE - size % PAGE, size);
        HTAB_FOR_EACH_SAFE (h, next, &n->pages)
            if (container_of(h, struct page, node)->index * PAGE >= size)
                drop_page(n, container_of(h, struct page, node));
        n->lower_valid = min64(n->lower_valid, size);
    }
    n->size = size;
}

static uint64_t lower_size(const struct node *n)
{
    struct stat st;
    return fstat(n->fd, &st) < 0 ? 0 : (uint64_t)st.st_size;
}

/* An unsynced truncate becomes durable. */
static int settle_truncate(struct node *n)
{
    if (lower_size(n) > n->lower_valid && ftruncate(n->fd, (off_t)n->lower_valid) < 0)
        return -errno;
    return 0;
}

/* Sectors of `which` reach the disk, but nothing at or past `end`. */
static int flush_page(struct node *n, struct page *p, uint8_t which, uint64_t end)
{
    static const uint8_t zero[PAGE];
    int rc = 0;
    which &= p->dirty;
    if (which == 0xff && !p->data && (p->index + 1) * PAGE <= end) {
        if (fallocate(n->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(p->index * PAGE), PAGE) < 0)
            rc = -errno;
        p->dirty = 0;
        return rc;
    }
    for (unsigned s = 0; s < PAGE / SECTOR && rc == 0; s++) {
        uint64_t at = p->index * PAGE + s * SECTOR;
        unsigned first = s;
        if (!(which >> s & 1) || at >= end)
            continue;
        while (s + 1 < PAGE / SECTOR && which >> (s + 1) & 1)
            s++;
        size_t length = (size_t)min64((s + 1 - first) * SECTOR, end - at);
        rc = write_lower(n, (p->data ? p->data : zero) + first * SECTOR, length, at);
    }
    if (rc == 0)
        p->dirty &= (uint8_t)~which;
    return rc;
}

int data_sync(struct node *n)
{
    struct htab_node *h, *next;
    int rc = settle_truncate(n);
    if (rc == 0 && lower_size(n) != n->size && ftruncate(n->fd, (off_t)n->size) < 0)
        rc = -errno;
    HTAB_FOR_EACH_SAFE (h, next, &n->pages) {
        struct page *p = container_of(h, struct page, node);
        if (rc < 0 || (rc = flush_page(n, p, 0xff, n->size)) < 0)
            break;
        drop_page(n, p);
    }
    if (rc == 0)
        n->lower_valid = n->size;
    return rc;
}

int data_write_durable(struct node *n, const void *buf, size_t length, uint64_t offset)
{
    int rc = settle_truncate(n);
    uint64_t end = offset + length;
    if (n->pages.n == 0) {
        if (rc == 0)
            rc = write_lower(n, buf, length, offset);
        n->size = max64(n->size, end);
    } else {
        data_write(n, buf, length, offset);
        for (uint64_t index = offset / PAGE; index <= (end - 1) / PAGE && rc == 0; index++) {
            struct page *p = find(n, index);
            uint8_t which = 0;
            for (unsigned s = 0; s < PAGE / SECTOR; s++)
                if (index * PAGE + s * SECTOR < end && index * PAGE + (s + 1) * SECTOR > offset)
                    which |= (uint8_t)(1u << s);
            rc = flush_page(n, p, which, n->size);
            if (rc == 0 && !p->dirty)
                drop_page(n, p);
        }
    }
    if (rc == 0)
        n->lower_valid = max64(n->lower_valid, lower_size(n));
    return rc;
}

/* Chances of a sector, in percent: all lost, all kept and a mixture are all worth testing, so a cut chooses per file. */
static const unsigned chances[] = {0, 10, 50, 90, 100};

void data_cut(struct node *n)
{
    struct htab_node *h, *next;
    uint64_t lower = lower_size(n), end;
    unsigned chance = chances[random_below(sizeof chances / sizeof *chances)];
    if (n->pages.n == 0 && n->size == lower)
        return;
    if (lower > n->lower_valid && random_below(2) == 0) /* the truncate happened */
        lower = ftruncate(n->fd, (off_t)n->lower_valid) == 0 ? n->lower_valid : lower;
    end = lower;
    if (n->size > lower) /* all of its growth, none, or a part of it */
        end = random_below(3) == 0 ? n->size : lower + random_below(n->size - lower + 1);
    if (lower > n->lower_valid)
        end = n->lower_valid; /* the truncate did not: what was written after it cannot be there */
    else if (end > lower && ftruncate(n->fd, (off_t)end) < 0)
        end = lower;
    HTAB_FOR_EACH_SAFE (h, next, &n->pages) {
        struct page *p = container_of(h, struct page, node);
        uint8_t which = 0;
        for (unsigned s = 0; s < PAGE / SECTOR; s++)
            if (random_below(100) < chance)
                which |= (uint8_t)(1u << s);
        flush_page(n, p, p->data || which == 0xff ? which : 0, end);
        drop_page(n, p);
    }
}

uint64_t data_unsynced(const struct node *n)
{
    struct htab_node *h;
    uint64_t bytes = 0;
    HTAB_FOR_EACH (h, &n->pages)
        bytes += (uint64_t)__builtin_popcount(container_of(h, struct page, node)->dirty) * SECTOR;
    return bytes;
}

uint64_t data_new_bytes(const struct node *n, uint64_t length, uint64_t offset)
{
    struct stat st;
    uint64_t have = fstat(n->fd, &st) < 0 ? 0 : max64((uint64_t)st.st_blocks * 512, n->size);
    return offset + length > have ? min64(length, offset + length - have) : 0;
}
