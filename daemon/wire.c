/* Bringing the parts up. Order: identity -> database client and voters -> RPC with everything that registers on it ->
 * networks. What needs this node's rows (aSAN with its disks, then the guests) follows with the first view. */
#include "daemon/wire.h"
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/file.h"
#include "base/htab.h"
#include "base/log.h"
#include "cluster/dbthread.h"
#include "cluster/task.h"
#include "cluster/voters.h"
#include "compute/lease.h"
#include "daemon/facts.h"
#include "daemon/guests.h"
#include "daemon/image_io.h"
#include "daemon/moves.h"
#include "daemon/nets.h"
#include "daemon/nodelinks.h"
#include "daemon/remotes.h"
#include "daemon/rest.h"
#include "daemon/smartwatch.h"
#include "ha/ha.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("daemon");

struct parts { /* what only this file touches */
    struct member_conf member;
    struct member_disk disks[CONF_DISKS_MAX];
    struct db_conf db;
    struct member_db_paths paths;
    struct voters *voters;
    struct lease lease;
    char *voters_file, *remotes;
    bool storage_failed;
};
static struct parts parts;

void daemon_member_conf(struct daemon *d, struct member_conf *ret_conf, struct member_disk *disks)
{
    const struct facts_accel *a = facts_accel();
    for (int i = 0; i < d->conf.n_disks; i++)
        disks[i] = (struct member_disk){d->conf.disks[i].name, d->conf.disks[i].fast, d->conf.disks[i].capacity,
                                        facts_disk_bytes(d->conf.disks[i].capacity)};
    *ret_conf = (struct member_conf){
        .state_dir = d->conf.state_dir, .run_dir = d->conf.run_dir, .node_name = d->conf.node_name, .address = d->conf.address,
        .control_port = d->conf.control_port, .storage_port = d->conf.storage_port, .migrate_port = d->conf.migrate_port,
        .api_port = d->conf.api_port, .election_ms = d->conf.election_ms, .cpus = facts_cpus(),
        .memory_bytes = facts_memory_bytes(), .accel = a->accel, .accel_reason = a->reason, .version = COHORT_VERSION,
        .n_disks = (size_t)d->conf.n_disks, .disks = disks};
    for (int i = 0; i < d->conf.n_storage_addresses; i++)
        ret_conf->storage_addresses[ret_conf->n_storage_addresses++] = d->conf.storage_addresses[i];
}

/* ---- image import through aSAN ---- */

struct image_write {
    struct asan_io io;
    struct iobuf *data;
    void (*done)(void *arg, int status);
    void *arg;
};

static void on_image_write(struct mail *m)
{
    struct image_write *w = container_of(m, struct image_write, io.answer);
    w->done(w->arg, w->io.status);
    iobuf_unref(w->data);
    free(w);
}

static void image_write(void *ctx, const char *volume_id, uint64_t offset, struct iobuf *data, size_t len,
                        void (*done)(void *arg, int status), void *arg)
{
    struct daemon *d = ctx;
    struct image_write *w = xcalloc(1, sizeof *w);
    w->data = iobuf_ref(data);
    w->done = done;
    w->arg = arg;
    w->io = (struct asan_io){.answer = {.run = on_image_write}, .answer_to = &d->mailbox, .op = ASAN_WRITE, .offset = offset,
                             .length = len, .data = data->data};
    snprintf(w->io.volume_id, sizeof w->io.volume_id, "%s", volume_id);
    asan_io(d->asan, &w->io);
}

/* ---- lease ---- */

static void lease_to_asan(struct daemon *d, uint64_t until_boot_ns)
{
    const struct cdb_view *v = cdb_link_view(d->link);
    const struct cdb_node *self = v ? cdb_node_get(v, d->node_id) : NULL;
    asan_set_lease(d->asan, self ? until_boot_ns : 0, self ? self->epoch : 0);
}

static void on_lease(uint64_t until_boot_ns, void *arg)
{
    struct daemon *d = arg;
    lease_set(&parts.lease, until_boot_ns);
    if (d->asan)
        lease_to_asan(d, until_boot_ns);
    guests_wake(d->guests);
}

static struct rpc_peer *get_peer(const char *node, void *arg)
{
    struct daemon *d = arg;
    return d->nodelinks ? nodelinks_get(d->nodelinks, node) : NULL;
}

