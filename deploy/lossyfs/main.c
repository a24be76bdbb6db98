/* cohort-lossyfs: serves the directories below LOWER as disks that forget what was not synced. See lossyfs.h, README.md.
 *
 * The node mounts (in its own mount namespace) and sends /dev/fuse through the control socket; this process lives outside
 * the node, so that it survives the node's end and decides what its disks then hold. It ends with the power cut, or as if
 * cut when the mount is gone. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "deploy/lossyfs/lossyfs.h"

struct lossy fs = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .mount_fd = -1};

uint64_t random_below(uint64_t n)
{
    fs.rng += 0x9e3779b97f4a7c15u;
    return hash_u64(fs.rng) % n;
}

static int open_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        err(1, "%s", path);
    return fd;
}

/* Bound relative to its directory: sun_path is short, the repository's path may not be. */
static int listen_at(const char *dir)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "lossyfs.sock"};
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (chdir(dir) < 0)
        err(1, "%s", dir);
    unlink(a.sun_path);
    if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 16) < 0)
        err(1, "%s/%s", dir, a.sun_path);
    return s;
}

static void serve(void)
{
    char at[32], name[] = "cohort-lossyfs";
    char *argv[] = {name, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    struct fuse_session *se = fuse_session_new(&args, &lossy_ops, sizeof lossy_ops, NULL);
    struct fuse_loop_config *loop = fuse_loop_cfg_create();
    snprintf(at, sizeof at, "/dev/fd/%d", fs.mount_fd);
    if (!se || !loop || fuse_session_mount(se, at) != 0)
        errx(1, "cannot serve the mount");
    fuse_loop_cfg_set_clone_fd(loop, 0);
    fuse_loop_cfg_set_max_threads(loop, 512); /* a stalled disk keeps one for every request */
    fuse_loop_cfg_set_idle_threads(loop, 8);
    fuse_session_loop_mt(se, loop);
}

int main(int argc, char **argv)
{
    struct rlimit files = {1 << 16, 1 << 16};
    if (argc != 5)
        errx(2, "usage: cohort-lossyfs LOWER SPARE CONTROL_DIR SEED\n"
                "LOWER: its directories are the disks. SPARE: an own directory of the same file system for files that are not\n"
                "durable yet. CONTROL_DIR: gets the socket lossyfs.sock. SEED: a number; what a power cut destroys follows from it.");
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    umask(0);
    int lower = open_dir(argv[1]);
    fs.spare_fd = open_dir(argv[2]);
    fs.rng = strtoull(argv[4], NULL, 10);
    tree_load(lower);
    control_start(listen_at(argv[3]));
    pthread_mutex_lock(&fs.lock);
    while (fs.mount_fd < 0)
        pthread_cond_wait(&fs.changed, &fs.lock);
    pthread_mutex_unlock(&fs.lock);
    serve();
    pthread_mutex_lock(&fs.lock);
    power_cut();
    return 0;
}
