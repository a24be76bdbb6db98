/* Engine, private: what its files share. Everything here belongs to the I/O thread, but for what struct asan says.
 *
 *   qos.c     limits of a volume (pure)                             check.c   comparing and repairing copies
 *   crypt.c   encryption of sectors                                 keys.c    keys of volumes, the cluster key from peers
 *   scrub.c   reading all that is on the local disks                digest.c  replica side of check.c
 *   asan.c    thread, start and stop, calls from other threads      view.c    the database's view: disks, nodes, volumes
 *   disk.c    this node's stores, their incarnations, failures      peers.c   connections to other nodes
 *   host.c    replica side: a shard's requests on one local disk    server.c  the same for peers (RPC)
 *   link.c    owner side: messages to replicas, here or there       shard.c   an owner core and its database transactions
 *   volume.c  requests: split, order, completion                    own.c     when a volume is opened, claimed, released
 *   place.c   where a new shard's replicas go                       drop.c    deleted volumes
 *   tidy.c    copies that have moved away                           disk_health.c slow and frozen disks
 *   resync.c  how many joins at once, their Tasks                   sealed.c  reading images without owning them
 *   front.c   vhost, NBD, asan_io                                   usage.c   how full the disks are
 *   dump.c    JSON
 *   layer.c   volumes over sealed ones: reads that fall through, first writes of a chunk      snap.c  snapshots
 *   reclaim.c layers of deleted snapshots, flattening of clones       changed.c what differs from a snapshot
 */
#ifndef COHORT_STORAGE_ENGINE_PRIV_H
#define COHORT_STORAGE_ENGINE_PRIV_H

#include <pthread.h>
#include <uv.h>
#include "base/htab.h"
#include "cluster/cdb.h"
#include "proto/rpc.h"
#include "proto/storage.pb-c.h"
#include "storage/asan/engine/asan.h"
#include "storage/asan/engine/crypt.h"
#include "storage/asan/engine/qos.h"
#include "storage/asan/engine/health.h"
#include "storage/asan/engine/pace.h"
#include "storage/asan/repl/owner.h"
#include "storage/asan/repl/replica.h"
#include "storage/asan/store/store.h"
#include "storage/asan/vol.h"

#define TICK_MS 50
#define CALL_TIMEOUT_MS 5000
#define JOINS_MAX 32   /* shards at a time that are brought up to date; most only compare */
#define COPYING_MAX 8  /* of them with much to copy */
#define SHARDS_MAX 64
#define TAIL_PAGE 4096u
#define VERSIONS_MAX 4096u

struct later { /* runs from the loop, at the end of this turn if it can; ends recursion between callbacks */
    void (*run)(struct later *l);
    TAILQ_ENTRY(later) entry;
};

struct plink { /* one connection to a node: to one of its storage addresses, or to its cluster address as a stand-by */
    struct peer *p;              /* NULL: closed, lives on for its calls */
    char address[64];
    bool standby, up;
    struct rpc_peer *rpc;
    unsigned refs;               /* p's, and one per call on its way */
    uint64_t out_bytes;          /* of calls on their way */
    struct rpc_call ping;
    bool pinging;
    uint64_t ping_ms, answered_ms; /* uv_now(): the last ping sent; when the last one that was answered was sent */
    uint64_t down_ms;            /* now_ms() */
    bool reported;               /* down, and people know */
};

struct peer {
    struct asan *a;
    char node[ID_LEN + 1];
    uint16_t port;
    bool connected, seen;        /* over any of its links */
    bool silent;                 /* connected, but answers nothing */
    uint64_t heard_ms, quiet_ms; /* last byte; how long pings have waited without one, in time that our loop was awake */
    int n_links;
    struct plink *link[ASAN_LINKS_MAX + 1];
    LIST_ENTRY(peer) entry;
};

/* One per disk of the cluster. Its number is what the owner cores know it by; numbers are never given twice. */
struct gdisk {
    uint32_t number;
    char id[ID_LEN + 1], node[ID_LEN + 1], name[64];
    uint64_t incarnation;
    bool exists, usable;         /* row there; disk and node up */
    bool changed;                /* in the view that is being taken apart */
    bool full;
    struct ldisk *local;         /* on this node */
    uint64_t batch, batch_incarnation, batch_guard; /* shard.c: batches that require this incarnation, that write its guard already */
};

