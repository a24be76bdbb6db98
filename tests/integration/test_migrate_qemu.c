/* Live migration between two QEMUs on one host, through migrate/ and real RPC; the database is a struct whose answers the
 * tests choose. The guest checks its own memory throughout and has a disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "migrate/migrate.h"
#include "tests/lib/guest_run.h"
#include "tests/lib/testcert.h"

#define LONG_MS 60000
#define PORT 27702

struct db { /* one machine's row */
    char host[ID_LEN + 1], migrate_to[ID_LEN + 1];
    int64_t generation;
    /* what the next transactions shall do; 0-terminated lists of codes, consumed from the front. E_OK (0) when empty. */
    int commit_codes[4], decline_codes[4];
    bool unknown_applies; /* an E_UNKNOWN commit took effect */
    bool taken_at_commit; /* just before the first commit the machine is given to a third node */
    int commits, declines;
};

struct node {
    struct rig rig;
    char id[ID_LEN + 1];
    struct rpc_env *rpc;
    struct rpc_server *server;
    struct rpc_peer *peer; /* to the other one */
    struct migrate *mg;
    struct world *w;
    struct machine *m;
    struct machine_spec spec; /* of `m` when it was started */
};

struct world {
    struct node n[2];
    struct db db;
    char dir[64], disk_socket[2][108];
    pid_t disk[2];
    bool with_disk;
    int over; /* times `ended` came */
    enum migrate_state how;
    struct migrate_progress last;
    char message[320];
};

/* ---- the daemon's part ---- */

static struct rpc_peer *op_peer(void *ctx, const char *node)
{
    struct node *n = ctx, *other = &n->w->n[n == &n->w->n[0]];
    return strcmp(node, other->id) == 0 ? n->peer : NULL;
}

struct answer {
    uv_timer_t timer;
    migrate_committed *committed;
    migrate_prepared *prepared;
    struct machine *m;
    void *arg;
    struct err e;
};
static void answer_closed(uv_handle_t *h) { free(h->data); }
static void answer_now(uv_timer_t *t)
{
    struct answer *a = t->data;
    if (a->committed)
        a->committed(a->arg, a->e.code, &a->e);
    else
        a->prepared(a->arg, a->e.code, a->m, &a->e);
    uv_close((uv_handle_t *)t, answer_closed);
}
static struct answer *answer_later(int code, void *arg)
{
    struct answer *a = xcalloc(1, sizeof *a);
    a->arg = arg;
    if (code)
        err_set(&a->e, code, "the test says %s", err_code_name(code));
    uv_timer_init(uv_default_loop(), &a->timer);
    a->timer.data = a;
    uv_timer_start(&a->timer, answer_now, 3, 0);
    return a;
}

static void both_see(struct world *w)
{
    for (int i = 0; i < 2; i++)
        migrate_db_changed(w->n[i].mg);
}

static int take(int codes[4])
{
    int c = codes[0];
    memmove(codes, codes + 1, 3 * sizeof *codes);
    codes[3] = 0;
    return c;
}

static bool row_is(const struct db *db, const struct migrate_key *k)
{
    return strcmp(db->host, k->source) == 0 && db->generation == k->generation;
}

static void take_away(struct db *db)
{
    strcpy(db->host, "third");
    db->generation += 5;
}

static void op_commit(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg)
{
    struct node *n = ctx;
    struct db *db = &n->w->db;
    int code = take(db->commit_codes);
    if (db->taken_at_commit)
        take_away(db);
    bool fits = row_is(db, k) && strcmp(db->migrate_to, k->dest) == 0;
    db->commits++;
    if (code == E_OK && !fits)
        code = E_CONFLICT;
    if (fits && (code == E_OK || (code == E_UNKNOWN && db->unknown_applies))) {
        strcpy(db->host, k->dest);
        db->generation++;
        db->migrate_to[0] = '\0';
    }
    answer_later(code, arg)->committed = fn;
}

static void op_decline(void *ctx, const struct migrate_key *k, migrate_committed *fn, void *arg)
{
    struct node *n = ctx;
    struct db *db = &n->w->db;
    int code = take(db->decline_codes);
    db->declines++;
    if (code == E_OK && !row_is(db, k))
        code = E_CONFLICT;
    if (code == E_OK)
        db->migrate_to[0] = '\0';
    answer_later(code, arg)->committed = fn;
}

