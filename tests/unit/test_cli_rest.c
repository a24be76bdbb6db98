/* cli: the real program against the real REST API (unix socket and TLS) over the in-memory database. The program is a child
 * process; the test's loop serves it, and plays the host that starts, stops and moves guests. */
#include "tests/lib/twin.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/file.h"
#include "cli/cli.h"
#include "cluster/pki.h"
#include "daemon/image_io.h"
#include "daemon/join.h"
#include "daemon/rest.h"
#include "daemon/wire.h"
#include "storage/asan/engine/asan.h"

/* What the rest of the daemon would do. */
int daemon_become_member(struct daemon *d, struct err *e) { return err_set(e, E_UNAVAIL, "mock"); }
void daemon_member_conf(struct daemon *d, struct member_conf *c, struct member_disk *disks) { *c = (struct member_conf){.state_dir = d->conf.state_dir}; }
size_t asan_link_states(struct asan *a, const char *node_id, struct asan_link_state *ret, size_t max) { return 0; }
char *asan_dump_json(struct asan *a, const char *volume_id) { return xstrdup("{}"); }
void asan_io(struct asan *a, struct asan_io *io) { abort(); }
void asan_claim(struct asan *a, struct asan_claim *c) { abort(); }
void asan_release(struct asan *a, const char *volume_id) { abort(); }
void asan_changed(struct asan *a, struct asan_changed *q) { abort(); /* there is no storage here */ }

static struct twin w;
static char dir[64];
static uint16_t port;

/* ---- running the program ---- */

static struct {
    char *out, *err;
    int status, running;
    json_t *json;
} last;

static char *slurp(const char *name)
{
    char path[128], *text = NULL;
    struct err e;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_read(path, 1u << 20, &text, NULL, &e), E_OK);
    return text;
}

static void write_file(const char *name, const void *data, size_t len)
{
    char path[128];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write(path, data, len, 0600, &e), E_OK);
}

static void forget(void)
{
    free(last.out);
    free(last.err);
    json_decref(last.json);
    memset(&last, 0, sizeof last);
}

static void on_exit_status(uv_process_t *p, int64_t status, int signal)
{
    last.status = signal ? 1000 + signal : (int)status;
    last.running = 0;
    uv_close((uv_handle_t *)p, NULL);
}

static int open_output(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* Runs "cohort LINE" (words separated by single spaces, '\'' not understood) with `env`; returns its exit status. */
static int cohort_env(const char *line, const char *more_env1, const char *more_env2, const char *more_env3)
{
    char words[600], socket[128], *args[40] = {(char *)"cohort"}, *at = NULL;
    int n = 1;
    snprintf(words, sizeof words, "%s", line);
    for (char *x = strtok_r(words, " ", &at); x; x = strtok_r(NULL, " ", &at))
        args[n++] = x;
    snprintf(socket, sizeof socket, "COHORT_SOCKET=%s/api.sock", dir);
    char *env[] = {socket, (char *)(uintptr_t)more_env1, (char *)(uintptr_t)more_env2, (char *)(uintptr_t)more_env3, NULL};
    uv_process_t p;
    uv_stdio_container_t io[3] = {{UV_IGNORE}, {UV_INHERIT_FD, .data.fd = open_output("out")}, {UV_INHERIT_FD, .data.fd = open_output("err")}};
    uv_process_options_t o = {.exit_cb = on_exit_status, .file = TEST_COHORT, .args = args, .env = env, .stdio_count = 3, .stdio = io};
    forget();
    last.running = 1;
    assert_int_equal(uv_spawn(&w.loop, &p, &o), 0);
    close(io[1].data.fd);
    close(io[2].data.fd);
    while (last.running)
        uv_run(&w.loop, UV_RUN_ONCE);
    uv_run(&w.loop, UV_RUN_NOWAIT);
    last.out = slurp("out");
    last.err = slurp("err");
    last.json = json_loads(last.out, JSON_DECODE_ANY, NULL);
    return last.status;
}

static int cohort(const char *line) { return cohort_env(line, NULL, NULL, NULL); }

static void contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in: %s", part, text);
}

