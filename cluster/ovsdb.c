/* cdb over OVSDB.
 *
 * Built on libopenvswitch's ovsdb_cs, the layer below its IDL: connection, failover between remotes, monitoring with fast
 * resynchronisation. Not the IDL itself, for three reasons: its transactions cannot demand that a row is absent, they do not
 * notice that a row to delete or change is gone, and preconditions are compared with the client's copy, which lags; and our
 * views would duplicate its replica. Here every precondition is a `wait` operation that the server evaluates with the
 * transaction.
 *
 * Exactly once. A reply can be lost with its connection, and the server itself executes a transaction again after a change
 * of RAFT leader, even if the first execution was committed: then preconditions fail because of the transaction's own
 * effect. So each client has a row in the table "Client" with a marker, `txn`: every transaction requires the marker that it
 * saw last and sets a new one, random, of its own.
 *  - Success is the marker's arrival, by the ordinary monitor: the view then includes the transaction.
 *  - An unknown outcome is resolved by sending the same again. If the marker in the database is this transaction's, it had
 *    been carried out. If not, it is carried out now, and an earlier copy that still lies in a server's queue can never be,
 *    because its required marker is gone.
 * This needs the client's name to itself: two open clients of one name would overwrite each other's marker.
 * One transaction at a time is on its way (the server commits one at a time, too: each RAFT entry names its predecessor).
 *
 * Threads: run() and wait() in the database thread. cdb.lock guards `queue`, `remotes_next` and what link.h says.
 */
#include <config.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/id.h"
#include "base/log.h"
#include "base/metric.h"
#include "cluster/dbthread.h"
#include "cluster/leaderwatch.h"
#include "cluster/link.h"
#include "cluster/ovsdb_json.h"
#include "jsonrpc.h"
#include "openvswitch/hmap.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "ovsdb-cs.h"
#include "ovsdb-error.h"
#include "timeval.h"

LOG_MODULE("cdb");

METRIC_COUNTER(m_transactions, "cohort_cdb_transactions_total", "Transactions that this client finished, whatever their result");
METRIC_COUNTER(m_resent, "cohort_cdb_resent_total", "Transactions sent again because their outcome was not known");
METRIC_COUNTER(m_rescued, "cohort_cdb_rescued_total", "Transactions found to be carried out although their reply was lost or negative");

/* ovsdb_cs waits up to 8 s between attempts; without quorum for a while that would be our delay, too. */
#define REOPEN_LOCAL_MS 500
#define REOPEN_REMOTE_MS 3000
#define PROBE_MS 3000 /* a silent server is given up after two of these */
#define RETRY_MS 100

struct row_entry { /* the row with this _uuid */
    struct hmap_node node;
    struct uuid uuid;
    const void *row; /* one reference */
};

struct odb {
    struct cdb db;
    struct txn_list queue;  /* under db.lock */
    char *remotes_next;     /* under db.lock; NULL: unchanged */

    /* the database thread's */
    struct ovsdb_cs *cs;
    struct leaderwatch *watch; /* NULL: no server here */
    char *remotes;
    long long reopen_at, retry_at;
    const struct cdb_view *view;
    struct hmap rows[CDB_N_TABLES];
    bool contact;              /* the view is real */

    char client_id[64];
    struct uuid client;
    char *marker;              /* ours as last seen; NULL: our row is absent */
    struct cdb_txn *current;
    char current_id[ID_LEN + 1];
    int sendings;              /* of the current one */
    bool marker_refused;       /* a copy of it met a marker that it did not expect */
    struct json *request_id;   /* of the copy that is on its way; NULL: none is */
    struct txn_json sent;
};

static const struct cdb_ops odb_ops;

static struct odb *odb_of(struct cdb *db)
{
    assert(db->ops == &odb_ops);
    return (struct odb *)db; /* first member */
}

/* ---- the replica ---- */