/* ---- storage and guests: once this node's rows are there ---- */

static const char *disk_row(const struct cdb_view *v, const struct daemon *d, const char *name)
{
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *k = cdb_disk_at(v, i);
        if (!strcmp(k->node, d->node_id) && !strcmp(k->name, name))
            return k->id;
    }
    return NULL;
}

static int start_storage(struct daemon *d, const struct cdb_view *v, struct err *e)
{
    static struct image_io io;
    char *nbd = xasprintf("%s/nbd.sock", d->conf.run_dir), *memory = xasprintf("%s/memory", d->conf.state_dir);
    struct asan_conf c = {.db = d->db, .node_id = d->node_id, .cluster_uuid = d->cluster_uuid,
                          .tls = {parts.paths.ca_pem, parts.paths.cert_pem, parts.paths.key_pem},
                          .listen_address = d->conf.address, .port = d->conf.storage_port, .nbd_socket = nbd, .memory_dir = memory, .nbd_port = d->conf.nbd_port,
                          .journal_bytes = (uint64_t)d->conf.journal_bytes,
                          .cache_bytes = d->conf.cache_bytes < 0 ? ASAN_BY_DEVICE : (uint64_t)d->conf.cache_bytes};
    for (int i = 0; i < d->conf.n_storage_addresses; i++)
        c.links[c.n_links++] = d->conf.storage_addresses[i];
    for (int i = 0; i < d->conf.n_disks; i++) {
        const char *id = disk_row(v, d, d->conf.disks[i].name);
        if (!id) {
            log_warn("disk %s of the configuration is not in the database: not used", d->conf.disks[i].name);
            continue;
        }
        c.disks[c.n_disks++] = (struct asan_disk_conf){id, d->conf.disks[i].name, d->conf.disks[i].fast, d->conf.disks[i].capacity,
                                                      d->conf.disks[i].limit_bytes};
    }
    int rc = asan_start(&c, &d->asan, e);
    free(nbd);
    free(memory);
    if (rc)
        return rc;
    io = (struct image_io){image_write, d};
    d->rest->image_io = &io;
    lease_to_asan(d, ha_lease_until_ns(d->ha));
    return 0;
}

static void on_interrupted(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status && status != E_CONFLICT)
        log_warn("tasks of the daemon's previous life: %s", e->msg);
}

/* The first view that holds this node. */
static void begin_work(struct daemon *d, const struct cdb_view *v)
{
    struct err e = {0};
    int rc = start_storage(d, v, &e);
    if (!rc)
        rc = guests_open(d, &d->guests, &e);
    if (rc) {
        log_err("storage cannot start: %s; this node serves neither data nor guests until the daemon is restarted", e.msg);
        parts.storage_failed = true;
        return;
    }
    struct cdb_txn *t = task_txn_interrupted(v, d->node_id);
    if (t)
        cdb_txn_commit(d->link, t, "end interrupted tasks", on_interrupted, d);
    facts_publish(d);
    d->smartwatch = smartwatch_open(d);
}

/* ---- database ---- */

/* A node that serves no database must find one after a restart: the voters' addresses are kept in a file. */
static void keep_remotes(struct daemon *d, const struct cdb_view *v)
{
    char *now = remotes_of(v);
    struct err e;
    if (now[0] && (!parts.remotes || strcmp(now, parts.remotes))) {
        if (file_write(parts.voters_file, now, strlen(now), 0644, &e))
            log_warn("%s", e.msg);
        free(parts.remotes);
        parts.remotes = now;
        if (!d->local_db)
            cdb_set_remotes(d->db, now);
        return;
    }
    free(now);
}

static void on_serving(bool on, void *arg)
{
    struct daemon *d = arg;
    free(d->local_db);
    d->local_db = on ? db_sock(&parts.db) : NULL;
    if (d->db && (d->local_db || parts.remotes))
        cdb_set_remotes(d->db, d->local_db ? d->local_db : parts.remotes);
    if (d->anet && cdb_link_view(d->link))
        nets_update(d, cdb_link_view(d->link));
}

