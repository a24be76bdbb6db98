/* What a volume may differ in from a snapshot, in chunks. Nothing is recorded for it: the layers know.
 *
 *   `to` = T0 -> T1 -> … -> X <- … <- F1 <- F0 = `from`         X: the topmost layer that both stacks have
 *
 * Both show X's bytes but where a layer above X has a chunk. So the chunks that T0, T1, … or F0, F1, … have, X excluded, are all that
 * can differ; others cannot. (The right-hand side matters after a revert, and between clones of one snapshot.) It errs on one side only:
 *
 * - A write that was acknowledged is on every in-sync replica of its layer, and its chunk has a version there; no chunk ever loses
 *   its version, whatever discards, resyncs, repairs, moves or reconciles it. So a replica that may be asked (by the owner's core,
 *   or in sync with a sealed layer) names it. More may be named: rewritten with equal bytes, or by a write that was never acknowledged.
 * - A layer that is merged away hands its chunks to the one above before it leaves the stack; who was asked before that is asked
 *   again if the stack below it is another by the time of the answer (layer.c, sealed.c). Chunks handed to X are below both.
 * - A snapshot taken meanwhile moves chunks into a layer that is between T0 and X: the walk meets it.
 * - X itself merged away: the walk does not find its end (E_CONFLICT) and begins anew; without a common layer: E_INVAL.
 *
 * Since "" (asan_changed() only): what any layer down to the bottom has; the rest was never written.
 *
 * The walk is VOL_MAP with `until` = X: like a read it falls through from layer to layer, but ends above X. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "storage/asan/engine/priv.h"

#define REMOTE_MS 20000 /* the owner may have to wait for replicas */

/* ---- a VOL_MAP with `since` ---- */

struct changed {
    struct asan *a;
    struct vol_req *orig;
    struct later later;
    char to[ID_LEN + 1], since[ID_LEN + 1], until[ID_LEN + 1];
    unsigned left;
    int status;
    struct vol_req req[2];       /* down from `to`, down from `since` */
    struct iovec iov[2];
    uint8_t *map[2];
};

static struct volume *below(const struct volume *v)
{
    return *v->parent ? volume_find(v->a, v->parent) : NULL;
}

static struct volume *common_layer(struct volume *to, struct volume *from)
{
    for (struct volume *f = from; f; f = below(f))
        for (struct volume *t = to; t; t = below(t))
            if (t == f)
                return f;
    return NULL;
}

static void begin(struct later *l);

static void end(struct changed *c)
{
    struct vol_req *r = c->orig;
    int status = c->status;
    uint8_t *out = r->iov->iov_base;
    if (status == E_CONFLICT) {
        free(c->map[0]);
        free(c->map[1]);
        c->map[0] = c->map[1] = NULL;
        later(c->a, &c->later, begin);
        return;
    }
    for (size_t i = 0; !status && i < r->iov->iov_len; i++)
        out[i] = c->map[0][i] | c->map[1][i];
    free(c->map[0]);
    free(c->map[1]);
    free(c);
    r->done(r, status);
}

static void walked(struct vol_req *q, int status)
{
    struct changed *c = q->arg;
    if (status && (!c->status || c->status == E_CONFLICT))
        c->status = status;
    if (--c->left == 0)
        end(c);
}

static void walk(struct changed *c, int side, struct volume *v)
{
    uint64_t end = c->orig->offset + c->orig->length;
    if (end > v->vol.size_bytes)
        end = v->vol.size_bytes;
    c->iov[side] = (struct iovec){c->map[side], (end - c->orig->offset) / VOL_MAP_BLOCK};
    c->req[side] = (struct vol_req){.op = VOL_MAP, .offset = c->orig->offset, .length = end - c->orig->offset, .iov = &c->iov[side],
                                    .iovcnt = 1, .done = walked, .arg = c, .until = c->until, .raw = true};
    vol_submit(&v->vol, &c->req[side]);
}

