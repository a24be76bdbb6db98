/* Random numbers and events. See sim.h. */
#include <stdlib.h>
#include "tests/sim/asan/sim.h"

uint64_t rng_state, now_ms;

uint64_t rnd(void) /* splitmix64 */
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

/* A binary heap by (time, order of entry): events of one moment run in the order in which they were entered. */
struct event { uint64_t ms, order; event_fn *fn; void *a; uint64_t b; };
static struct event *heap;
static size_t heap_n, heap_cap;
static uint64_t event_order;

static bool before(const struct event *x, const struct event *y)
{
    return x->ms != y->ms ? x->ms < y->ms : x->order < y->order;
}

void at(uint64_t delay_ms, event_fn *fn, void *a, uint64_t b)
{
    if (heap_n == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 256;
        heap = xrealloc(heap, heap_cap * sizeof *heap);
    }
    struct event e = {now_ms + delay_ms, event_order++, fn, a, b};
    size_t i = heap_n++;
    for (; i && before(&e, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

bool run_one(void)
{
    if (!heap_n)
        return false;
    struct event e = heap[0], last = heap[--heap_n];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < heap_n; i = c) {
        if (c + 1 < heap_n && before(&heap[c + 1], &heap[c]))
            c++;
        if (!before(&heap[c], &last))
            break;
        heap[i] = heap[c];
    }
    heap[i] = last;
    now_ms = e.ms;
    e.fn(e.a, e.b);
    return true;
}

void clock_reset(void)
{
    heap_n = 0;
    event_order = 0;
    now_ms = 1000;
}