static void ok(const char *line)
{
    if (cohort(line) != EXIT_DONE)
        fail_msg("cohort %s: status %d: %s", line, last.status, last.err);
}

static void fails(const char *line, int status, const char *message)
{
    if (cohort(line) != status)
        fail_msg("cohort %s: status %d, not %d: %s%s", line, last.status, status, last.out, last.err);
    contains(last.err, message);
    assert_string_equal(last.out, "");
}

/* ---- storage in memory ---- */

static uint8_t store[8 << 20];
struct write { uv_timer_t timer; void (*done)(void *arg, int status); void *arg; };

static void write_freed(uv_handle_t *h) { free(h->data); }

static void write_end(uv_timer_t *t)
{
    struct write *x = t->data;
    uv_close((uv_handle_t *)t, write_freed);
    x->done(x->arg, E_OK);
}

static void store_write(void *ctx, const char *volume_id, uint64_t off, struct iobuf *b, size_t len, void (*done)(void *arg, int status), void *arg)
{
    struct write *x = calloc(1, sizeof *x);
    assert_true(off + len <= sizeof store);
    memcpy(store + off, b->data, len);
    *x = (struct write){.done = done, .arg = arg};
    x->timer.data = x;
    uv_timer_init(&w.loop, &x->timer);
    uv_timer_start(&x->timer, write_end, 1, 0);
}

static const struct image_io io = {store_write, NULL};

/* ---- the host's part: guests do what is asked of them, a little later ---- */

static uv_timer_t host;
static const char *obstacle; /* a start fails, a move stays: with this message */
static bool lazy;            /* nothing happens */

static void committed(void *arg, int status, const struct err *e) {}

static void play_host(uv_timer_t *t)
{
    const struct cdb_view *v = cdb_link_view(w.d.link);
    for (size_t i = 0; !lazy && i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        struct cdb_txn *txn = cdb_txn_new();
        bool moved = *m->migrate_to;
        if (*m->host && !strcmp(m->desired, "running") && !strcmp(m->state, "starting"))
            cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_state, obstacle ? "failed" : "running");
        else if (*m->host && !strcmp(m->desired, "stopped"))
            cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_host, ""), cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "stopped");
        else if (moved && !obstacle)
            cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_host, m->migrate_to);
        else if (!moved) {
            cdb_txn_free(txn);
            continue;
        }
        if (moved)
            cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
        if (obstacle)
            cdb_txn_set_str(txn, CDB_T_MACHINE, m->id, CDB_MACHINE_message, obstacle);
        cdb_txn_commit(w.d.link, txn, "host", committed, NULL);
    }
    for (size_t i = 0; !lazy && i < cdb_volume_count(v); i++)
        if (strcmp(cdb_volume_at(v, i)->state, "deleting") == 0) {
            struct cdb_txn *txn = cdb_txn_new();
            cdb_txn_delete(txn, CDB_T_VOLUME, cdb_volume_at(v, i)->id);
            cdb_txn_commit(w.d.link, txn, "host", committed, NULL);
        }
}

/* ---- fixture ---- */

static uint16_t free_port(void)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    getsockname(fd, (struct sockaddr *)&sa, &len);
    close(fd);
    return ntohs(sa.sin_port);
}

static void make_pki(void)
{
    struct err e;
    char *ca, *ca_key, *key, *csr, *cert, path[128];
    const char *address = "127.0.0.1";
    snprintf(path, sizeof path, "%s/pki", dir);
    mkdir(path, 0700);
    assert_int_equal(pki_ca_new("test", &ca, &ca_key, &e), E_OK);
    assert_int_equal(pki_key_new(&key, &e), E_OK);
    assert_int_equal(pki_csr_new(key, w.d.node_id, 1, &address, &csr, &e), E_OK);
    assert_int_equal(pki_issue(ca, ca_key, csr, w.d.node_id, 10, &cert, &e), E_OK);
    write_file("pki/ca.pem", ca, strlen(ca));
    write_file("pki/node.pem", cert, strlen(cert));
    write_file("pki/node.key", key, strlen(key));
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_ca_cert, ca);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_ca_key, ca_key);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_uuid, "00000000-0000-4000-8000-000000000001");
    twin_commit(&w, t);
    char *all[] = {ca, ca_key, key, csr, cert};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    assert_int_equal(pki_ca_new("other", &ca, &ca_key, &e), E_OK);
    write_file("pki/other.pem", ca, strlen(ca));
    free(ca);
    free(ca_key);
}

