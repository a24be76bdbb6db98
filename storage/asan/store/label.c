/* Labels: which cluster and disk the two directories belong to; formatting an empty one. See FORMAT.md.
 *
 * Formatting leaves a marker file from its beginning to its end: a directory with the marker was never used and may be
 * formatted again. Anything else that is not empty is never formatted over.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "storage/asan/store/priv.h"

struct disk_paths { char *journal, *extents, *meta, *marker; bool raw; };

static unsigned how_of(const struct store_conf *c) { return c->in_memory ? DEV_MEMORY : 0; }

static bool is_raw(const char *path)
{
    struct stat st;
    return path && stat(path, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISREG(st.st_mode));
}

static void paths_init(struct disk_paths *p, const struct store_conf *c)
{
    p->raw = is_raw(c->capacity_path);
    const char *dir = p->raw ? c->fast_path : c->capacity_path;
    p->journal = xasprintf("%s/journal", c->fast_path);
    p->extents = p->raw ? xstrdup(c->capacity_path) : xasprintf("%s/extents.dat", c->capacity_path);
    p->meta = xasprintf("%s/meta", dir);
    p->marker = xasprintf("%s/formatting", dir);
}

static void paths_free(struct disk_paths *p)
{
    free(p->journal);
    free(p->extents);
    free(p->meta);
    free(p->marker);
}

static int check_dir(const char *what, const char *path, struct err *e)
{
    struct stat st;
    if (!path || !*path)
        return err_set(e, E_INVAL, "disk: no %s path", what);
    if (stat(path, &st) < 0)
        return err_set(e, E_INVAL, "%s path %s: %s", what, path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return err_set(e, E_INVAL, "%s path %s is not a directory", what, path);
    return E_OK;
}

static int check_conf(const struct store_conf *c, struct err *e)
{
    int rc = check_dir("fast", c->fast_path, e);
    if (rc == E_OK && !is_raw(c->capacity_path))
        rc = check_dir("capacity", c->capacity_path, e);
    if (rc < 0)
        return rc;
    if (!c->disk_id || !*c->disk_id || strlen(c->disk_id) >= FMT_ID_MAX || !c->cluster_uuid || !*c->cluster_uuid
        || strlen(c->cluster_uuid) >= FMT_ID_MAX)
        return err_set(e, E_INVAL, "disk at %s: bad disk or cluster id", c->capacity_path);
    if (c->create && (c->journal_bytes < JOURNAL_MIN || c->journal_bytes % (1u << 20)))
        return err_set(e, E_INVAL, "disk at %s: journal of %llu bytes: must be a multiple of 1 MiB and at least 16 MiB",
                       c->fast_path, (unsigned long long)c->journal_bytes);
    return E_OK;
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static int must_be_empty(const char *path, struct err *e)
{
    DIR *d = opendir(path);
    struct dirent *f;
    int rc = E_OK;
    if (!d)
        return err_sys(e, errno, "open directory %s", path);
    while (rc == E_OK && (f = readdir(d)))
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && strcmp(f->d_name, "lost+found"))
            rc = err_set(e, E_CONFLICT, "%s holds %s and no Cohort disk: empty it or give another directory", path, f->d_name);
    closedir(d);
    return rc;
}

static int sync_dir(const char *path, struct err *e)
{
    DIR *d = opendir(path);
    int rc = d && fsync(dirfd(d)) == 0 ? E_OK : err_sys(e, errno, "sync directory %s", path);
    if (d)
        closedir(d);
    return rc;
}

static void remove_flat_dir(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *f;
    if (!d)
        return;
    while ((f = readdir(d)))
        unlinkat(dirfd(d), f->d_name, 0);
    closedir(d);
    rmdir(path);
}

/* ---- raw capacity devices ---- */

