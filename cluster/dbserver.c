/* Supervision of ovsdb-server and its RAFT commands. See dbserver.h. */
#include "cluster/dbserver.h"
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "cluster/unixctl.h"

LOG_MODULE("dbserver");

#define RESTART_MIN_MS 100
#define RESTART_MAX_MS 5000
#define RESTART_STEADY_MS 10000 /* having run that long, it begins with RESTART_MIN_MS again */
#define CONTROL_MS 2000

struct dbserver {
    struct db_conf conf; /* owns its texts */
    struct proc proc;
    uv_poll_t ended;
    bool polling;
    uv_timer_t restart;
    uint64_t started_ms, delay_ms;
    int handles; /* open libuv handles */
    bool closing;
};

static char *control_path(const struct db_conf *c) { return xasprintf("%s/ovsdb-server.ctl", c->run_dir); }
static char *pid_path(const struct db_conf *c) { return xasprintf("%s/ovsdb-server.proc", c->run_dir); }

static void conf_copy(struct db_conf *to, const struct db_conf *from)
{
    *to = *from;
    to->db_dir = xstrdup(from->db_dir);
    to->run_dir = xstrdup(from->run_dir);
    to->address = xstrdup(from->address);
    to->ca_pem = xstrdup(from->ca_pem);
    to->cert_pem = xstrdup(from->cert_pem);
    to->key_pem = xstrdup(from->key_pem);
}

static void conf_free(struct db_conf *c)
{
    const char *texts[] = {c->db_dir, c->run_dir, c->address, c->ca_pem, c->cert_pem, c->key_pem};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free((char *)(uintptr_t)texts[i]);
}

/* ---- the process ---- */

static int start(struct dbserver *s, struct err *e)
{
    const struct db_conf *c = &s->conf;
    char *clients = c->listen_any              ? xasprintf("--remote=pssl:%u", c->client_port)
                    : strchr(c->address, ':') ? xasprintf("--remote=pssl:%u:[%s]", c->client_port, c->address)
                                              : xasprintf("--remote=pssl:%u:%s", c->client_port, c->address);
    char *local = xasprintf("--remote=punix:%s/db.sock", c->run_dir), *ctl = control_path(c), *unixctl = xasprintf("--unixctl=%s", ctl);
    char *key = xasprintf("--private-key=%s", c->key_pem), *cert = xasprintf("--certificate=%s", c->cert_pem);
    char *ca = xasprintf("--ca-cert=%s", c->ca_pem), *log = xasprintf("--log-file=%s/ovsdb-server.log", c->run_dir);
    char *files[DB_N], *pid_file = pid_path(c);
    for (int i = 0; i < DB_N; i++)
        files[i] = db_path(c, i);
    const char *argv[] = {"ovsdb-server", "--no-chdir", "-vconsole:off", "-vsyslog:off", "-vfile:info", clients, local, unixctl,
                          key, cert, ca, log, files[DB_COHORT], files[DB_OVN_NB], files[DB_OVN_SB], NULL};
    struct proc_spec spec = {.argv = argv, .pid_file = pid_file};
    unlink(ctl); /* of a server that was killed: nobody should ask it */
    int r = proc_start(&spec, &s->proc, e);
    s->started_ms = clock_boot_ms();
    char *texts[] = {clients, local, ctl, unixctl, key, cert, ca, log, pid_file};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free(texts[i]);
    for (int i = 0; i < DB_N; i++)
        free(files[i]);
    return r;
}

static void on_ended(uv_poll_t *h, int status, int events);

static void watch(struct dbserver *s)
{
    int rc = uv_poll_init(s->restart.loop, &s->ended, s->proc.pidfd);
    assert(rc == 0);
    s->ended.data = s;
    s->handles++;
    s->polling = true;
    uv_poll_start(&s->ended, UV_READABLE, on_ended);
    uv_unref((uv_handle_t *)&s->ended);
}

