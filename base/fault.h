/* Fault points: named places where a test or an operator can make the program fail, stall or die.
 *
 *   if (fault_hit("journal.write")) return err_set(e, E_IO, "injected");
 *
 * Off (one relaxed atomic load) unless armed by fault_arm(), COHORT_FAULTS or the admin socket. Thread-safe.
 * Specification: "NAME=ACTION[:ARG][@N][*]" separated by commas; ACTION is `fail`, `exit` (_exit(99) at once: a power
 * cut of the process) or `delay:MS`; @N acts on the N-th hit only (1 = first, the default), `*` on every hit from there on.
 */
#ifndef COHORT_BASE_FAULT_H
#define COHORT_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

extern bool fault_any; /* true while anything is armed; read relaxed by fault_hit() */
bool fault_hit_slow(const char *name);
static inline bool fault_hit(const char *name)
{
    return __atomic_load_n(&fault_any, __ATOMIC_RELAXED) && fault_hit_slow(name);
}

/* Arms what `spec` says, in addition to what is armed. E_INVAL with the offending part in the message. */
MUST_CHECK int fault_arm(const char *spec, struct err *e);
void fault_disarm_all(void);
/* Hits of `name` since the last fault_disarm_all() while anything was armed: the loop bound of "fail the n-th". */
uint64_t fault_hits(const char *name);

#endif
