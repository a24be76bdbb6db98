/* Replica side for peers: RPC_STORE_* to host.c. Each handler checks its message once, before anything else looks at it. */
#include <stdlib.h>
#include <string.h>
#include "base/obj.h"
#include "proto/control.pb-c.h"
#include "storage/asan/engine/priv.h"

#define SHARD_MAX_BYTES (64ULL << 30)

typedef Cohort__Storage__Shard PbShard;

static struct ldisk *check_shard(struct asan *a, struct rpc_req *req, const PbShard *s, struct store_shard_id *ret_id)
{
    if (!s || !id_parse(s->volume, &ret_id->volume) || s->index >= SHARDS_MAX) {
        rpc_reply_err(req, E_INVAL, 0, "bad shard");
        return NULL;
    }
    ret_id->index = s->index;
    for (int i = 0; i < a->n_disks; i++)
        if (!strcmp(a->disk[i].id, s->disk))
            return &a->disk[i];
    rpc_reply_err(req, E_NOTFOUND, 0, "disk %s is not on this node", s->disk);
    return NULL;
}

static bool range_ok(uint64_t offset, uint32_t length)
{
    return length && length <= STORE_WRITE_MAX && offset % 512 == 0 && length % 512 == 0 && offset < SHARD_MAX_BYTES &&
           offset + length <= SHARD_MAX_BYTES;
}

bool shard_sealed(struct asan *a, const char *volume_id)
{
    const struct volume *v = volume_find_data(a, volume_id);
    return v && v->sealed;
}

/* ---- answers ---- */

static void reply_tail(struct rpc_req *req, const struct repl_answer *ans)
{
    Cohort__Storage__TailRep rep = COHORT__STORAGE__TAIL_REP__INIT;
    Cohort__Storage__TailRecord *rec = xcalloc(ans->n_tail + 1, sizeof *rec);
    Cohort__Storage__Version *ver = xcalloc(ans->n_tail + 1, sizeof *ver);
    Cohort__Storage__TailRecord **ptr = xcalloc(ans->n_tail + 1, sizeof *ptr);
    for (size_t i = 0; i < ans->n_tail; i++) {
        const struct store_tail_rec *t = &ans->tail[i];
        cohort__storage__version__init(&ver[i]);
        ver[i].epoch = t->version.epoch;
        ver[i].seq = t->version.seq;
        cohort__storage__tail_record__init(&rec[i]);
        rec[i].version = &ver[i];
        rec[i].offset = t->offset;
        rec[i].length = t->length;
        rec[i].zero = t->zero;
        ptr[i] = &rec[i];
    }
    rep.n_record = ans->n_tail;
    rep.record = ptr;
    rep.more = ans->more;
    rpc_reply(req, &rep.base, NULL, 0, 0);
    free(rec);
    free(ver);
    free(ptr);
}

static void reply_versions(struct rpc_req *req, const struct hreq *h, const struct repl_answer *ans)
{
    Cohort__Storage__VersionsRep rep = COHORT__STORAGE__VERSIONS_REP__INIT;
    uint64_t *mem = xcalloc((size_t)h->m.count * 3, sizeof *mem);
    rep.chunk = mem;
    rep.vepoch = mem + h->m.count;
    rep.vseq = mem + 2 * (size_t)h->m.count;
    size_t n = 0;
    for (uint32_t i = 0; i < h->m.count; i++) {
        if (!ans->versions[i].epoch)
            continue;
        rep.chunk[n] = h->m.chunk + i;
        rep.vepoch[n] = ans->versions[i].epoch;
        rep.vseq[n++] = ans->versions[i].seq;
    }
    rep.n_chunk = rep.n_vepoch = rep.n_vseq = n;
    rpc_reply(req, &rep.base, NULL, 0, 0);
    free(mem);
}

