/* A simulated cluster around one shard: nodes with a disk each, connections, the database, one guest. Single-threaded,
 * seeded; time is an event queue. test_asan_repl.c drives it; asan_world.c and asan_net.c implement it. */
#ifndef COHORT_TESTS_SIM_ASAN_WORLD_H
#define COHORT_TESTS_SIM_ASAN_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include "storage/asan/repl/owner.h"
#include "storage/asan/repl/replica.h"

#define NODES 4
#define CHUNKS 16
#define CHUNK_SECTORS (STORE_CHUNK / 512)
#define SECTORS (CHUNKS * CHUNK_SECTORS)
#define BORDER (2 * STORE_CHUNK) /* op border; a join batch is two of them */
#define GUEST_OPS 24
#define CAND 48

/* ---- random ---- */
extern uint64_t rng_state;
uint64_t rnd(void);
static inline uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }
static inline bool chance(uint32_t permille) { return below(1000) < permille; }

/* ---- events ---- */
extern uint64_t now_ms;
typedef void event_fn(void *a, uint64_t b);
void at(uint64_t delay_ms, event_fn *fn, void *a, uint64_t b);
bool run_one(void); /* false: nothing left */

/* ---- a disk: a log of operations that become durable in order; a crash keeps a prefix ---- */
struct disk_rec { struct store_version version; uint32_t first, count; bool zero; };
struct disk_state {
    bool exists;
    uint64_t epoch;
    uint32_t id[SECTORS];                 /* which write's bytes; 0 = never written */
    struct store_version version[CHUNKS];
    struct store_version last, commit;
    struct disk_rec *rec;                 /* journal, in order */
    size_t n_rec, cap_rec;
};
struct disk_op {
    enum { D_FENCE, D_WRITE, D_COPY } kind;
    uint64_t epoch;
    struct store_version version;
    uint64_t commit_seq;
    uint32_t first, count;                /* sectors */
    uint32_t *ids;                        /* count of them */
    void (*done)(struct disk_op *op, void *arg);
    void *arg;
    uint64_t life;
    struct disk_op *next;
};
struct disk {
    struct disk_state mem, dur;           /* newest; durable */
    struct disk_op *head, **tail;         /* submitted, not durable */
    bool busy, corrupt[SECTORS];
};
void disk_submit(int node, struct disk_op *op);
void disk_crash(int node);
void disk_wipe(int node);

/* ---- the database ---- */
struct db {
    uint64_t rev;
    int owner;                            /* node, -1 none */
    uint64_t epoch;
    bool exists;
    uint64_t generation;
    int n_replicas, replica[OWNER_MEMBERS_MAX];
    uint64_t in_sync[NODES];              /* incarnation, 0 = not listed */
    uint64_t incarnation[NODES];
};
extern struct db db;
bool db_in_sync(const struct db *d, int disk);
int db_isr_count(const struct db *d);
void db_changed(void);                    /* views go out */

/* ---- nodes ---- */
struct node {
    int id;
    bool up, cut, lease, rogue;           /* cut: reaches neither peers nor database */
    uint64_t life;                        /* raised by a crash: older events of the node are void */
    uint64_t frozen_until;                /* its replica does not answer */
    bool raise;                           /* wiped: must raise its incarnation before it serves */
    struct db view;
    uint64_t first_epoch;                 /* of the first view after the start: may have been used by an earlier life */
    bool claim_busy;
    uint64_t used_epoch;
    struct disk disk;
    struct replica replica;
    bool serving;                         /* replica side is open */
    struct owner *core;
    uint64_t core_epoch;
    struct { bool up; uint64_t gen, last_ms, reply_ms; } conn[NODES]; /* to the replica on that node */
};
extern struct node node[NODES];
extern int n_nodes, volume_replicas;
extern unsigned owner_bugs, replica_bugs;
extern bool store_counts_copies;          /* does `last` of a FENCE answer after a restart count copied versions? */

void node_start(int n);
void node_crash(int n);
void node_cut(int n, bool cut);
void conn_break(int from, int to);
void conn_up(void *node, uint64_t life_and_to); /* an event */
void send_frame(void *node, uint32_t disk, const struct repl_msg *m);
void net_crash(int n);
void net_reset(void);
void net_free(void);
void core_after(int n);                   /* after each event of a core: finished operations to the guest */
void core_poll(int n);                    /* does this node own the volume now? */
bool newest_core_serving(void);

/* ---- the guest (test_asan_repl.c) ---- */
void guest_done(int n, struct owner_op *op);
void guest_dropped(struct owner_op *op);  /* its core was closed */
void guest_resubmit(int n);               /* a new core on the guest's node */
void check_added(int disk);               /* a transaction just put `disk` into the in-sync set */
_Noreturn void violation(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
extern bool trace_on;
void trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

void world_reset(void);
void world_free(void);

#endif
