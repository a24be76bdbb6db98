/* ovn-northd and changes of leaders (northd.h). The control socket speaks JSON-RPC; the two results begin with
 * "connected" or "not connected". */
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/log.h"
#include "net/anet/northd.h"

LOG_MODULE("anet")

#define ASK_MS 400   /* a start and both connections take 50 to 150 ms here */
#define TRIES_MAX 20
#define ANSWER_MAX 4096

static const char question[] = "{\"method\":\"nb-connection-status\",\"params\":[],\"id\":0}"
                               "{\"method\":\"sb-connection-status\",\"params\":[],\"id\":1}";

struct northd {
    uv_loop_t *loop;
    struct service *service;
    char *path;
    uv_timer_t timer;
    int tries;            /* left; 0 = at rest */
    struct inquiry *asking;
};

/* One connection to the control socket. It ends with its handle, later than northd may forget it. */
struct inquiry {
    uv_pipe_t pipe;
    uv_connect_t connect;
    uv_write_t write;
    struct northd *owner; /* NULL: no longer of interest */
    struct buf answer;
};

static void on_timer(uv_timer_t *t);

static void on_closed(uv_handle_t *h)
{
    struct inquiry *q = h->data;
    buf_free(&q->answer);
    free(q);
}

static void forget(struct northd *n)
{
    struct inquiry *q = n->asking;
    n->asking = NULL;
    if (!q)
        return;
    q->owner = NULL;
    if (!uv_is_closing((uv_handle_t *)&q->pipe))
        uv_close((uv_handle_t *)&q->pipe, on_closed);
}

static void conclude(struct northd *n, bool connected)
{
    forget(n);
    uv_timer_stop(&n->timer);
    if (connected || !n->tries || !--n->tries) {
        n->tries = 0;
        return;
    }
    log_info("ovn-northd has not found both leaders yet");
    service_restart(n->service);
    uv_timer_start(&n->timer, on_timer, ASK_MS, 0);
}

static void on_alloc(uv_handle_t *h, size_t size, uv_buf_t *ret)
{
    *ret = uv_buf_init(xmalloc(ANSWER_MAX), ANSWER_MAX);
}

/* 1: connected to both, 0: not, -1: the answers are not complete yet. */
static int judge(const struct buf *b)
{
    const char *p = b->data;
    int answers = 0;
    if (strstr(p, "\"not connected") || b->len > ANSWER_MAX)
        return 0;
    while ((p = strstr(p, "\"connected"))) {
        answers++;
        p++;
    }
    return answers >= 2 ? 1 : -1;
}

static void on_read(uv_stream_t *s, ssize_t len, const uv_buf_t *b)
{
    struct inquiry *q = s->data;
    if (len > 0)
        buf_append(&q->answer, b->base, (size_t)len);
    free(b->base);
    int verdict = len < 0 ? 0 : len ? judge(&q->answer) : -1;
    if (q->owner && verdict >= 0)
        conclude(q->owner, verdict);
}

static void on_write(uv_write_t *w, int status)
{
    struct inquiry *q = w->handle->data;
    if (status && q->owner)
        conclude(q->owner, false);
}

static void on_connect(uv_connect_t *c, int status)
{
    struct inquiry *q = c->handle->data;
    if (!q->owner)
        return;
    uv_buf_t b = uv_buf_init((char *)(uintptr_t)question, sizeof question - 1);
    if (status || uv_write(&q->write, (uv_stream_t *)&q->pipe, &b, 1, on_write) ||
        uv_read_start((uv_stream_t *)&q->pipe, on_alloc, on_read))
        conclude(q->owner, false);
}

static void on_timer(uv_timer_t *t)
{
    struct northd *n = t->data;
    if (n->asking) { /* a whole period without an answer */
        conclude(n, false);
        return;
    }
    struct inquiry *q = xcalloc(1, sizeof *q);
    buf_init(&q->answer);
    q->owner = n;
    n->asking = q;
    uv_pipe_init(n->loop, &q->pipe, 0);
    q->pipe.data = q;
    uv_timer_start(&n->timer, on_timer, ASK_MS, 0);
    uv_pipe_connect(&q->connect, &q->pipe, n->path, on_connect);
}

struct northd *northd_open(uv_loop_t *loop, struct service *service, const char *ctl_path)
{
    struct northd *n = xcalloc(1, sizeof *n);
    n->loop = loop;
    n->service = service;
    n->path = xstrdup(ctl_path);
    uv_timer_init(loop, &n->timer);
    uv_unref((uv_handle_t *)&n->timer);
    n->timer.data = n;
    return n;
}

static void on_timer_closed(uv_handle_t *h)
{
    struct northd *n = h->data;
    free(n->path);
    free(n);
}

void northd_close(struct northd *n)
{
    if (!n)
        return;
    forget(n);
    uv_close((uv_handle_t *)&n->timer, on_timer_closed);
}

void northd_follow(struct northd *n)
{
    forget(n);
    n->tries = TRIES_MAX;
    service_restart(n->service);
    uv_timer_start(&n->timer, on_timer, ASK_MS, 0);
}

void northd_let(struct northd *n)
{
    forget(n);
    n->tries = 0;
    uv_timer_stop(&n->timer);
}
