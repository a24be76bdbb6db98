/* Tests of the daemon's upper half: a loop, the in-memory database and a small cluster's rows in it. */
#ifndef COHORT_TESTS_LIB_TWIN_H
#define COHORT_TESTS_LIB_TWIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/daemon.h"
#include "daemon/ops.h"

struct twin {
    uv_loop_t loop;
    uv_timer_t keep; /* a link alone does not keep a loop alive */
    struct daemon d;
    struct ops *ops;
    char node[3][ID_LEN + 1], disk[3][ID_LEN + 1];
    /* result of the last operation */
    int calls, status;
    struct err err;
    char id[80];
};

static void twin_committed(void *arg, int status, const struct err *e)
{
    *(int *)arg = status;
}

static inline void twin_commit(struct twin *w, struct cdb_txn *t)
{
    int status = 1;
    cdb_txn_commit(w->d.link, t, "test", twin_committed, &status);
    while (status == 1)
        uv_run(&w->loop, UV_RUN_ONCE);
    assert_int_equal(status, E_OK);
}

static void twin_changed(struct cdb_link *l, void *arg) {}

static void twin_never(uv_timer_t *t) {}

/* Three nodes n1..n3, up, 8 GiB and one disk each; this process is n1. */
static inline void twin_open(struct twin *w)
{
    memset(w, 0, sizeof *w);
    uv_loop_init(&w->loop);
    uv_timer_init(&w->loop, &w->keep);
    uv_timer_start(&w->keep, twin_never, 3600000, 3600000);
    w->d.loop = &w->loop;
    w->d.member = true;
    w->d.conf.node_name = "n1";
    w->d.db = cdb_mem_open();
    w->d.link = cdb_link_open(w->d.db, &w->loop, twin_changed, NULL);
    while (!cdb_link_view(w->d.link))
        uv_run(&w->loop, UV_RUN_ONCE);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_CLUSTER, "cluster");
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_name, "test");
    for (int i = 0; i < 3; i++) {
        char name[8], address[24];
        const char *addresses[] = {address};
        id_new(w->node[i]);
        id_new(w->disk[i]);
        snprintf(name, sizeof name, "n%d", i + 1);
        snprintf(address, sizeof address, "192.0.2.%d", i + 1);
        cdb_txn_insert(t, CDB_T_NODE, w->node[i]);
        cdb_txn_set_str(t, CDB_T_NODE, w->node[i], CDB_NODE_name, name);
        cdb_txn_set_strs(t, CDB_T_NODE, w->node[i], CDB_NODE_addresses, 1, addresses);
        cdb_txn_set_str(t, CDB_T_NODE, w->node[i], CDB_NODE_state, "up");
        cdb_txn_set_str(t, CDB_T_NODE, w->node[i], CDB_NODE_accel, "tcg");
        cdb_txn_set_bool(t, CDB_T_NODE, w->node[i], CDB_NODE_voter, true);
        cdb_txn_set_int(t, CDB_T_NODE, w->node[i], CDB_NODE_memory_bytes, INT64_C(8) << 30);
        cdb_txn_insert(t, CDB_T_DISK, w->disk[i]);
        cdb_txn_set_str(t, CDB_T_DISK, w->disk[i], CDB_DISK_node, w->node[i]);
        cdb_txn_set_str(t, CDB_T_DISK, w->disk[i], CDB_DISK_name, "d0");
        cdb_txn_set_str(t, CDB_T_DISK, w->disk[i], CDB_DISK_state, "up");
        cdb_txn_set_int(t, CDB_T_DISK, w->disk[i], CDB_DISK_incarnation, 1);
    }
    memcpy(w->d.node_id, w->node[0], sizeof w->d.node_id);
    twin_commit(w, t);
    w->ops = ops_open(&w->d);
}

static inline void twin_walk(uv_handle_t *h, void *arg)
{
    if (!uv_is_closing(h))
        (*(int *)arg)++;
}

static inline void twin_close(struct twin *w)
{
    int left = 0;
    ops_close(w->ops);
    cdb_link_close(w->d.link);
    uv_close((uv_handle_t *)&w->keep, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    cdb_close(w->d.db);
    uv_walk(&w->loop, twin_walk, &left);
    assert_int_equal(left, 0);
    assert_int_equal(uv_loop_close(&w->loop), 0);
}

static inline const struct cdb_view *twin_view(struct twin *w) { return cdb_link_view(w->d.link); }

static inline void twin_done(void *arg, int status, const struct err *e, const char *id)
{
    struct twin *w = arg;
    w->calls++;
    w->status = status;
    if (status != E_OK)
        w->err = *e;
    snprintf(w->id, sizeof w->id, "%s", id);
}

/* Runs an op_*() whose immediate result was `rc` to its end; returns its status. */
static inline int twin_end(struct twin *w, int rc)
{
    if (rc != E_OK)
        return rc;
    int before = w->calls;
    while (w->calls == before)
        uv_run(&w->loop, UV_RUN_ONCE);
    return w->status;
}

#endif
