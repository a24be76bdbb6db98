/* The ovsdb-server process of a voter: one process serves the cluster's database and OVN's two, each replicated by RAFT
 * over ssl:. It outlives the daemon; a new daemon adopts it by its pid file. If it dies it is started again.
 *
 * dbserver_open/close/… are for the main loop; the blocking ones, marked so, for worker threads or set-up.
 */
#ifndef COHORT_CLUSTER_DBSERVER_H
#define COHORT_CLUSTER_DBSERVER_H

#include <uv.h>
#include "cluster/dbfiles.h"

struct dbserver;

/* Adopts or starts the server for the files of `c` (db_files_exist), and keeps it running. `c` and its texts are copied. */
MUST_CHECK int dbserver_open(uv_loop_t *loop, const struct db_conf *c, struct dbserver **ret_server, struct err *e);
/* Stops watching; the process goes on. */
void dbserver_close(struct dbserver *s);
/* Ends the process (SIGTERM, the databases' files are always consistent) and closes. */
void dbserver_stop(struct dbserver *s);
pid_t dbserver_pid(const struct dbserver *s); /* 0 while it is being restarted */

/* Blocking: kills a server of these files that runs without supervision, and waits for its end (up to 5 s). */
MUST_CHECK int dbserver_kill(const struct db_conf *c, struct err *e);

/* ---- RAFT, by the server's control socket; blocking, at most about 2 s ---- */

#define DB_SERVERS_MAX 16
struct db_status {
    char status[48];        /* "cluster member", "joining cluster", "leaving cluster", "left cluster", … */
    char role[16];          /* "leader", "follower", "candidate" */
    char cluster_id[40], server_id[40];
    bool has_leader;
    int n_servers;
    struct { char sid[8]; char address[128]; bool self; } servers[DB_SERVERS_MAX]; /* address "ssl:192.0.2.1:6645" */
};
MUST_CHECK int dbserver_status(const struct db_conf *c, int db, struct db_status *ret_status, struct err *e);
/* Parses the text of cluster/status; for tests. E_PROTO. */
MUST_CHECK int db_status_parse(const char *text, struct db_status *ret_status, struct err *e);
/* Asks this server to leave all databases; dbserver_left() tells when it has. */
MUST_CHECK int dbserver_leave(const struct db_conf *c, struct err *e);
bool dbserver_left(const struct db_conf *c);
/* Removes the server of `address` from all databases (it is dead and cannot leave). Done when its address is gone from
 * dbserver_status(). */
MUST_CHECK int dbserver_kick(const struct db_conf *c, const char *address, struct err *e);

#endif
