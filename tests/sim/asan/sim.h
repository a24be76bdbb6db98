/* A simulated cluster around one shard: nodes with a disk each, links, the database, one guest. Single-threaded, seeded;
 * time is an event queue, so a seed is a run. The owner and replica cores are the shipped code (storage/asan/repl), built
 * with planted faults that can be switched on (mutant.h); the rest stands in for engine/, store/, the cluster database.
 *
 *   clock.c  random numbers, events          db.c      database, transactions that fail, come late, stay unknown
 *   disk.c   journal, destage, power cuts    node.c    processes: start, crash, cut; which node runs a core
 *   net.c    connections and frames          host.c    what a replica does with a frame (engine/host.c, store/)
 *   guest.c  requests; the register model    check.c   invariants, every few milliseconds and at each transaction
 *   faults.c what goes wrong                 run.c     one seed           main.c   options, workers, planted faults
 */
#ifndef COHORT_TESTS_SIM_ASAN_SIM_H
#define COHORT_TESTS_SIM_ASAN_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include "storage/asan/repl/mutant.h"
#include "storage/asan/repl/owner.h"
#include "storage/asan/repl/replica.h"

#define NODES 4
#define CHUNKS 16
#define CHUNK_SECTORS (STORE_CHUNK / 512)
#define SECTORS (CHUNKS * CHUNK_SECTORS)
#define BORDER (2 * STORE_CHUNK) /* op border; a join batch is two of them */
#define LINKS 2

_Static_assert(STORE_CHUNK == 8192, "the simulator is built with small chunks");

/* ---- clock.c ---- */
extern uint64_t rng_state, now_ms;
uint64_t rnd(void);
static inline uint32_t below(uint32_t n) { return (uint32_t)((rnd() >> 32) * n >> 32); }
static inline bool chance(uint32_t permille) { return below(1000) < permille; }
typedef void event_fn(void *a, uint64_t b);
void at(uint64_t delay_ms, event_fn *fn, void *a, uint64_t b);
bool run_one(void); /* false: nothing left */
void clock_reset(void);

/* ---- disk.c ---- */
/* What a disk holds: sectors by the number of the write that made them, versions per chunk, the shard's marks. */
struct disk_state {
    bool exists;
    uint64_t epoch;
    uint32_t id[SECTORS];                 /* 0 = never written, or zeroed */
    struct store_version version[CHUNKS];
    struct store_version last, commit;
};
struct disk_rec { /* one record of the journal */
    bool copy;
    struct store_version version;
    uint64_t commit_seq;
    uint32_t first, count;                /* sectors */
    uint32_t *ids;                        /* count of them */
    struct frame *frame;                  /* whose answer waits for it; NULL once it is durable */
    TAILQ_ENTRY(disk_rec) entry;
};
TAILQ_HEAD(disk_recs, disk_rec);
struct disk {
    struct disk_state mem;                /* newest: what reads, TAIL and VERSIONS see */
    struct disk_state dur;                /* what is durable */
    struct disk_state base;               /* extents and metadata: what a replay starts from */
    struct disk_recs journal;             /* durable, not trimmed, in order */
    struct disk_recs queued;              /* submitted, not durable */
    struct disk_recs limbo;               /* trimmed before they were merged (a planted fault) */
    unsigned n_journal, destage;          /* destage: so many leading records are merged, not trimmed yet */
    bool busy, destaging, fail_next;
    bool dead;                            /* a write failed: nothing works until the disk is swapped */
    uint64_t eio_until;                   /* reads fail */
    bool flipped[SECTORS];                /* bits changed on the medium: a checksum does not match */
};
#define FLIPPED 0xf11bbedu                /* what such a sector reads as if nobody checks */
extern bool disk_counts_copies;           /* does `last` after a restart count copied versions? The core must not care */
extern bool disk_reads_durable;           /* do reads see records only once they are durable? Likewise */
/* What READ and VERSIONS see. */
static inline const struct disk_state *disk_seen(int n);
void disk_submit(int n, struct disk_rec *r);
void disk_fence(int n, uint64_t epoch, struct frame *f);
void disk_mark(int n, struct store_version mark);
/* Records above the commit mark and above `after`, ascending by version; at most `max`. */
size_t disk_tail(int n, struct store_version after, struct store_tail_rec *ret, size_t max);
void disk_crash(int n);                   /* power cut, then replay */
void disk_swap(int n);                    /* an empty one in its place */
void disk_reset(int n);
void disk_free(int n);

/* ---- db.c ---- */
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
int db_intact(const struct db *d);        /* in-sync disks that still hold their content */
void db_changed(void);                    /* views go out */
void db_create(void *node);               /* owner_env */
void db_txn(void *node, const struct owner_txn *t);
void db_claim(int node, uint64_t epoch);  /* raises the epoch; the answer goes to core_poll() */
void db_reset(void);

