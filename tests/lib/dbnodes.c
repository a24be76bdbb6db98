/* See dbnodes.h. */
#include "tests/lib/dbnodes.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "cluster/pki.h"

struct dbnode nodes[DBNODES_MAX];
static char top[200];
static char *ca, *ca_key;

void say(const char *fmt, ...)
{
    static uint64_t begin;
    if (!begin)
        begin = clock_boot_ms();
    va_list ap;
    va_start(ap, fmt);
    printf("%6.2f s  ", (double)(clock_boot_ms() - begin) / 1000);
    vprintf(fmt, ap);
    printf("\n");
    fflush(stdout);
    va_end(ap);
}

void pause_ms(int ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL); }

void kill_server(int i) { OK(dbserver_kill(&nodes[i].db, e)); }
void start_server(int i) { OK(member_run_server(&nodes[i].db, NULL, NULL, e)); }

static void on_alarm(int sig)
{
    (void)!write(2, "time is up\n", 11);
    _exit(1);
}

static void node_setup(int i, int net)
{
    struct dbnode *n = &nodes[i];
    snprintf(n->dir, sizeof n->dir, "%s/n%d", top, i + 1);
    snprintf(n->run, sizeof n->run, "%s/run", n->dir);
    snprintf(n->sock, sizeof n->sock, "unix:%s/db.sock", n->run);
    snprintf(n->ctl, sizeof n->ctl, "%s/ovsdb-server.ctl", n->run);
    snprintf(n->address, sizeof n->address, "127.77.%d.%d", net, i + 1);
    snprintf(n->name, sizeof n->name, "n%d", i + 1);
    static const struct member_disk disk = {"disk0", "/fast", "/capacity", 1 << 30};
    n->conf = (struct member_conf){.state_dir = n->dir, .run_dir = n->run, .node_name = n->name, .address = n->address,
        .control_port = 7700, .storage_port = 7701, .migrate_port = 7702, .api_port = 7443,
        .db_client_port = 26641, .db_raft_port = {26645, 26643, 26644}, .db_listen_address_only = true,
        .election_ms = 500, .cpus = 2, .memory_bytes = 1 << 30, .accel = "tcg", .accel_reason = "", .version = "test",
        .n_disks = 1, .disks = &disk};
    member_db_conf(&n->conf, &n->db, &n->paths);
}

static void cleanup(void)
{
    for (int i = 0; i < DBNODES_MAX; i++)
        (void)!dbserver_kill(&nodes[i].db, NULL);
    char cmd[256];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", top);
    if (!getenv("COHORT_KEEP"))
        (void)!system(cmd);
}

int dbnodes_main(const char *dir, int net, unsigned seconds, int (*run)(void))
{
    snprintf(top, sizeof top, "%s/db-XXXXXX", dir);
    CHECK(mkdtemp(top));
    for (int i = 0; i < DBNODES_MAX; i++)
        node_setup(i, net);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGPIPE, SIG_IGN);
        signal(SIGALRM, on_alarm);
        alarm(seconds);
        int r = run();
        free(ca);
        free(ca_key);
        exit(r);
    }
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    cleanup();
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) /* the servers, ours by inheritance */
        ;
    if (WIFSIGNALED(status))
        fprintf(stderr, "the test died of signal %d\n", WTERMSIG(status));
    for (int i = 0; i < DBNODES_MAX; i++)
        member_db_conf_free(&nodes[i].paths);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* ---- step by step ---- */

static void never(uv_timer_t *t) { }

void stepper_open(struct stepper *s, struct cdb *db)
{
    uv_loop_init(&s->loop);
    uv_timer_init(&s->loop, &s->keep);
    uv_timer_start(&s->keep, never, 20, 20);
    s->link = cdb_link_open(db, &s->loop, NULL, NULL);
    while (!cdb_link_view(s->link))
        uv_run(&s->loop, UV_RUN_ONCE);
}

void stepper_close(struct stepper *s)
{
    cdb_link_close(s->link);
    uv_close((uv_handle_t *)&s->keep, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&s->loop) == 0);
}

struct once { bool done; int status; struct err err; };

static void once_done(void *arg, int status, const struct err *e)
{
    struct once *o = arg;
    o->done = true;
    o->status = status;
    o->err = *e;
}

int step_commit(struct stepper *s, struct cdb_txn *t, struct err *e)
{
    struct once o = {0};
    cdb_txn_commit(s->link, t, "step", once_done, &o);
    while (!o.done)
        uv_run(&s->loop, UV_RUN_ONCE);
    if (e)
        *e = o.err;
    return o.status;
}

/* ---- membership ---- */

struct cdb *dbnode_open_local(int i)
{
    struct cdb *db;
    OK(cdb_open(&(struct cdb_conf){.remotes = nodes[i].sock, .local_sock = nodes[i].sock, .local_unixctl = nodes[i].ctl,
                                   .ca_pem = nodes[i].db.ca_pem, .cert_pem = nodes[i].db.cert_pem, .key_pem = nodes[i].db.key_pem,
                                   .client = nodes[i].id.node_id}, &db, e));
    return db;
}

void dbnode_init(void)
{
    char secret[2 * TOKEN_SECRET_BYTES + 1];
    OK(member_init(&nodes[0].conf, "test", &nodes[0].id, secret, e));
    struct member_id again;
    struct err err;
    CHECK(member_init(&nodes[0].conf, "test", &again, secret, &err) == E_EXISTS);
    OK(member_load(nodes[0].conf.state_dir, &again, e));
    CHECK(!strcmp(again.node_id, nodes[0].id.node_id) && !strcmp(again.cluster_uuid, nodes[0].id.cluster_uuid));

    struct cdb *db = dbnode_open_local(0);
    struct stepper s;
    stepper_open(&s, db);
    const struct cdb_view *v = cdb_link_view(s.link);
    const struct cdb_cluster *cl = cdb_cluster_get(v, "cluster");
    char hash[PKI_HEX_SHA256 + 1];
    pki_sha256_hex(secret, hash);
    CHECK(cl && !strcmp(cl->name, "test") && cl->lease_ms == 5000);
    CHECK(cdb_node_count(v) == 1 && cdb_disk_count(v) == 1 && !strcmp(cdb_token_at(v, 0)->hash, hash));
    ca = strdup(cl->ca_cert);
    ca_key = strdup(cl->ca_key);
    stepper_close(&s);
    cdb_close(db);
    say("the first node is made");
}

void dbnode_join(int i, bool voter)
{
    struct member_request q;
    char fingerprint[PKI_HEX_SHA256 + 1], *cert;
    struct err err;
    OK(pki_fingerprint(ca, fingerprint, e));
    OK(member_join_prepare(&nodes[i].conf, &q, e));
    OK(pki_issue(ca, ca_key, q.csr_pem, q.node_id, PKI_NODE_DAYS, &cert, e));
    const char *voters[] = {nodes[0].address};
    struct member_answer a = {ca, cert, nodes[0].id.cluster_uuid, voter, 1, voters};
    CHECK(member_join_accept(&nodes[i].conf, nodes[0].id.node_id, fingerprint, &a, &nodes[i].id, &err) == E_AUTH);
    fingerprint[0] = fingerprint[0] == '0' ? '1' : '0';
    CHECK(member_join_accept(&nodes[i].conf, q.node_id, fingerprint, &a, &nodes[i].id, &err) == E_AUTH);
    OK(pki_fingerprint(ca, fingerprint, e));
    OK(member_join_accept(&nodes[i].conf, q.node_id, fingerprint, &a, &nodes[i].id, e));
    free(cert);
    member_request_free(&q);
    say("node %d joined", i + 1);
}
