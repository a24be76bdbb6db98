/* The cluster key: made or locked anew, unlocked. See ops.h and cluster/keyring.h. Both take some 50 ms of this thread, which an
 * administrator's rare command may. */
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include "cluster/keyring.h"
#include "daemon/op.h"

struct key {
    struct op op;
    struct key_change *k;
};

static int build_set(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    struct key_change *k = ((struct key *)op)->k;
    const struct cdb_cluster *c = cdb_cluster_get(v, "cluster");
    if (!c)
        return err_set(e, E_UNAVAIL, "the cluster's row is not there yet");
    if (*c->key && !keyring_has())
        return err_set(e, E_UNAVAIL, "this node does not have the cluster key\nunlock it first: cohort cluster key unlock");
    if (!*c->key)
        keyring_forget(); /* of no use to anyone: no volume can have been made with it */
    int rc = keyring_lock(k->passphrase, strlen(k->passphrase), k->key, k->text, e);
    if (rc != E_OK)
        return rc;
    snprintf(op->id, sizeof op->id, "%s", "cluster");
    cdb_txn_require_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_key, c->key);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_key, k->text);
    op_event(op, t, "info", "cluster key", *c->key ? "the cluster key has a new passphrase" : "the cluster key was made");
    return E_OK;
}

static bool is_set(const struct op *op, const struct cdb_view *v)
{
    const struct cdb_cluster *c = cdb_cluster_get(v, "cluster");
    return c && strcmp(c->key, ((const struct key *)op)->k->text) == 0;
}

int op_key_set(struct ops *o, struct key_change *k, op_done *done, void *arg, struct err *e)
{
    struct key *x = op_new(o, sizeof *x, "set cluster key", done, arg);
    x->k = k;
    x->op.build = build_set;
    x->op.happened = is_set;
    return op_start(&x->op, e);
}

/* The key counts once the database has its lock: never use one that nobody could unlock again. */
void ops_key_changed(struct key_change *k, int status)
{
    if (status == E_OK)
        keyring_put(k->key);
    OPENSSL_cleanse(k->key, sizeof k->key);
}

int op_key_unlock(struct ops *o, const char *passphrase, struct err *e)
{
    uint8_t key[KEYRING_KEY];
    const struct cdb_view *v = ops_view(o, e);
    const struct cdb_cluster *c = v ? cdb_cluster_get(v, "cluster") : NULL;
    if (!v)
        return e->code;
    if (!c || !*c->key)
        return err_set(e, E_NOTFOUND, "this cluster has no key\nmake one with cohort cluster key set");
    int rc = keyring_unlock(c->key, passphrase, strlen(passphrase), key, e);
    if (rc == E_OK)
        keyring_put(key);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}

const char *ops_key_state(const struct cdb_view *v)
{
    const struct cdb_cluster *c = cdb_cluster_get(v, "cluster");
    return !c || !*c->key ? "none" : keyring_has() ? "unlocked" : "locked";
}
