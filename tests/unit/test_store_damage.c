/* Store: damaged files. Bits flipped in the journal, the extents and the metadata lead to E_CORRUPT or to a clear refusal
 * to open, never to wrong data; only the very last batch, which could be a torn one, may vanish. */
#include "test_store_util.h"
#include <dirent.h>
#include "base/fault.h"
#include "storage/asan/store/format.h"

#define SHARD_BYTES (2ull * MIB)

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    disk_must_open(d);
    assert_int_equal(do_fence(d, shard_id(1, 0), 1, SHARD_BYTES), E_OK);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    disk_free(*state);
    free(*state);
    return 0;
}

static void flip(const char *dir, const char *name, uint64_t offset, uint8_t mask)
{
    char path[512];
    uint8_t b;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &b, 1, (off_t)offset), 1);
    b ^= mask;
    assert_int_equal(pwrite(fd, &b, 1, (off_t)offset), 1);
    fsync(fd);
    close(fd);
}

/* The k-th write is 4 KiB of seed k at block k. */
static void writes(struct disk *d, uint64_t from, uint64_t to, uint64_t commit)
{
    for (uint64_t k = from; k <= to; k++)
        assert_int_equal(do_write(d, shard_id(1, 0), 1, k, commit, k * 4096, 4096, k, 0), E_OK);
}

/* What is there is right; returns how many of the writes 1..n are. */
static uint64_t intact(struct disk *d, uint64_t n)
{
    uint8_t got[4096], want[4096], zero[4096] = {0};
    uint64_t k, good = 0;
    for (k = 1; k <= n; k++) {
        int rc = do_read(d, shard_id(1, 0), k * 4096, 4096, got);
        fill(want, 4096, k);
        if (rc == E_OK && memcmp(got, want, 4096) == 0)
            good++;
        else if (rc == E_OK)
            assert_memory_equal(got, zero, 4096);
        else
            assert_int_equal(rc, E_CORRUPT);
    }
    return good;
}

static void copy_file(const char *from_dir, const char *to_dir, const char *name)
{
    char cmd[1024];
    snprintf(cmd, sizeof cmd, "cp -a --sparse=always %s/%s %s/", from_dir, name, to_dir);
    assert_int_equal(system(cmd), 0);
}

static void remove_below(const char *dir, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void take_copy(const struct disk *d)
{
    remove_below(d->dir, "meta");
    copy_file(d->fast, d->dir, "journal");
    copy_file(d->capacity, d->dir, "meta");
}

static void put_back(const struct disk *d)
{
    remove_below(d->capacity, "meta");
    copy_file(d->dir, d->capacity, "meta");
    copy_file(d->dir, d->fast, "journal");
}

/* The process dies without closing: neither superblock nor metadata know the last batches. */
static void abandon_open(struct disk *d)
{
    take_copy(d); /* as it is at the moment of the crash */
    disk_close(d);
    put_back(d);
}

/* Each batch of a QD1 journal is header + data: two blocks. */
static void journal_middle(void **state)
{
    struct disk *d = *state;
    writes(d, 1, 10, 0);
    abandon_open(d);
    for (unsigned batch = 0; batch < 10; batch++) {
        for (unsigned part = 0; part < 2; part++) {
            uint64_t at = FMT_RING_AT + (batch * 2 + part) * FMT_BLOCK + (part ? 1000 : 80);
            flip(d->fast, "journal", at, 0x10);
            int rc = disk_open(d);
            if (batch < 9) {
                assert_int_equal(rc, E_CORRUPT);
                assert_non_null(strstr(d->e.msg, "damaged at byte"));
            } else { /* the last one: cannot be told from a torn one */
                assert_int_equal(rc, E_OK);
                assert_int_equal(intact(d, 10), 9);
                disk_close(d);
            }
            put_back(d);
        }
    }
    disk_must_open(d);
    assert_int_equal(intact(d, 10), 10);
}

/* Batches 2 and 3 were in flight together and only 3 arrived whole. It was never acknowledged, and must not come back as the
 * successor of what the next life writes in the place of 2: neither by replay, nor once all before it is trimmed. */
static void leftovers(void **state)
{
    struct disk *d = *state;
    char path[256];
    struct fmt_batch h;
    const off_t third = FMT_RING_AT + 4 * FMT_BLOCK;
    writes(d, 1, 3, 0);
    abandon_open(d);
    flip(d->fast, "journal", FMT_RING_AT + 3 * FMT_BLOCK, 1);
    snprintf(path, sizeof path, "%s/journal", d->fast);
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &h, sizeof h, third), sizeof h);
    assert_true(fmt_batch_ok(&h));
    h.durable_seq = htole64(1);
    fmt_batch_seal(&h);
    assert_int_equal(pwrite(fd, &h, sizeof h, third), sizeof h);
    fsync(fd);
    close(fd);
    disk_must_open(d);
    assert_int_equal(intact(d, 3), 1);
    writes(d, 2, 2, 0);
    abandon_open(d);
    disk_must_open(d);
    assert_int_equal(intact(d, 3), 2);
    store_commit_mark(d->s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){1, 2});
    assert_int_equal(do_destage(d), E_OK);
    for (int round = 0; round < 2; round++) {
        disk_close(d);
        disk_must_open(d);
        assert_int_equal(intact(d, 3), 2);
    }
}

