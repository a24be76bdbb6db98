/* REST: where a volume or snapshot may differ from a snapshot. Answered in pages: one ends after so many extents, or after
 * so much of the volume has been looked at, and says where to go on. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/htab.h"
#include "daemon/rest.h"
#include "storage/asan/engine/asan.h"

#define PAGE_EXTENTS 4096u
#define PAGE_BYTES (INT64_C(64) << 30)

struct listing {
    struct rest_req *rq;         /* NULL: the request is gone */
    struct daemon *d;
    bool busy;                   /* q is out */
    struct asan_changed q;
    json_t *extents;
    char name[200], from[200];
    int64_t size, at, first; /* of the volume; looked at up to; where the page began */
    int64_t begin, changed;  /* begin of the extent that is open, -1 = none; bytes of those that are closed */
};

static void listing_free(void *p)
{
    struct listing *l = p;
    l->rq = NULL;
    if (l->busy)
        return; /* on_bits() */
    json_decref(l->extents);
    free(l);
}

static void close_extent(struct listing *l, int64_t end)
{
    if (l->begin < 0)
        return;
    json_array_append_new(l->extents, json_pack("[I, I]", (json_int_t)l->begin, (json_int_t)(end - l->begin)));
    l->changed += end - l->begin;
    l->begin = -1;
}

static void put_page(struct listing *l)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:O}", "volume", l->name, "from", l->from, "size_bytes", (json_int_t)l->size,
                          "unit_bytes", (json_int_t)ASAN_CHANGED_UNIT, "changed_bytes", (json_int_t)l->changed, "extents", l->extents);
    close_extent(l, l->at);
    json_object_set_new(o, "changed_bytes", json_integer(l->changed));
    json_object_set_new(o, "next_offset", l->at < l->size ? json_integer(l->at) : json_null());
    rest_ok(l->rq, 200, o);
}

static void ask(struct listing *l)
{
    int64_t left = l->size - l->at;
    l->q.offset = (uint64_t)l->at;
    l->q.length = (uint64_t)(left < (int64_t)ASAN_CHANGED_MAX ? left : (int64_t)ASAN_CHANGED_MAX);
    l->busy = true;
    asan_changed(l->d->asan, &l->q);
}

static void on_bits(struct mail *m)
{
    struct listing *l = container_of(m, struct listing, q.answer);
    l->busy = false;
    if (!l->rq) {
        listing_free(l);
        return;
    }
    if (l->q.status) {
        rest_fail(l->rq, &l->q.err);
        return;
    }
    for (uint64_t pos = 0, i = 0; pos < l->q.length; pos += ASAN_CHANGED_UNIT, i++) {
        bool set = l->q.bits[i / 8] >> i % 8 & 1;
        if (set && l->begin < 0)
            l->begin = l->at + (int64_t)pos;
        else if (!set)
            close_extent(l, l->at + (int64_t)pos);
    }
    l->at += (int64_t)l->q.length;
    if (l->at == l->size || json_array_size(l->extents) >= PAGE_EXTENTS || l->at - l->first >= PAGE_BYTES || l->rq->http_gone)
        put_page(l);
    else
        ask(l);
}

static bool read_offset(struct rest_req *rq, int64_t size, int64_t *ret)
{
    const char *text = http_query(rq->http, "offset");
    char *end;
    struct err e;
    errno = 0;
    long long n = text ? strtoll(text, &end, 10) : 0;
    if (text && (*end || end == text || errno || n < 0 || n >= size || n % ASAN_CHANGED_UNIT)) {
        err_set(&e, E_INVAL, "offset must be a multiple of %u within the volume's %" PRId64 " bytes\nleave it out to begin at 0",
                ASAN_CHANGED_UNIT, size);
        rest_fail(rq, &e);
        return false;
    }
    *ret = n;
    return true;
}

void rest_volume_changed(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    const struct cdb_volume *vol = v ? rest_find(rq, v, CDB_T_VOLUME, "volume", rq->arg[0]) : NULL;
    const char *from = http_query(rq->http, "from");
    struct err e;
    if (!vol)
        return;
    if (!from || !*from) {
        err_set(&e, E_INVAL, "changed since what? the query parameter from=SNAPSHOT is missing");
        rest_fail(rq, &e);
        return;
    }
    const struct cdb_volume *base = ops_find_snapshot(v, from, &e);
    if (!base || !rq->r->d->asan) {
        if (base)
            err_set(&e, E_UNAVAIL, "the storage of this node is not running");
        rest_fail(rq, &e);
        return;
    }
    struct listing *l = rest_priv(rq, sizeof *l);
    l->extents = json_array();
    rq->free_priv = listing_free;
    if (!read_offset(rq, vol->size_bytes, &l->first))
        return;
    l->rq = rq;
    l->d = rq->r->d;
    l->begin = -1;
    l->at = l->first;
    l->size = vol->size_bytes;
    snprintf(l->name, sizeof l->name, "%s", vol->name);
    snprintf(l->from, sizeof l->from, "%s", base->name);
    memcpy(l->q.volume_id, vol->id, sizeof l->q.volume_id);
    memcpy(l->q.since_id, base->id, sizeof l->q.since_id);
    l->q.answer.run = on_bits;
    l->q.answer_to = &rq->r->d->mailbox;
    ask(l);
}
