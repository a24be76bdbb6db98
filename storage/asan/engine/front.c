/* Front ends of the engine's volumes: vhost-user sockets, the NBD server, asan_io and asan_claim. */
#include "storage/asan/front/nbd.h"
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "cluster/copies.h"
#include "storage/asan/engine/priv.h"
#include "storage/asan/front/vhost.h"

LOG_MODULE("asan");

#define LINGER_MS 5000
#define NBD_RECHECK_MS 1000 /* after that long a client has lost what was taken from it */

struct vhost {
    struct asan *a;
    struct volume *v;
    char *path;
    struct vhost_server *srv;
    bool closing;
    void (*done)(void *arg);
    void *arg;
    LIST_ENTRY(vhost) entry;
};

/* ---- volumes that our view does not have yet ---- */

/* The caller's view may be ahead of ours by a moment: what names an unknown volume is asked again until this is over. */
#define UNKNOWN_MS 2000

struct unknown {
    struct mail *mail;
    uint64_t until_ms;
    TAILQ_ENTRY(unknown) entry;
};

/* Keeps `m` for a later run if volume `id` is not known and may still come. */
static bool wait_for_volume(struct asan *a, const char *id, struct mail *m)
{
    if (a->stopping || a->last_try || volume_find(a, id))
        return false;
    struct unknown *u = xcalloc(1, sizeof *u);
    u->mail = m;
    u->until_ms = now_ms() + UNKNOWN_MS;
    TAILQ_INSERT_TAIL(&a->unknown, u, entry);
    return true;
}

/* Runs those whose volume has come (`id` in them is theirs to look up), and all that have waited long enough. */
static void run_unknown(struct asan *a, bool all)
{
    TAILQ_HEAD(, unknown) list = TAILQ_HEAD_INITIALIZER(list);
    struct unknown *u;
    TAILQ_CONCAT(&list, &a->unknown, entry);
    while ((u = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, u, entry);
        uint64_t until = u->until_ms;
        struct mail *m = u->mail;
        free(u);
        a->last_try = all || now_ms() >= until;
        m->run(m);
        a->last_try = false;
        u = TAILQ_LAST(&a->unknown, unknown_list);
        if (u && u->mail == m)
            u->until_ms = until;
    }
}

/* ---- guests ---- */

static struct vhost *find(struct asan *a, const char *path)
{
    struct vhost *h;
    LIST_FOREACH (h, &a->vhosts, entry)
        if (!strcmp(h->path, path))
            return h;
    return NULL;
}

bool front_wait_volume(struct asan *a, const char *volume_id, struct mail *m)
{
    return wait_for_volume(a, volume_id, m);
}

int front_vhost_serve(struct asan *a, const char *volume_id, const char *path, struct err *e)
{
    struct volume *v = volume_find(a, volume_id);
    struct vhost *h = find(a, path);
    if (a->stopping)
        return err_set(e, E_CANCELED, "storage is stopping");
    if (h && h->closing)
        return err_set(e, E_BUSY, "socket %s is being closed", path);
    if (h)
        return h->v == v ? err_set(e, E_EXISTS, "socket %s serves this volume already", path)
                         : err_set(e, E_INVAL, "socket %s serves volume %s", path, h->v->name);
    if (!v || v->gone || v->deleting)
        return err_set(e, E_NOTFOUND, "no volume %s", volume_id);
    h = xcalloc(1, sizeof *h);
    h->a = a;
    h->v = v;
    h->path = xstrdup(path);
    struct vhost_conf conf = {0};
    int rc = vhost_server_open(&a->loop, path, &v->vol, &conf, &h->srv, e);
    if (rc) {
        free(h->path);
        free(h);
        return rc;
    }
    LIST_INSERT_HEAD(&a->vhosts, h, entry);
    v->users++;
    own_update(v);
    return 0;
}

static void closed(void *arg)
{
    struct vhost *h = arg;
    struct asan *a = h->a;
    h->v->users--;
    own_update(h->v);
    if (h->done)
        h->done(h->arg);
    LIST_REMOVE(h, entry);
    free(h->path);
    free(h);
    if (a->stopping)
        asan_closed_one(a);
}

/* Requests of a socket that is being closed would hold it up for as long as the volume parks. */
static void give_up_parked(struct volume *v)
{
    bool parked = !v->open || volume_locked(v);
    for (uint32_t i = 0; v->open && i < v->n_shards; i++) {
        struct owner_info info;
        if (!v->shard[i] || !v->shard[i]->core)
            continue;
        owner_info(v->shard[i]->core, &info);
        parked = parked || info.parked;
    }
    if (!parked || volume_idle(v))
        return;
    own_close(v);
    volume_cancel(v);
}

static void vhost_close(struct vhost *h)
{
    if (h->closing)
        return;
    h->closing = true;
    vhost_server_close(h->srv, closed, h);
}

void front_vhost_unserve(struct asan *a, const char *path, void (*done)(void *arg), void *arg)
{
    struct vhost *h = find(a, path);
    if (!h || h->closing) {
        done(arg);
        return;
    }
    struct volume *v = h->v;
    h->done = done;
    h->arg = arg;
    vhost_close(h);
    give_up_parked(v);
}

