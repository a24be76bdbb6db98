/* Private to compute/: the inside of a machine. */
#ifndef COHORT_COMPUTE_MACHINE_INT_H
#define COHORT_COMPUTE_MACHINE_INT_H

#include <sys/queue.h>
#include "base/htab.h"
#include "base/proc.h"
#include "base/sm.h"
#include "compute/host/cgroup.h"
#include "compute/lease.h"
#include "compute/machine.h"
#include "compute/qemu/qmp.h"

#define QMP_TIMEOUT_MS 10000

struct machines {
    struct machines_conf conf; /* strings owned */
    char *run_dir, *lease_path, *qemu_path, *guard_path;
    struct htab all;
    struct cgroups cgroups;
    struct lease lease;
    unsigned tsc_khz;
};

/* A descriptor watched for readability; frees itself, so that its owner may go at any time. */
struct watch;
typedef void watch_fn(void *arg);
struct watch *watch_open(uv_loop_t *loop, int fd, watch_fn *fn, void *arg);
void watch_close(struct watch *w); /* NULL is fine; the descriptor may be closed right after */

/* An operation on a machine that waits for the monitor, or for its answer. */
struct op {
    TAILQ_ENTRY(op) entry;
    struct machine *m;
    void (*start)(struct op *op); /* called once the monitor is up */
    void (*fail)(struct op *op, int status, const struct err *e); /* instead of start; must free the op */
    machine_done *done;
    void *arg;
    struct err refusal;
};
TAILQ_HEAD(ops, op);

struct machine {
    struct htab_node node;
    struct machines *ms;
    struct machine_spec spec;
    struct sm sm;
    enum machine_end end;
    char message[256];
    void *priv;

    struct proc qemu, guard;
    struct watch *qemu_watch, *guard_watch, *ready_watch;
    int ready_fd;      /* read end of the guard's ready pipe, -1 */
    bool guard_ready;
    int guard_starts;
    struct qmp *qmp;
    uv_timer_t *timer; /* frees itself */
    struct ops waiting, refused;

    bool fresh;        /* started by this daemon and not let go yet: runs by itself once the guard watches */
    bool status_asked, status_again;
    bool killed, guest_off;
    uint64_t kill_at_ms, press_at_ms, recheck_at_ms, guard_at_ms, refuse_at_ms; /* clock_boot_ms; 0 = not set */
};

/* machine_dir.c: files of one guest */
void machine_path(const struct machines *ms, const char *id, const char *file, char ret_path[MACHINE_PATH_MAX]);
MUST_CHECK int machine_dir_make(const struct machines *ms, const struct machine_spec *s, struct err *e);
void machine_dir_remove(const struct machines *ms, const char *id);
/* Removes what a guest that is not running any more left on this node. */
void machine_clean_up(struct machines *ms, const struct machine_spec *s);
void machine_log_tail(const struct machines *ms, const char *id, char *ret_text, size_t size);

/* machine_run.c: process and guard */
MUST_CHECK int machine_launch(struct machine *m, struct err *e);
void machine_watch_process(struct machine *m);
void machine_connect(struct machine *m);
void machine_guard_start(struct machine *m);
void machine_guard_adopt(struct machine *m);
void machine_arm(struct machine *m); /* sets the timer to the nearest of the *_at_ms */
void machine_detach(struct machine *m, int status); /* closes every handle; ops end with `status` */

/* machine_status.c: what QEMU says */
void machine_ask_status(struct machine *m);
void machine_on_event(struct qmp *q, const char *name, json_t *data, void *arg);
void machine_move(struct machine *m, enum machine_state to);
void machine_say(struct machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void machine_go(struct machine *m); /* first run of a fresh machine, once everything is there */
struct machine *machine_new(struct machines *ms, const struct machine_spec *spec);
void machine_delete(struct machine *m);

/* machine_op.c: operations */
void machine_op_begin(struct op *op);
void machine_op_flush(struct machine *m); /* the monitor came up */
void machine_op_refuse_now(struct machine *m);
void machine_op_fail_all(struct machine *m, int status);

#endif