static void reply(struct hreq *h, const struct repl_answer *ans)
{
    struct rpc_req *req = h->arg;
    if (ans->status) {
        rpc_reply_err(req, ans->status, ans->detail, "%s", err_code_name(ans->status));
        return;
    }
    switch (h->m.kind) {
    case REPL_FENCE: {
        Cohort__Storage__FenceRep rep = COHORT__STORAGE__FENCE_REP__INIT;
        Cohort__Storage__Version last = COHORT__STORAGE__VERSION__INIT;
        last.epoch = ans->last.epoch;
        last.seq = ans->last.seq;
        rep.last = &last;
        rpc_reply(req, &rep.base, NULL, 0, 0);
        break;
    }
    case REPL_READ: {
        Cohort__Storage__ReadRep rep = COHORT__STORAGE__READ_REP__INIT;
        rep.crc = ans->crc;
        rep.absent = ans->absent;
        rpc_reply(req, &rep.base, ans->data, ans->data_off, read_bytes(&h->m));
        break;
    }
    case REPL_TAIL: reply_tail(req, ans); break;
    case REPL_VERSIONS: reply_versions(req, h, ans); break;
    case REPL_WRITE:
    case REPL_COPY:
    case REPL_COMMIT: rpc_reply(req, NULL, NULL, 0, 0); break;
    }
}

static struct hreq *new_hreq(struct rpc_req *req, enum repl_kind kind, const PbShard *s, uint64_t epoch)
{
    struct hreq *h = OBJ_NEW(struct hreq);
    h->m.kind = kind;
    h->m.incarnation = s->incarnation;
    h->m.epoch = epoch;
    h->done = reply;
    h->arg = req;
    return h;
}

/* ---- requests ---- */

