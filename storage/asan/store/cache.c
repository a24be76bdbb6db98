/* Read cache on the fast device. See cache.h. */
#include "storage/asan/store/cache.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/store/s3fifo.h"

LOG_MODULE("store");
METRIC_COUNTER(m_hits, "cohort_store_cache_hits_total", "4 KiB blocks found in the read cache");
METRIC_COUNTER(m_misses, "cohort_store_cache_misses_total", "4 KiB blocks not found in the read cache");
METRIC_COUNTER(m_writes, "cohort_store_cache_written_bytes_total", "Bytes written to the read cache");
METRIC_COUNTER(m_bad, "cohort_store_cache_bad_total", "Blocks of the read cache that failed their checksum and were read from the disk instead");

#define LINE_BLOCKS (CACHE_LINE / DEV_BLOCK)
#define PLACE_LINES (STORE_EXTENT / CACHE_LINE)
#define FILLS_MAX 64u /* more at once are not worth the fast device's time */

struct line { uint8_t valid, fills; }; /* a bit per block; writes in flight */

struct cache {
    struct dev dev;
    struct uring *uring;
    struct s3fifo *keys;
    struct line *line;
    uint32_t n;
    unsigned fills;
    bool off;
    uint64_t hits, misses;
};

struct fill {
    struct dev_io io;
    struct iovec iov;
    struct cache *c;
    uint64_t key;
    uint32_t slot;
    uint8_t blocks;
};

static uint64_t key_of(uint64_t place, uint32_t block) { return place * PLACE_LINES + block / LINE_BLOCKS + 1; }

static uint8_t bits(uint32_t first, uint32_t count) { return (uint8_t)(((1u << count) - 1) << first % LINE_BLOCKS); }

int cache_open(const char *path, uint64_t bytes, struct uring *u, struct cache **ret_cache, struct err *e)
{
    struct cache *c = xcalloc(1, sizeof *c);
    assert(bytes >= CACHE_MIN);
    c->uring = u;
    c->n = bytes / CACHE_LINE < 1u << 30 ? (uint32_t)(bytes / CACHE_LINE) : 1u << 30;
    int rc = dev_open(&c->dev, path, DEV_CREATE, "cache", e);
    if (rc < 0) {
        free(c);
        return rc;
    }
    int no = posix_fallocate(c->dev.fd, 0, (off_t)((uint64_t)c->n * CACHE_LINE));
    if (no != 0) {
        rc = err_sys(e, no, "reserve %llu bytes for %s", (unsigned long long)bytes, path);
        dev_close(&c->dev);
        free(c);
        return rc;
    }
    c->keys = s3fifo_new(c->n);
    c->line = xcalloc(c->n, sizeof *c->line);
    *ret_cache = c;
    return E_OK;
}

void cache_close(struct cache *c)
{
    if (!c)
        return;
    assert(c->fills == 0);
    s3fifo_free(c->keys);
    free(c->line);
    dev_close(&c->dev);
    free(c);
}

bool cache_idle(const struct cache *c) { return !c || c->fills == 0; }
const struct dev *cache_dev(const struct cache *c) { return &c->dev; }

static void count(struct cache *c, bool hit, uint32_t blocks)
{
    if (hit)
        c->hits += blocks;
    else
        c->misses += blocks;
    metric_add(hit ? &m_hits : &m_misses, blocks);
}

bool cache_find(struct cache *c, uint64_t place, uint32_t first, uint32_t n, uint64_t *ret_offset)
{
    assert(n > 0 && first % LINE_BLOCKS + n <= LINE_BLOCKS);
    uint32_t slot = c->off ? S3FIFO_NONE : s3fifo_get(c->keys, key_of(place, first));
    bool hit = slot != S3FIFO_NONE && (c->line[slot].valid & bits(first, n)) == bits(first, n);
    count(c, hit, n);
    if (hit)
        *ret_offset = (uint64_t)slot * CACHE_LINE + first % LINE_BLOCKS * DEV_BLOCK;
    return hit;
}

static void filled(struct dev_io *io, int status)
{
    struct fill *f = container_of(io, struct fill, io);
    struct cache *c = f->c;
    c->fills--;
    c->line[f->slot].fills--;
    if (status < 0 && !c->off) {
        log_err("%s: %s: the read cache is off until the disk is opened again", c->dev.path, strerror(-status));
        c->off = true;
    }
    /* Forgotten meanwhile, or given to another line: what was written counts for nothing. */
    if (status == 0 && s3fifo_peek(c->keys, f->key) == f->slot)
        c->line[f->slot].valid |= f->blocks;
    free(f->iov.iov_base);
    free(f);
}

static void keep_part(struct cache *c, uint64_t place, uint32_t first, uint32_t n, const uint8_t *data)
{
    uint64_t key = key_of(place, first);
    uint32_t slot = s3fifo_peek(c->keys, key);
    if (slot == S3FIFO_NONE) {
        slot = s3fifo_put(c->keys, key);
        c->line[slot].valid = 0;
    }
    if (c->line[slot].fills) /* of this line, or still of the one before: two writes to one place have no order */
        return;
    struct fill *f = xcalloc(1, sizeof *f);
    void *b = xaligned(DEV_BLOCK, (size_t)n * DEV_BLOCK);
    memcpy(b, data, (size_t)n * DEV_BLOCK);
    *f = (struct fill){.c = c, .key = key, .slot = slot, .blocks = bits(first, n), .iov = {b, (size_t)n * DEV_BLOCK}};
    f->io.done = filled;
    c->line[slot].valid &= (uint8_t)~f->blocks;
    c->line[slot].fills++;
    c->fills++;
    metric_add(&m_writes, (int64_t)f->iov.iov_len);
    dev_submit(&c->dev, c->uring, &f->io, true, &f->iov, 1, (uint64_t)slot * CACHE_LINE + first % LINE_BLOCKS * DEV_BLOCK);
}

void cache_keep(struct cache *c, uint64_t place, uint32_t first, uint32_t n, const void *data)
{
    for (uint32_t at = first, part; at < first + n && !c->off && c->fills < FILLS_MAX; at += part) {
        part = LINE_BLOCKS - at % LINE_BLOCKS;
        if (part > first + n - at)
            part = first + n - at;
        keep_part(c, place, at, part, (const uint8_t *)data + (size_t)(at - first) * DEV_BLOCK);
    }
}

void cache_forget(struct cache *c, uint64_t place)
{
    for (uint32_t i = 0; c && i < PLACE_LINES; i++)
        s3fifo_remove(c->keys, key_of(place, i * LINE_BLOCKS));
}

void cache_bad(struct cache *c, uint64_t place, uint32_t first, bool io_error)
{
    metric_add(&m_bad, 1);
    s3fifo_remove(c->keys, key_of(place, first));
    if (io_error && !c->off) {
        log_err("%s: read failed: the read cache is off until the disk is opened again", c->dev.path);
        c->off = true;
    }
}

void cache_usage(const struct cache *c, struct store_cache_usage *ret)
{
    *ret = (struct store_cache_usage){0};
    if (c && !c->off)
        *ret = (struct store_cache_usage){(uint64_t)c->n * CACHE_LINE, (uint64_t)s3fifo_count(c->keys) * CACHE_LINE, c->hits, c->misses, c->fills};
}
