/* The driver: carries out Node.voter on this node, and the coordinator's share. See voters.h.
 *
 * Blocking calls (ovsdb-tool, control socket) run as one libuv work item at a time; its result is looked at on the loop,
 * then tick() decides what is next. */
#include "cluster/voters.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/sm.h"

LOG_MODULE("voters");

#define TICK_MS 1000
#define TRACK_MAX 32

enum { OUT, JOINING, SERVING, LEAVING, N_STATES };
static const struct sm_conf states[N_STATES] = {
    [OUT] = {"out", SM_TO(JOINING), true},
    [JOINING] = {"joining", SM_TO(SERVING) | SM_TO(LEAVING)},
    [SERVING] = {"serving", SM_TO(LEAVING)},
    [LEAVING] = {"leaving", SM_TO(OUT)},
};

enum job { JOB_NONE, JOB_FILES_JOIN, JOB_STATUS, JOB_LEAVE, JOB_LEFT, JOB_FILES_REMOVE, JOB_KICK };

/* Since when something is so; an entry that is not seen any more is forgotten. */
struct track { char name[128]; uint64_t since_ms; bool seen; };

struct voters {
    struct voters_conf conf;
    struct dbserver *server;
    struct sm sm;
    uv_timer_t timer;
    bool closing, timer_closed;
    struct track dead[TRACK_MAX];      /* nodes */
    struct track strangers[TRACK_MAX]; /* addresses of servers in RAFT that belong to no voter */
    bool txn_pending;

    /* the work item; the loop does not touch its fields while it runs */
    uv_work_t work;
    enum job job;
    size_t n_peers;
    char **peers;
    char kick[128];
    int status;
    struct err err;
    struct db_status db[DB_N];
    bool left;
};

/* ---- tracking ---- */

static uint64_t track_seen(struct track *t, const char *name)
{
    struct track *empty = NULL;
    uint64_t now = clock_boot_ms();
    for (int i = 0; i < TRACK_MAX; i++) {
        if (t[i].name[0] && !strcmp(t[i].name, name)) {
            t[i].seen = true;
            return now - t[i].since_ms;
        }
        if (!t[i].name[0] && !empty)
            empty = &t[i];
    }
    if (empty) {
        *empty = (struct track){.since_ms = now, .seen = true};
        snprintf(empty->name, sizeof empty->name, "%s", name);
    }
    return 0;
}

static void track_sweep(struct track *t)
{
    for (int i = 0; i < TRACK_MAX; i++) {
        if (!t[i].seen)
            t[i].name[0] = '\0';
        t[i].seen = false;
    }
}

static int64_t dead_ms(const char *node_id, void *arg)
{
    struct voters *v = arg;
    const struct cdb_node *n = cdb_node_get(cdb_link_view(v->conf.link), node_id);
    return n && !strcmp(n->state, "dead") ? (int64_t)track_seen(v->dead, node_id) : 0;
}

/* ---- the work item ---- */

static void job_run(uv_work_t *w)
{
    struct voters *v = w->data;
    struct db_conf *c = &v->conf.db;
    v->status = 0;
    switch (v->job) {
    case JOB_NONE: break;
    case JOB_FILES_JOIN:
        v->status = db_files_join(c, v->n_peers, (const char *const *)v->peers, &v->err);
        break;
    case JOB_STATUS:
        for (int i = 0; i < DB_N && !v->status; i++)
            v->status = dbserver_status(c, i, &v->db[i], &v->err);
        break;
    case JOB_LEAVE: v->status = dbserver_leave(c, &v->err); break;
    case JOB_LEFT: /* asked again each time: the server may have been restarted, or not have answered, in between */
        v->left = dbserver_left(c);
        if (!v->left)
            v->status = dbserver_leave(c, &v->err);
        break;
    case JOB_FILES_REMOVE:
        v->status = dbserver_kill(c, &v->err);
        if (!v->status)
            v->status = db_files_remove(c, &v->err);
        break;
    case JOB_KICK: v->status = dbserver_kick(c, v->kick, &v->err); break;
    }
}

static void tick(struct voters *v);
static void job_result(struct voters *v, enum job job);

static void peers_free(struct voters *v)
{
    for (size_t i = 0; i < v->n_peers; i++)
        free(v->peers[i]);
    free(v->peers);
    v->peers = NULL;
    v->n_peers = 0;
}

static void maybe_free(struct voters *v)
{
    if (v->closing && v->timer_closed && v->job == JOB_NONE) {
        peers_free(v);
        free(v);
    }
}

static void job_done(uv_work_t *w, int status)
{
    struct voters *v = w->data;
    enum job job = v->job;
    v->job = JOB_NONE;
    if (v->closing)
        maybe_free(v);
    else
        job_result(v, job);
}

