/* What `image import` sends: a directory with kernel, initrd and cmdline, or a raw disk. Looks at the file system only. */
#ifndef COHORT_CLI_IMAGE_FILES_H
#define COHORT_CLI_IMAGE_FILES_H

#include <limits.h>
#include "cli/cli.h"

#define IMAGE_FILES_MAX 3

struct image_file {
    const char *name;    /* the API's word: kernel, initrd, cmdline, disk */
    char path[PATH_MAX];
    int64_t size;
};
struct image_files {
    const char *kind; /* kernel, disk */
    int n;
    struct image_file file[IMAGE_FILES_MAX];
};

/* EXIT_USAGE with what is missing, and a hint. */
int image_files_find(const char *path, struct image_files *ret, struct fail *f);

#endif
