/* Volumes over sealed ones (snapshots, clones): a chunk that was never written in this layer shows the parent's bytes.
 *
 * Presence is what the replicas know anyhow: a chunk with a version is here, one without is absent. So equal versions keep
 * implying equal bytes, and resync needs to know nothing of layers. The price is one rule: *an absent chunk is only ever
 * written whole.* A guest's write that begins or ends inside one first reads the chunk (which falls through) and then writes
 * chunk and news in one record. Meanwhile it holds its chunks: other writes to them wait here. A chunk is brought up once;
 * `have` remembers which need not be asked again.
 *
 *   write -> edges absent? no -> core
 *              | yes
 *            read the edges (own layer, then parents) -> present after all: core as it is
 *              |                                       -> absent: widened to whole chunks -> core -> done: chunks are free
 *            core closed or volume held: as the guest gave it, from the start
 *
 * A read comes back from its core with the absent chunks named; they are read from the parent volume, which is sealed and
 * answers the same way, layer by layer. If the parent vanishes meanwhile (merged into this one) the read starts again.
 *
 * Encrypted volumes: all layers of a stack have one key, and a sector's tweak is its number in the volume, so layers exchange
 * ciphertext (vol_req.raw) and the topmost volume decrypts. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "base/log.h"
#include "base/obj.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define RUNS_MAX 33 /* of absent chunks among 64, and one */

/* ---- what is known to be here ---- */

static bool have(const struct shard *s, uint64_t chunk)
{
    return s->have && s->have[chunk / 8] >> (chunk % 8) & 1;
}

static void set_have(struct shard *s, uint64_t chunk)
{
    if (!s->have)
        s->have = xcalloc(1, s->v->shard_bytes / STORE_CHUNK / 8 + 1);
    s->have[chunk / 8] |= (uint8_t)(1u << chunk % 8);
}

void layer_known(struct shard *s, const struct repl_msg *m, uint64_t absent)
{
    unsigned n = chunks_touched(m->offset, m->length);
    for (unsigned i = 0; i < n && i < 64; i++)
        if (!(absent >> i & 1))
            set_have(s, m->offset / STORE_CHUNK + i);
}

/* ---- from below ---- */

struct lfill {
    struct volume *v;
    struct later later;
    struct iobuf *out;
    unsigned left;
    int status, n;
    lfill_done *done;
    void *arg;
    struct vol_req req[RUNS_MAX];
    struct iovec iov[RUNS_MAX];
};

static void fill_end(struct lfill *f)
{
    f->done(f->arg, f->status, f->out, 0);
    iobuf_unref(f->out);
    free(f);
}

static void fill_later(struct later *l) { fill_end(container_of(l, struct lfill, later)); }

static void run_read(struct vol_req *r, int status)
{
    struct lfill *f = r->arg;
    if (status && !f->status)
        f->status = status;
    if (--f->left == 0)
        fill_end(f);
}

/* [at, end) of the volume from its parent, as far as that goes; beyond lie zeroes. */
static void add_run(struct lfill *f, struct volume *parent, const struct lwant *want, uint64_t base, uint64_t at, uint64_t end)
{
    enum vol_op op = want->map ? VOL_MAP : VOL_READ;
    uint64_t unit = op == VOL_MAP ? VOL_MAP_BLOCK : 1, limit = parent->vol.size_bytes;
    uint8_t *to = f->out->data + (at - base) / unit;
    memset(to, 0, (end - at) / unit);
    if (at >= limit)
        return;
    if (end > limit)
        end = limit;
    int k = f->n++;
    f->iov[k] = (struct iovec){to, (end - at) / unit};
    f->req[k] = (struct vol_req){.op = op, .offset = at, .length = end - at, .iov = &f->iov[k], .iovcnt = 1, .done = run_read, .arg = f,
                                 .raw = true, .until = want->until};
}

