/* Read cache: copies of extent blocks on the fast device, for capacity devices that are slow to read.
 *
 * It caches places of extents.dat in lines of 32 KiB; which lines are kept is S3-FIFO's decision (s3fifo.h). What it holds is
 * never trusted: the reader checks each block against the crc32c that the extent's metadata say now, so a line that should
 * have been dropped, or one that is being overwritten, counts as a miss and cannot be returned. cache_forget() is called
 * whenever destage changes or frees a place; it keeps the cache useful, the checksum keeps it right.
 *
 * Only its memory says what is in the file: after a restart the cache is empty. An error of the fast device switches it off.
 * Threading: the loop's thread.
 */
#ifndef COHORT_STORAGE_STORE_CACHE_H
#define COHORT_STORAGE_STORE_CACHE_H

#include "storage/asan/store/dev.h"
#include "storage/asan/store/store.h"

#define CACHE_LINE (32u << 10)
#define CACHE_MIN (16u << 20)

struct cache;

/* Makes the file (what is there is overwritten) of `bytes`, at least CACHE_MIN. E_NOSPC, E_IO. */
MUST_CHECK int cache_open(const char *path, uint64_t bytes, struct uring *u, struct cache **ret_cache, struct err *e);
void cache_close(struct cache *c); /* nothing in flight; NULL is fine */
bool cache_idle(const struct cache *c);

/* Looks for blocks [first, first + count) of place `place`, all within one line. Found: *ret_offset is where they lie in
 * cache_dev(). Counted as a use, and as a hit or a miss. */
bool cache_find(struct cache *c, uint64_t place, uint32_t first, uint32_t count, uint64_t *ret_offset);
const struct dev *cache_dev(const struct cache *c);
/* Keeps a copy of the blocks, which were read from the capacity device and checked. Best effort; copies `data`. */
void cache_keep(struct cache *c, uint64_t place, uint32_t first, uint32_t count, const void *data);
/* Place `place` has new contents or none. NULL is fine. */
void cache_forget(struct cache *c, uint64_t place);
/* A block read from there failed its checksum or the read failed. */
void cache_bad(struct cache *c, uint64_t place, uint32_t first, bool io_error);

void cache_usage(const struct cache *c, struct store_cache_usage *ret); /* NULL: zeroes */

#endif