/* ---- node.c ---- */
struct conn { /* to the replica on a node: in each direction LINKS links, each keeps its order for itself */
    bool up;
    uint64_t gen;                         /* raised when it breaks */
    uint64_t last_ms[2][LINKS];
    bool silent;                          /* what engine/peers.c says of the node */
    uint64_t dark_until;                  /* frames vanish; then the connection is noticed to be broken */
};
struct node {
    int id;
    bool up, cut, lease, rogue;           /* cut: reaches neither peers nor database */
    uint64_t life;                        /* raised by a crash: older events of the node are void */
    uint64_t frozen_until;                /* its replica does not answer */
    bool raise;                           /* swapped disk: must raise its incarnation before it serves */
    struct db view;
    uint64_t first_epoch;                 /* of the first view after the start: may have been used by an earlier life */
    bool claim_busy;
    uint64_t used_epoch;
    struct disk disk;
    struct replica replica;
    bool serving;                         /* replica side is open */
    struct owner *core;
    uint64_t core_epoch;
    struct conn conn[NODES];
};
extern struct node node[NODES];
extern int n_nodes, volume_replicas;
static inline const struct disk_state *disk_seen(int n)
{
    return disk_reads_durable ? &node[n].disk.dur : &node[n].disk.mem;
}
void node_start(int n);
void node_crash(int n);
void node_cut(int n, bool cut);
void node_lease(int n, bool on);
void node_view(int n);                    /* the database's state arrives */
void core_after(int n);                   /* after each event of a core: finished operations to the guest */
void core_poll(int n);                    /* does this node own the volume now? */
bool newest_core_serving(void);
bool reachable(int n);
void world_reset(void);
void world_free(void);

/* ---- net.c ---- */
struct frame { /* a request on its way, then its answer */
    int from, to;
    uint64_t gen, from_life, to_life;
    bool lost, stuck, detained;           /* detained: on its way in a link that has broken */
    struct repl_msg m;
    struct repl_answer a;
    struct iobuf *data;
    struct store_tail_rec *tail;
    struct store_version *versions;
    struct replica_ticket ticket;
    uint64_t wait;
    bool fence_done, queued, early;
    uint64_t early_ms;
    TAILQ_ENTRY(frame) entry, pending;
};
extern struct net_mode { uint32_t late, duplicate; bool links; } net_mode; /* permille; several links at once */
void net_send(void *node, uint32_t disk, const struct repl_msg *m); /* owner_env */
void net_reply(struct frame *f, int status, uint64_t detail);
struct frame *net_copy(const struct frame *f);
void frame_free(struct frame *f);
void conn_break(int from, int to);
void conn_up(void *node, uint64_t life_and_to); /* an event */
void net_crash(int n);
void net_reset(void);
void net_free(void);

/* ---- host.c ---- */
void host_open(int n);
void host_durable(struct frame *f, int status); /* its record is; E_IO: will never be */
void host_fenced(struct frame *f, int status);
void host_frame(struct frame *f);         /* arrived at its replica */
void host_crash(int n);
void host_reset(void);
void host_tick(int n);
extern TAILQ_HEAD(frame_list, frame) host_waiting[NODES]; /* answers that wait for durability */
extern struct frame_list host_early[NODES]; /* writes whose predecessor has not come, by prev_seq */

/* ---- guest.c ---- */
extern int guest_node, guest_active, guest_depth;
extern bool guest_stopped;
void guest_reset(void);
void guest_step(void *a, uint64_t unused); /* an event */
void guest_rogue_write(void);             /* a guest on the wrong side of a partition that was not paused */
void guest_end_life(void);                /* it is dead: what was unfinished may or may not have happened */
void guest_read_all(void);
void guest_restore(void);                 /* writes again what is damaged anywhere */
void guest_done(int n, struct owner_op *op);
void guest_dropped(struct owner_op *op);  /* its core was closed */
void guest_resubmit(int n);               /* a new core on the guest's node */
/* May the sectors differ between in-sync disks: a write to one is under way, or undecided? */
bool guest_pending(uint32_t sector, uint32_t x, uint32_t y);
/* The write that must be on every in-sync disk; false if that is open. */
bool guest_acked(uint32_t sector, uint32_t *ret_id);

/* ---- check.c ---- */
_Noreturn void violation(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
extern bool trace_on;
void trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define TRACE(...) do { if (trace_on) trace(__VA_ARGS__); } while (0)
void check_reset(void);
void check_core_opened(int n, uint64_t epoch);
void check_fenced(int disk, uint64_t epoch); /* was told that the disk obeys it */
void check_opened(int disk, uint64_t epoch); /* 0: an empty one */
void check_write_sent(const struct repl_msg *m, int from);
void check_isr_change(const struct db *old);
void check_state(void);                   /* the whole cluster */
void check_final(void);

/* ---- faults.c ---- */
extern bool faults_on;
void faults_start(void);
void faults_stop(void);

/* ---- run.c ---- */
extern uint64_t seed;
extern struct stats { uint64_t seeds, reads, writes, late, adds, epochs, crashes, checks; } stats;
void run_seed(uint64_t s);

/* ---- main.c ---- */
struct mutant_info { const char *name, *text; };
extern const struct mutant_info mutant_info[MUTANT_N];

#endif