static void handle_gone(struct dbserver *s)
{
    if (--s->handles || !s->closing)
        return;
    conf_free(&s->conf);
    free(s);
}

static void on_restart(uv_timer_t *h)
{
    struct dbserver *s = h->data;
    struct err e;
    if (start(s, &e)) {
        log_err("%s; again in %d ms", e.msg, RESTART_MAX_MS);
        uv_timer_start(&s->restart, on_restart, RESTART_MAX_MS, 0);
        return;
    }
    log_info("ovsdb-server runs again, pid %d", (int)s->proc.pid);
    watch(s);
}

static void poll_closed(uv_handle_t *h)
{
    struct dbserver *s = h->data;
    proc_close(&s->proc);
    if (!s->closing) {
        bool steady = clock_boot_ms() - s->started_ms >= RESTART_STEADY_MS;
        s->delay_ms = steady || !s->delay_ms ? RESTART_MIN_MS : s->delay_ms * 2 > RESTART_MAX_MS ? RESTART_MAX_MS : s->delay_ms * 2;
        uv_timer_start(&s->restart, on_restart, s->delay_ms, 0);
    }
    handle_gone(s);
}

static void on_ended(uv_poll_t *h, int status, int events)
{
    struct dbserver *s = h->data;
    log_warn("ovsdb-server (pid %d) ended; it is started again", (int)s->proc.pid);
    s->polling = false;
    uv_close((uv_handle_t *)h, poll_closed);
}

int dbserver_open(uv_loop_t *loop, const struct db_conf *c, struct dbserver **ret_server, struct err *e)
{
    if (!db_files_exist(c))
        return err_set(e, E_NOTFOUND, "%s: this node has no databases to serve", c->db_dir);
    struct dbserver *s = xcalloc(1, sizeof *s);
    conf_copy(&s->conf, c);
    char *pid_file = pid_path(c);
    int r = proc_adopt(pid_file, &s->proc, NULL) ? start(s, e) : 0;
    free(pid_file);
    if (r) {
        conf_free(&s->conf);
        free(s);
        err_wrap(e, "start the database server");
        return r;
    }
    uv_timer_init(loop, &s->restart);
    uv_unref((uv_handle_t *)&s->restart);
    s->restart.data = s;
    s->handles = 1;
    watch(s);
    *ret_server = s;
    return 0;
}

static void timer_closed(uv_handle_t *h) { handle_gone(h->data); }

void dbserver_close(struct dbserver *s)
{
    if (!s)
        return;
    s->closing = true;
    if (s->polling) {
        s->polling = false;
        uv_close((uv_handle_t *)&s->ended, poll_closed);
    }
    uv_close((uv_handle_t *)&s->restart, timer_closed);
}

void dbserver_stop(struct dbserver *s)
{
    if (!s)
        return;
    proc_signal(&s->proc, SIGTERM);
    dbserver_close(s);
}

pid_t dbserver_pid(const struct dbserver *s)
{
    return s->polling ? s->proc.pid : 0;
}

int dbserver_kill(const struct db_conf *c, struct err *e)
{
    char *pid_file = pid_path(c);
    struct proc p;
    int r = proc_adopt(pid_file, &p, NULL);
    if (!r) {
        proc_signal(&p, SIGKILL);
        struct pollfd f = {.fd = p.pidfd, .events = POLLIN};
        if (poll(&f, 1, 5000) != 1)
            r = err_set(e, E_TIMEOUT, "the database server (pid %d) does not end", (int)p.pid);
        proc_close(&p);
    } else {
        r = 0;
    }
    if (!r)
        unlink(pid_file);
    free(pid_file);
    return r;
}

/* ---- RAFT ---- */

static int control(const struct db_conf *c, const char *method, size_t n, const char *const *args, char **ret_text, struct err *e)
{
    char *path = control_path(c);
    int r = unixctl_call(path, method, n, args, CONTROL_MS, ret_text, e);
    free(path);
    return r;
}