struct ldisk { /* a disk of this node */
    struct asan *a;
    char id[ID_LEN + 1], *name, *fast, *capacity; /* id "": it was removed, its place is free */
    const struct gdisk *global;  /* the cluster's idea of it, as last looked up; gdisks stay until the end */
    uint64_t limit_bytes;
    uint64_t memory_bytes;       /* of medium memory: its tmpfs (memory.h); 0 = storage */
    enum { LD_WAIT_ROW, LD_RAISING, LD_READY, LD_FAILED } state;
    struct store *store;
    bool fresh;                  /* formatted now, or damaged: the incarnation must be raised before it serves */
    bool txn_busy, announced;    /* announced: the failure is in the database */
    bool reopening;              /* closes, to be opened anew: there is another device behind its paths */
    bool retiring;               /* closes for good: its row is gone */
    struct err failure;
    uint64_t retry_ms;
    struct scrub *scrub;
    struct htab shards;          /* struct rshard */
    struct health health;
    enum health_verdict health_told, health_telling; /* the database knows; the transaction under way says */
    bool health_busy, was_isolated;
    uint64_t health_retry_ms;
    struct tidy *tidy;           /* copies that are being dropped: requests for them are refused; NULL = none */
    uint64_t tidy_ms;            /* next look */
    int tidy_one;                /* so many more, one by one */
    struct htab leftovers;       /* of shards that are gone, and since when */
};

TAILQ_HEAD(hreq_list, hreq);

struct rshard { /* a replica of a shard on a local disk */
    struct htab_node node;
    struct ldisk *disk;
    struct store_shard_id id;
    uint64_t shard_bytes;        /* 0 = not made yet */
    struct replica core;
    struct hreq_list waiting;    /* answers that wait for durability */
    struct hreq_list early;      /* writes that overtook others on another link; ascending seq */
};

static inline unsigned chunks_touched(uint64_t offset, uint32_t length)
{
    return (unsigned)((offset + length - 1) / STORE_CHUNK - offset / STORE_CHUNK) + 1;
}

/* Bytes that the answer of a REPL_READ carries. */
static inline uint32_t read_bytes(const struct repl_msg *m)
{
    return m->digest ? (uint32_t)sizeof(struct repl_digest) : m->map ? m->length / STORE_MAP_BLOCK : m->length;
}

/* A request to a local replica, from a peer or from a core here. */
struct hreq {
    struct repl_msg m;           /* m.data: our reference */
    struct asan *a;
    struct rshard *rs;
    void (*done)(struct hreq *h, const struct repl_answer *ans);
    void *arg;
    struct replica_ticket ticket;
    uint64_t wait;
    bool fenced, queued;
    uint64_t early_ms;           /* since when it is early; 0 = it is not */
    struct repl_answer ans;      /* for an answer given later */
    struct later later;
    union {
        struct store_op op;
        struct store_write write;
        struct store_read read;
        struct store_versions versions;
        struct store_copy copy;
    } st;
    struct store_version *versions;
    struct store_tail_rec *tail;
    TAILQ_ENTRY(hreq) entry;
    TAILQ_ENTRY(hreq) early_entry; /* asan's list */
};

struct shard {
    struct volume *v;            /* NULL once the volume is gone */
    uint32_t index;
    struct owner *core;          /* NULL: closed */
    unsigned refs;               /* the volume's one, and one per message or transaction on its way */
    uint64_t epoch;              /* of the core */
    bool reported_join, may_join; /* may_join: as its core was told */
    uint64_t copied_seen;        /* of owner_copied(), already counted */
    uint8_t *have;               /* layered: bit per chunk known to be written in this layer, by this core */
};

struct part { /* the piece of a request that lies in one shard and one border */
    struct owner_op op;
    struct vreq *req;
    struct volume *v;
    uint32_t shard;
    size_t data_pos;             /* in the request's bytes */
    struct iobuf *bytes;         /* a write's */
    unsigned tried;              /* sealed: members that failed */
    bool judged;                 /* what has changed: its bytes are the answer */
    uint64_t retry_ms;
    struct cow *cow;             /* it holds its chunks while their first bytes come from below (layer.c) */
    TAILQ_ENTRY(part) entry;     /* v->parked, v->cow_waits */
};

