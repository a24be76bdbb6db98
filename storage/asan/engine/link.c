/* Owner side: a message of a core (or of the sealed reader) to one replica: straight to the store if its disk is here, by
 * RPC otherwise. The answer comes later, once; what a peer sends is checked here. */
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "storage/asan/engine/priv.h"

struct lcall {
    struct rpc_call call;
    struct asan *a;
    enum repl_kind kind;
    uint64_t tag, session, chunk;
    uint32_t length, count;
    lcall_done *done;
    void *arg;
    int status;
    struct later later;
};

static void finish(struct lcall *c, struct repl_answer *ans)
{
    ans->tag = c->tag;
    ans->session = c->session;
    c->done(c->arg, ans);
    free(c);
}

static void fail_later(struct later *l)
{
    struct lcall *c = container_of(l, struct lcall, later);
    finish(c, &(struct repl_answer){.status = c->status});
}

/* ---- here ---- */

static void host_answered(struct hreq *h, const struct repl_answer *ans)
{
    struct repl_answer copy = *ans;
    finish(h->arg, &copy);
}

static void send_here(struct lcall *c, struct ldisk *d, const struct id *bin, uint32_t index, const struct repl_msg *m,
                      bool sealed)
{
    struct hreq *h = xcalloc(1, sizeof *h);
    struct store_shard_id id = {*bin, index};
    h->m = *m;
    if (h->m.data)
        iobuf_ref(h->m.data);
    h->done = host_answered;
    h->arg = c;
    host_request(d, &id, sealed, h);
}

/* ---- there ---- */

static int take_tail(struct repl_answer *ans, const Cohort__Storage__TailRep *rep, struct store_tail_rec **ret)
{
    struct store_tail_rec *t = xcalloc(rep->n_record + 1, sizeof *t);
    for (size_t i = 0; i < rep->n_record; i++) {
        const Cohort__Storage__TailRecord *r = rep->record[i];
        if (!r->version) {
            free(t);
            return E_PROTO;
        }
        t[i] = (struct store_tail_rec){{r->version->epoch, r->version->seq}, r->offset, r->length, r->zero};
    }
    ans->tail = *ret = t;
    ans->n_tail = rep->n_record;
    ans->more = rep->more;
    return 0;
}

static int take_versions(const struct lcall *c, struct repl_answer *ans, const Cohort__Storage__VersionsRep *rep,
                         struct store_version **ret)
{
    if (rep->n_chunk > c->count || rep->n_vepoch != rep->n_chunk || rep->n_vseq != rep->n_chunk)
        return E_PROTO;
    struct store_version *v = xcalloc(c->count, sizeof *v);
    for (size_t i = 0; i < rep->n_chunk; i++) {
        if (rep->chunk[i] < c->chunk || rep->chunk[i] - c->chunk >= c->count) {
            free(v);
            return E_PROTO;
        }
        v[rep->chunk[i] - c->chunk] = (struct store_version){rep->vepoch[i], rep->vseq[i]};
    }
    ans->versions = *ret = v;
    return 0;
}

static void rpc_answered(struct rpc_call *call, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t data_len)
{
    struct lcall *c = call->arg;
    struct repl_answer ans = {.status = status, .detail = call->detail};
    void *mem = NULL;
    if (status) {
        finish(c, &ans);
        return;
    }
    switch (c->kind) {
    case REPL_FENCE: {
        const Cohort__Storage__FenceRep *rep = (const Cohort__Storage__FenceRep *)msg;
        if (rep->last)
            ans.last = (struct store_version){rep->last->epoch, rep->last->seq};
        break;
    }
    case REPL_READ:
        ans.crc = ((const Cohort__Storage__ReadRep *)msg)->crc;
        ans.data = data;
        if (!data || data_len != c->length)
            ans.status = E_PROTO;
        else if (crc32c(0, data->data, data_len) != ans.crc)
            ans.status = E_CORRUPT;
        break;
    case REPL_TAIL:
        ans.status = take_tail(&ans, (const Cohort__Storage__TailRep *)msg, (struct store_tail_rec **)&mem);
        break;
    case REPL_VERSIONS:
        ans.status = take_versions(c, &ans, (const Cohort__Storage__VersionsRep *)msg, (struct store_version **)&mem);
        break;
    case REPL_WRITE:
    case REPL_COPY:
    case REPL_COMMIT: break;
    }
    finish(c, &ans);
    free(mem);
}

static void call(struct lcall *c, struct peer *p, enum rpc_kind kind, const ProtobufCMessageDescriptor *out,
                 const ProtobufCMessage *msg, struct iobuf *data, size_t off, size_t len)
{
    c->call.out = out;
    c->call.max_data = c->kind == REPL_READ ? c->length : 0;
    c->call.timeout_ms = CALL_TIMEOUT_MS;
    c->call.done = rpc_answered;
    c->call.arg = c;
    rpc_call(p->rpc, &c->call, kind, msg, data, off, len);
}

