/* Requests of front ends on a volume: cut into parts at shard and border lines, handed to the shards' cores, put together
 * again. A volume without cores keeps its parts until it is opened (own.c). Overlap is ordered by the cores; a flush
 * waits for the writes before it; a long zero or discard is cut bit by bit, and later requests wait behind it. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/obj.h"
#include "storage/asan/engine/priv.h"

#define READ_UNIT (256u << 10) /* of a large read: an extent; fits the processor's cache */
#define WRITE_UNIT (512u << 10) /* of a large write: devices and other nodes have the first bytes while the next are copied */
#define CUT_PARTS 32u /* of one request on their way at a time */

static bool is_write(const struct vol_req *r)
{
    return r->op == VOL_WRITE || r->op == VOL_ZERO || r->op == VOL_DISCARD;
}

/* Into the memory of a read, from byte `pos` of the request; `data` NULL: zeroes. */
static void copy_out(const struct vol_req *r, size_t pos, const uint8_t *data, size_t len)
{
    for (int i = 0; i < r->iovcnt && len; i++) {
        size_t have = r->iov[i].iov_len;
        if (pos >= have) {
            pos -= have;
            continue;
        }
        size_t n = have - pos < len ? have - pos : len;
        uint8_t *at = (uint8_t *)r->iov[i].iov_base + pos;
        if (data)
            memcpy(at, data, n);
        else
            memset(at, 0, n);
        if (data)
            data += n;
        len -= n;
        pos = 0;
    }
}

static void copy_in(const struct vol_req *r, size_t pos, uint8_t *data, size_t len)
{
    for (int i = 0; len; i++) {
        size_t have = r->iov[i].iov_len;
        if (pos >= have) {
            pos -= have;
            continue;
        }
        size_t n = have - pos < len ? have - pos : len;
        memcpy(data, (const uint8_t *)r->iov[i].iov_base + pos, n);
        data += n;
        len -= n;
        pos = 0;
    }
}

/* The checksum of bytes [at, +len) of a buffer; `blocks`: and those of the blocks, of which they are whole ones. */
static uint32_t sum(struct iobuf *b, size_t at, size_t len, uint32_t crc, bool blocks)
{
    if (!blocks)
        return crc32c(crc, b->data + at, len);
    for (uint32_t *s = iobuf_sums(b) + at / IOBUF_ALIGN; len; at += IOBUF_ALIGN, len -= IOBUF_ALIGN, s++) {
        *s = crc32c(0, b->data + at, IOBUF_ALIGN);
        crc = crc32c_join(crc, *s, IOBUF_ALIGN);
    }
    return crc;
}

/* ---- the end of a request ---- */

static void run_done(struct later *l)
{
    struct vreq *q = container_of(l, struct vreq, later);
    struct vol_req *r = q->r;
    int status = q->status;
    if (r->op == VOL_READ || r->op == VOL_WRITE)
        pace_sample(&q->v->a->pace, (clock_boot_ns() - q->begun_ns) / 1000);
    OBJ_FREE(q);
    r->done(r, status);
}

static void finish(struct vreq *q)
{
    struct vreq *f;
    if (is_write(q->r))
        for (f = TAILQ_NEXT(q, entry); f; ) {
            struct vreq *next = TAILQ_NEXT(f, entry);
            if (f->r->op == VOL_FLUSH && f->left && --f->left == 0)
                finish(f);
            f = next;
        }
    TAILQ_REMOVE(&q->v->active, q, entry);
    later(q->v->a, &q->later, run_done);
}

static void resume_cutting(struct volume *v);

/* Into a buffer of its own: the answer's may be someone else's, too. */
static void decrypt_part(struct part *p)
{
    struct iobuf *plain = iobuf_new(p->op.length);
    memcpy(plain->data, p->op.data->data + p->op.data_off, p->op.length);
    crypt_decrypt(p->v->crypt, (p->req->r->offset + p->data_pos) / CRYPT_SECTOR, plain->data, p->op.length);
    iobuf_unref(p->op.data);
    p->op.data = plain;
    p->op.data_off = 0;
}

