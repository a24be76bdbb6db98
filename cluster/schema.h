/* The cluster database's tables, once, as X-macros: rows as C structs, column numbers, and the descriptors by which
 * the OVSDB client and the in-memory twin move them. cluster/cohort.ovsschema says the same in OVSDB's words; a test
 * holds the two against each other.
 *
 * Every table has the unique column `id` (a UUID in text, base/id.h, except the singleton Cluster whose id is "cluster").
 * References are ids in text: a reader must expect that the row it names is gone.
 * Column types: STR (never NULL), INT, BOOL, STRS (sorted set of text), IMAP (text -> integer, sorted by key),
 * SMAP (text -> text, sorted by key).
 */
#ifndef COHORT_CLUSTER_SCHEMA_H
#define COHORT_CLUSTER_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(type, column) — after each: meaning; [x|y] lists the values. */

#define CDB_COLS_CLUSTER(X)                                                                                        \
    X(STR, name)                                                                                                   \
    X(STR, uuid)                 /* names the cluster for good; part of token and disk labels */                  \
    X(STR, ca_cert)              /* PEM */                                                                         \
    X(STR, ca_key)               /* PEM: any voter can issue certificates to joining nodes */                      \
    X(STR, coordinator)          /* node id in office */                                                           \
    X(INT, coordinator_term)     /* raised at each taking of office; every coordinator txn requires it */          \
    X(INT, format)               /* schema generation, 1 */                                                        \
    X(INT, lease_ms)             /* node lease */                                                                  \
    X(STR, key)                  /* the cluster key, locked by a passphrase (base/lockbox.h); "" = none */         \
    X(SMAP, settings)

#define CDB_COLS_NODE(X)                                                                                           \
    X(STR, name)                 /* unique */                                                                      \
    X(STRS, addresses)           /* cluster addresses, the first is used */                                        \
    X(STRS, storage_addresses)   /* storage links, 4 count; the cluster address stands by for them */              \
    X(INT, control_port) X(INT, storage_port) X(INT, api_port) X(INT, migrate_port)                                \
    X(INT, epoch)                /* raised when declared dead; leases are granted to the current one only */       \
    X(STR, state)                /* [joining|up|dead|leaving] */                                                   \
    X(INT, state_ms)             /* wall clock of the last change of state: how long it has been away */           \
    X(BOOL, maintenance)         /* gets no new guests and copies; those it has are not replaced while it is away */ \
    X(STR, domain)               /* failure domain (rack, room); "" = one of its own */                            \
    X(BOOL, voter)               /* serves the database */                                                         \
    X(INT, cpus) X(INT, memory_bytes)                                                                              \
    X(STR, accel)                /* [kvm|tcg] what `cohort host check` measured */                                 \
    X(STR, accel_reason)         /* in words, for people */                                                        \
    X(STR, version) X(INT, joined_ms)

#define CDB_COLS_DISK(X)                                                                                           \
    X(STR, node)                                                                                                   \
    X(STR, name)                 /* unique within the node */                                                      \
    X(STR, medium)               /* [|memory] "" = storage; memory: a tmpfs of its node, empty after a power cut */ \
    X(INT, memory_bytes)         /* medium memory: size of that tmpfs; it has no paths */                           \
    X(STR, fast_path) X(STR, capacity_path)                                                                        \
    X(INT, size_bytes)           /* what may be used at capacity_path */                                           \
    X(INT, used_bytes)           /* taken by extents; its node tells every 10 s, and at once when `full` changes */   \
    X(BOOL, full)                /* too little room: guests' writes to replicas here wait until there is more */      \
    X(INT, incarnation)          /* raised when the content is no longer to be believed; see Shard.in_sync */      \
    X(STR, state)                /* [up|failed|isolated|draining|spare]: copies on up are kept; isolated = too slow */ \
    X(STR, replaced_by)          /* disk id of the spare that came into service for it, "" = none */               \
    X(STR, guard)                /* fresh text with each txn that leaves a shard on this disk no copy to spare */  \
    X(STR, smart_state)          /* [|ok|warning|failing]: what its drives say of themselves, "" = nothing */      \
    X(STR, smart)                /* that in words */                                                               \
    X(STR, message)