static int size_of(int fd, const char *path, uint64_t *ret_bytes, struct err *e)
{
    off_t end = lseek(fd, 0, SEEK_END); /* of block devices, too */
    if (end < 0)
        return err_sys(e, errno, "size of %s", path);
    if (end < (off_t)(64u << 20))
        return err_set(e, E_INVAL, "%s has %lld bytes: at least 64 MiB are needed", path, (long long)end);
    *ret_bytes = (uint64_t)end;
    return E_OK;
}

/* Nothing but zeroes at its beginning, where file systems, partition tables, RAID and LVM put their signatures, and nobody
 * (a mount, device mapper) has it. */
static int must_be_blank(const char *path, struct err *e)
{
    struct stat st;
    const size_t n = FMT_RAW_PLACES * STORE_EXTENT;
    int fd = open(path, O_RDONLY | O_CLOEXEC | (stat(path, &st) == 0 && S_ISBLK(st.st_mode) ? O_EXCL : 0));
    if (fd < 0)
        return errno == EBUSY ? err_set(e, E_BUSY, "%s is mounted or used by another program", path) : err_sys(e, errno, "open %s", path);
    uint64_t bytes;
    uint8_t *p = xcalloc(1, n);
    int rc = size_of(fd, path, &bytes, e);
    if (rc == E_OK && pread(fd, p, n, 0) != (ssize_t)n)
        rc = err_sys(e, errno ? errno : EIO, "read %s", path);
    if (rc == E_OK && (p[0] || memcmp(p, p + 1, n - 1)))
        rc = err_set(e, E_CONFLICT, "%s is not blank: it may hold data; nothing was changed. If it may be used: wipefs -a %s and "
                     "blkdiscard or zero its first MiB", path, path);
    free(p);
    close(fd);
    return rc;
}

static int raw_label(const struct dev *d, const struct store_conf *c, const uint8_t journal_id[16], struct err *e)
{
    struct fmt_raw *l;
    void *block = xaligned(FMT_BLOCK, FMT_BLOCK);
    l = block;
    memset(l, 0, sizeof *l);
    l->magic = htole32(FMT_RAW_MAGIC);
    l->version = htole32(FMT_VERSION);
    memcpy(l->cluster, c->cluster_uuid, strlen(c->cluster_uuid));
    memcpy(l->disk, c->disk_id, strlen(c->disk_id));
    memcpy(l->journal_id, journal_id, 16);
    l->crc = htole32(crc32c(0, l, FMT_BLOCK - 4));
    int rc = dev_write(d, block, FMT_BLOCK, 0);
    free(block);
    return rc < 0 ? err_sys(e, -rc, "write the label of %s", d->path) : E_OK;
}

static int put_label(const struct disk_paths *p, const struct store_conf *c, const uint8_t journal_id[16], struct err *e)
{
    struct meta *m;
    struct meta_label l = {.cluster = "", .disk = ""};
    memcpy(l.cluster, c->cluster_uuid, strlen(c->cluster_uuid));
    memcpy(l.disk, c->disk_id, strlen(c->disk_id));
    memcpy(l.journal_id, journal_id, 16);
    int rc = meta_open(p->meta, true, &m, e);
    if (rc < 0)
        return rc;
    struct meta_batch *b = meta_batch_new();
    meta_put_label(b, &l);
    meta_put_number(b, 0, 0);
    meta_put_fences(b, 0);
    rc = meta_commit(m, b, e);
    meta_batch_free(b);
    meta_close(m);
    return rc;
}

