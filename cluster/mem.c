/* The in-memory twin of the OVSDB client: same semantics without a server, for unit tests and the simulator.
 * Transactions are carried out inside cdb_txn_commit(), under the lock; results still arrive through the mailbox. */
#include <assert.h>
#include <stdlib.h>
#include "base/buf.h"
#include "cluster/link.h"

struct mem {
    struct cdb db;
    bool parked;
    struct txn_list waiting; /* while parked */
    int fail_n, fail_code;
    bool fail_applied;
};

static const struct cdb_ops mem_ops;

static struct mem *mem_of(struct cdb *db)
{
    assert(db->ops == &mem_ops);
    return (struct mem *)db; /* first member */
}

static void run_locked(struct mem *m, struct cdb_txn *t)
{
    int forced = m->fail_n > 0 ? m->fail_code : 0;
    if (m->fail_n > 0)
        m->fail_n--;
    if (t->canceled) {
        db_finish_locked(&m->db, t, E_CANCELED, NULL);
        return;
    }
    struct err e = {0};
    if (forced && !(forced == E_UNKNOWN && m->fail_applied)) {
        err_set(&e, forced, "forced by cdb_mem_fail_next");
        db_finish_locked(&m->db, t, forced, &e);
        return;
    }
    struct view_edit *edit = view_edit_new(m->db.view);
    int status = txn_apply(t, m->db.view, edit, &e);
    if (status) {
        view_edit_abort(edit);
    } else {
        const struct cdb_view *v = view_edit_end(edit);
        db_publish_locked(&m->db, v, m->db.connected, m->db.local_leader);
        cdb_view_unref(v);
    }
    if (forced)
        status = err_set(&e, forced, "forced by cdb_mem_fail_next");
    db_finish_locked(&m->db, t, status, &e);
}

static void mem_submit(struct cdb *db, struct cdb_txn *t)
{
    struct mem *m = mem_of(db);
    pthread_mutex_lock(&db->lock);
    if (m->parked)
        TAILQ_INSERT_TAIL(&m->waiting, t, queue);
    else
        run_locked(m, t);
    pthread_mutex_unlock(&db->lock);
}

static void mem_canceled(struct cdb *db)
{
    struct mem *m = mem_of(db);
    pthread_mutex_lock(&db->lock);
    struct cdb_txn *t, *next;
    for (t = TAILQ_FIRST(&m->waiting); t; t = next) {
        next = TAILQ_NEXT(t, queue);
        if (t->canceled) {
            TAILQ_REMOVE(&m->waiting, t, queue);
            db_finish_locked(db, t, E_CANCELED, NULL);
        }
    }
    pthread_mutex_unlock(&db->lock);
}

static void mem_set_remotes(struct cdb *db, const char *remotes)
{
}

static void mem_close(struct cdb *db)
{
    struct mem *m = mem_of(db);
    struct cdb_txn *t;
    while ((t = TAILQ_FIRST(&m->waiting))) {
        TAILQ_REMOVE(&m->waiting, t, queue);
        db_finish(db, t, E_CANCELED, NULL);
    }
    db_destroy(db);
    free(m);
}

static const struct cdb_ops mem_ops = {mem_submit, mem_canceled, mem_set_remotes, mem_close};

struct cdb *cdb_mem_open(void)
{
    struct mem *m = xcalloc(1, sizeof *m);
    db_init(&m->db, &mem_ops);
    TAILQ_INIT(&m->waiting);
    m->db.view = view_empty();
    m->db.connected = m->db.local_leader = true;
    return &m->db;
}

void cdb_mem_fail_next(struct cdb *db, int n, int code, bool applied)
{
    struct mem *m = mem_of(db);
    pthread_mutex_lock(&db->lock);
    m->fail_n = n;
    m->fail_code = code;
    m->fail_applied = applied;
    pthread_mutex_unlock(&db->lock);
}

/* Parked stands for "no quorum": connected is false meanwhile. */
void cdb_mem_park(struct cdb *db, bool parked)
{
    struct mem *m = mem_of(db);
    pthread_mutex_lock(&db->lock);
    m->parked = parked;
    db_publish_locked(db, NULL, !parked, db->local_leader);
    struct cdb_txn *t;
    while (!parked && (t = TAILQ_FIRST(&m->waiting))) {
        TAILQ_REMOVE(&m->waiting, t, queue);
        run_locked(m, t);
    }
    pthread_mutex_unlock(&db->lock);
}