void layer_fill(struct volume *v, uint64_t at, uint32_t length, const struct lwant *want, uint64_t absent, struct iobuf *data,
                size_t data_off, lfill_done *done, void *arg)
{
    struct volume *parent = volume_find(v->a, v->parent);
    struct lfill *f = xcalloc(1, sizeof *f);
    uint32_t bytes = want->map ? length / VOL_MAP_BLOCK : length;
    unsigned n = chunks_touched(at, length);
    uint64_t first = at / STORE_CHUNK * STORE_CHUNK, end = at + length;
    f->v = v;
    f->done = done;
    f->arg = arg;
    f->out = iobuf_new(bytes);
    if (data)
        memcpy(f->out->data, data->data + data_off, bytes);
    else
        memset(f->out->data, 0, bytes);
    if (!parent) {
        log_err("volume %s: the volume below it, %s, is not in the database", v->name, v->parent);
        f->status = E_CORRUPT;
    }
    for (unsigned i = 0, run; parent && i < n; i += run) {
        for (run = 1; i + run < n && (absent >> i & 1) == (absent >> (i + run) & 1); run++)
            ;
        uint64_t from = first + (uint64_t)i * STORE_CHUNK, to = from + (uint64_t)run * STORE_CHUNK;
        if (absent >> i & 1)
            add_run(f, parent, want, at, from < at ? at : from, to > end ? end : to);
    }
    f->left = (unsigned)f->n;
    if (!f->n) {
        later(v->a, &f->later, fill_later);
        return;
    }
    for (int k = 0; k < f->n; k++)
        vol_submit(&parent->vol, &f->req[k]);
}

static void read_filled(void *arg, int status, struct iobuf *data, size_t data_off)
{
    struct part *p = arg;
    iobuf_unref(p->op.data);
    p->op.data = NULL;
    p->op.absent = 0;
    p->op.nowhere = p->judged = false;
    if (status == E_CANCELED && !p->v->gone) { /* the layer below was merged: another one is there now */
        volume_part_send(p);
        return;
    }
    if (!status) {
        p->op.data = iobuf_ref(data);
        p->op.data_off = data_off;
    }
    p->judged = true;
    volume_part_done(p, status);
}

bool layer_read_done(struct part *p)
{
    struct volume *v = p->v;
    if (!*v->parent)
        return false;
    const struct lwant want = {.map = p->op.map};
    layer_fill(v, p->shard * v->shard_bytes + p->op.offset, p->op.length, &want, p->op.nowhere ? UINT64_MAX : p->op.absent,
               p->op.data, p->op.data_off, read_filled, p);
    return true;
}

/* What the chunks of a part have become since the layer `until`, which is not asked: here (in this layer, then), or further down. */
bool layer_judge(struct part *p, int *status)
{
    struct volume *v = p->v;
    const struct lwant want = {.map = true, .until = p->req->r->until};
    uint64_t absent = p->op.nowhere ? UINT64_MAX : p->op.absent, first = p->op.offset / STORE_CHUNK;
    unsigned n = chunks_touched(p->op.offset, p->op.length), here = 0;
    struct iobuf *marks = iobuf_new(p->op.length / VOL_MAP_BLOCK);
    for (uint32_t b = 0; b < p->op.length / VOL_MAP_BLOCK; b++) {
        uint64_t chunk = (p->op.offset + (uint64_t)b * VOL_MAP_BLOCK) / STORE_CHUNK - first;
        marks->data[b] = absent >> chunk & 1 ? 0 : VOL_MAP_CHANGED;
    }
    for (unsigned i = 0; i < n; i++)
        here += !(absent >> i & 1);
    iobuf_unref(p->op.data);
    p->op.data = marks;
    p->op.data_off = 0;
    p->op.absent = 0;
    p->op.nowhere = false;
    p->judged = true;
    if (here == n || !strcmp(v->parent, want.until))
        return false;
    if (!*v->parent) {
        *status = E_CONFLICT; /* it was merged away meanwhile: changed.c looks again */
        return false;
    }
    layer_fill(v, p->shard * v->shard_bytes + p->op.offset, p->op.length, &want, absent, marks, 0, read_filled, p);
    return true;
}

/* ---- the first write of a chunk ---- */

struct edge { struct vol_req r; struct iovec iov; uint64_t chunk; uint8_t *bytes; };