static void begin(struct later *l)
{
    struct changed *c = container_of(l, struct changed, later);
    struct volume *to = volume_find(c->a, c->to), *from = volume_find(c->a, c->since);
    bool all = !*c->since, gone = !to || to->gone, no_base = !all && (!from || from->gone || from->deleting || !from->sealed);
    struct volume *x = all || gone || no_base ? NULL : common_layer(to, from);
    c->status = c->a->stopping || gone ? E_CANCELED : no_base ? E_NOTFOUND : !x && !all ? E_INVAL : 0;
    c->map[0] = xcalloc(1, c->orig->iov->iov_len);
    c->map[1] = xcalloc(1, c->orig->iov->iov_len);
    if (c->status || (x && to == x && from == x)) {
        end(c);
        return;
    }
    if (x)
        memcpy(c->until, x->id, sizeof c->until);
    bool both = x && from != x && c->orig->offset < from->vol.size_bytes;
    c->left = (to != x) + both;
    if (!c->left)
        end(c);
    if (to != x)
        walk(c, 0, to);
    if (both)
        walk(c, 1, from);
}

void changed_start(struct volume *v, struct vol_req *r)
{
    struct changed *c = xcalloc(1, sizeof *c);
    assert(r->iovcnt == 1);
    c->a = v->a;
    c->orig = r;
    memcpy(c->to, v->id, sizeof c->to);
    snprintf(c->since, sizeof c->since, "%s", r->since);
    later(v->a, &c->later, begin);
}

/* ---- with what a volume can be compared ---- */

void changed_bases(struct volume *v, void (*add)(void *arg, const char *name, const char *id), void *arg)
{
    const struct cdb_view *view = view_of(v->a);
    for (size_t i = 0; view && i < cdb_volume_count(view); i++) {
        const struct cdb_volume *row = cdb_volume_at(view, i);
        struct volume *s = !strcmp(row->purpose, "snapshot") && !strcmp(row->state, "ready") ? volume_find(v->a, row->id) : NULL;
        if (s && s != v && common_layer(v, s))
            add(arg, row->name, row->id);
    }
}

/* ---- asan_changed(): here, or by the owner ---- */

static void explain(struct asan_changed *q, int status)
{
    q->status = status;
    if (status == E_INVAL)
        err_set(&q->err, status, "the two have no layer in common, so nothing is known about what differs\ncompare or export the whole");
    else if (status == E_NOTFOUND)
        err_set(&q->err, status, "the volume or the snapshot is gone");
    else if (status)
        err_set(&q->err, status, "what changed cannot be told now (%s)\ntry again", err_code_name(status));
}

static void answer(struct asan_changed *q, int status)
{
    explain(q, status);
    mailbox_post(q->answer_to, &q->answer);
}

struct local {
    struct vol_req r;
    struct iovec iov;
    char since[ID_LEN + 1];
    void (*done)(void *arg, int status, const uint8_t *bits);
    void *arg;
    uint8_t bits[ASAN_CHANGED_BITS];
    uint8_t map[ASAN_CHANGED_MAX / VOL_MAP_BLOCK];
};

static void mapped(struct vol_req *r, int status)
{
    struct local *k = r->arg;
    for (size_t i = 0; !status && i < k->iov.iov_len; i++) {
        size_t chunk = i / (ASAN_CHANGED_UNIT / VOL_MAP_BLOCK);
        if (k->map[i])
            k->bits[chunk / 8] |= (uint8_t)(1u << chunk % 8);
    }
    k->done(k->arg, status, k->bits);
    free(k);
}

static bool range_ok(const struct volume *v, uint64_t offset, uint64_t length)
{
    return length && length <= ASAN_CHANGED_MAX && offset % ASAN_CHANGED_UNIT == 0 && length % VOL_MAP_BLOCK == 0 &&
           offset <= v->vol.size_bytes && length <= v->vol.size_bytes - offset;
}

static void ask_here(struct volume *v, const char *since, uint64_t offset, uint64_t length,
                     void (*done)(void *arg, int status, const uint8_t *bits), void *arg)
{
    struct local *k = xcalloc(1, sizeof *k);
    k->done = done;
    k->arg = arg;
    snprintf(k->since, sizeof k->since, "%s", since);
    k->iov = (struct iovec){k->map, length / VOL_MAP_BLOCK};
    k->r = (struct vol_req){.op = VOL_MAP, .offset = offset, .length = length, .iov = &k->iov, .iovcnt = 1, .since = k->since,
                            .done = mapped, .arg = k};
    if (!v->sealed)
        v->linger_ms = now_ms() + REMOTE_MS; /* nobody owns it: we do for a while */
    vol_submit(&v->vol, &k->r);
}

