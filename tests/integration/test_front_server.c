/* cohort-front-test: a volume in a file-backed mapping, served over vhost-user-blk and NBD, for tests of the front ends
 * with real peers. It may be killed and started again at any moment: the content stays in the file.
 *
 * cohort-front-test --file F --size BYTES [--vhost SOCKET] [--nbd SOCKET] [--tcp] [--delay MS] [--queues N] [--read-only]
 *     [--tls DIR (ca-cert.pem, server-cert.pem, server-key.pem)] [--client SHA256=none|ro|rw (a certificate that is not the CA's)]
 * Prints "ready" (with --tcp: "ready PORT"). SIGUSR1 parks the volume, SIGUSR2 resumes it, SIGHUP
 * lets a volume that began smaller (--start BYTES) grow to --size, SIGTERM ends in good order. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <uv.h>
#include "storage/asan/front/nbd.h"
#include "storage/asan/front/vhost.h"

static struct vol *vol;
static struct vhost_server *vhost;
static struct nbd_server *nbd;
static uv_signal_t sig_term, sig_park, sig_resume, sig_grow;
static uint64_t full_bytes; /* of the file */
static char known[NBD_CLIENT_HEX + 1];
static enum nbd_access known_access;
static int open_servers;

static void die(const char *what)
{
    fprintf(stderr, "cohort-front-test: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void find(void *arg, const char *client, const char *name, struct nbd_lookup *l)
{
    if (client && strcmp(name, "vol"))
        nbd_lookup_done(l, E_PERM, NULL, NULL);
    else if (!strcmp(name, "vol") || !*name)
        nbd_lookup_done(l, E_OK, vol, NULL);
    else
        nbd_lookup_done(l, E_NOTFOUND, NULL, "no such volume");
}

static void release(void *arg, struct vol *v)
{
}

static void list(void *arg, const char *client, struct nbd_list *l)
{
    if (!client || known_access)
        nbd_list_add(l, "vol");
}

static bool is_known(void *arg, const char *client)
{
    return !strcmp(client, known);
}

static enum nbd_access access_of(void *arg, const char *client, const struct vol *v)
{
    return known_access;
}

static void on_closed(void *arg)
{
    if (--open_servers)
        return;
    vol_mem_free(vol);
    uv_close((uv_handle_t *)&sig_term, NULL);
    uv_close((uv_handle_t *)&sig_park, NULL);
    uv_close((uv_handle_t *)&sig_resume, NULL);
    uv_close((uv_handle_t *)&sig_grow, NULL);
}

static void on_signal(uv_signal_t *h, int signo)
{
    if (signo == SIGUSR1 || signo == SIGUSR2) {
        vol_mem_park(vol, signo == SIGUSR1);
        return;
    }
    if (signo == SIGHUP) {
        vol->size_bytes = full_bytes;
        if (vhost)
            vhost_server_resized(vhost);
        return;
    }
    uv_signal_stop(&sig_term);
    vol_mem_park(vol, false);
    if (vhost) {
        struct vhost_stat st;
        vhost_server_stat(vhost, &st);
        printf("requests %llu resubmitted %llu drops %llu\n", (unsigned long long)st.requests,
               (unsigned long long)st.resubmitted, (unsigned long long)st.drops);
        vhost_server_close(vhost, on_closed, NULL);
    }
    if (nbd)
        nbd_server_close(nbd, on_closed, NULL);
}

static void watch_signal(uv_signal_t *h, int signo)
{
    uv_signal_init(uv_default_loop(), h);
    uv_signal_start(h, on_signal, signo);
}

static void *map_file(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size))
        die(path);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("mmap");
    close(fd);
    return p;
}

int main(int argc, char **argv)
{
    static const struct option longopts[] = {{"file", 1, 0, 'f'},  {"size", 1, 0, 's'},   {"vhost", 1, 0, 'v'},
                                             {"nbd", 1, 0, 'n'},   {"tcp", 0, 0, 't'},    {"delay", 1, 0, 'd'},
                                             {"queues", 1, 0, 'q'}, {"read-only", 0, 0, 'r'}, {"tls", 1, 0, 'T'}, {"start", 1, 0, 'S'},
                                             {"client", 1, 0, 'c'}, {0}};
    const char *file = NULL, *vhost_path = NULL;
    struct nbd_conf nc = {0};
    struct vhost_conf vc = {.serial = "cohort-front-test"};
    uint64_t size = 0, delay = 0, first = 0;
    char ca[300], cert[300], key[300];
    bool read_only = false;
    struct err e;
    int o;
    while ((o = getopt_long(argc, argv, "", longopts, NULL)) >= 0) {
        switch (o) {
        case 'f': file = optarg; break;
        case 's': size = strtoull(optarg, NULL, 0); break;
        case 'v': vhost_path = optarg; break;
        case 'n': nc.unix_path = optarg; break;
        case 't': nc.tcp_addr = "127.0.0.1"; break;
        case 'd': delay = strtoull(optarg, NULL, 0); break;
        case 'q': vc.queues = (unsigned)atoi(optarg); break;
        case 'r': read_only = true; break;
        case 'S': first = strtoull(optarg, NULL, 0); break;
        case 'c':
            snprintf(known, sizeof known, "%s", optarg);
            known_access = strstr(optarg, "=rw") ? NBD_READ_WRITE : strstr(optarg, "=ro") ? NBD_READ_ONLY : NBD_NO_ACCESS;
            break;
        case 'T':
            snprintf(ca, sizeof ca, "%s/ca-cert.pem", optarg);
            snprintf(cert, sizeof cert, "%s/server-cert.pem", optarg);
            snprintf(key, sizeof key, "%s/server-key.pem", optarg);
            nc.tls_ca = ca, nc.tls_cert = cert, nc.tls_key = key;
            break;
        default: return 2;
        }
    }
    if (!file || !size) {
        fprintf(stderr, "usage: cohort-front-test --file F --size BYTES [--vhost S] [--nbd S] [--tcp] [--delay MS]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    vol = vol_mem_new_on(uv_default_loop(), map_file(file, size), size);
    vol->read_only = read_only;
    full_bytes = size;
    if (first)
        vol->size_bytes = first;
    vol_mem_delay(vol, delay);
    if (vhost_path && (open_servers++, vhost_server_open(uv_default_loop(), vhost_path, vol, &vc, &vhost, &e))) {
        fprintf(stderr, "cohort-front-test: %s\n", e.msg);
        return 1;
    }
    struct nbd_exports exports = {.find = find, .release = release, .list = list, .known = is_known, .access = access_of};
    if ((nc.unix_path || nc.tcp_addr) &&
        (open_servers++, nbd_server_open(uv_default_loop(), &nc, &exports, &nbd, &e))) {
        fprintf(stderr, "cohort-front-test: %s\n", e.msg);
        return 1;
    }
    watch_signal(&sig_term, SIGTERM);
    watch_signal(&sig_park, SIGUSR1);
    watch_signal(&sig_resume, SIGUSR2);
    watch_signal(&sig_grow, SIGHUP);
    if (nc.tcp_addr)
        printf("ready %u\n", nbd_server_port(nbd));
    else
        printf("ready\n");
    fflush(stdout);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    return uv_loop_close(uv_default_loop()) ? 3 : 0; /* 3: a handle was left open */
}
