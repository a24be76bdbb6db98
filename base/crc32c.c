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

/* Polynomials over GF(2) modulo Castagnoli's, reflected: bit 31 is x^0. */
#define POLY 0x82f63b78u

static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t p = 0;
    for (int i = 31; i >= 0; i--) {
        p ^= b & -(a >> i & 1);
        b = (b >> 1) ^ (POLY & -(b & 1));
    }
    return p;
}

/* x^(8 len) */
static uint32_t shift_by(size_t len)
{
    uint32_t result = 1u << 31, power = 1u << 23; /* x^0, x^8 */
    for (; len > 0; len >>= 1) {
        if (len & 1)
            result = multiply(result, power);
        power = multiply(power, power);
    }
    return result;
}

uint32_t crc32c_join(uint32_t first, uint32_t second, size_t second_len)
{
    const uint32_t by_4096 = 0x35d73a62u; /* shift_by(4096) */
    return multiply(second_len == 4096 ? by_4096 : shift_by(second_len), first) ^ second;
}
