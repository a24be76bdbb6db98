/* guestd: the service inside Cohort's Debian test guest, and the witness of what its disk promised.
 *
 * Writer 0 puts a numbered, checksummed 4 KiB record on /dev/vda every 100 ms; writers 1..8 (off until
 * GET /load?writers=N) do so as fast as the disk lets them. A number counts as written only when fdatasync has returned
 * for it; that is what /last reports and what must survive any crash of any node.
 *
 * Disk: every writer has its own ring of 4 KiB slots; record `seq` is at slot `seq % slots`.
 *
 *     1 MiB        33 MiB         49 MiB …
 *     | writer 0   | writer 1     | writer 2 …
 *
 * On boot every ring is scanned and its writer goes on after the highest valid record.
 *
 * HTTP on port 80, one thread per request:
 *     GET /                          counter, host name, uptime
 *     GET /last                      numbers whose fdatasync returned, errors, boot id
 *     GET /verify?upto=N[&writer=W]  reads the disk (O_DIRECT) and checks every record 1..N that the ring can still hold:
 *                                    its slot must hold N or a later lap of the ring, with a good checksum
 *     GET /load?writers=N            0..8 writers without a pause
 */
#define _GNU_SOURCE /* O_DIRECT, accept4 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    RECORD = 4096,
    RING0_AT = 1 << 20,
    RING0_SLOTS = 8192,
    LOAD_SLOTS = 4096,
    LOAD_BATCH = 8, /* records per fdatasync of a load writer, 1..LOAD_BATCH */
    WRITERS = 9,
    PERIOD_MS = 100,
    READ_BATCH = 256, /* records per read of scan and verify */
};

struct record {
    char magic[8];
    uint64_t seq;
    uint32_t writer, pad;
    uint64_t time_ns;
    char boot_id[40];
    uint64_t sum; /* FNV-1a over the record with sum = 0 */
    uint64_t body[(RECORD - 80) / 8];
};
_Static_assert(sizeof(struct record) == RECORD, "one slot");

struct writer {
    int index;
    uint64_t at, slots;
    pthread_mutex_t lock;     /* held while slots change, so that verify never reads half a write */
    _Atomic uint64_t last;    /* highest number whose fdatasync returned */
    _Atomic bool on;
};

static struct writer writers[WRITERS];
static int n_writers; /* that fit on the disk */
static int disk = -1;
static _Atomic uint64_t io_errors;
static char boot_id[40], host_name[64];

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&t, NULL);
}

static void *aligned(size_t n)
{
    void *p = aligned_alloc(4096, n);

    if (!p) {
        perror("guestd: memory");
        exit(1);
    }
    memset(p, 0, n);
    return p;
}

static uint64_t fnv(const void *data, size_t n)
{
    const uint64_t *p = data;
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < n / 8; i++)
        h = (h ^ p[i]) * 0x100000001b3u, h ^= h >> 32;
    return h;
}

static void record_fill(struct record *r, int writer, uint64_t seq)
{
    uint64_t x = seq * 0x9e3779b97f4a7c15u + (uint64_t)writer;

    memset(r, 0, offsetof(struct record, body));
    memcpy(r->magic, "COHORTr1", 8);
    r->seq = seq;
    r->writer = (uint32_t)writer;
    r->time_ns = now_ns(CLOCK_REALTIME);
    memcpy(r->boot_id, boot_id, sizeof r->boot_id);
    for (size_t i = 0; i < sizeof r->body / 8; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        r->body[i] = x;
    }
    r->sum = fnv(r, sizeof *r);
}

static bool record_valid(struct record *r, int writer)
{
    uint64_t sum = r->sum;
    bool ok;

    if (memcmp(r->magic, "COHORTr1", 8) || r->writer != (uint32_t)writer)
        return false;
    r->sum = 0;
    ok = fnv(r, sizeof *r) == sum;
    r->sum = sum;
    return ok;
}

static void count_error(const char *what, const struct writer *w)
{
    io_errors++;
    printf("guestd: %s, writer %d: %s\n", what, w->index, strerror(errno));
}

/* Numbers first..first+n-1, which must not wrap the ring. Durable when it returns true. */
static bool put(struct writer *w, struct record *buf, uint64_t first, unsigned n)
{
    off_t at = (off_t)(w->at + first % w->slots * RECORD);
    bool ok = true;

    for (unsigned i = 0; i < n; i++)
        record_fill(&buf[i], w->index, first + i);
    pthread_mutex_lock(&w->lock);
    if (pwrite(disk, buf, (size_t)n * RECORD, at) != (ssize_t)n * RECORD) {
        count_error("write", w);
        ok = false;
    }
    pthread_mutex_unlock(&w->lock);
    if (ok && fdatasync(disk)) {
        count_error("fdatasync", w);
        ok = false;
    }
    return ok;
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    struct record *buf = aligned(LOAD_BATCH * RECORD);
    uint64_t next = w->last + 1;

    for (;;) {
        uint64_t start = now_ns(CLOCK_MONOTONIC), left = w->slots - next % w->slots;
        unsigned n = w->index ? 1 + (unsigned)(next % LOAD_BATCH) : 1;

        if (!w->on) {
            sleep_ms(PERIOD_MS / 2);
            continue;
        }
        if (n > left)
            n = (unsigned)left;
        if (put(w, buf, next, n)) {
            next += n;
            w->last = next - 1;
        } else {
            sleep_ms(PERIOD_MS); /* the same numbers again */
        }
        if (w->index == 0) {
            int64_t spent_ms = (int64_t)(now_ns(CLOCK_MONOTONIC) - start) / 1000000;

            if (spent_ms < PERIOD_MS)
                sleep_ms(PERIOD_MS - (int)spent_ms);
        }
    }
    return NULL;
}

