/* Links: how one loop follows the database and commits to it. See link.h. */
#include "cluster/link.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/log.h"

LOG_MODULE("cdb");

struct cdb_link {
    struct cdb *db;
    struct mailbox mailbox;
    cdb_changed *changed;
    void *arg;

    /* the loop's */
    const struct cdb_view *view;
    bool connected, local_leader, closed;
    struct txn_list pending;

    /* under db->lock */
    struct mail news;
    bool news_posted;
    TAILQ_ENTRY(cdb_link) entry;
};

void db_init(struct cdb *db, const struct cdb_ops *ops)
{
    db->ops = ops;
    pthread_mutex_init(&db->lock, NULL);
    TAILQ_INIT(&db->links);
}

void db_destroy(struct cdb *db)
{
    assert(TAILQ_EMPTY(&db->links));
    cdb_view_unref(db->view);
    pthread_mutex_destroy(&db->lock);
}

static void link_post_news(struct cdb_link *l)
{
    if (l->news_posted)
        return;
    l->news_posted = true;
    mailbox_post(&l->mailbox, &l->news);
}

void db_publish_locked(struct cdb *db, const struct cdb_view *view, bool connected, bool local_leader)
{
    if ((!view || view == db->view) && connected == db->connected && local_leader == db->local_leader)
        return;
    if (view && view != db->view) {
        const struct cdb_view *old = db->view;
        db->view = cdb_view_ref(view);
        cdb_view_unref(old);
    }
    db->connected = connected;
    db->local_leader = local_leader;
    struct cdb_link *l;
    TAILQ_FOREACH (l, &db->links, entry)
        link_post_news(l);
}

void db_publish(struct cdb *db, const struct cdb_view *view, bool connected, bool local_leader)
{
    pthread_mutex_lock(&db->lock);
    db_publish_locked(db, view, connected, local_leader);
    pthread_mutex_unlock(&db->lock);
}

/* Installs what is current. The old view goes here, at the beginning of a callback, never while one uses it. */
static void link_take_news(struct cdb_link *l)
{
    pthread_mutex_lock(&l->db->lock);
    const struct cdb_view *old = l->view, *now = l->db->view;
    bool differs = now != old || l->connected != l->db->connected || l->local_leader != l->db->local_leader;
    if (now && now != old)
        l->view = cdb_view_ref(now);
    l->connected = l->db->connected;
    l->local_leader = l->db->local_leader;
    pthread_mutex_unlock(&l->db->lock);
    if (l->view != old)
        cdb_view_unref(old);
    if (differs && l->changed)
        l->changed(l, l->arg);
}

static void news_run(struct mail *m)
{
    struct cdb_link *l = (struct cdb_link *)((char *)m - offsetof(struct cdb_link, news));
    if (l->closed)
        return;
    pthread_mutex_lock(&l->db->lock);
    l->news_posted = false;
    pthread_mutex_unlock(&l->db->lock);
    link_take_news(l);
}

static void result_run(struct mail *m)
{
    struct cdb_txn *t = (struct cdb_txn *)((char *)m - offsetof(struct cdb_txn, mail));
    if (t->link)
        link_take_news(t->link); /* may close the link (t->link is NULL then) or cancel `t` (t->fn is NULL then) */
    if (t->link)
        TAILQ_REMOVE(&t->link->pending, t, entry);
    if (t->link && t->fn)
        t->fn(t->arg, t->status, &t->err);
    txn_destroy(t);
}

void db_finish_locked(struct cdb *db, struct cdb_txn *t, int status, const struct err *e)
{
    t->status = status;
    if (e)
        t->err = *e;
    else
        err_set(&t->err, status, "%s", status ? err_code_name(status) : "");
    if (status)
        log_dbg("transaction \"%s\": %s", t->note, t->err.msg);
    if (!t->link) {
        txn_destroy(t);
        return;
    }
    t->mail.run = result_run;
    mailbox_post(&t->link->mailbox, &t->mail);
}

void db_finish(struct cdb *db, struct cdb_txn *t, int status, const struct err *e)
{
    pthread_mutex_lock(&db->lock);
    db_finish_locked(db, t, status, e);
    pthread_mutex_unlock(&db->lock);
}

/* ---- cdb.h ---- */

struct cdb_link *cdb_link_open(struct cdb *db, uv_loop_t *loop, cdb_changed *fn, void *arg)
{
    struct cdb_link *l = xcalloc(1, sizeof *l);
    l->db = db;
    l->changed = fn;
    l->arg = arg;
    l->news.run = news_run;
    TAILQ_INIT(&l->pending);
    mailbox_open(&l->mailbox, loop);
    pthread_mutex_lock(&db->lock);
    TAILQ_INSERT_TAIL(&db->links, l, entry);
    if (db->view)
        link_post_news(l);
    pthread_mutex_unlock(&db->lock);
    return l;
}

static void link_closed(void *arg)
{
    struct cdb_link *l = arg;
    cdb_view_unref(l->view);
    free(l);
}

void cdb_link_close(struct cdb_link *l)
{
    if (!l)
        return;
    assert(!l->closed);
    struct cdb *db = l->db;
    pthread_mutex_lock(&db->lock);
    l->closed = true;
    TAILQ_REMOVE(&db->links, l, entry);
    struct cdb_txn *t, *next;
    for (t = TAILQ_FIRST(&l->pending); t; t = next) {
        next = TAILQ_NEXT(t, entry);
        t->link = NULL;
        t->canceled = true;
    }
    pthread_mutex_unlock(&db->lock);
    db->ops->canceled(db);
    mailbox_close(&l->mailbox, link_closed, l);
}

const struct cdb_view *cdb_link_view(const struct cdb_link *l)
{
    return l->view;
}

bool cdb_link_connected(const struct cdb_link *l)
{
    return l->connected;
}

bool cdb_link_local_leader(const struct cdb_link *l)
{
    return l->local_leader;
}

void cdb_txn_commit(struct cdb_link *l, struct cdb_txn *t, const char *note, cdb_txn_done *fn, void *arg)
{
    assert(!t->note && !l->closed);
    if (l->view)
        txn_trim_logs(t, l->view);
    t->note = xstrdup(note ? note : "");
    t->link = l;
    t->source = l;
    t->fn = fn;
    t->arg = arg;
    TAILQ_INSERT_TAIL(&l->pending, t, entry);
    l->db->ops->submit(l->db, t);
}

void cdb_txn_cancel(struct cdb_link *l, void *arg)
{
    bool any = false;
    struct cdb_txn *t;
    pthread_mutex_lock(&l->db->lock);
    TAILQ_FOREACH (t, &l->pending, entry)
        if (t->arg == arg && t->fn) {
            t->fn = NULL;
            t->canceled = any = true;
        }
    pthread_mutex_unlock(&l->db->lock);
    if (any)
        l->db->ops->canceled(l->db);
}

void cdb_set_remotes(struct cdb *db, const char *remotes)
{
    db->ops->set_remotes(db, remotes);
}

void cdb_close(struct cdb *db)
{
    if (db)
        db->ops->close(db);
}