static int setup(void **s)
{
    struct err e;
    twin_open(&w);
    snprintf(dir, sizeof dir, "/tmp/cohort-cli-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    make_pki();
    w.d.conf.run_dir = w.d.conf.state_dir = dir;
    w.d.conf.address = "127.0.0.1";
    w.d.conf.api_port = port = free_port();
    assert_int_equal(rest_open(&w.d, &w.d.rest, &e), E_OK);
    assert_int_equal(rest_listen_tls(w.d.rest, &e), E_OK);
    w.d.rest->image_io = &io;
    obstacle = NULL;
    lazy = false;
    uv_timer_init(&w.loop, &host);
    uv_timer_start(&host, play_host, 30, 30);
    return 0;
}

static int teardown(void **s)
{
    char cmd[96];
    forget();
    uv_close((uv_handle_t *)&host, NULL);
    rest_close(w.d.rest);
    twin_close(&w);
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    return system(cmd);
}

/* ---- tests ---- */

static void life_of_a_vm(void **s)
{
    ok("network create web-net --cidr 198.18.1.0/24 --dns 192.0.2.53 --dns 192.0.2.54 --mtu 1400");
    ok("network list");
    contains(last.out, "192.0.2.53, 192.0.2.54");
    ok("volume create data --size 64M --replicas 2");
    ok("vm create web1 --cpus 2 --memory 256M --disk size=1G,replicas=3 --disk volume=data --network web-net --ha none --priority 7 --accel tcg --type q35");
    contains(last.out, "vm web1 created");
    ok("vm show web1");
    contains(last.out, "state:       stopped\n");
    contains(last.out, "memory:      256 MiB\n");
    contains(last.out, "priority:    7\n");
    contains(last.out, "data");
    ok("vm list --json");
    const json_t *vm = json_array_get(last.json, 0);
    assert_int_equal(json_integer_value(json_object_get(vm, "vcpus")), 2);
    assert_int_equal(json_array_size(json_object_get(vm, "disks")), 2);
    ok("vm start web1 --to n2 --wait");
    assert_string_equal(last.out, "vm web1 runs on node n2\n");
    fails("vm delete web1", EXIT_REFUSED, "hint: stop it first: cohort vm stop web1");
    ok("vm migrate web1 --to n3 --wait");
    contains(last.out, "vm web1 runs on node n3");
    fails("vm migrate web1 --to n3", EXIT_REFUSED, "runs on node n3 already");
    ok("vm stop web1 --wait --json");
    assert_string_equal(json_string_value(json_object_get(last.json, "state")), "stopped");
    ok("port list");
    contains(last.out, "198.18.1.");
    ok("vm delete web1 --with-disks --wait");
    fails("volume show data", EXIT_REFUSED, "no volume \"data\"");
    fails("vm show web1", EXIT_REFUSED, "no vm \"web1\"");
    ok("vm list");
    assert_string_equal(last.out, "none\n");
    ok("vm list --json");
    assert_string_equal(last.out, "[]\n");
    ok("event list --limit 3");
    contains(last.out, "vm web1 deleted with its disks");
}

static void waiting_that_ends_badly(void **s)
{
    ok("vm create a --memory 128M --disk size=64M");
    obstacle = "qemu said no";
    fails("vm start a --wait", EXIT_REFUSED, "vm a is failed: qemu said no");
    obstacle = NULL;
    ok("vm kill a --wait");
    ok("vm start a --to n1 --wait");
    obstacle = "no room";
    fails("vm migrate a --to n2 --wait", EXIT_REFUSED, "vm a did not move to node n2: no room");
    obstacle = NULL;
    lazy = true;
    uint64_t began = clock_boot_ms();
    fails("vm stop a --wait --timeout 1s", EXIT_TIMEOUT, "for vm a to stop");
    assert_in_range(clock_boot_ms() - began, 900, 10000);
    fails("vm stop a --wait --timeout soon", EXIT_USAGE, "--timeout \"soon\" is no time");
}

static void add_shard(const char *volume)
{
    struct cdb_txn *t = cdb_txn_new();
    char id[80];
    const char *replicas[] = {w.disk[0], w.disk[1], w.disk[2]};
    char *keys[] = {w.disk[0], w.disk[1]};
    int64_t incarnations[] = {1, 1};
    struct cdb_imap in_sync = {.n = 2, .k = keys, .v = incarnations};
    snprintf(id, sizeof id, "%s/0", volume);
    cdb_txn_insert(t, CDB_T_SHARD, id);
    cdb_txn_set_str(t, CDB_T_SHARD, id, CDB_SHARD_volume, volume);
    cdb_txn_set_strs(t, CDB_T_SHARD, id, CDB_SHARD_replicas, 3, replicas);
    cdb_txn_set_imap(t, CDB_T_SHARD, id, CDB_SHARD_in_sync, &in_sync);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_generation, 4);
    twin_commit(&w, t);
}

