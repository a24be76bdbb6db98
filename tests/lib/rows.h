/* Rows of a small cluster in the database, for tests and benchmarks that run engines without a daemon. */
#ifndef COHORT_TESTS_ROWS_H
#define COHORT_TESTS_ROWS_H

#include "cluster/cdb.h"

/* A node on loopback that is up, with one large disk "d0". */
static inline void rows_node(struct cdb_txn *t, const char *id, const char *name, const char *disk)
{
    const char *address = "127.0.0.1";
    cdb_txn_insert(t, CDB_T_NODE, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_name, name);
    cdb_txn_set_strs(t, CDB_T_NODE, id, CDB_NODE_addresses, 1, &address);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, "up");
    cdb_txn_insert(t, CDB_T_DISK, disk);
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_node, id);
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_name, "d0");
    cdb_txn_set_str(t, CDB_T_DISK, disk, CDB_DISK_state, "up");
    cdb_txn_set_int(t, CDB_T_DISK, disk, CDB_DISK_size_bytes, INT64_C(1) << 40);
    cdb_txn_set_int(t, CDB_T_DISK, disk, CDB_DISK_incarnation, 1);
}

/* `owner` "" = none. */
static inline void rows_volume(struct cdb_txn *t, const char *id, const char *name, int64_t bytes, int64_t shard_bytes, int replicas,
                               const char *owner)
{
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, name);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, shard_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, replicas);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_epoch, 1);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_owner, owner);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "disk");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "ready");
}

#endif
