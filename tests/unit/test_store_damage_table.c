/* Store: every structure on disk times every kind of damage. A disk with three lives is made once, as directories and with a
 * raw device, then each case spoils a copy of it: the disk is refused with a message, or it opens, and then each block reads as
 * what was written last or as E_CORRUPT. Never as anything else, never as it was earlier, and the fence never falls.
 *
 * What a case must lead to is in the table; what it led to is printed. */
#include "test_store_util.h"
#include <dirent.h>
#include "storage/asan/store/format.h"

#define SHARD_BYTES (2ull * MIB)
#define BLOCKS 24u
#define EPOCH 3u

enum damage { FLIP, ZERO, SWAP, CUT, OLD, N_DAMAGE };
static const char *const damage_name[] = {"bit flipped", "zeroed", "blocks exchanged", "truncated", "older copy"};
enum { REFUSED = 1, BAD_READS = 2, HARMLESS = 4, ANY = 7 };

struct world {
    struct disk d;
    char now[160], then[160]; /* the disk closed in order, and a life earlier */
    bool raw;
    uint64_t seed;            /* of the content of block k: wanted[k] */
    uint64_t wanted[BLOCKS];
    unsigned cases, refused, bad;
    uint64_t random;
};

static uint64_t rnd(struct world *w, uint64_t n)
{
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (w->random >> 33) % n;
}

static void shell(const char *fmt, const char *a, const char *b)
{
    char cmd[1024];
    snprintf(cmd, sizeof cmd, fmt, a, b);
    assert_int_equal(system(cmd), 0);
}

static void save(const struct world *w, const char *to)
{
    shell("mkdir -p %s", to, "");
    shell("cp -a --sparse=always %s %s/", w->d.fast, to);
    shell("cp -a --sparse=always %s %s/", w->d.capacity, to);
}

static void restore(const struct world *w)
{
    shell("rm -rf %s %s", w->d.fast, w->d.capacity);
    shell("cp -a --sparse=always %s/. %s/", w->now, w->d.dir);
}

static void write_block(struct world *w, uint64_t epoch, uint64_t seq, uint64_t block)
{
    w->wanted[block] = ++w->seed;
    assert_int_equal(do_write(&w->d, shard_id(1, 0), epoch, seq, 0, block * 4096, 4096, w->seed, 0), E_OK);
}

static void commit(struct world *w, uint64_t epoch, uint64_t seq)
{
    store_commit_mark(w->d.s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){epoch, seq});
    assert_int_equal(do_destage(&w->d), E_OK);
}

/* Life 1: all blocks, destaged. Life 2: half of them again, destaged in part. Life 3: a fence, a few more, in the journal. */
static void make(struct world *w, bool raw)
{
    memset(w, 0, sizeof *w);
    w->raw = raw;
    w->random = 1;
    disk_init(&w->d);
    if (raw) {
        rmdir(w->d.capacity);
        int fd = open(w->d.capacity, O_RDWR | O_CREAT, 0600);
        assert_true(fd >= 0 && ftruncate(fd, 66 * MIB) == 0);
        close(fd);
    }
    snprintf(w->now, sizeof w->now, "%s/now", w->d.dir);
    snprintf(w->then, sizeof w->then, "%s/then", w->d.dir);
    disk_must_open(&w->d);
    assert_int_equal(do_fence(&w->d, shard_id(1, 0), 1, SHARD_BYTES), E_OK);
    for (uint64_t k = 0; k < BLOCKS; k++)
        write_block(w, 1, k + 1, k);
    commit(w, 1, BLOCKS);
    disk_close(&w->d);
    disk_must_open(&w->d);
    assert_int_equal(do_fence(&w->d, shard_id(1, 0), 2, SHARD_BYTES), E_OK);
    for (uint64_t k = 0; k < 12; k++)
        write_block(w, 2, k + 1, k);
    commit(w, 2, 8);
    disk_close(&w->d);
    save(w, w->then);
    disk_must_open(&w->d);
    commit(w, 2, 12);
    assert_int_equal(do_fence(&w->d, shard_id(1, 0), EPOCH, SHARD_BYTES), E_OK);
    for (uint64_t k = 6; k < 16; k++)
        write_block(w, EPOCH, k - 5, k);
    commit(w, EPOCH, 3);
    disk_close(&w->d);
    save(w, w->now);
}

/* ---- damage ---- */

struct region { char file[200]; uint64_t at, length; }; /* file: below the disk's directory */

