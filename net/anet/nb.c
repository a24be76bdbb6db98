/* Reconciles OVN's northbound database with a model (nb.h). The tables come from model.h's nb_kinds: this file knows
 * columns by name only. */
#include <config.h>

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "openvswitch/poll-loop.h"
#include "ovn-nb-idl.h"
#include "ovsdb-data.h"
#include "ovsdb-idl-provider.h"
#include "ovsdb-idl.h"
#include "openvswitch/json.h"
#include "smap.h"
#include "timeval.h"
#include "uuid.h"

#include "base/buf.h"
#include "base/log.h"
#include "base/metric.h"
#include "cluster/dbthread.h"
#include "net/anet/nb.h"
#include "net/anet/plan.h"
#include "net/anet/remote.h"

LOG_MODULE("anet")
METRIC_COUNTER(m_commits, "cohort_net_nb_commits_total", "Transactions that changed the OVN northbound database")
METRIC_COUNTER(m_failures, "cohort_net_nb_failures_total", "Transactions that the OVN northbound database refused")
METRIC_GAUGE(m_pending, "cohort_net_nb_pending", "Operations by which the northbound database differs from what is wanted")

#define RETRY_MS 1000
#define RACE_MS 20 /* lost a race or the connection: what it lost against is on its way here */
#define TERM_KEY "cohort-term"
/* ovn-northd probes nothing when the first of its remotes is a unix socket, and so never learns that another node, which led
 * one of the databases, lost its power. Milliseconds. */
#define PROBE_KEY "northd_probe_interval"
#define PROBE_MS "2000"

struct nb {
    pthread_mutex_t lock;      /* guards this block */
    char *remote;
    bool remote_changed;
    int64_t term;
    struct nb_model *incoming;
    struct nb_status status;

    /* database thread only */
    struct ovsdb_idl *idl;
    struct remote link;
    struct ovsdb_idl_txn *txn;
    struct nb_model *want;
    const struct ovsdb_idl_table_class *table[NB_N_KINDS];
    const struct ovsdb_idl_column *column[NB_N_KINDS][NB_COLS_MAX];
    bool dirty;                /* a plan must be made */
    unsigned seqno;            /* database version of the last plan */
    int64_t my_term;
    long long retry_at;        /* time_msec(), 0 = not waiting */
};

/* ---- database to model ---- */

static const char *map_get(const struct ovsdb_datum *d, const char *key)
{
    for (unsigned i = 0; i < d->n; i++)
        if (!strcmp(json_string(d->keys[i].s), key))
            return json_string(d->values[i].s);
    return NULL;
}

static const char *key_of(const struct nb *nb, enum nb_kind kind, const struct ovsdb_idl_row *row)
{
    const struct ovsdb_datum *ids = ovsdb_idl_read(row, nb->column[kind][0]);
    const char *owner = map_get(ids, "owner");
    return owner && !strcmp(owner, NB_OWNER) ? map_get(ids, "cohort-id") : NULL;
}

static void read_refs(const struct nb *nb, enum nb_kind kind, const struct ovsdb_datum *d, struct nb_value *v)
{
    for (unsigned i = 0; i < d->n; i++) {
        const struct ovsdb_idl_row *row = ovsdb_idl_get_row_for_uuid(nb->idl, nb->table[kind], &d->keys[i].uuid);
        const char *key = row ? key_of(nb, kind, row) : NULL;
        if (key)
            nb_value_add(v, key, NULL);
    }
}

static void read_atom(const union ovsdb_atom *a, enum ovsdb_atomic_type type, char *buf, size_t size, const char **ret)
{
    if (type == OVSDB_TYPE_STRING) {
        *ret = json_string(a->s);
    } else if (type == OVSDB_TYPE_BOOLEAN) {
        *ret = a->boolean ? "true" : "false";
    } else {
        assert(type == OVSDB_TYPE_INTEGER);
        snprintf(buf, size, "%lld", (long long)a->integer);
        *ret = buf;
    }
}

