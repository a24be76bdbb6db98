/* A disk that says anything: replay of a journal and the values of the metadata.
 *
 * Journal (first byte even): the input is a list of batches, each a few records and a tweak; headers get their checksums,
 * so that what is behind them is reached. Then bytes of the ring are overwritten. Replay may refuse; what it hands over
 * must lie in the ring and in one chunk. Metadata (odd): a key and a value with a good checksum. */
#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/log.h"
#include "storage/asan/store/journal.h"
#include "storage/asan/store/meta.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RING (64u * FMT_BLOCK)
#define BATCH_MAX (16u * FMT_BLOCK)

struct input {
    const uint8_t *p;
    size_t n;
};

static uint8_t next(struct input *in)
{
    return in->n ? (in->n--, *in->p++) : 0;
}

/* ---- journal ---- */

static int apply(void *arg, const struct journal_found *f, struct err *e)
{
    const struct journal *j = arg;
    uint64_t offset = le64toh(f->rec.offset), length = le32toh(f->rec.length);
    if (f->rec.type == FMT_PLACED) {
        assert(offset % STORE_EXTENT == 0 && length == STORE_EXTENT);
        return E_OK;
    }
    assert(f->rec.type >= FMT_WRITE && f->rec.type <= FMT_COPY_ZERO && length && length % 512 == 0 && offset % 512 == 0);
    assert(offset / STORE_CHUNK == (offset + length - 1) / STORE_CHUNK);
    if (f->rec.data_block)
        assert(f->file_off >= FMT_RING_AT && f->file_off + length <= FMT_RING_AT + j->ring_bytes);
    assert(!f->rec.lost || f->rec.type == FMT_COPY);
    return length == 7 * 512 && f->rec.type == FMT_COPY ? err_set(e, E_CORRUPT, "refused by the index") : E_OK;
}

static void record(struct fmt_record *f, struct input *in, uint32_t *block, uint8_t *batch)
{
    uint8_t type = next(in), flags = next(in), where = next(in), len = next(in);
    bool placed = type % 6 == FMT_PLACED, copy = type % 6 >= FMT_COPY && !placed;
    uint32_t length = copy && !(flags & 4) ? STORE_CHUNK : (len % 16 + 1u) * 512 + (flags >> 7);
    f->type = type % 6 + (type == 255);
    f->flags = flags & 3;
    f->lost = flags & 32 ? htole16(where) : 0;
    f->epoch = htole64(1);
    f->seq = htole64(where);
    f->offset = htole64(copy ? (uint64_t)where * STORE_CHUNK : where * 512u + (flags & 8 ? UINT64_MAX - 4095 : 0));
    f->length = htole32(length);
    if (placed) {
        f->offset = htole64(where / 16 * (uint64_t)STORE_EXTENT + (flags & 8 ? 512 : 0));
        f->length = htole32(flags & 4 ? length : STORE_EXTENT);
        f->data_block = htole32(flags & 16 ? len : *block);
        if ((*block + 1) * FMT_BLOCK <= BATCH_MAX)
            f->crc = htole32(crc32c(0, batch + *block * FMT_BLOCK, FMT_BLOCK));
        ++*block;
        return;
    }
    if (f->type == FMT_WRITE || f->type == FMT_COPY) {
        f->data_block = htole32(flags & 16 ? len : *block);
        if (*block * FMT_BLOCK + length <= BATCH_MAX)
            f->crc = htole32(crc32c(0, batch + *block * FMT_BLOCK, length));
        *block += (length + FMT_BLOCK - 1) / FMT_BLOCK;
    }
}

/* Changes one field of the header to something else. */
static void tweak(struct fmt_batch *h, uint8_t what, uint8_t v)
{
    switch (what % 16) {
    case 0: h->total_bytes = htole32(v * 1024u); break;
    case 1: h->n_records = htole16(v); break;
    case 2: h->seq = htole64(le64toh(h->seq) + v - 128u); break;
    case 3: h->life = htole64(v); break;
    case 4: h->durable_seq = htole64(v); break;
    case 5: h->version = htole16(v); break;
    case 6: h->pos = htole64(v * 512u); break;
    case 7: h->total_bytes = htole32(UINT32_MAX - v); break;
    case 8: h->meta_number = htole64(v); break;
    case 9: h->fence_number = htole64(v); break;
    default: break;
    }
}

static uint32_t write_batch(struct journal *j, int fd, struct input *in, uint64_t pos, uint64_t seq)
{
    static uint8_t batch[BATCH_MAX] __attribute__((aligned(8)));
    struct fmt_batch *h = (struct fmt_batch *)batch;
    uint32_t block = 1;
    memset(h, 0, sizeof *h);
    unsigned n = next(in) % 6;
    uint8_t what = next(in), value = next(in);
    for (unsigned i = 0; i < n; i++)
        record(&h->record[i], in, &block, batch);
    uint32_t total = block * FMT_BLOCK;
    uint64_t room = RING - pos % RING;
    if (total > room || total > BATCH_MAX)
        total = (uint32_t)(room < BATCH_MAX ? room : BATCH_MAX);
    h->magic = htole32(FMT_BATCH_MAGIC);
    h->version = htole16(FMT_VERSION);
    h->n_records = htole16((uint16_t)n);
    h->life = htole64(1);
    h->seq = htole64(seq);
    h->pos = htole64(pos);
    h->durable_seq = htole64(seq - 1);
    h->total_bytes = htole32(total);
    memcpy(h->journal_id, j->sb.journal_id, 16);
    tweak(h, what, value);
    fmt_batch_seal(h);
    ssize_t w = pwrite(fd, batch, total, (off_t)(FMT_RING_AT + pos % RING));
    assert(w == (ssize_t)total);
    return total;
}

