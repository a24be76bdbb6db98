/* Store: large writes past the journal. What they cost the journal, how they order with small writes, copies, discards and
 * destage, when space comes back, what happens on a full disk, and that damage to their data or records is detected.
 * Power cuts and failing devices: test_store_powercut.c. */
#include "test_store_util.h"
#include "storage/asan/store/format.h"

#define SHARD_BYTES (4ull * MIB)
#define SECTOR 512u

static struct store_shard_id id1(void) { return shard_id(1, 0); }

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    d->conf.direct = true;
    disk_must_open(d);
    assert_int_equal(do_fence(d, id1(), 1, SHARD_BYTES), E_OK);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    disk_free(*state);
    free(*state);
    return 0;
}

static struct store_usage usage(struct disk *d)
{
    struct store_usage u;
    store_usage(d->s, &u);
    return u;
}

static void commit(struct disk *d, uint64_t seq)
{
    store_commit_mark(d->s, &(struct store_shard_id){.volume = id1().volume}, (struct store_version){1, seq});
}

/* [offset, offset + length) holds what fill() of a write of `seed` at `begin` makes. */
static void expect(struct disk *d, uint64_t offset, uint32_t length, uint64_t begin, uint64_t seed)
{
    uint8_t *got = malloc(length), *want = calloc(1, length + (offset - begin));
    if (seed)
        fill(want, length + (offset - begin), seed);
    int rc = do_read(d, id1(), offset, length, got);
    if (rc != E_OK)
        fail_msg("read %llu+%u: %d %s", (unsigned long long)offset, length, rc, d->e.msg);
    assert_memory_equal(got, want + (offset - begin), length);
    free(got);
    free(want);
}

static void reopen(struct disk *d)
{
    disk_close(d);
    disk_must_open(d);
}

/* Only where it lies passes the journal; destage moves no data; replacing it gives its place back. */
static void large_write(void **state)
{
    struct disk *d = *state;
    uint64_t journal = usage(d).journal_used_bytes;
    assert_int_equal(do_write(d, id1(), 1, 1, 0, 0, MIB, 7, 0), E_OK);
    assert_in_range(usage(d).journal_used_bytes - journal, 1, 32 * 1024);
    assert_int_equal(usage(d).dirty_bytes, 0);
    expect(d, 0, MIB, 0, 7);
    expect(d, 4096 + SECTOR, 300000 / SECTOR * SECTOR, 0, 7);
    reopen(d);
    expect(d, 0, MIB, 0, 7);
    commit(d, 1);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(store_shard_used(d->s, &(struct store_shard_id){.volume = id1().volume}), MIB);
    expect(d, 0, MIB, 0, 7);
    for (uint64_t seq = 2; seq < 12; seq++) {
        assert_int_equal(do_write(d, id1(), 1, seq, seq - 1, 0, MIB, seq, seq % 2 ? SECTOR : 0), E_OK);
        expect(d, 0, MIB, 0, seq);
    }
    assert_in_range(usage(d).used_bytes, 2 * MIB, 11 * MIB); /* the older ones wait for the trim */
    commit(d, 11);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(usage(d).used_bytes, MIB);
    assert_int_equal(do_version(d, id1(), 3).seq, 11);
    reopen(d);
    assert_int_equal(usage(d).used_bytes, MIB);
    expect(d, 0, MIB, 0, 11);
}

/* Pieces before and behind whole extents take the other way; all of the write is one. */
static void unaligned_ends(void **state)
{
    struct disk *d = *state;
    assert_int_equal(do_write(d, id1(), 1, 1, 0, STORE_EXTENT - 8192, STORE_EXTENT * 2 + 12288, 5, 0), E_OK);
    assert_int_equal(do_write(d, id1(), 1, 2, 0, 3 * STORE_EXTENT - SECTOR, STORE_EXTENT + 2 * SECTOR, 6, 0), E_OK);
    for (int i = 0; i < 2; i++) {
        expect(d, STORE_EXTENT - 8192, 2 * STORE_EXTENT + 8192 - SECTOR, STORE_EXTENT - 8192, 5);
        expect(d, 3 * STORE_EXTENT - SECTOR, STORE_EXTENT + 2 * SECTOR, 3 * STORE_EXTENT - SECTOR, 6);
        reopen(d);
        commit(d, 2);
        assert_int_equal(do_destage(d), E_OK);
    }
}

