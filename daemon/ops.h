/* The operations that users ask for, as validated, conditional transactions on the cluster database. REST (and nothing
 * else so far) calls them; they know no HTTP and no JSON.
 *
 * Every operation: checks the request against the current view and returns an error at once if it must be refused;
 * otherwise commits a transaction whose preconditions repeat those checks, and calls `done` later, exactly once, never
 * inside the call. A conflict (somebody else was faster) checks again on the newer view and retries; without quorum the
 * operation gives up after 20 s with E_UNAVAIL. E_UNKNOWN (connection lost after sending) is resolved by looking whether
 * it happened, where that can be told.
 *
 * Ownership: a spec and its texts belong to the caller and must stay until `done` (or ops_close(), which calls nobody).
 * Error texts: "what is wrong[\nwhat to do about it]". Main loop's thread. */
#ifndef COHORT_DAEMON_OPS_H
#define COHORT_DAEMON_OPS_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"
#include "base/id.h"
#include "cluster/cdb.h"
#include "cluster/keyring.h"

struct ops;
struct daemon;

/* `id`: of the row that was made or changed; valid during the call. */
typedef void op_done(void *arg, int status, const struct err *e, const char *id);

struct ops *ops_open(struct daemon *d); /* uses d->loop, d->link and d->node_id, the latter two once they are set */
void ops_close(struct ops *o);          /* NULL is fine; memory goes when the loop has run */

/* The view to read from; NULL and E_UNAVAIL while this node is in no cluster or has not reached the database. */
const struct cdb_view *ops_view(const struct ops *o, struct err *e);
/* By name, then by id; NULL and E_NOTFOUND "no volume \"x\"". `what`: the word for people. */
const void *ops_find(const struct cdb_view *v, enum cdb_table t, const char *what, const char *name_or_id, struct err *e);
/* Name of row `id` for people: the name, or the id if the row is gone; "" stays "". */
const char *ops_name(const struct cdb_view *v, enum cdb_table t, const char *id);

/* ---- volumes ---- */

#define VOLUME_MIN_BYTES (INT64_C(1) << 20)
#define VOLUME_MAX_BYTES (INT64_C(4) << 40)

struct volume_spec {
    const char *name;
    int64_t size_bytes;
    int64_t replicas;    /* 0: as many as there are nodes with disks, at most 3 */
    int64_t shard_bytes; /* 0: smallest power of two >= 1 GiB that makes at most 64 shards */
    const char *purpose; /* disk|image */
    bool encrypted;      /* needs the cluster key here */
    const char *class;   /* storage|memory; NULL: storage. Memory is lost with its last replica */
};
MUST_CHECK int op_volume_create(struct ops *o, const struct volume_spec *s, op_done *done, void *arg, struct err *e);
/* Class memory: what was lost (every copy gone, or on dead nodes) begins anew, empty, without what it built on. E_CONFLICT: there still
 * is a copy; E_BUSY: a vm that is not stopped, or another program, uses it; E_INVAL: on storage. */