struct cow {
    struct volume *v;
    struct part *p;
    uint64_t epoch, first, last; /* chunks of p->shard that it holds */
    unsigned left;
    int status, n;
    struct edge edge[2];
    struct iobuf *data;          /* the widened write's */
    uint64_t offset;             /* as the guest gave it: */
    uint32_t length, crc;
    bool zero;
    struct iobuf *guest;
    size_t guest_off;
    LIST_ENTRY(cow) entry;
};

static bool in_way(const struct part *p, uint32_t shard, uint64_t first, uint64_t last)
{
    return p->shard == shard && p->op.offset / STORE_CHUNK <= last && (p->op.offset + p->op.length - 1) / STORE_CHUNK >= first;
}

static bool must_wait(const struct volume *v, const struct part *p)
{
    const struct cow *c;
    const struct part *w;
    LIST_FOREACH (c, &v->cows, entry)
        if (in_way(p, c->p->shard, c->first, c->last))
            return true;
    TAILQ_FOREACH (w, &v->cow_waits, entry)
        if (in_way(p, w->shard, w->op.offset / STORE_CHUNK, (w->op.offset + w->op.length - 1) / STORE_CHUNK))
            return true;
    return false;
}

static void kick(struct volume *v)
{
    TAILQ_HEAD(, part) parts = TAILQ_HEAD_INITIALIZER(parts);
    struct part *p;
    TAILQ_CONCAT(&parts, &v->cow_waits, entry);
    while ((p = TAILQ_FIRST(&parts))) { /* those still in the way of each other queue up again, in order */
        TAILQ_REMOVE(&parts, p, entry);
        volume_part_send(p);
    }
}

/* Ends the hold; the part is as the guest gave it. */
static void cow_free(struct cow *c)
{
    struct part *p = c->p;
    p->cow = NULL;
    p->op.offset = c->offset;
    p->op.length = c->length;
    p->op.zero = c->zero;
    p->op.crc = c->crc;
    p->op.data = c->guest;
    p->op.data_off = c->guest_off;
    LIST_REMOVE(c, entry);
    iobuf_unref(c->data);
    for (int i = 0; i < c->n; i++)
        free(c->edge[i].bytes);
    free(c);
}

/* Makes the write cover the absent edge chunks whole. */
static void widen(struct cow *c, const struct shard *s)
{
    struct owner_op *op = &c->p->op;
    uint64_t start = c->offset, end = c->offset + c->length;
    for (int i = 0; i < c->n; i++) {
        uint64_t chunk = c->edge[i].chunk, from = chunk * STORE_CHUNK;
        if (have(s, chunk))
            continue;
        start = from < start ? from : start;
        end = from + STORE_CHUNK > end ? from + STORE_CHUNK : end;
    }
    c->data = iobuf_new(end - start);
    for (int i = 0; i < c->n; i++)
        if (!have(s, c->edge[i].chunk))
            memcpy(c->data->data + (c->edge[i].chunk * STORE_CHUNK - start), c->edge[i].bytes, STORE_CHUNK);
    uint8_t *to = c->data->data + (c->offset - start);
    if (!c->p->req)
        ; /* no news: the chunk as it shows */
    else if (c->zero)
        memset(to, 0, c->length);
    else
        memcpy(to, c->guest->data + c->guest_off, c->length);
    op->offset = start;
    op->length = (uint32_t)(end - start);
    op->zero = false;
    op->data = c->data;
    op->data_off = 0;
    op->crc = crc32c(0, c->data->data, op->length);
}

static void edges_read(struct cow *c)
{
    struct volume *v = c->v;
    struct part *p = c->p;
    int status = c->status;
    bool absent = false;
    if (status && !v->gone && status == E_CANCELED)
        status = 0, c->epoch = 0;
    if (status || !v->open || v->held || c->epoch != v->used_epoch) {
        cow_free(c);
        status ? volume_part_done(p, status) : volume_part_send(p);
        kick(v);
        return;
    }
    struct shard *s = shard_get(v, p->shard);
    for (int i = 0; i < c->n; i++)
        absent = absent || !have(s, c->edge[i].chunk);
    if (absent)
        widen(c, s);
    else
        cow_free(c);
    if (!absent && !p->req)
        volume_part_done(p, 0);
    else
        owner_submit(s->core, &p->op, now_ms());
    shard_after(s);
    if (!absent)
        kick(v);
}

