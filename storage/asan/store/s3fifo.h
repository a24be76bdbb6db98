/* S3-FIFO: which keys a cache keeps (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).
 *
 *   new key --> small (a tenth) --used twice--> main (the rest) --used since it was last at the end--> main again
 *                  |                              |
 *                  +--> ghost (keys only) --seen again: straight to main
 *
 * A scan passes through the small queue and leaves main alone; a hit only raises a two-bit counter, nothing is moved. It
 * knows keys and slot numbers, not data. One allocation per array at the beginning, 32 bytes per slot.
 * Threading: none of its own. Keys: any but 0.
 */
#ifndef COHORT_STORAGE_STORE_S3FIFO_H
#define COHORT_STORAGE_STORE_S3FIFO_H

#include <stdbool.h>
#include <stdint.h>

#define S3FIFO_NONE UINT32_MAX

struct s3fifo;

struct s3fifo *s3fifo_new(uint32_t slots); /* at least 16 */
void s3fifo_free(struct s3fifo *c);        /* NULL is fine */
/* The key's slot, counted as a use; S3FIFO_NONE if it is not kept. */
uint32_t s3fifo_get(struct s3fifo *c, uint64_t key);
/* The same without counting it. */
uint32_t s3fifo_peek(const struct s3fifo *c, uint64_t key);
/* A slot for a key that is not kept: a free one, or that of the key that is given up for it. */
uint32_t s3fifo_put(struct s3fifo *c, uint64_t key);
/* Forgets a key; it leaves no ghost. Unknown ones are fine. */
void s3fifo_remove(struct s3fifo *c, uint64_t key);
uint32_t s3fifo_count(const struct s3fifo *c);

#endif