#define T1 "00000000-0000-4000-8000-000000000001"
#define T2 "00000000-0000-4000-8000-000000000002"
#define T3 "00000000-0000-4000-8000-000000000003"

static void add_task(const char *id, const char *state, int64_t started_ms)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_TASK, id);
    cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_kind, "resync");
    cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_object, "volume v");
    cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_state, state);
    cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_unit, "bytes");
    cdb_txn_set_str(t, CDB_T_TASK, id, CDB_TASK_message, strcmp(state, "failed") ? "" : "the disk is full");
    cdb_txn_set_int(t, CDB_T_TASK, id, CDB_TASK_done, 1 << 20);
    cdb_txn_set_int(t, CDB_T_TASK, id, CDB_TASK_total, 4 << 20);
    cdb_txn_set_int(t, CDB_T_TASK, id, CDB_TASK_started_ms, started_ms);
    cdb_txn_set_int(t, CDB_T_TASK, id, CDB_TASK_updated_ms, started_ms + 2500);
    twin_commit(&w, t);
}

static void end_task(uv_timer_t *t)
{
    struct cdb_txn *txn = cdb_txn_new();
    cdb_txn_set_str(txn, CDB_T_TASK, T3, CDB_TASK_state, "done");
    cdb_txn_commit(w.d.link, txn, "end", committed, NULL);
}

static void tasks(void **s)
{
    uv_timer_t later;
    int64_t now = clock_wall_ms();
    add_task(T2, "failed", now - 60000);
    add_task(T1, "done", now - 90000);
    add_task(T3, "running", now);
    ok("task list");
    contains(last.out, "1 MiB of 4 MiB                           2.5 s"); /* ended: no rate */
    contains(last.out, "1 MiB of 4 MiB  409.6 KiB/s, 7.5 s left");
    assert_true(strstr(last.out, "\n" T1 " ") < strstr(last.out, "\n" T2 " ")); /* by time */
    ok("task show " T2);
    contains(last.out, "the disk is full");
    fails("task wait " T2, EXIT_REFUSED, "resync volume v: failed: the disk is full");
    ok("task wait " T1 " --json");
    fails("task wait " T3 " --timeout 0", EXIT_TIMEOUT, "for task " T3);
    uv_timer_init(&w.loop, &later);
    uv_timer_start(&later, end_task, 300, 0);
    ok("task wait " T3);
    assert_string_equal(last.out, "task " T3 " is done\n");
    assert_string_equal(last.err, "");
    uv_close((uv_handle_t *)&later, NULL);
    fails("task cancel " T3, EXIT_REFUSED, "");
}

