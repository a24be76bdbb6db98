/* init of the guest in test_front_qemu.py: loads the virtio modules of the guest image and tortures /dev/vda.
 *
 * Every 4 KiB block written holds its number, a generation and bytes derived from both, so that a lost, torn, misplaced or
 * repeated-too-late write is seen. Several threads write, discard and read back at random in areas of their own, with
 * O_DIRECT, for as long as told; at the end everything is verified once more. Any error of the device fails the test.
 * Kernel command line: front.seconds=N front.threads=N. Prints "FRONT ..." lines on the console. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>
#include "tests/lib/guest_init.h"

#define BLOCK 4096
#define BATCH_MAX 64 /* blocks of one request: 256 KiB */

static uint64_t n_blocks;
static unsigned seconds = 10, n_threads = 4;
static char disk_path[] = "/dev/vda";
static char last_block[BLOCK] __attribute__((aligned(BLOCK)));

struct worker {
    pthread_t thread;
    unsigned index;
    uint64_t first, count;
    uint32_t *gen; /* per block: 0 = must read as zeroes */
    uint64_t rng, ops, errors;
    int fd;
};

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void fill(uint64_t *p, uint64_t block, uint32_t gen)
{
    for (unsigned i = 0; i < BLOCK / 8; i++)
        p[i] = gen ? (block << 32 | gen) * 0x9e3779b97f4a7c15ull + i : 0;
}

static void fail(struct worker *w, const char *what, uint64_t block)
{
    printf("FRONT ERROR worker %u: %s at block %llu: %s\n", w->index, what, (unsigned long long)block, strerror(errno));
    w->errors++;
}

static void verify(struct worker *w, uint64_t at, unsigned n, char *buf)
{
    uint64_t want[BLOCK / 8];
    errno = 0;
    if (pread(w->fd, buf, (size_t)n * BLOCK, (off_t)((w->first + at) * BLOCK)) != (ssize_t)n * BLOCK) {
        fail(w, "read", w->first + at);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        fill(want, w->first + at + i, w->gen[at + i]);
        if (memcmp(want, buf + (size_t)i * BLOCK, BLOCK)) {
            errno = 0;
            fail(w, "wrong content", w->first + at + i);
        }
    }
}

static void change(struct worker *w, uint64_t at, unsigned n, char *buf, unsigned how)
{
    uint64_t range[2] = {(w->first + at) * BLOCK, (uint64_t)n * BLOCK};
    static uint32_t generation = 1;
    uint32_t g = how < 8 ? __atomic_fetch_add(&generation, 1, __ATOMIC_RELAXED) : 0;
    for (unsigned i = 0; i < n; i++) {
        w->gen[at + i] = g;
        fill((uint64_t *)(buf + (size_t)i * BLOCK), w->first + at + i, g);
    }
    errno = 0;
    if (how == 8) {
        if (ioctl(w->fd, BLKDISCARD, range))
            fail(w, "discard", w->first + at);
    } else if (how == 9) {
        if (ioctl(w->fd, BLKZEROOUT, range))
            fail(w, "write zeroes", w->first + at);
    } else if (pwrite(w->fd, buf, (size_t)n * BLOCK, (off_t)range[0]) != (ssize_t)n * BLOCK) {
        fail(w, "write", w->first + at);
    }
    if (how == 0 && fsync(w->fd))
        fail(w, "fsync", w->first + at);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct timespec ts;
    char *buf;
    if (posix_memalign((void **)&buf, BLOCK, BATCH_MAX * BLOCK))
        abort();
    clock_gettime(CLOCK_MONOTONIC, &ts);
    for (time_t end = ts.tv_sec + seconds; ts.tv_sec < end && w->errors < 10; clock_gettime(CLOCK_MONOTONIC, &ts)) {
        uint64_t r = next_random(&w->rng);
        unsigned n = (r & 3) ? 1 : 1 + (unsigned)(r >> 8) % BATCH_MAX;
        uint64_t at = (r >> 20) % (w->count - n);
        if (r >> 4 & 1)
            change(w, at, n, buf, (unsigned)(r >> 56) % 10);
        else
            verify(w, at, n, buf);
        w->ops++;
    }
    for (uint64_t at = 0; at < w->count && w->errors < 10; at += BATCH_MAX)
        verify(w, at, (unsigned)(w->count - at < BATCH_MAX ? w->count - at : BATCH_MAX), buf);
    free(buf);
    return NULL;
}

static void read_cmdline(void)
{
    char text[2048] = {0};
    int fd = open("/proc/cmdline", O_RDONLY);
    if (read(fd, text, sizeof text - 1) < 0)
        return;
    for (char *p = strtok(text, " \n"); p; p = strtok(NULL, " \n"))
        if (sscanf(p, "front.seconds=%u", &seconds) != 1)
            (void)sscanf(p, "front.threads=%u", &n_threads);
}

static uint64_t run(int fd)
{
    struct worker *w = calloc(n_threads, sizeof *w);
    uint64_t ops = 0, errors = 0;
    for (unsigned i = 0; i < n_threads; i++) {
        w[i] = (struct worker){.index = i, .fd = fd, .count = n_blocks / n_threads, .rng = 88172645463325252ull + i};
        w[i].first = i * w[i].count;
        w[i].gen = calloc(w[i].count, sizeof *w[i].gen);
        pthread_create(&w[i].thread, NULL, work, &w[i]);
    }
    for (unsigned i = 0; i < n_threads; i++) {
        pthread_join(w[i].thread, NULL);
        ops += w[i].ops;
        errors += w[i].errors;
    }
    printf("FRONT done ops %llu errors %llu\n", (unsigned long long)ops, (unsigned long long)errors);
    return errors;
}

int main(void)
{
    guest_begin("FRONT");
    read_cmdline();
    int fd = guest_open_disk(disk_path);
    uint64_t bytes = 0;
    char serial[64] = {0};
    int sfd = open("/sys/block/vda/serial", O_RDONLY);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) || sfd < 0 || read(sfd, serial, sizeof serial - 1) < 0)
        printf("FRONT ERROR no disk: %s\n", strerror(errno));
    n_blocks = bytes / BLOCK;
    serial[strcspn(serial, "\n")] = 0;
    printf("FRONT start bytes %llu serial %s\n", (unsigned long long)bytes, serial);
    if (n_blocks)
        run(fd);
    if (!ioctl(fd, BLKGETSIZE64, &bytes)) /* it may have grown meanwhile */
        printf("FRONT end bytes %llu last block %s\n", (unsigned long long)bytes,
               pread(fd, last_block, BLOCK, (off_t)bytes - BLOCK) == BLOCK ? "readable" : strerror(errno));
    reboot(RB_POWER_OFF);
    return 0;
}
