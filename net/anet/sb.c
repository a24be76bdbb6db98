/* The southbound database and database leadership (sb.h). */
#include <config.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "openvswitch/poll-loop.h"
#include "ovn-sb-idl.h"
#include "ovsdb-idl.h"
#include "timeval.h"

#include "base/buf.h"
#include "base/log.h"
#include "cluster/dbthread.h"
#include "cluster/leaderwatch.h"
#include "net/anet/remote.h"
#include "net/anet/sb.h"

LOG_MODULE("anet")

#define RETRY_MS 200

struct names { size_t n; char **v; };

struct sb {
    void (*news)(void *);
    void *news_arg;
    pthread_mutex_t lock;      /* guards this block */
    char *remote, *server;
    bool remote_changed, nodes_changed;
    struct names nodes;
    int64_t term;
    struct sb_status status;

    /* database thread only */
    struct ovsdb_idl *idl;
    struct remote link;
    struct leaderwatch *nb_watch, *sb_watch; /* NULL unless this node has a server */
    struct ovsdb_idl_txn *txn;
    struct names members;
    int64_t my_term;
    unsigned seqno;
    bool dirty, leader_seen;
    long long retry_at;
};

static void names_free(struct names *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->v[i]);
    free(s->v);
    *s = (struct names){0};
}

static struct names names_copy(const char *const *v, size_t n)
{
    struct names s = {n, xcalloc(n + 1, sizeof(char *))};
    for (size_t i = 0; i < n; i++)
        s.v[i] = xstrdup(v[i]);
    return s;
}

static bool names_has(const struct names *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->v[i], name))
            return true;
    return false;
}

/* ---- database thread ---- */

static void watch_server(struct sb *sb, const char *server)
{
    leaderwatch_close(sb->nb_watch);
    leaderwatch_close(sb->sb_watch);
    sb->nb_watch = *server ? leaderwatch_open(server, "OVN_Northbound") : NULL;
    sb->sb_watch = *server ? leaderwatch_open(server, "OVN_Southbound") : NULL;
    sb->leader_seen = false;
}

static void open_idl(struct sb *sb)
{
    sb->idl = ovsdb_idl_create_unconnected(&sbrec_idl_class, false);
    ovsdb_idl_set_leader_only(sb->idl, false);
    ovsdb_idl_add_table(sb->idl, &sbrec_table_sb_global);
    ovsdb_idl_add_column(sb->idl, &sbrec_sb_global_col_external_ids);
    ovsdb_idl_add_table(sb->idl, &sbrec_table_chassis);
    ovsdb_idl_add_column(sb->idl, &sbrec_chassis_col_name);
    ovsdb_idl_add_table(sb->idl, &sbrec_table_chassis_private);
    ovsdb_idl_add_column(sb->idl, &sbrec_chassis_private_col_name);
}

static void close_all(void *arg)
{
    struct sb *sb = arg;
    watch_server(sb, "");
    if (sb->txn) {
        ovsdb_idl_txn_abort(sb->txn);
        ovsdb_idl_txn_destroy(sb->txn);
    }
    ovsdb_idl_destroy(sb->idl);
    remote_free(&sb->link);
}

static void take_input(struct sb *sb)
{
    char *remote = NULL, *server = NULL;
    pthread_mutex_lock(&sb->lock);
    if (sb->remote_changed) {
        remote = xstrdup(sb->remote);
        server = xstrdup(sb->server);
        sb->remote_changed = false;
    }
    if (sb->nodes_changed) {
        names_free(&sb->members);
        sb->members = names_copy((const char *const *)sb->nodes.v, sb->nodes.n);
        sb->nodes_changed = false;
        sb->dirty = true;
    }
    if (sb->my_term != sb->term) {
        sb->my_term = sb->term;
        sb->dirty = true;
    }
    pthread_mutex_unlock(&sb->lock);
    if (remote) {
        if (!sb->idl)
            open_idl(sb);
        remote_set(&sb->link, sb->idl, remote);
        watch_server(sb, server);
        free(remote);
        free(server);
    }
}