static void reading(void **s)
{
    ok("node list");
    contains(last.out, "0 B of 8 GiB");
    ok("--json node show n1");
    assert_string_equal(json_string_value(json_object_get(last.json, "name")), "n1");
    ok("disk list");
    contains(last.out, "0 of 0 in sync");
    contains(last.out, "storage");
    fails("disk add n1:ram", EXIT_USAGE, "--capacity PATH");
    fails("disk add n1:ram --memory 1G --capacity /c", EXIT_USAGE, "--memory SIZE");
    fails("disk add n1:ram --memory lots", EXIT_USAGE, "is no size");
    fails("disk add n1:ram --memory 5G", EXIT_REFUSED, "of which disks may take half");
    fails("volume create scratch --size 1G --class memory", EXIT_REFUSED, "cohort disk add NODE:DISK --memory SIZE");
    fails("volume create scratch --size 1G --class tape", EXIT_REFUSED, "storage or memory");
    ok("disk add n1:ram --memory 1G");
    ok("disk list");
    contains(last.out, "memory");
    ok("volume create scratch --size 1G --class memory");
    contains(last.out, "it is lost with its last replica");
    fails("volume reset scratch", EXIT_REFUSED, "is not lost");
    ok("volume show scratch");
    contains(last.out, "class:       memory");
    ok("volume create --help");
    contains(last.out, "lost with its last replica");
    ok("volume delete scratch");
    ok("disk remove n1:ram");
    ok("cluster status");
    contains(last.out, "3 of 3 up");
    contains(last.out, "alarms:       none");
    ok("volume create v --size 2G");
    fails("volume resize v 1G", EXIT_REFUSED, "volumes grow only");
    fails("volume resize v much", EXIT_USAGE, "is no size");
    ok("volume resize v 3G");
    contains(last.out, "volume v has 3 GiB");
    ok("volume show v --json");
    assert_int_equal(json_integer_value(json_object_get(last.json, "size_bytes")), 3LL << 30);
    add_shard(json_string_value(json_object_get(last.json, "id")));
    ok("volume show v");
    contains(last.out, "health:      degraded");
    contains(last.out, "SHARD  GENERATION  IN SYNC  USED  COPIES\n    0           4        2   0 B  n"); /* the copies are a set */
    contains(last.out, "n3/d0 (behind; node up)");
    assert_null(strstr(last.out, "n1/d0 (behind"));
    contains(last.out, "iops limit:  none");
    fails("volume set v", EXIT_REFUSED, "nothing to change");
    fails("volume set v --iops 3", EXIT_REFUSED, "iops 3 is too low");
    fails("volume set v --bandwidth 4096", EXIT_REFUSED, "bandwidth_bytes 4096 is too low");
    fails("volume set w --iops 500", EXIT_REFUSED, "no volume");
    ok("volume set v --iops 500 --bandwidth 50M --burst 10s");
    ok("volume show v");
    contains(last.out, "iops limit:  500/s, burst 10 s");
    contains(last.out, "rate limit:  50 MiB/s, burst 10 s");
    ok("volume set v --iops 0");
    ok("volume show v");
    contains(last.out, "iops limit:  none");
    contains(last.out, "rate limit:  50 MiB/s, burst 10 s");
    ok("cluster status");
    contains(last.out, "1 degraded");
    contains(last.out, "\nAlarms\n");
    fails("debug asan", EXIT_REFUSED, "the storage of this node is not running");
    fails("debug asan nope", EXIT_REFUSED, "no volume \"nope\"");
    fails("debug asan a b", EXIT_USAGE, "one argument too many");
    fails("debug metrics x", EXIT_USAGE, "one argument too many");
    ok("debug metrics");
    contains(last.out, "cohort_api_requests_total");
    ok("log level rest dbg");
    fails("log level rest loud", EXIT_REFUSED, "err, warn, info or dbg");
    ok("log level * info");
    ok("task list");
    ok("token list");
    ok("port list --json");
    ok("network create n --cidr 198.18.2.0/24");
    ok("port create n --name probe");
    ok("port list");
    contains(last.out, "probe");
    ok("port delete probe");
}