struct many { struct store_write w[64]; struct wait wait[64]; unsigned n; };

static void submit(struct disk *d, struct many *m, uint64_t offset, uint32_t length, uint64_t seed)
{
    struct store_write *w = &m->w[m->n];
    *w = (struct store_write){.shard = id1(), .version = {1, m->n + 1}, .offset = offset, .length = length, .zero = !seed};
    op_init(&w->op, &m->wait[m->n]);
    if (seed) {
        w->data = iobuf_new(length);
        fill(w->data->data, length, seed);
        w->crc = crc32c(0, w->data->data, length);
    }
    store_write(d->s, w);
    iobuf_unref(w->data);
    m->n++;
}

/* Small writes to the same blocks, submitted while large ones are on their way: the last one wins, now and after a restart. */
static void order(void **state)
{
    struct disk *d = *state;
    struct many *m = calloc(1, sizeof *m);
    submit(d, m, 0, 4096, 1);
    submit(d, m, 0, MIB, 2);
    submit(d, m, 4096, 4096, 3);
    submit(d, m, 65536, 65536, 4);
    submit(d, m, 2 * STORE_EXTENT, STORE_EXTENT, 5);
    submit(d, m, 2 * STORE_EXTENT + 8192, SECTOR, 6);
    submit(d, m, 3 * STORE_EXTENT, STORE_EXTENT, 0);
    for (unsigned i = 0; i < m->n; i++) {
        assert_int_equal(wait_for(d, &m->wait[i]), E_OK);
        for (unsigned k = i + 1; k < m->n; k++) /* nothing overtakes */
            assert_true(m->wait[i].done);
    }
    for (int round = 0; round < 4; round++) {
        expect(d, 0, 4096, 0, 2);
        expect(d, 4096, 4096, 4096, 3);
        expect(d, 8192, 65536 - 8192, 0, 2);
        expect(d, 65536, 65536, 65536, 4);
        expect(d, 131072, 2 * STORE_EXTENT - 131072, 0, 2);
        expect(d, 2 * STORE_EXTENT, 8192, 2 * STORE_EXTENT, 5);
        expect(d, 2 * STORE_EXTENT + 8192, SECTOR, 2 * STORE_EXTENT + 8192, 6);
        expect(d, 2 * STORE_EXTENT + 8192 + SECTOR, 4096, 2 * STORE_EXTENT, 5);
        expect(d, 3 * STORE_EXTENT, STORE_EXTENT, 0, 0);
        assert_int_equal(do_version(d, id1(), 1).seq, 4);
        assert_int_equal(do_version(d, id1(), 2).seq, 2);
        assert_int_equal(do_version(d, id1(), 8).seq, 6);
        if (round == 1)
            commit(d, 4); /* the large write and what came soon after, not the later ones */
        if (round == 2)
            commit(d, 7);
        assert_int_equal(do_destage(d), E_OK);
        if (round % 2)
            reopen(d);
    }
    free(m);
}