static void spoil(struct world *w, const struct region *r, enum damage how)
{
    char path[400], old[400];
    uint8_t block[2][FMT_BLOCK] = {{0}};
    snprintf(path, sizeof path, "%s/%s", w->d.dir, r->file);
    snprintf(old, sizeof old, "%s/%s", w->then, r->file);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    uint64_t n = r->length < FMT_BLOCK ? r->length : FMT_BLOCK, a = r->at, b = r->at + r->length - n;
    if (how == FLIP) {
        uint64_t at = r->at + rnd(w, r->length);
        assert_int_equal(pread(fd, block[0], 1, (off_t)at), 1);
        block[0][0] ^= (uint8_t)(1u << rnd(w, 8));
        assert_int_equal(pwrite(fd, block[0], 1, (off_t)at), 1);
    } else if (how == ZERO) {
        for (uint64_t at = r->at; at < r->at + r->length; at += n)
            assert_true(pwrite(fd, block[0], r->at + r->length - at < n ? r->at + r->length - at : n, (off_t)at) > 0);
    } else if (how == SWAP) { /* the last block goes into the place of the first and the other way round */
        assert_int_equal(pread(fd, block[0], n, (off_t)a), n);
        assert_int_equal(pread(fd, block[1], n, (off_t)b), n);
        assert_int_equal(pwrite(fd, block[1], n, (off_t)a), n);
        assert_int_equal(pwrite(fd, block[0], n, (off_t)b), n);
    } else if (how == CUT) {
        assert_int_equal(ftruncate(fd, (off_t)(r->at + rnd(w, r->length))), 0);
    } else { /* the region as it was a life ago */
        int from = open(old, O_RDONLY);
        for (uint64_t at = r->at; from >= 0 && at < r->at + r->length; at += n) {
            ssize_t got = pread(from, block[0], n, (off_t)at);
            if (got > 0)
                assert_int_equal(pwrite(fd, block[0], (size_t)got, (off_t)at), got);
        }
        if (from >= 0)
            close(from);
    }
    close(fd);
}

/* ---- judging ---- */

/* Blocks that cannot be read; all others are right. */
static unsigned unreadable(struct world *w)
{
    uint8_t got[4096], want[4096];
    unsigned bad = 0;
    struct store_shard_info info;
    struct store_shard_id id = shard_id(1, 0);
    store_shard_info(w->d.s, &id, &info);
    assert_true(info.exists);
    assert_int_equal(info.epoch, EPOCH);
    assert_true(info.last.epoch == EPOCH && info.last.seq == 10);
    for (uint64_t k = 0; k < BLOCKS; k++) {
        int rc = do_read(&w->d, id, k * 4096, 4096, got);
        fill(want, 4096, w->wanted[k]);
        if (rc == E_OK)
            assert_memory_equal(got, want, 4096);
        else
            assert_int_equal(rc, E_CORRUPT);
        bad += rc != E_OK;
    }
    return bad;
}

static void judge(struct world *w, const char *what, const char *how, int allowed)
{
    int rc = disk_open(&w->d), result = REFUSED;
    unsigned bad = 0;
    w->cases++;
    if (rc == E_OK) {
        bad = unreadable(w);
        /* and no different after it has been moved, and after another life */
        store_commit_mark(w->d.s, &(struct store_shard_id){.volume = shard_id(1, 0).volume}, (struct store_version){EPOCH, 10});
        assert_int_equal(do_destage(&w->d), E_OK);
        assert_int_equal(unreadable(w), bad);
        disk_close(&w->d);
        disk_must_open(&w->d);
        assert_int_equal(unreadable(w), bad);
        disk_close(&w->d);
        result = bad ? BAD_READS : HARMLESS;
    } else {
        assert_true(rc == E_CORRUPT || rc == E_VERSION || rc == E_IO || rc == E_INVAL);
        assert_true(strlen(w->d.e.msg) > 20);
    }
    w->refused += result == REFUSED;
    w->bad += result == BAD_READS;
    printf("%-34s %-17s ", what, how);
    if (result == REFUSED)
        printf("refused: %.110s\n", w->d.e.msg);
    else
        printf(bad ? "%u of %u blocks E_CORRUPT, the others right\n" : "no harm: all blocks right\n", bad, BLOCKS);
    if (!(result & allowed))
        fail_msg("%s, %s: not what it must lead to", what, how);
    restore(w);
}

static void each_damage(struct world *w, const char *what, const struct region *r, const int allowed[N_DAMAGE])
{
    for (int how = 0; how < N_DAMAGE; how++) {
        if (!allowed[how])
            continue;
        spoil(w, r, how);
        judge(w, what, damage_name[how], allowed[how]);
    }
}

