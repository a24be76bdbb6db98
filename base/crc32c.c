/* crc32c by libisal. crc32_iscsi() works on the raw register: RFC 3720 begins with all ones and inverts at the end. */
#include "base/crc32c.h"

#include <isa-l/crc.h>

uint32_t crc32c(uint32_t seed, const void *data, size_t len)
{
    const size_t step = 1u << 30; /* the library's length is an int */
    unsigned char *p = (unsigned char *)(uintptr_t)data; /* it reads only, though not declared so */
    uint32_t reg = ~seed;
    while (len > 0) {
        size_t n = len < step ? len : step;
        reg = crc32_iscsi(p, (int)n, reg);
        p += n;
        len -= n;
    }
    return ~reg;
}
