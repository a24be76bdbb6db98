/* Replica side: carries out what the replica core accepts on a local disk's store, for peers and for cores of this node. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "base/obj.h"
#include "storage/asan/engine/priv.h"

#define EARLY_MS 5000 /* as long as a call waits for its answer */

static uint64_t key(const struct store_shard_id *id)
{
    return hash_bytes(&id->volume, sizeof id->volume, id->index);
}

static struct rshard *find(struct ldisk *d, const struct store_shard_id *id)
{
    struct htab_node *n;
    uint64_t h = key(id);
    HTAB_FOR_EACH_WITH_HASH (n, h, &d->shards) {
        struct rshard *rs = container_of(n, struct rshard, node);
        if (id_equal(&rs->id.volume, &id->volume) && rs->id.index == id->index)
            return rs;
    }
    return NULL;
}

static struct rshard *get(struct ldisk *d, const struct store_shard_id *id)
{
    struct rshard *rs = find(d, id);
    if (rs)
        return rs;
    struct store_shard_info info;
    store_shard_info(d->store, id, &info);
    rs = xcalloc(1, sizeof *rs);
    rs->disk = d;
    rs->id = *id;
    TAILQ_INIT(&rs->waiting);
    TAILQ_INIT(&rs->early);
    rs->shard_bytes = info.exists ? info.shard_bytes : 0;
    replica_init(&rs->core, &info);
    htab_insert(&d->shards, &rs->node, key(id));
    return rs;
}

void host_queues(struct ldisk *d, const struct store_shard_id *id, unsigned *ret_waiting, unsigned *ret_early)
{
    const struct rshard *rs = find(d, id);
    const struct hreq *h;
    *ret_waiting = *ret_early = 0;
    if (!rs)
        return;
    TAILQ_FOREACH (h, &rs->waiting, entry)
        ++*ret_waiting;
    TAILQ_FOREACH (h, &rs->early, entry)
        ++*ret_early;
}

static void free_hreq(struct hreq *h)
{
    iobuf_unref(h->m.data);
    iobuf_unref(h->ans.data);
    free(h->versions);
    free(h->tail);
    OBJ_FREE(h);
}

static void answer(struct hreq *h, int status, uint64_t detail)
{
    h->ans.tag = h->m.tag;
    h->ans.session = h->m.session;
    h->ans.status = status;
    h->ans.detail = detail;
    h->done(h, &h->ans);
    free_hreq(h);
}

static void answer_now(struct later *l)
{
    struct hreq *h = container_of(l, struct hreq, later);
    answer(h, h->ans.status, h->ans.detail);
}

static void answer_later(struct hreq *h, int status, uint64_t detail)
{
    h->ans.status = status;
    h->ans.detail = detail;
    later(h->a, &h->later, answer_now);
}

static void release(struct rshard *rs)
{
    struct hreq *h, *next;
    for (h = TAILQ_FIRST(&rs->waiting); h; h = next) {
        next = TAILQ_NEXT(h, entry);
        if (!rs->core.failed && (replica_durable(&rs->core) < h->wait || (h->m.kind == REPL_FENCE && !h->fenced)))
            continue;
        if (h->m.kind == REPL_FENCE && !h->fenced)
            continue; /* the store still holds it */
        TAILQ_REMOVE(&rs->waiting, h, entry);
        if (h->m.kind == REPL_FENCE)
            h->ans.last = replica_last(&rs->core);
        answer_later(h, rs->core.failed ? E_IO : E_OK, 0);
    }
}

static void fence_done(struct store_op *op, int status, const struct err *e)
{
    struct hreq *h = op->arg;
    struct rshard *rs = h->rs;
    (void)e;
    h->fenced = true;
    if (status) {
        TAILQ_REMOVE(&rs->waiting, h, entry);
        answer(h, status == E_STALE ? E_STALE : status, rs->core.epoch);
        return;
    }
    release(rs);
}

