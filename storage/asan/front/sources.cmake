# Front ends: a library of their own (they know vol.h and base/ only), part of c_volume.
add_library(c_front STATIC
  ${CMAKE_CURRENT_SOURCE_DIR}/vol_mem.c
  ${CMAKE_CURRENT_LIST_DIR}/io.c
  ${CMAKE_CURRENT_LIST_DIR}/watch.c
  ${CMAKE_CURRENT_LIST_DIR}/sock.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/conn.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/handshake.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/meta.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/tls.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/transmit.c
  ${CMAKE_CURRENT_LIST_DIR}/nbd/server.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/msg.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/mem.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/vring.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/blk.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/queue.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/session.c
  ${CMAKE_CURRENT_LIST_DIR}/vhost/server.c)
target_link_libraries(c_front PUBLIC cohort_flags c_base PkgConfig::UV OpenSSL::SSL OpenSSL::Crypto)
target_link_libraries(c_volume PUBLIC c_front)

add_executable(cohort-front-test ${CMAKE_SOURCE_DIR}/tests/integration/test_front_server.c)
target_link_libraries(cohort-front-test PRIVATE c_front)

cohort_unit_test(front_vhost SOURCES ${CMAKE_SOURCE_DIR}/tests/lib/front_peer.c LIBS c_front)
cohort_unit_test(front_vring LIBS c_front)
cohort_unit_test(front_nbd LIBS c_front)
cohort_fuzz(vhost SOURCES ${CMAKE_SOURCE_DIR}/tests/lib/front_peer.c LIBS c_front)
cohort_fuzz(nbd SOURCES ${CMAKE_SOURCE_DIR}/tests/lib/testcert.c LIBS c_front)

# With real peers: QEMU and a Linux guest, libnbd, fio. The guest's init is a static program.
add_executable(front-guest ${CMAKE_SOURCE_DIR}/tests/integration/test_front_guest.c)
target_compile_options(front-guest PRIVATE -Wall -Wextra -Werror -O2)
target_include_directories(front-guest PRIVATE ${CMAKE_SOURCE_DIR})
target_link_options(front-guest PRIVATE -static)
target_link_libraries(front-guest PRIVATE Threads::Threads)
add_test(NAME integration/front_nbd COMMAND ${CMAKE_SOURCE_DIR}/tests/integration/test_front_nbd.sh $<TARGET_FILE:cohort-front-test>)
set(tests integration/front_nbd)
foreach(scenario kill park resize migrate nofront)
  add_test(NAME integration/front_qemu_${scenario}
    COMMAND ${CMAKE_SOURCE_DIR}/tests/integration/test_front_qemu.py $<TARGET_FILE:cohort-front-test> $<TARGET_FILE:front-guest>
      ${CMAKE_SOURCE_DIR}/build/guest ${scenario})
  list(APPEND tests integration/front_qemu_${scenario})
endforeach()
set_tests_properties(${tests} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 240 LABELS integration)