#define CDB_COLS_VOLUME(X)                                                                                         \
    X(STR, name)                 /* unique */                                                                      \
    X(INT, size_bytes)           /* multiple of 4096 */                                                            \
    X(INT, shard_bytes)          /* power of two, 1..64 GiB */                                                     \
    X(INT, replicas)             /* 1..3 */                                                                        \
    X(STR, owner)                /* node id that may write, "" = none */                                           \
    X(INT, epoch)                /* raised with every change of owner; fences the old one */                       \
    X(BOOL, sealed)              /* never written again (images): any in-sync replica may be read by anyone */     \
    X(STR, purpose)              /* [disk|image|snapshot|layer] layer: a deleted snapshot that others still build on */ \
    X(STR, data)                 /* id by which the replicas know its data; "" = its own id */                     \
    X(STR, parent)               /* sealed volume that shows through where nothing was written; "" = zeroes */     \
    X(STR, origin)               /* snapshot: id of the volume it was taken of */                                  \
    X(STR, content)              /* imported snapshot: id of the snapshot that it is a copy of, maybe of another cluster */ \
    X(INT, created_ms)           /* snapshot: wall clock, for people */                                            \
    X(BOOL, flatten)             /* it is to take over all that it shares with its parent and to stand alone */    \
    X(STR, state)                /* [ready|importing|deleting] importing: incomplete, kept from other uses */      \
    X(INT, iops) X(INT, bandwidth_bytes) /* limits per second, 0 = none */                                         \
    X(INT, burst_ms)             /* so much of the limits an idle volume saves up */                               \
    X(STR, key)                  /* its key wrapped by the cluster's, hex; "" = not encrypted */                   \
    X(INT, check_asked_ms)       /* wall clock; a check is wanted while this is above check_done_ms */             \
    X(INT, check_done_ms)        /* end of the last check, 0 = never */                                            \
    X(IMAP, check_result)        /* of it: {checked|bad|repaired|unrepairable}_bytes */                                  \
    X(STRS, check_bad)           /* "<offset>+<length>" of what could not be repaired */                           \
    X(STRS, unreadable)          /* the same of what no copy in sync can read and keeps others from coming in sync */ \
    X(STRS, given_up)            /* of that, what an administrator gave up: reads fail until it is written again */ \
    X(INT, lost_ms)              /* class memory: when its last copy was seen to be gone, wall clock; 0 = it is not */ \
    X(SMAP, policy)              /* class [|memory]: medium of the disks that its copies may be on */

#define CDB_COLS_SHARD(X)        /* id = "<id of the volume's data>/<index>"; made when first written */                         \
    X(STR, volume) X(INT, idx)                                                                                     \
    X(STRS, replicas)            /* disk ids */                                                                    \
    X(IMAP, in_sync)             /* disk id -> incarnation; counts only while Disk.incarnation is the same */      \
    X(INT, generation)           /* raised with every change of replicas or in_sync */                            \
    X(INT, used_bytes)           /* space that one replica takes, told by the first one whose node is up */

#define CDB_COLS_IMAGE(X)                                                                                          \
    X(STR, name)                 /* unique */                                                                      \
    X(STR, kind)                 /* [kernel|disk] */                                                               \
    X(STR, volume)               /* sealed volume that holds the bytes */                                          \
    X(SMAP, files)               /* name (kernel, initrd, cmdline, disk) -> "offset,length,sha256" */              \
    X(STR, state)                /* [importing|ready|failed] */                                                    \
    X(STR, message)

