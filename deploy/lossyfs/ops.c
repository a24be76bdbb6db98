/* What the kernel asks. Every request passes the gate first: there faults are injected, and there it stays when the power is
 * gone. See lossyfs.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include "base/buf.h"
#include "deploy/lossyfs/lossyfs.h"

#define ATTR_S 1.0 /* nothing changes behind the kernel's back */

static struct node *node_of(fuse_ino_t ino) { return ino == FUSE_ROOT_ID ? fs.root : (struct node *)(uintptr_t)ino; }

/* Takes the lock, then waits while the disk does not answer. 0, or the error that the disk gives. */
static int gate(const struct node *n)
{
    pthread_mutex_lock(&fs.lock);
    if (n->disk && n->disk->slow_ms && !fs.frozen) {
        struct timespec t = {n->disk->slow_ms / 1000, n->disk->slow_ms % 1000 * 1000000L};
        pthread_mutex_unlock(&fs.lock);
        nanosleep(&t, NULL);
        pthread_mutex_lock(&fs.lock);
    }
    while (fs.frozen || (n->disk && n->disk->fault == FAULT_STALL))
        pthread_cond_wait(&fs.changed, &fs.lock);
    return n->disk && n->disk->fault == FAULT_EIO ? -EIO : 0;
}

/* For what a real file system answers from memory: only the power cut stops it. */
static void gate_cached(void)
{
    pthread_mutex_lock(&fs.lock);
    while (fs.frozen)
        pthread_cond_wait(&fs.changed, &fs.lock);
}

static void leave(void) { pthread_mutex_unlock(&fs.lock); }

static void answer(fuse_req_t req, int rc)
{
    fuse_reply_err(req, -rc);
    leave();
}

uint64_t disk_used(const struct disk *d)
{
    struct node *n;
    uint64_t bytes = 0;
    LIST_FOREACH (n, &fs.nodes, entry) {
        struct stat st;
        if (n->disk == d && !n->dir && fstat(n->fd, &st) == 0) {
            uint64_t below = (uint64_t)st.st_blocks * 512;
            bytes += below > n->size || data_unsynced(n) == 0 ? below : n->size;
        }
    }
    return bytes;
}

static int room_for(const struct node *n, uint64_t bytes)
{
    const struct disk *d = n->disk;
    return !d || !d->limit_bytes || bytes == 0 || disk_used(d) + bytes <= d->limit_bytes ? 0 : -ENOSPC;
}

static void on_init(void *arg, struct fuse_conn_info *c)
{
    c->max_background = 256;
    c->congestion_threshold = 192;
    c->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void entry_of(struct node *n, struct fuse_entry_param *ret)
{
    *ret = (struct fuse_entry_param){.ino = (fuse_ino_t)(uintptr_t)n, .attr_timeout = ATTR_S, .entry_timeout = ATTR_S};
    tree_stat(n, &ret->attr);
    n->lookups++;
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct node *dir = node_of(parent), *n = NULL;
    struct fuse_entry_param x;
    int rc = gate(dir);
    if (rc == 0 && !(n = tree_find(dir, name)))
        rc = -ENOENT;
    if (rc < 0) {
        answer(req, rc);
        return;
    }
    entry_of(n, &x);
    fuse_reply_entry(req, &x);
    leave();
}

static void on_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
    pthread_mutex_lock(&fs.lock);
    if (ino != FUSE_ROOT_ID)
        tree_forget(node_of(ino), n);
    fuse_reply_none(req);
    leave();
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    gate_cached();
    int rc = tree_stat(node_of(ino), &st);
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_attr(req, &st, ATTR_S);
    leave();
}

static int set_size(struct node *n, uint64_t size)
{
    if (n->dir)
        return -EISDIR;
    data_truncate(n, size);
    return 0;
}