static struct nb_model *read_model(const struct nb *nb)
{
    struct nb_model *m = nb_model_new();
    for (int k = 0; k < NB_N_KINDS; k++) {
        const struct ovsdb_idl_row *row;
        for (row = ovsdb_idl_first_row(nb->idl, nb->table[k]); row; row = ovsdb_idl_next_row(row)) {
            const char *key = key_of(nb, (enum nb_kind)k, row);
            if (!key)
                continue;
            struct nb_obj *o = nb_model_add(m, (enum nb_kind)k, key);
            o->row = row;
            for (int c = 0; c < nb_kinds[k].n_cols; c++) {
                const struct ovsdb_idl_column *col = nb->column[k][c];
                const struct ovsdb_datum *d = ovsdb_idl_read(row, col);
                enum nb_type type = nb_kinds[k].col[c].type;
                if (type == NB_REF || type == NB_REFS) {
                    read_refs(nb, nb_kinds[k].col[c].ref, d, &o->col[c]);
                    continue;
                }
                for (unsigned i = 0; i < d->n; i++) {
                    char kb[32], vb[32];
                    const char *kt, *vt = NULL;
                    read_atom(&d->keys[i], col->type.key.type, kb, sizeof kb, &kt);
                    if (type == NB_MAP)
                        read_atom(&d->values[i], col->type.value.type, vb, sizeof vb, &vt);
                    nb_value_add(&o->col[c], kt, vt);
                }
            }
        }
    }
    nb_model_sort(m);
    return m;
}

/* ---- plan to transaction ---- */

struct applying {
    struct nb *nb;
    const struct nb_model *have;
    const void **made; /* rows inserted in this transaction, by position in nb->want */
};

static const struct ovsdb_idl_row *row_of(const struct applying *ap, enum nb_kind kind, const char *key)
{
    const struct nb_obj *o = nb_model_find(ap->have, kind, key);
    if (o)
        return o->row;
    o = nb_model_find(ap->nb->want, kind, key);
    return o ? ap->made[o - ap->nb->want->obj] : NULL;
}

static void write_atom(union ovsdb_atom *a, enum ovsdb_atomic_type type, const char *text)
{
    if (type == OVSDB_TYPE_STRING) {
        a->s = ovsdb_atom_string_create(text);
    } else if (type == OVSDB_TYPE_BOOLEAN) {
        a->boolean = !strcmp(text, "true");
    } else {
        assert(type == OVSDB_TYPE_INTEGER);
        a->integer = strtoll(text, NULL, 10);
    }
}

static void write_value(const struct applying *ap, const struct ovsdb_idl_row *row, const struct nb_obj *want, int c)
{
    const struct nb_column *desc = &nb_kinds[want->kind].col[c];
    const struct ovsdb_idl_column *col = ap->nb->column[want->kind][c];
    const struct nb_value *v = &want->col[c];
    struct ovsdb_datum d;
    ovsdb_datum_init_empty(&d);
    d.keys = xmalloc((v->n + 1) * sizeof *d.keys);
    if (desc->type == NB_MAP)
        d.values = xmalloc((v->n + 1) * sizeof *d.values);
    for (size_t i = 0; i < v->n; i++) {
        if (desc->type == NB_REF || desc->type == NB_REFS) {
            const struct ovsdb_idl_row *to = row_of(ap, desc->ref, v->k[i]);
            if (to)
                d.keys[d.n++].uuid = to->uuid;
            continue;
        }
        write_atom(&d.keys[d.n], col->type.key.type, v->k[i]);
        if (desc->type == NB_MAP)
            write_atom(&d.values[d.n], col->type.value.type, v->v[i]);
        d.n++;
    }
    if (!d.n) {
        free(d.keys);
        free(d.values);
        ovsdb_datum_init_empty(&d);
    }
    ovsdb_idl_txn_write(row, col, &d);
}

