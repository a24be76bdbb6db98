/* See watch.h. */
#include <assert.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/buf.h"
#include "storage/asan/front/watch.h"

int iowatch_new(uv_loop_t *loop, int fd, void (*readable)(void *arg), void *arg, struct watch **ret_watch)
{
    struct watch *w = xcalloc(1, sizeof *w);
    if (uv_poll_init(loop, &w->poll, fd)) {
        free(w);
        return E_PROTO;
    }
    w->poll.data = w;
    w->fd = fd;
    w->readable = readable;
    w->arg = arg;
    *ret_watch = w;
    return E_OK;
}

static void on_poll(uv_poll_t *h, int status, int events)
{
    struct watch *w = h->data;
    w->readable(w->arg);
}

void iowatch_set(struct watch *w, bool on)
{
    if (w->on == on)
        return;
    w->on = on;
    int rc = on ? uv_poll_start(&w->poll, UV_READABLE, on_poll) : uv_poll_stop(&w->poll);
    assert(!rc);
}

static void on_closed(uv_handle_t *h)
{
    free(h->data);
}

void iowatch_close(struct watch *w)
{
    if (!w)
        return;
    uv_close((uv_handle_t *)&w->poll, on_closed);
    close(w->fd); /* allowed right after uv_close() for poll handles */
}
