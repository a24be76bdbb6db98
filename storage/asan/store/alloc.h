/* Allocator of extents.dat: which 256 KiB places are in use. In memory only; rebuilt from the metadata at open.
 *
 * What the journal accepted must always find a place. So space is taken from the file system (fallocate) before a record
 * is accepted: places_reserve() counts one place for each extent that will need its first one, and keeps ALLOC_SLACK more
 * for copy-on-write. Threading: the loop's thread, plus store_open().
 */
#ifndef COHORT_STORAGE_STORE_ALLOC_H
#define COHORT_STORAGE_STORE_ALLOC_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define ALLOC_SLACK 16u              /* places for copy-on-write that no reservation may take */
#define ALLOC_STEP 256u              /* places by which the file grows: 64 MiB */

struct places {
    int fd;
    uint64_t *bits;     /* 1 = in use */
    uint64_t n;         /* places the file has */
    uint64_t used, reserved;
    uint64_t hint;
    uint64_t fs_free, fs_keep; /* bytes: last looked at; never to be taken (the metadata need them) */
    uint64_t limit;     /* places at most; UINT64_MAX: what the file system has */
    uint64_t reserve;   /* the last so many places are for writes that are under way already (places_room()) */
    bool fixed;         /* a raw device: it does not grow, and no file system is asked */
    bool full;          /* fewer than `reserve` are left; false again with twice as many */
};

/* `fd` is extents.dat, which has whole places, or with `raw_bytes` a device of that size, whose first places are its label's. `limit_bytes`: it shall not grow beyond; 0 = no limit. */
MUST_CHECK int places_open(struct places *p, int fd, uint64_t limit_bytes, uint64_t raw_bytes, struct err *e);
void places_close(struct places *p);
/* At open: `place` is in use. E_CORRUPT if it is beyond the file or in use already. */
MUST_CHECK int places_mark(struct places *p, uint64_t place, struct err *e);
/* Makes sure that `count` more extents will find a place and counts them. E_NOSPC leaves no trace. */
MUST_CHECK int places_reserve(struct places *p, uint64_t count, struct err *e);
void places_unreserve(struct places *p, uint64_t count);
/* Takes a place; `reserved`: the one counted for this extent, else one of the slack. False: none left. */
bool places_take(struct places *p, bool reserved, uint64_t *ret_place);
void places_free(struct places *p, uint64_t place);
uint64_t places_spare(const struct places *p); /* free ones that are not reserved */
void places_look(struct places *p); /* refreshes fs_free and `full` */
/* Places that new extents may still take, those included for which the file would have to grow. */
uint64_t places_left(const struct places *p);
/* Would places_reserve(count) succeed? Grows the file so that it does. `use_reserve`: the last ones may be taken, too. Says
 * no even for count 0 once others have filled the file system so far that the metadata may soon not be writable. */
bool places_room(struct places *p, uint64_t count, bool use_reserve);

#endif
