/* Text from outside that the daemon and the command line read: JSON bodies by declared fields, names, join tokens, the
 * configuration file. First byte: which. Accepted or refused with a message, and what is accepted holds to the declaration. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cluster/token.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_jin(const char *text, size_t n)
{
    json_t *o = NULL, *list = NULL, *object = NULL;
    const char *name = NULL, *free_text = NULL;
    int64_t bounded = 5, any = 0;
    bool flag = false;
    struct err e = {0};
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &name, 1, 63}, {"text", JIN_STR, false, &free_text, 0, 0}, {"bounded", JIN_INT, false, &bounded, 1, 10},
        {"any", JIN_INT, false, &any, 0, 0}, {"flag", JIN_BOOL, false, &flag, 0, 0}, {"list", JIN_ARRAY, false, &list, 0, 4},
        {"object", JIN_OBJECT, false, &object, 0, 0}};
    if (jin_parse(text, n, &o, &e)) {
        assert(e.code == E_INVAL && *e.msg);
        return;
    }
    assert(json_is_object(o));
    if (jin_read(o, "thing", f, sizeof f / sizeof *f, &e) == E_OK) {
        assert(name && strlen(name) >= 1 && strlen(name) <= 63 && bounded >= 1 && bounded <= 10);
        assert(!list || json_array_size(list) <= 4);
        if (jin_name_check("thing", name, &e) == E_OK)
            assert(strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(name));
    } else {
        assert(*e.msg);
    }
    json_decref(o);
}

static void fuzz_token(const char *text)
{
    struct join_token t;
    struct err e = {0};
    if (token_parse(text, &t, &e)) {
        assert((e.code == E_INVAL || e.code == E_VERSION) && *e.msg);
        return;
    }
    assert(t.port && strnlen(t.address, sizeof t.address) < sizeof t.address && strnlen(t.secret, sizeof t.secret) < sizeof t.secret &&
           strnlen(t.ca_sha256, sizeof t.ca_sha256) < sizeof t.ca_sha256 && strnlen(t.cluster, sizeof t.cluster) < sizeof t.cluster);
    struct join_token again;
    char *same = token_format(&t);
    assert(token_parse(same, &again, &e) == E_OK && again.port == t.port && !strcmp(again.secret, t.secret));
    free(same);
}

/* The token's inside, packed properly: base64url of the text. */
static void fuzz_token_json(const char *text, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    char out[4096] = "COHORT1.";
    size_t o = 8;
    for (size_t i = 0; i < n && o + 8 < sizeof out; i += 3) {
        uint32_t v = (uint32_t)(uint8_t)text[i] << 16 | (i + 1 < n ? (uint32_t)(uint8_t)text[i + 1] << 8 : 0) | (i + 2 < n ? (uint8_t)text[i + 2] : 0);
        unsigned k = n - i >= 3 ? 4 : (unsigned)(n - i) + 1;
        for (unsigned d = 0; d < k; d++)
            out[o++] = digit[v >> (18 - 6 * d) & 63];
    }
    out[o] = '\0';
    fuzz_token(out);
}

static void fuzz_conf(const char *text, size_t n)
{
    char path[48];
    struct conf c = {0};
    struct err e = {0};
    int fd = memfd_create("conf", MFD_CLOEXEC);
    ssize_t w = write(fd, text, n);
    assert(fd >= 0 && w == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (conf_load(path, &c, &e) == E_OK) {
        assert(c.n_disks <= CONF_DISKS_MAX && c.n_storage_addresses <= CONF_LINKS_MAX && c.node_name && c.address);
        conf_free(&c);
    } else {
        assert(*e.msg);
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    char *text = malloc(size);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    switch (data[0] % 4) {
    case 0: fuzz_jin(text, size - 1); break;
    case 1: fuzz_token(text); break;
    case 2: fuzz_token_json(text, size - 1); break;
    default: fuzz_conf(text, size - 1); break;
    }
    free(text);
    return 0;
}
