/* init of the guest in bench/vhost.py: reads and writes /dev/vda and /dev/vdb by turns with Linux AIO, O_DIRECT.
 *
 * Kernel command line: bench.seconds=N bench.rounds=N bench.jobs=TEXT (those with TEXT in their name). Prints "BENCH DISK JOB IOPS P50_US P99_US" per measurement. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "tests/lib/guest_init.h"

#define DEPTH_MAX 64
#define SAMPLES_MAX 400000
#define MIB (1u << 20)

static const struct job {
    const char *name;
    unsigned depth, bytes;
    int write, random;
} jobs[] = {
    {"randwrite-4k-qd1", 1, 4096, 1, 1},  {"randwrite-4k-qd32", 32, 4096, 1, 1}, {"randread-4k-qd1", 1, 4096, 0, 1},
    {"randread-4k-qd32", 32, 4096, 0, 1}, {"write-1m-qd4", 4, MIB, 1, 0},        {"read-1m-qd4", 4, MIB, 0, 0},
};

static unsigned seconds = 3, rounds = 3;
static char only[32]; /* "": all */
static uint32_t samples[SAMPLES_MAX];
static uint64_t rng = 88172645463325252ull;

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t next_random(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

struct slot {
    struct iocb cb;
    uint64_t started;
};

static uint64_t cursor;

static void submit(aio_context_t ctx, struct slot *s, int fd, char *buf, const struct job *j, uint64_t bytes)
{
    uint64_t blocks = bytes / j->bytes;
    s->cb = (struct iocb){.aio_data = (uintptr_t)s, .aio_lio_opcode = j->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                          .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)buf, .aio_nbytes = j->bytes};
    s->cb.aio_offset = (int64_t)((j->random ? next_random() : cursor++) % blocks * j->bytes);
    s->started = now_us();
    struct iocb *one = &s->cb;
    if (syscall(SYS_io_submit, ctx, 1, &one) != 1)
        printf("BENCH ERROR submit: %s\n", strerror(errno));
}

static void measure(const char *disk, int fd, uint64_t bytes, const struct job *j, char *buf)
{
    static struct slot slot[DEPTH_MAX];
    struct io_event ev[DEPTH_MAX];
    aio_context_t ctx = 0;
    uint64_t begin = now_us(), end = begin + seconds * 1000000ull, done = 0, n = 0;
    unsigned flying = 0;
    cursor = 0;
    if (syscall(SYS_io_setup, DEPTH_MAX, &ctx))
        printf("BENCH ERROR io_setup: %s\n", strerror(errno));
    for (; flying < j->depth; flying++)
        submit(ctx, &slot[flying], fd, buf + (size_t)flying * j->bytes, j, bytes);
    while (flying) {
        long got = syscall(SYS_io_getevents, ctx, 1, DEPTH_MAX, ev, NULL);
        uint64_t now = now_us();
        for (long i = 0; i < got; i++) {
            struct slot *s = (struct slot *)(uintptr_t)ev[i].data;
            if (ev[i].res != (int64_t)j->bytes)
                printf("BENCH ERROR %s: %lld\n", j->name, (long long)ev[i].res);
            if (n < SAMPLES_MAX)
                samples[n++] = (uint32_t)(now - s->started);
            if (now < end) {
                done++;
                submit(ctx, s, fd, buf + (size_t)(s - slot) * j->bytes, j, bytes);
            } else {
                flying--;
            }
        }
    }
    syscall(SYS_io_destroy, ctx);
    qsort(samples, n, sizeof samples[0], by_value);
    printf("BENCH %s %s %.1f %u %u\n", disk, j->name, (double)done * 1e6 / (double)(end - begin), samples[n / 2], samples[n * 99 / 100]);
}

static void read_cmdline(void)
{
    char text[2048] = {0};
    int fd = open("/proc/cmdline", O_RDONLY);
    if (read(fd, text, sizeof text - 1) < 0)
        return;
    for (char *p = strtok(text, " \n"); p; p = strtok(NULL, " \n"))
        if (sscanf(p, "bench.seconds=%u", &seconds) != 1 && sscanf(p, "bench.rounds=%u", &rounds) != 1)
            (void)sscanf(p, "bench.jobs=%31s", only);
}

int main(void)
{
    static const char *const disk[] = {"vda", "vdb"};
    uint64_t bytes[2] = {0};
    int fd[2];
    char *buf = NULL;
    guest_begin("BENCH");
    read_cmdline();
    if (posix_memalign((void **)&buf, 4096, 4 * MIB))
        abort();
    for (size_t i = 0; i < 4 * MIB; i += 8)
        *(uint64_t *)(buf + i) = next_random();
    for (int k = 0; k < 2; k++) {
        char path[16];
        snprintf(path, sizeof path, "/dev/%s", disk[k]);
        fd[k] = guest_open_disk(path);
        if (fd[k] < 0 || ioctl(fd[k], BLKGETSIZE64, &bytes[k]))
            printf("BENCH ERROR %s: %s\n", path, strerror(errno));
        for (uint64_t at = 0; at < bytes[k]; at += MIB) /* every block is there before anything is measured */
            if (pwrite(fd[k], buf, MIB, (off_t)at) != MIB)
                printf("BENCH ERROR fill %s: %s\n", path, strerror(errno));
    }
    printf("BENCH filled\n");
    for (unsigned r = 0; r < rounds; r++)
        for (unsigned j = 0; j < sizeof jobs / sizeof jobs[0]; j++)
            for (unsigned i = 0; i < 2 && strstr(jobs[j].name, only); i++) {
                unsigned k = (i + r) % 2; /* who comes first alternates: what the one before leaves behind, both meet */
                measure(disk[k], fd[k], bytes[k], &jobs[j], buf);
            }
    printf("BENCH done\n");
    reboot(RB_POWER_OFF);
    return 0;
}
