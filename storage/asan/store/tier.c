/* Roles of devices. See tier.h. */
#include "storage/asan/store/tier.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include "storage/asan/store/cache.h"

#define MIB (UINT64_C(1) << 20)
#define JOURNAL_DEFAULT (1024 * MIB)
#define JOURNAL_MOST (32 * 1024 * MIB) /* read again at a start in about half a minute by a device that gives 1 GiB/s */

static bool device_of(const char *path, dev_t *ret)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return false;
    *ret = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    return true;
}

/* A partition has no queue of its own; the disk above it does. */
static bool rotational(dev_t dev)
{
    static const char *const where[] = {"/sys/dev/block/%u:%u/queue/rotational", "/sys/dev/block/%u:%u/../queue/rotational"};
    for (unsigned i = 0; i < 2; i++) {
        char path[96];
        snprintf(path, sizeof path, where[i], major(dev), minor(dev));
        FILE *f = fopen(path, "re");
        if (!f)
            continue;
        int c = fgetc(f);
        fclose(f);
        return c == '1';
    }
    return false;
}

bool tier_same_device(const char *a, const char *b)
{
    dev_t x, y;
    return device_of(a, &x) && device_of(b, &y) && x == y;
}

void tier_split(uint64_t fast_bytes, unsigned sharing, struct tier *ret)
{
    uint64_t share = fast_bytes / 20 * 19 / (sharing ? sharing : 1) / MIB * MIB; /* a file system wants some for itself */
    uint64_t journal = share / 10 * 3 / MIB * MIB;
    *ret = (struct tier){.separate = true, .journal_bytes = journal < JOURNAL_MOST ? journal : JOURNAL_MOST};
    if (ret->journal_bytes < 16 * MIB)
        ret->journal_bytes = 16 * MIB;
    uint64_t cache = share / 10 * 7 / MIB * MIB;
    ret->cache_bytes = cache >= CACHE_MIN ? cache : 0;
}

void tier_of(const char *fast, const char *capacity, unsigned sharing, struct tier *ret)
{
    dev_t f, c;
    struct statvfs v;
    *ret = (struct tier){.journal_bytes = JOURNAL_DEFAULT};
    if (device_of(fast, &f) && device_of(capacity, &c) && f != c && rotational(c) && !rotational(f) && statvfs(fast, &v) == 0)
        tier_split((uint64_t)v.f_blocks * v.f_frsize, sharing, ret);
}