static int format(const struct disk_paths *p, const struct store_conf *c, struct err *e)
{
    uint8_t journal_id[16];
    struct dev extents;
    char *text = xasprintf("%s %s\n", c->cluster_uuid, c->disk_id);
    int rc = file_write(p->marker, text, strlen(text), 0600, e);
    free(text);
    if (rc < 0)
        return rc;
    unlink(p->journal);
    if (!p->raw)
        unlink(p->extents);
    remove_flat_dir(p->meta);
    if (getrandom(journal_id, sizeof journal_id, 0) != sizeof journal_id)
        return err_sys(e, errno, "getrandom");
    rc = put_label(p, c, journal_id, e);
    if (rc == E_OK && (rc = dev_open(&extents, p->extents, (p->raw ? 0 : DEV_CREATE) | how_of(c), "extents", e)) == E_OK) {
        if (p->raw)
            rc = raw_label(&extents, c, journal_id, e);
        if (rc == E_OK && dev_sync(&extents) < 0)
            rc = err_set(e, E_IO, "sync %s", p->extents);
        dev_close(&extents);
    }
    if (rc == E_OK)
        rc = journal_format(p->journal, c->cluster_uuid, c->disk_id, journal_id, c->journal_bytes, c->in_memory, e);
    if (rc == E_OK)
        rc = sync_dir(c->fast_path, e);
    const char *dir = p->raw ? c->fast_path : c->capacity_path;
    if (rc == E_OK)
        rc = sync_dir(dir, e);
    if (rc == E_OK && unlink(p->marker) < 0)
        rc = err_sys(e, errno, "remove %s", p->marker);
    return rc == E_OK ? sync_dir(dir, e) : rc;
}

/* The marker names who was formatting. */
static int check_marker(const struct disk_paths *p, const struct store_conf *c, struct err *e)
{
    char *text, *want = xasprintf("%s %s\n", c->cluster_uuid, c->disk_id);
    int rc = file_read(p->marker, 4096, &text, NULL, e);
    if (rc == E_OK) {
        if (strcmp(text, want) != 0)
            rc = err_set(e, E_CONFLICT, "%s: another disk was being made here: remove its files by hand", c->capacity_path);
        free(text);
    }
    free(want);
    return rc;
}

static int format_if_wanted(const struct disk_paths *p, const struct store_conf *c, struct err *e)
{
    bool marker = exists(p->marker);
    if (marker) {
        int rc = check_marker(p, c, e);
        if (rc < 0)
            return rc;
    } else if (exists(p->journal) || (!p->raw && exists(p->extents)) || exists(p->meta)) {
        return E_OK;
    }
    if (!c->create)
        return err_set(e, E_NOTFOUND, "%s holds no Cohort disk", c->capacity_path);
    int rc = marker ? E_OK : p->raw ? must_be_blank(c->capacity_path, e) : must_be_empty(c->capacity_path, e);
    if (rc == E_OK && !marker)
        rc = must_be_empty(c->fast_path, e);
    return rc == E_OK ? format(p, c, e) : rc;
}

static int compare(const char *path, const char *cluster, const char *disk, const struct store_conf *c, struct err *e)
{
    if (strcmp(cluster, c->cluster_uuid) != 0)
        return err_set(e, E_CONFLICT, "%s belongs to cluster %.63s, not to %s: this disk is not ours, nothing was changed", path,
                       cluster, c->cluster_uuid);
    if (strcmp(disk, c->disk_id) != 0)
        return err_set(e, E_CONFLICT, "%s is disk %.63s, not %s: check the paths in the configuration, nothing was changed", path,
                       disk, c->disk_id);
    return E_OK;
}

struct label_arg { const char *path; const struct store_conf *c; const uint8_t *journal_id; bool seen; };

static int on_label(void *arg, const struct meta_label *l, struct err *e)
{
    struct label_arg *a = arg;
    a->seen = true;
    int rc = compare(a->path, l->cluster, l->disk, a->c, e);
    if (rc == E_OK && memcmp(l->journal_id, a->journal_id, 16) != 0)
        rc = err_set(e, E_CONFLICT, "%s and the journal in %s were not made together: check the paths", a->path, a->c->fast_path);
    return rc;
}

static int any_number(void *arg, uint64_t number, uint64_t durable_seq, struct err *e) { return E_OK; }
static int any_fences(void *arg, uint64_t number, struct err *e) { return E_OK; }
static int any_fence(void *arg, const struct store_shard_id *id, const struct meta_fence *f, struct err *e) { return E_OK; }
static int any_progress(void *arg, const struct store_shard_id *id, const struct meta_progress *p, struct err *e) { return E_OK; }
/* 1 ends the walk: the label has been seen by then, and store.c reads the rest. */
static int any_ext(void *arg, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x, struct err *e) { return 1; }
static int any_aside(void *arg, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a, struct err *e) { return 1; }

