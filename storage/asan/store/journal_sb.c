/* Journal superblock: formatting, opening, writing. See journal.h, FORMAT.md.
 *
 * Both copies are written at each change, one after the other, and ring space is reused only after that. So whichever
 * single copy is torn or damaged, the other one names a trim position from which replay is right.
 */
#include "storage/asan/store/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int journal_sb_write(const struct dev *d, const struct fmt_sb *sb, struct err *e)
{
    void *block = xaligned(FMT_BLOCK, FMT_BLOCK);
    memcpy(block, sb, FMT_BLOCK);
    int rc = 0;
    for (unsigned copy = 0; copy < 2 && rc == 0; copy++)
        rc = dev_write(d, block, FMT_BLOCK, FMT_SB_COPY_AT(copy));
    free(block);
    return rc < 0 ? err_sys(e, -rc, "write superblock of %s", d->path) : E_OK;
}

static int write_zeroes(const struct dev *d, uint64_t bytes, struct err *e)
{
    const size_t piece = 1u << 20;
    void *zero = xaligned(FMT_BLOCK, piece);
    memset(zero, 0, piece);
    int rc = 0;
    for (uint64_t at = 0; at < bytes && rc == 0; at += piece)
        rc = dev_write(d, zero, bytes - at < piece ? (size_t)(bytes - at) : piece, at);
    free(zero);
    if (rc == 0)
        rc = dev_sync(d);
    return rc < 0 ? err_sys(e, -rc, "write %s", d->path) : E_OK;
}

int journal_format(const char *path, const char *cluster, const char *disk, const uint8_t journal_id[16],
                   uint64_t ring_bytes, bool in_memory, struct err *e)
{
    struct dev d;
    struct fmt_sb sb = {.magic = htole32(FMT_SB_MAGIC), .version = htole32(FMT_VERSION)};
    assert(strlen(cluster) < FMT_ID_MAX && strlen(disk) < FMT_ID_MAX);
    memcpy(sb.cluster, cluster, strlen(cluster));
    memcpy(sb.disk, disk, strlen(disk));
    memcpy(sb.journal_id, journal_id, 16);
    sb.ring_bytes = htole64(ring_bytes);
    sb.number = htole64(1);
    sb.trim_seq = htole64(1);
    fmt_sb_seal(&sb);
    int rc = dev_open(&d, path, DEV_CREATE | (in_memory ? DEV_MEMORY : 0), "journal", e);
    if (rc < 0)
        return rc;
    uint64_t size = FMT_RING_AT + ring_bytes;
    int no = posix_fallocate(d.fd, 0, (off_t)size);
    if (no != 0)
        rc = err_sys(e, no, "reserve %llu bytes for %s", (unsigned long long)size, path);
    if (rc == E_OK)
        rc = write_zeroes(&d, size, e);
    if (rc == E_OK)
        rc = journal_sb_write(&d, &sb, e);
    if (rc == E_OK && dev_sync(&d) < 0)
        rc = err_set(e, E_IO, "sync %s", path);
    dev_close(&d);
    return rc;
}

/* Checks what a sealed superblock says against the file. */
static int sb_check(const struct journal *j, const struct fmt_sb *sb, struct err *e)
{
    struct stat st;
    uint64_t ring = le64toh(sb->ring_bytes);
    uint32_t version = le32toh(sb->version);
    if (version != FMT_VERSION)
        return err_set(e, E_VERSION, "%s: format %u is %s than this Cohort reads (%u): %s", j->dev.path, version,
                       version > FMT_VERSION ? "newer" : "older", FMT_VERSION,
                       version > FMT_VERSION ? "upgrade this node"
                                             : "start the version that made it, or empty the disk and add it again; its contents "
                                               "are then rebuilt from the other copies");
    if (fstat(j->dev.fd, &st) < 0)
        return err_sys(e, errno, "stat %s", j->dev.path);
    if (ring < JOURNAL_MIN || ring % (1u << 20) != 0 || (uint64_t)st.st_size < FMT_RING_AT + ring)
        return err_set(e, E_CORRUPT, "%s: the file has %lld bytes, its superblock wants %llu", j->dev.path,
                       (long long)st.st_size, (unsigned long long)(FMT_RING_AT + ring));
    if (le64toh(sb->trim_pos) % FMT_BLOCK != 0 || le64toh(sb->trim_seq) == 0 || sb->cluster[FMT_ID_MAX - 1]
        || sb->disk[FMT_ID_MAX - 1])
        return err_set(e, E_CORRUPT, "%s: impossible superblock", j->dev.path);
    return E_OK;
}