static void write_done(struct store_op *op, int status, const struct err *e)
{
    struct hreq *h = op->arg;
    struct rshard *rs = h->rs;
    (void)e;
    replica_written(&rs->core, &h->ticket, status);
    answer(h, status, 0);
    release(rs);
}

static void read_done(struct store_op *op, int status, const struct err *e)
{
    struct hreq *h = op->arg;
    (void)e;
    h->ans.crc = h->st.read.ret_crc;
    if (status) {
        iobuf_unref(h->ans.data);
        h->ans.data = NULL;
    }
    answer(h, status, 0);
}

static void versions_done(struct store_op *op, int status, const struct err *e)
{
    struct hreq *h = op->arg;
    (void)e;
    h->ans.versions = h->versions;
    answer(h, status, 0);
}

static void copy_done(struct store_op *op, int status, const struct err *e)
{
    struct hreq *h = op->arg;
    struct rshard *rs = h->rs;
    (void)e;
    replica_written(&rs->core, &h->ticket, status);
    answer(h, status, 0);
    release(rs);
}

static void do_write(struct hreq *h)
{
    struct store_write *w = &h->st.write;
    w->op.done = write_done;
    w->op.arg = h;
    w->shard = h->rs->id;
    w->version = (struct store_version){h->m.epoch, h->m.seq};
    w->commit_seq = h->m.commit_seq;
    w->offset = h->m.offset;
    w->length = h->m.length;
    w->zero = h->m.zero;
    w->crc = h->m.crc;
    w->data = h->m.data;
    w->data_off = h->m.data_off;
    store_write(h->rs->disk->store, w);
}

static void do_map(struct hreq *h)
{
    h->ans.data = iobuf_new(read_bytes(&h->m));
    int rc = store_map(h->rs->disk->store, &h->rs->id, h->m.offset, h->m.length, h->ans.data->data);
    if (rc) {
        iobuf_unref(h->ans.data);
        h->ans.data = NULL;
    } else {
        h->ans.crc = crc32c(0, h->ans.data->data, read_bytes(&h->m));
    }
    answer_later(h, rc, 0);
}

void host_digest_done(struct hreq *h, int status)
{
    answer(h, status, 0);
}

static void do_read(struct hreq *h)
{
    if (h->m.digest) {
        digest_start(h);
        return;
    }
    if (h->m.through) /* before the read: what is written meanwhile may be missed, but never taken for zeroes */
        h->ans.absent = store_absent(h->rs->disk->store, &h->rs->id, h->m.offset / STORE_CHUNK,
                                     chunks_touched(h->m.offset, h->m.length));
    if (h->m.map) {
        do_map(h);
        return;
    }
    struct store_read *r = &h->st.read;
    h->ans.data = iobuf_new(h->m.length);
    r->op.done = read_done;
    r->op.arg = h;
    r->shard = h->rs->id;
    r->offset = h->m.offset;
    r->length = h->m.length;
    r->dst = h->ans.data->data;
    store_read(h->rs->disk->store, r);
}

static void do_copy(struct hreq *h)
{
    struct store_copy *c = &h->st.copy;
    c->op.done = copy_done;
    c->op.arg = h;
    c->shard = h->rs->id;
    c->chunk = h->m.chunk;
    c->version = h->m.version;
    c->zero = h->m.zero;
    c->lost = h->m.lost;
    c->crc = h->m.crc;
    c->data = h->m.data;
    c->data_off = h->m.data_off;
    store_copy(h->rs->disk->store, c);
}

static void do_versions(struct hreq *h)
{
    struct store_versions *v = &h->st.versions;
    h->versions = xcalloc(h->m.count, sizeof *h->versions);
    v->op.done = versions_done;
    v->op.arg = h;
    v->shard = h->rs->id;
    v->first_chunk = h->m.chunk;
    v->count = h->m.count;
    v->ret = h->versions;
    store_versions(h->rs->disk->store, v);
}

