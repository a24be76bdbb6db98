/* Small files of our own (configuration, keys, state): whole-file read with a limit, atomic durable replace. */
#ifndef COHORT_BASE_FILE_H
#define COHORT_BASE_FILE_H

#include <stddef.h>
#include <sys/types.h>
#include "base/err.h"

/* Reads a whole file of at most `max` bytes, NUL-terminated; caller frees *ret_data. E_NOTFOUND, E_TOOBIG, E_IO. */
MUST_CHECK int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len, struct err *e);
/* Writes to a temporary beside `path`, fsyncs, renames, fsyncs the directory: old or new content, never a mix. */
MUST_CHECK int file_write(const char *path, const void *data, size_t len, mode_t mode, struct err *e);
/* mkdir -p with mode 0755 below the last component's `mode`. */
MUST_CHECK int file_mkdirs(const char *path, mode_t mode, struct err *e);

#endif
