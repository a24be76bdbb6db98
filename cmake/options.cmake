# Warnings and sanitizers as INTERFACE targets: every target of ours links cohort_flags.
set(COHORT_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined or thread; empty for none")
option(COHORT_FUZZ "Build fuzz targets (clang, libFuzzer)" OFF)

add_library(cohort_flags INTERFACE)
target_compile_options(cohort_flags INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-unused-parameter
  -Wno-missing-field-initializers $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation> -fno-strict-aliasing -fstack-protector-strong)
target_compile_definitions(cohort_flags INTERFACE _GNU_SOURCE COHORT_VERSION="${PROJECT_VERSION}")
target_include_directories(cohort_flags INTERFACE ${CMAKE_SOURCE_DIR})
if(COHORT_SANITIZE)
  target_compile_options(cohort_flags INTERFACE -fsanitize=${COHORT_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(cohort_flags INTERFACE -fsanitize=${COHORT_SANITIZE})
  if(CMAKE_C_COMPILER_ID STREQUAL GNU)
    target_compile_options(cohort_flags INTERFACE -Wno-restrict) # sees overlaps that are none between instrumented globals
    if(COHORT_SANITIZE STREQUAL thread) # fences order us and the guest's CPUs (vring.c), not threads of ours
      target_compile_options(cohort_flags INTERFACE -Wno-tsan)
    endif()
  endif()
endif()
if(COHORT_FUZZ) # coverage in our libraries too: without it libFuzzer is blind
  target_compile_options(cohort_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
# assert() stays on in every build type: it guards our own invariants.
string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_RELEASE "${CMAKE_C_FLAGS_RELEASE}")
string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_RELWITHDEBINFO "${CMAKE_C_FLAGS_RELWITHDEBINFO}")

# Programs that are installed together find each other beside themselves: one folder for them, as after installation.
function(cohort_program target)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()