static void refused(void **s)
{
    fails("vm create x --memory 5Q", EXIT_USAGE, "--memory \"5Q\" is no size");
    fails("vm create x --memory 1G --disk size=1G,replicas=9", EXIT_USAGE, "\"replicas=9\" must be 1, 2 or 3");
    fails("vm create x --memory 1G --type pc", EXIT_USAGE, "must be one of q35|microvm");
    fails("vm create UPPER/x --memory 1G --network nope", EXIT_REFUSED, "");
    fails("vm show a/b", EXIT_USAGE, "is not a name");
    fails("vm show ..", EXIT_USAGE, "is not a name");
    fails("volume create v --size 1", EXIT_REFUSED, "size_bytes");
    fails("volume create v --size 1G --replicas 4", EXIT_USAGE, "from 1 to 3");
    fails("vm create x --memory 1G --image nope", EXIT_REFUSED, "no image \"nope\"");
    fails("task cancel nope", EXIT_REFUSED, "no task \"nope\"");
    fails("task wait nope", EXIT_REFUSED, "the task is gone");
    fails("frobnicate", EXIT_USAGE, "unknown command \"frobnicate\"");
    fails("vm frobnicate x", EXIT_USAGE, "see: cohort vm");
    fails("image import /nonexistent --name x", EXIT_USAGE, "No such file");
    fails("network create n --cidr 198.18.1.1/24", EXIT_REFUSED, "");
    ok("network create n --cidr 198.18.1.0/24");
    fails("network create n --cidr 198.18.1.0/24", EXIT_REFUSED, "exists already");
    ok("vm --help");
    ok("vm create --help");
    contains(last.out, "--memory SIZE");
    ok("help");
    contains(last.out, "Exit status:");
    ok("--version");
}

static void tokens_over_tls(void **s)
{
    char api[64], ca[128], other[128], token[200];
    snprintf(api, sizeof api, "COHORT_API=https://127.0.0.1:%u", port);
    snprintf(ca, sizeof ca, "COHORT_CA=%s/pki/ca.pem", dir);
    snprintf(other, sizeof other, "COHORT_CA=%s/pki/other.pem", dir);
    ok("token create ops --role operator --ttl 1h");
    last.out[strcspn(last.out, "\n")] = '\0';
    snprintf(token, sizeof token, "COHORT_TOKEN=%s", last.out);
    contains(token, "=cohort_");
    assert_int_equal(cohort_env("node list", api, ca, token), EXIT_DONE);
    contains(last.out, "n3");
    assert_int_equal(cohort_env("token list", api, ca, token), EXIT_REFUSED); /* an operator may not */
    contains(last.err, "role operator");
    assert_int_equal(cohort_env("node list", api, ca, NULL), EXIT_REFUSED);
    contains(last.err, "a token is needed");
    assert_int_equal(cohort_env("node list", api, ca, "COHORT_TOKEN=wrong"), EXIT_REFUSED);
    assert_int_equal(cohort_env("node list", api, other, token), EXIT_UNREACHABLE); /* the token stays here */
    contains(last.err, "is not trusted");
    assert_int_equal(cohort_env("node list", api, "COHORT_CA=/nonexistent", token), EXIT_UNREACHABLE);
    contains(last.err, "COHORT_CA");
    assert_int_equal(cohort_env("node list", "COHORT_API=http://127.0.0.1", ca, token), EXIT_USAGE);
    assert_int_equal(cohort_env("node list", "COHORT_API=https://127.0.0.1:1", ca, token), EXIT_UNREACHABLE);
    assert_int_equal(cohort_env("node list", "COHORT_SOCKET=/nonexistent", NULL, NULL), EXIT_DONE); /* the first of two counts */
    ok("token list");
    contains(last.out, "operator");
    ok("token delete ops");
    assert_int_equal(cohort_env("node list", api, ca, token), EXIT_REFUSED);
}

