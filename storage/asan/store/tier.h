/* Tiers: what the fast device of a disk is used for. A disk has a fast and a capacity path; their roles follow from the
 * devices below them:
 *
 *   both      one device, or a capacity device that is flash itself: the journal is all the fast path holds
 *   separate  fast is flash, capacity has platters: 30 % of the fast device for the journal, 70 % for the read cache
 */
#ifndef COHORT_STORAGE_STORE_TIER_H
#define COHORT_STORAGE_STORE_TIER_H

#include <stdbool.h>
#include <stdint.h>

struct tier { bool separate; uint64_t journal_bytes, cache_bytes; }; /* cache 0 = none */

/* Of the two paths, which exist. `sharing`: disks with their fast path on the same device, this one included. What cannot be
 * found out counts as flash. Blocks briefly (stat, sysfs). */
void tier_of(const char *fast, const char *capacity, unsigned sharing, struct tier *ret);
/* Its arithmetic: from the size of the fast device. The journal is bounded so that a replay is, too. */
void tier_split(uint64_t fast_bytes, unsigned sharing, struct tier *ret);
/* Are two paths on one device? False if either cannot be looked at. */
bool tier_same_device(const char *a, const char *b);

#endif
