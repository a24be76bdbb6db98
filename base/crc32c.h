/* crc32c (Castagnoli, RFC 3720 appendix B.4), by libisal. Pure. */
#ifndef COHORT_BASE_CRC32C_H
#define COHORT_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The crc of `len` bytes; `seed` 0 to begin, or the result of the bytes before to continue.
 * crc32c(0, "123456789", 9) == 0xe3069283. */
uint32_t crc32c(uint32_t seed, const void *data, size_t len);

/* The crc of two byte strings one after the other, from the crc of each and the length of the second. Its cost does not depend
 * on lengths; for 4096, our usual one, it is a tenth of computing the crc of those bytes. */
uint32_t crc32c_join(uint32_t first, uint32_t second, size_t second_len);

#endif
