/* Allocator of extents.dat. See alloc.h. */
#include "storage/asan/store/alloc.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/fault.h"
#include "storage/asan/store/format.h"
#include "storage/asan/store/store.h"

#define KEEP_MIN (256ull << 20) /* of the file system, for metadata */
#define RESERVE_MIN 64u           /* places: 16 MiB */
#define RESERVE_MAX 1024u

static bool bit(const struct places *p, uint64_t i) { return p->bits[i / 64] >> (i % 64) & 1; }

void places_look(struct places *p)
{
    struct statvfs v;
    if (p->fixed)
        v = (struct statvfs){.f_blocks = p->n, .f_frsize = STORE_EXTENT};
    else if (fstatvfs(p->fd, &v) < 0)
        return;
    /* Metadata take about 1/600 of the data, compaction at times twice that, and RocksDB's log up to 64 MiB. */
    uint64_t total = (uint64_t)v.f_blocks * v.f_frsize, least = total / 4 < KEEP_MIN ? total / 4 : KEEP_MIN;
    p->fs_free = (uint64_t)v.f_bavail * v.f_frsize;
    p->fs_keep = p->fixed ? 0 : total / 128 > least ? total / 128 : least;
    uint64_t size = total / STORE_EXTENT < p->limit ? total / STORE_EXTENT : p->limit, reserve = size / 20;
    p->reserve = reserve < RESERVE_MIN ? RESERVE_MIN : reserve > RESERVE_MAX ? RESERVE_MAX : reserve;
    uint64_t left = places_left(p);
    p->full = left < p->reserve * (p->full ? 2 : 1);
}

static uint64_t growable(const struct places *p)
{
    uint64_t more = p->fs_free > p->fs_keep ? (p->fs_free - p->fs_keep) / STORE_EXTENT : 0, to_limit = p->n < p->limit ? p->limit - p->n : 0;
    return more < to_limit ? more : to_limit;
}

uint64_t places_left(const struct places *p)
{
    uint64_t left = p->n - p->used - p->reserved + growable(p);
    return left > ALLOC_SLACK ? left - ALLOC_SLACK : 0;
}

bool places_room(struct places *p, uint64_t count, bool use_reserve)
{
    if (!use_reserve && p->full)
        return false;
    if (p->fs_free < p->fs_keep / 4 || places_left(p) < count + (use_reserve ? 0 : p->reserve)) {
        places_look(p);
        if (p->fs_free < p->fs_keep / 4 || places_left(p) < count + (use_reserve ? 0 : p->reserve)) {
            p->full = true;
            return false;
        }
    }
    if (places_reserve(p, count, NULL) < 0)
        return false;
    places_unreserve(p, count);
    return true;
}

static void resize(struct places *p, uint64_t n)
{
    uint64_t old = (p->n + 63) / 64, words = (n + 63) / 64;
    if (words > old) {
        p->bits = xrealloc(p->bits, words * 8);
        memset(p->bits + old, 0, (words - old) * 8);
    }
    p->n = n;
}

int places_open(struct places *p, int fd, uint64_t limit_bytes, uint64_t raw_bytes, struct err *e)
{
    *p = (struct places){.fd = fd, .limit = limit_bytes ? limit_bytes / STORE_EXTENT : UINT64_MAX};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(e, errno, "look at extents.dat");
    p->fixed = raw_bytes > 0;
    resize(p, (p->fixed ? raw_bytes : (uint64_t)st.st_size) / STORE_EXTENT);
    if (p->fixed && p->n > p->limit)
        p->n = p->limit;
    for (uint64_t i = 0; p->fixed && i < FMT_RAW_PLACES; i++) {
        int rc = places_mark(p, i, e);
        if (rc < 0)
            return rc;
    }
    places_look(p);
    return E_OK;
}

void places_close(struct places *p)
{
    free(p->bits);
    *p = (struct places){.fd = -1};
}

int places_mark(struct places *p, uint64_t place, struct err *e)
{
    if (place >= p->n)
        return err_set(e, E_CORRUPT, "extents.dat is too short: place %llu of %llu is in use", (unsigned long long)place,
                       (unsigned long long)p->n);
    if (bit(p, place))
        return err_set(e, E_CORRUPT, "place %llu is used by two extents", (unsigned long long)place);
    p->bits[place / 64] |= 1ull << (place % 64);
    p->used++;
    return E_OK;
}

uint64_t places_spare(const struct places *p)
{
    return p->n - p->used - p->reserved;
}

static int grow(struct places *p, uint64_t count, struct err *e)
{
    places_look(p);
    uint64_t more = (count + ALLOC_STEP - 1) / ALLOC_STEP * ALLOC_STEP, most = growable(p);
    if (more > most)
        more = most;
    if (fault_hit("extents.grow") || more < count)
        return err_set(e, E_NOSPC, "the capacity disk is full");
    if (fallocate(p->fd, 0, (off_t)(p->n * STORE_EXTENT), (off_t)(more * STORE_EXTENT)) < 0)
        return err_sys(e, errno, "grow extents.dat");
    if (fdatasync(p->fd) < 0) /* what is reserved from now on must be there after a crash, too */
        return err_sys(e, errno, "sync extents.dat");
    resize(p, p->n + more);
    places_look(p);
    return E_OK;
}

int places_reserve(struct places *p, uint64_t count, struct err *e)
{
    if (places_spare(p) < count + ALLOC_SLACK) {
        int rc = grow(p, count + ALLOC_SLACK - places_spare(p), e);
        if (rc < 0)
            return rc;
    }
    p->reserved += count;
    return E_OK;
}

void places_unreserve(struct places *p, uint64_t count)
{
    assert(p->reserved >= count);
    p->reserved -= count;
}

bool places_take(struct places *p, bool reserved, uint64_t *ret_place)
{
    if (reserved)
        places_unreserve(p, 1);
    else if (p->n - p->used <= p->reserved)
        return false;
    assert(p->used < p->n);
    for (uint64_t i = 0, at = p->hint; i < p->n; i++, at++) {
        if (at >= p->n)
            at = 0;
        if (at % 64 == 0 && p->bits[at / 64] == UINT64_MAX) { /* at and i only advance: skip a full word at once */
            at += 63;
            i += 63;
            continue;
        }
        if (!bit(p, at)) {
            p->bits[at / 64] |= 1ull << (at % 64);
            p->used++;
            p->hint = at + 1;
            *ret_place = at;
            return true;
        }
    }
    assert(!"the counts say that there is a free place");
    return false;
}

void places_free(struct places *p, uint64_t place)
{
    assert(place < p->n && bit(p, place));
    p->bits[place / 64] &= ~(1ull << (place % 64));
    p->used--;
}