/* Sizes wait for a sync; mode, owner and times do not, nobody's safety rests on them. */
static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *want, int set, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    struct stat st;
    int rc = gate(n);
    if (rc == 0 && set & FUSE_SET_ATTR_SIZE)
        rc = set_size(n, (uint64_t)want->st_size);
    if (rc == 0 && set & FUSE_SET_ATTR_MODE && fchmod(n->fd, want->st_mode & 07777) < 0)
        rc = -errno;
    if (rc == 0 && set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)
        && fchown(n->fd, set & FUSE_SET_ATTR_UID ? want->st_uid : (uid_t)-1, set & FUSE_SET_ATTR_GID ? want->st_gid : (gid_t)-1) < 0)
        rc = -errno;
    if (rc == 0)
        rc = tree_stat(n, &st);
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_attr(req, &st, ATTR_S);
    leave();
}

static void make(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, bool as_dir, struct fuse_file_info *fi)
{
    struct node *dir = node_of(parent), *n = NULL;
    struct fuse_entry_param x;
    int rc = gate(dir);
    if (rc == 0)
        rc = room_for(dir, PAGE);
    if (rc == 0)
        rc = tree_create(dir, name, mode, as_dir, &n);
    if (rc < 0) {
        answer(req, rc);
        return;
    }
    entry_of(n, &x);
    if (fi) {
        fi->direct_io = 1;
        fuse_reply_create(req, &x, fi);
    } else {
        fuse_reply_entry(req, &x);
    }
    leave();
}

static void on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    make(req, parent, name, mode, false, fi);
}

static void on_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
    if (!S_ISREG(mode))
        fuse_reply_err(req, EPERM);
    else
        make(req, parent, name, mode, false, NULL);
}

static void on_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    make(req, parent, name, mode, true, NULL);
}

static void on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    int rc = gate(node_of(parent));
    answer(req, rc < 0 ? rc : tree_remove(node_of(parent), name, false));
}

static void on_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    int rc = gate(node_of(parent));
    answer(req, rc < 0 ? rc : tree_remove(node_of(parent), name, true));
}

static void on_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t parent2, const char *name2, unsigned flags)
{
    int rc = gate(node_of(parent));
    answer(req, rc < 0 ? rc : tree_rename(node_of(parent), name, node_of(parent2), name2, flags));
}

/* Every read and write comes to us: the kernel's page cache would hide what is synced and what is not. */
static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    int rc = gate(n);
    if (rc == 0 && fi->flags & O_TRUNC)
        rc = set_size(n, 0);
    fi->direct_io = 1;
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_open(req, fi);
    leave();
}

static bool misaligned(const struct fuse_file_info *fi, uint64_t offset, size_t length)
{
    return fi->flags & O_DIRECT && (offset | length) % SECTOR != 0;
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t length, off_t offset, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    void *buf = xmalloc(length ? length : 1);
    ssize_t rc = gate(n);
    if (rc == 0 && misaligned(fi, (uint64_t)offset, length))
        rc = -EINVAL;
    if (rc == 0)
        rc = data_read(n, buf, length, (uint64_t)offset);
    if (rc < 0)
        fuse_reply_err(req, (int)-rc);
    else
        fuse_reply_buf(req, buf, (size_t)rc);
    leave();
    free(buf);
}

static void on_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t length, off_t offset, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    pthread_mutex_lock(&fs.lock);
    if (fs.frozen) /* the power failed while this was on its way to the disk: some of its sectors may arrive */
        data_write(n, buf, length, (uint64_t)offset);
    leave();
    int rc = gate(n);
    if (rc == 0 && misaligned(fi, (uint64_t)offset, length))
        rc = -EINVAL;
    if (rc == 0)
        rc = room_for(n, data_new_bytes(n, length, (uint64_t)offset));
    if (rc == 0 && length > 0) {
        if (fi->flags & O_DSYNC) /* O_SYNC has this bit, too */
            rc = data_write_durable(n, buf, length, (uint64_t)offset);
        else
            data_write(n, buf, length, (uint64_t)offset);
    }
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_write(req, length);
    leave();
}

static void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    int rc = gate(node_of(ino));
    answer(req, rc < 0 ? rc : data_sync(node_of(ino)));
}