static void op_progress(void *ctx, const char *machine, const struct migrate_progress *p) { ((struct node *)ctx)->w->last = *p; }

static void op_ended(void *ctx, const char *machine, enum migrate_state how, const struct migrate_progress *p, const char *message)
{
    struct world *w = ((struct node *)ctx)->w;
    w->over++;
    w->how = how;
    w->last = *p;
    snprintf(w->message, sizeof w->message, "%s", message);
}

static enum migrate_place op_place(void *ctx, const struct migrate_key *k)
{
    const struct db *db = &((struct node *)ctx)->w->db;
    if (row_is(db, k))
        return strcmp(db->migrate_to, k->dest) == 0 ? MIGRATE_WANTED : MIGRATE_NOT_WANTED;
    return strcmp(db->host, k->dest) == 0 && db->generation == k->generation + 1 ? MIGRATE_MOVED : MIGRATE_ELSEWHERE;
}

static void op_prepare(void *ctx, const struct migrate_key *k, const struct machine_spec *spec, migrate_prepared *fn, void *arg)
{
    struct node *n = ctx;
    struct err e = {0};
    n->spec = *spec;
    if (spec->n_disks)
        strcpy(n->spec.disks[0].socket, n->w->disk_socket[n - n->w->n]);
    int rc = machine_start(n->rig.ms, &n->spec, &n->m, &e);
    struct answer *a = answer_later(rc, arg);
    a->prepared = fn;
    a->m = n->m;
}

static const struct migrate_ops ops = {op_peer, op_commit, op_decline, op_progress, op_ended, op_place, op_prepare};

/* ---- world ---- */

static void on_machine(struct machine *m, void *arg)
{
    struct node *n = arg;
    migrate_machine_changed(n->mg, m);
}

static void node_open(struct world *w, int i)
{
    struct node *n = &w->n[i];
    struct err e;
    n->w = w;
    rig_open(&n->rig, uv_default_loop());
    n->rig.on_change = on_machine;
    n->rig.on_change_arg = n;
    char *ca = xasprintf("%s/test-ca.pem", w->dir), *cert = xasprintf("%s/n%d.pem", w->dir, i), *key = xasprintf("%s/n%d.key", w->dir, i);
    char name[8];
    snprintf(name, sizeof name, "n%d", i);
    testcert_node(w->dir, "test", name, n->id, false);
    struct rpc_tls_files files = {ca, cert, key};
    assert_int_equal(rpc_env_open(uv_default_loop(), &files, &n->rpc, &e), E_OK);
    struct migrate_conf c = {.loop = uv_default_loop(), .rpc = n->rpc, .address = "127.0.0.1", .first_port = PORT, .ops = &ops, .ctx = n};
    assert_int_equal(migrate_open(&c, &n->mg, &e), E_OK);
    assert_int_equal(rpc_listen(n->rpc, "127.0.0.1", 0, &n->server, &e), E_OK);
    free(ca);
    free(cert);
    free(key);
}

static bool connected(void *arg)
{
    struct world *w = arg;
    return rpc_peer_connected(w->n[0].peer) && rpc_peer_connected(w->n[1].peer);
}

