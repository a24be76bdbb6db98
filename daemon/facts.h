/* What this node is: processors, memory, disks, and what /dev/kvm is worth here. Main loop. */
#ifndef COHORT_DAEMON_FACTS_H
#define COHORT_DAEMON_FACTS_H

#include "daemon/daemon.h"

int64_t facts_cpus(void);
int64_t facts_memory_bytes(void);
int64_t facts_disk_bytes(const char *capacity_path); /* size of the file system or block device; 0 if it cannot be told */

struct facts_accel { char accel[8], reason[256], kvm_cpu[64]; /* QEMU's -cpu under kvm */ };
/* Measured once per process; blocks up to 1.5 s the first time. */
const struct facts_accel *facts_accel(void);

/* Measures in the background and brings this node's row up to date if it differs (new version, memory, accelerator). */
void facts_publish(struct daemon *d);

#endif
