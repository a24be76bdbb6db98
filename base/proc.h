/* Child processes that outlive us: started detached (own session), remembered by pid + start time in a file, and
 * adopted again after a restart of the daemon. Pid reuse cannot fool it: /proc/PID/stat field 22 (start time) must match.
 *
 * Synchronous, short calls; main thread. */
#ifndef COHORT_BASE_PROC_H
#define COHORT_BASE_PROC_H

#include <stdbool.h>
#include <sys/types.h>
#include "base/err.h"

struct proc {
    pid_t pid;           /* 0 = none */
    unsigned long long start_ticks;
    int pidfd;           /* -1 or a pidfd: becomes readable when the process ends (uv_poll it) */
};

struct proc_spec {
    const char *const *argv;   /* NULL-terminated; argv[0] is searched in PATH */
    const char *const *env;    /* NULL, or NULL-terminated "K=V" added to ours */
    const char *log_file;      /* stdout and stderr, appended; NULL = ours */
    const char *pid_file;      /* written (atomically) by proc_start, read by proc_adopt; NULL = none */
    const char *cgroup_procs;  /* NULL, or a cgroup.procs/tasks file that the child enters before exec */
    const int *keep_fds;       /* NULL, or -1-terminated descriptors the child keeps under the same number */
};

/* Starts the program. Failures of exec itself are reported here too (a close-on-exec pipe brings the errno back). */
MUST_CHECK int proc_start(const struct proc_spec *spec, struct proc *ret_proc, struct err *e);
/* Finds the process named by `pid_file`. E_NOTFOUND when there is no file or that process is gone. */
MUST_CHECK int proc_adopt(const char *pid_file, struct proc *ret_proc, struct err *e);
bool proc_alive(const struct proc *p);
void proc_signal(const struct proc *p, int sig); /* by pidfd; nothing if gone */
void proc_close(struct proc *p);                 /* forgets it (closes the pidfd); the process lives on */

#endif
