/* Intrusive hash table (chained, grows by doubling). The caller hashes and compares. Not thread-safe.
 *
 * struct htab_node *n; HTAB_FOR_EACH_WITH_HASH (n, hash, &t) { struct obj *o = container_of(n, struct obj, node); ... }
 */
#ifndef COHORT_BASE_HTAB_H
#define COHORT_BASE_HTAB_H

#include <stddef.h>
#include <stdint.h>

#ifndef container_of
#define container_of(PTR, TYPE, MEMBER) ((TYPE *)((char *)(PTR)-offsetof(TYPE, MEMBER)))
#endif

struct htab_node {
    struct htab_node *next;
    uint64_t hash;
};

struct htab {
    struct htab_node **bucket; /* NULL while empty */
    size_t mask, n;
};

void htab_init(struct htab *t);
void htab_destroy(struct htab *t); /* frees the table, not the objects */
void htab_insert(struct htab *t, struct htab_node *n, uint64_t hash);
void htab_remove(struct htab *t, struct htab_node *n);
struct htab_node *htab_first_with_hash(const struct htab *t, uint64_t hash);
struct htab_node *htab_next_with_hash(const struct htab_node *n);
struct htab_node *htab_first(const struct htab *t);                       /* any order; not across inserts */
struct htab_node *htab_next(const struct htab *t, const struct htab_node *n);

#define HTAB_FOR_EACH_WITH_HASH(N, HASH, T) \
    for ((N) = htab_first_with_hash((T), (HASH)); (N); (N) = htab_next_with_hash(N))
/* The body may remove and free N. */
#define HTAB_FOR_EACH_SAFE(N, NEXT, T) \
    for ((N) = htab_first(T); (N) && ((NEXT) = htab_next((T), (N)), 1); (N) = (NEXT))
#define HTAB_FOR_EACH(N, T) for ((N) = htab_first(T); (N); (N) = htab_next((T), (N)))

uint64_t hash_bytes(const void *data, size_t len, uint64_t seed);
uint64_t hash_str(const char *s);
static inline uint64_t hash_u64(uint64_t x)
{
    x ^= x >> 33; x *= 0xff51afd7ed558ccdULL; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ULL; return x ^ (x >> 33);
}

#endif