static struct row_entry *entry_find(struct odb *o, int t, const struct uuid *u)
{
    struct row_entry *e;
    HMAP_FOR_EACH_WITH_HASH (e, node, uuid_hash(u), &o->rows[t])
        if (uuid_equals(&e->uuid, u))
            return e;
    return NULL;
}

static void entry_remove(struct odb *o, int t, struct row_entry *e)
{
    hmap_remove(&o->rows[t], &e->node);
    row_unref(e->row);
    free(e);
}

static void replica_clear(struct odb *o)
{
    for (int t = 0; t < CDB_N_TABLES; t++) {
        struct row_entry *e;
        HMAP_FOR_EACH_SAFE (e, node, &o->rows[t])
            entry_remove(o, t, e);
    }
    free(o->marker);
    o->marker = NULL;
}

static int table_by_name(const char *name)
{
    for (int t = 0; t < CDB_N_TABLES; t++)
        if (!strcmp(cdb_tables[t].name, name))
            return t;
    return -1;
}

static void take_row(struct odb *o, struct view_edit *edit, enum cdb_table t, const struct ovsdb_cs_row_update *ru)
{
    struct row_entry *e = entry_find(o, t, &ru->row_uuid);
    if (ru->type == OVSDB_CS_ROW_DELETE) {
        if (e) {
            view_edit_delete(edit, t, row_id(e->row));
            entry_remove(o, t, e);
        }
        return;
    }
    bool modify = ru->type == OVSDB_CS_ROW_XOR || ru->type == OVSDB_CS_ROW_UPDATE;
    const struct json *id = shash_find_data(ru->columns, "id");
    if (modify ? !e : !id || id->type != JSON_STRING) {
        log_warn("%s: update of a row that is not known", cdb_tables[t].name);
        return;
    }
    if (e && !modify) { /* replaced: its id may differ */
        view_edit_delete(edit, t, row_id(e->row));
        entry_remove(o, t, e);
        e = NULL;
    }
    void *row = modify ? row_clone(e->row) : row_new(t, json_string(id));
    for (int i = 0; i < cdb_tables[t].n_columns; i++) {
        const struct cdb_column *c = row_column(t, i);
        const struct json *value = shash_find_data(ru->columns, c->name);
        if (value && !cell_from_json(c, row_cell(row, c), value, ru->type == OVSDB_CS_ROW_XOR))
            log_warn("%s %s: column %s has an unexpected type", cdb_tables[t].name, row_id(row), c->name);
    }
    if (!e) {
        e = xcalloc(1, sizeof *e);
        e->uuid = ru->row_uuid;
        hmap_insert(&o->rows[t], &e->node, uuid_hash(&e->uuid));
    } else {
        row_unref(e->row);
    }
    e->row = row_ref(row);
    view_edit_put(edit, t, row);
}

static void take_marker(struct odb *o, const struct ovsdb_cs_row_update *ru)
{
    if (!uuid_equals(&ru->row_uuid, &o->client))
        return;
    const struct json *v = ru->type == OVSDB_CS_ROW_DELETE ? NULL : shash_find_data(ru->columns, "txn");
    if (v && v->type == JSON_STRING) {
        free(o->marker);
        o->marker = xstrdup(json_string(v));
    } else if (ru->type == OVSDB_CS_ROW_DELETE) {
        free(o->marker);
        o->marker = NULL;
    } else if (ru->type == OVSDB_CS_ROW_INSERT && !o->marker) {
        o->marker = xstrdup("");
    }
}

