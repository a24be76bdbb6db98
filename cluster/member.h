/* Becoming a member of a cluster, and what a member keeps on its own disk.
 *
 *   STATE_DIR/node.json      {"format": 1, "node": id, "cluster": uuid}; written last: with it the node is a member
 *   STATE_DIR/pki/           ca.pem, node.pem, node.key (0600)
 *   STATE_DIR/db/            the databases, on voters
 *   STATE_DIR/admin.token    secret of the first admin token (0600), on the node that made the cluster
 *
 * Without node.json everything else is the rest of an interrupted attempt and is cleared away by the next one.
 * All functions are blocking (seconds): for set-up or a worker thread.
 */
#ifndef COHORT_CLUSTER_MEMBER_H
#define COHORT_CLUSTER_MEMBER_H

#include "base/id.h"
#include "cluster/dbfiles.h"
#include "cluster/token.h"

struct member_id {
    char node_id[ID_LEN + 1], cluster_uuid[ID_LEN + 1];
};
/* E_NOTFOUND: not a member. E_CORRUPT, E_VERSION: node.json cannot be used. */
MUST_CHECK int member_load(const char *state_dir, struct member_id *ret_id, struct err *e);

#define MEMBER_LINKS_MAX 4
struct member_disk { const char *name, *fast_path, *capacity_path; int64_t size_bytes; };
struct member_conf {
    const char *state_dir, *run_dir, *node_name, *address;
    uint16_t control_port, storage_port, migrate_port, api_port;
    uint16_t db_client_port, db_raft_port[DB_N]; /* 0 = the usual ones */
    bool db_listen_address_only;
    int election_ms;                             /* 0 = 1000 */
    int64_t cpus, memory_bytes;
    const char *accel, *accel_reason, *version;
    size_t n_storage_addresses;                  /* links for storage besides `address`; at most MEMBER_LINKS_MAX */
    const char *storage_addresses[MEMBER_LINKS_MAX];
    size_t n_disks;
    const struct member_disk *disks;
};
/* The databases' configuration that belongs to a member; its texts live in `m` and `ret_store`, to be freed with
 * member_db_conf_free(). */
struct member_db_paths { char *db_dir, *ca_pem, *cert_pem, *key_pem; };
void member_db_conf(const struct member_conf *m, struct db_conf *ret_conf, struct member_db_paths *ret_store);
void member_db_conf_free(struct member_db_paths *store);

/* ---- a new cluster ---- */

/* Makes CA, certificate and databases, starts the database server (it keeps running; dbserver_open() adopts it), inserts the
 * first rows and writes node.json. E_EXISTS: already a member. *ret_secret: the admin token's secret. */
MUST_CHECK int member_init(const struct member_conf *c, const char *cluster_name, struct member_id *ret_id,
                           char ret_secret[2 * TOKEN_SECRET_BYTES + 1], struct err *e);

/* ---- joining one ---- */

struct member_request {
    char node_id[ID_LEN + 1];
    char *csr_pem; /* for the cluster to sign */
};
/* Makes the key (kept in STATE_DIR/pki) and the request. */
MUST_CHECK int member_join_prepare(const struct member_conf *c, struct member_request *ret_request, struct err *e);
void member_request_free(struct member_request *r);

struct member_answer { /* from a member, over a connection whose CA matched the token's fingerprint */
    const char *ca_pem, *cert_pem, *cluster_uuid;
    bool voter;                    /* this node is to serve the databases */
    size_t n_voters;
    const char *const *voters;     /* addresses of those who do now */
};
/* Checks the answer (certificate for our key, from that CA), writes it down; a voter's databases are made and its server is
 * started and has joined when this returns (E_TIMEOUT after 60 s: try again later). Ends with node.json. */
MUST_CHECK int member_join_accept(const struct member_conf *c, const char *node_id, const char *ca_sha256,
                                  const struct member_answer *a, struct member_id *ret_id, struct err *e);

/* Gives up membership: kills the database server, deletes databases, keys and node.json (first). */
MUST_CHECK int member_forget(const struct member_conf *c, struct err *e);

#endif
