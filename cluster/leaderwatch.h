/* Watches the `_Server` database of this node's ovsdb-server: does it lead RAFT's cluster? In the
 * database thread only. */
#ifndef COHORT_CLUSTER_LEADERWATCH_H
#define COHORT_CLUSTER_LEADERWATCH_H

#include <stdbool.h>

struct leaderwatch;

struct leaderwatch *leaderwatch_open(const char *remote, const char *database);
void leaderwatch_close(struct leaderwatch *w);
void leaderwatch_run(struct leaderwatch *w);
void leaderwatch_wait(struct leaderwatch *w);
bool leaderwatch_known(const struct leaderwatch *w);     /* the server has told: news can be told from first sight by it */
bool leaderwatch_leader(const struct leaderwatch *w);    /* false while the server cannot be reached */

#endif
