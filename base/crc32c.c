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

/* Every block of every large request is joined: multiplying by shift_by(4096), a byte at a time. */
static uint32_t block[4][256];

__attribute__((constructor)) static void fill(void)
{
    uint32_t by = shift_by(4096);
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 0; k < 4; k++)
            block[k][i] = multiply(by, i << (8 * k));
}

uint32_t crc32c_join(uint32_t first, uint32_t second, size_t second_len)
{
    if (second_len != 4096)
        return multiply(shift_by(second_len), first) ^ second;
    return block[0][first & 255] ^ block[1][first >> 8 & 255] ^ block[2][first >> 16 & 255] ^ block[3][first >> 24] ^ second;
}
