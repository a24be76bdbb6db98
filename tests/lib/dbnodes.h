/* Nodes with real ovsdb-servers on 127.77.NET.x, for integration tests of the cluster database. The test itself runs in
 * a child process (dbnodes_main), so that its servers and files are gone afterwards whatever happens to it. */
#ifndef COHORT_TESTS_LIB_DBNODES_H
#define COHORT_TESTS_LIB_DBNODES_H

#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"
#include "cluster/cdb.h"
#include "cluster/dbserver.h"
#include "cluster/member_priv.h"

#define DBNODES_MAX 5

struct dbnode {
    char dir[256], run[300], address[16], name[8], sock[320], ctl[330];
    struct member_conf conf;
    struct db_conf db;
    struct member_db_paths paths;
    struct member_id id;
};
extern struct dbnode nodes[DBNODES_MAX];

#define CHECK(cond)                                                                 \
    do {                                                                            \
        if (!(cond)) {                                                              \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #cond);      \
            exit(1);                                                                \
        }                                                                           \
    } while (0)
/* A call that takes the `struct err *` named e. */
#define OK(call)                                                                    \
    do {                                                                            \
        struct err e_ = {0};                                                        \
        struct err *e = &e_;                                                        \
        if ((call)) {                                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, e_.msg);             \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

/* main() of the test: `run` within `seconds`; `net` keeps tests that run at the same time apart. */
int dbnodes_main(const char *dir, int net, unsigned seconds, int (*run)(void));

void say(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* with the time since the start */
void pause_ms(int ms);
void kill_server(int i);  /* -9, and waits for its end */
void start_server(int i);

/* A loop that does not end by itself, and a link on it, for steps one after the other. */
struct stepper { uv_loop_t loop; uv_timer_t keep; struct cdb_link *link; };
void stepper_open(struct stepper *s, struct cdb *db); /* waits for the first view */
void stepper_close(struct stepper *s);
int step_commit(struct stepper *s, struct cdb_txn *t, struct err *e);

/* member_init() of node 0; the CA is kept for dbnode_join(). */
void dbnode_init(void);
/* Node `i` gets its certificate and joins, as a voter by way of node 0 or without a database. The Node row is the caller's
 * matter. */
void dbnode_join(int i, bool voter);
struct cdb *dbnode_open_local(int i); /* by its own server's socket */

#endif