static void write_link(const struct applying *ap, const struct nb_op *op)
{
    enum nb_kind kind = op->have->kind, ref = nb_kinds[kind].col[op->col].ref;
    const struct ovsdb_idl_column *col = ap->nb->column[kind][op->col];
    const struct ovsdb_idl_row *to = row_of(ap, ref, op->ref);
    if (!to)
        return;
    struct ovsdb_datum *d = xmalloc(sizeof *d);
    ovsdb_datum_init_empty(d);
    d->n = 1;
    d->keys = xmalloc(sizeof *d->keys);
    d->keys[0].uuid = to->uuid;
    if (op->verb == NB_LINK)
        ovsdb_idl_txn_write_partial_set(op->have->row, col, d);
    else
        ovsdb_idl_txn_delete_partial_set(op->have->row, col, d);
}

static void apply(struct nb *nb, const struct nb_model *have, const struct nb_plan *plan)
{
    struct applying ap = {nb, have, xcalloc(nb->want->n + 1, sizeof(void *))};
    for (size_t i = 0; i < plan->n; i++) {
        const struct nb_op *op = &plan->op[i];
        if (op->verb == NB_INSERT)
            ap.made[op->want - nb->want->obj] = ovsdb_idl_txn_insert(nb->txn, nb->table[op->want->kind], NULL);
    }
    for (size_t i = 0; i < plan->n; i++) {
        const struct nb_op *op = &plan->op[i];
        switch (op->verb) {
        case NB_INSERT:
            for (int c = 0; c < nb_kinds[op->want->kind].n_cols; c++)
                write_value(&ap, ap.made[op->want - nb->want->obj], op->want, c);
            break;
        case NB_UPDATE:
            write_value(&ap, op->have->row, op->want, op->col);
            break;
        case NB_LINK:
        case NB_UNLINK:
            write_link(&ap, op);
            break;
        case NB_DELETE:
            ovsdb_idl_txn_delete(op->have->row);
            break;
        }
    }
    free(ap.made);
}

/* The fence: true if this transaction may go on. */
static bool take_term(struct nb *nb)
{
    const struct nbrec_nb_global *g = nbrec_nb_global_first(nb->idl);
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)nb->my_term);
    if (!g) { /* a second inserter fails: the table holds one row */
        g = nbrec_nb_global_insert(nb->txn);
        nbrec_nb_global_update_external_ids_setkey(g, TERM_KEY, text);
        nbrec_nb_global_update_options_setkey(g, PROBE_KEY, PROBE_MS);
        return true;
    }
    const char *there = smap_get(&g->external_ids, TERM_KEY);
    int64_t term = there ? strtoll(there, NULL, 10) : 0;
    if (term > nb->my_term)
        return false;
    nbrec_nb_global_verify_external_ids(g);
    if (term < nb->my_term) {
        nbrec_nb_global_update_external_ids_setkey(g, TERM_KEY, text);
        nbrec_nb_global_update_options_setkey(g, PROBE_KEY, PROBE_MS);
    }
    return true;
}

static void set_result(struct nb *nb, size_t pending, bool deposed)
{
    pthread_mutex_lock(&nb->lock);
    nb->status.pending = pending;
    nb->status.wanted = nb->want ? nb->want->n : 0;
    nb->status.deposed = deposed;
    pthread_mutex_unlock(&nb->lock);
    metric_set(&m_pending, (int64_t)pending);
}

