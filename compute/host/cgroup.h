/* A guest's own control group, in whatever hierarchies this host has: v2, or v1's memory and cpu.
 *
 * Groups are <hierarchy>/<parent>/vm-<id>. Where no hierarchy can be written, guests run without and the reason is told
 * once. Synchronous, short; files of cgroupfs only. */
#ifndef COHORT_COMPUTE_HOST_CGROUP_H
#define COHORT_COMPUTE_HOST_CGROUP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

#define CGROUP_ROOTS_MAX 2

struct cgroups {
    int n;       /* 0: none on this host */
    bool v2;
    char root[CGROUP_ROOTS_MAX][256]; /* v2: one; v1: memory, cpu */
    char parent[128];
    char why_not[128];
};

struct cgroup_limits {
    int64_t memory_max_bytes; /* 0 = none */
    int cpu_max_permille;     /* 0 = none; 1000 = one processor */
    int vcpus;                /* sets the weight among guests */
};

/* Looks at /proc/self/mounts and makes the parent group. parent NULL or "": none. */
void cgroups_open(struct cgroups *g, const char *parent);
/* Makes the guest's group and puts `pid` with all its threads into it. */
MUST_CHECK int cgroup_enter(const struct cgroups *g, const char *id, pid_t pid, const struct cgroup_limits *l, struct err *e);
void cgroup_remove(const struct cgroups *g, const char *id); /* the group must be empty; fine if there is none */
void cgroups_close(struct cgroups *g);                       /* removes the parent if it is empty */

#endif
