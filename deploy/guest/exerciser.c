/* exerciser: random file operations checked against a model in memory, and against power cuts.
 *
 *     exerciser FILE RECORD_DEVICE RECORD_OFFSET SEED SECONDS
 *
 * Operation k of generation g is a function of (seed, g, k) alone: write, mapped write, read, mapped read, punch a hole,
 * truncate, extend, drop the cache, fsync, reopen. Every read is compared with the model. After a power cut the program
 * finds out from a record how far it had got, replays the operations in memory and compares the file: what an fsync had
 * promised must be there.
 *
 *     fsync of operation k returns -> record (g, k) to RECORD_DEVICE, O_DIRECT|O_DSYNC -> operation k + 1
 *
 * So when the record says k, the file holds k and perhaps a part of what follows up to the next fsync k2, never more: bytes
 * that no operation in (k, k2] touches must be those of the model after k, and the size must be one that occurred in [k, k2].
 * A generation ends with an fsync; the next one begins with an empty file, which leaves nothing to compare for that moment.
 *
 * Exit status: 0 in order, 1 wrong data, 2 an I/O error (or misuse).
 */
#define _GNU_SOURCE /* O_DIRECT, fallocate */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FILE_MAX = 2 << 20, OPS = 2000, PIECE_MAX = 96 << 10, RECORD = 512 };

enum kind { WRITE, MAP_WRITE, READ, MAP_READ, PUNCH, TRUNCATE, EXTEND, DROP_CACHE, SYNC, REOPEN };
static const char *const kind_name[] = {"write", "mapped write", "read", "mapped read", "punch", "truncate", "extend", "drop cache",
                                        "fsync", "reopen"};
static const unsigned char weight[] = {24, 10, 24, 10, 8, 4, 3, 4, 8, 5}; /* of 100 */

struct op {
    enum kind kind;
    uint64_t at, length; /* READ and MAP_*: within the file; TRUNCATE, EXTEND: `at` is the new size */
    uint64_t pattern;
};

struct record {
    char magic[8];
    uint64_t seed, generation, op, sum;
    uint8_t pad[RECORD - 40];
};
_Static_assert(sizeof(struct record) == RECORD, "one sector");

static uint8_t model[FILE_MAX], touched[FILE_MAX], got[FILE_MAX];
static uint64_t size, seed, generation;
static int fd = -1, record_fd = -1;
static off_t record_at;
static const char *path;

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33, x *= 0xff51afd7ed558ccdu, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

static void die_io(const char *what)
{
    printf("%s: %s: I/O error: %s\n", path, what, strerror(errno));
    exit(2);
}

/* ---- the operations, as functions of the model's size ---- */

static struct op op_at(uint64_t k)
{
    uint64_t r = mix(seed * 0x9e3779b97f4a7c15u + generation * 1000003 + k), dice = r % 100;
    struct op o = {.pattern = mix(r + 1) | 1};
    unsigned kind = 0;

    if (k == OPS)
        return (struct op){.kind = SYNC};
    for (unsigned sum = weight[0]; dice >= sum; sum += weight[kind])
        kind++;
    o.kind = kind;
    o.at = mix(r + 2) % FILE_MAX;
    o.length = 1 + mix(r + 3) % (mix(r + 4) % 4 ? 4096 : PIECE_MAX);
    if (mix(r + 5) % 3 == 0) /* block-aligned ones take other paths through a file system */
        o.at &= ~UINT64_C(4095), o.length = (o.length + 4095) & ~UINT64_C(4095);
    if (o.kind == TRUNCATE)
        o.at = size - mix(r + 2) % ((mix(r + 4) % 4 && size > PIECE_MAX ? PIECE_MAX : size) + 1);
    if (o.kind == EXTEND)
        o.at = size + mix(r + 2) % (FILE_MAX - size + 1);
    if (o.kind == TRUNCATE || o.kind == EXTEND)
        return o;
    if (o.kind != WRITE) /* within the file */
        o.at = size ? o.at % size : 0;
    uint64_t end = o.kind == WRITE ? FILE_MAX : size;
    if (o.length > end - o.at)
        o.length = end - o.at;
    return o;
}

static void fill(uint8_t *to, const struct op *o)
{
    uint64_t x = o->pattern;
    for (uint64_t i = 0; i < o->length; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(to + i, &x, o->length - i < 8 ? o->length - i : 8);
    }
}

