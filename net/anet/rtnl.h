/* The few rtnetlink requests that putting an uplink below a bridge needs. Synchronous, short; any thread; acts on the
 * calling thread's network namespace. IPv4 only: the underlay is IPv4. */
#ifndef COHORT_NET_ANET_RTNL_H
#define COHORT_NET_ANET_RTNL_H

#include <stdbool.h>
#include "base/err.h"

/* Hardware address as text. E_NOTFOUND without such an interface. */
MUST_CHECK int rtnl_mac(const char *ifname, char ret[18], struct err *e);
/* Sets the interface up; *ret_was_up tells whether it was already. */
MUST_CHECK int rtnl_up(const char *ifname, bool *ret_was_up, struct err *e);
/* Moves every IPv4 address, then every route of the main table that is not the kernel's own, from one interface to
 * another. Addresses exist on both for an instant and connections survive. Whatever stage an earlier attempt reached,
 * repeating it completes it. *ret_moved counts addresses moved now. */
MUST_CHECK int rtnl_move(const char *from, const char *to, int *ret_moved, struct err *e);

#endif