static struct region region(const struct world *w, bool fast, const char *name, uint64_t at, uint64_t length)
{
    struct region r = {.at = at, .length = length};
    const char *dir = strrchr(fast ? w->d.fast : w->d.capacity, '/') + 1;
    snprintf(r.file, sizeof r.file, "%s%s%s", dir, *name ? "/" : "", name);
    if (!length) {
        char path[400];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", w->d.dir, r.file);
        assert_int_equal(stat(path, &st), 0);
        r.length = (uint64_t)st.st_size;
    }
    return r;
}

/* ---- the structures ---- */

static struct fmt_sb superblock(const struct world *w)
{
    struct fmt_sb sb;
    char path[400];
    snprintf(path, sizeof path, "%s/journal", w->d.fast);
    int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, &sb, sizeof sb, 0), sizeof sb);
    close(fd);
    assert_true(fmt_sb_ok(&sb));
    return sb;
}

static void journal(struct world *w)
{
    struct fmt_sb sb = superblock(w);
    uint64_t live = FMT_RING_AT + le64toh(sb.trim_pos) % le64toh(sb.ring_bytes); /* batches of one record: header, data */
    const uint64_t batch = 2 * FMT_BLOCK;
    struct region sb0 = region(w, true, "journal", FMT_SB_COPY_AT(0), FMT_BLOCK), sb1 = region(w, true, "journal", FMT_SB_COPY_AT(1), FMT_BLOCK);
    struct region both = region(w, true, "journal", 0, FMT_RING_AT), head = region(w, true, "journal", live, FMT_BLOCK);
    struct region data = region(w, true, "journal", live + FMT_BLOCK, FMT_BLOCK);
    struct region first = region(w, true, "journal", live, batch), last = region(w, true, "journal", live + 6 * batch, batch);
    struct region tail = region(w, true, "journal", live, 7 * batch), all = region(w, true, "journal", 0, 0);
    each_damage(w, "journal superblock, copy 0", &sb0, (int[]){HARMLESS, HARMLESS, 0, REFUSED, HARMLESS});
    each_damage(w, "journal superblock, copy 1", &sb1, (int[]){HARMLESS, HARMLESS, 0, REFUSED, HARMLESS});
    each_damage(w, "journal superblocks, both", &both, (int[]){HARMLESS, REFUSED, HARMLESS, REFUSED, REFUSED});
    each_damage(w, "journal batch, header", &head, (int[]){REFUSED, REFUSED, 0, REFUSED, REFUSED});
    each_damage(w, "journal batch, data", &data, (int[]){REFUSED, REFUSED, 0, REFUSED, REFUSED});
    each_damage(w, "journal batch, oldest", &first, (int[]){REFUSED, REFUSED, REFUSED, REFUSED, REFUSED});
    each_damage(w, "journal batch, newest", &last, (int[]){REFUSED, REFUSED, REFUSED, REFUSED, REFUSED});
    each_damage(w, "journal, what is not trimmed", &tail, (int[]){REFUSED, REFUSED, REFUSED, REFUSED, REFUSED});
    each_damage(w, "journal, all of it", &all, (int[]){ANY, REFUSED, HARMLESS | REFUSED, REFUSED, REFUSED});
}

static uint64_t first_place(const struct world *w) { return w->raw ? FMT_RAW_PLACES * STORE_EXTENT : 0; }

static void extents(struct world *w)
{
    const char *name = w->raw ? "" : "extents.dat";
    struct region one = region(w, false, name, first_place(w) + 20 * FMT_BLOCK, FMT_BLOCK); /* written in life 1 only */
    struct region used = region(w, false, name, first_place(w), BLOCKS * FMT_BLOCK), all = region(w, false, name, 0, 0);
    each_damage(w, "extent, one block", &one, (int[]){BAD_READS, BAD_READS, 0, REFUSED | BAD_READS, HARMLESS});
    each_damage(w, "extent, all its blocks", &used, (int[]){BAD_READS | HARMLESS, BAD_READS, BAD_READS, REFUSED, BAD_READS | HARMLESS});
    each_damage(w, w->raw ? "raw device" : "extents.dat", &all, (int[]){ANY, w->raw ? REFUSED : BAD_READS, ANY, ANY, BAD_READS | HARMLESS});
}

