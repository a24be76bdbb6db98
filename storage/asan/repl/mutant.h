/* Planted faults of the replication cores: each leaves one rule of the protocol out. They exist only where REPL_MUTANTS is
 * defined (c_repl_mutants, which the simulator links); in the daemon MUTANT() is the constant false. The simulator has to
 * find every one of them (tests/sim/asan/mutants.c), otherwise a run without findings would prove nothing.
 *
 * OWNER_ and REPLICA_ ones are in the files here, HOST_ ones in the simulator's stand-in for engine/ and store/. */
#ifndef COHORT_STORAGE_REPL_MUTANT_H
#define COHORT_STORAGE_REPL_MUTANT_H

#include <stdbool.h>

#define REPL_MUTANT_LIST(X) \
    X(OWNER_ACK_FIRST, "ack-before-all", "a write completes at the first replica's answer") \
    X(OWNER_ACK_BEFORE_TXN, "ack-before-txn", "a failing replica is not waited for, before the transaction took it out") \
    X(OWNER_MIN_IGNORED, "min-isr-ignored", "the in-sync set may shrink below the minimum") \
    X(OWNER_UNKNOWN_IS_DONE, "unknown-txn-is-success", "a transaction of unknown outcome counts as done") \
    X(OWNER_REFUSED_IS_DONE, "refused-txn-is-success", "a refused transaction counts as done") \
    X(OWNER_NO_RECONCILE, "skip-reconcile", "tails are ignored after a change of owner") \
    X(OWNER_ONE_TAIL, "reconcile-one-tail", "one replica's tail stands for all") \
    X(OWNER_SERVE_RECONCILING, "serve-while-reconciling", "an owner serves before the tails are rewritten") \
    X(OWNER_EARLY_MARK, "mark-before-reconciled", "commit marks of the new epoch go out while tails are rewritten") \
    X(OWNER_REPLAY_MISSING, "replay-instead-of-ranges", "tails are sent to those that lack them, not rewritten everywhere") \
    X(OWNER_SKIP_UNREADABLE, "reconcile-skips-unreadable", "a range that nobody can read whole is left as it is") \
    X(OWNER_NO_OVERLAP, "no-overlap-order", "overlapping requests run at the same time") \
    X(OWNER_READ_NO_LEASE, "read-without-lease", "reads are answered without a lease") \
    X(OWNER_NO_RESEND, "no-resend", "after a broken session what was sent counts as answered") \
    X(OWNER_REPAIR_RACES, "repair-overwrites-newer", "a bad block's repair does not wait for writes to it") \
    X(OWNER_JOIN_SEND_ALL, "join-send-uncopied", "a joiner gets writes to chunks that are not copied") \
    X(OWNER_COPY_UNLOCKED, "copy-overwrites-newer", "a chunk is copied while it is written") \
    X(OWNER_ADD_EARLY, "add-before-caught-up", "a joiner is added after its first batch") \
    X(OWNER_KEEP_HIGHER, "join-keeps-higher-version", "a higher version on the joiner counts as news") \
    X(OWNER_JOIN_NO_QUIET, "compare-under-writes", "versions are compared while the batch is written") \
    X(OWNER_INCARNATION, "owner-ignores-incarnation", "a swapped disk stays the member it was") \
    X(REPLICA_NO_EPOCH, "replica-no-epoch-check", "a fenced replica accepts older epochs") \
    X(REPLICA_NO_SESSION, "replica-no-session-check", "frames of broken connections are accepted") \
    X(REPLICA_NO_CHAIN, "replica-no-chain-check", "a write is accepted behind a gap") \
    X(REPLICA_COPY_TWICE, "copy-carried-out-twice", "a copy that comes twice is carried out twice") \
    X(REPLICA_COPY_UNTRACKED, "fence-ignores-copies", "FENCE is answered before accepted copies are durable") \
    X(REPLICA_NO_INCARNATION, "replica-ignores-incarnation", "a swapped disk accepts frames meant for its predecessor") \
    X(REPLICA_DUP_EARLY, "duplicate-acked-early", "a repeated write is answered before the first is durable") \
    X(REPLICA_FENCE_EARLY, "fence-answered-early", "FENCE is answered before accepted writes are durable") \
    X(HOST_ACK_EARLY, "ack-before-durable", "a replica answers before its journal is synced") \
    X(HOST_FENCE_MEMORY, "fence-not-durable", "a replica's epoch is forgotten by a restart") \
    X(HOST_EPOCH_REUSED, "seq-reused-after-restart", "a restarted owner goes on in the epoch it had") \
    X(HOST_TRIM_TAIL, "trim-uncommitted", "records above the commit mark leave the journal") \
    X(HOST_TRIM_EARLY, "trim-before-metadata", "the journal is trimmed before the metadata are committed") \
    X(HOST_TORN_ACCEPTED, "torn-record-accepted", "replay does not check a record's crc") \
    X(HOST_NO_READ_CRC, "read-without-crc", "a read returns flipped bits") \
    X(HOST_SWAP_SILENT, "swap-keeps-incarnation", "an empty disk serves under its predecessor's incarnation")

#define REPL_MUTANT_ENUM(ID, NAME, TEXT) MUTANT_##ID,
enum repl_mutant { MUTANT_NONE, REPL_MUTANT_LIST(REPL_MUTANT_ENUM) MUTANT_N };

#ifdef REPL_MUTANTS
extern enum repl_mutant repl_mutant; /* the one that is planted now */
#define MUTANT(ID) (repl_mutant == MUTANT_##ID)
#define MUTATED (repl_mutant != MUTANT_NONE) /* asserts stand back, so that it is the simulator that finds it */
#else
#define MUTANT(ID) false
#define MUTATED false
#endif

#endif
