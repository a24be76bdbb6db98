/* REST: PUT /imports: a file of `cohort volume export` (volfile.h) becomes a volume, or what a volume holds next.
 *
 *   header -> rows (ops_import.c) -> volume claimed -> records to the volume, at most 4 MiB in flight (then the connection is
 *   suspended) -> end record, all durable -> rows, a snapshot is asked for -> answer: its task
 *
 * Whatever breaks it off leaves the volume in state "importing", and says so. A record counts only when its checksum was right;
 * so a damaged file is noticed before the damage reaches the volume, and a volume becomes "ready" only after the end record. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/htab.h"
#include "base/log.h"
#include "cluster/task.h"
#include "daemon/rest.h"
#include "daemon/volfile.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("import")

#define IN_FLIGHT (4u << 20)

struct import {
    struct rest_req *rq;         /* NULL: the request is gone */
    struct daemon *d;
    struct volfile *file;
    struct volfile_head head;
    struct import_spec spec;
    char name[VOLFILE_NAME];
    int64_t length, received;
    struct buf held;             /* came while the rows were made */
    struct task *task;
    struct asan_claim claim;
    enum { HEAD, ROWS, CLAIM, DATA, ENDING } state;
    bool claimed, failed, answered, whole;
    unsigned busy;               /* operations and I/O that refer to us */
    uint64_t in_flight;
    struct err err;
};

struct write { struct asan_io io; struct import *m; uint64_t weight; uint8_t data[]; };

/* ---- the end ---- */

static void import_free(struct import *m)
{
    if (m->busy)
        return;
    volfile_free(m->file);
    buf_free(&m->held);
    free(m);
}

/* The end of a callback. Everything before may have answered the request, and that may have been the last of it. */
static void unref(struct import *m)
{
    m->busy--;
    if (!m->rq)
        import_free(m);
}

static void let_go(struct import *m, const char *state, const char *why)
{
    if (m->task)
        task_end(m->task, state, why);
    m->task = NULL;
    if (m->claimed)
        asan_release(m->d->asan, m->claim.volume_id);
    m->claimed = false;
}

static void gone(void *p) /* rest_req.free_priv */
{
    struct import *m = p;
    m->rq = NULL;
    let_go(m, "failed", "the client left");
    import_free(m);
}

/* `e` may be m->err. */
static void fail(struct import *m, const struct err *e)
{
    char text[ERR_MSG_MAX];
    if (m->failed || !m->rq)
        return;
    m->failed = true;
    if (m->state > ROWS && !strchr(e->msg, '\n'))
        snprintf(text, sizeof text, "%.300s\nvolume %s is incomplete now: delete it, or revert it to the snapshot it continues", e->msg, m->name);
    else
        snprintf(text, sizeof text, "%s", e->msg);
    err_set(&m->err, e->code, "%s", text);
    char *line = xasprintf("%.*s", (int)strcspn(text, "\n"), text);
    log_warn("import into volume %s: %s", m->name, line);
    let_go(m, e->code == E_CANCELED ? "canceled" : "failed", line);
    free(line);
    rest_fail(m->rq, &m->err);
}

static void on_ended(void *arg, int status, const struct err *e, const char *id)
{
    struct import *m = arg;
    if (status == E_OK)
        let_go(m, "done", "");
    if (m->rq && status != E_OK)
        fail(m, e);
    else if (m->rq)
        rest_ok(m->rq, 200, json_pack("{s:s, s:s, s:s, s:I}", "id", id, "volume", m->name, "snapshot", m->spec.snapshot, "bytes", (json_int_t)m->length));
    unref(m);
}

static void end_if_whole(struct import *m)
{
    struct err e;
    if (m->failed || !m->rq || !m->whole || m->in_flight || m->state != DATA)
        return;
    m->state = ENDING;
    if (volfile_end(m->file, &e) != E_OK) {
        fail(m, &e);
        return;
    }
    m->busy++;
    if (op_import_end(m->rq->r->ops, &m->spec, on_ended, m, &e) != E_OK) {
        m->busy--;
        fail(m, &e);
    }
}

/* ---- records to the volume ---- */

static void on_written(struct mail *x)
{
    struct write *w = container_of(x, struct write, io.answer);
    struct import *m = w->m;
    int status = w->io.status;
    bool was_full = m->in_flight >= IN_FLIGHT;
    struct err e;
    m->in_flight -= w->weight;
    free(w);
    if (status != E_OK) {
        err_set(&e, status, "writing failed (%s)", err_code_name(status));
        fail(m, &e);
    } else if (was_full && m->in_flight < IN_FLIGHT && m->rq && m->rq->http && !m->whole) {
        http_continue(m->rq->http);
    }
    end_if_whole(m);
    unref(m);
}

static void put(struct import *m, enum asan_io_op op, uint64_t offset, const uint8_t *data, uint64_t length)
{
    size_t bytes = data ? (size_t)length : 0;
    struct write *w = xcalloc(1, sizeof *w + bytes);
    if (data)
        memcpy(w->data, data, bytes);
    w->m = m;
    w->weight = bytes + 4096; /* a zero costs little, but many of them are many */
    w->io = (struct asan_io){.answer = {.run = on_written}, .answer_to = &m->d->mailbox, .op = op, .offset = offset, .length = length,
                             .data = data ? w->data : NULL};
    memcpy(w->io.volume_id, m->claim.volume_id, sizeof w->io.volume_id);
    m->busy++;
    m->in_flight += w->weight;
    asan_io(m->d->asan, &w->io);
}

static int on_data(void *arg, uint64_t offset, const uint8_t *data, uint32_t length, struct err *e)
{
    (void)e;
    put(arg, ASAN_WRITE, offset, data, length);
    return E_OK;
}