static void metadata(struct world *w)
{
    char dir[400], what[64];
    snprintf(dir, sizeof dir, "%s/meta", w->raw ? w->d.fast : w->d.capacity);
    char names[64][64];
    unsigned n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f; (f = readdir(d)) && n < 64;)
        if (f->d_name[0] != '.' && strncmp(f->d_name, "LO", 2) && strncmp(f->d_name, "OPTIONS", 7) && strcmp(f->d_name, "IDENTITY"))
            snprintf(names[n++], 64, "%.63s", f->d_name);
    closedir(d);
    for (unsigned i = 0; i < n; i++) {
        char name[80];
        snprintf(name, sizeof name, "meta/%s", names[i]);
        struct region r = region(w, w->raw, name, 0, 0);
        snprintf(what, sizeof what, "metadata, %.40s", names[i]);
        for (int times = 0; r.length && times < 4; times++) /* some bytes of them do not matter: several tries */
            each_damage(w, what, &r, (int[]){REFUSED | HARMLESS, times ? 0 : REFUSED | HARMLESS, times ? 0 : REFUSED | HARMLESS,
                                             REFUSED | HARMLESS, times ? 0 : REFUSED | HARMLESS});
        char path[400];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(unlink(path), 0);
        judge(w, what, "gone", REFUSED | HARMLESS);
    }
    char old[400], now[400];
    const char *from = strrchr(w->raw ? w->d.fast : w->d.capacity, '/') + 1;
    snprintf(old, sizeof old, "%s/%s/meta", w->then, from);
    snprintf(now, sizeof now, "%s", dir);
    shell("rm -rf %s", now, "");
    shell("cp -a %s %s", old, now);
    judge(w, "metadata, all of them", damage_name[OLD], REFUSED);
    shell("rm -rf %s", now, "");
    judge(w, "metadata, all of them", "gone", REFUSED);
}

/* Another version with a good checksum. */
static void versions(struct world *w)
{
    struct fmt_sb sb = superblock(w);
    char path[400];
    for (uint32_t v = FMT_VERSION - 1; v <= FMT_VERSION + 1; v += 2) {
        const char *how = v < FMT_VERSION ? "older version" : "newer version";
        sb.version = htole32(v);
        fmt_sb_seal(&sb);
        snprintf(path, sizeof path, "%s/journal", w->d.fast);
        int fd = open(path, O_RDWR);
        assert_int_equal(pwrite(fd, &sb, sizeof sb, FMT_SB_COPY_AT(0)), sizeof sb);
        assert_int_equal(pwrite(fd, &sb, sizeof sb, FMT_SB_COPY_AT(1)), sizeof sb);
        close(fd);
        assert_int_equal(disk_open(&w->d), E_VERSION);
        judge(w, "journal superblocks", how, REFUSED);
        fd = open(path, O_RDWR);
        struct fmt_batch h;
        off_t at = (off_t)(FMT_RING_AT + le64toh(sb.trim_pos) % le64toh(sb.ring_bytes));
        assert_int_equal(pread(fd, &h, sizeof h, at), sizeof h);
        assert_true(fmt_batch_ok(&h));
        h.version = htole16((uint16_t)v);
        fmt_batch_seal(&h);
        assert_int_equal(pwrite(fd, &h, sizeof h, at), sizeof h);
        close(fd);
        assert_int_equal(disk_open(&w->d), E_VERSION);
        judge(w, "journal batch", how, REFUSED);
        if (!w->raw)
            continue;
        struct fmt_raw l;
        fd = open(w->d.capacity, O_RDWR);
        assert_int_equal(pread(fd, &l, sizeof l, 0), sizeof l);
        l.version = htole32(v);
        l.crc = htole32(crc32c(0, &l, FMT_BLOCK - 4));
        assert_int_equal(pwrite(fd, &l, sizeof l, 0), sizeof l);
        close(fd);
        assert_int_equal(disk_open(&w->d), E_VERSION);
        judge(w, "raw label", how, REFUSED);
    }
}

static void run_all(bool raw)
{
    struct world w;
    make(&w, raw);
    judge(&w, "nothing", "", HARMLESS);
    journal(&w);
    extents(&w);
    if (raw) {
        struct region label = region(&w, false, "", 0, FMT_BLOCK);
        each_damage(&w, "raw label", &label, (int[]){REFUSED, REFUSED, 0, REFUSED, HARMLESS});
    }
    metadata(&w);
    versions(&w);
    printf("%s: %u cases: %u refused, %u opened with unreadable blocks, %u without harm; nothing wrong was served\n",
           raw ? "raw device" : "directories", w.cases, w.refused, w.bad, w.cases - w.refused - w.bad);
    disk_free(&w.d);
}

static void directories(void **state) { run_all(false); }
static void raw_device(void **state) { run_all(true); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(directories), cmocka_unit_test(raw_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