static void do_tail(struct hreq *h)
{
    struct store_tail_rec *all;
    size_t n = store_tail(h->rs->disk->store, &h->rs->id, &all), first = 0;
    while (first < n && store_version_cmp(all[first].version, h->m.version) <= 0)
        first++;
    size_t end = n;
    if (n - first > TAIL_PAGE) { /* parts of one record share its version: a page must not end between them */
        end = first + TAIL_PAGE;
        while (end < n && store_version_cmp(all[end].version, all[end - 1].version) == 0)
            end++;
    }
    h->tail = all;
    h->ans.tail = all + first;
    h->ans.n_tail = end - first;
    h->ans.more = end < n;
    answer_later(h, E_OK, 0);
}

static void do_fence(struct hreq *h)
{
    TAILQ_INSERT_TAIL(&h->rs->waiting, h, entry);
    if (h->m.settled) /* now: what the answer waits for may wait for journal space that only this mark frees */
        store_commit_mark(h->rs->disk->store, &h->rs->id, (struct store_version){h->m.epoch, h->m.commit_seq});
    h->st.op.done = fence_done;
    h->st.op.arg = h;
    store_fence(h->rs->disk->store, &h->st.op, &h->rs->id, h->m.epoch, h->m.shard_bytes);
}

/* Asked before the core accepts: a write that failed for want of space inside the store would make a hole in the chain. */
static bool has_room(struct ldisk *d, const struct store_shard_id *id, const struct repl_msg *m)
{
    if (m->zero)
        return true;
    if (m->kind == REPL_COPY)
        return store_room(d->store, id, m->chunk * STORE_CHUNK, STORE_CHUNK, false);
    return m->kind != REPL_WRITE || store_room(d->store, id, m->offset, m->length, m->use_reserve);
}

static uint64_t own_incarnation(struct ldisk *d)
{
    if (!d->global || strcmp(d->global->id, d->id) != 0)
        d->global = gdisk_find(d->a, d->id);
    return d->global ? d->global->incarnation : 0;
}

static void accepted(struct hreq *h)
{
    switch (h->m.kind) {
    case REPL_FENCE: do_fence(h); break;
    case REPL_TAIL: do_tail(h); break;
    case REPL_READ: do_read(h); break;
    case REPL_WRITE: do_write(h); break;
    case REPL_VERSIONS: do_versions(h); break;
    case REPL_COPY: do_copy(h); break;
    case REPL_COMMIT:
        store_commit_mark(h->rs->disk->store, &h->rs->id, (struct store_version){h->m.epoch, h->m.commit_seq});
        answer_later(h, E_OK, 0);
        break;
    }
}

/* Within the shard as its first fence made it? */
static bool inside(const struct rshard *rs, const struct repl_msg *m)
{
    uint64_t chunks = rs->shard_bytes / STORE_CHUNK;
    switch (m->kind) {
    case REPL_READ:
    case REPL_WRITE: return m->length <= rs->shard_bytes && m->offset <= rs->shard_bytes - m->length;
    case REPL_COPY: return m->chunk < chunks;
    case REPL_VERSIONS: return m->count <= chunks && m->chunk <= chunks - m->count;
    case REPL_FENCE: return m->shard_bytes == rs->shard_bytes;
    case REPL_TAIL:
    case REPL_COMMIT: break;
    }
    return true;
}

/* ---- writes that came before their predecessors ---- */

static void early_keep(struct hreq *h)
{
    struct hreq *at;
    h->early_ms = now_ms();
    h->a->came_early++;
    TAILQ_INSERT_TAIL(&h->a->earlies, h, early_entry);
    TAILQ_FOREACH_REVERSE (at, &h->rs->early, hreq_list, entry)
        if (at->m.seq <= h->m.seq) {
            TAILQ_INSERT_AFTER(&h->rs->early, at, h, entry);
            return;
        }
    TAILQ_INSERT_HEAD(&h->rs->early, h, entry);
}

