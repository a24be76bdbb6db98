/* QMP client. See qmp.h.
 *
 *   DOWN --timer--> CONNECTING --greeting--> NEGOTIATING --reply--> UP
 *     ^------------------'-----------------------'------------------'   connection broke, or something not QMP came
 */
#include "compute/qemu/qmp.h"

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/sm.h"
#include "compute/qemu/qmp_msg.h"

LOG_MODULE("qmp");

#define RETRY_MS 50
#define TICK_MS 100           /* granularity of time-outs */
#define LINE_MAX_BYTES (1u << 20)
#define CAPS_TIMEOUT_MS 60000 /* a busy host may take long to bring QEMU's main loop up */

enum { DOWN, CONNECTING, NEGOTIATING, UP, N_STATES };
static const struct sm_conf conf[N_STATES] = {
    [DOWN] = {"down", SM_TO(CONNECTING), .initial = true},
    [CONNECTING] = {"connecting", SM_TO(NEGOTIATING) | SM_TO(DOWN)},
    [NEGOTIATING] = {"negotiating", SM_TO(UP) | SM_TO(DOWN)},
    [UP] = {"up", SM_TO(DOWN)},
};

struct call {
    TAILQ_ENTRY(call) entry;
    uint64_t id, deadline_ms;
    bool unsent; /* made while there was no connection: fails at the next tick */
    qmp_done *done;
    void *arg;
};
TAILQ_HEAD(calls, call);

struct pipe { /* one connection; freed by its own close callback, so that a new one can begin at once */
    uv_pipe_t handle;
    uv_connect_t connect;
    struct qmp *q; /* NULL once given up */
};

struct qmp {
    struct sm sm;
    uv_loop_t *loop;
    uv_timer_t timer;
    struct pipe *pipe;
    char *path;
    struct qmp_handler h;
    struct calls calls;
    uint64_t next_id, retry_ms;
    char *in;
    size_t in_len, in_cap;
    bool closed;
};

static void pipe_closed(uv_handle_t *h) { free(h->data); }

static void drop_pipe(struct qmp *q)
{
    if (!q->pipe)
        return;
    q->pipe->q = NULL;
    uv_close((uv_handle_t *)&q->pipe->handle, pipe_closed);
    q->pipe = NULL;
    q->in_len = 0;
}

static void finish(struct qmp *q, struct call *c, int status, json_t *ret, const struct err *e)
{
    TAILQ_REMOVE(&q->calls, c, entry);
    qmp_done *done = c->done;
    void *arg = c->arg;
    free(c);
    if (done)
        done(arg, status, ret, e);
}

static void finish_all(struct qmp *q, int status, const char *why)
{
    struct err e;
    struct calls mine = TAILQ_HEAD_INITIALIZER(mine);
    err_set(&e, status, "%s", why);
    TAILQ_CONCAT(&mine, &q->calls, entry); /* callbacks may make new calls: those are not part of this */
    for (struct call *c; (c = TAILQ_FIRST(&mine));) {
        TAILQ_REMOVE(&mine, c, entry);
        if (c->done)
            c->done(c->arg, status, NULL, &e);
        free(c);
    }
}

static void broke(struct qmp *q, const char *why)
{
    bool was_up = q->sm.state == UP;
    if (was_up)
        log_dbg("%s: %s", q->path, why);
    drop_pipe(q);
    sm_move(&q->sm, DOWN);
    q->retry_ms = clock_boot_ms() + RETRY_MS;
    uv_timer_start(&q->timer, q->timer.timer_cb, RETRY_MS, TICK_MS);
    finish_all(q, E_DISCONN, "the monitor's connection broke");
    if (was_up && !q->closed)
        q->h.up(q, false, q->h.arg);
}

static void caps_done(void *arg, int status, json_t *ret, const struct err *e)
{
    struct qmp *q = arg;
    if (q->closed || q->sm.state != NEGOTIATING)
        return;
    if (status != E_OK) {
        broke(q, e->msg);
        return;
    }
    sm_move(&q->sm, UP);
    q->h.up(q, true, q->h.arg);
}

static void on_msg(struct qmp *q, struct qmp_msg *m)
{
    struct call *c;
    struct err e;
    switch (m->kind) {
    case QMP_GREETING:
        if (q->sm.state != CONNECTING) {
            broke(q, "a second greeting");
            break;
        }
        sm_move(&q->sm, NEGOTIATING);
        qmp_call(q, "qmp_capabilities", NULL, CAPS_TIMEOUT_MS, caps_done, q);
        break;
    case QMP_EVENT:
        if (q->sm.state == UP)
            q->h.event(q, m->text, m->data, q->h.arg);
        break;
    case QMP_RETURN:
    case QMP_ERROR:
        TAILQ_FOREACH (c, &q->calls, entry)
            if (c->id == m->id)
                break;
        if (!c) /* its time was out */
            break;
        if (m->kind == QMP_ERROR)
            finish(q, c, err_set(&e, E_INVAL, "%s", m->text), NULL, &e);
        else
            finish(q, c, E_OK, m->data, NULL);
        break;
    }
}

static void on_line(struct qmp *q, const char *line, size_t len)
{
    struct qmp_msg m;
    struct err e;
    if (len == 0 || (len == 1 && line[0] == '\r'))
        return;
    if (qmp_msg_parse(line, len, &m, &e) != E_OK) {
        log_warn("%s: %s", q->path, e.msg);
        broke(q, e.msg);
        return;
    }
    on_msg(q, &m);
    json_decref(m.root);
}