static bool has_vhost(const struct volume *v)
{
    const struct vhost *h;
    LIST_FOREACH (h, &v->a->vhosts, entry)
        if (h->v == v)
            return true;
    return false;
}

/* What NBD clients that have left had asked of a lost volume would wait for ever, and keep people from resetting it. */
static void give_up_lost(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        const struct cdb_volume *row = view && v->users && v->open ? cdb_volume_get(view, v->id) : NULL;
        if (row && v->claims <= v->users && copies_volume_lost(view, row) && !has_vhost(v) && !nbd_server_uses(a->nbd, &v->vol))
            give_up_parked(v);
    }
}

void front_tick(struct asan *a)
{
    struct vhost *h, *next;
    run_unknown(a, false);
    if (a->nbd && now_ms() >= a->nbd_recheck_ms) {
        a->nbd_recheck_ms = now_ms() + NBD_RECHECK_MS;
        nbd_server_recheck(a->nbd);
        give_up_lost(a);
    }
    for (h = LIST_FIRST(&a->vhosts); h; h = next) {
        next = LIST_NEXT(h, entry);
        if (h->closing)
            give_up_parked(h->v);
    }
}

/* ---- NBD ---- */

struct lookup {
    struct claim_wait wait;
    struct nbd_lookup *l;
    struct volume *v;
};

static void claimed(struct claim_wait *w, int status, const char *why)
{
    struct lookup *k = w->arg;
    if (status)
        k->v->users--;
    nbd_lookup_done(k->l, status, status ? NULL : &k->v->vol, why);
    free(k);
}

/* A client that is no node; NULL: there is none with that certificate (any more). */
static const struct cdb_nbd_client *nbd_client_row(struct asan *a, const char *client)
{
    const struct cdb_view *view = view_of(a);
    for (size_t i = 0; view && i < cdb_nbd_client_count(view); i++) {
        const struct cdb_nbd_client *row = cdb_nbd_client_at(view, i);
        if (!strcmp(row->fingerprint, client))
            return row->expires_ms && row->expires_ms <= clock_wall_ms() ? NULL : row;
    }
    return NULL;
}

static bool nbd_known(void *arg, const char *client)
{
    return nbd_client_row(arg, client) != NULL;
}

/* By the rows as they are now: a volume given to it, or a snapshot of one. */
static enum nbd_access access_to(struct asan *a, const struct cdb_nbd_client *client, const char *volume_id)
{
    const struct cdb_volume *row = cdb_volume_get(view_of(a), volume_id);
    const char *mode = row ? cdb_smap_get(&client->volumes, row->id) : NULL;
    if (mode)
        return !strcmp(mode, "rw") ? NBD_READ_WRITE : NBD_READ_ONLY;
    return row && !strcmp(row->purpose, "snapshot") && cdb_smap_get(&client->volumes, row->origin) ? NBD_READ_ONLY : NBD_NO_ACCESS;
}

static enum nbd_access nbd_access(void *arg, const char *client, const struct vol *vol)
{
    const struct cdb_nbd_client *row = nbd_client_row(arg, client);
    return row ? access_to(arg, row, ((const struct volume *)vol)->id) : NBD_NO_ACCESS;
}

static void nbd_find(void *arg, const char *client, const char *name, struct nbd_lookup *l)
{
    struct asan *a = arg;
    struct volume *v = a->stopping ? NULL : volume_find_name(a, name);
    if (client && (!v || !nbd_access(a, client, &v->vol))) {
        nbd_lookup_done(l, E_PERM, NULL, NULL);
        return;
    }
    if (!v) {
        nbd_lookup_done(l, E_NOTFOUND, NULL, "no such volume");
        return;
    }
    v->users++;
    if (v->sealed) {
        nbd_lookup_done(l, 0, &v->vol, "");
        return;
    }
    struct lookup *k = xcalloc(1, sizeof *k);
    k->l = l;
    k->v = v;
    k->wait.done = claimed;
    k->wait.arg = k;
    own_claim(v, &k->wait);
}

static void nbd_release(void *arg, struct vol *vol)
{
    struct volume *v = (struct volume *)vol;
    (void)arg;
    v->users--;
    if (v->claims)
        own_release(v);
}

static void nbd_list(void *arg, const char *client, struct nbd_list *l)
{
    struct asan *a = arg;
    const struct cdb_nbd_client *row = client ? nbd_client_row(a, client) : NULL;
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (!v->gone && !v->deleting && (!client || (row && access_to(a, row, v->id))))
            nbd_list_add(l, v->name);
    }
}

static void add_base(void *arg, const char *name, const char *id) { nbd_base_add(arg, name, id); }

static void nbd_bases(void *arg, struct vol *vol, struct nbd_bases *b)
{
    (void)arg;
    changed_bases((struct volume *)vol, add_base, b);
}

