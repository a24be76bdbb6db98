# The replication cores: pure, they need base only.
set(repl_sources
  ${CMAKE_CURRENT_LIST_DIR}/replica.c
  ${CMAKE_CURRENT_LIST_DIR}/owner.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_member.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_op.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_check.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_isr.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_reconcile.c
  ${CMAKE_CURRENT_LIST_DIR}/owner_join.c)
add_library(c_repl STATIC ${repl_sources})
target_link_libraries(c_repl PUBLIC cohort_flags c_base PkgConfig::UV)
target_link_libraries(c_volume PUBLIC c_repl)

# The simulator: the same sources with planted faults that can be switched on (mutant.h) and with small chunks.
set(sim ${CMAKE_SOURCE_DIR}/tests/sim/asan)
add_executable(sim_asan ${repl_sources} ${sim}/main.c ${sim}/run.c ${sim}/clock.c ${sim}/db.c ${sim}/disk.c ${sim}/node.c
  ${sim}/net.c ${sim}/host.c ${sim}/guest.c ${sim}/check.c ${sim}/faults.c)
set_target_properties(sim_asan PROPERTIES OUTPUT_NAME asan RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/sim)
target_compile_definitions(sim_asan PRIVATE REPL_MUTANTS STORE_CHUNK=8192u)
target_link_libraries(sim_asan PRIVATE cohort_flags c_base PkgConfig::UV)
add_test(NAME sim/asan COMMAND sim_asan --seeds 6000)
add_test(NAME sim/asan_mutations COMMAND sim_asan --prove --seeds 10000)
set_tests_properties(sim/asan sim/asan_mutations PROPERTIES TIMEOUT 300 LABELS sim)
