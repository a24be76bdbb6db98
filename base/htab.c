/* Intrusive hash table. See htab.h. */
#include "base/htab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

void htab_init(struct htab *t) { *t = (struct htab){0}; }

void htab_destroy(struct htab *t)
{
    free(t->bucket);
    htab_init(t);
}

static void resize(struct htab *t, size_t n_buckets)
{
    struct htab_node **fresh = xcalloc(n_buckets, sizeof *fresh);
    for (size_t i = 0; t->bucket && i <= t->mask; i++)
        for (struct htab_node *n = t->bucket[i], *next; n; n = next) {
            next = n->next;
            n->next = fresh[n->hash & (n_buckets - 1)];
            fresh[n->hash & (n_buckets - 1)] = n;
        }
    free(t->bucket);
    t->bucket = fresh;
    t->mask = n_buckets - 1;
}

void htab_insert(struct htab *t, struct htab_node *n, uint64_t hash)
{
    if (!t->bucket)
        resize(t, 8);
    else if (t->n > t->mask)
        resize(t, (t->mask + 1) * 2);
    n->hash = hash;
    n->next = t->bucket[hash & t->mask];
    t->bucket[hash & t->mask] = n;
    t->n++;
}

void htab_remove(struct htab *t, struct htab_node *n)
{
    assert(t->bucket);
    struct htab_node **p = &t->bucket[n->hash & t->mask];
    while (*p != n) {
        assert(*p); /* not in this table */
        p = &(*p)->next;
    }
    *p = n->next;
    n->next = NULL;
    t->n--;
}

static struct htab_node *skip(struct htab_node *n, uint64_t hash)
{
    while (n && n->hash != hash)
        n = n->next;
    return n;
}

struct htab_node *htab_first_with_hash(const struct htab *t, uint64_t hash)
{
    return t->bucket ? skip(t->bucket[hash & t->mask], hash) : NULL;
}

struct htab_node *htab_next_with_hash(const struct htab_node *n) { return skip(n->next, n->hash); }

static struct htab_node *first_from(const struct htab *t, size_t i)
{
    for (; t->bucket && i <= t->mask; i++)
        if (t->bucket[i])
            return t->bucket[i];
    return NULL;
}

struct htab_node *htab_first(const struct htab *t) { return first_from(t, 0); }

struct htab_node *htab_next(const struct htab *t, const struct htab_node *n)
{
    return n->next ? n->next : first_from(t, (n->hash & t->mask) + 1);
}

uint64_t hash_bytes(const void *data, size_t len, uint64_t seed)
{
    const unsigned char *p = data;
    uint64_t h = seed ^ (len * 0x9e3779b97f4a7c15ULL), w;
    for (; len >= 8; p += 8, len -= 8) {
        memcpy(&w, p, 8);
        h = hash_u64(h ^ w) + 0x9e3779b97f4a7c15ULL;
    }
    if (len) {
        w = 0;
        memcpy(&w, p, len);
        h ^= w;
    }
    return hash_u64(h);
}

uint64_t hash_str(const char *s) { return hash_bytes(s, strlen(s), 0); }