int front_open(struct asan *a, const struct asan_conf *c, struct err *e)
{
    /* A backup of every volume of a node at once is no attack; an idle connection costs 20 KiB. */
    struct nbd_conf conf = {.unix_path = c->nbd_socket, .conns_max = 512};
    if (c->nbd_port) {
        conf.tcp_addr = c->listen_address;
        conf.tcp_port = c->nbd_port;
        conf.tls_ca = c->tls.ca_pem;
        conf.tls_cert = c->tls.cert_pem;
        conf.tls_key = c->tls.key_pem;
    }
    struct nbd_exports exports = {.find = nbd_find, .release = nbd_release, .list = nbd_list, .known = nbd_known, .access = nbd_access,
                                  .bases = nbd_bases, .arg = a};
    return conf.unix_path || conf.tcp_addr ? nbd_server_open(&a->loop, &conf, &exports, &a->nbd, e) : 0;
}

/* ---- the volume goes, everything stops ---- */

void front_volume_gone(struct volume *v)
{
    struct vhost *h, *next;
    struct claim_wait *w;
    for (h = LIST_FIRST(&v->a->vhosts); h; h = next) {
        next = LIST_NEXT(h, entry);
        if (h->v == v)
            vhost_close(h);
    }
    while ((w = TAILQ_FIRST(&v->claim_waits))) {
        own_claim_cancel(v, w);
        w->done(w, E_NOTFOUND, "the volume is deleted");
    }
    if (v->a->nbd && v->users)
        nbd_server_drop(v->a->nbd, &v->vol);
}

void front_volume_resized(struct volume *v)
{
    struct vhost *h;
    LIST_FOREACH (h, &v->a->vhosts, entry)
        if (h->v == v && !h->closing)
            vhost_server_resized(h->srv);
}

static void nbd_closed(void *arg)
{
    asan_closed_one(arg);
}

void front_close(struct asan *a)
{
    struct vhost *h, *next;
    struct htab_node *n;
    run_unknown(a, true);
    for (h = LIST_FIRST(&a->vhosts); h; h = next) {
        next = LIST_NEXT(h, entry);
        a->closing++;
        vhost_close(h);
    }
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        struct claim_wait *w;
        while ((w = TAILQ_FIRST(&v->claim_waits))) {
            own_claim_cancel(v, w);
            w->done(w, E_CANCELED, "storage is stopping");
        }
    }
    if (a->nbd) {
        a->closing++;
        nbd_server_close(a->nbd, nbd_closed, a);
        a->nbd = NULL;
    }
}

/* ---- the process's own use ---- */

struct io {
    struct vol_req r;
    struct iovec iov;
    struct asan_io *io;
};

static void io_done(struct vol_req *r, int status)
{
    struct io *k = r->arg;
    struct asan_io *io = k->io;
    free(k);
    io->status = status;
    mailbox_post(io->answer_to, &io->answer);
}

void front_io(struct mail *m)
{
    static const enum vol_op op[] = {VOL_READ, VOL_WRITE, VOL_ZERO, VOL_FLUSH};
    struct asan_io *io = container_of(m, struct asan_io, mail);
    struct asan *a = io->asan;
    if (wait_for_volume(a, io->volume_id, m))
        return;
    struct volume *v = volume_find(a, io->volume_id);
    if (a->stopping || !v || v->gone || v->deleting) {
        io->status = a->stopping ? E_CANCELED : E_NOTFOUND;
        mailbox_post(io->answer_to, &io->answer);
        return;
    }
    struct io *k = xcalloc(1, sizeof *k);
    k->io = io;
    k->iov = (struct iovec){io->data, io->length};
    k->r = (struct vol_req){.op = op[io->op], .offset = io->offset, .length = io->op == ASAN_FLUSH ? 0 : io->length,
                            .iov = &k->iov, .iovcnt = 1, .done = io_done, .arg = k};
    if (!v->sealed)
        v->linger_ms = now_ms() + LINGER_MS;
    vol_submit(&v->vol, &k->r);
}

struct claim {
    struct claim_wait wait;
    struct asan_claim *c;
};

static void claim_done(struct claim_wait *w, int status, const char *why)
{
    struct claim *k = w->arg;
    struct asan_claim *c = k->c;
    free(k);
    c->status = status;
    if (status)
        err_set(&c->err, status, "claim volume %s: %s", c->volume_id, why);
    mailbox_post(c->answer_to, &c->answer);
}

void front_claim(struct mail *m)
{
    struct asan_claim *c = container_of(m, struct asan_claim, mail);
    struct asan *a = c->asan;
    if (wait_for_volume(a, c->volume_id, m))
        return;
    struct volume *v = volume_find(a, c->volume_id);
    struct claim *k = xcalloc(1, sizeof *k);
    k->c = c;
    k->wait.done = claim_done;
    k->wait.arg = k;
    if (a->stopping)
        claim_done(&k->wait, E_CANCELED, "storage is stopping");
    else if (!v || v->gone || v->deleting)
        claim_done(&k->wait, E_NOTFOUND, "no such volume");
    else
        own_claim(v, &k->wait);
}

void front_release(struct asan *a, const char *volume_id)
{
    struct volume *v = volume_find(a, volume_id);
    if (v && v->claims)
        own_release(v);
}