static bool field(const char *line, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);
    if (strncmp(line, name, n) || line[n] != ':')
        return false;
    line += n + 1;
    line += strspn(line, " ");
    snprintf(out, size, "%.*s", (int)strcspn(line, "\n"), line);
    return true;
}

/* "    1ddd (1ddd at ssl:192.0.2.1:6645) (self) next_index=2 …" */
static void server_line(const char *line, struct db_status *s)
{
    if (s->n_servers == DB_SERVERS_MAX)
        return;
    char sid[8], address[128];
    if (sscanf(line, " %7[0-9a-f] (%*7[0-9a-f] at %127[^)])", sid, address) != 2)
        return;
    int i = s->n_servers++;
    memcpy(s->servers[i].sid, sid, sizeof sid);
    memcpy(s->servers[i].address, address, sizeof address);
    size_t n = strcspn(line, "\n");
    s->servers[i].self = memmem(line, n, "(self)", 6) != NULL;
}

int db_status_parse(const char *text, struct db_status *ret_status, struct err *e)
{
    struct db_status s = {0};
    char leader[32] = "", id[96];
    bool servers = false;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (servers)
            server_line(line, &s);
        else if (field(line, "Status", s.status, sizeof s.status) || field(line, "Role", s.role, sizeof s.role) ||
                 field(line, "Leader", leader, sizeof leader))
            continue;
        else if (field(line, "Cluster ID", id, sizeof id)) /* "1ddd (1ddd0000-…)", or "not yet known" */
            sscanf(id, "%*s (%39[0-9a-f-])", s.cluster_id);
        else if (field(line, "Server ID", id, sizeof id))
            sscanf(id, "%*s (%39[0-9a-f-])", s.server_id);
        else if (!strncmp(line, "Servers:", 8))
            servers = true;
    }
    if (!s.status[0])
        return err_set(e, E_PROTO, "the answer to cluster/status has no status");
    s.has_leader = leader[0] && strcmp(leader, "unknown");
    *ret_status = s;
    return 0;
}

int dbserver_status(const struct db_conf *c, int db, struct db_status *ret_status, struct err *e)
{
    char *text;
    int r = control(c, "cluster/status", 1, &db_names[db], &text, e);
    if (r)
        return r;
    r = db_status_parse(text, ret_status, e);
    free(text);
    return r;
}

int dbserver_leave(const struct db_conf *c, struct err *e)
{
    int bad = 0;
    for (int db = 0; db < DB_N; db++) {
        char *text;
        int r = control(c, "cluster/leave", 1, &db_names[db], &text, e);
        if (!r)
            free(text);
        else if (!bad && r != E_INVAL) /* refused: it is leaving or has left already */
            bad = r;
    }
    return bad;
}

/* A database that its server has left is closed: then the command does not know it any more. */
bool dbserver_left(const struct db_conf *c)
{
    for (int db = 0; db < DB_N; db++) {
        struct db_status s;
        int r = dbserver_status(c, db, &s, NULL);
        if (r == E_INVAL || (!r && !strcmp(s.status, "left cluster")))
            continue;
        return false;
    }
    return true;
}

int dbserver_kick(const struct db_conf *c, const char *address, struct err *e)
{
    int bad = 0;
    for (int db = 0; db < DB_N; db++) {
        struct db_status s;
        char *remote = db_remote(address, c->raft_port[db]), *text;
        int r = dbserver_status(c, db, &s, e);
        bool there = false;
        for (int i = 0; !r && i < s.n_servers; i++)
            there |= !strcmp(s.servers[i].address, remote);
        if (there) {
            const char *args[] = {db_names[db], remote};
            r = control(c, "cluster/kick", 2, args, &text, e);
            if (!r)
                free(text);
        }
        free(remote);
        if (r)
            bad = r;
    }
    return bad;
}
