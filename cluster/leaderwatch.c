/* A monitor of `_Server`.Database by plain JSON-RPC. (ovsdb_cs cannot be used for it: it monitors that database for its own
 * purposes under the same monitor id.) See leaderwatch.h. */
#include <config.h>
#include "cluster/leaderwatch.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "jsonrpc.h"
#include "openvswitch/json.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "timeval.h"

/* jsonrpc_session's own back-off grows to 8 s; the local server is back soon after a crash, and the coordinator's office
 * waits for this. */
#define REOPEN_MS 500

struct leaderwatch {
    char *remote, *database;
    struct jsonrpc_session *session;
    unsigned seqno;
    long long reopen_at;
    struct json *request_id;
    bool known, leader; /* known: this connection's server has told */
};

static void session_open(struct leaderwatch *w)
{
    jsonrpc_session_close(w->session);
    w->session = jsonrpc_session_open(w->remote, true);
    w->seqno = UINT_MAX;
    w->reopen_at = time_msec() + REOPEN_MS;
}

struct leaderwatch *leaderwatch_open(const char *remote, const char *database)
{
    struct leaderwatch *w = xcalloc(1, sizeof *w);
    w->remote = xstrdup(remote);
    w->database = xstrdup(database);
    session_open(w);
    return w;
}

void leaderwatch_close(struct leaderwatch *w)
{
    if (!w)
        return;
    jsonrpc_session_close(w->session);
    json_destroy(w->request_id);
    free(w->remote);
    free(w->database);
    free(w);
}

static void send_monitor(struct leaderwatch *w)
{
    struct json *columns = json_array_create_3(json_string_create("name"), json_string_create("connected"), json_string_create("leader"));
    struct json *request = json_object_create(), *requests = json_object_create();
    json_object_put(request, "columns", columns);
    json_object_put(requests, "Database", json_array_create_1(request));
    struct json *params = json_array_create_3(json_string_create("_Server"), json_string_create("cohort"), requests);
    json_destroy(w->request_id);
    jsonrpc_session_send(w->session, jsonrpc_create_request("monitor", params, &w->request_id));
}

static bool flag(const struct json *row, const char *column)
{
    const struct json *v = shash_find_data(json_object(row), column);
    return v && v->type == JSON_TRUE;
}

/* <table-updates>: {"Database": {uuid: {"new": {…}}}}; "new" has all columns. */
static void take_updates(struct leaderwatch *w, const struct json *updates)
{
    if (!updates || updates->type != JSON_OBJECT)
        return;
    const struct json *table = shash_find_data(json_object(updates), "Database");
    if (!table || table->type != JSON_OBJECT)
        return;
    struct shash_node *n;
    SHASH_FOR_EACH (n, json_object(table)) {
        const struct json *update = n->data;
        const struct json *row = update->type == JSON_OBJECT ? shash_find_data(json_object(update), "new") : NULL;
        if (!row) {
            const struct json *old = update->type == JSON_OBJECT ? shash_find_data(json_object(update), "old") : NULL;
            const struct json *name = old && old->type == JSON_OBJECT ? shash_find_data(json_object(old), "name") : NULL;
            if (name && name->type == JSON_STRING && !strcmp(json_string(name), w->database))
                w->leader = false;
            continue;
        }
        const struct json *name = row->type == JSON_OBJECT ? shash_find_data(json_object(row), "name") : NULL;
        if (name && name->type == JSON_STRING && !strcmp(json_string(name), w->database)) {
            w->known = true;
            w->leader = flag(row, "leader") && flag(row, "connected");
        }
    }
}

static void take_message(struct leaderwatch *w, const struct jsonrpc_msg *m)
{
    if (m->type == JSONRPC_REPLY && w->request_id && json_equal(m->id, w->request_id))
        take_updates(w, m->result);
    else if (m->type == JSONRPC_NOTIFY && !strcmp(m->method, "update") && m->params->type == JSON_ARRAY && m->params->array.n == 2)
        take_updates(w, m->params->array.elems[1]);
}

void leaderwatch_run(struct leaderwatch *w)
{
    jsonrpc_session_run(w->session);
    if (!jsonrpc_session_is_connected(w->session)) {
        w->known = w->leader = false;
        if (time_msec() >= w->reopen_at) {
            session_open(w);
            jsonrpc_session_run(w->session);
        }
    } else {
        w->reopen_at = time_msec() + REOPEN_MS;
    }
    unsigned seqno = jsonrpc_session_get_seqno(w->session);
    if (seqno != w->seqno) {
        w->seqno = seqno;
        w->known = w->leader = false;
        if (jsonrpc_session_is_connected(w->session))
            send_monitor(w);
    }
    struct jsonrpc_msg *m;
    while ((m = jsonrpc_session_recv(w->session))) {
        take_message(w, m);
        jsonrpc_msg_destroy(m);
    }
}

void leaderwatch_wait(struct leaderwatch *w)
{
    jsonrpc_session_wait(w->session);
    jsonrpc_session_recv_wait(w->session);
    if (!jsonrpc_session_is_connected(w->session))
        poll_timer_wait_until(w->reopen_at);
}

bool leaderwatch_known(const struct leaderwatch *w)
{
    return w && w->known;
}

bool leaderwatch_leader(const struct leaderwatch *w)
{
    return w && w->leader;
}
