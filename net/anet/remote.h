/* An OVSDB client's connection that is tried again soon. libopenvswitch's own back-off grows to 8 s and cannot be set, but
 * a database server that was restarted is back within a second, and guests' ports wait for it. Database thread only. */
#ifndef COHORT_NET_ANET_REMOTE_H
#define COHORT_NET_ANET_REMOTE_H

#include <stdbool.h>

struct ovsdb_idl;

struct remote {
    char *text;          /* comma-separated; NULL = none */
    long long reopen_at; /* time_msec(); 0 while connected */
};

void remote_set(struct remote *r, struct ovsdb_idl *idl, const char *text); /* "" = none */
/* After ovsdb_idl_run(): is the client connected, with contents? Starts its session anew when it is down too long. */
bool remote_run(struct remote *r, struct ovsdb_idl *idl);
void remote_wait(const struct remote *r);
void remote_free(struct remote *r);

#endif
