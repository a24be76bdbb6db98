# The replication cores: pure, they need base only.
add_library(c_repl STATIC
  ${CMAKE_CURRENT_LIST_DIR}/replica.c
  ${CMAKE_CURRENT_LIST_DIR}/owner.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_member.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_op.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_check.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_isr.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_reconcile.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_join.c)
target_link_libraries(c_repl PUBLIC cohort_flags c_base PkgConfig::UV)
target_link_libraries(c_volume PUBLIC c_repl)

cohort_sim_test(asan_repl SOURCES ${CMAKE_SOURCE_DIR}/tests/sim/asan_world.c
  ${CMAKE_SOURCE_DIR}/tests/sim/asan_net.c LIBS c_repl)