/* Calls `each` for every slot of the ring. The lock is held per batch only, so that the writer goes on in between. */
static bool ring_each(struct writer *w, void (*each)(struct writer *, uint64_t slot, struct record *, void *), void *arg)
{
    struct record *buf = aligned(READ_BATCH * RECORD);
    bool ok = true;

    for (uint64_t slot = 0; slot < w->slots && ok; slot += READ_BATCH) {
        pthread_mutex_lock(&w->lock);
        if (pread(disk, buf, READ_BATCH * RECORD, (off_t)(w->at + slot * RECORD)) != READ_BATCH * RECORD) {
            count_error("read", w);
            ok = false;
        }
        pthread_mutex_unlock(&w->lock);
        for (uint64_t i = 0; ok && i < READ_BATCH; i++)
            each(w, slot + i, &buf[i], arg);
    }
    free(buf);
    return ok;
}

static void scan_slot(struct writer *w, uint64_t slot, struct record *r, void *arg)
{
    uint64_t *highest = arg;

    if (record_valid(r, w->index) && r->seq % w->slots == slot && r->seq > *highest)
        *highest = r->seq;
}

struct verify {
    uint64_t from, upto, good, bad, first_bad;
};

static void verify_slot(struct writer *w, uint64_t slot, struct record *r, void *arg)
{
    struct verify *v = arg;
    uint64_t want = v->upto - (v->upto + w->slots - slot) % w->slots; /* highest number <= upto that lives in this slot */

    if (v->upto < slot || want < v->from || want == 0)
        return;
    if (record_valid(r, w->index) && r->seq % w->slots == slot && r->seq >= want) {
        v->good++;
        return;
    }
    v->bad++;
    if (!v->first_bad || want < v->first_bad)
        v->first_bad = want;
}

static bool disk_open(const char *path)
{
    uint64_t bytes = 0, at = RING0_AT;

    disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes)) {
        printf("guestd: %s: %s\n", path, strerror(errno));
        return false;
    }
    for (int i = 0; i < WRITERS; i++) {
        struct writer *w = &writers[i];
        uint64_t highest = 0;

        w->index = i;
        w->slots = i ? LOAD_SLOTS : RING0_SLOTS;
        w->at = at;
        at += w->slots * RECORD;
        if (at > bytes)
            break;
        pthread_mutex_init(&w->lock, NULL);
        while (!ring_each(w, scan_slot, &highest))
            sleep_ms(PERIOD_MS);
        w->last = highest;
        w->on = i == 0;
        n_writers = i + 1;
    }
    if (!n_writers)
        printf("guestd: %s has %" PRIu64 " bytes, needs at least %d\n", path, bytes, RING0_AT + RING0_SLOTS * RECORD);
    return n_writers > 0;
}

/* ---- HTTP ---- */

static uint64_t query_number(const char *query, const char *name, uint64_t otherwise)
{
    size_t n = strlen(name);

    for (const char *p = query; p; p = strchr(p, '&') ? strchr(p, '&') + 1 : NULL)
        if (!strncmp(p, name, n) && p[n] == '=')
            return strtoull(p + n + 1, NULL, 10);
    return otherwise;
}

static const char *page_status(FILE *out)
{
    fprintf(out, "{\"counter\":%" PRIu64 ",\"hostname\":\"%s\",\"uptime_s\":%.1f}\n", (uint64_t)writers[0].last, host_name,
            (double)now_ns(CLOCK_BOOTTIME) / 1e9);
    return "200 OK";
}

static const char *page_last(FILE *out)
{
    fprintf(out, "{\"last\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"boot_id\":\"%s\",\"writers\":[",
            (uint64_t)writers[0].last, (uint64_t)io_errors, boot_id);
    for (int i = 0; i < n_writers; i++)
        fprintf(out, "%s%" PRIu64, i ? "," : "", (uint64_t)writers[i].last);
    fprintf(out, "]}\n");
    return "200 OK";
}

