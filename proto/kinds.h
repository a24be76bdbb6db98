/* Message kinds of the cluster RPC: one number space for all connections. Part of the protocol: never reuse a number.
 * Request and reply share the number; the reply has RPC_FLAG_REPLY. */
#ifndef COHORT_PROTO_KINDS_H
#define COHORT_PROTO_KINDS_H

/* X(symbol, number, name). Blocks: 1-31 connection, 32-63 control/HA, 64-127 storage, 128-159 migration. */
#define RPC_KINDS(X)                       \
    X(RPC_PING, 1, "ping")                 \
    X(RPC_HEARTBEAT, 32, "heartbeat")      \
    X(RPC_STORE_FENCE, 64, "store-fence")  \
    X(RPC_STORE_WRITE, 65, "store-write")  \
    X(RPC_STORE_READ, 66, "store-read")    \
    X(RPC_STORE_TAIL, 67, "store-tail")    \
    X(RPC_STORE_RECORD, 68, "store-record") \
    X(RPC_STORE_VERSIONS, 69, "store-versions") \
    X(RPC_STORE_COPY, 70, "store-copy")    \
    X(RPC_STORE_DROP, 71, "store-drop")    \
    X(RPC_STORE_COMMIT, 72, "store-commit") \
    X(RPC_STORE_KEY, 73, "store-key") \
    X(RPC_STORE_CHANGED, 74, "store-changed") \
    X(RPC_MIGRATE_PREPARE, 128, "migrate-prepare") \
    X(RPC_MIGRATE_FINISH, 129, "migrate-finish")   \
    X(RPC_MIGRATE_ABORT, 130, "migrate-abort")     \
    X(RPC_MIGRATE_READY, 131, "migrate-ready")

enum rpc_kind {
#define X(sym, num, name) sym = (num),
    RPC_KINDS(X)
#undef X
};

#endif