/* A copied chunk on top of a large write that is not committed: destage leaves both alone until it is, then keeps the copy. */
static void copy_on_top(void **state)
{
    struct disk *d = *state;
    const struct store_version v = {7, 77};
    assert_int_equal(do_write(d, id1(), 1, 1, 0, 0, STORE_EXTENT, 2, 0), E_OK);
    assert_int_equal(do_copy(d, id1(), 1, v, 3), E_OK);
    for (int round = 0; round < 4; round++) {
        assert_int_equal(do_destage(d), E_OK);
        expect(d, 0, STORE_CHUNK, 0, 2);
        expect(d, STORE_CHUNK, STORE_CHUNK, STORE_CHUNK, 3);
        expect(d, 2 * STORE_CHUNK, 2 * STORE_CHUNK, 0, 2);
        assert_int_equal(do_version(d, id1(), 1).seq, 77);
        assert_int_equal(do_version(d, id1(), 2).seq, 1);
        struct store_tail_rec *t;
        size_t n = store_tail(d->s, &(struct store_shard_id){.volume = id1().volume}, &t);
        assert_int_equal(n, round < 2 ? STORE_EXTENT / STORE_CHUNK : 0);
        for (size_t i = 0; i < n; i++) { /* the copied-over chunk, too, as the write had it */
            uint8_t got[STORE_CHUNK], *want = malloc(STORE_EXTENT);
            struct store_record_read q = {.shard = id1(), .version = t[i].version, .offset = t[i].offset, .dst = got, .length = t[i].length};
            struct wait w;
            op_init(&q.op, &w);
            store_record_read(d->s, &q);
            assert_int_equal(wait_for(d, &w), E_OK);
            fill(want, STORE_EXTENT, 2);
            assert_memory_equal(got, want + t[i].offset, STORE_CHUNK);
            free(want);
        }
        free(t);
        if (round == 1)
            commit(d, 1);
        if (round % 2 == 0)
            reopen(d);
    }
}

/* Zeroes in bulk take neither journal nor places. */
static void zeroes(void **state)
{
    struct disk *d = *state;
    struct iobuf *b = iobuf_new(MIB);
    memset(b->data, 0, MIB);
    struct store_write w = {.shard = id1(), .version = {1, 1}, .length = MIB, .data = b, .crc = crc32c(0, b->data, MIB)};
    struct wait wait;
    op_init(&w.op, &wait);
    store_write(d->s, &w);
    iobuf_unref(b);
    assert_int_equal(wait_for(d, &wait), E_OK);
    assert_int_equal(usage(d).used_bytes, 0);
    assert_in_range(usage(d).journal_used_bytes, 1, 8192);
    expect(d, 0, MIB, 0, 0);
    assert_int_equal(do_version(d, id1(), 15).seq, 1);
}

/* Too little room for a second place: the journal takes the write, as it takes a small one. Nothing fails. */
static void little_room(void **state)
{
    struct disk *d = *state;
    disk_close(d);
    d->conf.limit_bytes = 26 * MIB; /* 104 places; 16 are kept for destage, 64 for what is under way elsewhere */
    disk_must_open(d);
    uint64_t seq = 0;
    for (unsigned round = 0; round < 6; round++) {
        for (uint64_t at = 0; at < SHARD_BYTES; at += MIB, seq++)
            assert_int_equal(do_write(d, id1(), 1, seq + 1, seq, at, MIB, seq + 1, 0), E_OK);
        for (uint64_t at = 0; at < SHARD_BYTES; at += MIB)
            expect(d, at, MIB, at, seq - (SHARD_BYTES - at) / MIB + 1);
    }
    assert_true(usage(d).used_bytes <= d->conf.limit_bytes);
    commit(d, seq);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(usage(d).used_bytes, SHARD_BYTES);
}

