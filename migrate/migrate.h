/* Live migration of guests between nodes: the source drives, the database decides.
 *
 *   source:  checking -> connecting -> precopy -> switchover -> done
 *                  \_________\____________\__________\_______-> cancelled | failed
 *
 * checking    the guest runs, the destination is known and connected
 * connecting  PREPARE: the destination starts a QEMU with everything connected (taps; disks that park, as the volumes are
 *             not its own yet) and says where it listens
 * precopy     memory flows while the guest runs (policy.h makes sure that it ends); READY is pending at the destination
 * switchover  the guest stands still here, its disks are drained, all of it is loaded there, paused. One transaction makes
 *             host, generation, owners and epochs the destination's.
 *
 * The switchover transaction's outcome:
 *   E_OK        FINISH to the destination; the guest here is killed.
 *   E_UNKNOWN   the guest stays paused and the transaction is tried again: its preconditions make that safe.
 *   otherwise   `decline`: a transaction that requires the machine to be still ours and withdraws Machine.migrate_to. Only when
 *               *that* is committed can no stray switchover transaction succeed any more, and the guest goes on here. If it is
 *               refused, the view will show what happened instead.
 * Whatever fails before the switchover transaction was sent leaves the guest running here (or kills it, if by then the
 * database has given it to someone else).
 *
 * The destination resumes the guest when its own view of the database says that it is the host, FINISH or not; it kills what
 * it prepared when the database says otherwise, or when the source's QEMU vanished before everything had arrived.
 *
 * After a restart of the source's daemon in the middle: the machine is adopted in RUNNING (call machine_migrate_cancel()
 * and withdraw migrate_to), PAUSED or MOVED: first a `decline` transaction, then machine_resume() if it was committed, machine_kill()
 * if the view says that the guest lives elsewhere. A restarted destination finds its machine INCOMING or PAUSED with the
 * generation that it will have: generation + 1 and host self in the database -> machine_resume(), otherwise kill.
 *
 * Threading: main loop. */
#ifndef COHORT_MIGRATE_MIGRATE_H
#define COHORT_MIGRATE_MIGRATE_H

#include "base/err.h"
#include "compute/machine.h"
#include "migrate/policy.h"
#include "proto/rpc.h"

struct migrate;

enum migrate_place { /* what the current view of the database says of a machine */
    MIGRATE_NOT_KNOWN,  /* no view yet */
    MIGRATE_WANTED,     /* host is the source, generation is the one given, migrate_to is the destination */
    MIGRATE_NOT_WANTED, /* as before, but migrate_to is something else */
    MIGRATE_MOVED,      /* host is the destination, generation + 1 */
    MIGRATE_ELSEWHERE,  /* anything else: deleted, restarted by the coordinator, … */
};

enum migrate_state { MIGRATE_CHECKING, MIGRATE_CONNECTING, MIGRATE_PRECOPY, MIGRATE_SWITCHOVER, MIGRATE_DONE, MIGRATE_CANCELLED, MIGRATE_FAILED };
const char *migrate_state_name(enum migrate_state s);

struct migrate_progress {
    enum migrate_state state;
    int64_t done_bytes, total_bytes; /* memory of which the destination has the last version, of all */
    int64_t rate_bytes_s;
    int eta_s;                       /* -1 = not known */
    int rounds, throttle;            /* passes over memory; percent by which the guest is slowed down now */
    int pause_ms;                    /* when done: how long the guest stood still, until the destination's word that it runs */
};

struct migrate_key {
    char machine[ID_LEN + 1];
    int64_t generation; /* at the source */
    char source[ID_LEN + 1], dest[ID_LEN + 1]; /* node ids */
};

typedef void migrate_committed(void *arg, int status, const struct err *e);
typedef void migrate_prepared(void *arg, int status, struct machine *m, const struct err *e);

struct migrate_ops { /* the daemon's part; callbacks given to it are called once, on the loop, not inside the call */
    /* -- source -- */
    struct rpc_peer *(*peer)(void *ctx, const char *node); /* NULL: no such node */
    /* The switchover transaction: requires host == source, generation, migrate_to == dest and every volume's epoch; sets
     * host = dest, generation + 1, migrate_to = "", volumes' owner = dest and epoch + 1. */
    void (*commit)(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg);
    /* Requires host == source and generation; sets migrate_to = "". */
    void (*decline)(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg);
    void (*progress)(void *ctx, const char *machine, const struct migrate_progress *p);
    /* The migration is over at the source. Not MIGRATE_DONE: the guest is here; the daemon withdraws migrate_to if it is still
     * set. MIGRATE_DONE: the guest here has been killed (its machine ends by itself). */
    void (*ended)(void *ctx, const char *machine, enum migrate_state how, const struct migrate_progress *p, const char *message);
    /* -- both -- */
    enum migrate_place (*place)(void *ctx, const struct migrate_key *k);
    /* -- destination -- */
    /* Checks resources, puts local paths (kernel, disk sockets, taps) into `spec`, has the disks' sockets listening and
     * starts it with machine_start(). spec->incoming is set and spec->generation is the new one. E_NOSPC and the like. */
    void (*prepare)(void *ctx, const struct migrate_key *k, const struct machine_spec *spec, migrate_prepared *fn, void *arg);
};

struct migrate_conf {
    uv_loop_t *loop;
    struct rpc_env *rpc;       /* RPC_MIGRATE_* handlers are registered on it: before it listens */
    const char *address;       /* this node's cluster address: where an incoming QEMU listens; copied */
    uint16_t first_port;       /* and the first of 64 ports */
    const struct migrate_ops *ops;
    void *ctx;
};

struct migrate_options {
    int downtime_ms;           /* 0 = 300 */
    int64_t max_bandwidth;     /* bytes/s; 0 = no limit */
    enum policy_last last;     /* when the guest writes too fast */
    unsigned deadline_s;       /* 0 = none */
};

MUST_CHECK int migrate_open(const struct migrate_conf *conf, struct migrate **ret_mg, struct err *e);
/* Forgets running migrations (a QEMU that is sending goes on by itself: see above). The loop must run once more. Close the
 * machines after it. */
void migrate_close(struct migrate *mg);

/* Begins at the source. The outcome comes by ops->ended. E_EXISTS: one is running; E_INVAL: the guest does not run;
 * E_NOTFOUND: no such node. */
MUST_CHECK int migrate_start(struct migrate *mg, struct machine *m, const char *dest_node, const struct migrate_options *o, struct err *e);
/* Asks a running one to stop; from the switchover on it is too late. E_NOTFOUND, E_CONFLICT. */
MUST_CHECK int migrate_cancel(struct migrate *mg, const char *machine, struct err *e);
/* Does a migration own this machine at the moment, as source or destination? Then the reconciler leaves it alone. */
bool migrate_owns(const struct migrate *mg, const char *machine);

/* The daemon tells: a new view of the database; a machine's `changed` (any machine; before the daemon frees an ended one). */
void migrate_db_changed(struct migrate *mg);
void migrate_machine_changed(struct migrate *mg, struct machine *m);

#endif
