/* Sizes and times as people write and read them. See size.h. */
#include "cli/size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Digits of `text` into *ret; the rest of the text, or NULL if there are no digits or too many. */
static const char *number(const char *text, int64_t *ret)
{
    int64_t v = 0;
    if (!isdigit((unsigned char)*text))
        return NULL;
    for (; isdigit((unsigned char)*text); text++)
        if (__builtin_mul_overflow(v, INT64_C(10), &v) || __builtin_add_overflow(v, (int64_t)(*text - '0'), &v))
            return NULL;
    *ret = v;
    return text;
}

bool int_parse(const char *text, int64_t *ret)
{
    int64_t v;
    const char *rest = number(text, &v);
    if (!rest || *rest)
        return false;
    *ret = v;
    return true;
}

bool size_parse(const char *text, int64_t *ret_bytes)
{
    static const char units[] = "KMGT";
    int64_t v;
    const char *rest = number(text, &v);
    if (!rest)
        return false;
    const char *u = *rest ? strchr(units, toupper((unsigned char)*rest)) : NULL;
    if (u) {
        rest++;
        if (__builtin_mul_overflow(v, INT64_C(1) << (10 * (u - units + 1)), &v))
            return false;
    }
    if (*rest && strcasecmp(rest, "B") != 0 && !(u && strcasecmp(rest, "iB") == 0))
        return false;
    *ret_bytes = v;
    return true;
}

bool duration_parse(const char *text, int64_t *ret_s)
{
    static const struct { char unit; int64_t s; } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    int64_t v;
    const char *rest = number(text, &v);
    if (!rest)
        return false;
    if (*rest == '\0') {
        *ret_s = v;
        return true;
    }
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (rest[0] != units[i].unit || rest[1])
            continue;
        if (__builtin_mul_overflow(v, units[i].s, &v))
            return false;
        *ret_s = v;
        return true;
    }
    return false;
}

char *size_format(int64_t bytes, char *out)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    size_t u = 0;
    /* 1023.96 would print as "1024.0": the next unit begins where rounding to one digit reaches it */
    while (v >= (u == 0 ? 1024 : 1023.95) && u + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        u++;
    }
    if (u == 0)
        snprintf(out, SIZE_TEXT, "%" PRId64 " B", bytes);
    else
        snprintf(out, SIZE_TEXT, "%.1f %s", v, units[u]);
    char *zero = strstr(out, ".0 ");
    if (zero)
        memmove(zero, zero + 2, strlen(zero + 2) + 1);
    return out;
}

char *duration_format(int64_t ms, char *out)
{
    int64_t s = ms / 1000;
    if (ms < 0)
        snprintf(out, SIZE_TEXT, "0 ms"); /* clocks of two machines differ */
    else if (ms < 1000)
        snprintf(out, SIZE_TEXT, "%" PRId64 " ms", ms);
    else if (s < 60)
        snprintf(out, SIZE_TEXT, "%" PRId64 ".%" PRId64 " s", s, ms % 1000 / 100);
    else if (s < 3600)
        snprintf(out, SIZE_TEXT, "%" PRId64 "m %02" PRId64 "s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, SIZE_TEXT, "%" PRId64 "h %02" PRId64 "m", s / 3600, s % 3600 / 60);
    else
        snprintf(out, SIZE_TEXT, "%" PRId64 "d %" PRId64 "h", s / 86400, s % 86400 / 3600);
    return out;
}
