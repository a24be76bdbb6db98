/* Clocks. Leases and timeouts use CLOCK_BOOTTIME (it goes on during suspend); wall time is for people only and
 * decides nothing. Thread-safe. */
#ifndef COHORT_BASE_CLOCK_H
#define COHORT_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_boot_ns(void);  /* nanoseconds since boot, monotonic */
uint64_t clock_boot_ms(void);
int64_t clock_wall_ms(void);   /* milliseconds since 1970, UTC */
/* "2026-11-21T01:02:03.123Z" into `buf` of at least 32 bytes; returns buf. */
char *clock_wall_format(int64_t wall_ms, char *buf);

#endif