static void take_update(struct odb *o, const struct ovsdb_cs_update_event *u)
{
    struct ovsdb_cs_db_update *du;
    struct ovsdb_error *error = ovsdb_cs_parse_db_update(u->table_updates, u->version, &du);
    if (error) {
        char *text = ovsdb_error_to_string_free(error);
        log_err("the database sent an update that cannot be read: %s", text);
        free(text);
        ovsdb_cs_flag_inconsistency(o->cs); /* begin again from a whole copy */
        return;
    }
    if (u->clear) {
        replica_clear(o);
        cdb_view_unref(o->view);
        o->view = view_empty();
    }
    struct view_edit *edit = view_edit_new(o->view);
    for (size_t i = 0; i < du->n; i++) {
        const struct ovsdb_cs_table_update *tu = &du->table_updates[i];
        int t = table_by_name(tu->table_name);
        for (size_t k = 0; k < tu->n; k++) {
            if (t >= 0)
                take_row(o, edit, t, &tu->row_updates[k]);
            else if (!strcmp(tu->table_name, CLIENT_TABLE))
                take_marker(o, &tu->row_updates[k]);
        }
    }
    const struct cdb_view *next = view_edit_end(edit);
    cdb_view_unref(o->view);
    o->view = next;
    o->contact = true;
    ovsdb_cs_db_update_destroy(du);
}

/* ---- transactions ---- */

static void forget_sent(struct odb *o)
{
    json_destroy(o->request_id);
    o->request_id = NULL;
    txn_json_clear(&o->sent);
}

static void current_end(struct odb *o, int status, const struct err *e)
{
    struct cdb_txn *t = o->current;
    if (o->request_id)
        ovsdb_cs_forget_transaction(o->cs, o->request_id);
    forget_sent(o);
    o->current = NULL;
    o->retry_at = 0;
    metric_add(&m_transactions, 1);
    db_finish(&o->db, t, status, e);
}

static void publish(struct odb *o)
{
    if (!o->contact)
        return;
    db_publish(&o->db, o->view, ovsdb_cs_may_send_transaction(o->cs), leaderwatch_leader(o->watch));
}

static void take_reply(struct odb *o, const struct jsonrpc_msg *m)
{
    if (!o->current || !o->request_id || !json_equal(m->id, o->request_id))
        return;
    struct err e = {0};
    int status = 0;
    enum txn_verdict v = txn_judge(&o->sent, m->type == JSONRPC_ERROR, m->result, &status, &e);
    forget_sent(o);
    switch (v) {
    case TXN_V_DONE: /* its marker has just come or is about to (finish_if_marked) */
        o->retry_at = time_msec() + PROBE_MS;
        break;
    case TXN_V_MARKER: /* if the marker is this transaction's, finish_if_marked() ends it; otherwise it is sent again */
        o->marker_refused = true;
        o->retry_at = time_msec() + RETRY_MS;
        break;
    case TXN_V_AGAIN:
        o->retry_at = time_msec() + RETRY_MS;
        break;
    case TXN_V_REFUSED:
        publish(o); /* what it collided with is in the view when the caller looks */
        current_end(o, status, &e);
        break;
    }
}

static void finish_if_marked(struct odb *o)
{
    if (!o->current || !o->marker || strcmp(o->marker, o->current_id))
        return;
    if (o->sendings > 1 || o->marker_refused)
        metric_add(&m_rescued, 1);
    publish(o);
    current_end(o, 0, NULL);
}

static void drop_canceled(struct odb *o)
{
    pthread_mutex_lock(&o->db.lock);
    struct cdb_txn *t, *next;
    for (t = TAILQ_FIRST(&o->queue); t; t = next) {
        next = TAILQ_NEXT(t, queue);
        if (t->canceled) {
            TAILQ_REMOVE(&o->queue, t, queue);
            db_finish_locked(&o->db, t, E_CANCELED, NULL);
        }
    }
    bool drop = o->current && o->current->canceled && !o->request_id;
    pthread_mutex_unlock(&o->db.lock);
    if (drop) /* between two attempts; should the first still come into effect, then the marker tells the next transaction */
        current_end(o, E_CANCELED, NULL);
}

static struct cdb_txn *take_next(struct odb *o)
{
    pthread_mutex_lock(&o->db.lock);
    struct cdb_txn *t = TAILQ_FIRST(&o->queue);
    if (t)
        TAILQ_REMOVE(&o->queue, t, queue);
    pthread_mutex_unlock(&o->db.lock);
    return t;
}