static void to_model(const struct op *o)
{
    switch (o->kind) {
    case WRITE:
    case MAP_WRITE:
        fill(model + o->at, o);
        if (o->at + o->length > size)
            size = o->at + o->length;
        break;
    case PUNCH:
        memset(model + o->at, 0, o->length);
        break;
    case TRUNCATE:
    case EXTEND:
        if (o->at < size)
            memset(model + o->at, 0, size - o->at);
        size = o->at;
        break;
    default:
        break;
    }
}

/* ---- on the file ---- */

static void compare(const uint8_t *have, uint64_t at, uint64_t length, uint64_t k, const char *what)
{
    if (!memcmp(have, model + at, length))
        return;
    uint64_t i = 0;
    while (have[i] == model[at + i])
        i++;
    printf("%s: WRONG DATA: %s, generation %" PRIu64 " operation %" PRIu64 ": byte %" PRIu64 " of size %" PRIu64 " is %02x, must be %02x\n",
           path, what, generation, k, at + i, size, have[i], model[at + i]);
    exit(1);
}

static void map(const struct op *o, uint64_t k)
{
    uint64_t in = o->at % 4096;
    if (o->length == 0)
        return;
    uint8_t *m = mmap(NULL, in + o->length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(o->at - in));
    if (m == MAP_FAILED)
        die_io("mmap");
    if (o->kind == MAP_WRITE)
        memcpy(m + in, model + o->at, o->length);
    else
        compare(m + in, o->at, o->length, k, "mapped read");
    if (munmap(m, in + o->length))
        die_io("munmap");
}

static void put_record(uint64_t k)
{
    struct record *r = aligned_alloc(4096, 4096);
    if (!r)
        exit(2);
    memset(r, 0, sizeof *r);
    memcpy(r->magic, "COHORTx1", 8);
    r->seed = seed, r->generation = generation, r->op = k;
    r->sum = mix(seed ^ mix(generation ^ mix(k)));
    if (pwrite(record_fd, r, sizeof *r, record_at) != sizeof *r)
        die_io("record");
    free(r);
}

static void sync_file(void)
{
    if (fsync(fd))
        die_io("fsync");
}

static void open_file(void)
{
    if (fd >= 0)
        close(fd);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        die_io("open");
}

/* The model is already after `o`. */
static void to_file(const struct op *o, uint64_t k)
{
    switch (o->kind) {
    case WRITE:
        if (pwrite(fd, model + o->at, o->length, (off_t)o->at) != (ssize_t)o->length)
            die_io("write");
        break;
    case READ:
        if (pread(fd, got, o->length, (off_t)o->at) != (ssize_t)o->length)
            die_io("read");
        compare(got, o->at, o->length, k, "read");
        break;
    case MAP_WRITE:
    case MAP_READ:
        map(o, k);
        break;
    case PUNCH:
        if (o->length && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)o->at, (off_t)o->length))
            die_io("punch hole");
        break;
    case TRUNCATE:
    case EXTEND:
        if (ftruncate(fd, (off_t)o->at))
            die_io("truncate");
        break;
    case DROP_CACHE: /* only clean pages go, so that later reads come from the disk */
        sync_file();
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        break;
    case SYNC:
        sync_file();
        put_record(k);
        break;
    case REOPEN:
        open_file();
        break;
    }
}

static void whole_file(uint64_t k)
{
    struct stat st;
    if (fstat(fd, &st))
        die_io("stat");
    if ((uint64_t)st.st_size != size) {
        printf("%s: WRONG SIZE: generation %" PRIu64 " operation %" PRIu64 ": %" PRIu64 ", must be %" PRIu64 "\n", path, generation, k,
               (uint64_t)st.st_size, size);
        exit(1);
    }
    if (pread(fd, got, size, 0) != (ssize_t)size)
        die_io("read");
    compare(got, 0, size, k, "whole file");
}

/* ---- after a power cut ---- */

static bool get_record(uint64_t *ret_op)
{
    struct record *r = aligned_alloc(4096, 4096);
    if (!r || pread(record_fd, r, RECORD, record_at) != RECORD)
        die_io("record");
    bool ok = !memcmp(r->magic, "COHORTx1", 8) && r->sum == mix(r->seed ^ mix(r->generation ^ mix(r->op))) && r->seed == seed;
    if (ok)
        generation = r->generation, *ret_op = r->op;
    free(r);
    return ok;
}