static void fuzz_journal(struct input *in)
{
    struct journal j = {.ring_bytes = RING};
    struct index x;
    struct err e = {0};
    int fd = memfd_create("journal", MFD_CLOEXEC);
    assert(fd >= 0 && !ftruncate(fd, FMT_RING_AT + RING));
    j.dev = (struct dev){.fd = fd, .path = (char *)"journal", .dsync = true, .fault_read = "f.read", .fault_write = "f.write",
                         .fault_sync = "f.sync"};
    memset(j.sb.journal_id, 7, 16);
    j.sb.magic = htole32(FMT_SB_MAGIC);
    j.sb.ring_bytes = htole64(RING);
    uint64_t pos = j.head_pos = j.trim_pos = j.free_pos = (uint64_t)(next(in) % 64) * FMT_BLOCK, seq = 1;
    j.next_seq = j.trim_seq = j.free_seq = 1;
    j.life = 1;
    j.meta_number = j.fence_number = 128; /* what the metadata have seen */
    j.meta_durable_seq = next(in) % 4;
    j.sb.durable_seq = htole64(next(in) % 8);
    for (unsigned batches = next(in) % 8; batches; batches--)
        pos += write_batch(&j, fd, in, pos, seq++);
    while (in->n >= 3) {
        uint32_t at = (uint32_t)(next(in) << 8 | next(in)) * 4 % RING;
        uint8_t v = next(in);
        ssize_t w = pwrite(fd, &v, 1, FMT_RING_AT + at);
        assert(w == 1);
    }
    index_init(&x);
    (void)!journal_replay(&j, &x, apply, &j, &e);
    index_free(&x);
    close(fd);
}

/* ---- metadata ---- */

static int on_label(void *arg, const struct meta_label *l, struct err *e)
{
    assert(strnlen(l->cluster, FMT_ID_MAX) < FMT_ID_MAX && strnlen(l->disk, FMT_ID_MAX) < FMT_ID_MAX);
    return E_OK;
}
static int on_number(void *arg, uint64_t number, uint64_t durable_seq, struct err *e) { return E_OK; }
static int on_fences(void *arg, uint64_t number, struct err *e) { return E_OK; }
static int on_fence(void *arg, const struct store_shard_id *id, const struct meta_fence *f, struct err *e) { return E_OK; }
static int on_progress(void *arg, const struct store_shard_id *id, const struct meta_progress *p, struct err *e) { return E_OK; }

static int on_ext(void *arg, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x, struct err *e)
{
    uint64_t sum = x->place; /* everything must have been set: the sanitizers see a read of what was not */
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        sum += x->version[c].seq;
    *(uint64_t *)arg += sum;
    return E_OK;
}

static int on_aside(void *arg, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e)
{
    *(uint64_t *)arg += arrival + a->version.epoch + a->version.seq + a->offset + a->batch_seq + a->data_at + a->crc + a->shown;
    assert(a->length && a->length <= STORE_CHUNK && a->offset % STORE_CHUNK + a->length <= STORE_CHUNK);
    return E_OK;
}

static void fuzz_meta(struct input *in)
{
    static const char kind[] = "LNGFSEAX";
    static const uint8_t key_bytes[] = {1, 1, 1, 21, 21, 25, 29, 3};
    const struct meta_visitor v = {on_label, on_number, on_fences, on_fence, on_progress, on_ext, on_aside};
    unsigned k = next(in) % 8;
    uint8_t key[32] = {(uint8_t)kind[k]}, value[600];
    size_t key_n = key_bytes[k], n = 0;
    uint64_t sum = 0;
    struct err e = {0};
    if (next(in) > 250)
        key_n = next(in) % sizeof key;
    for (size_t i = 1; i < key_n; i++)
        key[i] = next(in);
    bool seal = next(in) < 240;
    while (in->n && n < sizeof value - 4)
        value[n++] = next(in);
    if (seal) {
        uint32_t crc = htole32(crc32c(crc32c(0, key, key_n), value, n));
        memcpy(value + n, &crc, 4);
        n += 4;
    }
    uint8_t *k_exact = malloc(key_n + 1), *v_exact = malloc(n + 1); /* so that a read too far is seen */
    assert(k_exact && v_exact);
    memcpy(k_exact + 1, key, key_n);
    memcpy(v_exact + 1, value, n);
    (void)!meta_visit(&v, &sum, k_exact + 1, key_n, v_exact + 1, n, &e);
    free(k_exact);
    free(v_exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    log_set_level("*", LOG_LVL_ERR);
    if (next(&in) & 1)
        fuzz_meta(&in);
    else
        fuzz_journal(&in);
    return 0;
}
