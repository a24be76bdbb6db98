/* The control socket: one command a line, one line of answer ("ok …" or "error …").
 *
 *     mount                 with a descriptor of /dev/fuse (SCM_RIGHTS) that the node has mounted
 *     freeze                the power fails: from here on nothing is answered and nothing becomes durable
 *     powercut              (after freeze) drops and tears what was not synced, answers, and ends this process
 *     eio|stall|ok [DISK]   requests fail | wait | are served; `ok` also ends slow, full and size
 *     slow MS [DISK]        every request takes MS longer
 *     full [DISK]           no free byte from here on;  size BYTES [DISK]: as if the disk had that size
 *     status                JSON
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "deploy/lossyfs/lossyfs.h"

struct request { char *word[4]; int words, fd; };

void power_cut(void)
{
    struct node *n;
    fs.frozen = true;
    tree_cut();
    LIST_FOREACH (n, &fs.nodes, entry)
        if (!n->dir)
            data_cut(n);
}

static void set_fault(struct disk *d, const char *what, uint64_t number)
{
    if (!strcmp(what, "ok"))
        *d = (struct disk){.name = d->name};
    else if (!strcmp(what, "eio"))
        d->fault = FAULT_EIO;
    else if (!strcmp(what, "stall"))
        d->fault = FAULT_STALL;
    else if (!strcmp(what, "slow"))
        d->slow_ms = (unsigned)number;
    else
        d->limit_bytes = number ? number : disk_used(d);
}

static const char *fault(const struct request *r)
{
    bool numbered = !strcmp(r->word[0], "slow") || !strcmp(r->word[0], "size");
    const char *name = r->words > 1 + numbered ? r->word[1 + numbered] : NULL;
    char *end = NULL;
    uint64_t number = numbered && r->words > 1 ? strtoull(r->word[1], &end, 10) : 0;
    bool any = false;
    if (numbered && (!end || *end || end == r->word[1] || (!strcmp(r->word[0], "slow") && number > 60000) || (number == 0 && r->word[0][1] == 'i')))
        return "error a number is needed: slow 0 to 60000 (ms), size 1 or more (bytes)";
    for (unsigned i = 0; i < fs.n_disks; i++)
        if (!name || !strcmp(fs.disk[i].name, name)) {
            set_fault(&fs.disk[i], r->word[0], number);
            any = true;
        }
    pthread_cond_broadcast(&fs.changed);
    return any ? "ok" : "error no such disk";
}

static void status(FILE *out)
{
    static const char *const names[] = {"none", "eio", "stall"};
    struct node *n;
    fprintf(out, "ok {\"unsynced_names\":%u,\"disks\":[", fs.n_ops);
    for (unsigned i = 0; i < fs.n_disks; i++) {
        const struct disk *d = &fs.disk[i];
        uint64_t unsynced = 0;
        LIST_FOREACH (n, &fs.nodes, entry)
            if (n->disk == d && !n->dir)
                unsynced += data_unsynced(n);
        fprintf(out, "%s{\"name\":\"%s\",\"fault\":\"%s\",\"slow_ms\":%u,\"limit_bytes\":%llu,\"used_bytes\":%llu,\"unsynced_bytes\":%llu}",
                i ? "," : "", d->name, names[d->fault], d->slow_ms, (unsigned long long)d->limit_bytes,
                (unsigned long long)disk_used(d), (unsigned long long)unsynced);
    }
    fprintf(out, "]}\n");
}

static const char *take_mount(struct request *r)
{
    if (r->fd < 0)
        return "error a descriptor must come with it";
    if (fs.mount_fd >= 0)
        return "error mounted already";
    fs.mount_fd = r->fd;
    r->fd = -1;
    pthread_cond_broadcast(&fs.changed);
    return "ok";
}

/* NULL: power cut, the process ends after the answer. */
static const char *obey(struct request *r, FILE *out)
{
    static const char *const faults[] = {"eio", "stall", "slow", "full", "size", "ok"};
    const char *what = r->words > 0 ? r->word[0] : "";
    if (!strcmp(what, "mount"))
        return take_mount(r);
    if (!strcmp(what, "freeze")) {
        fs.frozen = true;
        return "ok";
    }
    if (!strcmp(what, "powercut")) {
        power_cut();
        return NULL;
    }
    if (!strcmp(what, "status")) {
        status(out);
        return "";
    }
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (!strcmp(what, faults[i]))
            return fault(r);
    return "error no such command; there are mount freeze powercut eio stall slow full size ok status";
}

/* The first message of a connection is the whole command. */
static bool receive(int s, char *line, size_t room, struct request *r)
{
    union { char b[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct iovec iov = {line, room - 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.b, .msg_controllen = sizeof control.b};
    char *rest = line, *word;
    ssize_t n = recvmsg(s, &m, MSG_CMSG_CLOEXEC);
    *r = (struct request){.fd = -1};
    if (n <= 0)
        return false;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(&r->fd, CMSG_DATA(c), sizeof r->fd);
    line[n] = '\0';
    while (r->words < 4 && (word = strsep(&rest, " \n")))
        if (*word)
            r->word[r->words++] = word;
    return true;
}

static void serve(int s)
{
    char line[256];
    struct request r;
    FILE *out = fdopen(s, "w");
    if (!out)
        return;
    if (receive(s, line, sizeof line, &r)) {
        pthread_mutex_lock(&fs.lock);
        const char *text = obey(&r, out);
        if (!text || *text)
            fprintf(out, "%s\n", text ? text : "ok");
        fflush(out);
        if (!text)
            _exit(0); /* with the lock held: not one request more. The kernel then ends those that wait */
        pthread_mutex_unlock(&fs.lock);
        if (r.fd >= 0)
            close(r.fd);
    }
    fclose(out);
}

static void *control_main(void *arg)
{
    int listener = (int)(intptr_t)arg;
    for (;;) {
        int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (s >= 0)
            serve(s);
        else if (errno != EINTR && errno != ECONNABORTED)
            return NULL;
    }
}

void control_start(int listener)
{
    pthread_t t;
    int rc = pthread_create(&t, NULL, control_main, (void *)(intptr_t)listener);
    if (rc != 0) {
        fprintf(stderr, "thread: %s\n", strerror(rc));
        exit(1);
    }
}
