/* Names: the tree as it looks now, in memory, and the list of changes that the directory below has not seen. See lossyfs.h. */
#include <assert.h>
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "deploy/lossyfs/lossyfs.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1u
#endif

static struct entry *find_entry(const struct node *dir, const char *name)
{
    struct htab_node *h;
    HTAB_FOR_EACH_WITH_HASH (h, hash_str(name), &dir->children) {
        struct entry *x = container_of(h, struct entry, node);
        if (!strcmp(x->name, name))
            return x;
    }
    return NULL;
}

struct node *tree_find(const struct node *dir, const char *name)
{
    const struct entry *x = find_entry(dir, name);
    return x ? x->child : NULL;
}

static void free_unused(struct node *n)
{
    if (n->linked || n->op_refs > 0 || n->lookups > 0)
        return;
    data_drop(n);
    htab_destroy(&n->pages);
    htab_destroy(&n->children);
    LIST_REMOVE(n, entry);
    close(n->fd);
    free(n);
}

void tree_forget(struct node *n, uint64_t lookups)
{
    assert(n->lookups >= lookups);
    n->lookups -= lookups;
    free_unused(n);
}

static void link_child(struct node *dir, const char *name, struct node *child)
{
    struct entry *x = xcalloc(1, sizeof *x);
    x->name = xstrdup(name);
    x->child = child;
    child->linked = true;
    htab_insert(&dir->children, &x->node, hash_str(name));
    dir->n_children++;
}

static void unlink_child(struct node *dir, struct entry *x)
{
    x->child->linked = false;
    htab_remove(&dir->children, &x->node);
    dir->n_children--;
    free(x->name);
    free(x);
}

static struct node *new_node(int fd, bool dir, struct disk *disk)
{
    struct node *n = xcalloc(1, sizeof *n);
    struct stat st;
    n->fd = fd;
    n->dir = dir;
    n->disk = disk;
    if (!dir && fstat(fd, &st) == 0)
        n->size = n->lower_valid = (uint64_t)st.st_size;
    LIST_INSERT_HEAD(&fs.nodes, n, entry);
    return n;
}

static struct disk *new_disk(const char *name)
{
    if (fs.n_disks == DISKS_MAX)
        errx(1, "more than %d directories: %s", DISKS_MAX, name);
    fs.disk[fs.n_disks].name = xstrdup(name);
    return &fs.disk[fs.n_disks++];
}