struct vreq { /* one vol_req on its way */
    struct vol_req *r;
    struct volume *v;
    uint64_t cursor;             /* zero, discard: bytes already cut into parts */
    unsigned left;               /* parts on their way; flush: writes before it */
    int status;
    bool started, in_cut;
    uint64_t begun_ns;
    bool cut;                    /* every part has been made */
    struct later later;
    TAILQ_ENTRY(vreq) entry;
};

struct volume { /* one per row of Volume */
    struct vol vol;              /* first: what front ends hold */
    struct asan *a;
    struct htab_node node, data_node;
    char id[ID_LEN + 1];
    char data[ID_LEN + 1];       /* what its replicas call it; a snapshot inherits it, the volume gets another */
    struct id bin;               /* of `data` */
    char parent[ID_LEN + 1];     /* sealed volume below, "" = none */
    LIST_HEAD(, cow) cows;
    TAILQ_HEAD(, part) cow_waits;
    unsigned held;               /* snapshots being cut: nothing new goes to the cores */
    char *name;
    bool seen, gone, sealed, deleting;
    bool dirty;                  /* on a->dirty: something of it changed in the view */
    uint64_t dirty_shards;       /* which shards' rows or disks; bit = index */
    uint64_t *disks;             /* numbers of disks that a shard of it has or had a replica on, as bits */
    uint32_t n_disk_words;
    TAILQ_ENTRY(volume) dirty_entry;
    uint64_t shard_bytes, epoch;
    int replicas;
    uint32_t n_shards;
    char owner[ID_LEN + 1];
    bool mine, owner_dead;       /* owner is this node; it is nobody or a dead node */
    bool was_mine;
    uint64_t first_epoch;        /* in the first view of this process: an earlier life may have used it */
    uint64_t used_epoch;         /* highest one that cores of this process ran with */
    bool open;                   /* cores exist for `used_epoch` */
    struct shard *shard[SHARDS_MAX];
    TAILQ_HEAD(, vreq) active;   /* in order of submission */
    TAILQ_HEAD(, part) parked;   /* parts without a core */
    unsigned n_waiting;
    char *key;                   /* wrapped; NULL: not encrypted */
    struct crypt *crypt;         /* NULL while the cluster key is not here: requests wait */
    bool key_told;
    struct qos qos;
    struct check *check;         /* under way here */
    int64_t check_served_ms;     /* check_asked_ms of the last one that ended here: the view may lag */
    uint64_t check_ask_ms, seen_ms; /* not asked for again before; first seen */
    uint64_t lost_ms;            /* unreadable blocks are not looked at again before (lost.c) */
    bool throttled;              /* in a->throttled: requests wait for their turn under the limits */
    TAILQ_ENTRY(volume) throttle_entry;
    struct vreq *cutting;        /* a long zero that is not yet cut: later requests wait behind it */
    unsigned users;              /* sockets and NBD connections */
    unsigned claims;             /* asan_claim, NBD: we want to own it */
    uint64_t linger_ms;          /* asan_io: owned until then */
    bool joining;                /* a shard of it is being brought up to date, or may begin to be */
    bool maintain;               /* open to bring replicas up to date */
    bool settle;                 /* open to reconcile what a dead owner left in our journals */
    uint64_t orphan_ms;
    bool claimed;                /* we own it by our own claim: release when nobody wants it */
    bool txn_busy;
    uint64_t retry_ms;
    TAILQ_HEAD(, claim_wait) claim_waits;
    struct task *task;
    uint64_t task_total, task_ms;
    bool drop_busy;              /* deleting: a transaction of drop.c is out */
    unsigned drops;              /* copies here that are being dropped */
    uint64_t dropped;            /* shards whose copies here are; bit = index */
    uint64_t batch;              /* shard.c: the batch that requires it already, with this epoch */
    uint64_t batch_epoch;
};

struct claim_wait {
    void (*done)(struct claim_wait *w, int status, const char *why);
    void *arg;
    uint64_t until_ms;
    TAILQ_ENTRY(claim_wait) entry;
};

