/* Join tokens: "COHORT1." + base64url of "address\nport\nfingerprint\nsecret\ncluster\n" + 8 hex digits of its crc32c, so
 * that a token that was cut off while copying is told from one that is refused. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/crc32c.h"
#include "cluster/pki.h"

#define PREFIX "COHORT1."
#define TOKEN_MAX 1024

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

char *join_token_format(const struct join_token *t)
{
    struct buf in, out;
    buf_init(&in);
    buf_init(&out);
    buf_printf(&in, "%s\n%u\n%s\n%s\n%s\n", t->address, t->port, t->ca_fingerprint, t->secret, t->cluster);
    buf_printf(&in, "%08x", crc32c(0, in.data, in.len));
    buf_printf(&out, "%s", PREFIX);
    unsigned acc = 0, bits = 0;
    for (size_t i = 0; i < in.len; i++) {
        acc = acc << 8 | (uint8_t)in.data[i];
        for (bits += 8; bits >= 6; bits -= 6)
            buf_append(&out, &digits[acc >> (bits - 6) & 63], 1);
    }
    if (bits)
        buf_append(&out, &digits[acc << (6 - bits) & 63], 1);
    buf_free(&in);
    return buf_take(&out);
}

static bool decode(const char *text, char *ret, size_t cap)
{
    unsigned acc = 0, bits = 0;
    size_t n = 0;
    for (; *text; text++) {
        const char *d = strchr(digits, *text);
        if (!d || n + 1 >= cap)
            return false;
        acc = (acc << 6 | (unsigned)(d - digits)) & 0xffffff;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            ret[n++] = (char)(acc >> bits & 255);
        }
    }
    ret[n] = 0;
    return n > 8 && strlen(ret) == n;
}

static bool is_hex64(const char *s)
{
    return strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64;
}

int join_token_parse(const char *text, struct join_token *ret_token, struct err *e)
{
    char plain[TOKEN_MAX], sum[9], word[TOKEN_MAX];
    struct join_token t = {0};
    while (*text == ' ' || *text == '\n')
        text++;
    snprintf(word, sizeof word, "%s", text);
    word[strcspn(word, " \r\n\t")] = 0;
    if (strncmp(word, "COHORT", 6))
        return err_set(e, E_INVAL, "not a join token: it begins with \"%s\"; `cohort cluster token --role join` makes one on a member node", PREFIX);
    if (strncmp(word, PREFIX, sizeof PREFIX - 1))
        return err_set(e, E_VERSION, "the join token is of a newer Cohort: install that version on this node first");
    if (!decode(word + sizeof PREFIX - 1, plain, sizeof plain))
        return err_set(e, E_INVAL, "the join token is damaged: copy it again, whole, on one line");
    size_t n = strlen(plain) - 8;
    snprintf(sum, sizeof sum, "%08x", crc32c(0, plain, n));
    if (memcmp(plain + n, sum, 8))
        return err_set(e, E_INVAL, "the join token is damaged or cut off: copy it again, whole, on one line");
    plain[n] = 0;
    unsigned port = 0;
    struct in_addr a4;
    if (sscanf(plain, "%63[^\n]\n%u\n%64[^\n]\n%64[^\n]\n%63[^\n]\n", t.address, &port, t.ca_fingerprint, t.secret, t.cluster) != 5 ||
        inet_pton(AF_INET, t.address, &a4) != 1 || !port || port > 65535 || !is_hex64(t.ca_fingerprint) || !is_hex64(t.secret))
        return err_set(e, E_INVAL, "the join token's content is wrong: make a new one");
    t.port = (uint16_t)port;
    *ret_token = t;
    return 0;
}
