/* Descriptors watched by the loop. See machine_int.h. */
#include <stdlib.h>
#include "base/buf.h"
#include "compute/machine_int.h"

struct watch {
    uv_poll_t poll;
    watch_fn *fn;
    void *arg;
};

static void on_poll(uv_poll_t *p, int status, int events)
{
    struct watch *w = p->data;
    w->fn(w->arg);
}

struct watch *watch_open(uv_loop_t *loop, int fd, watch_fn *fn, void *arg)
{
    struct watch *w = xcalloc(1, sizeof *w);
    w->fn = fn;
    w->arg = arg;
    w->poll.data = w;
    if (uv_poll_init(loop, &w->poll, fd) < 0) {
        free(w);
        return NULL;
    }
    uv_poll_start(&w->poll, UV_READABLE | UV_DISCONNECT, on_poll);
    return w;
}

static void on_closed(uv_handle_t *h) { free(h->data); }

void watch_close(struct watch *w)
{
    if (w)
        uv_close((uv_handle_t *)&w->poll, on_closed);
}