/* After a clean close even the last batch may not be missing. */
static void journal_end_after_close(void **state)
{
    struct disk *d = *state;
    writes(d, 1, 5, 0);
    disk_close(d);
    flip(d->fast, "journal", FMT_RING_AT + 9 * FMT_BLOCK + 5, 1);
    assert_int_equal(disk_open(d), E_CORRUPT);
    flip(d->fast, "journal", FMT_RING_AT + 9 * FMT_BLOCK + 5, 1);
    disk_must_open(d);
    assert_int_equal(intact(d, 5), 5);
}

/* A record that rots while the store is open: the read says so, destage does not launder it, a copy repairs it. */
static void journal_live(void **state)
{
    struct disk *d = *state;
    uint8_t got[4096], *want = malloc(STORE_CHUNK);
    writes(d, 1, 5, 5);
    flip(d->fast, "journal", FMT_RING_AT + 5 * FMT_BLOCK + 17, 4); /* data of write 3 */
    for (int round = 0; round < 4; round++) {
        assert_int_equal(do_read(d, shard_id(1, 0), 3 * 4096, 4096, got), E_CORRUPT);
        assert_non_null(strstr(d->e.msg, "offset 12288"));
        assert_int_equal(intact(d, 5), 4);
        if (round == 0)
            assert_int_equal(do_destage(d), E_OK);
        if (round == 1) { /* a part of the damaged block is written: the rest of it is still lost */
            assert_int_equal(do_write(d, shard_id(1, 0), 1, 6, 6, 3 * 4096, 512, 77, 0), E_OK);
            assert_int_equal(do_destage(d), E_OK);
        }
        if (round == 2) {
            disk_close(d);
            disk_must_open(d);
        }
    }
    assert_int_equal(do_copy(d, shard_id(1, 0), 0, (struct store_version){1, 6}, 9), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    fill(want, STORE_CHUNK, 9);
    assert_int_equal(do_read(d, shard_id(1, 0), 3 * 4096, 4096, got), E_OK);
    assert_memory_equal(got, want + 3 * 4096, 4096);
    free(want);
}

/* A copy without blocks that nobody has: they read as damaged, in the journal, after a replay and in the extents, until they are
 * written whole. */
static void given_up(void **state)
{
    struct disk *d = *state;
    uint8_t got[4096], *want = malloc(STORE_CHUNK);
    const uint16_t lost = 1u << 3 | 1u << 15;
    struct store_copy q = {.shard = shard_id(1, 0), .chunk = 1, .version = {1, 1}, .lost = lost, .zero = true};
    struct wait w;
    op_init(&q.op, &w);
    store_copy(d->s, &q);
    assert_int_equal(wait_for(d, &w), E_INVAL);
    fill(want, STORE_CHUNK, 9);
    q.data = iobuf_new(STORE_CHUNK);
    memcpy(q.data->data, want, STORE_CHUNK);
    q.crc = crc32c(0, want, STORE_CHUNK);
    q.zero = false;
    op_init(&q.op, &w);
    store_copy(d->s, &q);
    iobuf_unref(q.data);
    assert_int_equal(wait_for(d, &w), E_OK);
    for (int round = 0; round < 4; round++) {
        for (unsigned b = 0; b < 16; b++) {
            int rc = do_read(d, shard_id(1, 0), STORE_CHUNK + b * 4096, 4096, got);
            assert_int_equal(rc, lost >> b & 1 ? E_CORRUPT : E_OK);
            if (rc == E_OK)
                assert_memory_equal(got, want + b * 4096, 4096);
        }
        if (round == 1)
            assert_int_equal(do_destage(d), E_OK);
        disk_close(d);
        disk_must_open(d);
    }
    assert_int_equal(do_write(d, shard_id(1, 0), 1, 2, 2, STORE_CHUNK + 3 * 4096, 512, 5, 0), E_OK);
    assert_int_equal(do_read(d, shard_id(1, 0), STORE_CHUNK + 3 * 4096 + 512, 512, got), E_CORRUPT);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_read(d, shard_id(1, 0), STORE_CHUNK + 3 * 4096 + 512, 512, got), E_CORRUPT);
    for (unsigned b = 3; b < 16; b += 12) {
        assert_int_equal(do_write(d, shard_id(1, 0), 1, 3 + b, 3 + b, STORE_CHUNK + b * 4096, 4096, 6, 0), E_OK);
        assert_int_equal(do_destage(d), E_OK);
        fill(want, 4096, 6);
        assert_int_equal(do_read(d, shard_id(1, 0), STORE_CHUNK + b * 4096, 4096, got), E_OK);
        assert_memory_equal(got, want, 4096);
    }
    free(want);
}