static void job_start(struct voters *v, enum job job)
{
    assert(v->job == JOB_NONE);
    v->job = job;
    v->work.data = v;
    uv_queue_work(v->conf.loop, &v->work, job_run, job_done);
}

/* ---- this node ---- */

static void begin_join(struct voters *v, const struct cdb_view *view)
{
    peers_free(v);
    v->peers = xcalloc(cdb_node_count(view) + 1, sizeof *v->peers);
    for (size_t i = 0; i < cdb_node_count(view); i++) {
        const struct cdb_node *n = cdb_node_at(view, i);
        if (n->voter && strcmp(n->id, v->conf.self) && n->addresses.n && strcmp(n->state, "dead"))
            v->peers[v->n_peers++] = xstrdup(n->addresses.v[0]);
    }
    if (v->n_peers)
        job_start(v, JOB_FILES_JOIN);
}

static void open_server(struct voters *v)
{
    struct err e;
    if (dbserver_open(v->conf.loop, &v->conf.db, &v->server, &e)) {
        log_err("%s", e.msg); /* the next tick finds the files and tries again */
        return;
    }
    sm_move(&v->sm, JOINING);
}

static bool is_member(const struct db_status s[DB_N])
{
    for (int i = 0; i < DB_N; i++)
        if (strcmp(s[i].status, "cluster member"))
            return false;
    return true;
}

static void tick_self(struct voters *v, const struct cdb_view *view)
{
    const struct cdb_node *self = cdb_node_get(view, v->conf.self);
    bool wish = self && self->voter;
    switch (v->sm.state) {
    case OUT:
        if (wish && db_files_exist(&v->conf.db))
            open_server(v);
        else if (wish)
            begin_join(v, view);
        break;
    case JOINING:
    case SERVING:
        /* Without a row we were removed; a view in which nobody at all serves is no reason to stop. */
        if (!wish && cdb_node_count(view) > 0) {
            log_info("this node no longer serves the databases: leaving");
            if (v->sm.state == SERVING)
                v->conf.serving(false, v->conf.arg);
            sm_move(&v->sm, LEAVING);
            job_start(v, JOB_LEAVE);
        } else if (v->sm.state == JOINING) {
            job_start(v, JOB_STATUS);
        }
        break;
    case LEAVING: job_start(v, v->server ? JOB_LEFT : JOB_FILES_REMOVE); break;
    }
}

/* ---- the coordinator's share ---- */

static void plan_done(void *arg, int status, const struct err *e)
{
    struct voters *v = arg;
    v->txn_pending = false;
    if (status && status != E_CONFLICT) /* after a conflict the next tick sees why */
        log_warn("change of voters: %s", e->msg);
}

static bool in_office(const struct voters *v, const struct cdb_view *view, const struct cdb_cluster **ret)
{
    *ret = cdb_cluster_get(view, "cluster");
    return *ret && !strcmp((*ret)->coordinator, v->conf.self) && cdb_link_local_leader(v->conf.link);
}

static void set_voter(struct cdb_txn *t, const char *node, bool on)
{
    cdb_txn_require_exists(t, CDB_T_NODE, node);
    cdb_txn_set_bool(t, CDB_T_NODE, node, CDB_NODE_voter, on);
}

static void tick_plan(struct voters *v, const struct cdb_view *view, const struct cdb_cluster *cl)
{
    struct voters_plan p;
    voters_plan(view, dead_ms, v, &p);
    track_sweep(v->dead);
    if ((!p.promote[0] && !p.demote[0]) || v->txn_pending)
        return;
    log_info("voters: %s%s%s%s", p.promote[0] ? "promote node " : "", p.promote, p.demote[0] ? " demote node " : "", p.demote);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_CLUSTER, cl->id, CDB_CLUSTER_coordinator_term, cl->coordinator_term);
    if (p.promote[0])
        set_voter(t, p.promote, true);
    if (p.demote[0])
        set_voter(t, p.demote, false);
    v->txn_pending = true;
    cdb_txn_commit(v->conf.link, t, "change voters", plan_done, v);
}

/* The node address if RAFT server `remote` of database `db` belongs to no voter; "" otherwise. */
static void stranger(const struct voters *v, const struct cdb_view *view, int db, const char *remote, char *out, size_t size)
{
    out[0] = '\0';
    for (size_t i = 0; i < cdb_node_count(view); i++) {
        const struct cdb_node *n = cdb_node_at(view, i);
        if (!n->voter || !n->addresses.n)
            continue;
        char *r = db_remote(n->addresses.v[0], v->conf.db.raft_port[db]);
        bool same = !strcmp(r, remote);
        free(r);
        if (same)
            return;
    }
    const char *host = strchr(remote, ':'), *end = strrchr(remote, ':');
    if (!host || end <= host)
        return;
    host++;
    if (*host == '[' && end[-1] == ']') {
        host++;
        end--;
    }
    snprintf(out, size, "%.*s", (int)(end - host), host);
}

