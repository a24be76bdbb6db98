/* aSAN as the daemon sees it: this node's disks, the volumes it owns, and their front ends, on one I/O thread of its own.
 *
 * Threading: any thread, unless said otherwise. What "waits" blocks the caller for the I/O thread, at most for as long as
 * its description says. The rest goes by mail: the caller's struct with its two mails lives until the answer came.
 * Ownership: a volume is served by the node that is its `owner` in the cluster database. A guest's volumes get their owner
 * in the transaction that moves the guest; asan_claim() is for everyone else (NBD, image import), and for bringing replicas of
 * idle volumes up to date aSAN claims them by itself for that while.
 */
#ifndef COHORT_STORAGE_ASAN_H
#define COHORT_STORAGE_ASAN_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"
#include "base/mailbox.h"
#include "cluster/cdb.h"
#include "proto/rpc.h"

struct asan;

#define ASAN_DISKS_MAX 16
#define ASAN_BY_DEVICE UINT64_MAX
#define ASAN_LINKS_MAX 4

struct asan_disk_conf {
    const char *id;            /* of its row in Disk, which must exist or come */
    const char *name, *fast, *capacity;
    uint64_t limit_bytes;      /* extents may take so much of `capacity`; 0 = what the file system has */
};

struct asan_conf { /* copied */
    struct cdb *db;            /* must outlive it */
    const char *node_id, *cluster_uuid;
    struct rpc_tls_files tls;
    const char *listen_address;      /* the cluster address: stands by while a storage link works */
    const char *links[ASAN_LINKS_MAX]; /* storage links of this node; they may be down when we start */
    int n_links;
    uint16_t port;             /* storage port; 0 = any (tests), see asan_port() */
    struct asan_disk_conf disks[ASAN_DISKS_MAX];
    int n_disks;
    const char *memory_dir;    /* where disks of medium memory are mounted (memory.h); NULL = this node has none */
    const char *nbd_socket;    /* for root; NULL = none */
    uint16_t nbd_port;         /* NBD over TLS at listen_address, with a certificate of the cluster; 0 = none */
    uint64_t journal_bytes;    /* per disk, when it is formatted; 0 = by the devices (store/tier.h) */
    uint64_t cache_bytes;      /* read cache per disk; 0 = none, ASAN_BY_DEVICE */
};

/* Starts the thread, listens, opens the disks (replaying their journals). A disk that cannot be opened does not fail the
 * start: its row in the database gets state "failed" and the reason. E_INVAL, E_IO (listening, sockets) with a message. */
MUST_CHECK int asan_start(const struct asan_conf *conf, struct asan **ret_asan, struct err *e);
/* Closes front ends and disks, ends the thread. Guests' requests in flight stay in their inflight regions. NULL is fine. */
void asan_stop(struct asan *a);
uint16_t asan_port(const struct asan *a);

/* This node may serve I/O until CLOCK_BOOTTIME reaches `until_boot_ns`; afterwards requests wait. 0 = now nothing.
 * `node_epoch`: this node's epoch (Node.epoch) in the view with which the lease was asked for. While aSAN's own view shows a
 * smaller one, requests wait too: it may not know yet that this node was declared dead and its volumes have gone elsewhere. */
void asan_set_lease(struct asan *a, uint64_t until_boot_ns, int64_t node_epoch);

/* ---- guests ---- */

/* A vhost-user-blk socket for volume `volume_id`. The node need not own it (yet): requests wait until it does. Waits
 * briefly. E_NOTFOUND: no such volume (after 2 s, in case the row is on
 * its way); E_EXISTS: this socket serves this volume already; E_INVAL: it serves another one. */
MUST_CHECK int asan_vhost_serve(struct asan *a, const char *volume_id, const char *socket_path, struct err *e);
/* Disconnects the guest and removes the socket; returns when it is gone. Requests that wait are given up (the guest's
 * inflight region remembers them). Unknown sockets are fine. */
void asan_vhost_unserve(struct asan *a, const char *socket_path);

/* ---- use of a volume by this process ---- */