static void send_next(struct odb *o)
{
    while (o->contact && ovsdb_cs_may_send_transaction(o->cs) && !o->request_id) {
        if (o->current && time_msec() < o->retry_at)
            return;
        if (!o->current) {
            o->current = take_next(o);
            if (!o->current)
                return;
            id_new(o->current_id);
            o->sendings = 0;
            o->marker_refused = false;
            struct err e = {0};
            int status = txn_check_values(o->current, &e);
            if (status) {
                current_end(o, status, &e);
                continue;
            }
        }
        txn_to_json(o->current, &o->client, o->client_id, o->marker, o->current_id, &o->sent);
        o->request_id = ovsdb_cs_send_transaction(o->cs, o->sent.params);
        if (!o->request_id) {
            txn_json_clear(&o->sent);
            return;
        }
        if (o->sendings++ > 0)
            metric_add(&m_resent, 1);
    }
}

/* ---- the hook ---- */

static int reopen_ms(const struct odb *o)
{
    return strncmp(o->remotes, "unix:", 5) ? REOPEN_REMOTE_MS : REOPEN_LOCAL_MS;
}

static void set_remote(struct odb *o)
{
    ovsdb_cs_set_remote(o->cs, o->remotes, true);
    ovsdb_cs_set_probe_interval(o->cs, PROBE_MS); /* belongs to the session, which may be a new one */
    o->reopen_at = time_msec() + reopen_ms(o);
}

static void take_remotes(struct odb *o)
{
    pthread_mutex_lock(&o->db.lock);
    char *next = o->remotes_next;
    o->remotes_next = NULL;
    pthread_mutex_unlock(&o->db.lock);
    if (next && strcmp(next, o->remotes)) {
        free(o->remotes);
        o->remotes = xstrdup(next);
        set_remote(o);
    }
    free(next);
}

/* A fresh session has no back-off. Only while there is no connection: a first copy of a large database takes its time. */
static void reopen_if_stuck(struct odb *o)
{
    if (ovsdb_cs_is_connected(o->cs)) {
        o->reopen_at = time_msec() + reopen_ms(o);
    } else if (time_msec() >= o->reopen_at) {
        ovsdb_cs_set_remote(o->cs, NULL, true);
        set_remote(o);
        forget_sent(o);
    }
}

static void odb_run(void *arg)
{
    struct odb *o = arg;
    take_remotes(o);
    reopen_if_stuck(o);
    if (o->watch)
        leaderwatch_run(o->watch);
    struct ovs_list events;
    ovsdb_cs_run(o->cs, &events);
    struct ovsdb_cs_event *e;
    LIST_FOR_EACH_POP (e, list_node, &events) {
        switch (e->type) {
        case OVSDB_CS_EVENT_TYPE_RECONNECT: /* no reply will come */
            forget_sent(o);
            o->retry_at = 0;
            break;
        case OVSDB_CS_EVENT_TYPE_UPDATE: take_update(o, &e->update); break;
        case OVSDB_CS_EVENT_TYPE_TXN_REPLY: take_reply(o, e->txn_reply); break;
        case OVSDB_CS_EVENT_TYPE_LOCKED: break;
        }
        ovsdb_cs_event_destroy(e);
        finish_if_marked(o);
    }
    publish(o);
    drop_canceled(o);
    send_next(o);
}

static void odb_wait(void *arg)
{
    struct odb *o = arg;
    ovsdb_cs_wait(o->cs);
    if (o->watch)
        leaderwatch_wait(o->watch);
    if (!ovsdb_cs_is_connected(o->cs))
        poll_timer_wait_until(o->reopen_at);
    else if (o->current && !o->request_id)
        poll_timer_wait_until(o->retry_at);
}

/* ---- cdb_ops ---- */

static void odb_submit(struct cdb *db, struct cdb_txn *t)
{
    pthread_mutex_lock(&db->lock);
    TAILQ_INSERT_TAIL(&odb_of(db)->queue, t, queue);
    pthread_mutex_unlock(&db->lock);
    dbthread_wake();
}