/* What is to be changed; false when nothing. */
static bool fill_txn(struct sb *sb)
{
    bool any = false;
    if (!sbrec_sb_global_first(sb->idl)) {
        sbrec_sb_global_insert(sb->txn); /* the table holds one row: of two inserters one is refused and sees the other's */
        any = true;
    }
    if (sb->my_term <= 0 || !sb->members.n)
        return any;
    const struct sbrec_chassis *c;
    SBREC_CHASSIS_FOR_EACH_SAFE (c, sb->idl) {
        if (!names_has(&sb->members, c->name)) {
            log_info("chassis %s is of no member: removed", c->name);
            sbrec_chassis_delete(c);
            any = true;
        }
    }
    const struct sbrec_chassis_private *p;
    SBREC_CHASSIS_PRIVATE_FOR_EACH_SAFE (p, sb->idl) {
        if (!names_has(&sb->members, p->name)) {
            sbrec_chassis_private_delete(p);
            any = true;
        }
    }
    return any;
}

static void finish(struct sb *sb)
{
    enum ovsdb_idl_txn_status st = ovsdb_idl_txn_commit(sb->txn);
    if (st == TXN_INCOMPLETE)
        return;
    if (st == TXN_ERROR)
        log_dbg("OVN southbound database refused: %s", ovsdb_idl_txn_get_error(sb->txn));
    if (st != TXN_SUCCESS && st != TXN_UNCHANGED) {
        sb->dirty = true;
        sb->retry_at = time_msec() + RETRY_MS;
    }
    ovsdb_idl_txn_destroy(sb->txn);
    sb->txn = NULL;
}

static void act(struct sb *sb)
{
    sb->dirty = false;
    sb->txn = ovsdb_idl_txn_create(sb->idl);
    if (fill_txn(sb)) {
        finish(sb);
        return;
    }
    ovsdb_idl_txn_abort(sb->txn);
    ovsdb_idl_txn_destroy(sb->txn);
    sb->txn = NULL;
}

static bool publish_sb(struct sb *sb, bool connected)
{
    struct names now = {0};
    const struct sbrec_chassis *c;
    SBREC_CHASSIS_FOR_EACH (c, sb->idl)
        now.n++;
    now.v = xcalloc(now.n + 1, sizeof *now.v);
    now.n = 0;
    SBREC_CHASSIS_FOR_EACH (c, sb->idl)
        now.v[now.n++] = xstrdup(c->name);
    bool ready = connected && sbrec_sb_global_first(sb->idl) && !sb->txn;
    pthread_mutex_lock(&sb->lock);
    struct names old = {sb->status.n_chassis, sb->status.chassis};
    bool changed = sb->status.connected != connected || sb->status.ready != ready || old.n != now.n;
    sb->status.connected = connected;
    sb->status.ready = ready;
    sb->status.n_chassis = now.n;
    sb->status.chassis = now.v;
    pthread_mutex_unlock(&sb->lock);
    names_free(&old);
    return changed;
}

static bool publish_leader(struct sb *sb)
{
    bool nb_leader = sb->nb_watch && leaderwatch_leader(sb->nb_watch);
    bool sb_leader = sb->sb_watch && leaderwatch_leader(sb->sb_watch);
    bool known = sb->nb_watch && leaderwatch_known(sb->nb_watch) && sb->sb_watch && leaderwatch_known(sb->sb_watch);
    pthread_mutex_lock(&sb->lock);
    struct sb_status *s = &sb->status;
    bool changed = nb_leader != s->nb_leader || sb_leader != s->sb_leader;
    if (sb->leader_seen)
        s->leader_gains += (nb_leader && !s->nb_leader) || (sb_leader && !s->sb_leader);
    s->nb_leader = nb_leader;
    s->sb_leader = sb_leader;
    sb->leader_seen |= known; /* what was so when we came is no change */
    pthread_mutex_unlock(&sb->lock);
    return changed;
}

