# Included by storage/asan/CMakeLists.txt: the replication cores and their tests.
target_sources(c_volume PRIVATE
  repl/replica.c repl/owner.c repl/owner_member.c repl/owner_op.c repl/owner_isr.c repl/owner_reconcile.c repl/owner_join.c)
