/* Store: whose disk is it? Foreign, half-made, mixed-up and newer disks are refused with a message that says what to do,
 * and nothing is formatted over. */
#include "test_store_util.h"
#include <linux/magic.h>
#include <sys/vfs.h>
#include "storage/asan/store/format.h"

static int setup(void **state)
{
    struct disk *d = malloc(sizeof *d);
    disk_init(d);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    disk_free(*state);
    free(*state);
    return 0;
}

static void refused(struct disk *d, int code, const char *says)
{
    int rc = disk_open(d);
    if (rc != code || !strstr(d->e.msg, says))
        fail_msg("expected %d with \"%s\", got %d: %s", code, says, rc, d->e.msg);
    assert_int_equal(d->e.code, code);
}

static void touch(const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static void conf(void **state)
{
    struct disk *d = *state;
    struct store_conf good = d->conf;
    d->conf.fast_path = "/nonexistent/fast";
    refused(d, E_INVAL, "/nonexistent/fast");
    d->conf = good;
    d->conf.journal_bytes = MIB;
    refused(d, E_INVAL, "16 MiB");
    d->conf = good;
    d->conf.disk_id = "";
    refused(d, E_INVAL, "id");
    d->conf = good;
    d->conf.create = false;
    refused(d, E_NOTFOUND, d->capacity);
    d->conf = good;
    disk_must_open(d);
    struct store *again;
    struct err e;
    assert_int_equal(store_open(&d->loop, &d->conf, &again, &e), E_BUSY);
}

static void not_empty(void **state)
{
    struct disk *d = *state;
    touch(d->capacity, "holiday.jpg");
    refused(d, E_CONFLICT, "holiday.jpg");
    assert_int_equal(unlinkat(AT_FDCWD, d->capacity, AT_REMOVEDIR), -1); /* still there */
}

static void foreign(void **state)
{
    struct disk *d = *state;
    struct store_conf good = d->conf;
    disk_must_open(d);
    disk_close(d);
    d->conf.cluster_uuid = "cluster-2";
    refused(d, E_CONFLICT, "cluster-1");
    d->conf = good;
    d->conf.disk_id = "disk-2";
    refused(d, E_CONFLICT, "disk-1");
    d->conf = good;
    d->conf.create = false;
    disk_must_open(d);
}

static void move(const char *from_dir, const char *to_dir, const char *name)
{
    char from[512], to[512];
    snprintf(from, sizeof from, "%s/%s", from_dir, name);
    snprintf(to, sizeof to, "%s/%s", to_dir, name);
    assert_int_equal(rename(from, to), 0);
}

static void parts_missing(void **state)
{
    struct disk *d = *state;
    disk_must_open(d);
    disk_close(d);
    move(d->fast, d->dir, "journal");
    refused(d, E_CORRUPT, "journal is missing");
    move(d->dir, d->fast, "journal");
    move(d->capacity, d->dir, "extents.dat");
    refused(d, E_CORRUPT, "extents.dat");
    move(d->dir, d->capacity, "extents.dat");
    move(d->capacity, d->dir, "meta");
    refused(d, E_CORRUPT, "meta");
    move(d->dir, d->capacity, "meta");
    disk_must_open(d);
}

/* Two disks of one id, made at different times, with journal and metadata exchanged. */
static void mixed_up(void **state)
{
    struct disk *d = *state, other;
    disk_init(&other);
    disk_must_open(&other);
    disk_must_open(d);
    disk_close(d);
    disk_close(&other);
    move(other.fast, d->fast, "journal");
    refused(d, E_CONFLICT, "not made together");
    disk_free(&other);
}

static void interrupted_format(void **state)
{
    struct disk *d = *state;
    char path[256];
    disk_must_open(d);
    disk_close(d);
    snprintf(path, sizeof path, "%s/formatting", d->capacity);
    FILE *f = fopen(path, "w");
    fputs("cluster-1 disk-9\n", f);
    fclose(f);
    refused(d, E_CONFLICT, "another disk");
    f = fopen(path, "w");
    fputs("cluster-1 disk-1\n", f);
    fclose(f);
    d->conf.create = false;
    refused(d, E_NOTFOUND, d->capacity);
    d->conf.create = true;
    disk_must_open(d); /* it was never used: made again */
    assert_int_equal(access(path, F_OK), -1);
}

static void newer_version(void **state)
{
    struct disk *d = *state;
    char path[256];
    struct fmt_sb sb;
    disk_must_open(d);
    disk_close(d);
    snprintf(path, sizeof path, "%s/journal", d->fast);
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &sb, sizeof sb, 0), sizeof sb);
    assert_true(fmt_sb_ok(&sb));
    sb.version = htole32(FMT_VERSION + 1);
    fmt_sb_seal(&sb);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pwrite(fd, &sb, sizeof sb, (off_t)FMT_SB_COPY_AT(i)), sizeof sb);
    fsync(fd);
    close(fd);
    refused(d, E_VERSION, "upgrade");
}