static void extents(void **state)
{
    struct disk *d = *state;
    uint8_t got[4096];
    writes(d, 1, 20, 0);
    store_commit_mark(d->s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){1, 20});
    assert_int_equal(do_destage(d), E_OK);
    for (uint64_t k = 1; k <= 20; k++) {
        flip(d->capacity, "extents.dat", k * 4096 + k * 100, 0x80);
        assert_int_equal(do_read(d, shard_id(1, 0), k * 4096, 4096, got), E_CORRUPT);
        assert_int_equal(intact(d, 20), 19);
        flip(d->capacity, "extents.dat", k * 4096 + k * 100, 0x80);
    }
    /* Destage around a damaged block keeps it damaged; a whole new block heals it. */
    flip(d->capacity, "extents.dat", 4 * 4096, 1);
    assert_int_equal(do_write(d, shard_id(1, 0), 1, 21, 21, 40 * 4096 + 512, 512, 5, 0), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_read(d, shard_id(1, 0), 4 * 4096, 512, got), E_CORRUPT);
    assert_int_equal(intact(d, 20), 19);
    assert_int_equal(do_write(d, shard_id(1, 0), 1, 22, 22, 4 * 4096, 4096, 4, 0), E_OK);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(intact(d, 20), 20);
}

/* A destage in place is cut short and leaves its block torn. Then sectors cover that block piece by piece, and some of them
 * are destaged before the others: nothing may be asked of the torn block. */
