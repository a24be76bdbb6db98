/* NBD clients and the volumes they may use. See ops.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/jin.h"
#include "daemon/op.h"

#define VOLUMES_MAX 1000 /* of one client */

/* ---- create, delete ---- */

struct creation {
    struct op op;
    const struct nbd_client_spec *spec;
};

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct nbd_client_spec *s = ((struct creation *)op)->spec;
    int rc = jin_name_check("NBD client", s->name, e);
    if (rc != E_OK)
        return rc;
    for (size_t i = 0; i < cdb_nbd_client_count(v); i++) {
        const struct cdb_nbd_client *c = cdb_nbd_client_at(v, i);
        if (strcmp(c->name, s->name) == 0)
            return err_set(e, E_EXISTS, "NBD client \"%s\" exists already", s->name);
        if (strcmp(c->fingerprint, s->fingerprint) == 0)
            return err_set(e, E_EXISTS, "the certificate is that of NBD client %s", c->name);
    }
    cdb_txn_require_absent(t, CDB_T_NBD_CLIENT, op->id);
    cdb_txn_insert(t, CDB_T_NBD_CLIENT, op->id);
    cdb_txn_set_str(t, CDB_T_NBD_CLIENT, op->id, CDB_NBD_CLIENT_name, s->name);
    cdb_txn_set_str(t, CDB_T_NBD_CLIENT, op->id, CDB_NBD_CLIENT_fingerprint, s->fingerprint);
    cdb_txn_set_int(t, CDB_T_NBD_CLIENT, op->id, CDB_NBD_CLIENT_expires_ms, s->expires_ms);
    cdb_txn_set_str(t, CDB_T_NBD_CLIENT, op->id, CDB_NBD_CLIENT_creator, s->creator);
    op_event(op, t, "info", s->name, "NBD client %s created by %s", s->name, s->creator);
    return E_OK;
}

static bool created(const struct op *op, const struct cdb_view *v) { return cdb_nbd_client_get(v, op->id) != NULL; }

int op_nbd_client_create(struct ops *o, const struct nbd_client_spec *s, op_done *done, void *arg, struct err *e)
{
    struct creation *k = op_new(o, sizeof *k, "create NBD client", done, arg);
    k->spec = s;
    k->op.build = build_create;
    k->op.happened = created;
    return op_start(&k->op, e);
}

struct change {
    struct op op;
    const char *client;
    const struct nbd_access_spec *spec; /* NULL: delete */
};

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_nbd_client *c = ops_find(v, CDB_T_NBD_CLIENT, "NBD client", ((struct change *)op)->client, e);
    if (!c)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", c->id);
    cdb_txn_delete(t, CDB_T_NBD_CLIENT, c->id);
    op_event(op, t, "info", c->name, "NBD client %s deleted", c->name);
    return E_OK;
}

static bool deleted(const struct op *op, const struct cdb_view *v) { return !cdb_nbd_client_get(v, op->id); }

int op_nbd_client_delete(struct ops *o, const char *client, op_done *done, void *arg, struct err *e)
{
    struct change *k = op_new(o, sizeof *k, "delete NBD client", done, arg);
    k->client = client;
    k->op.build = build_delete;
    k->op.happened = deleted;
    return op_start(&k->op, e);
}

/* ---- access ---- */

/* The client's volumes with `vol` as `mode` says, without those that are gone. Arrays are the caller's, with room for one more. */
static void with_change(const struct cdb_view *v, const struct cdb_nbd_client *c, const char *vol, const char *mode, struct cdb_smap *ret)
{
    for (size_t i = 0; i < c->volumes.n; i++) {
        if (strcmp(c->volumes.k[i], vol) == 0 || !cdb_volume_get(v, c->volumes.k[i]))
            continue;
        ret->k[ret->n] = c->volumes.k[i];
        ret->v[ret->n++] = c->volumes.v[i];
    }
    if (strcmp(mode, "none")) {
        ret->k[ret->n] = (char *)vol;
        ret->v[ret->n++] = (char *)mode;
    }
}

static int build_access(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct change *k = (const struct change *)op;
    const struct nbd_access_spec *s = k->spec;
    const struct cdb_nbd_client *c = ops_find(v, CDB_T_NBD_CLIENT, "NBD client", k->client, e);
    const struct cdb_volume *vol = c ? ops_find(v, CDB_T_VOLUME, "volume", s->volume, e) : NULL;
    bool take = strcmp(s->mode, "none") == 0;
    if (!vol)
        return E_NOTFOUND;
    if (!take && strcmp(vol->state, "deleting") == 0)
        return err_set(e, E_BUSY, "volume %s is being deleted", vol->name);
    if (vol->sealed && strcmp(s->mode, "rw") == 0)
        return err_set(e, E_INVAL, "volume %s is never written again\ngive access to read it: mode ro", vol->name);
    if (!take && c->volumes.n >= VOLUMES_MAX)
        return err_set(e, E_TOOBIG, "NBD client %s has access to %d volumes already", c->name, VOLUMES_MAX);
    char **keys = xcalloc(c->volumes.n + 1, sizeof *keys), **modes = xcalloc(c->volumes.n + 1, sizeof *modes);
    struct cdb_smap m = {0, keys, modes};
    with_change(v, c, vol->id, s->mode, &m);
    snprintf(op->id, sizeof op->id, "%s", c->id);
    cdb_txn_require_int(t, CDB_T_NBD_CLIENT, c->id, CDB_NBD_CLIENT_generation, c->generation);
    cdb_txn_require_exists(t, CDB_T_VOLUME, vol->id);
    cdb_txn_set_int(t, CDB_T_NBD_CLIENT, c->id, CDB_NBD_CLIENT_generation, c->generation + 1);
    cdb_txn_set_smap(t, CDB_T_NBD_CLIENT, c->id, CDB_NBD_CLIENT_volumes, &m);
    op_event(op, t, "info", vol->name, "NBD client %s %s volume %s", c->name,
             take ? "may no longer use" : strcmp(s->mode, "rw") ? "may read" : "may read and write", vol->name);
    free(keys);
    free(modes);
    return E_OK;
}

int op_nbd_access(struct ops *o, const char *client, const struct nbd_access_spec *s, op_done *done, void *arg, struct err *e)
{
    struct change *k = op_new(o, sizeof *k, "change access of NBD client", done, arg);
    k->client = client;
    k->spec = s;
    k->op.build = build_access;
    return op_start(&k->op, e);
}