static void same_directory(void **state)
{
    struct disk *d = *state;
    struct store_shard_id id = shard_id(1, 0);
    uint8_t got[4096], want[4096];
    d->conf.fast_path = d->conf.capacity_path;
    disk_must_open(d);
    assert_int_equal(do_fence(d, id, 1, MIB), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 0, 4096, 3, 0), E_OK);
    disk_close(d);
    disk_must_open(d);
    fill(want, 4096, 3);
    assert_int_equal(do_read(d, id, 0, 4096, got), E_OK);
    assert_memory_equal(got, want, 4096);
}

/* A raw device: a file stands for it, the code is the same. */
static void raw_device(void **state)
{
    struct disk *d = calloc(1, sizeof *d);
    struct store_shard_id id = shard_id(3, 0);
    struct store_usage u;
    uint8_t got[4096], want[4096], junk[512] = "ext4 or whatever";
    (void)state;
    disk_init(d);
    char *other = xasprintf("%s/other.img", d->dir);
    snprintf(d->capacity, sizeof d->capacity, "%s/disk.img", d->dir);
    int fd = open(d->capacity, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, 32 * MIB), 0);
    assert_int_equal(disk_open(d), E_INVAL); /* too small */
    assert_int_equal(ftruncate(fd, 96 * MIB + 512), 0);
    assert_int_equal(pwrite(fd, junk, 512, 65536), 512);
    assert_int_equal(disk_open(d), E_CONFLICT); /* somebody's data: refused and left alone */
    assert_int_equal(pread(fd, got, 512, 65536), 512);
    assert_memory_equal(got, junk, 512);
    memset(junk, 0, sizeof junk);
    assert_int_equal(pwrite(fd, junk, 512, 65536), 512);
    disk_must_open(d);
    d->conf.create = false;
    assert_int_equal(do_fence(d, id, 1, 1024 * MIB), E_OK);
    uint64_t n = 0;
    for (; store_room(d->s, &id, n * STORE_EXTENT, 4096, true); n++)
        assert_int_equal(do_write(d, id, 1, n + 1, n, n * STORE_EXTENT, 4096, n + 1, 0), E_OK);
    assert_int_equal(n, 96 * 4 - 4 - 16); /* all but the label's and those for copy-on-write */
    store_usage(d->s, &u);
    assert_true(u.full && u.size_bytes <= 96ull * MIB);
    store_commit_mark(d->s, &id, (struct store_version){1, n});
    assert_int_equal(do_destage(d), E_OK);
    disk_close(d);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 96 * MIB + 512); /* its size is not ours to change */
    disk_must_open(d);
    for (uint64_t i = 0; i < n; i++) {
        fill(want, sizeof want, i + 1);
        assert_int_equal(do_read(d, id, i * STORE_EXTENT, sizeof want, got), E_OK);
        assert_memory_equal(got, want, sizeof want);
    }
    disk_close(d);
    assert_int_equal(rename(d->capacity, other), 0); /* disks have changed their names */
    int fd2 = open(d->capacity, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd2, 96 * MIB), 0);
    assert_int_equal(disk_open(d), E_CORRUPT);
    assert_int_equal(pread(fd2, got, 512, 0), 512);
    assert_memory_equal(got, junk, 512);
    assert_int_equal(rename(other, d->capacity), 0);
    junk[0] = 1;
    assert_int_equal(pwrite(fd, junk, 1, 20), 1); /* one byte of the label */
    assert_int_equal(disk_open(d), E_CORRUPT);
    close(fd);
    close(fd2);
    free(other);
    disk_free(d);
    free(d);
}

