/* The OVN programs that this node runs: ovn-northd on voters, ovn-controller everywhere. They outlive the daemon (pid
 * files, base/proc.h), are adopted again by a later start, and restarted when they die.
 *
 *   off --want--> running --died, or could not be started--> waiting --time--> running
 *
 * Not wanted any more: SIGTERM (ovn-controller then withdraws its chassis). Other arguments wanted: SIGKILL, so that
 * flows and chassis stay, and started anew.
 *
 * Main thread.
 */
#ifndef COHORT_NET_ANET_SUPERVISE_H
#define COHORT_NET_ANET_SUPERVISE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>
#include "base/err.h"

struct service;

/* `env`: NULL-terminated, copied. `run_dir` gets NAME.pid and NAME.log. */
struct service *service_open(uv_loop_t *loop, const char *name, const char *run_dir, const char *const *env);
void service_close(struct service *s); /* the process lives on; memory goes with the loop */

/* Shall run with these arguments (NULL-terminated, copied). A running process with others is replaced. */
void service_want(struct service *s, const char *const *argv);
/* Adopts one that runs, whatever its arguments, without starting any. */
void service_adopt(struct service *s);
void service_restart(struct service *s); /* if wanted */
void service_stop(struct service *s);    /* SIGTERM, no more restarts */

struct service_status {
    const char *state;  /* "off" "running" "waiting" */
    pid_t pid;
    unsigned starts, deaths;
    char error[256];
};
void service_get_status(const struct service *s, struct service_status *ret);

#endif
