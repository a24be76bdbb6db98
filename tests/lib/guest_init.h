/* What the init of a test or benchmark guest does first: static programs, which link nothing of ours. */
#ifndef COHORT_TESTS_GUEST_INIT_H
#define COHORT_TESTS_GUEST_INIT_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Mounts what every program expects and loads the modules of the guest image; `tag` begins what it says on the console. */
static inline void guest_begin(const char *tag)
{
    char line[256], path[300];
    setvbuf(stdout, NULL, _IOLBF, 0);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    FILE *f = fopen("/lib/modules/order", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        snprintf(path, sizeof path, "/lib/modules/%s", line);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            printf("%s module %s: %s\n", tag, path, strerror(errno));
    }
}

/* Descriptor for direct I/O; -1: it did not appear within 5 s. */
static inline int guest_open_disk(const char *path)
{
    int fd = -1;
    for (int i = 0; i < 500 && fd < 0; i++) { /* the device appears when its probe is through */
        fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (fd < 0)
            usleep(10000);
    }
    return fd;
}

#endif