static void here_done(void *arg, int status, const uint8_t *bits)
{
    struct asan_changed *q = arg;
    memcpy(q->bits, bits, sizeof q->bits);
    answer(q, status);
}

struct remote { struct rpc_call call; struct plink *link; struct asan_changed *q; };

static void remote_done(struct rpc_call *call, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t data_len)
{
    struct remote *k = call->arg;
    struct asan_changed *q = k->q;
    const Cohort__Storage__ChangedRep *rep = (const Cohort__Storage__ChangedRep *)msg;
    (void)data, (void)data_len;
    if (!status && rep->bits.len != sizeof q->bits)
        status = E_PROTO;
    if (!status)
        memcpy(q->bits, rep->bits.data, sizeof q->bits);
    plink_unref(k->link);
    free(k);
    answer(q, status);
}

static void ask_owner(struct volume *v, struct asan_changed *q)
{
    struct peer *p = peer_find(v->a, v->owner);
    struct plink *l = p ? plink_pick(p, 0) : NULL;
    Cohort__Storage__ChangedReq m = COHORT__STORAGE__CHANGED_REQ__INIT;
    if (!l) {
        answer(q, E_UNAVAIL);
        return;
    }
    struct remote *k = xcalloc(1, sizeof *k);
    k->link = l;
    k->q = q;
    l->refs++;
    k->call = (struct rpc_call){.out = &cohort__storage__changed_rep__descriptor, .timeout_ms = REMOTE_MS, .done = remote_done, .arg = k};
    m.volume = q->volume_id;
    m.since = q->since_id;
    m.offset = q->offset;
    m.length = q->length;
    rpc_call(l->rpc, &k->call, RPC_STORE_CHANGED, &m.base, NULL, 0, 0);
}

void changed_ask(struct mail *m)
{
    struct asan_changed *q = container_of(m, struct asan_changed, mail);
    struct asan *a = q->asan;
    if (front_wait_volume(a, q->volume_id, m))
        return;
    struct volume *v = volume_find(a, q->volume_id);
    if (a->stopping || !v || v->gone || v->deleting)
        answer(q, a->stopping ? E_CANCELED : E_NOTFOUND);
    else if (!range_ok(v, q->offset, q->length))
        answer(q, E_UNAVAIL); /* our view may lag behind the caller's */
    else if (v->sealed || v->mine || v->owner_dead)
        ask_here(v, q->since_id, q->offset, q->length, here_done, q);
    else
        ask_owner(v, q);
}

/* ---- for other nodes ---- */

static void served(void *arg, int status, const uint8_t *bits)
{
    struct rpc_req *req = arg;
    Cohort__Storage__ChangedRep rep = COHORT__STORAGE__CHANGED_REP__INIT;
    rep.bits.data = (uint8_t *)(uintptr_t)bits;
    rep.bits.len = ASAN_CHANGED_BITS;
    if (status)
        rpc_reply_err(req, status, 0, "changed blocks");
    else
        rpc_reply(req, &rep.base, NULL, 0, 0);
}

static void on_changed(struct rpc_req *req, void *arg)
{
    struct asan *a = arg;
    const Cohort__Storage__ChangedReq *q = (const Cohort__Storage__ChangedReq *)req->msg;
    struct id id;
    struct volume *v = volume_find(a, q->volume);
    if (!id_parse(q->since, &id))
        rpc_reply_err(req, E_INVAL, 0, "bad snapshot");
    else if (!v || !v->open || !v->mine)
        rpc_reply_err(req, E_UNAVAIL, 0, "not the owner");
    else if (!range_ok(v, q->offset, q->length))
        rpc_reply_err(req, E_INVAL, 0, "bad range");
    else
        ask_here(v, q->since, q->offset, q->length, served, req);
}

void changed_register(struct asan *a)
{
    rpc_handle(a->rpc, RPC_STORE_CHANGED, &cohort__storage__changed_req__descriptor, 0, on_changed, a);
}