/* A shard is dropped while large writes are on their way, and made again: the new one is empty, after a restart, too. */
static void drop(void **state)
{
    struct disk *d = *state;
    struct many *m = calloc(1, sizeof *m);
    submit(d, m, 0, MIB, 1);
    submit(d, m, 0, 4096, 2);
    struct store_op op;
    struct wait w;
    op_init(&op, &w);
    store_drop(d->s, &op, &(struct store_shard_id){.volume = id1().volume}, 2);
    assert_int_equal(wait_for(d, &w), E_OK);
    assert_true(m->wait[0].done && m->wait[1].done && m->wait[0].status == E_OK);
    assert_int_equal(do_fence(d, id1(), 3, SHARD_BYTES), E_OK);
    expect(d, 0, MIB, 0, 0);
    assert_int_equal(do_write(d, id1(), 3, 1, 0, MIB, MIB, 3, 0), E_OK);
    reopen(d);
    expect(d, 0, MIB, 0, 0);
    expect(d, MIB, MIB, MIB, 3);
    store_commit_mark(d->s, &(struct store_shard_id){.volume = id1().volume}, (struct store_version){3, 1});
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(usage(d).used_bytes, MIB);
    free(m);
}

/* Closed with everything under way: each write is whole or answered with an error, and what was acknowledged is there. */
static void close_under_way(void **state)
{
    struct disk *d = *state;
    struct many *m = calloc(1, sizeof *m);
    for (uint64_t i = 0; i < 4; i++)
        submit(d, m, i * MIB, MIB, i + 1);
    disk_close(d);
    disk_must_open(d);
    for (unsigned i = 0; i < m->n; i++) {
        assert_true(m->wait[i].done);
        if (m->wait[i].status == E_OK)
            expect(d, i * MIB, MIB, i * MIB, i + 1);
    }
    free(m);
}

/* ---- damage ---- */

/* Flips a bit of the first place that holds the data of write `seed` at its offset `pos`. */
static void flip_data(struct disk *d, uint64_t seed, uint32_t length, uint32_t pos)
{
    char path[256];
    uint8_t *want = malloc(length), *block = malloc(4096);
    off_t at = 0;
    fill(want, length, seed);
    snprintf(path, sizeof path, "%s/extents.dat", d->capacity);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    while (pread(fd, block, 4096, at) == 4096 && memcmp(block, want + pos, 4096) != 0)
        at += 4096;
    assert_memory_equal(block, want + pos, 4096);
    block[99] ^= 4;
    assert_int_equal(pwrite(fd, block, 4096, at), 4096);
    fsync(fd);
    close(fd);
    free(want);
    free(block);
}

/* Damaged data are never returned: while the record is in the journal, after destage, after a restart; a copy repairs them. */
static void damaged_data(void **state)
{
    struct disk *d = *state;
    uint8_t *got = malloc(MIB);
    assert_int_equal(do_write(d, id1(), 1, 1, 0, 0, MIB, 7, 0), E_OK);
    flip_data(d, 7, MIB, 300 * 1024);
    for (int round = 0; round < 4; round++) {
        assert_int_equal(do_read(d, id1(), 0, MIB, got), E_CORRUPT);
        assert_int_equal(do_read(d, id1(), 300 * 1024, 4096, got), E_CORRUPT);
        expect(d, 0, 300 * 1024, 0, 7);
        expect(d, 304 * 1024, MIB - 304 * 1024, 0, 7);
        if (round == 1)
            commit(d, 1);
        assert_int_equal(do_destage(d), E_OK);
        reopen(d);
    }
    assert_int_equal(do_copy(d, id1(), 4, (struct store_version){1, 1}, 9), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    expect(d, 4 * STORE_CHUNK, STORE_CHUNK, 4 * STORE_CHUNK, 9);
    expect(d, 5 * STORE_CHUNK, MIB - 5 * STORE_CHUNK, 0, 7);
    free(got);
}

/* The journal as it is now, put back after closing: the process died. */
static void die(struct disk *d)
{
    char cmd[1024];
    snprintf(cmd, sizeof cmd, "cp -a --sparse=always %s/journal %s/saved", d->fast, d->dir);
    assert_int_equal(system(cmd), 0);
    disk_close(d);
    snprintf(cmd, sizeof cmd, "cp -a --sparse=always %s/saved %s/journal", d->dir, d->fast);
    assert_int_equal(system(cmd), 0);
}

static void change_journal(struct disk *d, off_t at, const void *p, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, "%s/journal", d->fast);
    int fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, p, n, at), (ssize_t)n);
    fsync(fd);
    close(fd);
}

