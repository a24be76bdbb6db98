/* OVN's southbound database and the leadership of the local database server.
 *
 * Sees to it that SB_Global has its row (ovn-controller 23.03.1 may crash without), tells when it has, lists chassis,
 * and, on the writer, removes chassis of nodes that left the cluster. On a voter also follows the server's _Server
 * database: when this server becomes leader of NB or SB, ovn-northd here should reconnect.
 *
 * Runs in the database thread; functions are for the main thread and return at once.
 */
#ifndef COHORT_NET_ANET_SB_H
#define COHORT_NET_ANET_SB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sb;

struct sb_status {
    bool connected, ready;    /* ready: SB_Global is there */
    bool nb_leader, sb_leader; /* this node's server leads that database */
    size_t n_chassis;
    char **chassis;           /* names */
    uint64_t leader_gains;    /* times this node's server became leader of NB or SB */
};

/* `news` is called in the database thread whenever the status changed. */
struct sb *sb_open(void (*news)(void *arg), void *arg);
void sb_close(struct sb *sb);
void sb_set_remote(struct sb *sb, const char *remote, const char *local_server); /* "" = none */
/* Chassis not among `nodes` are removed while `term` > 0; n = 0 removes none. Copied. */
void sb_set_nodes(struct sb *sb, const char *const *nodes, size_t n);
void sb_set_term(struct sb *sb, int64_t term);
void sb_get_status(struct sb *sb, struct sb_status *ret); /* sb_status_free() it */
void sb_status_free(struct sb_status *s);

#endif