static void start(struct nb *nb)
{
    struct nb_model *have = read_model(nb);
    struct nb_plan plan;
    nb_plan_make(nb->want, have, &plan);
    nb->dirty = false;
    nb->seqno = ovsdb_idl_get_seqno(nb->idl);
    bool fenced = false;
    if (plan.n || !nbrec_nb_global_first(nb->idl)) {
        nb->txn = ovsdb_idl_txn_create(nb->idl);
        ovsdb_idl_txn_add_comment(nb->txn, "cohort: %zu operations", plan.n);
        fenced = !take_term(nb);
        if (fenced) {
            ovsdb_idl_txn_abort(nb->txn);
            ovsdb_idl_txn_destroy(nb->txn);
            nb->txn = NULL;
        } else {
            apply(nb, have, &plan);
        }
    }
    set_result(nb, plan.n, fenced);
    nb_plan_free(&plan);
    nb_model_free(have);
}

static void finish(struct nb *nb)
{
    enum ovsdb_idl_txn_status st = ovsdb_idl_txn_commit(nb->txn);
    if (st == TXN_INCOMPLETE)
        return;
    bool refused = st == TXN_ERROR;
    pthread_mutex_lock(&nb->lock);
    if (st == TXN_SUCCESS || st == TXN_UNCHANGED) {
        nb->status.commits++;
        nb->status.error[0] = 0;
        metric_add(&m_commits, 1);
    } else if (refused) {
        nb->status.failures++;
        snprintf(nb->status.error, sizeof nb->status.error, "%s", ovsdb_idl_txn_get_error(nb->txn));
        metric_add(&m_failures, 1);
    }
    pthread_mutex_unlock(&nb->lock);
    if (refused) {
        log_warn("OVN northbound database refused: %s", ovsdb_idl_txn_get_error(nb->txn));
        nb->retry_at = time_msec() + RETRY_MS;
    }
    ovsdb_idl_txn_destroy(nb->txn);
    nb->txn = NULL;
    if (st == TXN_TRY_AGAIN || refused)
        nb->dirty = true; /* after success our own change raises the sequence number, and the next plan checks it */
    if (st == TXN_TRY_AGAIN)
        nb->retry_at = time_msec() + RACE_MS;
}

/* ---- the hook ---- */

static void open_idl(struct nb *nb)
{
    nb->idl = ovsdb_idl_create_unconnected(&nbrec_idl_class, false);
    ovsdb_idl_set_leader_only(nb->idl, false); /* a follower forwards what we write */
    ovsdb_idl_add_table(nb->idl, &nbrec_table_nb_global);
    ovsdb_idl_add_column(nb->idl, &nbrec_nb_global_col_external_ids);
    ovsdb_idl_add_column(nb->idl, &nbrec_nb_global_col_options);
    for (int k = 0; k < NB_N_KINDS; k++) {
        for (size_t t = 0; t < nbrec_idl_class.n_tables; t++)
            if (!strcmp(nbrec_idl_class.tables[t].name, nb_kinds[k].table))
                nb->table[k] = &nbrec_idl_class.tables[t];
        assert(nb->table[k]);
        ovsdb_idl_add_table(nb->idl, nb->table[k]);
        for (int c = 0; c < nb_kinds[k].n_cols; c++) {
            for (size_t i = 0; i < nb->table[k]->n_columns; i++)
                if (!strcmp(nb->table[k]->columns[i].name, nb_kinds[k].col[c].name))
                    nb->column[k][c] = &nb->table[k]->columns[i];
            assert(nb->column[k][c]);
            ovsdb_idl_add_column(nb->idl, nb->column[k][c]);
        }
    }
}

static void close_idl(void *arg)
{
    struct nb *nb = arg;
    if (nb->txn) {
        ovsdb_idl_txn_abort(nb->txn);
        ovsdb_idl_txn_destroy(nb->txn);
    }
    ovsdb_idl_destroy(nb->idl);
    remote_free(&nb->link);
}

static bool same_model(const struct nb_model *a, const struct nb_model *b)
{
    struct nb_plan plan;
    if (!a)
        return false;
    nb_plan_make(a, b, &plan);
    bool same = !plan.n && a->n == b->n; /* objects that are not root are not in a plan when they go */
    nb_plan_free(&plan);
    return same;
}

