/* Tap devices of guests: made by us so that they exist, and can be bound to the virtual network, before QEMU opens them.
 * Persistent until removed. Synchronous, short. */
#ifndef COHORT_COMPUTE_HOST_TAP_H
#define COHORT_COMPUTE_HOST_TAP_H

#include <stdbool.h>
#include "base/err.h"

/* Makes the tap `name` in the caller's network namespace (or takes over the one that is there), sets the MTU (0 = leave)
 * and brings it up. The host itself gets no address on it. E_INVAL, E_PERM, E_EXISTS (a device of another kind), E_BUSY. */
MUST_CHECK int tap_make(const char *name, int mtu, struct err *e);
/* Removes it; fine if it is gone. Nothing may have it open. */
MUST_CHECK int tap_remove(const char *name, struct err *e);

#endif