static int on_zero(void *arg, uint64_t offset, uint64_t length, struct err *e)
{
    (void)e;
    put(arg, ASAN_ZERO, offset, NULL, length);
    return E_OK;
}

/* ---- from the header to the volume ---- */

static void feed(struct import *m, const void *data, size_t n)
{
    struct err e;
    if (m->failed || volfile_feed(m->file, data, n, &e) == E_OK)
        return;
    fail(m, &e);
}

static void begin_data(struct import *m)
{
    char object[100];
    m->state = DATA;
    snprintf(object, sizeof object, "volume %s", m->name);
    m->task = task_begin(m->d->link, "import", object, m->d->node_id, "bytes", m->length);
    size_t n = m->held.len;
    char *held = buf_take(&m->held);
    feed(m, held, n);
    free(held);
    if (m->rq && m->rq->http && !m->whole && !m->failed)
        http_continue(m->rq->http);
    end_if_whole(m);
}

static void on_claimed(struct mail *x)
{
    struct import *m = container_of(x, struct import, claim.answer);
    m->claimed = m->claim.status == E_OK;
    if (!m->rq || m->failed)
        let_go(m, "failed", "the client left");
    else if (m->claim.status != E_OK)
        fail(m, &m->claim.err);
    else
        begin_data(m);
    unref(m);
}
static void on_rows(void *arg, int status, const struct err *e, const char *id)
{
    struct import *m = arg;
    if (!m->rq || m->failed || status != E_OK) {
        if (status != E_OK)
            fail(m, e);
        unref(m);
        return;
    }
    m->state = CLAIM;
    snprintf(m->spec.volume_id, sizeof m->spec.volume_id, "%.36s", id);
    memcpy(m->claim.volume_id, m->spec.volume_id, sizeof m->claim.volume_id);
    m->claim.answer.run = on_claimed;
    m->claim.answer_to = &m->d->mailbox;
    asan_claim(m->d->asan, &m->claim); /* keeps our count */
}

static int on_head(void *arg, const struct volfile_head *h, struct err *e)
{
    struct import *m = arg;
    m->head = *h;
    if (!*m->name)
        memcpy(m->name, h->volume, sizeof m->name);
    m->spec.name = m->name;
    m->spec.snapshot = m->head.snapshot;
    m->spec.content = m->head.content;
    m->spec.base = m->head.base;
    m->spec.base_name = m->head.base_name;
    m->spec.size_bytes = (int64_t)h->size_bytes;
    m->state = ROWS;
    m->busy++;
    int rc = op_import_begin(m->rq->r->ops, &m->spec, on_rows, m, e);
    if (rc != E_OK)
        m->busy--;
    return rc;
}

static bool sink(struct http_req *h, const void *data, size_t n)
{
    struct rest_req *rq = h->user;
    struct import *m = rq->priv;
    const uint8_t *p = data;
    struct err e;
    if (m->failed)
        return true;
    m->received += (int64_t)n;
    m->whole = m->received == m->length;
    if (m->state == HEAD) {
        int64_t before = m->received - (int64_t)n;
        size_t head = before < (int64_t)VOLFILE_HEADER ? (size_t)((int64_t)VOLFILE_HEADER - before) : 0;
        head = head < n ? head : n;
        feed(m, p, head);
        p += head;
        n -= head;
    }
    if (m->state != HEAD && m->state < DATA)
        buf_append(&m->held, p, n);
    else if (m->state == DATA)
        feed(m, p, n);
    if (m->task) {
        task_progress(m->task, m->received, m->length);
        if (task_cancel_asked(m->task)) {
            err_set(&e, E_CANCELED, "the import was canceled");
            fail(m, &e);
        }
    }
    if (m->whole && m->state == HEAD && !m->failed && volfile_end(m->file, &e) != E_OK)
        fail(m, &e);
    end_if_whole(m);
    return m->failed || m->whole || m->state == HEAD || (m->state == DATA && m->in_flight < IN_FLIGHT);
}

static void on_gone(struct rest_req *rq)
{
    struct import *m = rq->priv;
    struct err e;
    if (m->state == ENDING || m->failed)
        return;
    err_set(&e, E_DISCONN, "the client left");
    fail(m, &e);
}

void rest_import(struct rest_req *rq)
{
    const char *name = http_query(rq->http, "name"), *replicas = http_query(rq->http, "replicas");
    struct err e;
    int rc = E_OK;
    if (!rq->r->d->asan)
        rc = err_set(&e, E_UNAVAIL, "the storage of this node is not running");
    else if (rq->http->content_length < (int64_t)(VOLFILE_HEADER + VOLFILE_RECORD))
        rc = err_set(&e, E_INVAL, "the file is too short, or its length (Content-Length) was not announced");
    else if (name && strlen(name) >= VOLFILE_NAME)
        rc = err_set(&e, E_INVAL, "name is too long");
    if (rc != E_OK) {
        rest_fail(rq, &e);
        return;
    }
    struct import *m = xcalloc(1, sizeof *m);
    struct volfile_sink to = {on_head, on_data, on_zero, m};
    buf_init(&m->held);
    m->rq = rq;
    m->d = rq->r->d;
    m->length = rq->http->content_length;
    m->file = volfile_new(&to);
    m->spec.encrypted = http_query(rq->http, "encrypted") != NULL;
    m->spec.replicas = replicas ? strtol(replicas, NULL, 10) : 0;
    snprintf(m->name, sizeof m->name, "%s", name ? name : "");
    rq->priv = m;
    rq->free_priv = gone;
    rq->on_gone = on_gone;
    rq->http->sink = sink;
}