static void torn_in_place(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(1, 0);
    struct err e;
    uint8_t got[4096], want[4096];
    writes(d, 1, 4, 4);
    assert_int_equal(do_destage(d), E_OK);
    assert_int_equal(do_write(d, id, 1, 5, 5, 2 * 4096, 4096, 50, 0), E_OK);
    assert_int_equal(fault_arm("meta.write=fail", &e), E_OK);
    assert_int_equal(do_destage(d), E_IO);
    fault_disarm_all();
    disk_close(d);
    flip(d->capacity, "extents.dat", 2 * 4096 + 700, 0xff);
    disk_must_open(d);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(do_write(d, id, 1, 6 + i, 0, 2 * 4096 + i * 512, 512, 60 + i, 0), E_OK);
        fill(want + i * 512, 512, 60 + i);
    }
    for (unsigned i = 0; i < 8; i++) {
        store_commit_mark(d->s, &id, (struct store_version){1, 6 + i});
        assert_int_equal(do_destage(d), E_OK);
        assert_int_equal(do_read(d, id, 2 * 4096, 4096, got), E_OK);
        assert_memory_equal(got, want, 4096);
    }
}

static void extents_cut_off(void **state)
{
    struct disk *d = *state;
    char path[256];
    writes(d, 1, 3, 3);
    assert_int_equal(do_destage(d), E_OK);
    disk_close(d);
    snprintf(path, sizeof path, "%s/extents.dat", d->capacity);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_non_null(strstr(d->e.msg, "too short"));
}

static void superblocks(void **state)
{
    struct disk *d = *state;
    writes(d, 1, 3, 3);
    for (unsigned copy = 0; copy < 2; copy++) { /* either one is enough */
        disk_close(d);
        flip(d->fast, "journal", FMT_SB_COPY_AT(copy) + 200, 1);
        disk_must_open(d);
        assert_int_equal(intact(d, 3), 3);
        assert_int_equal(do_destage(d), E_OK);
    }
    disk_close(d);
    flip(d->fast, "journal", FMT_SB_COPY_AT(0) + 200, 1);
    flip(d->fast, "journal", FMT_SB_COPY_AT(1) + 300, 1);
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_non_null(strstr(d->e.msg, "both superblocks"));
}

/* Every file of RocksDB, at several places: refused, or (where the byte does not matter) all right. */
static void metadata(void **state)
{
    struct disk *d = *state;
    char meta[256], save[256], path[512];
    unsigned refusals = 0, tries = 0;
    writes(d, 1, 30, 0);
    for (uint64_t k = 1; k <= 30; k += 5) {
        store_commit_mark(d->s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){1, k});
        assert_int_equal(do_destage(d), E_OK);
        disk_close(d);
        disk_must_open(d);
    }
    store_commit_mark(d->s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){1, 30});
    assert_int_equal(do_destage(d), E_OK);
    disk_close(d);
    copy_file(d->fast, d->dir, "journal");
    copy_file(d->capacity, d->dir, "meta");
    snprintf(meta, sizeof meta, "%s/meta", d->capacity);
    snprintf(save, sizeof save, "%s/meta", d->dir);
    DIR *dir = opendir(save);
    struct dirent *f;
    while ((f = readdir(dir))) {
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", save, f->d_name);
        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0 || !strncmp(f->d_name, "LO", 2)
            || !strncmp(f->d_name, "OPTIONS", 7))
            continue;
        for (unsigned i = 0; i < 4; i++, tries++) {
            flip(meta, f->d_name, (uint64_t)(st.st_size - 1) * i / 3, 0x04);
            int rc = disk_open(d);
            if (rc == E_OK) {
                assert_int_equal(intact(d, 30), 30);
                disk_close(d);
            } else {
                refusals++;
                assert_true(strlen(d->e.msg) > 10);
            }
            put_back(d);
        }
    }
    closedir(dir);
    printf("%u of %u damaged metadata files refused\n", refusals, tries);
    assert_true(refusals > 0);
    disk_must_open(d);
    assert_int_equal(intact(d, 30), 30);
}