static void take_input(struct nb *nb)
{
    char *remote = NULL;
    pthread_mutex_lock(&nb->lock);
    if (nb->remote_changed) {
        remote = xstrdup(nb->remote);
        nb->remote_changed = false;
    }
    if (nb->term != nb->my_term) {
        nb->my_term = nb->term;
        nb->dirty = true;
    }
    struct nb_model *incoming = nb->incoming;
    nb->incoming = NULL;
    pthread_mutex_unlock(&nb->lock);
    if (incoming && same_model(nb->want, incoming)) { /* the usual case: what changed was not about the network */
        nb_model_free(incoming);
    } else if (incoming) {
        nb_model_free(nb->want);
        nb->want = incoming;
        nb->dirty = true;
    }
    if (remote) {
        if (!nb->idl)
            open_idl(nb);
        remote_set(&nb->link, nb->idl, remote);
        free(remote);
    }
}

static void run(void *arg)
{
    struct nb *nb = arg;
    if (!nb->txn) /* an open transaction refers to the model */
        take_input(nb);
    if (!nb->idl)
        return;
    ovsdb_idl_run(nb->idl);
    if (nb->txn)
        finish(nb);
    bool connected = remote_run(&nb->link, nb->idl);
    pthread_mutex_lock(&nb->lock);
    nb->status.connected = connected;
    pthread_mutex_unlock(&nb->lock);
    if (nb->retry_at && time_msec() >= nb->retry_at)
        nb->retry_at = 0;
    if (ovsdb_idl_get_seqno(nb->idl) != nb->seqno)
        nb->dirty = true;
    if (nb->dirty && !nb->txn && !nb->retry_at && nb->want && nb->my_term > 0 && connected) {
        start(nb);
        if (nb->txn)
            finish(nb);
    }
}

static void wait_for(void *arg)
{
    struct nb *nb = arg;
    if (!nb->idl)
        return;
    ovsdb_idl_wait(nb->idl);
    remote_wait(&nb->link);
    if (nb->txn)
        ovsdb_idl_txn_wait(nb->txn);
    else if (nb->retry_at)
        poll_timer_wait_until(nb->retry_at);
}

/* ---- main thread ---- */

struct nb *nb_open(void)
{
    struct nb *nb = xcalloc(1, sizeof *nb);
    pthread_mutex_init(&nb->lock, NULL);
    nb->remote = xstrdup("");
    dbthread_ref();
    dbthread_add(run, wait_for, nb);
    return nb;
}

void nb_close(struct nb *nb)
{
    if (!nb)
        return;
    dbthread_remove(nb);
    dbthread_call(close_idl, nb);
    dbthread_unref();
    nb_model_free(nb->want);
    nb_model_free(nb->incoming);
    free(nb->remote);
    pthread_mutex_destroy(&nb->lock);
    free(nb);
}

void nb_set_remote(struct nb *nb, const char *remote)
{
    pthread_mutex_lock(&nb->lock);
    if (strcmp(nb->remote, remote)) {
        free(nb->remote);
        nb->remote = xstrdup(remote);
        nb->remote_changed = true;
    }
    pthread_mutex_unlock(&nb->lock);
    dbthread_wake();
}

void nb_set_term(struct nb *nb, int64_t term)
{
    pthread_mutex_lock(&nb->lock);
    nb->term = nb->status.term = term;
    pthread_mutex_unlock(&nb->lock);
    dbthread_wake();
}

void nb_set_model(struct nb *nb, struct nb_model *m)
{
    pthread_mutex_lock(&nb->lock);
    nb_model_free(nb->incoming);
    nb->incoming = m;
    pthread_mutex_unlock(&nb->lock);
    dbthread_wake();
}

void nb_get_status(struct nb *nb, struct nb_status *ret)
{
    pthread_mutex_lock(&nb->lock);
    *ret = nb->status;
    pthread_mutex_unlock(&nb->lock);
}
