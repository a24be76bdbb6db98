/* crc32c (Castagnoli, RFC 3720 appendix B.4), by libisal. Pure. */
#ifndef COHORT_BASE_CRC32C_H
#define COHORT_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The crc of `len` bytes; `seed` 0 to begin, or the result of the bytes before to continue.
 * crc32c(0, "123456789", 9) == 0xe3069283. */
uint32_t crc32c(uint32_t seed, const void *data, size_t len);

#endif
