/* Files of the replicated databases, by ovsdb-tool. See dbfiles.h. */
#include "cluster/dbfiles.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"

extern char **environ;

const char *const db_names[DB_N] = {"Cohort", "OVN_Northbound", "OVN_Southbound"};
static const char *const file_names[DB_N] = {"cohort.db", "nb.db", "sb.db"};
static const char *const ovn_schemas[DB_N] = {NULL, "/usr/share/ovn/ovn-nb.ovsschema", "/usr/share/ovn/ovn-sb.ovsschema"};

char *db_remote(const char *address, uint16_t port)
{
    return strchr(address, ':') ? xasprintf("ssl:[%s]:%u", address, port) : xasprintf("ssl:%s:%u", address, port);
}

char *db_remotes(size_t n, const char *const *addresses, uint16_t port)
{
    struct buf b = {0};
    for (size_t i = 0; i < n; i++) {
        char *r = db_remote(addresses[i], port);
        buf_printf(&b, "%s%s", i ? "," : "", r);
        free(r);
    }
    return buf_take(&b);
}

char *db_path(const struct db_conf *c, int db)
{
    return xasprintf("%s/%s", c->db_dir, file_names[db]);
}

char *db_sock(const struct db_conf *c)
{
    return xasprintf("unix:%s/db.sock", c->run_dir);
}

bool db_files_exist(const struct db_conf *c)
{
    bool all = true;
    for (int i = 0; i < DB_N; i++) {
        char *p = db_path(c, i);
        all &= access(p, F_OK) == 0;
        free(p);
    }
    return all;
}

/* Runs a program to its end; what it says on stderr becomes the message. */
static int run_tool(const char *const *argv, struct err *e)
{
    int out[2];
    if (pipe2(out, O_CLOEXEC) < 0)
        return err_sys(e, errno, "run %s", argv[0]);
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDERR_FILENO);
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    pid_t pid;
    int no = posix_spawnp(&pid, argv[0], &fa, &attr, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&attr);
    close(out[1]);
    if (no) {
        close(out[0]);
        return err_sys(e, no, "run %s", argv[0]);
    }
    char text[400];
    size_t n = 0;
    for (;;) { /* to the end, or the child would get SIGPIPE */
        char more[256];
        ssize_t r = read(out[0], more, sizeof more);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            break;
        size_t take = (size_t)r < sizeof text - 1 - n ? (size_t)r : sizeof text - 1 - n;
        memcpy(text + n, more, take);
        n += take;
    }
    text[n] = '\0';
    close(out[0]);
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return err_sys(e, errno, "wait for %s", argv[0]);
    while (n && text[n - 1] == '\n')
        text[--n] = '\0';
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        return err_set(e, E_IO, "%s %s failed: %s", argv[0], argv[1], n ? text : "no message");
    return 0;
}

static int schema_file(const struct db_conf *c, int db, char **ret_path, struct err *e)
{
    if (ovn_schemas[db]) {
        *ret_path = xstrdup(ovn_schemas[db]);
        return 0;
    }
    char *path = xasprintf("%s/cohort.ovsschema", c->db_dir);
    int r = file_write(path, cdb_ovsschema, cdb_ovsschema_len, 0644, e);
    if (r)
        free(path);
    else
        *ret_path = path;
    return r;
}

static int create_one(const struct db_conf *c, int db, const char *path, const char *local, struct err *e)
{
    char *schema;
    int r = schema_file(c, db, &schema, e);
    if (r)
        return r;
    char timer[48];
    snprintf(timer, sizeof timer, "--election-timer=%d", c->election_ms > 0 ? c->election_ms : 1000);
    const char *argv[] = {"ovsdb-tool", timer, "create-cluster", path, schema, local, NULL};
    r = run_tool(argv, e);
    free(schema);
    return r;
}

static int join_one(const struct db_conf *c, int db, const char *path, const char *local, size_t n, const char *const *peers,
                    struct err *e)
{
    const char **argv = xcalloc(n + 6, sizeof *argv);
    argv[0] = "ovsdb-tool";
    argv[1] = "join-cluster";
    argv[2] = path;
    argv[3] = db_names[db];
    argv[4] = local;
    for (size_t i = 0; i < n; i++)
        argv[5 + i] = db_remote(peers[i], c->raft_port[db]);
    int r = run_tool(argv, e);
    for (size_t i = 0; i < n; i++)
        free((char *)(uintptr_t)argv[5 + i]);
    free(argv);
    return r;
}

static int make(const struct db_conf *c, size_t n, const char *const *peers, struct err *e)
{
    int r = file_mkdirs(c->db_dir, 0700, e);
    for (int db = 0; db < DB_N && !r; db++) {
        char *path = db_path(c, db), *tmp = xasprintf("%s.new", path), *local = db_remote(c->address, c->raft_port[db]);
        if (access(path, F_OK) != 0) {
            unlink(tmp);
            r = n ? join_one(c, db, tmp, local, n, peers, e) : create_one(c, db, tmp, local, e);
            if (!r && rename(tmp, path) < 0)
                r = err_sys(e, errno, "rename %s", tmp);
        }
        free(local);
        free(tmp);
        free(path);
    }
    return r;
}

int db_files_create(const struct db_conf *c, struct err *e)
{
    int r = make(c, 0, NULL, e);
    if (r)
        err_wrap(e, "create the databases");
    return r;
}

int db_files_join(const struct db_conf *c, size_t n, const char *const *peers, struct err *e)
{
    if (!n)
        return err_set(e, E_INVAL, "join the databases: no node is known that serves them");
    int r = make(c, n, peers, e);
    if (r)
        err_wrap(e, "join the databases");
    return r;
}

int db_files_remove(const struct db_conf *c, struct err *e)
{
    for (int db = 0; db < DB_N; db++) {
        char *path = db_path(c, db), *tmp = xasprintf("%s.new", path);
        int bad = unlink(path) < 0 && errno != ENOENT ? errno : 0;
        unlink(tmp);
        int r = bad ? err_sys(e, bad, "delete %s", path) : 0;
        free(tmp);
        free(path);
        if (r)
            return r;
    }
    return 0;
}