#define CDB_COLS_MACHINE(X)                                                                                        \
    X(STR, name)                 /* unique */                                                                      \
    X(INT, vcpus) X(INT, memory_bytes)                                                                             \
    X(STR, type)                 /* [q35|microvm] */                                                               \
    X(STR, accel)                /* [auto|kvm|tcg] */                                                              \
    X(STR, image)                /* Image id for direct kernel boot, "" = boot from the first disk */              \
    X(STR, cmdline)              /* added to the image's */                                                        \
    X(STRS, disks)               /* "<slot>:<volume id>", slot 0.. = vda.. */                                      \
    X(STRS, ports)               /* "<slot>:<port id>" */                                                          \
    X(STR, host)                 /* node id; "" = nowhere */                                                       \
    X(INT, generation)           /* raised with every change of host or start: names one life of the guest */      \
    X(STR, desired)              /* [running|stopped] */                                                           \
    X(STR, state)                /* by the host: [stopped|starting|running|paused|migrating|failed] */             \
    X(STR, message)              /* why, in words */                                                               \
    X(STR, migrate_to)           /* node id while a live migration is asked for or runs */                         \
    X(STR, ha_policy)            /* [restart|none] */                                                              \
    X(INT, priority)             /* higher is restarted first */                                                   \
    X(STR, affinity)             /* [none|anti:<group>] */

#define CDB_COLS_NETWORK(X)                                                                                        \
    X(STR, name)                 /* unique */                                                                      \
    X(STR, cidr)                 /* IPv4, e.g. 198.18.1.0/24 */                                                    \
    X(STR, gateway)              /* also the DHCP server's address; "" = first host address */                     \
    X(STRS, dns)                                                                                                   \
    X(INT, mtu)                  /* guest MTU, 0 = underlay minus tunnel */

#define CDB_COLS_PORT(X)                                                                                           \
    X(STR, name) X(STR, network) X(STR, machine)                                                                   \
    X(STR, mac)                  /* 02:… lower case, unique */                                                     \
    X(STR, ip)                                                                                                     \
    X(BOOL, up)

#define CDB_COLS_TASK(X)                                                                                           \
    X(STR, kind)                 /* image-import, resync, migrate, … */                                            \
    X(STR, object)               /* "vm web1", "volume db1" */                                                     \
    X(STR, node)                 /* node id doing it */                                                            \
    X(STR, state)                /* [running|done|failed|canceled] */                                              \
    X(INT, done) X(INT, total)   /* in `unit` */                                                                   \
    X(STR, unit)                 /* [bytes|items|percent] */                                                       \
    X(INT, started_ms) X(INT, updated_ms) /* wall clock, for people */                                             \
    X(BOOL, cancel)              /* asked to stop */                                                               \
    X(STR, message)                                                                                                \
    X(SMAP, result)

#define CDB_COLS_TOKEN(X)                                                                                          \
    X(STR, name) X(STR, hash)    /* sha256 of the secret, hex; unique */                                           \
    X(STR, role)                 /* [admin|operator|viewer|join] */                                                \
    X(INT, expires_ms)           /* wall clock; 0 = never */                                                       \
    X(STR, creator)

#define CDB_COLS_NBD_CLIENT(X)   /* who may use volumes by NBD over TLS without being a node */                       \
    X(STR, name)                 /* unique */                                                                      \
    X(STR, fingerprint)          /* sha256 of its certificate (DER), hex; unique */                                \
    X(SMAP, volumes)             /* volume id -> [ro|rw]; also its snapshots, read only. Nothing else is shown */  \
    X(INT, generation)           /* raised with every change of volumes */                                         \
    X(INT, expires_ms)           /* wall clock; 0 = never */                                                       \
    X(STR, creator)

#define CDB_COLS_EVENT(X)                                                                                          \
    X(INT, time_ms) X(STR, severity) /* [info|warning|alarm] */                                                    \
    X(STR, object) X(STR, message) X(STR, node)

/* X(TABLE symbol, struct name, OVSDB table name) */
#define CDB_TABLES(X)                 \
    X(CLUSTER, cluster, "Cluster")    \
    X(NODE, node, "Node")             \
    X(DISK, disk, "Disk")             \
    X(VOLUME, volume, "Volume")       \
    X(SHARD, shard, "Shard")          \
    X(IMAGE, image, "Image")          \
    X(MACHINE, machine, "Machine")    \
    X(NETWORK, network, "Network")    \
    X(PORT, port, "Port")             \
    X(TASK, task, "Task")             \
    X(TOKEN, token, "Token")          \
    X(NBD_CLIENT, nbd_client, "NbdClient") \
    X(EVENT, event, "Event")

