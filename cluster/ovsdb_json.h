/* Rows and transactions in OVSDB's JSON. Private to the OVSDB client (ovsdb.c); RFC 7047 sections 4 and 5, and
 * ovsdb-server(7) for <table-updates2>.
 *
 * Row UUIDs: a row's _uuid follows from its id (an id that is a UUID is the _uuid itself, any other is hashed), so every
 * operation finds its row by _uuid, which the server looks up without scanning, and without our knowing the row.
 */
#ifndef COHORT_CLUSTER_OVSDB_JSON_H
#define COHORT_CLUSTER_OVSDB_JSON_H

#include "cluster/txn.h"
#include "openvswitch/json.h"
#include "uuid.h"

#define CDB_DATABASE "Cohort"
#define CLIENT_TABLE "Client" /* see ovsdb.c: one row per client, {id, txn} */

void row_uuid_of(const char *id, struct uuid *ret);

/* <monitor-requests>: all columns of all tables that the server's schema has; of CLIENT_TABLE only our row. */
struct json *monitor_requests(const struct json *schema, const struct uuid *client);

/* Sets a column from JSON; `diff`: the value is a difference as in a "modify" of <table-updates2>. False: not of this type. */
bool cell_from_json(const struct cdb_column *c, void *cell, const struct json *value, bool diff);

/* The operations of a transaction, beginning with the database's name, and what each of them stands for. */
struct txn_json {
    struct json *params;
    size_t n;
    const struct txn_op **ops; /* [n] per operation; NULL: the marker's, or none in particular */
};
/* The first operation checks that our marker is `prev` (NULL: that our row is absent) and the marker is set to `id`. */
void txn_to_json(const struct cdb_txn *t, const struct uuid *client, const char *client_id, const char *prev, const char *id,
                 struct txn_json *ret);
void txn_json_clear(struct txn_json *j); /* without `params`, which the sender gives away */

enum txn_verdict {
    TXN_V_DONE,    /* no error */
    TXN_V_MARKER,  /* our marker is not what we thought: perhaps this very transaction was carried out before */
    TXN_V_AGAIN,   /* refused for a reason that passes; certainly not carried out */
    TXN_V_REFUSED, /* *ret_status and *e say why */
};
enum txn_verdict txn_judge(const struct txn_json *j, bool rpc_error, const struct json *result, int *ret_status, struct err *e);

#endif
