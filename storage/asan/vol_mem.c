/* The in-memory volume of vol.h: what front ends are tested against. Requests are carried out in order of submission
 * when they complete, which is always in a later turn of the loop; a delay or a park keeps them in flight. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include "base/buf.h"
#include "base/crc32c.h"
#include "storage/asan/vol.h"

TAILQ_HEAD(vol_req_list, vol_req);

struct vol_mem {
    struct vol vol;
    uint8_t *data;
    bool own_data, parked, closing;
    int fail_code;
    uint64_t delay_ms;
    struct iobuf *kept[8];     /* buffers of writes: a real volume may need them long after the answer */
    uint32_t kept_crc[8];
    unsigned keep_at;
    struct vol_req_list queue; /* in order of submission; priv holds the due time of each */
    uv_idle_t idle;            /* runs while something is due at once */
    uv_timer_t timer;          /* runs while the first request is due later */
    int handles;
};

static struct vol_mem *vol_mem_of(struct vol *v)
{
    return (struct vol_mem *)v; /* vol is the first member */
}

static void copy_iov(const struct vol_req *r, uint8_t *data, bool to_iov)
{
    for (int i = 0; i < r->iovcnt; i++) {
        if (to_iov)
            memcpy(r->iov[i].iov_base, data, r->iov[i].iov_len);
        else
            memcpy(data, r->iov[i].iov_base, r->iov[i].iov_len);
        data += r->iov[i].iov_len;
    }
}

static int check(const struct vol_mem *m, const struct vol_req *r)
{
    if (r->op == VOL_FLUSH)
        return E_OK;
    if (r->offset % VOL_SECTOR || r->length % VOL_SECTOR || r->length > m->vol.size_bytes ||
        r->offset > m->vol.size_bytes - r->length)
        return E_INVAL;
    if (r->op == VOL_MAP)
        return r->offset % VOL_MAP_BLOCK || r->length % VOL_MAP_BLOCK || r->length > VOL_MAP_MAX ? E_INVAL : E_OK;
    if (r->op != VOL_READ && m->vol.read_only)
        return E_PERM;
    if (r->op == VOL_READ || r->op == VOL_WRITE) {
        uint64_t sum = 0;
        for (int i = 0; i < r->iovcnt; i++)
            sum += r->iov[i].iov_len;
        assert(sum == r->length && sum <= VOL_REQ_MAX);
    }
    return E_OK;
}

static void map(const struct vol_mem *m, const struct vol_req *r)
{
    static const uint8_t none[VOL_MAP_BLOCK];
    uint64_t at = r->offset;
    for (int i = 0; i < r->iovcnt; i++)
        for (size_t k = 0; k < r->iov[i].iov_len; k++, at += VOL_MAP_BLOCK)
            ((uint8_t *)r->iov[i].iov_base)[k] = !memcmp(m->data + at, none, sizeof none) ? 0 : r->since ? VOL_MAP_CHANGED : VOL_MAP_DATA;
}

/* Whoever hands a buffer over must leave it alone from then on. */
static void keep(struct vol_mem *m, struct iobuf *data)
{
    unsigned k = m->keep_at++ % 8;
    for (unsigned i = 0; i < 8; i++)
        assert(!m->kept[i] || crc32c(0, m->kept[i]->data, m->kept[i]->cap) == m->kept_crc[i]);
    iobuf_unref(m->kept[k]);
    m->kept[k] = data ? iobuf_ref(data) : NULL;
    m->kept_crc[k] = data ? crc32c(0, data->data, data->cap) : 0;
}

static int carry_out(struct vol_mem *m, struct vol_req *r)
{
    int rc = m->fail_code ? m->fail_code : check(m, r);
    m->fail_code = 0;
    if (rc)
        return rc;
    switch (r->op) {
    case VOL_READ:
        if (r->take) {
            r->data = iobuf_new(r->length);
            memcpy(r->data->data, m->data + r->offset, r->length);
        } else {
            copy_iov(r, m->data + r->offset, true);
        }
        break;
    case VOL_WRITE:
        copy_iov(r, m->data + r->offset, false);
        keep(m, r->data);
        break;
    case VOL_ZERO:
    case VOL_DISCARD:
        memset(m->data + r->offset, 0, r->length);
        break;
    case VOL_MAP:
        map(m, r);
        break;
    case VOL_FLUSH:
        break;
    }
    return E_OK;
}