static void take_lines(struct qmp *q)
{
    struct pipe *p = q->pipe;
    size_t from = 0;
    char *end;
    while (from < q->in_len && (end = memchr(q->in + from, '\n', q->in_len - from))) {
        size_t len = (size_t)(end - (q->in + from));
        on_line(q, q->in + from, len);
        if (q->pipe != p) /* closed or broken by what the line led to: the rest is of a past connection */
            return;
        from += len + 1;
    }
    q->in_len -= from;
    memmove(q->in, q->in + from, q->in_len);
    if (q->in_len >= LINE_MAX_BYTES)
        broke(q, "a line without end");
}

static void on_alloc(uv_handle_t *h, size_t hint, uv_buf_t *b)
{
    struct pipe *p = h->data;
    struct qmp *q = p->q;
    if (q->in_cap - q->in_len < 4096) {
        q->in_cap = q->in_cap ? q->in_cap * 2 : 16384;
        q->in = xrealloc(q->in, q->in_cap);
    }
    *b = uv_buf_init(q->in + q->in_len, (unsigned)(q->in_cap - q->in_len));
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct pipe *p = s->data;
    struct qmp *q = p->q;
    if (!q || n == 0)
        return;
    if (n < 0) {
        broke(q, uv_strerror((int)n));
        return;
    }
    q->in_len += (size_t)n;
    take_lines(q);
}

static void on_connect(uv_connect_t *req, int status)
{
    struct pipe *p = req->data;
    if (!p->q)
        return;
    if (status == 0)
        status = uv_read_start((uv_stream_t *)&p->handle, on_alloc, on_read);
    if (status < 0)
        broke(p->q, uv_strerror(status));
}

static void try_connect(struct qmp *q)
{
    struct pipe *p = xcalloc(1, sizeof *p);
    p->q = q;
    if (uv_pipe_init(q->loop, &p->handle, 0) < 0) {
        free(p);
        return; /* no descriptor: again at the next tick */
    }
    p->handle.data = p->connect.data = p;
    q->pipe = p;
    sm_move(&q->sm, CONNECTING);
    uv_pipe_connect(&p->connect, &p->handle, q->path, on_connect);
}

static void on_tick(uv_timer_t *t)
{
    struct qmp *q = t->data;
    uint64_t now = clock_boot_ms();
    struct call *c;
    struct err e;
    for (;;) { /* from the start after each: a callback may change the list */
        TAILQ_FOREACH (c, &q->calls, entry)
            if (c->unsent || now >= c->deadline_ms)
                break;
        if (!c)
            break;
        if (c->unsent)
            finish(q, c, err_set(&e, E_DISCONN, "no connection to the monitor"), NULL, &e);
        else
            finish(q, c, err_set(&e, E_TIMEOUT, "the monitor did not answer in time"), NULL, &e);
        if (q->closed)
            return;
    }
    if (q->sm.state == DOWN && now >= q->retry_ms)
        try_connect(q);
}

struct qmp *qmp_open(uv_loop_t *loop, const char *path, const struct qmp_handler *h)
{
    struct qmp *q = xcalloc(1, sizeof *q);
    q->loop = loop;
    q->path = xstrdup(path);
    q->h = *h;
    q->next_id = 1;
    TAILQ_INIT(&q->calls);
    sm_init(&q->sm, conf, N_STATES, DOWN, "qmp");
    uv_timer_init(loop, &q->timer);
    q->timer.data = q;
    uv_timer_start(&q->timer, on_tick, 0, TICK_MS);
    return q;
}

static void timer_closed(uv_handle_t *h)
{
    struct qmp *q = h->data;
    free(q->path);
    free(q->in);
    free(q);
}

void qmp_close(struct qmp *q)
{
    if (!q)
        return;
    q->closed = true;
    drop_pipe(q);
    finish_all(q, E_CANCELED, "the monitor's connection was closed");
    uv_close((uv_handle_t *)&q->timer, timer_closed);
}

bool qmp_connected(const struct qmp *q) { return q->sm.state == UP; }

struct write_req {
    uv_write_t req;
    char *text;
};

static void on_written(uv_write_t *req, int status)
{
    struct write_req *w = req->data; /* a failure shows on the reading side too */
    free(w->text);
    free(w);
}

static void send_text(struct qmp *q, char *text)
{
    struct write_req *w = xcalloc(1, sizeof *w);
    w->req.data = w;
    w->text = text;
    uv_buf_t b = uv_buf_init(text, (unsigned)strlen(text));
    if (uv_write(&w->req, (uv_stream_t *)&q->pipe->handle, &b, 1, on_written) < 0)
        on_written(&w->req, -1);
}

void qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms, qmp_done *done, void *arg)
{
    struct call *c = xcalloc(1, sizeof *c);
    bool caps = q->sm.state == NEGOTIATING && strcmp(command, "qmp_capabilities") == 0;
    c->id = q->next_id++;
    c->deadline_ms = clock_boot_ms() + timeout_ms;
    c->done = done;
    c->arg = arg;
    c->unsent = q->sm.state != UP && !caps;
    TAILQ_INSERT_TAIL(&q->calls, c, entry);
    json_t *j = json_pack("{s:s, s:I, s:o*}", "execute", command, "id", (json_int_t)c->id, "arguments", args);
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (c->unsent || !text) {
        free(text);
        c->unsent = true;
        uv_timer_start(&q->timer, on_tick, 0, TICK_MS);
        return;
    }
    char *line = xasprintf("%s\n", text);
    free(text);
    send_text(q, line);
}
