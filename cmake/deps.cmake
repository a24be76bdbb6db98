# Debian packages by pkg-config; libopenvswitch from the tree that deploy/deps built.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenSSL 3 REQUIRED)
pkg_check_modules(UV REQUIRED IMPORTED_TARGET libuv)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(MHD REQUIRED IMPORTED_TARGET libmicrohttpd)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
pkg_check_modules(CURL REQUIRED IMPORTED_TARGET libcurl)
pkg_check_modules(ISAL REQUIRED IMPORTED_TARGET libisal)
find_library(ROCKSDB_LIBRARY rocksdb REQUIRED)

set(COHORT_OVS_DIR ${CMAKE_SOURCE_DIR}/build/ovs/openvswitch CACHE PATH "Built Open vSwitch source tree (deploy/deps makes it)")
if(NOT EXISTS ${COHORT_OVS_DIR}/lib/.libs/libopenvswitch.a)
  message(FATAL_ERROR "libopenvswitch is not built in ${COHORT_OVS_DIR}: run deploy/deps first")
endif()
# The tree is the include path (as OVN does it): `make install` leaves out ovsdb-idl.h. Only few files may use it.
# Some of its global names are ours (base/buf.h, htab.h, crc32c.h) or jansson's: the archive is linked with them prefixed
# ovs_, and what links `openvswitch` sees them so. Link it PRIVATE, and only to a target whose files use neither jansson
# nor hash_bytes() or crc32c() of base.
set(ovs_clashes xmalloc xcalloc xrealloc xstrdup xasprintf hash_bytes crc32c
  json_array json_equal json_integer json_object json_real json_string)
string(MD5 ovs_tag "${ovs_clashes}")
foreach(name ${ovs_clashes})
  list(APPEND ovs_redefine --redefine-sym ${name}=ovs_${name})
  list(APPEND ovs_definitions ${name}=ovs_${name})
endforeach()
foreach(archive libopenvswitch libopenvswitchavx512)
  set(from ${COHORT_OVS_DIR}/lib/.libs/${archive}.a)
  set(to ${CMAKE_BINARY_DIR}/${archive}-${ovs_tag}.a)
  list(APPEND ovs_archives ${to})
  if(NOT EXISTS ${to} OR ${from} IS_NEWER_THAN ${to})
    execute_process(COMMAND ${CMAKE_OBJCOPY} ${ovs_redefine} ${from} ${to} COMMAND_ERROR_IS_FATAL ANY)
  endif()
endforeach()
add_library(openvswitch INTERFACE)
target_include_directories(openvswitch SYSTEM INTERFACE ${COHORT_OVS_DIR} ${COHORT_OVS_DIR}/lib ${COHORT_OVS_DIR}/include)
target_compile_definitions(openvswitch INTERFACE HAVE_CONFIG_H ${ovs_definitions})
# As an imported target, so that CMake knows that libssl must come behind it on every link line.
list(GET ovs_archives 0 ovs_main)
list(GET ovs_archives 1 ovs_avx512)
add_library(ovs_archive STATIC IMPORTED)
set_target_properties(ovs_archive PROPERTIES IMPORTED_LOCATION ${ovs_main}
  INTERFACE_LINK_LIBRARIES "${ovs_avx512};OpenSSL::SSL;OpenSSL::Crypto;cap-ng;atomic;m;Threads::Threads")
target_link_libraries(openvswitch INTERFACE ovs_archive)
set(OVSDB_IDLC ${COHORT_OVS_DIR}/ovsdb/ovsdb-idlc CACHE FILEPATH "IDL compiler")

# cohort_proto(target a.proto …): protobuf-c sources into the target.
function(cohort_proto target)
  foreach(p ${ARGN})
    get_filename_component(n ${p} NAME_WE)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${n}.pb-c)
    add_custom_command(OUTPUT ${out}.c ${out}.h
      COMMAND protoc-c --c_out=${CMAKE_CURRENT_BINARY_DIR} -I ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/${p}
      DEPENDS ${p} VERBATIM)
    target_sources(${target} PRIVATE ${out}.c ${out}.h)
    set_source_files_properties(${out}.c PROPERTIES COMPILE_OPTIONS "-w")
  endforeach()
  target_include_directories(${target} PUBLIC ${CMAKE_BINARY_DIR})
endfunction()