struct asan {
    /* any thread */
    uint64_t lease_until_ns;     /* atomic */
    int64_t lease_epoch;         /* atomic */
    struct mailbox mailbox;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool started;
    int start_status;
    struct err start_err;
    const struct asan_conf *start_conf;
    uint16_t port;
    struct asan_link_state *links; /* under `lock`: what asan_link_states() tells */
    size_t n_link_states;

    /* I/O thread */
    uv_loop_t loop;
    uv_timer_t tick;
    uv_check_t check;            /* runs `laters` */
    uv_idle_t idle;              /* active while `laters` is not empty */
    TAILQ_HEAD(, later) laters;
    TAILQ_HEAD(, volume) throttled;
    uv_timer_t throttle;         /* the earliest of them may go on */
    struct cdb_link *link;
    struct rpc_env *rpc;
    struct rpc_server *server;
    char *link_address[ASAN_LINKS_MAX];
    int n_links;
    uint64_t repeated, came_early; /* counts: messages sent again over another link; writes that overtook others */
    uint64_t links_ms, peers_ms; /* when links were looked after, silence was looked for last */
    struct hreq_list earlies;    /* all early writes, oldest first */
    char node_id[ID_LEN + 1], *cluster_uuid, *memory_dir;
    bool memory_swept;           /* what removed disks left there is gone */
    uint64_t journal_bytes, cache_bytes; /* as in asan_conf */
    struct ldisk disk[ASAN_DISKS_MAX];
    int n_disks;
    struct gdisk **gdisk;
    uint32_t n_gdisks;
    LIST_HEAD(, peer) peers;
    const struct cdb_view *taken; /* the view that was taken apart last; our reference */
    TAILQ_HEAD(, volume) dirty;  /* to be looked at */
    struct batch *batch;         /* shard.c: changes of in-sync sets that are gathered */
    LIST_HEAD(, batch) batches_out; /* those whose transactions are under way */
    uint64_t batches;            /* transactions of them so far */
    struct htab volumes, volumes_by_data;
    LIST_HEAD(, snap) snaps;
    struct reclaim *reclaim;     /* the layer being merged, the volume being flattened; NULL = none */
    uint64_t reclaim_ms;
    struct later snap_later;
    bool snap_poked;
    LIST_HEAD(, vhost) vhosts;
    TAILQ_HEAD(unknown_list, unknown) unknown; /* front.c */
    bool last_try;
    struct nbd_server *nbd;
    uint64_t nbd_recheck_ms;     /* when clients' access is looked at again */
    int64_t self_epoch;          /* of this node's row in the view; -1: there is none */
    bool lease, stopping, recheck; /* recheck: a disk came or went: which volumes need us? */
    bool usage_busy;             /* usage.c: a transaction is out; when to look, when sizes were told last */
    uint64_t usage_ms, usage_told_ms;
    bool view_seen, barrier_busy; /* view_seen: the view is as new as this process */
    unsigned key_asks;           /* for the cluster key, on their way */
    uint64_t keys_ms;
    unsigned checks;             /* volumes being checked here */
    unsigned joins, open_stores, closing; /* closing: steps of stopping that are under way */
    uint64_t health_ms;          /* next look at the disks' health */
    struct pace pace;            /* of copying to replicas that catch up */
    int stop_stage;
};

/* asan.c */
void later(struct asan *a, struct later *l, void (*run)(struct later *l));
uint64_t now_ms(void);
void asan_closed_one(struct asan *a); /* a step of stopping is over */
bool lease_check(struct asan *a);   /* is there one? tells the cores when that changes */

/* view.c */
void view_changed(struct cdb_link *l, void *arg);
void view_barrier(struct asan *a);
const struct cdb_view *view_of(struct asan *a);
struct gdisk *gdisk_find(struct asan *a, const char *id);
struct gdisk *gdisk_get(struct asan *a, const char *id); /* made if absent */
void view_forget(struct asan *a);                        /* at the end */
struct volume *volume_find(struct asan *a, const char *id);
struct volume *volume_find_data(struct asan *a, const char *data);
struct volume *volume_find_name(struct asan *a, const char *name);