/* Marks what the operations in (k, next fsync] may have changed, and the sizes that they passed through. */
static void mark_uncertain(uint64_t k, uint64_t *ret_min, uint64_t *ret_max)
{
    static uint8_t kept[FILE_MAX];
    uint64_t kept_size = size;
    memcpy(kept, model, FILE_MAX);
    *ret_min = *ret_max = size;
    for (k++;; k++) {
        struct op o = op_at(k);
        uint64_t old = size;
        if (o.kind == SYNC)
            break;
        to_model(&o);
        if (o.kind == WRITE || o.kind == MAP_WRITE || o.kind == PUNCH)
            memset(touched + o.at, 1, o.length);
        if (size != old) /* truncate, or growth: what lies between the two sizes */
            memset(touched + (size < old ? size : old), 1, size < old ? old - size : size - old);
        *ret_min = size < *ret_min ? size : *ret_min;
        *ret_max = size > *ret_max ? size : *ret_max;
    }
    memcpy(model, kept, FILE_MAX);
    size = kept_size;
}

static void recover(void)
{
    uint64_t k, smallest, largest, certain = 0;
    struct stat st;
    if (!get_record(&k)) {
        printf("%s: first start\n", path);
        return;
    }
    if (k == OPS) {
        printf("%s: cut between generations %" PRIu64 " and the next\n", path, generation);
        generation++;
        return;
    }
    for (uint64_t i = 1; i <= k; i++) {
        struct op o = op_at(i);
        to_model(&o);
    }
    mark_uncertain(k, &smallest, &largest);
    open_file();
    if (fstat(fd, &st))
        die_io("stat");
    if ((uint64_t)st.st_size < smallest || (uint64_t)st.st_size > largest) {
        printf("%s: LOST: size %" PRIu64 " after the cut; generation %" PRIu64 " operation %" PRIu64 " was synced, so %" PRIu64 " to %" PRIu64 "\n",
               path, (uint64_t)st.st_size, generation, k, smallest, largest);
        exit(1);
    }
    if (pread(fd, got, (size_t)st.st_size, 0) != st.st_size)
        die_io("read");
    for (uint64_t i = 0; i < (uint64_t)st.st_size && i < size; i++) {
        if (!touched[i] && got[i] != model[i]) {
            printf("%s: LOST: byte %" PRIu64 " of size %" PRIu64 " is %02x, generation %" PRIu64 " operation %" PRIu64 " was synced with %02x\n",
                   path, i, (uint64_t)st.st_size, got[i], generation, k, model[i]);
            exit(1);
        }
        certain += !touched[i];
    }
    printf("%s: after the cut: generation %" PRIu64 " operation %" PRIu64 " is there, %" PRIu64 " of %" PRIu64 " bytes had to be\n", path,
           generation, k, certain, (uint64_t)st.st_size);
    generation++;
}

static void run_generation(uint64_t *count, time_t end)
{
    uint64_t k = 0;
    memset(model, 0, sizeof model);
    size = 0;
    open_file();
    if (ftruncate(fd, 0))
        die_io("truncate");
    sync_file();
    put_record(0);
    while (k < OPS && (time(NULL) < end || k == 0)) {
        struct op o = op_at(++k);
        to_model(&o);
        to_file(&o, k);
        count[o.kind]++;
    }
    whole_file(k);
    generation++;
}

int main(int argc, char **argv)
{
    uint64_t count[REOPEN + 1] = {0};
    if (argc != 6) {
        fprintf(stderr, "usage: exerciser FILE RECORD_DEVICE RECORD_OFFSET SEED SECONDS\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    path = argv[1];
    record_fd = open(argv[2], O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (record_fd < 0)
        die_io(argv[2]);
    record_at = strtoll(argv[3], NULL, 10);
    seed = strtoull(argv[4], NULL, 10);
    time_t end = time(NULL) + atoi(argv[5]);
    recover();
    while (time(NULL) < end)
        run_generation(count, end);
    printf("%s: in order;", path);
    for (unsigned i = 0; i <= REOPEN; i++)
        printf(" %s %" PRIu64, kind_name[i], count[i]);
    printf("\n");
    return 0;
}
