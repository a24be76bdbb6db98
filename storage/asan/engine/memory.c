/* Mounts of disks in memory. See memory.h. */
#include "storage/asan/engine/memory.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"
#include "base/id.h"
#include "base/log.h"
#include "cluster/copies.h"

LOG_MODULE("asan");

static bool is_mounted(const char *path)
{
    struct stat here, above;
    char *up = xasprintf("%s/..", path);
    bool yes = stat(path, &here) == 0 && stat(up, &above) == 0 && here.st_dev != above.st_dev;
    free(up);
    return yes;
}

static bool is_tmpfs(const char *path)
{
    struct statfs s;
    return statfs(path, &s) == 0 && s.f_type == TMPFS_MAGIC;
}

int memory_mount(const char *path, uint64_t bytes, struct err *e)
{
    char options[64];
    int rc = file_mkdirs(path, 0700, e);
    if (rc)
        return rc;
    if (is_mounted(path))
        return is_tmpfs(path) ? E_OK : err_set(e, E_CONFLICT, "something else than memory is mounted at %s: unmount it", path);
    snprintf(options, sizeof options, "size=%" PRIu64 ",mode=0700", bytes);
    if (mount("cohort-memory", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options))
        return err_sys(e, errno, "mount %" PRIu64 " MiB of memory at %s", bytes >> 20, path);
    log_info("%s: %" PRIu64 " MiB of memory mounted, empty", path, bytes >> 20);
    return E_OK;
}

void memory_unmount(const char *path)
{
    while (is_mounted(path)) /* detached, should something still have a file open: its memory is given back with the last one */
        if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)) {
            log_warn("unmount %s: %s", path, strerror(errno));
            return;
        }
    if (rmdir(path) && errno != ENOENT)
        log_warn("remove %s: %s", path, strerror(errno));
}

void memory_sweep(const char *dir, const struct cdb_view *v, const char *node)
{
    DIR *d = opendir(dir);
    struct dirent *f;
    struct id id;
    while (d && (f = readdir(d))) {
        const struct cdb_disk *row = cdb_disk_get(v, f->d_name);
        if (!id_parse(f->d_name, &id) || (row && !strcmp(row->node, node) && !strcmp(row->medium, CLASS_MEMORY)))
            continue;
        char *path = xasprintf("%s/%s", dir, f->d_name);
        log_info("%s: its disk was removed", path);
        memory_unmount(path);
        free(path);
    }
    if (d)
        closedir(d);
}
