/* REST: GET /volumes/SNAPSHOT/export[?from=SNAPSHOT]: a file of volfile.h as the body, while it is made.
 *
 *   which units (asan_changed, 256 MiB at a time) -> runs of at most 1 MiB -> up to 4 reads at once -> records, in order -> client
 *
 * The source is sealed, so this node reads it whoever owns the volume. A unit of zeroes is told as such if there is a base, else
 * left out. The client draws: nothing is read ahead beyond the slots. A failure cuts the body off before its end record; why stands
 * in the Task, whose id is the answer's header X-Cohort-Task. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "cluster/task.h"
#include "daemon/rest.h"
#include "daemon/volfile.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("export")

#define SLOTS 4
#define UNIT ASAN_CHANGED_UNIT
#define RUN_MAX VOLFILE_DATA_MAX
#define OUT_MAX (RUN_MAX + RUN_MAX / UNIT * VOLFILE_RECORD)

struct slot { /* a run being read, then its records */
    struct asan_io io;
    struct export *x;
    bool used, done;
    uint8_t data[RUN_MAX], out[OUT_MAX];
    size_t len, sent;
};

struct export {
    struct rest_req *rq;         /* NULL: the request is gone */
    struct daemon *d;
    struct asan_changed q;
    bool asking, known;          /* q is out; q.bits are of [q.offset, +q.length) */
    struct task *task;
    char snapshot[ID_LEN + 1];
    bool incremental, ended, failed;
    int64_t size, at;            /* at: units before are in slots or sent */
    uint64_t records, bytes;
    unsigned busy;               /* answers to come */
    unsigned first, n;           /* ring of slots in use */
    uint8_t small[VOLFILE_HEADER]; /* header, then the end record */
    size_t small_len, small_sent;
    struct slot slot[SLOTS];
};

static void let_go(struct export *x, const char *state, const char *why)
{
    if (x->task)
        task_end(x->task, state, why);
    x->task = NULL;
}

static void export_free(void *p)
{
    struct export *x = p;
    x->rq = NULL;
    let_go(x, "failed", "the client left, or the daemon stopped");
    if (!x->busy)
        free(x);
}

static void fail(struct export *x, const char *why)
{
    if (x->failed)
        return;
    x->failed = true;
    log_warn("export: %s", why);
    let_go(x, "failed", why);
}

/* The end of an answer's callback. */
static void unref(struct export *x)
{
    x->busy--;
    if (!x->rq && !x->busy)
        free(x);
    else if (x->rq && x->rq->http)
        http_continue(x->rq->http);
}

/* ---- reading ---- */

static void add_record(struct slot *s, enum volfile_type type, size_t at, size_t length)
{
    struct export *x = s->x;
    if (type == VOLFILE_ZERO && !x->incremental)
        return; /* zero without being told */
    volfile_put_record(type, s->io.offset + at, length, s->data + at, s->out + s->len);
    s->len += VOLFILE_RECORD;
    x->records++;
    if (type == VOLFILE_ZERO)
        return;
    memcpy(s->out + s->len, s->data + at, length);
    s->len += length;
    x->bytes += length;
}

static bool is_zero(const uint8_t *p, size_t n) { return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0; }

/* Runs of units alike become one record each. */
static void encode(struct slot *s)
{
    size_t length = (size_t)s->io.length, begin = 0;
    bool was = false;
    for (size_t at = 0; at < length; at += UNIT) {
        size_t n = length - at < UNIT ? length - at : UNIT;
        bool zero = is_zero(s->data + at, n);
        if (at && zero != was) {
            add_record(s, was ? VOLFILE_ZERO : VOLFILE_DATA, begin, at - begin);
            begin = at;
        }
        was = zero;
    }
    add_record(s, was ? VOLFILE_ZERO : VOLFILE_DATA, begin, length - begin);
}

static void on_read(struct mail *m)
{
    struct slot *s = container_of(m, struct slot, io.answer);
    struct export *x = s->x;
    s->done = true;
    if (s->io.status) {
        char *why = xasprintf("reading at offset %" PRIu64 " failed (%s)", s->io.offset, err_code_name(s->io.status));
        fail(x, why);
        free(why);
    }
    unref(x);
}

static void on_bits(struct mail *m)
{
    struct export *x = container_of(m, struct export, q.answer);
    x->asking = false;
    x->known = !x->q.status;
    if (x->q.status) {
        char *why = xasprintf("%.*s", (int)strcspn(x->q.err.msg, "\n"), x->q.err.msg);
        fail(x, why);
        free(why);
    }
    unref(x);
}

static void ask(struct export *x)
{
    int64_t left = x->size - x->at;
    x->q.offset = (uint64_t)x->at;
    x->q.length = (uint64_t)(left < (int64_t)ASAN_CHANGED_MAX ? left : (int64_t)ASAN_CHANGED_MAX);
    x->asking = true;
    x->known = false;
    x->busy++;
    asan_changed(x->d->asan, &x->q);
}

static bool set(const struct export *x, uint64_t unit) { return x->q.bits[unit / 8] >> unit % 8 & 1; }