static int check_meta_label(struct store *s, const struct disk_paths *p, const struct store_conf *c, struct err *e)
{
    static const struct meta_visitor v = {on_label, any_number, any_fences, any_fence, any_progress, any_ext, any_aside};
    struct label_arg a = {.path = p->meta, .c = c, .journal_id = s->journal.sb.journal_id};
    int rc = meta_load(s->meta, &v, &a, e);
    if (rc < 0)
        return rc;
    return a.seen ? E_OK : err_set(e, E_CORRUPT, "%s has no label", p->meta);
}

/* Is the device, whose name may have changed with the order of disks, the one that belongs to this journal? */
static int check_raw(struct store *s, const struct store_conf *c, struct err *e)
{
    const char *path = s->extents.path;
    struct fmt_raw *l;
    if (flock(s->extents.fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, E_BUSY, "%s is in use by another process", path);
    int rc = size_of(s->extents.fd, path, &s->raw_bytes, e);
    if (rc < 0)
        return rc;
    void *block = xaligned(FMT_BLOCK, FMT_BLOCK);
    rc = dev_read(&s->extents, block, FMT_BLOCK, 0);
    l = block;
    if (rc < 0)
        rc = err_sys(e, -rc, "read the label of %s", path);
    else if (le32toh(l->magic) != FMT_RAW_MAGIC || le32toh(l->crc) != crc32c(0, l, FMT_BLOCK - 4))
        rc = err_set(e, E_CORRUPT, "%s has no label of ours, or a damaged one: it is another device, or was overwritten", path);
    else if (le32toh(l->version) != FMT_VERSION)
        rc = err_set(e, E_VERSION, "%s: format %u, this Cohort reads %u: use the version that made it, or zero the device's first MiB, "
                     "empty %s and add the disk again; its contents are then rebuilt from the other copies", path, le32toh(l->version),
                     FMT_VERSION, c->fast_path);
    else
        rc = compare(path, (char *)l->cluster, (char *)l->disk, c, e);
    if (rc == E_OK && memcmp(l->journal_id, s->journal.sb.journal_id, 16) != 0)
        rc = err_set(e, E_CONFLICT, "%s and the journal in %s were not made together: check the paths", path, c->fast_path);
    free(block);
    return rc;
}

static int open_all(struct store *s, const struct disk_paths *p, const struct store_conf *c, struct err *e)
{
    int rc = journal_open(&s->journal, p->journal, c->in_memory, e);
    if (rc == E_NOTFOUND)
        return err_set(e, E_CORRUPT, "%s is missing: what was acknowledged and not destaged is lost; empty %s and add it as a "
                       "new disk", p->journal, c->capacity_path);
    if (rc == E_OK)
        rc = compare(p->journal, (char *)s->journal.sb.cluster, (char *)s->journal.sb.disk, c, e);
    if (rc < 0)
        return rc;
    rc = dev_open(&s->extents, p->extents, how_of(c), "extents", e);
    if (rc == E_OK && p->raw)
        rc = check_raw(s, c, e);
    if (rc == E_OK)
        rc = meta_open(p->meta, false, &s->meta, e);
    if (rc == E_NOTFOUND)
        return err_set(e, E_CORRUPT, "%s or %s is missing: take this disk out, its contents are rebuilt from the other copies",
                       p->extents, p->meta);
    return rc == E_OK ? check_meta_label(s, p, c, e) : rc;
}

int label_open(struct store *s, const struct store_conf *c, struct err *e)
{
    struct disk_paths p;
    int rc = check_conf(c, e);
    if (rc < 0)
        return rc;
    paths_init(&p, c);
    rc = format_if_wanted(&p, c, e);
    if (rc == E_OK)
        rc = open_all(s, &p, c, e);
    paths_free(&p);
    return rc;
}
