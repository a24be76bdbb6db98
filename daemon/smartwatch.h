/* Reads the SMART of the drives behind this node's disks, once after the start and then every hour, into their rows
 * (Disk.smart, smart_state); a drive that gets worse is an event. Where smartctl is not installed or a drive has no SMART, nothing
 * happens. Main loop; smartctl runs as a child, one drive at a time, at most SMART_LIMIT_MS. */
#ifndef COHORT_DAEMON_SMARTWATCH_H
#define COHORT_DAEMON_SMARTWATCH_H

#include "daemon/daemon.h"

#define SMART_LIMIT_MS 60000

struct smartwatch;
struct smartwatch *smartwatch_open(struct daemon *d);
void smartwatch_close(struct smartwatch *w); /* NULL is fine */

#endif
