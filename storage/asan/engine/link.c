/* Owner side: a message of a core (or of the sealed reader) to one replica: straight to the store if its disk is here, by
 * RPC otherwise. The answer comes later, once; what a peer sends is checked here.
 *
 * When a link ends with requests on their way, they go again over another one, and the core does not notice: a WRITE that
 * had arrived is answered as the duplicate it is, and what only reads may be asked twice. Not so FENCE, which would look
 * overtaken, and COPY, whose first copy may come out of the dead connection when newer data has been written: they end
 * with E_DISCONN, the core begins a new session, and that makes a late COPY void. */
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "base/obj.h"
#include "storage/asan/engine/priv.h"

#define TRIES_MAX 4
#define MESSAGE_BYTES 512u /* what a message counts on its link, besides its data */

struct lcall {
    struct rpc_call call;
    struct asan *a;
    struct gdisk *g;
    struct plink *link;       /* that carries it now */
    struct repl_msg m;        /* m.data: our reference */
    struct id volume;
    uint32_t index, bytes;    /* bytes: counted on `link` */
    unsigned tries;
    lcall_done *done;
    void *arg;
    int status;
    struct later later;
};

static void finish(struct lcall *c, struct repl_answer *ans)
{
    ans->tag = c->m.tag;
    ans->session = c->m.session;
    c->done(c->arg, ans);
    iobuf_unref(c->m.data);
    OBJ_FREE(c);
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

static void send_here(struct lcall *c, struct ldisk *d, bool sealed)
{
    struct hreq *h = OBJ_NEW(struct hreq);
    struct store_shard_id id = {c->volume, c->index};
    h->m = c->m;
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
    if (rep->n_chunk > c->m.count || rep->n_vepoch != rep->n_chunk || rep->n_vseq != rep->n_chunk)
        return E_PROTO;
    struct store_version *v = xcalloc(c->m.count, sizeof *v);
    for (size_t i = 0; i < rep->n_chunk; i++) {
        if (rep->chunk[i] < c->m.chunk || rep->chunk[i] - c->m.chunk >= c->m.count) {
            free(v);
            return E_PROTO;
        }
        v[rep->chunk[i] - c->m.chunk] = (struct store_version){rep->vepoch[i], rep->vseq[i]};
    }
    ans->versions = *ret = v;
    return 0;
}

static void send_there(struct lcall *c);

static void leave_link(struct lcall *c)
{
    c->link->out_bytes -= c->bytes;
    plink_unref(c->link);
    c->link = NULL;
}

static bool may_repeat(const struct lcall *c, int status)
{
    if ((status != E_DISCONN && status != E_CANCELED) || c->a->stopping || c->tries >= TRIES_MAX)
        return false;
    const struct peer *p = peer_find(c->a, c->g->node);
    return c->m.kind != REPL_FENCE && c->m.kind != REPL_COPY && p && p->connected;
}

static void rpc_answered(struct rpc_call *call, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t data_len)
{
    struct lcall *c = call->arg;
    struct repl_answer ans = {.status = status, .detail = call->detail};
    void *mem = NULL;
    leave_link(c);
    if (may_repeat(c, status)) {
        c->a->repeated++;
        send_there(c);
        return;
    }
    if (status) {
        finish(c, &ans);
        return;
    }
    switch (c->m.kind) {
    case REPL_FENCE: {
        const Cohort__Storage__FenceRep *rep = (const Cohort__Storage__FenceRep *)msg;
        if (rep->last)
            ans.last = (struct store_version){rep->last->epoch, rep->last->seq};
        break;
    }
    case REPL_READ:
        ans.crc = ((const Cohort__Storage__ReadRep *)msg)->crc;
        ans.absent = ((const Cohort__Storage__ReadRep *)msg)->absent;
        ans.data = data;
        if (!data || data_len != read_bytes(&c->m))
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

static void call(struct lcall *c, enum rpc_kind kind, const ProtobufCMessageDescriptor *out, const ProtobufCMessage *msg,
                 uint32_t data_len)
{
    c->call = (struct rpc_call){.out = out, .max_data = c->m.kind == REPL_READ ? read_bytes(&c->m) : 0, .timeout_ms = CALL_TIMEOUT_MS,
                                .done = rpc_answered, .arg = c};
    rpc_call(c->link->rpc, &c->call, kind, msg, data_len ? c->m.data : NULL, c->m.data_off, data_len);
}

static void send_write(struct lcall *c, Cohort__Storage__Shard *s)
{
    const struct repl_msg *m = &c->m;
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
    q.use_reserve = m->use_reserve;
    q.crc = m->crc;
    call(c, RPC_STORE_WRITE, NULL, &q.base, m->zero ? 0 : m->length);
}

static void send_copy(struct lcall *c, Cohort__Storage__Shard *s)
{
    const struct repl_msg *m = &c->m;
    Cohort__Storage__CopyReq q = COHORT__STORAGE__COPY_REQ__INIT;
    Cohort__Storage__Version v = COHORT__STORAGE__VERSION__INIT;
    v.epoch = m->version.epoch;
    v.seq = m->version.seq;
    q.shard = s;
    q.epoch = m->epoch;
    q.session = m->session;
    q.number = m->seq;
    q.chunk = m->chunk;
    q.version = &v;
    q.zero = m->zero;
    q.lost = m->lost;
    q.crc = m->crc;
    call(c, RPC_STORE_COPY, NULL, &q.base, m->zero ? 0 : STORE_CHUNK);
}

static void send_message(struct lcall *c, Cohort__Storage__Shard *s)
{
    const struct repl_msg *m = &c->m;
    switch (m->kind) {
    case REPL_FENCE: {
        Cohort__Storage__FenceReq q = COHORT__STORAGE__FENCE_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.session = m->session, q.shard_bytes = m->shard_bytes;
        q.settled = m->settled, q.commit_seq = m->commit_seq;
        call(c, RPC_STORE_FENCE, &cohort__storage__fence_rep__descriptor, &q.base, 0);
        break;
    }
    case REPL_TAIL: {
        Cohort__Storage__TailReq q = COHORT__STORAGE__TAIL_REQ__INIT;
        Cohort__Storage__Version v = COHORT__STORAGE__VERSION__INIT;
        v.epoch = m->version.epoch, v.seq = m->version.seq;
        q.shard = s, q.epoch = m->epoch, q.after = &v;
        call(c, RPC_STORE_TAIL, &cohort__storage__tail_rep__descriptor, &q.base, 0);
        break;
    }
    case REPL_READ: {
        Cohort__Storage__ReadReq q = COHORT__STORAGE__READ_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.offset = m->offset, q.length = m->length, q.map = m->map, q.digest = m->digest,
        q.through = m->through;
        call(c, RPC_STORE_READ, &cohort__storage__read_rep__descriptor, &q.base, 0);
        break;
    }
    case REPL_VERSIONS: {
        Cohort__Storage__VersionsReq q = COHORT__STORAGE__VERSIONS_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.first_chunk = m->chunk, q.count = m->count;
        call(c, RPC_STORE_VERSIONS, &cohort__storage__versions_rep__descriptor, &q.base, 0);
        break;
    }
    case REPL_COMMIT: {
        Cohort__Storage__CommitReq q = COHORT__STORAGE__COMMIT_REQ__INIT;
        q.shard = s, q.epoch = m->epoch, q.commit_seq = m->commit_seq;
        call(c, RPC_STORE_COMMIT, NULL, &q.base, 0);
        break;
    }
    case REPL_WRITE: send_write(c, s); break;
    case REPL_COPY: send_copy(c, s); break;
    }
}

static uint32_t data_bytes(const struct repl_msg *m) /* either way */
{
    switch (m->kind) {
    case REPL_READ: return read_bytes(m);
    case REPL_WRITE: return m->zero ? 0 : m->length;
    case REPL_COPY: return m->zero ? 0 : STORE_CHUNK;
    default: return 0;
    }
}

/* Over one of the links that are up; there is no order between links, and none needed. */
static void send_there(struct lcall *c)
{
    char volume[ID_LEN + 1];
    struct peer *p = peer_find(c->a, c->g->node);
    c->link = p ? plink_pick(p, hash_bytes(&c->volume, sizeof c->volume, c->index)) : NULL;
    if (!c->link) {
        c->status = E_DISCONN;
        later(c->a, &c->later, fail_later);
        return;
    }
    c->tries++;
    c->bytes = MESSAGE_BYTES + data_bytes(&c->m);
    c->link->out_bytes += c->bytes;
    c->link->refs++;
    id_format(&c->volume, volume);
    Cohort__Storage__Shard s = COHORT__STORAGE__SHARD__INIT;
    s.volume = volume;
    s.index = c->index;
    s.disk = c->g->id;
    s.incarnation = c->m.incarnation;
    send_message(c, &s);
}

void link_send(struct asan *a, struct gdisk *g, const struct id *volume, uint32_t index, const struct repl_msg *m, bool sealed,
               lcall_done *done, void *arg)
{
    struct lcall *c = OBJ_NEW(struct lcall);
    c->a = a;
    c->g = g;
    c->m = *m;
    if (c->m.data)
        iobuf_ref(c->m.data);
    c->volume = *volume;
    c->index = index;
    c->done = done;
    c->arg = arg;
    if (g->local)
        send_here(c, g->local, sealed);
    else
        send_there(c);
}
