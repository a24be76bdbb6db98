/* Quick reconnection of OVSDB clients (remote.h). */
#include <config.h>

#include <stdlib.h>
#include <string.h>
#include "openvswitch/poll-loop.h"
#include "ovsdb-idl.h"
#include "timeval.h"

#include "base/buf.h"
#include "net/anet/remote.h"

#define REOPEN_LOCAL_MS 500
#define REOPEN_MS 4000 /* over a network: a TCP and TLS handshake must fit in */

static long long next_try(const struct remote *r)
{
    return time_msec() + (strncmp(r->text, "unix:", 5) ? REOPEN_MS : REOPEN_LOCAL_MS);
}

void remote_set(struct remote *r, struct ovsdb_idl *idl, const char *text)
{
    free(r->text);
    r->text = *text ? xstrdup(text) : NULL;
    ovsdb_idl_set_remote(idl, r->text, true);
    r->reopen_at = r->text ? next_try(r) : 0;
}

bool remote_run(struct remote *r, struct ovsdb_idl *idl)
{
    if (!r->text)
        return false;
    if (ovsdb_idl_is_connected(idl)) {
        r->reopen_at = 0;
        return ovsdb_idl_has_ever_connected(idl);
    }
    if (!r->reopen_at) {
        r->reopen_at = next_try(r);
    } else if (time_msec() >= r->reopen_at) {
        ovsdb_idl_set_remote(idl, NULL, true);
        ovsdb_idl_set_remote(idl, r->text, true);
        r->reopen_at = next_try(r);
    }
    return false;
}

void remote_wait(const struct remote *r)
{
    if (r->text && r->reopen_at)
        poll_timer_wait_until(r->reopen_at);
}

void remote_free(struct remote *r)
{
    free(r->text);
    *r = (struct remote){0};
}