static void check_read(struct disk *d, struct store_shard_id id, uint64_t offset, uint32_t length, uint64_t seed)
{
    uint8_t *want = malloc(length), *got = malloc(length);
    fill(want, length, seed);
    assert_int_equal(do_read(d, id, offset, length, got), E_OK);
    assert_memory_equal(want, got, length);
    free(want);
    free(got);
}

/* On a tmpfs, as disks in memory are. Contents outlive the process that wrote them; an ordinary open is told about O_DIRECT, which only
 * newer kernels have there. */
static void in_memory(void **state)
{
    struct disk *d = malloc(sizeof *d);
    struct statfs fs;
    if (statfs("/dev/shm", &fs) || fs.f_type != TMPFS_MAGIC)
        skip();
    disk_init(d);
    assert_int_equal(statfs(d->dir, &fs), 0);
    if (fs.f_type != TMPFS_MAGIC) { /* there is no O_DIRECT on this one: what this is about */
        nftw(d->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        snprintf(d->dir, sizeof d->dir, "/dev/shm/cohort-store-XXXXXX");
        assert_non_null(mkdtemp(d->dir));
        snprintf(d->fast, sizeof d->fast, "%s/fast", d->dir);
        snprintf(d->capacity, sizeof d->capacity, "%s/capacity", d->dir);
        assert_int_equal(mkdir(d->fast, 0700), 0);
        assert_int_equal(mkdir(d->capacity, 0700), 0);
    }
    struct store_shard_id id = shard_id(1, 0);
    d->conf.in_memory = d->conf.direct = true;
    disk_must_open(d);
    for (int fd = 3; fd < 64; fd++) { /* none of its files */
        int flags = fcntl(fd, F_GETFL);
        assert_true(flags < 0 || !(flags & O_DIRECT));
    }
    assert_int_equal(do_fence(d, id, 1, 1024 * MIB), E_OK);
    assert_int_equal(do_write(d, id, 1, 1, 0, 512, 4096, 7, 0), E_OK);                   /* a journaled one */
    assert_int_equal(do_write(d, id, 1, 2, 1, MIB, 4 * STORE_EXTENT, 8, 0), E_OK);  /* one past the journal */
    for (int round = 0; round < 2; round++) {
        check_read(d, id, 512, 4096, 7);
        check_read(d, id, MIB, 4 * STORE_EXTENT, 8);
        disk_close(d);
        d->conf.create = false;
        disk_must_open(d);
    }
    disk_free(d);
    free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(raw_device),
        cmocka_unit_test(in_memory),
        cmocka_unit_test_setup_teardown(conf, setup, teardown),
        cmocka_unit_test_setup_teardown(not_empty, setup, teardown),
        cmocka_unit_test_setup_teardown(foreign, setup, teardown),
        cmocka_unit_test_setup_teardown(parts_missing, setup, teardown),
        cmocka_unit_test_setup_teardown(mixed_up, setup, teardown),
        cmocka_unit_test_setup_teardown(interrupted_format, setup, teardown),
        cmocka_unit_test_setup_teardown(newer_version, setup, teardown),
        cmocka_unit_test_setup_teardown(same_directory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