/* Metadata put back from an older copy: the journal was trimmed since, so it cannot be believed. */
static void old_metadata(void **state)
{
    struct disk *d = *state;
    writes(d, 1, 3, 3);
    disk_close(d);
    copy_file(d->capacity, d->dir, "meta");
    disk_must_open(d);
    assert_int_equal(do_destage(d), E_OK);
    disk_close(d);
    remove_below(d->capacity, "meta");
    copy_file(d->dir, d->capacity, "meta");
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_non_null(strstr(d->e.msg, "older than it"));
}

/* A fence is in the metadata alone. Older ones, put back, would obey an owner that was fenced off: the journal tells, by its
 * superblock (closed in order) or by what was written under the fence (a crash). */
static void old_fence(void **state)
{
    struct disk *d = *state;
    char old[256];
    snprintf(old, sizeof old, "%s/old", d->dir);
    mkdir(old, 0700);
    for (int crash = 0; crash < 2; crash++) {
        uint64_t epoch = 2 + (uint64_t)crash;
        disk_close(d);
        remove_below(old, "meta");
        copy_file(d->capacity, old, "meta");
        disk_must_open(d);
        assert_int_equal(do_fence(d, shard_id(1, 0), epoch, SHARD_BYTES), E_OK);
        if (crash) {
            assert_int_equal(do_write(d, shard_id(1, 0), epoch, 1, 0, 0, 4096, 7, 0), E_OK);
            abandon_open(d);
        } else {
            disk_close(d);
            take_copy(d);
        }
        remove_below(d->capacity, "meta");
        copy_file(old, d->capacity, "meta");
        assert_int_equal(disk_open(d), E_CORRUPT);
        assert_non_null(strstr(d->e.msg, "older than it"));
        put_back(d);
        disk_must_open(d);
    }
}

/* An older journal, put back: what was acknowledged since is not in it. Its own superblock cannot tell; the metadata can. */
static void old_journal(void **state)
{
    struct disk *d = *state;
    writes(d, 1, 3, 3);
    disk_close(d);
    copy_file(d->fast, d->dir, "journal");
    disk_must_open(d);
    writes(d, 4, 5, 3);
    disk_close(d);
    copy_file(d->dir, d->fast, "journal");
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_non_null(strstr(d->e.msg, "older than its metadata"));
}

/* Random garbage instead of a journal. */
static void garbage(void **state)
{
    struct disk *d = *state;
    char path[256];
    uint8_t *p = malloc(17 * MIB);
    disk_close(d);
    snprintf(path, sizeof path, "%s/journal", d->fast);
    for (unsigned i = 0; i < 3; i++) {
        size_t n = i == 0 ? 100 : i == 1 ? 65536 : 17 * MIB;
        fill(p, (n + 7) / 8 * 8, i + 1);
        int fd = open(path, O_WRONLY | O_TRUNC);
        assert_int_equal(write(fd, p, n), n);
        close(fd);
        assert_int_equal(disk_open(d), E_CORRUPT);
    }
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(journal_middle, setup, teardown),
        cmocka_unit_test_setup_teardown(leftovers, setup, teardown),
        cmocka_unit_test_setup_teardown(journal_end_after_close, setup, teardown),
        cmocka_unit_test_setup_teardown(journal_live, setup, teardown),
        cmocka_unit_test_setup_teardown(given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(extents, setup, teardown),
        cmocka_unit_test_setup_teardown(torn_in_place, setup, teardown),
        cmocka_unit_test_setup_teardown(extents_cut_off, setup, teardown),
        cmocka_unit_test_setup_teardown(superblocks, setup, teardown),
        cmocka_unit_test_setup_teardown(metadata, setup, teardown),
        cmocka_unit_test_setup_teardown(old_metadata, setup, teardown),
        cmocka_unit_test_setup_teardown(old_fence, setup, teardown),
        cmocka_unit_test_setup_teardown(old_journal, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