struct cdb_strs { size_t n; char **v; };                       /* sorted, unique */
struct cdb_imap { size_t n; char **k; int64_t *v; };           /* sorted by key */
struct cdb_smap { size_t n; char **k; char **v; };             /* sorted by key */

enum cdb_type { CDB_STR, CDB_INT, CDB_BOOL, CDB_STRS, CDB_IMAP, CDB_SMAP };
typedef char *cdb_c_STR;
typedef int64_t cdb_c_INT;
typedef bool cdb_c_BOOL;
typedef struct cdb_strs cdb_c_STRS;
typedef struct cdb_imap cdb_c_IMAP;
typedef struct cdb_smap cdb_c_SMAP;

/* Rows: immutable once in a view. `id` first in every struct. */
#define X(T, c) cdb_c_##T c;
struct cdb_cluster { char *id; CDB_COLS_CLUSTER(X) };
struct cdb_node { char *id; CDB_COLS_NODE(X) };
struct cdb_disk { char *id; CDB_COLS_DISK(X) };
struct cdb_volume { char *id; CDB_COLS_VOLUME(X) };
struct cdb_shard { char *id; CDB_COLS_SHARD(X) };
struct cdb_image { char *id; CDB_COLS_IMAGE(X) };
struct cdb_machine { char *id; CDB_COLS_MACHINE(X) };
struct cdb_network { char *id; CDB_COLS_NETWORK(X) };
struct cdb_port { char *id; CDB_COLS_PORT(X) };
struct cdb_task { char *id; CDB_COLS_TASK(X) };
struct cdb_token { char *id; CDB_COLS_TOKEN(X) };
struct cdb_nbd_client { char *id; CDB_COLS_NBD_CLIENT(X) };
struct cdb_event { char *id; CDB_COLS_EVENT(X) };
#undef X

enum cdb_table {
#define X(T, s, n) CDB_T_##T,
    CDB_TABLES(X)
#undef X
    CDB_N_TABLES
};

/* Column numbers: CDB_NODE_state, CDB_VOLUME_epoch, … (the column's own name, so that grep finds both). */
#define X(T, c) CDB_CLUSTER_##c,
enum { CDB_COLS_CLUSTER(X) CDB_CLUSTER_N };
#undef X
#define X(T, c) CDB_NODE_##c,
enum { CDB_COLS_NODE(X) CDB_NODE_N };
#undef X
#define X(T, c) CDB_DISK_##c,
enum { CDB_COLS_DISK(X) CDB_DISK_N };
#undef X
#define X(T, c) CDB_VOLUME_##c,
enum { CDB_COLS_VOLUME(X) CDB_VOLUME_N };
#undef X
#define X(T, c) CDB_SHARD_##c,
enum { CDB_COLS_SHARD(X) CDB_SHARD_N };
#undef X
#define X(T, c) CDB_IMAGE_##c,
enum { CDB_COLS_IMAGE(X) CDB_IMAGE_N };
#undef X
#define X(T, c) CDB_MACHINE_##c,
enum { CDB_COLS_MACHINE(X) CDB_MACHINE_N };
#undef X
#define X(T, c) CDB_NETWORK_##c,
enum { CDB_COLS_NETWORK(X) CDB_NETWORK_N };
#undef X
#define X(T, c) CDB_PORT_##c,
enum { CDB_COLS_PORT(X) CDB_PORT_N };
#undef X
#define X(T, c) CDB_TASK_##c,
enum { CDB_COLS_TASK(X) CDB_TASK_N };
#undef X
#define X(T, c) CDB_TOKEN_##c,
enum { CDB_COLS_TOKEN(X) CDB_TOKEN_N };
#undef X
#define X(T, c) CDB_NBD_CLIENT_##c,
enum { CDB_COLS_NBD_CLIENT(X) CDB_NBD_CLIENT_N };
#undef X
#define X(T, c) CDB_EVENT_##c,
enum { CDB_COLS_EVENT(X) CDB_EVENT_N };
#undef X

struct cdb_column { const char *name; enum cdb_type type; size_t offset; };
struct cdb_table_desc { const char *name; size_t row_size; const struct cdb_column *columns; int n_columns; };
extern const struct cdb_table_desc cdb_tables[CDB_N_TABLES]; /* schema.c */

#endif