static void nbd_clients(void **s)
{
    char line[300], path[160];
    ok("volume create shown --size 1G");
    fails("nbd-client create backup1", EXIT_USAGE, "--dir is needed");
    snprintf(line, sizeof line, "nbd-client create backup1 --dir %s/nbd --ttl 30d", dir);
    ok(line);
    contains(last.out, "may use nothing yet");
    snprintf(path, sizeof path, "%s/nbd/client-key.pem", dir);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    snprintf(line, sizeof line, "nbd-client create backup2 --dir %s/nbd", dir);
    fails(line, EXIT_USAGE, "exists already");
    snprintf(line, sizeof line, "nbd-client create backup2 --certificate %s/nbd/client-cert.pem", dir);
    fails(line, EXIT_REFUSED, "is that of NBD client backup1");
    snprintf(line, sizeof line, "nbd-client create backup2 --certificate %s/nbd/client-key.pem", dir);
    fails(line, EXIT_REFUSED, "not a PEM certificate");
    snprintf(line, sizeof line, "nbd-client create backup2 --certificate %s/pki/node.pem", dir);
    fails(line, EXIT_REFUSED, "this is a node's certificate"); /* it would look limited and could do everything */
    fails("nbd-client create backup2 --json --ttl 1s", EXIT_REFUSED, "ttl_s");
    fails("nbd-client create backup1 --json", EXIT_REFUSED, "exists already");
    ok("nbd-client create backup2 --json");
    assert_non_null(strstr(json_string_value(json_object_get(last.json, "key")), "PRIVATE KEY"));
    ok("nbd-client allow backup1 shown");
    contains(last.out, "may read volume shown");
    ok("nbd-client list");
    contains(last.out, "shown (ro)");
    ok("nbd-client allow backup1 shown --write");
    ok("nbd-client show backup1 --json");
    const json_t *v = json_array_get(json_object_get(last.json, "volumes"), 0);
    assert_string_equal(json_string_value(json_object_get(v, "volume")), "shown");
    assert_string_equal(json_string_value(json_object_get(v, "mode")), "rw");
    assert_null(json_object_get(last.json, "key"));
    ok("volume show shown");
    contains(last.out, "backup1");
    fails("nbd-client allow backup1 nope", EXIT_REFUSED, "no volume \"nope\"");
    fails("nbd-client allow nope shown", EXIT_REFUSED, "no NBD client \"nope\"");
    ok("nbd-client deny backup1 shown");
    ok("nbd-client allow backup2 shown");
    ok("volume delete shown"); /* what was given goes with it */
    ok("nbd-client show backup2 --json");
    assert_int_equal(json_array_size(json_object_get(last.json, "volumes")), 0);
    ok("nbd-client delete backup1");
    fails("nbd-client show backup1", EXIT_REFUSED, "no NBD client");
}

static void membership(void **s)
{
    ok("cluster token --role join --ttl 1h");
    assert_true(strlen(last.out) > 40 && strchr(last.out, '\n') == last.out + strlen(last.out) - 1); /* one line: for scripts */
    contains(last.err, "valid for 1h 00m");
    ok("cluster token --json");
    assert_string_equal(json_string_value(json_object_get(last.json, "role")), "join");
    fails("cluster token --role admin", EXIT_USAGE, "must be one of join");
    fails("cluster token --ttl 1s", EXIT_REFUSED, "ttl_s");
    fails("cluster init again", EXIT_REFUSED, "");
    fails("cluster join nonsense", EXIT_REFUSED, "");
    fails("cluster join -", EXIT_USAGE, "no token came by standard input");
    fails("node remove nope", EXIT_REFUSED, "no node \"nope\"");
}

static void no_daemon(void **s)
{
    char path[128];
    snprintf(path, sizeof path, "%s/api.sock", dir);
    assert_int_equal(unlink(path), 0);
    fails("node list", EXIT_UNREACHABLE, "No such file or directory");
    contains(last.err, "is cohortd running here?");
    write_file("api.sock", "", 0); /* no socket */
    fails("node list", EXIT_UNREACHABLE, "cannot be reached");
}

/* A kernel by its looks: the import checks the first bytes. */
static void make_image(size_t kernel_size, char fill)
{
    char path[128], *k = malloc(kernel_size), initrd[600] = "070701";
    snprintf(path, sizeof path, "%s/img", dir);
    mkdir(path, 0700);
    memset(k, fill, kernel_size);
    memcpy(k + 0x202, "HdrS", 4);
    write_file("img/vmlinuz-6.1", k, kernel_size);
    write_file("img/initrd.img", initrd, sizeof initrd);
    write_file("img/cmdline", "quiet\n", 6);
    free(k);
}

