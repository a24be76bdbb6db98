/* Objects of requests. See obj.h. */
#include "base/obj.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

#define STEP 64u
#define SIZE_MAX_KEPT 2048u
#define CLASSES (SIZE_MAX_KEPT / STEP)
#define KEEP_BYTES (512u << 10) /* of each size */

struct spare { struct spare *next; };

struct spares {
    struct spare *head[CLASSES];
    unsigned n[CLASSES];
    bool known; /* release() runs at the thread's end */
};

static _Thread_local struct spares mine;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *arg)
{
    struct spares *s = arg;
    for (unsigned k = 0; k < CLASSES; k++) {
        for (struct spare *o = s->head[k], *next; o; o = next) {
            next = o->next;
            free(o);
        }
        s->head[k] = NULL;
        s->n[k] = 0;
    }
    s->known = false; /* another destructor may still free some */
}

static void make_key(void)
{
    if (pthread_key_create(&key, release))
        abort(); /* out of keys */
}

/* The class of a size, from 0; CLASSES: not kept. Under AddressSanitizer nothing is: use after free must be seen. */
static unsigned class_of(size_t bytes)
{
#ifdef __SANITIZE_ADDRESS__
    (void)bytes;
    return CLASSES;
#else
    return bytes - 1 < SIZE_MAX_KEPT ? (unsigned)((bytes - 1) / STEP) : CLASSES;
#endif
}

void *obj_new(size_t bytes)
{
    unsigned k = class_of(bytes);
    if (k == CLASSES)
        return xcalloc(1, bytes);
    struct spare *o = mine.head[k];
    if (!o)
        return xcalloc(1, (k + 1) * STEP);
    mine.head[k] = o->next;
    mine.n[k]--;
    return memset(o, 0, bytes);
}

void obj_free(void *p, size_t bytes)
{
    unsigned k = class_of(bytes);
    if (!p || k == CLASSES || mine.n[k] >= KEEP_BYTES / ((k + 1) * STEP)) {
        free(p);
        return;
    }
    if (!mine.known) {
        pthread_once(&once, make_key);
        pthread_setspecific(key, &mine);
        mine.known = true;
    }
    struct spare *o = p;
    o->next = mine.head[k];
    mine.head[k] = o;
    mine.n[k]++;
}