/* peers.c */
void peers_update(struct asan *a, const struct cdb_view *v);
struct peer *peer_find(struct asan *a, const char *node);
bool gdisk_up(struct asan *a, const struct gdisk *g);
bool gdisk_silent(struct asan *a, const struct gdisk *g);
void peers_tick(struct asan *a);
struct plink *plink_pick(const struct peer *p, uint64_t key); /* NULL: none is up. Spreads requests; `key` names the shard */
void plink_unref(struct plink *l);
void peers_close(struct asan *a);
void disk_conn(struct asan *a, const char *node, bool up); /* tells the cores */

/* disk.c */
void disks_open(struct asan *a);
void disks_update(struct asan *a, const struct cdb_view *v);
void disks_tick(struct asan *a);
void disks_close(struct asan *a);

/* host.c */
void host_request(struct ldisk *d, const struct store_shard_id *id, bool sealed, struct hreq *h);
void host_tick(struct asan *a);
bool host_forget(struct ldisk *d, const struct store_shard_id *id); /* false: something of it is under way */
/* Requests to a replica that wait for durability, and writes that overtook others. */
void host_queues(struct ldisk *d, const struct store_shard_id *id, unsigned *ret_waiting, unsigned *ret_early);
void host_close(struct ldisk *d);

/* server.c */
void server_register(struct asan *a);
bool shard_sealed(struct asan *a, const char *volume_id);

/* link.c: sends to the replica of (volume, index) on disk `g`; `done` later, never inside the call. */
struct lcall;
typedef void lcall_done(void *arg, const struct repl_answer *ans);
void link_send(struct asan *a, struct gdisk *g, const struct id *volume, uint32_t index, const struct repl_msg *m, bool sealed,
               lcall_done *done, void *arg);

/* shard.c */
struct shard *shard_get(struct volume *v, uint32_t index);  /* opens its core */
void shard_batches_forget(struct asan *a); /* the link is closed: no transaction is answered any more */
void shard_unref(struct shard *s);
void shard_close(struct shard *s);                          /* its operations go to v->parked */
void shard_view(struct shard *s, const struct cdb_view *v);
void shard_after(struct shard *s);                          /* after each event of its core */
const struct cdb_shard *shard_row(const struct cdb_view *view, const struct volume *v, uint32_t index);

/* volume.c */
struct volume *volume_new(struct asan *a, const char *id);
void volume_free(struct volume *v);
void volume_part_done(struct part *p, int status);
void volume_unpark(struct volume *v);                       /* parts to their cores, if it is open */
void volume_throttle_fired(uv_timer_t *t);
void volume_go_on(struct volume *v);                        /* requests that have not begun may perhaps */
void volume_cancel(struct volume *v);                       /* everything ends with E_CANCELED */
void volume_part_send(struct part *p);
/* A read (at most 4 MiB, within one shard and border) ahead of everything that waits. */
void volume_read_now(struct volume *v, struct vol_req *r);
bool volume_idle(const struct volume *v);

/* layer.c */
bool layer_write(struct part *p);     /* true: it waits for its chunks' first bytes and is sent later */
void layer_write_done(struct part *p, int status);
void layer_write_parked(struct part *p); /* its core is gone: as the guest gave it */
void layer_closed(struct volume *v);     /* its cores are: who waits here waits with the parked ones */
bool layer_read_done(struct part *p); /* true: what is not in this layer is being fetched, volume_part_done() follows */
void layer_known(struct shard *s, const struct repl_msg *m, uint64_t absent);
struct lfill;
struct lwant { /* what: bytes as the replicas hold them, a VOL_MAP, or one of what changed since the layer `until` */
    bool map;
    const char *until;
};
/* `data` (NULL = zeroes): [offset, +length) of a shard; answers with the absent chunks taken from below. */
typedef void lfill_done(void *arg, int status, struct iobuf *data, size_t data_off);
void layer_fill(struct volume *v, uint64_t at, uint32_t length, const struct lwant *want, uint64_t absent, struct iobuf *data,
                size_t data_off, lfill_done *done, void *arg);
bool layer_judge(struct part *p, int *status); /* true: it goes on further down, volume_part_done() follows */

/* changed.c */
void changed_start(struct volume *v, struct vol_req *r);
void changed_ask(struct mail *m);
void changed_register(struct asan *a);
/* Calls `add` for each snapshot that `v` can be compared with. */
void changed_bases(struct volume *v, void (*add)(void *arg, const char *name, const char *id), void *arg);