static void edge_read(struct vol_req *r, int status)
{
    struct cow *c = r->arg;
    if (status && !c->status)
        c->status = status;
    if (--c->left == 0)
        edges_read(c);
}

static void add_edge(struct cow *c, const struct shard *s, uint64_t chunk)
{
    if (have(s, chunk) || (c->n && c->edge[0].chunk == chunk))
        return;
    struct edge *e = &c->edge[c->n++];
    uint64_t at = s->index * c->v->shard_bytes + chunk * STORE_CHUNK, room = c->v->vol.size_bytes - at;
    e->chunk = chunk;
    e->bytes = xcalloc(1, STORE_CHUNK);
    e->iov = (struct iovec){e->bytes, room < STORE_CHUNK ? room : STORE_CHUNK};
    e->r = (struct vol_req){.op = VOL_READ, .offset = at, .length = e->iov.iov_len, .iov = &e->iov, .iovcnt = 1, .done = edge_read, .arg = c, .raw = true};
}

void layer_take(struct volume *v, uint32_t shard, uint64_t chunk)
{
    struct part *p = OBJ_NEW(struct part);
    p->v = v;
    p->shard = shard;
    p->op.arg = p;
    p->op.kind = OWNER_WRITE;
    p->op.zero = true;
    p->op.offset = chunk * STORE_CHUNK;
    p->op.length = STORE_CHUNK;
    volume_part_send(p);
}

bool layer_write(struct part *p)
{
    struct volume *v = p->v;
    struct shard *s = shard_get(v, p->shard);
    uint64_t end = p->op.offset + p->op.length;
    if (must_wait(v, p)) {
        TAILQ_INSERT_TAIL(&v->cow_waits, p, entry);
        return true;
    }
    struct cow *c = xcalloc(1, sizeof *c);
    *c = (struct cow){.v = v, .p = p, .epoch = v->used_epoch, .first = p->op.offset / STORE_CHUNK, .last = (end - 1) / STORE_CHUNK,
                      .offset = p->op.offset, .length = p->op.length, .crc = p->op.crc, .zero = p->op.zero, .guest = p->op.data,
                      .guest_off = p->op.data_off};
    if (p->op.offset % STORE_CHUNK)
        add_edge(c, s, c->first);
    if (end % STORE_CHUNK || !p->req)
        add_edge(c, s, c->last);
    if (!c->n && p->req) {
        free(c);
        return false;
    }
    if (!c->n) { /* here already: nothing to take */
        free(c);
        volume_part_done(p, 0);
        return true;
    }
    p->cow = c;
    LIST_INSERT_HEAD(&v->cows, c, entry);
    c->left = (unsigned)c->n;
    for (int i = 0, n = c->n; i < n; i++)
        volume_read_now(v, &c->edge[i].r);
    return true;
}

void layer_write_done(struct part *p, int status)
{
    struct cow *c = p->cow;
    struct volume *v = p->v;
    struct shard *s = v->shard[p->shard];
    for (uint64_t k = c->first; !status && s && s->core && k <= c->last; k++)
        if (k * STORE_CHUNK >= p->op.offset && (k + 1) * STORE_CHUNK <= p->op.offset + p->op.length)
            set_have(s, k);
    cow_free(c);
    kick(v);
}

void layer_write_parked(struct part *p)
{
    if (p->cow)
        cow_free(p->cow);
}

/* A chunk to be taken over waits for nobody: the volume's next owner begins anew. */
bool layer_drop_take(struct part *p)
{
    if (p->req)
        return false;
    layer_write_parked(p);
    reclaim_dropped(p->v->a);
    free(p);
    return true;
}

void layer_closed(struct volume *v)
{
    struct part *p, *next;
    TAILQ_CONCAT(&v->parked, &v->cow_waits, entry);
    for (p = TAILQ_FIRST(&v->parked); p; p = next) {
        next = TAILQ_NEXT(p, entry);
        if (p->req)
            continue;
        TAILQ_REMOVE(&v->parked, p, entry);
        layer_drop_take(p);
    }
}