void volume_part_done(struct part *p, int status)
{
    struct vreq *q = p->req;
    struct volume *v = p->v;
    if (p->cow)
        layer_write_done(p, status);
    iobuf_unref(p->bytes);
    if (!q) { /* layer_take()'s */
        reclaim_taken(p->v->a, status);
        OBJ_FREE(p);
        return;
    }
    if (p->op.kind == OWNER_READ) {
        if (!status && q->r->until && !p->judged && layer_judge(p, &status))
            return;
        if (!status && (p->op.absent || p->op.nowhere) && layer_read_done(p))
            return;
        uint32_t unit = p->op.map ? VOL_MAP_BLOCK : 1;
        if (!status && v->crypt && !q->r->raw && !p->op.map && p->op.data)
            decrypt_part(p);
        if (!status && q->r->take && p->op.data && p->op.data_off == 0 && p->op.length == q->r->length)
            q->r->data = iobuf_ref(p->op.data);
        else if (!status)
            copy_out(q->r, p->data_pos / unit, p->op.data ? p->op.data->data + p->op.data_off : NULL, p->op.length / unit);
        iobuf_unref(p->op.data);
    }
    if (p->v->held)
        snap_poke(p->v->a);
    OBJ_FREE(p);
    if (status && !q->status)
        q->status = status;
    assert(q->left);
    q->left--;
    if (q->in_cut)
        return;
    if (!q->cut)
        resume_cutting(q->v);
    else if (!q->left)
        finish(q);
}

/* ---- cutting ---- */

void volume_part_send(struct part *p)
{
    struct volume *v = p->v;
    if ((v->held || !v->open) && layer_drop_take(p))
        return;
    if (v->held) {
        layer_write_parked(p);
        TAILQ_INSERT_TAIL(&v->parked, p, entry);
    } else if (v->open) {
        if (*v->parent && p->op.kind == OWNER_WRITE && layer_write(p))
            return;
        struct shard *s = shard_get(v, p->shard);
        owner_submit(s->core, &p->op, now_ms());
        shard_after(s);
    } else if (v->sealed && p->op.kind == OWNER_READ) {
        sealed_read(p);
    } else {
        TAILQ_INSERT_TAIL(&v->parked, p, entry);
    }
}

/* A large read into memory of others is cut finer: the first bytes are checked and copied while the device reads the next. */
static bool reads_piecewise(const struct vol_req *r)
{
    return r->op == VOL_READ && !r->take && r->length > READ_UNIT;
}

/* The bytes of a write's part: as they are now in the front end's buffer, or a copy of the guest's, which may change any time. */
static void take_bytes(struct part *p, const struct vreq *q)
{
    const size_t step = 16384; /* stays in the processor's cache until it is summed */
    const struct vol_req *r = q->r;
    struct crypt *crypt = q->v->crypt;
    if (r->data && !crypt) {
        p->op.data = p->bytes = iobuf_ref(r->data);
        p->op.data_off = p->data_pos;
        p->op.crc = crc32c(0, p->bytes->data + p->data_pos, p->op.length);
        return;
    }
    p->op.data = p->bytes = iobuf_new(p->op.length);
    bool blocks = p->op.length > STORE_CHUNK && p->op.length % IOBUF_ALIGN == 0; /* the store asks for those of large writes */
    for (size_t at = 0, n; at < p->op.length; at += n) {
        n = p->op.length - at < step ? p->op.length - at : step;
        copy_in(r, p->data_pos + at, p->bytes->data + at, n);
        if (crypt)
            crypt_encrypt(crypt, (r->offset + p->data_pos + at) / CRYPT_SECTOR, p->bytes->data + at, n);
        p->op.crc = sum(p->bytes, at, n, p->op.crc, blocks);
    }
    p->bytes->summed = blocks;
}

static struct part *next_part(struct vreq *q)
{
    struct volume *v = q->v;
    uint64_t at = q->r->offset + q->cursor, left = q->r->length - q->cursor;
    uint64_t in_shard = at % v->shard_bytes;
    uint64_t unit = reads_piecewise(q->r) ? READ_UNIT : q->r->op == VOL_WRITE ? WRITE_UNIT : OWNER_OP_BORDER;
    uint64_t border = unit - in_shard % unit;
    struct part *p = OBJ_NEW(struct part);
    p->req = q;
    p->v = v;
    p->shard = (uint32_t)(at / v->shard_bytes);
    p->data_pos = q->cursor;
    p->op.arg = p;
    p->op.kind = is_write(q->r) ? OWNER_WRITE : OWNER_READ;
    p->op.zero = q->r->op == VOL_ZERO || q->r->op == VOL_DISCARD;
    p->op.map = q->r->op == VOL_MAP;
    p->op.offset = in_shard;
    p->op.length = (uint32_t)(left < border ? left : border);
    if (q->r->op == VOL_WRITE)
        take_bytes(p, q);
    q->cursor += p->op.length;
    q->left++;
    return p;
}

