# The store: one disk. Part of c_volume; its tests need nothing else of aSAN.
add_library(c_store STATIC
  ${CMAKE_CURRENT_LIST_DIR}/uring.c
  ${CMAKE_CURRENT_LIST_DIR}/dev.c
  ${CMAKE_CURRENT_LIST_DIR}/alloc.c
  ${CMAKE_CURRENT_LIST_DIR}/index.c
  ${CMAKE_CURRENT_LIST_DIR}/meta.c
  ${CMAKE_CURRENT_LIST_DIR}/journal.c
  ${CMAKE_CURRENT_LIST_DIR}/journal_sb.c
  ${CMAKE_CURRENT_LIST_DIR}/replay.c
  ${CMAKE_CURRENT_LIST_DIR}/label.c
  ${CMAKE_CURRENT_LIST_DIR}/store.c
  ${CMAKE_CURRENT_LIST_DIR}/write.c
  ${CMAKE_CURRENT_LIST_DIR}/read.c
  ${CMAKE_CURRENT_LIST_DIR}/cache.c
  ${CMAKE_CURRENT_LIST_DIR}/s3fifo.c
  ${CMAKE_CURRENT_LIST_DIR}/tier.c
  ${CMAKE_CURRENT_LIST_DIR}/map.c
  ${CMAKE_CURRENT_LIST_DIR}/fence.c
  ${CMAKE_CURRENT_LIST_DIR}/batch.c
  ${CMAKE_CURRENT_LIST_DIR}/merge.c
  ${CMAKE_CURRENT_LIST_DIR}/aside.c
  ${CMAKE_CURRENT_LIST_DIR}/direct.c
  ${CMAKE_CURRENT_LIST_DIR}/destage.c)
target_link_libraries(c_store PUBLIC cohort_flags c_base PkgConfig::UV PkgConfig::URING PRIVATE ${ROCKSDB_LIBRARY})
target_link_libraries(c_volume PUBLIC c_store)

cohort_unit_test(store_basic THREADS LIBS c_store TIMEOUT 300)
cohort_unit_test(store_direct THREADS LIBS c_store TIMEOUT 300)
cohort_unit_test(store_aside THREADS LIBS c_store TIMEOUT 300)
cohort_unit_test(store_damage LIBS c_store)
cohort_unit_test(store_label LIBS c_store)
cohort_unit_test(store_damage_table LIBS c_store TIMEOUT 300)
cohort_unit_test(store_powercut LIBS c_store TIMEOUT 300) # a RocksDB is opened some 400 times
cohort_unit_test(store_cache LIBS c_store m)
cohort_fuzz(store LIBS c_store)