static void read_run(struct export *x, int64_t end)
{
    struct slot *s = &x->slot[(x->first + x->n++) % SLOTS];
    s->x = x;
    s->used = true;
    s->done = false;
    s->len = s->sent = 0;
    s->io = (struct asan_io){.answer = {.run = on_read}, .answer_to = &x->d->mailbox, .op = ASAN_READ, .offset = (uint64_t)x->at,
                             .length = (uint64_t)(end - x->at), .data = s->data};
    memcpy(s->io.volume_id, x->snapshot, sizeof x->snapshot);
    x->at = end;
    x->busy++;
    asan_io(x->d->asan, &s->io);
}

/* Fills the free slots as far as it is known what goes there. */
static void pump(struct export *x)
{
    while (x->at < x->size && x->n < SLOTS && !x->asking && !x->failed) {
        int64_t base = (int64_t)x->q.offset, stop = base + (int64_t)x->q.length, end;
        if (!x->known || x->at >= stop) {
            ask(x);
            return;
        }
        if (!set(x, (uint64_t)(x->at - base) / UNIT)) {
            x->at = x->at + UNIT < stop ? x->at + UNIT : stop;
            continue;
        }
        for (end = x->at; end < stop && end - x->at < RUN_MAX && set(x, (uint64_t)(end - base) / UNIT); end += UNIT)
            ;
        read_run(x, end < stop ? end : stop);
    }
}

/* ---- the body ---- */

static size_t copy(void *to, size_t max, const uint8_t *from, size_t len, size_t *sent)
{
    size_t n = len - *sent < max ? len - *sent : max;
    memcpy(to, from + *sent, n);
    *sent += n;
    return n;
}

static ssize_t source(struct http_req *h, void *to, size_t max)
{
    struct rest_req *rq = h->user;
    struct export *x = rq->priv;
    if (x->task && task_cancel_asked(x->task)) {
        x->failed = true;
        let_go(x, "canceled", "as asked");
    }
    if (x->failed)
        return HTTP_SOURCE_BROKEN;
    if (x->small_sent < x->small_len)
        return (ssize_t)copy(to, max, x->small, x->small_len, &x->small_sent);
    if (x->ended) {
        let_go(x, "done", "");
        return HTTP_SOURCE_END;
    }
    pump(x);
    if (x->task)
        task_progress(x->task, x->at, x->size);
    while (x->n && x->slot[x->first].done && !x->failed) {
        struct slot *s = &x->slot[x->first];
        if (!s->len)
            encode(s);
        if (s->sent < s->len)
            return (ssize_t)copy(to, max, s->out, s->len, &s->sent);
        x->first = (x->first + 1) % SLOTS;
        x->n--;
        pump(x);
    }
    if (x->at == x->size && !x->n && !x->failed) {
        volfile_put_record(VOLFILE_END, x->records, x->bytes, NULL, x->small);
        x->small_len = VOLFILE_RECORD;
        x->small_sent = 0;
        x->ended = true;
        return (ssize_t)copy(to, max, x->small, x->small_len, &x->small_sent);
    }
    return x->failed ? HTTP_SOURCE_BROKEN : 0; /* on_read(), on_bits() go on */
}

/* ---- the beginning ---- */

static void put_head(struct export *x, const struct cdb_volume *snap, const struct cdb_volume *base)
{
    struct volfile_head h = {.size_bytes = (uint64_t)snap->size_bytes, .created_ms = (uint64_t)snap->created_ms};
    const char *at = strchr(snap->name, '@'), *bat = base ? strchr(base->name, '@') : NULL;
    snprintf(h.volume, sizeof h.volume, "%.*s", (int)strcspn(snap->name, "@"), snap->name);
    snprintf(h.snapshot, sizeof h.snapshot, "%s", at ? at + 1 : "");
    snprintf(h.content, sizeof h.content, "%s", ops_content(snap));
    if (base) {
        snprintf(h.base, sizeof h.base, "%s", ops_content(base));
        snprintf(h.base_name, sizeof h.base_name, "%s", bat ? bat + 1 : "");
    }
    volfile_put_head(&h, x->small);
    x->small_len = VOLFILE_HEADER;
}

void rest_volume_export(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    const char *from = http_query(rq->http, "from");
    struct err e;
    if (!v)
        return;
    const struct cdb_volume *snap = ops_find_snapshot(v, rq->arg[0], &e), *base = snap && from ? ops_find_snapshot(v, from, &e) : NULL;
    if (snap && (!from || base) && !rq->r->d->asan) {
        err_set(&e, E_UNAVAIL, "the storage of this node is not running");
        snap = NULL;
    }
    if (!snap || (from && !base)) {
        rest_fail(rq, &e);
        return;
    }
    char object[200];
    struct export *x = xcalloc(1, sizeof *x);
    x->rq = rq;
    x->d = rq->r->d;
    x->size = snap->size_bytes;
    x->incremental = base != NULL;
    memcpy(x->snapshot, snap->id, sizeof x->snapshot);
    memcpy(x->q.volume_id, snap->id, sizeof x->q.volume_id);
    if (base)
        memcpy(x->q.since_id, base->id, sizeof x->q.since_id);
    x->q.answer.run = on_bits;
    x->q.answer_to = &x->d->mailbox;
    put_head(x, snap, base);
    snprintf(object, sizeof object, "volume %s", snap->name);
    x->task = task_begin(x->d->link, "export", object, x->d->node_id, "bytes", x->size);
    rq->priv = x;
    rq->free_priv = export_free;
    http_reply_header(rq->http, "X-Cohort-Task", task_id(x->task));
    rest_stream(rq, "application/octet-stream", source);
}