/* Writes chunk `chunk` of a shard as it shows now, unless this layer has it; ends with reclaim_taken(), or with
 * reclaim_dropped() if the volume is closed. */
bool layer_drop_take(struct part *p);  /* false: it is a request's */
void layer_take(struct volume *v, uint32_t shard, uint64_t chunk);

/* reclaim.c */
void reclaim_tick(struct asan *a);
void reclaim_taken(struct asan *a, int status);
void reclaim_dropped(struct asan *a);
void reclaim_close(struct asan *a);

/* snap.c */
void snap_update(struct asan *a, const struct cdb_view *view);
void snap_tick(struct asan *a);
void snap_poke(struct asan *a);       /* something of a held volume ended */
void snap_close(struct asan *a);

/* own.c */
void own_update(struct volume *v);
void own_tick(struct asan *a);
void own_close(struct volume *v);                           /* closes the cores; the next opening needs a new epoch */
void own_claim(struct volume *v, struct claim_wait *w);     /* counted; own_release() after success */
void own_claim_cancel(struct volume *v, struct claim_wait *w);
void own_release(struct volume *v);
bool own_at_rest(const struct volume *v);                    /* nothing under way, commit marks told */
bool own_quiet(const struct volume *v);                      /* the same but for joins; has the marks told now */

/* keys.c */
bool volume_locked(struct volume *v);                       /* encrypted, and the key cannot be had (yet) */
void keys_register(struct asan *a);
void keys_tick(struct asan *a);

/* check.c, scrub.c, digest.c */
void check_tick(struct asan *a);

/* lost.c */
void lost_give(struct shard *s, const struct cdb_volume *row); /* tells the core what of its shard was given up */
void lost_tick(struct asan *a);
void check_op_done(struct owner_op *op, int status);        /* an operation with `check` or `repair` came back */
void check_stop(struct volume *v, const char *state);
void check_ask(struct asan *a, const char *volume_id, int64_t wall_ms);
void scrub_tick(struct asan *a);
void scrub_stop(struct ldisk *d);
void digest_start(struct hreq *h);                          /* ends with host_digest_done() */
void host_digest_done(struct hreq *h, int status);

/* place.c */
struct placement { int n; struct { const char *disk; int64_t incarnation; } at[3]; };
MUST_CHECK int place_shard(const struct cdb_view *v, const char *self, const struct cdb_volume *vol, uint32_t index,
                           struct placement *ret, struct err *e);

/* disk_health.c */
void disk_health_tick(struct asan *a);

/* tidy.c */
void tidy_tick(struct asan *a);
bool tidy_refuses(const struct ldisk *d, const struct store_shard_id *id);
void tidy_close(struct ldisk *d); /* its store is closed */

/* drop.c, usage.c, resync.c, sealed.c, dump.c */
bool first_up(struct asan *a, const struct cdb_view *view); /* this node is the first that is up */
void drop_update(struct volume *v, const struct cdb_view *view);
void usage_tick(struct asan *a, const struct cdb_view *view);
void resync_tick(struct asan *a);
void resync_count(struct shard *s);                         /* what its core copied since the last call: for metrics */
bool resync_wanted(struct asan *a, const struct cdb_view *view, const struct volume *v, bool *ret_here);
void resync_orphan(struct volume *v, const struct cdb_view *view, uint64_t now);
void resync_end(struct volume *v, const char *state);
void sealed_read(struct part *p);
void sealed_tick(struct volume *v);
char *dump_json(struct asan *a, const char *volume_id);

/* front.c */
struct vhost;
int front_open(struct asan *a, const struct asan_conf *c, struct err *e);
bool front_wait_volume(struct asan *a, const char *volume_id, struct mail *m);
int front_vhost_serve(struct asan *a, const char *volume_id, const char *path, struct err *e);
void front_vhost_unserve(struct asan *a, const char *path, void (*done)(void *arg), void *arg);
void front_tick(struct asan *a);
void front_volume_gone(struct volume *v);
void front_volume_resized(struct volume *v); /* tells its guests; NBD clients learn it when they connect again */
void front_release(struct asan *a, const char *volume_id);
void front_close(struct asan *a); /* asan_closed_one() once per front end that was open */
void front_io(struct mail *m);
void front_claim(struct mail *m);

#endif