static void run(void *arg)
{
    struct sb *sb = arg;
    bool changed = false;
    if (!sb->txn)
        take_input(sb);
    if (!sb->idl)
        return;
    ovsdb_idl_run(sb->idl);
    if (sb->nb_watch) {
        leaderwatch_run(sb->nb_watch);
        leaderwatch_run(sb->sb_watch);
    }
    bool had_txn = sb->txn != NULL;
    if (sb->txn)
        finish(sb);
    bool connected = remote_run(&sb->link, sb->idl);
    bool news = ovsdb_idl_get_seqno(sb->idl) != sb->seqno;
    if (news) {
        sb->seqno = ovsdb_idl_get_seqno(sb->idl);
        sb->dirty = true;
    }
    if (sb->retry_at && time_msec() >= sb->retry_at)
        sb->retry_at = 0;
    if (sb->dirty && connected && !sb->txn && !sb->retry_at)
        act(sb);
    if (news || had_txn || sb->status.connected != connected)
        changed = publish_sb(sb, connected);
    changed |= publish_leader(sb);
    if (changed)
        sb->news(sb->news_arg);
}

static void wait_for(void *arg)
{
    struct sb *sb = arg;
    if (!sb->idl)
        return;
    ovsdb_idl_wait(sb->idl);
    remote_wait(&sb->link);
    if (sb->nb_watch) {
        leaderwatch_wait(sb->nb_watch);
        leaderwatch_wait(sb->sb_watch);
    }
    if (sb->txn)
        ovsdb_idl_txn_wait(sb->txn);
    else if (sb->retry_at)
        poll_timer_wait_until(sb->retry_at);
}

/* ---- main thread ---- */

struct sb *sb_open(void (*news)(void *arg), void *arg)
{
    struct sb *sb = xcalloc(1, sizeof *sb);
    sb->news = news;
    sb->news_arg = arg;
    pthread_mutex_init(&sb->lock, NULL);
    sb->remote = xstrdup("");
    sb->server = xstrdup("");
    dbthread_ref();
    dbthread_add(run, wait_for, sb);
    return sb;
}

void sb_close(struct sb *sb)
{
    if (!sb)
        return;
    dbthread_remove(sb);
    dbthread_call(close_all, sb);
    dbthread_unref();
    names_free(&sb->nodes);
    names_free(&sb->members);
    sb_status_free(&sb->status);
    free(sb->remote);
    free(sb->server);
    pthread_mutex_destroy(&sb->lock);
    free(sb);
}

void sb_set_remote(struct sb *sb, const char *remote, const char *local_server)
{
    pthread_mutex_lock(&sb->lock);
    if (strcmp(sb->remote, remote) || strcmp(sb->server, local_server)) {
        free(sb->remote);
        free(sb->server);
        sb->remote = xstrdup(remote);
        sb->server = xstrdup(local_server);
        sb->remote_changed = true;
    }
    pthread_mutex_unlock(&sb->lock);
    dbthread_wake();
}

void sb_set_nodes(struct sb *sb, const char *const *nodes, size_t n)
{
    pthread_mutex_lock(&sb->lock);
    bool same = n == sb->nodes.n;
    for (size_t i = 0; i < n && same; i++)
        same = !strcmp(nodes[i], sb->nodes.v[i]);
    if (!same) {
        names_free(&sb->nodes);
        sb->nodes = names_copy(nodes, n);
        sb->nodes_changed = true;
    }
    pthread_mutex_unlock(&sb->lock);
    dbthread_wake();
}

void sb_set_term(struct sb *sb, int64_t term)
{
    pthread_mutex_lock(&sb->lock);
    sb->term = term;
    pthread_mutex_unlock(&sb->lock);
    dbthread_wake();
}

void sb_get_status(struct sb *sb, struct sb_status *ret)
{
    pthread_mutex_lock(&sb->lock);
    *ret = sb->status;
    struct names copy = names_copy((const char *const *)sb->status.chassis, sb->status.n_chassis);
    ret->chassis = copy.v;
    pthread_mutex_unlock(&sb->lock);
}

void sb_status_free(struct sb_status *s)
{
    struct names n = {s->n_chassis, s->chassis};
    names_free(&n);
    *s = (struct sb_status){0};
}
