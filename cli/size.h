/* Sizes and times as people write and read them. Pure; no allocation. */
#ifndef COHORT_CLI_SIZE_H
#define COHORT_CLI_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIZE_TEXT 32

/* "512M", "1G", "1GiB", "2t", "4096": binary units, whole numbers. False: not a size, negative, or beyond 63 bits. */
bool size_parse(const char *text, int64_t *ret_bytes);
/* "90", "90s", "30m", "1h", "7d": seconds. */
bool duration_parse(const char *text, int64_t *ret_s);
bool int_parse(const char *text, int64_t *ret);

/* Into at least SIZE_TEXT bytes; returns `out`. */
char *size_format(int64_t bytes, char *out);      /* "78 B", "512 MiB", "1.5 GiB" */
char *duration_format(int64_t ms, char *out);     /* "350 ms", "12.3 s", "4m 10s", "2h 05m", "3d 4h" */

#endif
