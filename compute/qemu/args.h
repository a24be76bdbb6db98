/* QEMU's command line for a guest. Pure: no process, file or device is touched. */
#ifndef COHORT_COMPUTE_QEMU_ARGS_H
#define COHORT_COMPUTE_QEMU_ARGS_H

#include <stdbool.h>
#include "compute/spec.h"

struct qemu_args {
    char **v; /* NULL-terminated */
    int n, cap;
};

struct qemu_env {
    const char *program;  /* NULL: qemu-system-x86_64 */
    const char *dir;      /* <run_dir>/vm/<id>: sockets and the serial log are made here */
    bool vhost_net;       /* /dev/vhost-net exists */
    unsigned tsc_khz;     /* rate of the host's time stamp counter; 0 = unknown */
};

/* `s` has passed machine_spec_check(). Caller frees with qemu_args_free(). */
void qemu_args_build(const struct machine_spec *s, const struct qemu_env *env, struct qemu_args *ret_args);
void qemu_args_free(struct qemu_args *a);

#endif
