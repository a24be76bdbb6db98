/* Bounded protobuf decoding: protobuf-c needs about 32 bytes of scratch per wire field, so a hostile megabyte could make
 * it allocate 32. Everything of one message comes from an arena with a total bound, and goes with it. A small message, as each
 * read and write is one, fits into the arena itself, which is kept for the next one (base/obj.h). */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/obj.h"
#include "proto/rpc.h"

#define ARENA_ALIGN 16u

struct block {
    struct block *next;
    size_t used, cap;
    _Alignas(ARENA_ALIGN) uint8_t bytes[];
};

struct arena {
    struct block *head;
    size_t left; /* bytes that may still be taken from malloc */
    size_t hint;
    size_t used; /* of `own`, which serves until it is full */
    _Alignas(ARENA_ALIGN) uint8_t own[1536];
};

static void *arena_alloc(void *arg, size_t size)
{
    struct arena *a = arg;
    if (size > a->left)
        return NULL;
    size = (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (size <= sizeof a->own - a->used) {
        a->used += size;
        return a->own + a->used - size;
    }
    if (!a->head || a->head->cap - a->head->used < size) {
        size_t cap = size > a->hint ? size : a->hint;
        if (cap > a->left)
            cap = size;
        if (cap > a->left)
            return NULL;
        struct block *b = malloc(sizeof *b + cap);
        if (!b)
            return NULL;
        *b = (struct block){a->head, 0, cap};
        a->left -= cap;
        a->head = b;
    }
    void *p = a->head->bytes + a->head->used;
    a->head->used += size;
    return p;
}

static void arena_free(void *arg, void *p)
{
    (void)arg;
    (void)p; /* all at once, in rpc_unpack_free() */
}

static void arena_release(struct arena *a)
{
    for (struct block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    OBJ_FREE(a);
}

ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t len)
{
    struct arena *a = OBJ_NEW(struct arena);
    a->left = 64 * len + (64u << 10);
    a->hint = 512 + 2 * len;
    /* The arena's address stands before the message, the first thing protobuf-c allocates. */
    struct arena **home = arena_alloc(a, sizeof *home);
    ProtobufCAllocator alloc = {arena_alloc, arena_free, a};
    ProtobufCMessage *m = home ? protobuf_c_message_unpack(d, &alloc, len, data) : NULL;
    if (!m) {
        arena_release(a);
        return NULL;
    }
    *home = a;
    assert((uint8_t *)m == (uint8_t *)home + ARENA_ALIGN);
    return m;
}

void rpc_unpack_free(ProtobufCMessage *m)
{
    if (m)
        arena_release(*(struct arena **)(void *)((uint8_t *)m - ARENA_ALIGN));
}