static void kick_strangers(struct voters *v, const struct cdb_view *view)
{
    v->kick[0] = '\0';
    for (int db = 0; db < DB_N; db++)
        for (int i = 0; i < v->db[db].n_servers; i++) {
            char host[128];
            stranger(v, view, db, v->db[db].servers[i].address, host, sizeof host);
            if (host[0] && !v->db[db].servers[i].self && track_seen(v->strangers, host) >= VOTERS_KICK_MS)
                memcpy(v->kick, host, sizeof host);
        }
    track_sweep(v->strangers);
    if (v->kick[0]) {
        log_info("the database server at %s belongs to no voter: removed from the databases", v->kick);
        job_start(v, JOB_KICK);
    }
}

/* ---- ticking ---- */

static void job_result(struct voters *v, enum job job)
{
    const struct cdb_view *view = cdb_link_view(v->conf.link);
    const struct cdb_cluster *cl;
    if (v->status && job != JOB_STATUS)
        log_warn("%s", v->err.msg); /* tried again with the next tick */
    switch (job) {
    case JOB_FILES_JOIN:
        if (!v->status)
            open_server(v);
        break;
    case JOB_STATUS:
        if (v->status)
            break;
        if (v->sm.state == JOINING && is_member(v->db)) {
            sm_move(&v->sm, SERVING);
            log_info("this node serves the databases");
            v->conf.serving(true, v->conf.arg);
        } else if (v->sm.state == SERVING && view && in_office(v, view, &cl)) {
            kick_strangers(v, view);
        }
        break;
    case JOB_LEFT:
        if (v->left) {
            dbserver_stop(v->server);
            v->server = NULL;
            job_start(v, JOB_FILES_REMOVE);
        }
        break;
    case JOB_FILES_REMOVE:
        if (!v->status)
            sm_move(&v->sm, OUT);
        break;
    case JOB_NONE: case JOB_LEAVE: case JOB_KICK: break;
    }
}

static void tick(struct voters *v)
{
    const struct cdb_view *view = cdb_link_view(v->conf.link);
    const struct cdb_cluster *cl;
    if (v->job != JOB_NONE)
        return;
    if (!view) {
        if (v->sm.state == JOINING) /* a quorum of servers that just start has no view to give yet */
            job_start(v, JOB_STATUS);
        return;
    }
    tick_self(v, view);
    if (!in_office(v, view, &cl))
        return;
    tick_plan(v, view, cl);
    if (v->sm.state == SERVING && v->job == JOB_NONE)
        job_start(v, JOB_STATUS);
}

static void on_timer(uv_timer_t *t) { tick(t->data); }

void voters_changed(struct voters *v) { tick(v); }

bool voters_serving(const struct voters *v) { return v->sm.state == SERVING; }

char *voters_remotes(const struct voters *v)
{
    const struct cdb_view *view = cdb_link_view(v->conf.link);
    if (v->sm.state == SERVING)
        return db_sock(&v->conf.db);
    if (!view)
        return NULL;
    const char **addresses = xcalloc(cdb_node_count(view) + 1, sizeof *addresses);
    size_t n = 0;
    for (size_t i = 0; i < cdb_node_count(view); i++) {
        const struct cdb_node *node = cdb_node_at(view, i);
        if (node->voter && node->addresses.n)
            addresses[n++] = node->addresses.v[0];
    }
    char *r = n ? db_remotes(n, addresses, v->conf.db.client_port) : NULL;
    free(addresses);
    return r;
}

int voters_open(const struct voters_conf *c, struct voters **ret_voters, struct err *e)
{
    struct voters *v = xcalloc(1, sizeof *v);
    v->conf = *c;
    sm_init(&v->sm, states, N_STATES, OUT, "voters");
    if (db_files_exist(&c->db)) {
        int r = dbserver_open(c->loop, &c->db, &v->server, e);
        if (r) {
            free(v);
            return r;
        }
        sm_move(&v->sm, JOINING);
    }
    uv_timer_init(c->loop, &v->timer);
    v->timer.data = v;
    uv_timer_start(&v->timer, on_timer, 0, TICK_MS);
    uv_unref((uv_handle_t *)&v->timer);
    *ret_voters = v;
    return 0;
}

static void timer_closed(uv_handle_t *h)
{
    struct voters *v = h->data;
    v->timer_closed = true;
    maybe_free(v);
}

void voters_close(struct voters *v)
{
    if (!v)
        return;
    v->closing = true;
    cdb_txn_cancel(v->conf.link, v);
    dbserver_close(v->server);
    v->server = NULL;
    uv_close((uv_handle_t *)&v->timer, timer_closed);
}
