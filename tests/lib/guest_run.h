/* Helpers for tests that run real guests: a private directory, a lease, the loop driven until a condition holds. */
#ifndef COHORT_TESTS_GUEST_RUN_H
#define COHORT_TESTS_GUEST_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>
#include "compute/lease.h"
#include "compute/machine.h"

struct rig { /* one "node" */
    uv_loop_t *loop;
    char dir[64], lease_path[96]; /* /tmp/cohort-test-<pid>-XXXXXX */
    struct lease lease;
    struct machines *ms;
    void (*on_change)(struct machine *m, void *arg); /* NULL, or called for every `changed` */
    void *on_change_arg;
};

/* Exits 77 with a reason if this machine cannot run guests. Then forks: the tests go on in the child, while this process
 * waits and in the end kills whatever the child left running (guests have sessions of their own), removes its directories,
 * and exits with the child's status. First call of main(). */
void rig_require(void);
void rig_open(struct rig *r, uv_loop_t *loop); /* makes the directory, a lease of an hour, opens machines */
void rig_reopen(struct rig *r);                /* as a new daemon: opens machines again, without adopting */
void rig_close(struct rig *r);                 /* kills what still runs, checks that nothing is left, removes the directory */
void rig_lease_ms(struct rig *r, int64_t ms);  /* the lease runs for so long from now */

/* A guest of tests/lib/guest_pvh.c. */
void rig_spec(struct machine_spec *s, enum machine_type type, enum machine_accel accel);

typedef bool rig_cond(void *arg);
/* Runs the loop until cond(arg); false after `ms`. */
bool rig_until(uv_loop_t *loop, rig_cond *cond, void *arg, unsigned ms);
bool rig_until_state(struct machine *m, enum machine_state s, unsigned ms);
void rig_run_ms(uv_loop_t *loop, unsigned ms);
/* Number of the last "ok <n>" on the guest's serial log; -1 none yet; -2 "BAD" was printed: its memory is damaged. */
long rig_guest_sweep(const struct rig *r, const struct machine_spec *s);
/* Waits until the guest made `n` more sweeps. */
bool rig_guest_goes_on(const struct rig *r, const struct machine_spec *s, long n, unsigned ms);

/* qemu-storage-daemon serving `bytes` of zeroes at `socket` as vhost-user-blk. Returns its pid. */
pid_t rig_disk(const struct rig *r, const char *socket, long bytes);
void rig_disk_end(pid_t pid);

#endif
