# The engine needs everything: it is built when the siblings are.
if(TARGET c_proto AND TARGET c_cluster)
  add_library(c_engine STATIC
    ${CMAKE_CURRENT_LIST_DIR}/asan.c ${CMAKE_CURRENT_LIST_DIR}/view.c ${CMAKE_CURRENT_LIST_DIR}/disk.c
    ${CMAKE_CURRENT_LIST_DIR}/peers.c ${CMAKE_CURRENT_LIST_DIR}/host.c ${CMAKE_CURRENT_LIST_DIR}/server.c
    ${CMAKE_CURRENT_LIST_DIR}/link.c ${CMAKE_CURRENT_LIST_DIR}/shard.c ${CMAKE_CURRENT_LIST_DIR}/volume.c
    ${CMAKE_CURRENT_LIST_DIR}/own.c ${CMAKE_CURRENT_LIST_DIR}/place.c ${CMAKE_CURRENT_LIST_DIR}/drop.c ${CMAKE_CURRENT_LIST_DIR}/memory.c
    ${CMAKE_CURRENT_LIST_DIR}/resync.c ${CMAKE_CURRENT_LIST_DIR}/pace.c
    ${CMAKE_CURRENT_LIST_DIR}/health.c ${CMAKE_CURRENT_LIST_DIR}/disk_health.c ${CMAKE_CURRENT_LIST_DIR}/sealed.c ${CMAKE_CURRENT_LIST_DIR}/front.c
    ${CMAKE_CURRENT_LIST_DIR}/dump.c ${CMAKE_CURRENT_LIST_DIR}/usage.c ${CMAKE_CURRENT_LIST_DIR}/tidy.c
    ${CMAKE_CURRENT_LIST_DIR}/layer.c ${CMAKE_CURRENT_LIST_DIR}/snap.c ${CMAKE_CURRENT_LIST_DIR}/reclaim.c
    ${CMAKE_CURRENT_LIST_DIR}/changed.c)
  target_link_libraries(c_engine PUBLIC c_repl c_store c_front c_cluster c_proto)
  target_link_libraries(c_volume PUBLIC c_engine)

  target_sources(c_engine PRIVATE ${CMAKE_CURRENT_LIST_DIR}/qos.c ${CMAKE_CURRENT_LIST_DIR}/check.c ${CMAKE_CURRENT_LIST_DIR}/lost.c
    ${CMAKE_CURRENT_LIST_DIR}/scrub.c ${CMAKE_CURRENT_LIST_DIR}/digest.c
    ${CMAKE_CURRENT_LIST_DIR}/crypt.c ${CMAKE_CURRENT_LIST_DIR}/keys.c)
  target_link_libraries(c_engine PRIVATE OpenSSL::Crypto)
  cohort_unit_test(asan_qos LIBS c_engine)
  cohort_unit_test(asan_crypt LIBS c_engine)
  cohort_unit_test(repl_health LIBS c_engine)
  cohort_unit_test(repl_pace LIBS c_engine)
  cohort_unit_test(repl_place LIBS c_engine)
  if(COHORT_SANITIZE STREQUAL "thread")
    set(only ARGS "test_o*") # the other tests wait for what has limits of time, which it is too slow for
  endif()
  cohort_unit_test(repl_engine THREADS LIBS c_engine TIMEOUT 300 ${only})
  cohort_unit_test(repl_rebuild LIBS c_engine)
  cohort_unit_test(repl_memory LIBS c_engine)
  cohort_unit_test(repl_snapshot LIBS c_engine TIMEOUT 300)

  # bench/vhost.py: an engine in a process of its own, and the guest's init.
  add_executable(cohort-bench-node ${CMAKE_SOURCE_DIR}/bench/vhost_node.c)
  target_link_libraries(cohort-bench-node PRIVATE c_engine)
  add_executable(bench-guest ${CMAKE_SOURCE_DIR}/bench/vhost_guest.c)
  target_compile_options(bench-guest PRIVATE -Wall -Wextra -Werror -O2)
  target_include_directories(bench-guest PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_options(bench-guest PRIVATE -static)
endif()