static int sb_read(struct journal *j, struct fmt_sb *ret_sb, struct err *e)
{
    struct fmt_sb *copy = NULL, *best = NULL;
    struct stat st;
    int rc = E_OK;
    if (fstat(j->dev.fd, &st) < 0)
        return err_sys(e, errno, "stat %s", j->dev.path);
    if (st.st_size < FMT_RING_AT)
        return err_set(e, E_CORRUPT, "%s: too short to be a journal", j->dev.path);
    copy = xaligned(FMT_BLOCK, 2 * FMT_BLOCK);
    for (unsigned i = 0; i < 2 && rc == 0; i++)
        rc = dev_read(&j->dev, &copy[i], FMT_BLOCK, FMT_SB_COPY_AT(i));
    if (rc < 0) {
        rc = err_sys(e, -rc, "read superblock of %s", j->dev.path);
        goto out;
    }
    for (unsigned i = 0; i < 2; i++)
        if (fmt_sb_ok(&copy[i]) && (!best || le64toh(copy[i].number) > le64toh(best->number)))
            best = &copy[i];
    if (!best)
        rc = err_set(e, E_CORRUPT, "%s: both superblocks are damaged, or this is no Cohort journal", j->dev.path);
    else if ((rc = sb_check(j, best, e)) == E_OK)
        *ret_sb = *best;
out:
    free(copy);
    return rc;
}

int journal_meta_is_new(const struct journal *j, uint64_t meta_number, uint64_t fence_number, struct err *e)
{
    if (j->meta_number >= meta_number && j->fence_number >= fence_number)
        return E_OK;
    return err_set(e, E_CORRUPT, "the metadata of %s are older than it: they have seen %llu destages of %llu and %llu fences of %llu. "
                   "Take this disk out, its contents are rebuilt from the other copies", j->dev.path,
                   (unsigned long long)j->meta_number, (unsigned long long)meta_number, (unsigned long long)j->fence_number,
                   (unsigned long long)fence_number);
}

int journal_open(struct journal *j, const char *path, bool in_memory, struct err *e)
{
    int rc = dev_open(&j->dev, path, DEV_DSYNC | (in_memory ? DEV_MEMORY : 0), "journal", e);
    if (rc < 0)
        return rc;
    if (flock(j->dev.fd, LOCK_EX | LOCK_NB) < 0)
        rc = err_set(e, E_BUSY, "%s is in use by another process", path);
    else
        rc = sb_read(j, &j->sb, e);
    if (rc < 0) {
        dev_close(&j->dev);
        return rc;
    }
    TAILQ_INIT(&j->pending);
    j->ring_bytes = le64toh(j->sb.ring_bytes);
    j->trim_pos = j->free_pos = j->head_pos = le64toh(j->sb.trim_pos);
    j->trim_seq = j->free_seq = j->next_seq = le64toh(j->sb.trim_seq);
    j->durable_seq = j->next_seq - 1;
    j->life = le64toh(j->sb.life);
    j->free_life = le64toh(j->sb.trim_life);
    return E_OK;
}

void journal_close(struct journal *j)
{
    assert(j->inflight == 0);
    for (unsigned i = 0; i < JOURNAL_INFLIGHT; i++) {
        free(j->slot[i].header);
        free(j->slot[i].bounce);
    }
    dev_close(&j->dev);
}
