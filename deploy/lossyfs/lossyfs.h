/* cohort-lossyfs: a file system for tests whose power cut loses what a real disk may lose. README.md has the model.
 *
 * One process serves one node's disks. All state is under `fs.lock`, which every function here expects to be held; replies
 * to the kernel are sent under it, too, so that nothing is promised after the power is gone.
 */
#ifndef COHORT_DEPLOY_LOSSYFS_H
#define COHORT_DEPLOY_LOSSYFS_H

#define FUSE_USE_VERSION 312
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include "base/htab.h"

#define SECTOR 512u /* what survives or is lost as a whole */
#define PAGE 4096u
#define DISKS_MAX 8

/* A directory below the root: what the lab's node believes to be a disk, and what faults are injected into. */
struct disk {
    char *name;
    enum disk_fault { FAULT_NONE, FAULT_EIO, FAULT_STALL } fault;
    unsigned slow_ms;       /* added to every request */
    uint64_t limit_bytes;   /* 0: as large as what lies below */
};

/* Unsynced 4 KiB of a file: `data` is the whole page as it reads now, NULL for zeroes; of it the sectors in `dirty` are not
 * below yet. */
struct page {
    struct htab_node node;
    uint64_t index;
    uint8_t dirty;
    uint8_t *data;
};

struct node {
    LIST_ENTRY(node) entry;
    struct disk *disk;      /* NULL: the root */
    int fd;                 /* below; of a directory too */
    bool dir, linked;
    unsigned op_refs;       /* unsynced operations that name it */
    uint64_t lookups;       /* the kernel's */
    unsigned spare;         /* its name among the spare files while its creation is not durable; 0 = it has one below */
    struct htab children;   /* of a directory: struct entry, as it looks now */
    unsigned n_children;
    uint64_t size;          /* of a file: as it looks now */
    uint64_t lower_valid;   /* below, bytes from here on are what an unsynced truncate took away */
    struct htab pages;
};

struct entry {
    struct htab_node node;
    char *name;
    struct node *child;
};

/* A change of names that is not durable. They reach the disk in order, as through a file system's journal. */
struct op {
    STAILQ_ENTRY(op) entry;
    enum op_kind { OP_CREATE, OP_UNLINK, OP_RMDIR, OP_RENAME } kind;
    struct node *dir, *dir2, *child;
    char *name, *name2;
};

struct lossy {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a fault was set or lifted, a mount arrived */
    struct node *root;
    LIST_HEAD(, node) nodes;
    STAILQ_HEAD(, op) ops;
    struct disk disk[DISKS_MAX];
    unsigned n_disks, n_ops;
    int spare_fd;
    unsigned next_spare;
    uint64_t rng;
    bool frozen;            /* the power is gone: nothing is answered or kept any more */
    int mount_fd;           /* /dev/fuse, mounted by the node; -1 until it arrives */
};
extern struct lossy fs;

/* tree.c: names. Errors are negative errno. */
void tree_load(int lower_fd);      /* takes the descriptor; exits if it cannot */
struct node *tree_find(const struct node *dir, const char *name); /* NULL if absent */
int tree_create(struct node *dir, const char *name, mode_t mode, bool as_dir, struct node **ret_node);
int tree_remove(struct node *dir, const char *name, bool as_dir);
int tree_rename(struct node *dir, const char *name, struct node *dir2, const char *name2, unsigned flags);
int tree_sync(const struct node *dir);
void tree_forget(struct node *n, uint64_t lookups);
int tree_stat(const struct node *n, struct stat *ret_st);
void tree_cut(void);               /* a random first part of the unsynced changes happened */

/* data.c: contents of files. */
ssize_t data_read(struct node *n, void *buf, size_t length, uint64_t offset);
void data_write(struct node *n, const void *buf, size_t length, uint64_t offset); /* not durable */
int data_write_durable(struct node *n, const void *buf, size_t length, uint64_t offset);
void data_zero(struct node *n, uint64_t offset, uint64_t length, bool keep_size);
void data_truncate(struct node *n, uint64_t size);
int data_sync(struct node *n);
void data_drop(struct node *n);    /* forgets what is unsynced */
void data_cut(struct node *n);     /* a random part of what is unsynced reaches the disk, sector by sector */
uint64_t data_unsynced(const struct node *n);        /* bytes */
uint64_t data_new_bytes(const struct node *n, uint64_t length, uint64_t offset); /* that a write would allocate, roughly */

/* ops.c */
extern const struct fuse_lowlevel_ops lossy_ops;
uint64_t disk_used(const struct disk *d);

/* control.c: serves the control socket in threads of its own. */
void control_start(int listener);
void power_cut(void);              /* makes the lower directory what a disk would hold; the caller ends the process */

uint64_t random_below(uint64_t n);

#endif