static void on_view(struct cdb_link *l, void *arg)
{
    struct daemon *d = arg;
    const struct cdb_view *v = cdb_link_view(l);
    if (!v || !d->ha)
        return;
    keep_remotes(d, v);
    nodelinks_update(d->nodelinks, v);
    voters_changed(parts.voters);
    ha_view_changed(d->ha);
    nets_update(d, v);
    if (!d->guests && !parts.storage_failed && cdb_node_get(v, d->node_id))
        begin_work(d, v);
    if (d->guests) {
        moves_update(d->moves);
        guests_wake(d->guests);
    }
}

static int open_database(struct daemon *d, struct err *e)
{
    size_t len;
    daemon_member_conf(d, &parts.member, parts.disks);
    member_db_conf(&parts.member, &parts.db, &parts.paths);
    parts.voters_file = xasprintf("%s/voters", d->conf.state_dir);
    if (file_read(parts.voters_file, 4096, &parts.remotes, &len, NULL))
        parts.remotes = NULL;
    char *sock = db_sock(&parts.db), *ctl = xasprintf("%s/db.ctl", d->conf.run_dir);
    if (db_files_exist(&parts.db))
        d->local_db = xstrdup(sock);
    int rc = 0;
    if (!d->local_db && !parts.remotes)
        rc = err_set(e, E_NOTFOUND, "neither a database nor %s with the addresses of one: this node's membership is damaged", parts.voters_file);
    struct cdb_conf c = {d->local_db ? d->local_db : parts.remotes, parts.paths.ca_pem, parts.paths.cert_pem, parts.paths.key_pem,
                         ctl, sock, .client = d->node_id};
    if (!rc)
        rc = cdb_open(&c, &d->db, e);
    if (!rc)
        d->link = cdb_link_open(d->db, d->loop, on_view, d);
    struct voters_conf vc = {.loop = d->loop, .link = d->link, .db = parts.db, .self = d->node_id, .serving = on_serving, .arg = d};
    if (!rc)
        rc = voters_open(&vc, &parts.voters, e);
    free(sock);
    free(ctl);
    return rc;
}

/* ---- all of it ---- */

static int open_rpc(struct daemon *d, struct err *e)
{
    struct rpc_tls_files tls = {parts.paths.ca_pem, parts.paths.cert_pem, parts.paths.key_pem};
    struct ha_conf hc = {.loop = d->loop, .link = d->link, .self = d->node_id, .peer = get_peer, .lease = on_lease, .arg = d};
    int rc = rpc_env_open(d->loop, &tls, &d->rpc, e);
    if (rc)
        return rc;
    hc.rpc = d->rpc;
    d->nodelinks = nodelinks_open(d->rpc, d->node_id);
    if ((rc = ha_open(&hc, &d->ha, e)) || (rc = moves_open(d, &d->moves, e)))
        return rc;
    return rpc_listen(d->rpc, d->conf.address, d->conf.control_port, &d->rpc_server, e);
}

int daemon_become_member(struct daemon *d, struct err *e)
{
    struct member_id id;
    int rc = member_load(d->conf.state_dir, &id, e);
    if (rc)
        return rc;
    memcpy(d->node_id, id.node_id, sizeof d->node_id);
    memcpy(d->cluster_uuid, id.cluster_uuid, sizeof d->cluster_uuid);
    char *lease = xasprintf("%s/lease", d->conf.run_dir);
    rc = lease_create(lease, &parts.lease, e);
    free(lease);
    if (!rc)
        rc = open_database(d, e);
    if (!rc)
        rc = open_rpc(d, e);
    if (!rc)
        rc = nets_open(d, e);
    if (rc)
        return rc;
    d->member = true;
    on_view(d->link, d);
    return rest_listen_tls(d->rest, e);
}

int daemon_resume_membership(struct daemon *d, struct err *e)
{
    struct member_id id;
    int rc = member_load(d->conf.state_dir, &id, e);
    return rc == E_NOTFOUND ? 0 : rc ? rc : daemon_become_member(d, e);
}

void daemon_leave(struct daemon *d)
{
    smartwatch_close(d->smartwatch);
    moves_close(d->moves);
    guests_close(d->guests);
    ha_close(d->ha);
    anet_close(d->anet);
    asan_stop(d->asan);
    if (parts.voters)
        voters_close(parts.voters);
    nodelinks_close(d->nodelinks);
    rpc_env_close(d->rpc);
    if (d->link)
        cdb_link_close(d->link);
    if (d->db)
        cdb_close(d->db);
    lease_close(&parts.lease);
}