MUST_CHECK int op_volume_reset(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_volume_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* Grows a volume (a running guest is told); the same size is no error. E_INVAL: smaller, or more shards than there may be. */
MUST_CHECK int op_volume_resize(struct ops *o, const char *name, int64_t size_bytes, op_done *done, void *arg, struct err *e);

/* Limits per second, 0 = none, -1 = as it is. Small ones would stall a guest's boot for minutes and are refused. */
#define VOLUME_IOPS_MIN 10
#define VOLUME_IOPS_MAX 10000000
#define VOLUME_BANDWIDTH_MIN (INT64_C(64) << 10)
#define VOLUME_BANDWIDTH_MAX (INT64_C(1) << 40)
#define VOLUME_BURST_MIN_MS 10
#define VOLUME_BURST_MAX_MS 600000
#define VOLUME_BURST_MS 1000 /* unless said otherwise */
struct volume_limits { int64_t iops, bandwidth_bytes, burst_ms; };
MUST_CHECK int op_volume_limits(struct ops *o, const char *name, const struct volume_limits *l, op_done *done, void *arg, struct err *e);

/* The cluster key: made, or given a new passphrase (needs the key here, then). Unlocking ends at once. */
struct key_change { const char *passphrase; uint8_t key[KEYRING_KEY]; char text[KEYRING_TEXT]; /* the latter two: the operation's */ };
MUST_CHECK int op_key_set(struct ops *o, struct key_change *k, op_done *done, void *arg, struct err *e);
void ops_key_changed(struct key_change *k, int status); /* call in `done`: puts the key into use */
MUST_CHECK int op_key_unlock(struct ops *o, const char *passphrase, struct err *e);
const char *ops_key_state(const struct cdb_view *v); /* none|locked|unlocked, here */

/* Asks for a consistency check; whoever owns the volume does it, as a task "check" with progress. */
/* Gives up the blocks that no copy can read (Volume.unreadable): copies are made without them, reads of them fail until they are
 * written again. E_CONFLICT if there are none. */
MUST_CHECK int op_volume_give_up(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_volume_check(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);

/* ---- snapshots, clones ---- */

#define SNAPSHOT_VOLUMES_MAX 16
struct snapshot_spec { const char *name; int n_volumes; const char *volumes[SNAPSHOT_VOLUMES_MAX]; };
/* Asks for VOLUME@name of every volume at one point in time. `id` is the Task's: it is "done" when they exist, "failed"
 * with a reason when none does. E_BUSY: the volumes are written on several nodes. */
MUST_CHECK int op_snapshot_create(struct ops *o, const struct snapshot_spec *s, op_done *done, void *arg, struct err *e);
/* The name goes at once; what others build on stays until it is merged into them, the rest is freed. */
MUST_CHECK int op_snapshot_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* The volume becomes what it was; what was written since is freed. Its vm must be stopped. */
MUST_CHECK int op_snapshot_revert(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* A new volume over `of` (a snapshot or any sealed volume), which must stay as long as the clone builds on it. */
MUST_CHECK int op_volume_clone(struct ops *o, const char *of, const char *name, op_done *done, void *arg, struct err *e);
/* Who holds the same bytes has the same text: its id, or that of the snapshot it is an imported copy of. */
const char *ops_content(const struct cdb_volume *snap);

struct import_spec { /* daemon/volfile.h */
    const char *name, *snapshot, *content, *base, *base_name; /* base "" = complete */
    int64_t size_bytes, replicas;                             /* replicas, encrypted: of a new volume */
    bool encrypted;
    char volume_id[ID_LEN + 1];                               /* for op_import_end() */
};
/* Makes the volume, or checks that it holds the base and nothing since; it is "importing" then. `id`: the volume's. */
MUST_CHECK int op_import_begin(struct ops *o, const struct import_spec *s, op_done *done, void *arg, struct err *e);
/* All is there: the volume is "ready", and its snapshot is asked for. `id`: that task's. */
MUST_CHECK int op_import_end(struct ops *o, const struct import_spec *s, op_done *done, void *arg, struct err *e);

/* Asks the volume's owner to take over, in the background, all that the volume shares with what it builds on. */
MUST_CHECK int op_volume_flatten(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
const struct cdb_volume *ops_find_snapshot(const struct cdb_view *v, const char *name_or_id, struct err *e);
/* Does a volume build on it? `ret_name` (may be NULL): one that does. */
bool ops_has_children(const struct cdb_view *v, const char *volume_id, const char **ret_name);

enum volume_health { VOLUME_HEALTHY, VOLUME_DEGRADED, VOLUME_RESYNCING, VOLUME_PARKED, VOLUME_LOST, VOLUME_HEALTHS };
const char *volume_health_name(enum volume_health h);
/* From the shards' in-sync sets against the wanted number of copies and the minimum (2 of 3, 1 of 2, 1 of 1).
 * `why` (at least 160 bytes) gets a sentence for people, "" when healthy. */
enum volume_health ops_volume_health(const struct cdb_view *v, const struct cdb_volume *vol, char *why);
/* Space that one full copy takes, in bytes; the disks hold `replicas` times as much. */
int64_t ops_volume_used(const struct cdb_view *v, const struct cdb_volume *vol);
int64_t ops_shard_bytes(int64_t size_bytes);
const struct cdb_machine *ops_volume_user(const struct cdb_view *v, const char *volume_id, int *ret_slot);

/* ---- images ---- */

#define IMAGE_FILES_MAX 4
struct image_file_spec { const char *name; int64_t size_bytes; const char *sha256; /* NULL: not checked */ };
struct image_spec {
    const char *name, *kind; /* kernel: files kernel, initrd, cmdline (optional); disk: file disk */
    int n_files;
    struct image_file_spec files[IMAGE_FILES_MAX];
};
/* The volume is owned by this node until the image is sealed. */
MUST_CHECK int op_image_create(struct ops *o, const struct image_spec *s, op_done *done, void *arg, struct err *e);
/* Records the checksum of a file that is in the volume; the last one seals the volume and makes the image ready. */
MUST_CHECK int op_image_file_done(struct ops *o, const char *image_id, const char *file, const char *sha256, op_done *done, void *arg, struct err *e);
/* Progress for people; failures of it do not matter. *ret_cancel: the task was asked to stop. */
void op_image_progress(struct ops *o, const char *image_id, int64_t done_bytes, bool *ret_cancel);
MUST_CHECK int op_image_fail(struct ops *o, const char *image_id, const char *why, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_image_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);

/* ---- machines ---- */

#define VM_DISKS_MAX 8
#define VM_NETWORKS_MAX 4
struct vm_disk_spec { const char *volume; int64_t size_bytes, replicas; }; /* an existing volume, or a new one of that size */
struct vm_spec {
    const char *name, *type, *accel, *image, *cmdline, *ha_policy, *affinity; /* image "" = boot from the first disk */
    int64_t vcpus, memory_bytes, priority;
    int n_disks, n_networks;
    struct vm_disk_spec disks[VM_DISKS_MAX];
    const char *networks[VM_NETWORKS_MAX];
};
MUST_CHECK int op_vm_create(struct ops *o, const struct vm_spec *s, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_vm_delete(struct ops *o, const char *name, bool with_disks, op_done *done, void *arg, struct err *e);
/* `to` NULL: placed by free memory. */
MUST_CHECK int op_vm_start(struct ops *o, const char *name, const char *to, op_done *done, void *arg, struct err *e);
/* Asks the guest to power down; the host clears Machine.host when it is down. */
MUST_CHECK int op_vm_stop(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* As stop, and ends this life of the guest (generation + 1): the host kills a process of an older generation at once. */
MUST_CHECK int op_vm_kill(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_vm_migrate(struct ops *o, const char *name, const char *to, op_done *done, void *arg, struct err *e);
/* Where a machine would start now. E_NOSPC with the reason per node if nowhere. */
MUST_CHECK int ops_vm_place(const struct cdb_view *v, const struct cdb_machine *m, const struct cdb_node **ret_node, struct err *e);
int64_t ops_node_memory_used(const struct cdb_view *v, const char *node_id);

/* ---- networks ---- */

struct network_spec {
    const char *name, *cidr, *gateway; /* gateway "" = first host address */
    int64_t mtu;                       /* 0 = underlay minus tunnel */
    int n_dns;
    const char *dns[4];
};
MUST_CHECK int op_network_create(struct ops *o, const struct network_spec *s, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_network_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* A port that no machine has: for something outside that takes part in a guest network. Found by its name afterwards
 * (`done` gets no useful id: a port's is made of its network's and its address). */
struct port_spec { const char *name, *network; };
MUST_CHECK int op_port_create(struct ops *o, const struct port_spec *s, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_port_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
/* Parses "a.b.c.d/len" (/8../29, host bits zero). Addresses in host byte order. */
MUST_CHECK int net_parse_cidr(const char *cidr, uint32_t *ret_net, int *ret_len, struct err *e);
bool net_parse_ip(const char *text, uint32_t *ret_ip);
/* First address of the network nobody has: not the network's, broadcast or gateway's own. E_NOSPC when full. */
MUST_CHECK int net_pick_ip(const struct cdb_view *v, const struct cdb_network *n, const char *const *taken, int n_taken,
                           char ret_ip[16], struct err *e);

/* ---- disks, maintenance, settings ---- */

enum op_disk_verb {
    DISK_DRAIN,   /* up -> draining: its copies move elsewhere, then it may be removed */
    DISK_SPARE,   /* up and empty -> spare: comes into service when a disk fails */
    DISK_USE,     /* draining, spare, isolated -> up */
    DISK_REPLACE, /* failed, isolated -> up: there is another device behind its paths; its node opens it anew */
    DISK_REMOVE,  /* the row goes; only without copies */
};
struct disk_spec {
    const char *node, *name, *fast, *capacity; /* the paths are "" if it is in memory */
    int64_t memory_bytes;                      /* of the node's memory, for volumes of class memory; 0: a disk on storage */
    bool spare;
};
#define DISK_MEMORY_MIN (INT64_C(256) << 20) /* journal, metadata and a reserve take half of that */
/* By id or "NODE:DISK". */
const struct cdb_disk *ops_disk_find(const struct cdb_view *v, const char *key, struct err *e);
MUST_CHECK int op_disk_change(struct ops *o, const char *disk, enum op_disk_verb verb, op_done *done, void *arg, struct err *e);
/* The node opens (formats) it as soon as it sees the row and writes its size there. */
MUST_CHECK int op_disk_add(struct ops *o, const struct disk_spec *s, op_done *done, void *arg, struct err *e);
/* On: no new guests and copies, its guests migrate away (ha/coord.h), its copies are not replaced while it is off. */
MUST_CHECK int op_node_maintenance(struct ops *o, const char *node, bool on, op_done *done, void *arg, struct err *e);
MUST_CHECK int ops_setting_check(const char *key, const char *value, struct err *e);
MUST_CHECK int op_setting(struct ops *o, const char *key, const char *value, op_done *done, void *arg, struct err *e);

/* ---- nodes, tasks, tokens ---- */

/* Takes a node without guests and without a sole in-sync copy out of the cluster: rows of node and disks go. */
MUST_CHECK int op_node_remove(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_task_cancel(struct ops *o, const char *id, op_done *done, void *arg, struct err *e);

struct token_spec {
    const char *name, *role; /* admin|operator|viewer|join */
    const char *hash;        /* sha256 of the secret, hex */
    int64_t expires_ms;      /* wall clock, 0 = never */
    const char *creator;
};
MUST_CHECK int op_token_create(struct ops *o, const struct token_spec *s, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_token_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e);

/* ---- NBD clients ---- */

struct nbd_client_spec {
    const char *name;
    const char *fingerprint; /* sha256 of its certificate, hex */
    int64_t expires_ms;      /* wall clock, 0 = never */
    const char *creator;
};
struct nbd_access_spec { const char *volume, *mode; /* none|ro|rw */ };
MUST_CHECK int op_nbd_client_create(struct ops *o, const struct nbd_client_spec *s, op_done *done, void *arg, struct err *e);
MUST_CHECK int op_nbd_client_delete(struct ops *o, const char *client, op_done *done, void *arg, struct err *e);
/* Nodes cut off a client within a second after it has lost what it had. */
MUST_CHECK int op_nbd_access(struct ops *o, const char *client, const struct nbd_access_spec *s, op_done *done, void *arg, struct err *e);

struct join_disk { const char *name, *fast, *capacity; int64_t size_bytes; };
struct join_spec {
    const char *token_hash;
    const char *node_id, *name, *address, *accel, *accel_reason, *version;
    int64_t control_port, storage_port, migrate_port, api_port, cpus, memory_bytes;
    bool voter;
    int n_storage_addresses;
    const char *storage_addresses[4];
    int n_disks;
    struct join_disk disks[16];
};
/* Would op_node_join be refused on this view? */
MUST_CHECK int ops_join_check(const struct cdb_view *v, const struct join_spec *s, struct err *e);
/* Uses up the join token and inserts the node and its disks, all in one transaction. */
MUST_CHECK int op_node_join(struct ops *o, const struct join_spec *s, op_done *done, void *arg, struct err *e);

#endif