/* One extent: a batch is the header and one block that says where. Damage before the end is refused at open. */
static void damaged_record(void **state)
{
    struct disk *d = *state;
    for (uint64_t seq = 1; seq <= 3; seq++)
        assert_int_equal(do_write(d, id1(), 1, seq, 0, (seq - 1) * STORE_EXTENT, STORE_EXTENT, seq, 0), E_OK);
    die(d);
    change_journal(d, FMT_RING_AT + 3 * FMT_BLOCK + 40, "damage", 6);
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_non_null(strstr(d->e.msg, "damaged at byte"));
}

/* Valid in form, impossible in meaning: two records name one place, or a place that is not there. */
static void impossible_place(void **state)
{
    struct disk *d = *state;
    struct { struct fmt_batch h; struct fmt_placed p; } *b = calloc(1, sizeof *b);
    char path[256];
    for (uint64_t seq = 1; seq <= 2; seq++)
        assert_int_equal(do_write(d, id1(), 1, seq, 0, (seq - 1) * STORE_EXTENT, STORE_EXTENT, seq, 0), E_OK);
    die(d);
    snprintf(path, sizeof path, "%s/journal", d->fast);
    int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, b, sizeof *b, FMT_RING_AT), sizeof *b);
    uint64_t first = b->p.place;
    assert_int_equal(pread(fd, b, sizeof *b, FMT_RING_AT + (off_t)sizeof *b), sizeof *b);
    close(fd);
    assert_int_equal(b->h.record[0].type, FMT_PLACED);
    const uint64_t bad[] = {first, htole64(1ull << 40)};
    for (int i = 0; i < 2; i++) {
        b->p.place = bad[i];
        b->h.record[0].crc = htole32(crc32c(0, &b->p, sizeof b->p));
        fmt_batch_seal(&b->h);
        change_journal(d, FMT_RING_AT + (off_t)sizeof *b, b, sizeof *b);
        assert_int_equal(disk_open(d), E_CORRUPT);
        assert_non_null(strstr(d->e.msg, "place"));
    }
    free(b);
}

static void older_format(void **state)
{
    struct disk *d = *state;
    struct fmt_sb sb;
    char path[256];
    disk_close(d);
    snprintf(path, sizeof path, "%s/journal", d->fast);
    int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, &sb, sizeof sb, 0), sizeof sb);
    close(fd);
    sb.version = htole32(1);
    fmt_sb_seal(&sb);
    for (unsigned i = 0; i < 2; i++)
        change_journal(d, (off_t)FMT_SB_COPY_AT(i), &sb, sizeof sb);
    assert_int_equal(disk_open(d), E_VERSION);
    assert_non_null(strstr(d->e.msg, "format 1 is older"));
}

/* The sum of two strings' checksums is that of both together, whatever their lengths. */
static void crc_join(void **state)
{
    static const size_t length[] = {0, 1, 7, 64, 511, 4095, 4096, 4097, 65536, 262144};
    uint8_t *p = malloc(600000);
    fill(p, 600000, 5);
    for (size_t i = 0; i < sizeof length / sizeof *length; i++)
        for (size_t k = 0; k < sizeof length / sizeof *length; k++)
            assert_int_equal(crc32c_join(crc32c(0, p, length[i]), crc32c(0, p + length[i], length[k]), length[k]),
                             crc32c(0, p, length[i] + length[k]));
    free(p);
}

int main(void)
{
#define CASE(F) cmocka_unit_test_setup_teardown(F, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(large_write), CASE(unaligned_ends), CASE(order), CASE(copy_on_top), CASE(zeroes), CASE(little_room), CASE(drop),
        CASE(close_under_way), CASE(damaged_data), CASE(damaged_record), CASE(impossible_place), CASE(older_format),
        cmocka_unit_test(crc_join),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
