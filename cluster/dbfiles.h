/* The databases that one ovsdb-server process of a voter serves, and their files: the cluster's own and OVN's two.
 *
 * Blocking (they run ovsdb-tool, some 20 ms each): for set-up and worker threads. A file appears under its name only when
 * it is complete, so an interrupted creation is simply repeated.
 */
#ifndef COHORT_CLUSTER_DBFILES_H
#define COHORT_CLUSTER_DBFILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

extern const char cdb_ovsschema[]; /* cohort.ovsschema, NUL-terminated */
extern const size_t cdb_ovsschema_len;

enum { DB_COHORT, DB_OVN_NB, DB_OVN_SB, DB_N };
extern const char *const db_names[DB_N];

struct db_conf {
    const char *db_dir, *run_dir;
    const char *address;                     /* this node's cluster address */
    const char *ca_pem, *cert_pem, *key_pem; /* paths */
    uint16_t client_port;                    /* for clients on other nodes, 6641 */
    uint16_t raft_port[DB_N];                /* 6645, 6643, 6644; the same on every node */
    int election_ms;                         /* of databases that are created here; 0 = 1000 */
    bool listen_any;                         /* client_port on every address (the address may come up later) */
};
#define DB_CONF_DEFAULT {.client_port = 6641, .raft_port = {6645, 6643, 6644}, .election_ms = 1000, .listen_any = true}

/* "ssl:192.0.2.1:6645"; caller frees. IPv6 addresses get their brackets. */
char *db_remote(const char *address, uint16_t port);
/* "ssl:a:6641,ssl:b:6641" for clients; caller frees. */
char *db_remotes(size_t n, const char *const *addresses, uint16_t port);
char *db_path(const struct db_conf *c, int db); /* caller frees */
char *db_sock(const struct db_conf *c);         /* "unix:RUN_DIR/db.sock"; caller frees */

bool db_files_exist(const struct db_conf *c);   /* all of them */
/* New databases of which this node is the only server. */
MUST_CHECK int db_files_create(const struct db_conf *c, struct err *e);
/* Files with which this node's server joins that of `peers` (addresses of voters, at least one). */
MUST_CHECK int db_files_join(const struct db_conf *c, size_t n, const char *const *peers, struct err *e);
/* Deletes the files. The server must be gone. */
MUST_CHECK int db_files_remove(const struct db_conf *c, struct err *e);

#endif