struct asan_claim { /* caller-owned until `answer` ran */
    struct mail mail;          /* private */
    struct mail answer;        /* answer.run: set by the caller; posted to answer_to */
    struct mailbox *answer_to;
    char volume_id[ID_LEN + 1];
    struct asan *asan;
    int status;                /* 0; E_NOTFOUND; E_BUSY: another node owns it, still after 3 s; E_CANCELED: asan_stop */
    struct err err;
};
/* Makes this node the owner of a volume that no live node owns, for as long as it takes, and keeps it so. Counted: each
 * successful claim needs one asan_release(). A sealed volume is readable without. */
void asan_claim(struct asan *a, struct asan_claim *c);
void asan_release(struct asan *a, const char *volume_id);

enum asan_io_op { ASAN_READ, ASAN_WRITE, ASAN_ZERO, ASAN_FLUSH };

struct asan_io { /* caller-owned until `answer` ran */
    struct mail mail;          /* private */
    struct mail answer;        /* answer.run: set by the caller; posted to answer_to */
    struct mailbox *answer_to;
    char volume_id[ID_LEN + 1];
    enum asan_io_op op;
    uint64_t offset, length;   /* multiples of 512; at most VOL_REQ_MAX bytes for read and write */
    void *data;                /* the caller's */
    int status;                /* 0; E_NOTFOUND, E_INVAL, E_CORRUPT, E_CANCELED */
    struct asan *asan;
    void *priv;
};
/* I/O on a volume this node owns (claim it first, or it waits for ever) or that is sealed (read only). */
void asan_io(struct asan *a, struct asan_io *io);

#define ASAN_CHANGED_UNIT (64u << 10)
#define ASAN_CHANGED_MAX (256u << 20)
#define ASAN_CHANGED_BITS (ASAN_CHANGED_MAX / ASAN_CHANGED_UNIT / 8)

struct asan_changed { /* caller-owned until `answer` ran */
    struct mail mail;          /* private */
    struct mail answer;        /* answer.run: set by the caller; posted to answer_to */
    struct mailbox *answer_to;
    char volume_id[ID_LEN + 1], since_id[ID_LEN + 1]; /* since "": all that was ever written, for sealed volumes */
    uint64_t offset, length;   /* from a multiple of the unit, at most ASAN_CHANGED_MAX, within the volume */
    uint8_t bits[ASAN_CHANGED_BITS]; /* a bit per unit from `offset`: may differ. Those that are not set do not */
    int status;                /* 0; E_NOTFOUND; E_INVAL: nothing in common; E_UNAVAIL, E_DISCONN…: ask again; err says it in words */
    struct err err;
    struct asan *asan;
};
/* Where a volume may differ from a snapshot (engine/changed.c). Any node may ask: a volume in use is asked of its owner; one that
 * nobody uses is owned here for a while. What was acknowledged before the question is in the answer. */
void asan_changed(struct asan *a, struct asan_changed *q);

/* ---- looking at it ---- */

/* The storage links as seen from this node. */
struct asan_link_state {
    char node[ID_LEN + 1], address[64];
    bool standby;              /* the node's cluster address: used while no other link works */
    bool up;
};
/* Copies up to `max` links to `node_id`; returns how many there are. Does not wait. */
size_t asan_link_states(struct asan *a, const char *node_id, struct asan_link_state *ret, size_t max);

/* JSON text, malloc'ed; waits briefly. {"lease":bool,"disks":[…],"peers":[{"node","connected","links":[…]}…],
 * "repeated":n,"came_early":n,"volumes":[{"id","name","owner","epoch","open",
 * "parked","requests","shards":[{"index","state","isr","replicas","parked","waiting","writing","joining","join_done",
 * "join_total"}…]}…]}
 * With `volume_id` only that volume, whether something happens to it or not, the disks that hold copies of it, and
 * "copies":[{"index","disk","in_sync","epoch","last":[epoch,seq],"commit":[…],"waiting","came_early"}…] on them; NULL: it is not
 * known here (yet). NULL: what is going on. */
char *asan_dump_json(struct asan *a, const char *volume_id);

#endif