static const char *page_verify(FILE *out, const char *query)
{
    uint64_t index = query_number(query, "writer", 0);
    struct verify v = {0};
    bool read_ok;

    if (index >= (uint64_t)n_writers) {
        fprintf(out, "{\"message\":\"writer must be below %d\"}\n", n_writers);
        return "400 Bad Request";
    }
    v.upto = query_number(query, "upto", writers[index].last);
    v.from = v.upto > writers[index].slots ? v.upto - writers[index].slots + 1 : 1;
    read_ok = ring_each(&writers[index], verify_slot, &v);
    fprintf(out,
            "{\"ok\":%s,\"writer\":%" PRIu64 ",\"from\":%" PRIu64 ",\"upto\":%" PRIu64 ",\"good\":%" PRIu64
            ",\"bad\":%" PRIu64 ",\"first_bad\":%" PRIu64 ",\"read_ok\":%s}\n",
            read_ok && !v.bad && (!v.upto || v.good == v.upto - v.from + 1) ? "true" : "false", index, v.from, v.upto,
            v.good, v.bad, v.first_bad, read_ok ? "true" : "false");
    return "200 OK";
}

static const char *page_load(FILE *out, const char *query)
{
    uint64_t n = query_number(query, "writers", 0);

    if (n >= (uint64_t)n_writers) {
        fprintf(out, "{\"message\":\"this disk has room for %d load writers\"}\n", n_writers - 1);
        return "400 Bad Request";
    }
    for (int i = 1; i < n_writers; i++)
        writers[i].on = (uint64_t)i <= n;
    fprintf(out, "{\"writers\":%" PRIu64 "}\n", n);
    return "200 OK";
}

static const char *page(const char *path, const char *query, FILE *out)
{
    if (!strcmp(path, "/"))
        return page_status(out);
    if (!strcmp(path, "/last"))
        return page_last(out);
    if (!strcmp(path, "/verify"))
        return page_verify(out, query);
    if (!strcmp(path, "/load"))
        return page_load(out, query);
    fprintf(out, "{\"message\":\"no such page; there are / /last /verify /load\"}\n");
    return "404 Not Found";
}

static void send_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);

        if (k <= 0)
            return;
        p += k, n -= (size_t)k;
    }
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char req[2048], head[256], *path, *query = NULL, *body = NULL;
    const char *status;
    size_t n = 0, body_len = 0;
    FILE *out;

    while (n < sizeof req - 1) {
        ssize_t k = recv(fd, req + n, sizeof req - 1 - n, 0);

        if (k <= 0)
            goto out;
        n += (size_t)k;
        req[n] = 0;
        if (strstr(req, "\r\n\r\n"))
            break;
    }
    if (strncmp(req, "GET ", 4) || !strchr(req + 4, ' '))
        goto out;
    path = req + 4;
    *strchr(path, ' ') = 0;
    if ((query = strchr(path, '?')))
        *query++ = 0;
    if (!(out = open_memstream(&body, &body_len)))
        goto out;
    status = page(path, query, out);
    fclose(out);
    n = (size_t)snprintf(head, sizeof head,
                         "HTTP/1.0 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
                         status, body_len);
    send_all(fd, head, n);
    send_all(fd, body, body_len);
out:
    free(body);
    close(fd);
    return NULL;
}

static void serve_forever(int listener)
{
    pthread_attr_t attr;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 128 * 1024);
    for (;;) {
        struct timeval patience = {.tv_sec = 5};
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t t;

        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (pthread_create(&t, &attr, serve, (void *)(intptr_t)fd))
            close(fd);
    }
}

/* ---- the ACPI power button ---- */

static void *power_button(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct input_event ev;

    while (read(fd, &ev, sizeof ev) == sizeof ev) {
        if (ev.type == EV_KEY && ev.code == KEY_POWER && ev.value == 1) {
            printf("guestd: power button\n");
            sync();
            reboot(RB_POWER_OFF);
        }
    }
    return NULL;
}

static void watch_power_buttons(void)
{
    for (int i = 0; i < 8; i++) {
        unsigned char keys[KEY_MAX / 8 + 1] = {0};
        char path[32];
        pthread_t t;
        int fd;

        snprintf(path, sizeof path, "/dev/input/event%d", i);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof keys), keys) >= 0 && keys[KEY_POWER / 8] >> KEY_POWER % 8 & 1 &&
            !pthread_create(&t, NULL, power_button, (void *)(intptr_t)fd))
            continue;
        close(fd);
    }
}

static int listen_http(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(80)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, 64)) {
        perror("guestd: port 80");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/dev/vda";
    int load = argc > 2 ? atoi(argv[2]) : 0, fd;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    if (!f || fscanf(f, "%39s", boot_id) != 1)
        strcpy(boot_id, "unknown");
    if (f)
        fclose(f);
    gethostname(host_name, sizeof host_name - 1);
    watch_power_buttons();
    if (!disk_open(path))
        printf("guestd: no usable disk, serving without one\n"); /* the pages still tell so: counter 0 */
    for (int i = 0; i < n_writers; i++) {
        pthread_t t;

        if (i && i <= load)
            writers[i].on = true;
        if (pthread_create(&t, NULL, writer_main, &writers[i])) {
            perror("guestd: thread");
            return 1;
        }
    }
    fd = listen_http();
    if ((f = fopen("/run/guestd.ready", "w")))
        fclose(f);
    serve_forever(fd);
}