static void on_fence(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__FenceReq *q = (const Cohort__Storage__FenceReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    if (!q->epoch || !q->session || !q->shard_bytes || q->shard_bytes > SHARD_MAX_BYTES || q->shard_bytes % STORE_CHUNK) {
        rpc_reply_err(req, E_INVAL, 0, "bad fence");
        return;
    }
    struct hreq *h = new_hreq(req, REPL_FENCE, q->shard, q->epoch);
    h->m.session = q->session;
    h->m.shard_bytes = q->shard_bytes;
    h->m.settled = q->settled;
    h->m.commit_seq = q->commit_seq;
    host_request(d, &id, false, h);
}

static void on_write(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__WriteReq *q = (const Cohort__Storage__WriteReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    if (!q->epoch || !q->seq || q->prev_seq >= q->seq || q->commit_seq >= q->seq || !range_ok(q->offset, q->length) ||
        req->data_len != (q->zero ? 0 : q->length)) {
        rpc_reply_err(req, E_INVAL, 0, "bad write");
        return;
    }
    struct hreq *h = new_hreq(req, REPL_WRITE, q->shard, q->epoch);
    h->m.session = q->session;
    h->m.seq = q->seq;
    h->m.prev_seq = q->prev_seq;
    h->m.commit_seq = q->commit_seq;
    h->m.offset = q->offset;
    h->m.length = q->length;
    h->m.zero = q->zero;
    h->m.use_reserve = q->use_reserve;
    h->m.crc = q->crc;
    h->m.data = q->zero ? NULL : iobuf_ref(req->data);
    host_request(d, &id, false, h);
}

static void on_read(struct rpc_req *req, void *arg)
{
    struct asan *a = arg;
    const Cohort__Storage__ReadReq *q = (const Cohort__Storage__ReadReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(a, req, q->shard, &id);
    if (!d)
        return;
    if (!range_ok(q->offset, q->length) || (q->map && (q->offset | q->length) % STORE_MAP_BLOCK) ||
        (q->digest && (q->map || (q->offset | q->length) % OWNER_CHECK_BLOCK || q->length > OWNER_CHECK_BYTES)) ||
        (q->through && chunks_touched(q->offset, q->length) > 64)) {

        rpc_reply_err(req, E_INVAL, 0, "bad read");
        return;
    }
    struct hreq *h = new_hreq(req, REPL_READ, q->shard, q->epoch);
    h->m.offset = q->offset;
    h->m.length = q->length;
    h->m.map = q->map;
    h->m.digest = q->digest;
    h->m.through = q->through;
    host_request(d, &id, shard_sealed(a, q->shard->volume), h);
}

static void on_tail(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__TailReq *q = (const Cohort__Storage__TailReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    struct hreq *h = new_hreq(req, REPL_TAIL, q->shard, q->epoch);
    if (q->after)
        h->m.version = (struct store_version){q->after->epoch, q->after->seq};
    host_request(d, &id, false, h);
}

static void on_versions(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__VersionsReq *q = (const Cohort__Storage__VersionsReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    if (!q->count || q->count > VERSIONS_MAX || q->first_chunk > SHARD_MAX_BYTES / STORE_CHUNK - q->count) {
        rpc_reply_err(req, E_INVAL, 0, "bad range of chunks");
        return;
    }
    struct hreq *h = new_hreq(req, REPL_VERSIONS, q->shard, q->epoch);
    h->m.chunk = q->first_chunk;
    h->m.count = q->count;
    host_request(d, &id, false, h);
}

static void on_copy(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__CopyReq *q = (const Cohort__Storage__CopyReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    if (!q->version || !q->number || q->chunk >= SHARD_MAX_BYTES / STORE_CHUNK || req->data_len != (q->zero ? 0 : STORE_CHUNK) ||
        q->lost > UINT16_MAX || (q->lost && q->zero)) {
        rpc_reply_err(req, E_INVAL, 0, "bad copy");
        return;
    }
    struct hreq *h = new_hreq(req, REPL_COPY, q->shard, q->epoch);
    h->m.session = q->session;
    h->m.seq = q->number;
    h->m.chunk = q->chunk;
    h->m.version = (struct store_version){q->version->epoch, q->version->seq};
    h->m.zero = q->zero;
    h->m.lost = (uint16_t)q->lost;
    h->m.crc = q->crc;
    h->m.data = q->zero ? NULL : iobuf_ref(req->data);
    host_request(d, &id, false, h);
}

static void on_commit(struct rpc_req *req, void *arg)
{
    const Cohort__Storage__CommitReq *q = (const Cohort__Storage__CommitReq *)req->msg;
    struct store_shard_id id;
    struct ldisk *d = check_shard(arg, req, q->shard, &id);
    if (!d)
        return;
    struct hreq *h = new_hreq(req, REPL_COMMIT, q->shard, q->epoch);
    h->m.commit_seq = q->commit_seq;
    host_request(d, &id, false, h);
}

/* Links are told from nodes by it: see peers.c. */
static void on_ping(struct rpc_req *req, void *arg)
{
    (void)arg;
    rpc_reply(req, NULL, NULL, 0, 0);
}

void server_register(struct asan *a)
{
    keys_register(a);
    changed_register(a);
    rpc_handle(a->rpc, RPC_PING, &cohort__control__ping__descriptor, 0, on_ping, a);
    rpc_handle(a->rpc, RPC_STORE_FENCE, &cohort__storage__fence_req__descriptor, 0, on_fence, a);
    rpc_handle(a->rpc, RPC_STORE_WRITE, &cohort__storage__write_req__descriptor, STORE_WRITE_MAX, on_write, a);
    rpc_handle(a->rpc, RPC_STORE_READ, &cohort__storage__read_req__descriptor, 0, on_read, a);
    rpc_handle(a->rpc, RPC_STORE_TAIL, &cohort__storage__tail_req__descriptor, 0, on_tail, a);
    rpc_handle(a->rpc, RPC_STORE_VERSIONS, &cohort__storage__versions_req__descriptor, 0, on_versions, a);
    rpc_handle(a->rpc, RPC_STORE_COPY, &cohort__storage__copy_req__descriptor, STORE_CHUNK, on_copy, a);
    rpc_handle(a->rpc, RPC_STORE_COMMIT, &cohort__storage__commit_req__descriptor, 0, on_commit, a);
}
