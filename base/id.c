/* Ids. See id.h. */
#include "base/id.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "base/htab.h"

static const char digits[] = "0123456789abcdef";

static void random_bytes(uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            perror("getrandom");
            abort();
        }
        p += got;
        n -= (size_t)got;
    }
}

void id_new(char ret_text[ID_LEN + 1])
{
    struct id id;
    random_bytes(id.b, sizeof id.b);
    id.b[6] = (uint8_t)((id.b[6] & 0x0f) | 0x40); /* version 4 */
    id.b[8] = (uint8_t)((id.b[8] & 0x3f) | 0x80); /* RFC 4122 variant */
    id_format(&id, ret_text);
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool id_parse(const char *text, struct id *ret_id)
{
    struct id id;
    int at = 0;
    for (int i = 0; i < ID_LEN; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-')
                return false;
            continue;
        }
        int v = hex(text[i]); /* the NUL is no digit: never reads past the end */
        if (v < 0)
            return false;
        if (at & 1)
            id.b[at / 2] = (uint8_t)(id.b[at / 2] << 4 | v);
        else
            id.b[at / 2] = (uint8_t)v;
        at++;
    }
    if (text[ID_LEN])
        return false;
    *ret_id = id;
    return true;
}

void id_format(const struct id *id, char ret_text[ID_LEN + 1])
{
    char *p = ret_text;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        *p++ = digits[id->b[i] >> 4];
        *p++ = digits[id->b[i] & 15];
    }
    *p = '\0';
}

bool id_equal(const struct id *a, const struct id *b) { return memcmp(a->b, b->b, sizeof a->b) == 0; }
uint64_t id_hash(const struct id *id) { return hash_bytes(id->b, sizeof id->b, 0); }

void id_random_hex(char *ret_text, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        uint8_t b;
        random_bytes(&b, 1);
        *ret_text++ = digits[b >> 4];
        *ret_text++ = digits[b & 15];
    }
    *ret_text = '\0';
}