static struct world *world_open_type(bool with_disk, enum machine_type type)
{
    struct world *w = xcalloc(1, sizeof *w);
    w->with_disk = with_disk;
    snprintf(w->dir, sizeof w->dir, "/tmp/cohort-test-%d-XXXXXX", (int)getpid());
    assert_non_null(mkdtemp(w->dir));
    testcert_ca(w->dir, "test");
    for (int i = 0; i < 2; i++) {
        id_new(w->n[i].id);
        node_open(w, i);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(rpc_peer_open(w->n[i].rpc, w->n[!i].id, "127.0.0.1", rpc_server_port(w->n[!i].server), NULL, NULL, &w->n[i].peer, NULL), E_OK);
    assert_true(rig_until(uv_default_loop(), connected, w, LONG_MS));
    for (int i = 0; with_disk && i < 2; i++) { /* two servers of one file, as the two nodes' daemons serve one volume */
        snprintf(w->disk_socket[i], sizeof w->disk_socket[i], "%s/d%d.sock", w->dir, i);
        w->disk[i] = rig_disk(&w->n[0].rig, w->disk_socket[i], 1 << 20);
    }
    struct node *n = &w->n[0];
    struct err e;
    rig_spec(&n->spec, type, MACHINE_TCG);
    if (with_disk) {
        n->spec.n_disks = 1;
        strcpy(n->spec.disks[0].socket, w->disk_socket[0]);
    }
    if (machine_start(n->rig.ms, &n->spec, &n->m, &e) != E_OK)
        fail_msg("%s", e.msg);
    assert_true(rig_until_state(n->m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(&n->rig, &n->spec, 3, LONG_MS));
    strcpy(w->db.host, n->id);
    w->db.generation = n->spec.generation;
    return w;
}

static struct world *world_open(bool with_disk) { return world_open_type(with_disk, MACHINE_Q35); }

static void world_close(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        migrate_close(w->n[i].mg);
        w->n[i].rig.on_change = NULL;
        rpc_env_close(w->n[i].rpc);
    }
    rig_run_ms(uv_default_loop(), 50);
    for (int i = 0; i < 2; i++)
        rig_close(&w->n[i].rig);
    for (int i = 0; w->with_disk && i < 2; i++)
        rig_disk_end(w->disk[i]);
    char *rm = xasprintf("rm -rf %s", w->dir);
    assert_int_equal(system(rm), 0);
    free(rm);
    free(w);
}

static void begin(struct world *w, int from, const struct migrate_options *o)
{
    struct err e;
    struct node *src = &w->n[from], *dst = &w->n[!from];
    if (dst->m) { /* of an earlier migration back and forth */
        assert_true(rig_until_state(dst->m, MACHINE_ENDED, LONG_MS));
        machine_free(dst->m);
        dst->m = NULL;
    }
    w->over = 0;
    strcpy(w->db.migrate_to, dst->id);
    if (migrate_start(src->mg, src->m, dst->id, o, &e) != E_OK)
        fail_msg("%s", e.msg);
}

static bool is_over(void *arg) { return ((struct world *)arg)->over > 0; }
static bool in_precopy(void *arg)
{
    struct world *w = arg;
    return w->over || (w->last.state == MIGRATE_PRECOPY && w->last.done_bytes > 0);
}

static void expect(struct world *w, enum migrate_state how)
{
    assert_true(rig_until(uv_default_loop(), is_over, w, 2 * LONG_MS));
    if (w->how != how)
        fail_msg("%s instead of %s: %s", migrate_state_name(w->how), migrate_state_name(how), w->message);
}

/* The guest lives at `at` and nowhere else, its memory as it was. */
static void lives_at(struct world *w, int at)
{
    struct node *here = &w->n[at], *there = &w->n[!at];
    assert_non_null(here->m);
    assert_true(rig_until_state(here->m, MACHINE_RUNNING, LONG_MS));
    assert_true(rig_guest_goes_on(&here->rig, &here->spec, 5, LONG_MS));
    if (there->m)
        assert_true(rig_until_state(there->m, MACHINE_ENDED, LONG_MS));
    assert_false(migrate_owns(here->mg, here->spec.id));
    assert_false(migrate_owns(there->mg, here->spec.id));
}

/* ---- tests ---- */

static void test_back_and_forth(void **state)
{
    struct world *w = world_open(true);
    struct migrate_options o = {0};
    for (int i = 0; i < 6; i++) {
        begin(w, i % 2, &o);
        expect(w, MIGRATE_DONE);
        printf("migration %d: stood still about %d ms\n", i, w->last.pause_ms);
        both_see(w);
        lives_at(w, !(i % 2));
        assert_int_equal(w->n[!(i % 2)].spec.generation, i + 2);
    }
    world_close(w);
}

static void test_microvm(void **state)
{
    struct world *w = world_open_type(true, MACHINE_MICROVM);
    struct migrate_options o = {0};
    for (int i = 0; i < 2; i++) {
        begin(w, i, &o);
        expect(w, MIGRATE_DONE);
        both_see(w);
        lives_at(w, !i);
    }
    world_close(w);
}

static void slow(struct world *w, struct migrate_options *o)
{
    *o = (struct migrate_options){.max_bandwidth = 4 << 20, .downtime_ms = 20};
    begin(w, 0, o);
    assert_true(rig_until(uv_default_loop(), in_precopy, w, LONG_MS));
    assert_int_equal(w->over, 0);
}

static void test_destination_dies(void **state)
{
    struct world *w = world_open(false);
    struct migrate_options o;
    slow(w, &o);
    kill(machine_pid(w->n[1].m), SIGKILL);
    expect(w, MIGRATE_FAILED);
    lives_at(w, 0);
    assert_int_equal(w->db.commits, 0);
    world_close(w);
}

static void test_cancel(void **state)
{
    struct world *w = world_open(false);
    struct migrate_options o;
    slow(w, &o);
    assert_int_equal(migrate_start(w->n[0].mg, w->n[0].m, w->n[1].id, &o, NULL), E_EXISTS);
    assert_int_equal(migrate_cancel(w->n[0].mg, w->n[0].spec.id, NULL), E_OK);
    expect(w, MIGRATE_CANCELLED);
    lives_at(w, 0);
    assert_int_equal(migrate_cancel(w->n[0].mg, w->n[0].spec.id, NULL), E_NOTFOUND);
    /* The wish withdrawn in the database is the same. */
    slow(w, &o);
    w->db.migrate_to[0] = '\0';
    both_see(w);
    expect(w, MIGRATE_CANCELLED);
    lives_at(w, 0);
    world_close(w);
}

static void test_source_dies(void **state)
{
    struct world *w = world_open(false);
    struct migrate_options o;
    slow(w, &o);
    kill(machine_pid(w->n[0].m), SIGKILL);
    expect(w, MIGRATE_FAILED);
    assert_true(rig_until_state(w->n[1].m, MACHINE_ENDED, LONG_MS));
    assert_true(rig_until_state(w->n[0].m, MACHINE_ENDED, LONG_MS));
    world_close(w);
}

static void test_commit_unknown(void **state)
{
    for (int applied = 0; applied < 2; applied++) {
        struct world *w = world_open(false);
        struct migrate_options o = {0};
        w->db.commit_codes[0] = E_UNKNOWN;
        w->db.unknown_applies = applied;
        begin(w, 0, &o);
        expect(w, MIGRATE_DONE);
        assert_int_equal(w->db.commits, 2);
        both_see(w);
        lives_at(w, 1);
        world_close(w);
    }
}

static void test_commit_refused(void **state)
{
    struct world *w = world_open(false);
    struct migrate_options o = {0};
    w->db.commit_codes[0] = E_CONFLICT;
    w->db.decline_codes[0] = E_UNKNOWN;
    begin(w, 0, &o);
    expect(w, MIGRATE_FAILED);
    assert_int_equal(w->db.declines, 2);
    lives_at(w, 0);
    world_close(w);
}

/* The coordinator gave the guest to a third node meanwhile: neither side may run it. */
static void test_taken_away(void **state)
{
    for (int at_commit = 0; at_commit < 2; at_commit++) {
        struct world *w = world_open(false);
        struct migrate_options o = {0};
        begin(w, 0, &o);
        if (at_commit)
            w->db.taken_at_commit = true;
        else
            take_away(&w->db);
        expect(w, MIGRATE_FAILED);
        both_see(w);
        assert_true(rig_until_state(w->n[0].m, MACHINE_ENDED, LONG_MS));
        assert_true(rig_until_state(w->n[1].m, MACHINE_ENDED, LONG_MS));
        world_close(w);
    }
}

static void test_writes_too_fast(void **state)
{
    struct world *w = world_open(false);
    struct migrate_options o = {.max_bandwidth = 30 << 20, .downtime_ms = 10, .last = POLICY_LAST_CANCEL};
    begin(w, 0, &o);
    expect(w, MIGRATE_CANCELLED);
    lives_at(w, 0);
    o.last = POLICY_LAST_PAUSE;
    begin(w, 0, &o);
    expect(w, MIGRATE_DONE);
    both_see(w);
    lives_at(w, 1);
    world_close(w);
}

int main(void)
{
    rig_require();
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_back_and_forth), cmocka_unit_test(test_destination_dies), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_source_dies),    cmocka_unit_test(test_commit_unknown),   cmocka_unit_test(test_commit_refused),
        cmocka_unit_test(test_taken_away),     cmocka_unit_test(test_writes_too_fast),
        cmocka_unit_test(test_microvm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