/* Makes parts while few are on their way. A part may come back at once: then it only counts itself off. */
static bool cut(struct vreq *q)
{
    q->in_cut = true;
    while (q->cursor < q->r->length && q->left < CUT_PARTS)
        volume_part_send(next_part(q));
    q->in_cut = false;
    q->cut = q->cursor == q->r->length;
    return q->cut;
}

static void start(struct vreq *q)
{
    struct volume *v = q->v;
    q->started = true;
    if (q->r->op == VOL_FLUSH) {
        const struct vreq *w;
        q->cut = true;
        TAILQ_FOREACH (w, &v->active, entry) {
            if (w == q)
                break;
            q->left += is_write(w->r);
        }
        if (!q->left)
            finish(q);
        return;
    }
    v->cutting = q;
    if (!cut(q))
        return; /* the rest as parts come back */
    v->cutting = NULL;
    if (!q->left)
        finish(q);
}

/* The volume's limits. A flush costs nothing; a zero or discard is one request without bytes. Waits end by a->throttle. */
static bool may_start(const struct vreq *q)
{
    struct volume *v = q->v;
    struct asan *a = v->a;
    if (!q->r->raw && volume_locked(v))
        return false; /* keys_tick() */
    if (q->r->op == VOL_FLUSH || (!v->qos.iops && !v->qos.bandwidth))
        return true;
    uint64_t bytes = q->r->op == VOL_READ || q->r->op == VOL_WRITE ? q->r->length : 0;
    uint64_t wait_ns = qos_take(&v->qos, clock_boot_ns(), bytes);
    if (!wait_ns)
        return true;
    if (!v->throttled)
        TAILQ_INSERT_TAIL(&a->throttled, v, throttle_entry);
    v->throttled = true;
    uint64_t ms = wait_ns / 1000000 + 1;
    if (!uv_is_active((uv_handle_t *)&a->throttle) || uv_timer_get_due_in(&a->throttle) > ms) {
        uv_update_time(&a->loop); /* the timer counts from the loop's idea of now */
        uv_timer_start(&a->throttle, volume_throttle_fired, ms, 0);
    }
    return false;
}

static void start_waiting(struct volume *v)
{
    struct vreq *q;
    while (!v->cutting && v->n_waiting) {
        TAILQ_FOREACH (q, &v->active, entry)
            if (!q->started)
                break;
        assert(q);
        if (!may_start(q))
            return;
        v->n_waiting--;
        start(q);
    }
}

void volume_go_on(struct volume *v)
{
    start_waiting(v);
}

/* Volumes that are still too early put themselves back and set the timer again. */
void volume_throttle_fired(uv_timer_t *t)
{
    struct asan *a = t->data;
    TAILQ_HEAD(, volume) list = TAILQ_HEAD_INITIALIZER(list);
    struct volume *v;
    TAILQ_CONCAT(&list, &a->throttled, throttle_entry);
    while ((v = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, v, throttle_entry);
        v->throttled = false;
        start_waiting(v);
    }
}

/* The request being cut goes on; when it is through, those behind it start. */
static void resume_cutting(struct volume *v)
{
    struct vreq *q = v->cutting;
    if (q->left > CUT_PARTS / 2 || !cut(q))
        return;
    v->cutting = NULL;
    if (!q->left)
        finish(q);
    start_waiting(v);
}

static int check(const struct volume *v, const struct vol_req *r)
{
    if (r->op == VOL_FLUSH)
        return 0;
    if (!r->length || r->offset % VOL_SECTOR || r->length % VOL_SECTOR || r->offset > v->vol.size_bytes ||
        r->length > v->vol.size_bytes - r->offset)
        return E_INVAL;
    if ((r->op == VOL_READ || r->op == VOL_WRITE) && r->length > VOL_REQ_MAX)
        return E_INVAL;
    if (r->op == VOL_MAP && ((r->offset | r->length) % VOL_MAP_BLOCK || r->length > VOL_MAP_MAX))
        return E_INVAL;
    if (is_write(r) && v->sealed)
        return E_INVAL;
    return v->gone ? E_CANCELED : 0;
}