static void odb_canceled(struct cdb *db)
{
    dbthread_wake();
}

static void odb_set_remotes(struct cdb *db, const char *remotes)
{
    struct odb *o = odb_of(db);
    pthread_mutex_lock(&db->lock);
    free(o->remotes_next);
    o->remotes_next = xstrdup(remotes);
    pthread_mutex_unlock(&db->lock);
    dbthread_wake();
}

static struct json *compose_monitor_requests(const struct json *schema, void *aux)
{
    return monitor_requests(schema, &((struct odb *)aux)->client);
}

static const struct ovsdb_cs_ops cs_ops = {compose_monitor_requests};

struct open_args { struct odb *o; const struct cdb_conf *conf; };

static void open_here(void *arg)
{
    struct open_args *a = arg;
    struct odb *o = a->o;
    o->cs = ovsdb_cs_create(CDB_DATABASE, 3, &cs_ops, o);
    ovsdb_cs_set_leader_only(o->cs, false);
    ovsdb_cs_set_shuffle_remotes(o->cs, true);
    set_remote(o);
    if (a->conf->local_sock)
        o->watch = leaderwatch_open(a->conf->local_sock, CDB_DATABASE);
}

static void close_here(void *arg)
{
    struct odb *o = arg;
    if (o->current)
        current_end(o, E_UNKNOWN, NULL);
    ovsdb_cs_destroy(o->cs);
    leaderwatch_close(o->watch);
    replica_clear(o);
    for (int t = 0; t < CDB_N_TABLES; t++)
        hmap_destroy(&o->rows[t]);
}

static void odb_close(struct cdb *db)
{
    struct odb *o = odb_of(db);
    dbthread_remove(o);
    dbthread_call(close_here, o);
    dbthread_unref();
    struct cdb_txn *t;
    while ((t = TAILQ_FIRST(&o->queue))) {
        TAILQ_REMOVE(&o->queue, t, queue);
        db_finish(db, t, E_CANCELED, NULL);
    }
    db_destroy(db);
    cdb_view_unref(o->view);
    free(o->remotes);
    free(o->remotes_next);
    free(o);
}

static const struct cdb_ops odb_ops = {odb_submit, odb_canceled, odb_set_remotes, odb_close};

int cdb_open(const struct cdb_conf *conf, struct cdb **ret_db, struct err *e)
{
    bool ssl = strstr(conf->remotes, "ssl:") != NULL;
    if (!conf->remotes[0])
        return err_set(e, E_INVAL, "open database: no server given");
    if (ssl && (!conf->ca_pem || !conf->cert_pem || !conf->key_pem))
        return err_set(e, E_INVAL, "open database %s: ssl: needs CA, certificate and key", conf->remotes);
    if (conf->client && strlen(conf->client) >= sizeof ((struct odb *)0)->client_id)
        return err_set(e, E_INVAL, "open database: client name is too long");
    struct odb *o = xcalloc(1, sizeof *o);
    db_init(&o->db, &odb_ops);
    TAILQ_INIT(&o->queue);
    for (int t = 0; t < CDB_N_TABLES; t++)
        hmap_init(&o->rows[t]);
    o->view = view_empty();
    o->remotes = xstrdup(conf->remotes);
    if (conf->client)
        snprintf(o->client_id, sizeof o->client_id, "%s", conf->client);
    else
        id_new(o->client_id);
    row_uuid_of(o->client_id, &o->client);
    dbthread_ref();
    if (conf->ca_pem && conf->cert_pem && conf->key_pem)
        dbthread_set_ssl(conf->key_pem, conf->cert_pem, conf->ca_pem);
    struct open_args a = {o, conf};
    dbthread_call(open_here, &a);
    dbthread_add(odb_run, odb_wait, o);
    *ret_db = &o->db;
    return 0;
}
