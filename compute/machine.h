/* Guests of this node: one interface, whatever runs them (today QEMU; compute/qemu/).
 *
 * A guest is a process that outlives the daemon. All that is needed to find it again lies in <run_dir>/vm/<id>/: its
 * specification (spec.json, with the generation that names this life of the guest), pid files, control sockets.
 *
 * Life:   STARTING --> INCOMING --> PAUSED <--> RUNNING --> ENDED
 *             \-----------------------^-----------^            (ENDED may follow every state)
 *         RUNNING/PAUSED --> MOVED (a migration out has completed: the destination has it all; decided by the database)
 *
 * A guest never runs without its guard (compute/guard/): the processors start only after the guard said that it watches.
 *
 * Threading: everything on the libuv loop given to machines_open(). Functions never call back inside the call that
 * started the operation, except where noted. Ownership: a struct machine belongs to `machines`; the daemon frees it with
 * machine_free() once it is ENDED.
 */
#ifndef COHORT_COMPUTE_MACHINE_H
#define COHORT_COMPUTE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"
#include "compute/spec.h"

struct machines; /* all guests of this node */
struct machine;

enum machine_state {
    MACHINE_STARTING, /* started or found again; its monitor or guard has not answered yet */
    MACHINE_INCOMING, /* waits for or receives a migration */
    MACHINE_PAUSED,   /* by us, or by the guard when the lease ran out */
    MACHINE_RUNNING,
    MACHINE_MOVED,    /* migrated away; stands still with everything intact: resume it or kill it, as the database says */
    MACHINE_ENDED,    /* the process is gone and everything of it on this node is cleaned up */
};
const char *machine_state_name(enum machine_state s);

enum machine_end {
    MACHINE_END_NONE,
    MACHINE_END_GUEST,  /* switched itself off, or obeyed machine_stop() */
    MACHINE_END_KILLED, /* by machine_kill(), or by machine_stop() after its grace */
    MACHINE_END_FAILED, /* never came up, crashed, or was killed by someone else; machine_message() says more */
};

struct machines_conf {
    uv_loop_t *loop;
    const char *run_dir;    /* e.g. /run/cohort */
    const char *lease_path; /* the node's lease page, compute/lease.h */
    const char *qemu_path;  /* NULL: qemu-system-x86_64 from PATH */
    const char *guard_path; /* the cohort-guard program */
    const char *cgroup;     /* "cohort/<node>": below the root of the cgroup hierarchies; NULL = no cgroups */
    /* State, end or message of a machine changed. May call any machine_*() function, machine_free() too if it is ENDED. */
    void (*changed)(struct machine *m, void *arg);
    void *arg;
};

/* Strings are copied. E_INVAL if run_dir is too long for the sockets in it; E_IO. */
MUST_CHECK int machines_open(const struct machines_conf *conf, struct machines **ret_ms, struct err *e);
/* Forgets every guest; they run on. Pending callbacks are dropped. Memory goes once the loop has run. */
void machines_close(struct machines *ms);

/* After a restart of the daemon: finds every guest whose process lives; each begins in STARTING and reports by `changed`
 * when its monitor has answered. What dead ones left (taps, cgroup, directory) is removed. Returns how many were found. */
int machines_adopt(struct machines *ms);

struct machine *machines_find(struct machines *ms, const char *id); /* NULL if unknown */
/* Any order; the current one may be freed between calls only after its successor was taken. */
struct machine *machines_first(struct machines *ms);
struct machine *machines_next(struct machines *ms, struct machine *m);

/* Starts a guest; the sockets of its disks must be listening. Not `incoming`: it runs as soon as its guard watches.
 * Incoming: it waits in INCOMING for machine_migrate_in(). E_EXISTS: there is one with this id. E_INVAL: spec. */
MUST_CHECK int machine_start(struct machines *ms, const struct machine_spec *spec, struct machine **ret_m, struct err *e);

const struct machine_spec *machine_spec(const struct machine *m);
enum machine_state machine_state(const struct machine *m);
enum machine_end machine_end(const struct machine *m);
const char *machine_message(const struct machine *m); /* "" or why, in words */
pid_t machine_pid(const struct machine *m);
/* Its process stands still because the guard had to freeze it (the monitor did not answer when the lease ran out): the state
 * is what it was before; machine_resume() wakes it. */
bool machine_frozen(const struct machine *m);
/* Unix socket of the serial console, of at least 108 bytes. */
void machine_console_path(const struct machine *m, char ret_path[108]);
void machine_set_priv(struct machine *m, void *priv); /* the daemon's own */
void *machine_priv(const struct machine *m);

/* Ends an operation: status 0 or a code with `e`. E_CANCELED: the machine ended or machines_close(). */
typedef void machine_done(struct machine *m, int status, const struct err *e, void *arg);

void machine_pause(struct machine *m, machine_done *done, void *arg);
/* Lets it run; wakes it first if the guard had to freeze its process. E_UNAVAIL without a valid lease (the guard would
 * stop it again at once). The caller has made sure with the database that the guest is ours. */
void machine_resume(struct machine *m, machine_done *done, void *arg);
/* Presses the power button, again every 3 s; after `grace_ms` kills. One that is not running is killed at once. The result
 * is the change to ENDED. */
void machine_stop(struct machine *m, unsigned grace_ms);
void machine_kill(struct machine *m);
/* Of an ENDED machine. */
void machine_free(struct machine *m);

/* ---- live migration: steps for migrate/, which owns their order ---- */

struct machine_migrate_params {
    int64_t max_bandwidth; /* bytes/s; 0 = no limit */
    int downtime_limit_ms;
    int throttle_max;      /* percent by which the guest's processors may be slowed down to converge; 0 = not at all */
};

enum machine_migrate_status { MACHINE_MIG_NONE, MACHINE_MIG_ACTIVE, MACHINE_MIG_COMPLETED, MACHINE_MIG_FAILED, MACHINE_MIG_CANCELLED };

struct machine_migrate_stat {
    enum machine_migrate_status status;
    int64_t total_bytes, remaining_bytes, transferred_bytes;
    int64_t rate_bytes_s, dirty_bytes_s; /* as measured in the last round */
    int rounds;                          /* passes over memory so far */
    int throttle;                        /* percent, now */
    int downtime_ms;                     /* expected, or when completed as QEMU measured it (optimistic) */
    char error[256];
};
typedef void machine_migrate_stat_done(struct machine *m, int status, const struct machine_migrate_stat *st, const struct err *e, void *arg);
typedef void machine_migrate_in_done(struct machine *m, int status, uint16_t port, const struct err *e, void *arg);

/* Destination, state INCOMING: listens on `address`, first free port of first_port .. first_port+63. When all has
 * arrived the machine changes to PAUSED. If the source vanishes before, the machine ends. */
void machine_migrate_in(struct machine *m, const char *address, uint16_t first_port, machine_migrate_in_done *done, void *arg);
/* Source: begins to send. Progress by machine_migrate_query() and `changed` (MOVED when it completed). */
void machine_migrate_out(struct machine *m, const char *address, uint16_t port, const struct machine_migrate_params *p,
                         machine_done *done, void *arg);
/* Changes a running migration. */
void machine_migrate_tune(struct machine *m, const struct machine_migrate_params *p, machine_done *done, void *arg);
void machine_migrate_query(struct machine *m, machine_migrate_stat_done *done, void *arg);
/* Ends an active migration; the guest goes on at the source. Fine if there is none. */
void machine_migrate_cancel(struct machine *m, machine_done *done, void *arg);
/* Destination, after it runs: the guest's addresses are announced (RARP) on its NICs. */
void machine_announce(struct machine *m);

#endif