static void import(void **s)
{
    char line[200], path[128];
    make_image(3000000, 'k');
    snprintf(line, sizeof line, "image import %s/img --name debian --json", dir);
    ok(line);
    assert_string_equal(json_string_value(json_object_get(last.json, "state")), "ready");
    assert_string_equal(last.err, ""); /* no terminal, no progress */
    assert_int_equal(store[0], 'k');
    assert_memory_equal(store + 2999999, "k", 2);
    fails(line, EXIT_REFUSED, "exists already");
    contains(last.err, "hint: it is ready; to import anew: cohort image delete debian");
    ok("image show debian");
    contains(last.out, "initrd        600 B  ");
    ok("vm create a --memory 128M --image debian");
    fails("image delete debian", EXIT_REFUSED, "boots from");
    ok("vm delete a");
    ok("image delete debian --wait");
    /* not what it says */
    write_file("img/initrd.img", "nonsense", 8);
    fails(line, EXIT_REFUSED, "is not an initramfs");
    ok("image list");
    contains(last.out, "failed");
    ok("image delete debian");
    /* a disk */
    uint8_t *disk = calloc(1, 1 << 20);
    disk[510] = 0x55;
    disk[511] = 0xaa;
    write_file("disk.raw", disk, 1 << 20);
    free(disk);
    snprintf(line, sizeof line, "image import %s/disk.raw --name d", dir);
    ok(line);
    contains(last.out, "image d imported: 1 MiB in ");
    snprintf(path, sizeof path, "%s/disk.raw", dir);
    assert_int_equal(truncate(path, 1000), 0);
    fails(line, EXIT_USAGE, "no multiple of 512");
}

/* An import that broke off after the kernel goes on with the rest, if the kernel is still the same. */
static void import_goes_on(void **s)
{
    char line[200], req[256];
    struct err e;
    make_image(100000, 'k');
    struct image_spec spec = {.name = "debian", .kind = "kernel", .n_files = 3, .files = {{"kernel", 100000}, {"initrd", 600}, {"cmdline", 6}}};
    assert_int_equal(twin_end(&w, op_image_create(w.ops, &spec, twin_done, &w, &e)), E_OK);
    char image_id[80], sha[65];
    snprintf(image_id, sizeof image_id, "%s", w.id);
    char *kernel = slurp("img/vmlinuz-6.1"), *copy = malloc(100001);
    memset(copy, 'k', 100000);
    memcpy(copy + 0x202, "HdrS", 4);
    copy[100000] = '\0';
    assert_string_equal(kernel, copy);
    pki_sha256_hex(kernel, sha); /* of a text: the file has no NUL */
    free(kernel);
    free(copy);
    assert_int_equal(twin_end(&w, op_image_file_done(w.ops, image_id, "kernel", sha, twin_done, &w, &e)), E_OK);
    snprintf(line, sizeof line, "image import %s/img --name debian", dir);
    make_image(100000, 'x'); /* another kernel of the same size */
    fails(line, EXIT_REFUSED, "what image debian holds as kernel is not what");
    make_image(200000, 'k');
    fails(line, EXIT_REFUSED, "exists already");
    make_image(100000, 'k');
    memset(store, 0, 4096);
    ok(line);
    assert_int_equal(store[0], 0); /* the kernel was not sent again */
    assert_memory_equal(store + 102400, "070701", 6);
    ok("image show debian");
    snprintf(req, sizeof req, "%s\n", sha);
    contains(last.out, req);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(life_of_a_vm, setup, teardown), cmocka_unit_test_setup_teardown(waiting_that_ends_badly, setup, teardown),
        cmocka_unit_test_setup_teardown(reading, setup, teardown), cmocka_unit_test_setup_teardown(tasks, setup, teardown), cmocka_unit_test_setup_teardown(refused, setup, teardown),
        cmocka_unit_test_setup_teardown(tokens_over_tls, setup, teardown), cmocka_unit_test_setup_teardown(nbd_clients, setup, teardown),
        cmocka_unit_test_setup_teardown(membership, setup, teardown), cmocka_unit_test_setup_teardown(no_daemon, setup, teardown),
        cmocka_unit_test_setup_teardown(import, setup, teardown), cmocka_unit_test_setup_teardown(import_goes_on, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
