/* The descriptors of schema.h's tables, made from the same X-macros as the structs, and the unique columns. */
#include "cluster/schema.h"
#include "cluster/row.h"

#define COL(S, T, c) {#c, CDB_##T, offsetof(struct cdb_##S, c)},

#define X(T, c) COL(cluster, T, c)
static const struct cdb_column cluster_columns[] = {CDB_COLS_CLUSTER(X)};
#undef X
#define X(T, c) COL(node, T, c)
static const struct cdb_column node_columns[] = {CDB_COLS_NODE(X)};
#undef X
#define X(T, c) COL(disk, T, c)
static const struct cdb_column disk_columns[] = {CDB_COLS_DISK(X)};
#undef X
#define X(T, c) COL(volume, T, c)
static const struct cdb_column volume_columns[] = {CDB_COLS_VOLUME(X)};
#undef X
#define X(T, c) COL(shard, T, c)
static const struct cdb_column shard_columns[] = {CDB_COLS_SHARD(X)};
#undef X
#define X(T, c) COL(image, T, c)
static const struct cdb_column image_columns[] = {CDB_COLS_IMAGE(X)};
#undef X
#define X(T, c) COL(machine, T, c)
static const struct cdb_column machine_columns[] = {CDB_COLS_MACHINE(X)};
#undef X
#define X(T, c) COL(network, T, c)
static const struct cdb_column network_columns[] = {CDB_COLS_NETWORK(X)};
#undef X
#define X(T, c) COL(port, T, c)
static const struct cdb_column port_columns[] = {CDB_COLS_PORT(X)};
#undef X
#define X(T, c) COL(task, T, c)
static const struct cdb_column task_columns[] = {CDB_COLS_TASK(X)};
#undef X
#define X(T, c) COL(token, T, c)
static const struct cdb_column token_columns[] = {CDB_COLS_TOKEN(X)};
#undef X
#define X(T, c) COL(nbd_client, T, c)
static const struct cdb_column nbd_client_columns[] = {CDB_COLS_NBD_CLIENT(X)};
#undef X
#define X(T, c) COL(event, T, c)
static const struct cdb_column event_columns[] = {CDB_COLS_EVENT(X)};
#undef X

const struct cdb_table_desc cdb_tables[CDB_N_TABLES] = {
#define X(T, s, n) [CDB_T_##T] = {n, sizeof(struct cdb_##s), s##_columns, sizeof s##_columns / sizeof s##_columns[0]},
    CDB_TABLES(X)
#undef X
};

/* Besides `id`, which is unique in every table. */
const struct cdb_index cdb_indexes[] = {
    {CDB_T_NODE, {CDB_NODE_name}, 1},
    {CDB_T_DISK, {CDB_DISK_node, CDB_DISK_name}, 2},
    {CDB_T_VOLUME, {CDB_VOLUME_name}, 1},
    {CDB_T_IMAGE, {CDB_IMAGE_name}, 1},
    {CDB_T_MACHINE, {CDB_MACHINE_name}, 1},
    {CDB_T_NETWORK, {CDB_NETWORK_name}, 1},
    {CDB_T_PORT, {CDB_PORT_mac}, 1},
    {CDB_T_TOKEN, {CDB_TOKEN_hash}, 1},
    {CDB_T_NBD_CLIENT, {CDB_NBD_CLIENT_name}, 1},
    {CDB_T_NBD_CLIENT, {CDB_NBD_CLIENT_fingerprint}, 1},
};
const size_t cdb_n_indexes = sizeof cdb_indexes / sizeof cdb_indexes[0];