static void send_write(struct lcall *c, struct peer *p, Cohort__Storage__Shard *s, const struct repl_msg *m)
{
    Cohort__Storage__WriteReq q = COHORT__STORAGE__WRITE_REQ__INIT;
    q.shard = s;
    q.epoch = m->epoch;
    q.session = m->session;
    q.seq = m->seq;
    q.prev_seq = m->prev_seq;
    q.commit_seq = m->commit_seq;
    q.offset = m->offset;
    q.length = m->length;
    q.zero = m->zero;
    q.crc = m->crc;
    call(c, p, RPC_STORE_WRITE, NULL, &q.base, m->data, m->data_off, m->zero ? 0 : m->length);
}

static void send_copy(struct lcall *c, struct peer *p, Cohort__Storage__Shard *s, const struct repl_msg *m)
{
    Cohort__Storage__CopyReq q = COHORT__STORAGE__COPY_REQ__INIT;
    Cohort__Storage__Version v = COHORT__STORAGE__VERSION__INIT;
    v.epoch = m->version.epoch;
    v.seq = m->version.seq;
    q.shard = s;
    q.epoch = m->epoch;
    q.session = m->session;
    q.chunk = m->chunk;
    q.version = &v;
    q.zero = m->zero;
    q.crc = m->crc;
    call(c, p, RPC_STORE_COPY, NULL, &q.base, m->data, m->data_off, m->zero ? 0 : STORE_CHUNK);
}

static void send_there(struct lcall *c, struct peer *p, Cohort__Storage__Shard *s, const struct repl_msg *m)
{
    switch (m->kind) {
    case REPL_FENCE: {
        Cohort__Storage__FenceReq q = COHORT__STORAGE__FENCE_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.session = m->session, q.shard_bytes = m->shard_bytes;
        call(c, p, RPC_STORE_FENCE, &cohort__storage__fence_rep__descriptor, &q.base, NULL, 0, 0);
        break;
    }
    case REPL_TAIL: {
        Cohort__Storage__TailReq q = COHORT__STORAGE__TAIL_REQ__INIT;
        Cohort__Storage__Version v = COHORT__STORAGE__VERSION__INIT;
        v.epoch = m->version.epoch, v.seq = m->version.seq;
        q.shard = s, q.epoch = m->epoch, q.after = &v;
        call(c, p, RPC_STORE_TAIL, &cohort__storage__tail_rep__descriptor, &q.base, NULL, 0, 0);
        break;
    }
    case REPL_READ: {
        Cohort__Storage__ReadReq q = COHORT__STORAGE__READ_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.offset = m->offset, q.length = m->length, q.map = m->map;
        call(c, p, RPC_STORE_READ, &cohort__storage__read_rep__descriptor, &q.base, NULL, 0, 0);
        break;
    }
    case REPL_VERSIONS: {
        Cohort__Storage__VersionsReq q = COHORT__STORAGE__VERSIONS_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.first_chunk = m->chunk, q.count = m->count;
        call(c, p, RPC_STORE_VERSIONS, &cohort__storage__versions_rep__descriptor, &q.base, NULL, 0, 0);
        break;
    }
    case REPL_COMMIT: {
        Cohort__Storage__CommitReq q = COHORT__STORAGE__COMMIT_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.commit_seq = m->commit_seq;
        call(c, p, RPC_STORE_COMMIT, NULL, &q.base, NULL, 0, 0);
        break;
    }
    case REPL_WRITE: send_write(c, p, s, m); break;
    case REPL_COPY: send_copy(c, p, s, m); break;
    }
}

void link_send(struct asan *a, struct gdisk *g, const char *volume_id, const struct id *bin, uint32_t index,
               const struct repl_msg *m, bool sealed, lcall_done *done, void *arg)
{
    struct lcall *c = xcalloc(1, sizeof *c);
    c->a = a;
    c->kind = m->kind;
    c->tag = m->tag;
    c->session = m->session;
    c->chunk = m->chunk;
    c->count = m->count;
    c->length = read_bytes(m);
    c->done = done;
    c->arg = arg;
    if (g->local) {
        send_here(c, g->local, bin, index, m, sealed);
        return;
    }
    struct peer *p = peer_find(a, g->node);
    if (!p || !p->rpc) {
        c->status = E_DISCONN;
        later(a, &c->later, fail_later);
        return;
    }
    Cohort__Storage__Shard s = COHORT__STORAGE__SHARD__INIT;
    s.volume = (char *)volume_id;
    s.index = index;
    s.disk = g->id;
    s.incarnation = m->incarnation;
    send_there(c, p, &s, m);
}
