/* What `image import` sends. See image_files.h. */
#include "cli/image_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The directory's only file that is called `name` or, failing that, begins with `prefix`. 1 found, 0 none, -1 several. */
static int find(const char *dir, const char *name, const char *prefix, char path[PATH_MAX])
{
    int found = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        bool exact = strcmp(e->d_name, name) == 0;
        if (!exact && (!prefix || strncmp(e->d_name, prefix, strlen(prefix)) != 0))
            continue;
        snprintf(path, PATH_MAX, "%s/%s", dir, e->d_name);
        found++;
        if (exact) {
            found = 1;
            break;
        }
    }
    if (d)
        closedir(d);
    return found > 1 ? -1 : found;
}

static int measure(struct image_file *file, struct fail *f)
{
    struct stat st;
    if (stat(file->path, &st) < 0)
        return fail_set(f, EXIT_USAGE, "%s: %s", file->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return fail_set(f, EXIT_USAGE, "%s is no regular file", file->path);
    if (st.st_size == 0)
        return fail_set(f, EXIT_USAGE, "%s is empty", file->path);
    file->size = st.st_size;
    return EXIT_DONE;
}

static int kernel_image(const char *dir, struct image_files *out, struct fail *f)
{
    static const struct { const char *name, *prefix, *hint; } parts[] = {
        {"kernel", "vmlinuz", "it must hold a Linux kernel called kernel or vmlinuz*; a raw disk is imported as a file"},
        {"initrd", "initrd", "it must hold an initial RAM file system called initrd*"},
        {"cmdline", NULL, NULL},
    };
    out->kind = "kernel";
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        struct image_file *file = &out->file[out->n];
        int found = find(dir, parts[i].name, parts[i].prefix, file->path);
        if (found < 0) {
            fail_set(f, EXIT_USAGE, "%s holds several files %s*", dir, parts[i].prefix);
            fail_hint(f, "leave one, or call the right one %s", parts[i].name);
            return EXIT_USAGE;
        }
        if (!found && parts[i].hint) {
            fail_set(f, EXIT_USAGE, "%s: there is no %s in it", dir, parts[i].name);
            fail_hint(f, "%s", parts[i].hint);
            return EXIT_USAGE;
        }
        if (!found)
            continue;
        file->name = parts[i].name;
        out->n++;
        if (measure(file, f) != EXIT_DONE)
            return EXIT_USAGE;
    }
    return EXIT_DONE;
}

int image_files_find(const char *path, struct image_files *ret, struct fail *f)
{
    struct stat st;
    *ret = (struct image_files){0};
    if (strlen(path) > PATH_MAX - NAME_MAX - 2)
        return fail_set(f, EXIT_USAGE, "the path is too long");
    if (stat(path, &st) < 0) {
        fail_set(f, EXIT_USAGE, "%s: %s", path, strerror(errno));
        fail_hint(f, "give a raw disk image, or a directory with kernel, initrd and, if needed, cmdline");
        return EXIT_USAGE;
    }
    if (S_ISDIR(st.st_mode))
        return kernel_image(path, ret, f);
    ret->kind = "disk";
    ret->n = 1;
    ret->file[0].name = "disk";
    snprintf(ret->file[0].path, PATH_MAX, "%s", path);
    int rc = measure(&ret->file[0], f);
    if (rc == EXIT_DONE && ret->file[0].size % 512) {
        rc = fail_set(f, EXIT_USAGE, "%s is not a raw disk: its size is no multiple of 512 bytes", path);
        fail_hint(f, "convert it first: qemu-img convert -O raw FILE disk.raw");
    }
    return rc;
}