static void on_idle(uv_idle_t *h);
static void on_timer(uv_timer_t *h);

static void schedule(struct vol_mem *m)
{
    struct vol_req *first = TAILQ_FIRST(&m->queue);
    uv_idle_stop(&m->idle);
    uv_timer_stop(&m->timer);
    if (!first || m->parked || m->closing)
        return;
    uint64_t due = (uintptr_t)first->priv, now = uv_now(m->idle.loop);
    if (due <= now)
        uv_idle_start(&m->idle, on_idle);
    else
        uv_timer_start(&m->timer, on_timer, due - now, 0);
}

static void run_due(struct vol_mem *m)
{
    struct vol_req_list due = TAILQ_HEAD_INITIALIZER(due);
    struct vol_req *r;
    uint64_t now = uv_now(m->idle.loop);
    /* Taken off first: `done` may submit again, which must wait for the next turn. */
    while ((r = TAILQ_FIRST(&m->queue)) && (uintptr_t)r->priv <= now) {
        TAILQ_REMOVE(&m->queue, r, entry);
        TAILQ_INSERT_TAIL(&due, r, entry);
    }
    while ((r = TAILQ_FIRST(&due))) {
        TAILQ_REMOVE(&due, r, entry);
        r->done(r, carry_out(m, r));
    }
    schedule(m);
}

static void on_idle(uv_idle_t *h)
{
    run_due(h->data);
}

static void on_timer(uv_timer_t *h)
{
    run_due(h->data);
}

static void submit(struct vol *v, struct vol_req *r)
{
    struct vol_mem *m = vol_mem_of(v);
    assert(!m->closing);
    r->priv = (void *)(uintptr_t)(uv_now(m->idle.loop) + m->delay_ms);
    bool was_empty = TAILQ_EMPTY(&m->queue);
    TAILQ_INSERT_TAIL(&m->queue, r, entry);
    if (was_empty)
        schedule(m);
}

static const struct vol_ops vol_mem_ops = {submit};

struct vol *vol_mem_new_on(struct uv_loop_s *loop, void *data, uint64_t size_bytes)
{
    struct vol_mem *m = xcalloc(1, sizeof *m);
    m->vol = (struct vol){.ops = &vol_mem_ops, .size_bytes = size_bytes, .name = "mem"};
    m->data = data;
    TAILQ_INIT(&m->queue);
    uv_idle_init(loop, &m->idle);
    uv_timer_init(loop, &m->timer);
    m->idle.data = m->timer.data = m;
    m->handles = 2;
    return &m->vol;
}

struct vol *vol_mem_new(struct uv_loop_s *loop, uint64_t size_bytes)
{
    struct vol *v = vol_mem_new_on(loop, xcalloc(1, size_bytes ? size_bytes : 1), size_bytes);
    vol_mem_of(v)->own_data = true;
    return v;
}

void vol_mem_park(struct vol *v, bool parked)
{
    vol_mem_of(v)->parked = parked;
    schedule(vol_mem_of(v));
}

void vol_mem_delay(struct vol *v, uint64_t delay_ms)
{
    vol_mem_of(v)->delay_ms = delay_ms;
}

void vol_mem_fail_next(struct vol *v, int code)
{
    vol_mem_of(v)->fail_code = code;
}

void *vol_mem_data(struct vol *v)
{
    return vol_mem_of(v)->data;
}

static void on_closed(uv_handle_t *h)
{
    struct vol_mem *m = h->data;
    struct vol_req *r;
    while ((r = TAILQ_FIRST(&m->queue))) {
        TAILQ_REMOVE(&m->queue, r, entry);
        r->done(r, E_CANCELED);
    }
    if (--m->handles)
        return;
    for (unsigned i = 0; i < 8; i++)
        iobuf_unref(m->kept[i]);
    if (m->own_data)
        free(m->data);
    free(m);
}

void vol_mem_free(struct vol *v)
{
    if (!v)
        return;
    struct vol_mem *m = vol_mem_of(v);
    m->closing = true;
    uv_close((uv_handle_t *)&m->idle, on_closed);
    uv_close((uv_handle_t *)&m->timer, on_closed);
}