static void load_dir(struct node *dir)
{
    int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *f;
    if (!d)
        err(1, "read a directory");
    while ((f = readdir(d))) {
        struct stat st;
        if (!strcmp(f->d_name, ".") || !strcmp(f->d_name, ".."))
            continue;
        if (fstatat(dir->fd, f->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            err(1, "%s", f->d_name);
        if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
            errx(1, "%s: only files and directories are possible here", f->d_name);
        bool is_dir = S_ISDIR(st.st_mode);
        fd = openat(dir->fd, f->d_name, (is_dir ? O_RDONLY | O_DIRECTORY : O_RDWR) | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            err(1, "open %s", f->d_name);
        struct disk *disk = dir->disk ? dir->disk : is_dir ? new_disk(f->d_name) : NULL;
        struct node *n = new_node(fd, is_dir, disk);
        link_child(dir, f->d_name, n);
        if (is_dir)
            load_dir(n);
    }
    closedir(d);
}

static void empty_spare(void)
{
    DIR *d = fdopendir(dup(fs.spare_fd));
    struct dirent *f;
    if (!d)
        err(1, "read the spare directory");
    rewinddir(d);
    while ((f = readdir(d)))
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && unlinkat(fs.spare_fd, f->d_name, 0) < 0)
            unlinkat(fs.spare_fd, f->d_name, AT_REMOVEDIR);
    closedir(d);
}

void tree_load(int lower_fd)
{
    LIST_INIT(&fs.nodes);
    STAILQ_INIT(&fs.ops);
    empty_spare();
    fs.root = new_node(lower_fd, true, NULL);
    fs.root->linked = true;
    load_dir(fs.root);
}

/* ---- changes ---- */

static void add_op(enum op_kind kind, struct node *dir, const char *name, struct node *child, struct node *dir2, const char *name2)
{
    struct op *o = xcalloc(1, sizeof *o);
    *o = (struct op){.kind = kind, .dir = dir, .dir2 = dir2, .child = child, .name = xstrdup(name),
                     .name2 = name2 ? xstrdup(name2) : NULL};
    dir->op_refs++;
    child->op_refs++;
    if (dir2)
        dir2->op_refs++;
    STAILQ_INSERT_TAIL(&fs.ops, o, entry);
    fs.n_ops++;
}

int tree_create(struct node *dir, const char *name, mode_t mode, bool as_dir, struct node **ret_node)
{
    char spare[16];
    unsigned number = ++fs.next_spare;
    if (find_entry(dir, name))
        return -EEXIST;
    if (!dir->disk)
        return -EPERM; /* the root holds the disks and nothing else */
    snprintf(spare, sizeof spare, "%u", number);
    if (as_dir && mkdirat(fs.spare_fd, spare, mode & 07777) < 0)
        return -errno;
    int fd = openat(fs.spare_fd, spare, as_dir ? O_RDONLY | O_DIRECTORY | O_CLOEXEC : O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode & 07777);
    if (fd < 0)
        return -errno;
    struct node *n = new_node(fd, as_dir, dir->disk);
    n->spare = number;
    link_child(dir, name, n);
    add_op(OP_CREATE, dir, name, n, NULL, NULL);
    *ret_node = n;
    return 0;
}

static int may_remove(const struct node *n, bool as_dir)
{
    if (as_dir != n->dir)
        return as_dir ? -ENOTDIR : -EISDIR;
    return n->dir && n->n_children > 0 ? -ENOTEMPTY : 0;
}

int tree_remove(struct node *dir, const char *name, bool as_dir)
{
    struct entry *x = find_entry(dir, name);
    if (!x)
        return -ENOENT;
    struct node *n = x->child;
    int rc = dir->disk ? may_remove(n, as_dir) : -EPERM;
    if (rc < 0)
        return rc;
    add_op(as_dir ? OP_RMDIR : OP_UNLINK, dir, name, n, NULL, NULL);
    unlink_child(dir, x);
    free_unused(n);
    return 0;
}

int tree_rename(struct node *dir, const char *name, struct node *dir2, const char *name2, unsigned flags)
{
    struct entry *from = find_entry(dir, name), *to = find_entry(dir2, name2);
    if (!from)
        return -ENOENT;
    if (flags & ~RENAME_NOREPLACE)
        return -EINVAL;
    if (dir->disk != dir2->disk || !dir->disk)
        return -EXDEV;
    if (to && flags & RENAME_NOREPLACE)
        return -EEXIST;
    struct node *n = from->child, *old = to ? to->child : NULL;
    if (old == n)
        return 0;
    int rc = old ? may_remove(old, n->dir) : 0;
    if (rc < 0)
        return rc;
    add_op(OP_RENAME, dir, name, n, dir2, name2);
    if (old) {
        unlink_child(dir2, to);
        free_unused(old);
    }
    unlink_child(dir, from);
    link_child(dir2, name2, n);
    return 0;
}

static int apply(const struct op *o)
{
    char spare[16];
    int rc = 0;
    switch (o->kind) {
    case OP_CREATE:
        snprintf(spare, sizeof spare, "%u", o->child->spare);
        rc = renameat(fs.spare_fd, spare, o->dir->fd, o->name);
        o->child->spare = 0;
        break;
    case OP_UNLINK:
        rc = unlinkat(o->dir->fd, o->name, 0);
        break;
    case OP_RMDIR:
        rc = unlinkat(o->dir->fd, o->name, AT_REMOVEDIR);
        break;
    case OP_RENAME:
        rc = renameat(o->dir->fd, o->name, o->dir2->fd, o->name2);
        break;
    }
    return rc < 0 ? -errno : 0;
}

static void drop_ref(struct node *n)
{
    if (n) {
        n->op_refs--;
        free_unused(n);
    }
}

static int apply_first(void)
{
    struct op *o = STAILQ_FIRST(&fs.ops);
    int rc = apply(o);
    if (rc < 0)
        warnx("%s: %s", o->name, strerror(-rc)); /* the directory below is not what we made of it */
    STAILQ_REMOVE_HEAD(&fs.ops, entry);
    fs.n_ops--;
    drop_ref(o->child);
    drop_ref(o->dir);
    drop_ref(o->dir2);
    free(o->name);
    free(o->name2);
    free(o);
    return rc;
}

int tree_sync(const struct node *dir)
{
    unsigned n = 0, upto = 0;
    int rc = 0;
    struct op *o;
    STAILQ_FOREACH (o, &fs.ops, entry) {
        n++;
        if (o->dir == dir || o->dir2 == dir)
            upto = n;
    }
    while (upto-- > 0 && rc == 0)
        rc = apply_first();
    return rc;
}

void tree_cut(void)
{
    uint64_t keep = random_below(3) == 0 ? fs.n_ops : random_below(fs.n_ops + 1u);
    while (keep-- > 0)
        (void)apply_first();
    empty_spare();
}

int tree_stat(const struct node *n, struct stat *ret_st)
{
    struct stat st;
    if (fstat(n->fd, &st) < 0)
        return -errno;
    st.st_ino = n == fs.root ? FUSE_ROOT_ID : (ino_t)(uintptr_t)n;
    st.st_nlink = n->dir ? 2 : n->linked ? 1 : 0;
    if (!n->dir)
        st.st_size = (off_t)n->size;
    *ret_st = st;
    return 0;
}
