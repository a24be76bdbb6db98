/* A file for `cohort volume import`: parsed or refused; what is handed out lies within the volume and in order. The first byte cuts
 * the rest into pieces; with its top bit the checksums are put right, so that the rules behind them are reached. */
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "daemon/volfile.h"

static uint64_t size_bytes, next;

static int on_head(void *arg, const struct volfile_head *h, struct err *e)
{
    size_bytes = h->size_bytes;
    if (strlen(h->volume) >= sizeof h->volume || strlen(h->content) != ID_LEN || !size_bytes)
        abort();
    return E_OK;
}

static int inside(uint64_t offset, uint64_t length)
{
    if (!length || offset < next || offset > size_bytes || length > size_bytes - offset)
        abort();
    next = offset + length;
    return E_OK;
}

static int on_data(void *arg, uint64_t offset, const uint8_t *data, uint32_t length, struct err *e)
{
    static uint8_t copy[VOLFILE_DATA_MAX];
    if (length > sizeof copy)
        abort();
    memcpy(copy, data, length);
    return inside(offset, length);
}

static int on_zero(void *arg, uint64_t offset, uint64_t length, struct err *e) { return inside(offset, length); }

/* Header and records get the checksums of what they hold. */
static void repair(uint8_t *p, size_t n)
{
    uint32_t crc;
    uint64_t length;
    if (n < VOLFILE_HEADER)
        return;
    crc = htole32(crc32c(0, p, VOLFILE_HEADER - 4));
    memcpy(p + VOLFILE_HEADER - 4, &crc, 4);
    for (size_t at = VOLFILE_HEADER; n - at >= VOLFILE_RECORD;) {
        uint8_t *r = p + at;
        memcpy(&length, r + 16, 8);
        size_t payload = r[0] == VOLFILE_DATA && le64toh(length) <= n - at - VOLFILE_RECORD ? (size_t)le64toh(length) : 0;
        crc = crc32c(crc32c(0, r, 4), r + 8, 16);
        crc = htole32(payload ? crc32c(crc, r + VOLFILE_RECORD, payload) : crc);
        memcpy(r + 4, &crc, 4);
        at += VOLFILE_RECORD + payload;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct volfile_sink sink = {on_head, on_data, on_zero, NULL};
    struct volfile *f = volfile_new(&sink);
    struct err e;
    size_bytes = next = 0;
    if (size > 1) {
        size_t n = size - 1, step = 1 + (data[0] & 0x7f) * 9u;
        uint8_t *copy = malloc(n);
        if (!copy)
            abort();
        memcpy(copy, data + 1, n);
        if (data[0] & 0x80)
            repair(copy, n);
        int rc = E_OK;
        for (size_t at = 0; at < n && rc == E_OK; at += step)
            rc = volfile_feed(f, copy + at, n - at < step ? n - at : step, &e);
        if (rc == E_OK && volfile_end(f, &e) == E_OK && !size_bytes)
            abort();
        free(copy);
    }
    volfile_free(f);
    return 0;
}