static void submit(struct vol *vol, struct vol_req *r)
{
    struct volume *v = (struct volume *)vol;
    if (r->op == VOL_MAP && r->since) {
        changed_start(v, r);
        return;
    }
    struct vreq *q = OBJ_NEW(struct vreq);
    q->v = v;
    q->r = r;
    q->begun_ns = clock_boot_ns();
    q->status = check(v, r);
    TAILQ_INSERT_TAIL(&v->active, q, entry);
    if (q->status) {
        q->cut = true;
        TAILQ_REMOVE(&v->active, q, entry);
        later(v->a, &q->later, run_done);
        return;
    }
    v->n_waiting++;
    start_waiting(v);
    own_update(v);
}

void volume_read_now(struct volume *v, struct vol_req *r)
{
    struct vreq *q = OBJ_NEW(struct vreq);
    assert(r->op == VOL_READ);
    q->v = v;
    q->r = r;
    q->started = true;
    TAILQ_INSERT_HEAD(&v->active, q, entry);
    q->in_cut = true;
    struct part *p = next_part(q);
    assert(q->cursor == r->length);
    q->cut = true;
    volume_part_send(p);
    q->in_cut = false;
    if (!q->left)
        finish(q);
}

/* ---- parked parts ---- */

void volume_unpark(struct volume *v)
{
    TAILQ_HEAD(, part) parts = TAILQ_HEAD_INITIALIZER(parts);
    struct part *p;
    TAILQ_CONCAT(&parts, &v->parked, entry);
    while ((p = TAILQ_FIRST(&parts))) {
        TAILQ_REMOVE(&parts, p, entry);
        volume_part_send(p);
    }
}

/* The volume goes away under its users. Its cores are closed, so every part is parked. */
void volume_cancel(struct volume *v)
{
    struct part *p;
    struct vreq *q;
    assert(!v->open);
    if ((q = v->cutting)) {
        q->r->length = q->cursor; /* the rest is never made */
        q->cut = true;
        v->cutting = NULL;
        if (!q->left) {
            q->status = E_CANCELED;
            finish(q);
        }
    }
    while ((p = TAILQ_FIRST(&v->parked))) {
        TAILQ_REMOVE(&v->parked, p, entry);
        volume_part_done(p, E_CANCELED);
    }
    while (v->n_waiting && !v->cutting) { /* those behind it have not begun */
        TAILQ_FOREACH (q, &v->active, entry)
            if (!q->started)
                break;
        assert(q);
        v->n_waiting--;
        q->started = q->cut = true;
        q->status = E_CANCELED;
        finish(q);
    }
}

bool volume_idle(const struct volume *v)
{
    return TAILQ_EMPTY(&v->active);
}

/* ---- life ---- */

struct volume *volume_new(struct asan *a, const char *id)
{
    static const struct vol_ops ops = {.submit = submit};
    struct volume *v = xcalloc(1, sizeof *v);
    v->vol.ops = &ops;
    v->a = a;
    if (!id_parse(id, &v->bin)) {
        free(v);
        return NULL;
    }
    memcpy(v->id, id, ID_LEN + 1);
    memcpy(v->data, id, ID_LEN + 1);
    LIST_INIT(&v->cows);
    TAILQ_INIT(&v->cow_waits);
    TAILQ_INIT(&v->active);
    TAILQ_INIT(&v->parked);
    TAILQ_INIT(&v->claim_waits);
    htab_insert(&a->volumes, &v->node, hash_str(v->id));
    htab_insert(&a->volumes_by_data, &v->data_node, hash_str(v->data));
    return v;
}

void volume_free(struct volume *v)
{
    assert(!v->open && volume_idle(v) && !v->users);
    for (uint32_t i = 0; i < SHARDS_MAX; i++)
        if (v->shard[i])
            shard_unref(v->shard[i]);
    if (v->dirty)
        TAILQ_REMOVE(&v->a->dirty, v, dirty_entry);
    free(v->disks);
    htab_remove(&v->a->volumes, &v->node);
    crypt_free(v->crypt);
    free(v->key);
    if (v->throttled)
        TAILQ_REMOVE(&v->a->throttled, v, throttle_entry);
    htab_remove(&v->a->volumes_by_data, &v->data_node);
    free(v->name);
    free(v);
}
