/* Keys of encrypted volumes at their owner, and the cluster key from peers. A node that starts has no cluster key; it asks the
 * nodes it is connected to (TLS both ways: members of this cluster only) until one has it or someone unlocks it here. Until
 * then requests of encrypted volumes wait, like those without quorum. */
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "cluster/keyring.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define ASK_MS 1000

bool volume_locked(struct volume *v)
{
    uint8_t key[KEYRING_VOLUME_KEY];
    struct err e;
    if (!v->key || v->crypt)
        return false;
    if (!keyring_has())
        return true;
    int rc = keyring_volume_open(v->key, key, &e);
    if (!rc)
        rc = crypt_new(key, &v->crypt, &e);
    OPENSSL_cleanse(key, sizeof key);
    if (rc && !v->key_told)
        log_err("volume %s: %s; its requests wait", v->name, e.msg);
    v->key_told = rc != 0;
    return rc != 0;
}

/* ---- from peers ---- */

struct ask {
    struct rpc_call call;
    struct asan *a;
    struct plink *link;
};

static void answered(struct rpc_call *call, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t data_len)
{
    struct ask *k = call->arg;
    const struct cdb_view *view = view_of(k->a);
    const struct cdb_cluster *c = view ? cdb_cluster_get(view, "cluster") : NULL;
    const Cohort__Storage__KeyRep *rep = (const Cohort__Storage__KeyRep *)msg;
    k->a->key_asks--;
    if (!status && c && rep->key.len == KEYRING_KEY && !keyring_has() && keyring_fits(c->key, rep->key.data)) {
        keyring_put(rep->key.data);
        log_info("cluster key: a peer has given it; encrypted volumes are served");
    }
    if (!status && rep->key.len)
        OPENSSL_cleanse(rep->key.data, rep->key.len);
    plink_unref(k->link);
    free(k);
}

static void ask(struct asan *a, struct peer *p)
{
    Cohort__Storage__KeyReq q = COHORT__STORAGE__KEY_REQ__INIT;
    struct plink *l = plink_pick(p, 0);
    if (!l)
        return;
    struct ask *k = xcalloc(1, sizeof *k);
    k->a = a;
    k->link = l;
    l->refs++;
    k->call = (struct rpc_call){.out = &cohort__storage__key_rep__descriptor, .timeout_ms = CALL_TIMEOUT_MS, .done = answered, .arg = k};
    a->key_asks++;
    rpc_call(l->rpc, &k->call, RPC_STORE_KEY, &q.base, NULL, 0, 0);
}

static void on_key(struct rpc_req *req, void *arg)
{
    Cohort__Storage__KeyRep rep = COHORT__STORAGE__KEY_REP__INIT;
    uint8_t key[KEYRING_KEY];
    (void)arg;
    if (!keyring_get(key)) {
        rpc_reply_err(req, E_UNAVAIL, 0, "locked here, too");
        return;
    }
    rep.key.data = key;
    rep.key.len = sizeof key;
    rpc_reply(req, &rep.base, NULL, 0, 0);
    OPENSSL_cleanse(key, sizeof key);
}

void keys_register(struct asan *a)
{
    rpc_handle(a->rpc, RPC_STORE_KEY, &cohort__storage__key_req__descriptor, 0, on_key, a);
}

void keys_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    const struct cdb_cluster *c = view ? cdb_cluster_get(view, "cluster") : NULL;
    struct htab_node *n;
    struct peer *p;
    if (!c || !*c->key || now_ms() < a->keys_ms)
        return;
    a->keys_ms = now_ms() + ASK_MS;
    if (!keyring_has()) {
        if (!a->key_asks)
            LIST_FOREACH (p, &a->peers, entry)
                if (p->connected)
                    ask(a, p);
        return;
    }
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (v->key && !v->crypt && v->n_waiting)
            volume_go_on(v);
    }
}