static void early_take(struct hreq *h)
{
    TAILQ_REMOVE(&h->rs->early, h, entry);
    TAILQ_REMOVE(&h->a->earlies, h, early_entry);
    h->early_ms = 0;
}

static void judge(struct hreq *h, bool sealed);

/* After each change of the chain: those whose turn has come, and those whose session is over, which judge() refuses. */
static void early_run(struct rshard *rs)
{
    struct hreq *h;
    uint64_t incarnation = own_incarnation(rs->disk);
    while ((h = TAILQ_FIRST(&rs->early)) && !replica_early(&rs->core, &h->m, incarnation)) {
        early_take(h);
        judge(h, false);
    }
}

/* A predecessor that never comes: the owner is gone, or has lost the link that carried it and begins anew. */
void host_tick(struct asan *a)
{
    struct hreq *h;
    while ((h = TAILQ_FIRST(&a->earlies)) && now_ms() - h->early_ms >= EARLY_MS) {
        early_take(h);
        answer(h, E_PROTO, h->rs->core.last_seq);
    }
}

static void judge(struct hreq *h, bool sealed)
{
    int status = E_UNAVAIL;
    uint64_t detail = 0;
    struct rshard *rs = h->rs;
    bool room = has_room(rs->disk, &rs->id, &h->m);
    switch (replica_judge(&rs->core, &h->m, own_incarnation(rs->disk), sealed, room, &h->ticket, &h->wait, &status, &detail)) {
    case REPLICA_ACCEPT:
        accepted(h);
        break;
    case REPLICA_WAIT:
        TAILQ_INSERT_TAIL(&rs->waiting, h, entry);
        release(rs);
        break;
    case REPLICA_REFUSE:
        answer_later(h, status, detail);
        break;
    }
}

void host_request(struct ldisk *d, const struct store_shard_id *id, bool sealed, struct hreq *h)
{
    h->a = d->a;
    if (d->state == LD_FAILED) {
        answer_later(h, E_IO, 0);
        return;
    }
    if (d->state != LD_READY || d->reopening || d->a->stopping || tidy_refuses(d, id)) {
        answer_later(h, E_UNAVAIL, 0);
        return;
    }
    struct rshard *rs = h->rs = get(d, id);
    if (h->m.kind == REPL_FENCE && !rs->shard_bytes)
        rs->shard_bytes = h->m.shard_bytes;
    if (!inside(rs, &h->m)) {
        answer_later(h, rs->shard_bytes ? E_INVAL : E_NOTFOUND, 0);
        return;
    }
    if (replica_early(&rs->core, &h->m, own_incarnation(d))) {
        early_keep(h);
        return;
    }
    judge(h, sealed);
    if (!TAILQ_EMPTY(&rs->early))
        early_run(rs);
}

static void forget(struct rshard *rs)
{
    struct hreq *h;
    while ((h = TAILQ_FIRST(&rs->waiting))) {
        TAILQ_REMOVE(&rs->waiting, h, entry);
        answer(h, E_UNAVAIL, 0);
    }
    while ((h = TAILQ_FIRST(&rs->early))) {
        early_take(h);
        answer(h, E_UNAVAIL, 0);
    }
    htab_remove(&rs->disk->shards, &rs->node);
    free(rs);
}

bool host_forget(struct ldisk *d, const struct store_shard_id *id)
{
    struct rshard *rs = find(d, id);
    bool idle = !rs || (TAILQ_EMPTY(&rs->waiting) && TAILQ_EMPTY(&rs->early) && TAILQ_EMPTY(&rs->core.writes));
    if (rs && idle)
        forget(rs);
    return idle;
}

/* The store is closed: nothing of it is in flight any more. */
void host_close(struct ldisk *d)
{
    struct htab_node *n, *next;
    HTAB_FOR_EACH_SAFE (n, next, &d->shards)
        forget(container_of(n, struct rshard, node));
    htab_destroy(&d->shards);
    tidy_close(d);
}