static void on_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    int rc = gate(node_of(ino));
    answer(req, rc < 0 ? rc : tree_sync(node_of(ino)));
}

static int allocate(struct node *n, int mode, uint64_t offset, uint64_t length)
{
    int keep = mode & FALLOC_FL_KEEP_SIZE;
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return -EOPNOTSUPP;
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
        data_zero(n, offset, length, keep);
        return 0;
    }
    int rc = room_for(n, data_new_bytes(n, length, offset));
    if (rc == 0 && fallocate(n->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0)
        rc = -errno;
    if (rc == 0 && !keep && offset + length > n->size)
        data_truncate(n, offset + length);
    return rc;
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    int rc = gate(node_of(ino));
    answer(req, rc < 0 ? rc : allocate(node_of(ino), mode, (uint64_t)offset, (uint64_t)length));
}

static void on_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct node *n = node_of(ino);
    struct statvfs v;
    gate_cached();
    if (fstatvfs(n->fd, &v) < 0) {
        answer(req, -errno);
        return;
    }
    if (n->disk && n->disk->limit_bytes) {
        uint64_t used = disk_used(n->disk), limit = n->disk->limit_bytes;
        v.f_bsize = v.f_frsize = PAGE;
        v.f_blocks = limit / PAGE;
        v.f_bfree = v.f_bavail = used < limit ? (limit - used) / PAGE : 0;
    }
    fuse_reply_statfs(req, &v);
    leave();
}

/* ---- reading a directory: its state when it was opened ---- */

struct listing { char *data; size_t length; };

static void list_one(fuse_req_t req, struct listing *l, const char *name, const struct node *n)
{
    struct stat st = {.st_ino = (ino_t)(uintptr_t)n, .st_mode = n->dir ? S_IFDIR : S_IFREG};
    size_t need = fuse_add_direntry(req, NULL, 0, name, NULL, 0);
    l->data = xrealloc(l->data, l->length + need);
    fuse_add_direntry(req, l->data + l->length, need, name, &st, (off_t)(l->length + need));
    l->length += need;
}

static void on_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    struct htab_node *h;
    int rc = gate(n);
    if (rc < 0) {
        answer(req, rc);
        return;
    }
    struct listing *l = xcalloc(1, sizeof *l);
    list_one(req, l, ".", n);
    list_one(req, l, "..", n);
    HTAB_FOR_EACH (h, &n->children)
        list_one(req, l, container_of(h, struct entry, node)->name, container_of(h, struct entry, node)->child);
    fi->fh = (uint64_t)(uintptr_t)l;
    fuse_reply_open(req, fi);
    leave();
}

/* Offsets are bytes of the listing, and the kernel asks only at the end of an entry it got: the rest is cut at its size. */
static void on_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    const struct listing *l = (struct listing *)(uintptr_t)fi->fh;
    size_t at = (size_t)offset < l->length ? (size_t)offset : l->length;
    fuse_reply_buf(req, l->data + at, l->length - at < size ? l->length - at : size);
}

static void on_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct listing *l = (struct listing *)(uintptr_t)fi->fh;
    free(l->data);
    free(l);
    fuse_reply_err(req, 0);
}

/* Locks (flock, fcntl) are absent on purpose: the kernel then keeps them itself, per mount, as for a local file system. */
const struct fuse_lowlevel_ops lossy_ops = {
    .init = on_init, .lookup = on_lookup, .forget = on_forget, .getattr = on_getattr, .setattr = on_setattr,
    .mknod = on_mknod, .mkdir = on_mkdir, .unlink = on_unlink, .rmdir = on_rmdir, .rename = on_rename,
    .open = on_open, .create = on_create, .read = on_read, .write = on_write, .fsync = on_fsync,
    .fsyncdir = on_fsyncdir, .fallocate = on_fallocate, .statfs = on_statfs,
    .opendir = on_opendir, .readdir = on_readdir, .releasedir = on_releasedir,
};
