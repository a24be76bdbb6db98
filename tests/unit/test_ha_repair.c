/* Repair of copies: what is replaced, when and where to; and that plans carried out again and again come to an end with every
 * shard whole, on any cluster. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include "cluster/copies.h"
#include "ha/coord.h"
#include "ha/repair.h"

#define GIB (INT64_C(1) << 30)
#define NOW INT64_C(1000000000)

static uv_loop_t loop;
static uv_timer_t keep; /* a link alone does not keep a loop alive */
static struct cdb *db;
static struct cdb_link *l;
static struct repair_conf conf;

static void on_keep(uv_timer_t *t) { (void)t; }
static void on_view(struct cdb_link *link, void *arg) { (void)link, (void)arg; }
static void committed(void *arg, int status, const struct err *e) { (void)e; *(int *)arg = status; }
static const struct cdb_view *view(void) { return cdb_link_view(l); }

static void commit(struct cdb_txn *t)
{
    int status = 1;
    cdb_txn_commit(l, t, "test", committed, &status);
    while (status == 1)
        uv_run(&loop, UV_RUN_ONCE);
    assert_int_equal(status, E_OK);
}

static void put_node(struct cdb_txn *t, int i)
{
    char id[8];
    snprintf(id, sizeof id, "n%d", i);
    cdb_txn_insert(t, CDB_T_NODE, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_name, id);
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, "up");
}

static void put_disk(struct cdb_txn *t, const char *id, int node, int64_t bytes, const char *state)
{
    char n[8];
    snprintf(n, sizeof n, "n%d", node);
    cdb_txn_insert(t, CDB_T_DISK, id);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_node, n);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_name, id);
    cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_state, state);
    cdb_txn_set_int(t, CDB_T_DISK, id, CDB_DISK_size_bytes, bytes);
    cdb_txn_set_int(t, CDB_T_DISK, id, CDB_DISK_incarnation, 1);
}

static void put_volume(struct cdb_txn *t, const char *id, int replicas, const char *owner)
{
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, id);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, 4 * GIB);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, GIB);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, replicas);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_owner, owner);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "disk");
}

static void set_in_sync(struct cdb_txn *t, const char *id, int n, const char **disk)
{
    char *k[8];
    int64_t val[8];
    for (int i = 0; i < n; i++) {
        int at = i;
        for (; at > 0 && strcmp(k[at - 1], disk[i]) > 0; at--)
            k[at] = k[at - 1];
        k[at] = (char *)disk[i];
        val[i] = 1;
    }
    struct cdb_imap m = {(size_t)n, k, val};
    cdb_txn_set_imap(t, CDB_T_SHARD, id, CDB_SHARD_in_sync, &m);
}

static void put_shard(struct cdb_txn *t, const char *vol, int index, int n, const char **disk)
{
    char id[32];
    snprintf(id, sizeof id, "%s/%d", vol, index);
    cdb_txn_insert(t, CDB_T_SHARD, id);
    cdb_txn_set_str(t, CDB_T_SHARD, id, CDB_SHARD_volume, vol);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_idx, index);
    cdb_txn_set_strs(t, CDB_T_SHARD, id, CDB_SHARD_replicas, (size_t)n, disk);
    set_in_sync(t, id, n, disk);
}

static void set_str(enum cdb_table tb, const char *id, int col, const char *v)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, tb, id, col, v);
    commit(t);
}

static void set_int(enum cdb_table tb, const char *id, int col, int64_t v)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_int(t, tb, id, col, v);
    commit(t);
}

static void kill_node(const char *id, int64_t since_ms)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_state, "dead");
    cdb_txn_set_int(t, CDB_T_NODE, id, CDB_NODE_state_ms, since_ms);
    for (size_t i = 0; i < cdb_disk_count(view()); i++) {
        const struct cdb_disk *d = cdb_disk_at(view(), i);
        if (!strcmp(d->node, id) && copies_may_lose(view(), d->id)) {
            copies_require_may_lose(t, view(), d->id);
            copies_distrust(t, d);
        }
    }
    commit(t);
}

static void open_db(void)
{
    uv_loop_init(&loop);
    uv_timer_init(&loop, &keep);
    uv_timer_start(&keep, on_keep, 3600000, 3600000);
    db = cdb_mem_open();
    l = cdb_link_open(db, &loop, on_view, NULL);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_CLUSTER, "cluster");
    commit(t);
    repair_conf_of(view(), NOW, &conf);
}

static void close_db(void)
{
    cdb_link_close(l);
    uv_close((uv_handle_t *)&keep, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    cdb_close(db);
    uv_loop_close(&loop);
}

/* Four nodes with a disk of 100 GiB each; volume v, three copies on d0, d1, d2, shards 0 and 1. */
static int setup(void **state)
{
    (void)state;
    open_db();
    struct cdb_txn *t = cdb_txn_new();
    const char *on[] = {"d0", "d1", "d2"};
    for (int i = 0; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "d%d", i);
        put_node(t, i);
        put_disk(t, id, i, 100 * GIB, "up");
    }
    put_volume(t, "v", 3, "n0");
    put_shard(t, "v", 0, 3, on);
    put_shard(t, "v", 1, 3, on);
    commit(t);
    conf.balance = false;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close_db();
    return 0;
}

static int plan(struct repair_step *s)
{
    return repair_plan(view(), &conf, s, REPAIR_STEPS_MAX);
}

static void carry_out(const struct repair_step *s, int n)
{
    struct cdb_txn *t = cdb_txn_new();
    repair_txn(view(), t, s, n);
    commit(t);
}

/* What the owners do: every copy on a disk that is up catches up. */
static void catch_up(void)
{
    struct cdb_txn *t = cdb_txn_new();
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        char *k[8];
        int64_t val[8];
        struct cdb_imap m = {0, k, val};
        if (!cdb_shard_in_sync_count(view(), s))
            continue;
        for (size_t r = 0; r < s->replicas.n; r++) {
            const struct cdb_disk *d = cdb_disk_get(view(), s->replicas.v[r]);
            const struct cdb_node *n = d ? cdb_node_get(view(), d->node) : NULL;
            bool up = n && !strcmp(n->state, "up") && (!strcmp(d->state, "up") || !strcmp(d->state, "draining"));
            if (up || (d && cdb_shard_in_sync(view(), s, d->id))) {
                k[m.n] = d->id;
                val[m.n++] = d->incarnation;
            }
        }
        cdb_txn_set_imap(t, CDB_T_SHARD, s->id, CDB_SHARD_in_sync, &m);
    }
    commit(t);
}

static void test_healthy_needs_nothing(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    (void)state;
    assert_int_equal(plan(s), 0);
}

static void test_dead_node_is_waited_for(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    (void)state;
    kill_node("n2", NOW - REPAIR_ABSENT_MS + 1);
    assert_int_equal(plan(s), 0);
    conf.wall_ms++;
    assert_int_equal(plan(s), 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(s[i].why, REPAIR_LOST);
        assert_string_equal(s[i].add->id, "d3");
        assert_string_equal(s[i].remove, "d2");
    }
    carry_out(s, 2);
    assert_int_equal(plan(s), 0); /* the owner copies now */
    const struct cdb_shard *row = cdb_shard_get(view(), "v/0");
    assert_true(cdb_strs_has(&row->replicas, "d3") && !cdb_strs_has(&row->replicas, "d2"));
    assert_int_equal(row->in_sync.n, 2);
    conf.wall_ms--;
}

static void test_maintenance_is_waited_for(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    struct cdb_txn *t = cdb_txn_new();
    (void)state;
    cdb_txn_set_bool(t, CDB_T_NODE, "n2", CDB_NODE_maintenance, true);
    commit(t);
    kill_node("n2", 1);
    assert_int_equal(plan(s), 0);
}

static void test_setting_shortens_the_wait(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    char *k[] = {"repair_absent_s"}, *val[] = {"5"};
    struct cdb_smap m = {1, k, val};
    struct cdb_txn *t = cdb_txn_new();
    (void)state;
    cdb_txn_set_smap(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_settings, &m);
    commit(t);
    kill_node("n2", NOW - 5000);
    repair_conf_of(view(), NOW, &conf);
    assert_int_equal(plan(s), 2);
}

static void test_one_copy_left_comes_first(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    const char *on[] = {"d1", "d2"}, *left[] = {"d1"};
    struct cdb_txn *t = cdb_txn_new();
    (void)state;
    put_volume(t, "w", 2, "");
    put_shard(t, "w", 0, 2, on);
    set_in_sync(t, "w/0", 1, left);
    cdb_txn_set_str(t, CDB_T_DISK, "d2", CDB_DISK_state, "failed");
    cdb_txn_set_int(t, CDB_T_DISK, "d2", CDB_DISK_incarnation, 2);
    commit(t);
    assert_int_equal(plan(s), 3);
    assert_string_equal(s[0].shard->id, "w/0");
    assert_int_equal(s[0].in_sync, 1);
}

static void test_only_good_copy_stays(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    const char *left[] = {"d2"};
    struct cdb_txn *t = cdb_txn_new();
    int no_place, no_copy;
    (void)state;
    set_in_sync(t, "v/0", 1, left);
    commit(t);
    kill_node("n2", 1); /* its copy of v/0 must stay believed */
    assert_int_equal(cdb_disk_get(view(), "d2")->incarnation, 1);
    int n = plan(s);
    for (int i = 0; i < n; i++)
        assert_true(!s[i].remove || strcmp(s[i].shard->id, "v/0"));
    set_str(CDB_T_NODE, "n3", CDB_NODE_state, "dead");
    set_int(CDB_T_DISK, "d2", CDB_DISK_incarnation, 2);
    repair_stuck(view(), &conf, &no_place, &no_copy);
    assert_int_equal(no_copy, 1);
    assert_int_equal(no_place, 1);
    assert_int_equal(plan(s), 0);
}

static void test_drain(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    (void)state;
    set_str(CDB_T_DISK, "d1", CDB_DISK_state, "draining");
    assert_int_equal(plan(s), 2);
    assert_int_equal(s[0].why, REPAIR_DRAIN);
    assert_null(s[0].remove);
    carry_out(s, 2);
    assert_int_equal(plan(s), 0); /* not before the new copies are in sync */
    catch_up();
    assert_int_equal(plan(s), 2);
    assert_int_equal(s[0].why, REPAIR_EXTRA);
    assert_string_equal(s[0].remove, "d1");
    carry_out(s, 2);
    assert_int_equal(plan(s), 0);
    assert_int_equal(cdb_shard_get(view(), "v/0")->replicas.n, 3);
}

static void test_copy_follows_the_guest_only(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    const char *disks[] = {"0:v"};
    (void)state;
    set_str(CDB_T_VOLUME, "v", CDB_VOLUME_owner, "n3");
    assert_int_equal(plan(s), 0); /* a tool has it */
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_MACHINE, "m");
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_host, "n3");
    cdb_txn_set_strs(t, CDB_T_MACHINE, "m", CDB_MACHINE_disks, 1, disks);
    commit(t);
    assert_int_equal(plan(s), 2);
    assert_int_equal(s[0].why, REPAIR_LOCAL);
    assert_string_equal(s[0].add->id, "d3");
    carry_out(s, 2);
    catch_up();
    assert_int_equal(plan(s), 2);
    assert_string_not_equal(s[0].remove, "d3");
}

static void test_spare_comes_in(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    struct cdb_txn *t = cdb_txn_new();
    (void)state;
    put_disk(t, "spare2", 2, 100 * GIB, "spare");
    put_disk(t, "spare3", 3, 100 * GIB, "spare");
    cdb_txn_set_str(t, CDB_T_DISK, "d2", CDB_DISK_state, "failed");
    cdb_txn_set_int(t, CDB_T_DISK, "d2", CDB_DISK_incarnation, 2);
    commit(t);
    int n = plan(s);
    assert_true(n >= 1);
    assert_int_equal(s[0].why, REPAIR_SPARE);
    assert_string_equal(s[0].add->id, "spare2"); /* of the failed disk's node */
    carry_out(s, n);
    assert_string_equal(cdb_disk_get(view(), "spare2")->state, "up");
    n = plan(s);
    for (int i = 0; i < n; i++)
        assert_int_not_equal(s[i].why, REPAIR_SPARE);
}

/* One disk in memory beside each of storage: m0..m3; volume w in memory on m0, m1. */
static void memory_too(void)
{
    char *k[] = {"class"}, *val[] = {"memory"};
    struct cdb_smap policy = {1, k, val};
    const char *on[] = {"m0", "m1"};
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "m%d", i);
        put_disk(t, id, i, 900 * GIB, "up"); /* with far more room than any other: it must not matter */
        cdb_txn_set_str(t, CDB_T_DISK, id, CDB_DISK_medium, "memory");
    }
    put_volume(t, "w", 2, "");
    cdb_txn_set_smap(t, CDB_T_VOLUME, "w", CDB_VOLUME_policy, &policy);
    put_shard(t, "w", 0, 2, on);
    commit(t);
}

/* Whatever happens to its disk, a copy goes to another one of its volume's class, or nowhere. */
static void test_classes_apart(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    (void)state;
    memory_too();
    assert_int_equal(plan(s), 0);
    set_str(CDB_T_DISK, "m0", CDB_DISK_state, "draining");
    set_str(CDB_T_DISK, "d1", CDB_DISK_state, "draining");
    int n = plan(s);
    assert_int_equal(n, 3);
    for (int i = 0; i < n; i++)
        assert_int_equal(s[i].add->id[0], s[i].shard->id[0] == 'w' ? 'm' : 'd');
    set_str(CDB_T_DISK, "m2", CDB_DISK_state, "failed");
    set_str(CDB_T_DISK, "m3", CDB_DISK_state, "failed");
    n = plan(s);
    assert_int_equal(n, 2);
    for (int i = 0; i < n; i++)
        assert_string_equal(s[i].shard->volume, "v");
    set_str(CDB_T_DISK, "d1", CDB_DISK_state, "up");
    set_str(CDB_T_DISK, "m0", CDB_DISK_state, "up");
    set_str(CDB_T_DISK, "d3", CDB_DISK_state, "spare");
    set_str(CDB_T_DISK, "m1", CDB_DISK_state, "failed"); /* a spare of storage does not stand in for it */
    for (n = plan(s); n > 0; n--)
        assert_int_not_equal(s[n - 1].why, REPAIR_SPARE);
    set_str(CDB_T_DISK, "m3", CDB_DISK_state, "spare");
    assert_true(plan(s) > 0);
    assert_int_equal(s[0].why, REPAIR_SPARE);
    assert_string_equal(s[0].add->id, "m3");
}

/* The fullest disk of all is in memory and cannot be relieved; those on storage are balanced all the same. */
static void test_balance_within_a_medium(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    (void)state;
    memory_too();
    set_int(CDB_T_DISK, "m0", CDB_DISK_size_bytes, 2 * GIB);
    set_int(CDB_T_DISK, "m1", CDB_DISK_size_bytes, 2 * GIB);
    set_str(CDB_T_DISK, "m2", CDB_DISK_state, "draining");
    set_str(CDB_T_DISK, "m3", CDB_DISK_state, "draining");
    set_int(CDB_T_DISK, "d0", CDB_DISK_size_bytes, 4 * GIB);
    set_int(CDB_T_DISK, "d1", CDB_DISK_size_bytes, 5 * GIB);
    set_int(CDB_T_DISK, "d2", CDB_DISK_size_bytes, 5 * GIB);
    set_str(CDB_T_VOLUME, "v", CDB_VOLUME_owner, "");
    conf.balance = true;
    assert_int_equal(plan(s), 1);
    assert_int_equal(s[0].why, REPAIR_BALANCE);
    assert_string_equal(s[0].add->id, "d3");
}

/* Lost is a volume in memory with a shard of which no copy counts any more, or above such a layer; never one on storage. */
static void test_lost(void **state)
{
    struct coord_action a = {.kind = COORD_LOST, .subject = "w"};
    (void)state;
    memory_too();
    const char *last = "m1";
    struct cdb_txn *t = cdb_txn_new();
    set_in_sync(t, "w/0", 1, &last);
    put_volume(t, "clone", 2, "");
    cdb_txn_set_str(t, CDB_T_VOLUME, "clone", CDB_VOLUME_parent, "w");
    cdb_txn_set_smap(t, CDB_T_VOLUME, "clone", CDB_VOLUME_policy, &cdb_volume_get(view(), "w")->policy);
    commit(t);
    assert_false(copies_volume_lost(view(), cdb_volume_get(view(), "w")));
    assert_null(coord_txn(view(), &a, NOW, "n0"));
    set_str(CDB_T_NODE, "n1", CDB_NODE_state, "dead"); /* it may be cut off only: its memory may still be there */
    assert_false(copies_volume_lost(view(), cdb_volume_get(view(), "w")));
    set_int(CDB_T_DISK, "m1", CDB_DISK_incarnation, 2);
    assert_true(copies_volume_lost(view(), cdb_volume_get(view(), "w")));
    assert_true(copies_volume_lost(view(), cdb_volume_get(view(), "clone")));
    assert_non_null(t = coord_txn(view(), &a, NOW, "n0"));
    commit(t);
    assert_int_equal(cdb_volume_get(view(), "w")->lost_ms, NOW);
    assert_int_equal(cdb_event_count(view()), 1);
    assert_non_null(strstr(cdb_event_at(view(), 0)->message, "cohort volume reset w"));
    assert_string_equal(cdb_event_at(view(), 0)->severity, "alarm");
    assert_null(coord_txn(view(), &a, NOW, "n0")); /* said once */
    for (int i = 0; i < 3; i++) {
        char id[8];
        snprintf(id, sizeof id, "d%d", i);
        set_int(CDB_T_DISK, id, CDB_DISK_incarnation, 2);
    }
    assert_int_equal(cdb_shard_in_sync_count(view(), cdb_shard_get(view(), "v/0")), 0);
    assert_false(copies_volume_lost(view(), cdb_volume_get(view(), "v")));
}

static void test_domains(void **state)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    struct cdb_txn *t = cdb_txn_new();
    (void)state;
    put_node(t, 4);
    put_disk(t, "d4", 4, 10 * GIB, "up"); /* less room than d3, but in a rack of its own */
    for (int i = 0; i < 5; i++) {
        static const char *const rack[] = {"a", "b", "c", "a", "d"};
        char id[8];
        snprintf(id, sizeof id, "n%d", i);
        cdb_txn_set_str(t, CDB_T_NODE, id, CDB_NODE_domain, rack[i]);
    }
    commit(t);
    kill_node("n1", 1);
    assert_int_equal(plan(s), 2);
    assert_string_equal(s[0].add->id, "d4");
}

/* ---- any cluster ---- */

static uint64_t rng;
static int rnd(int n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (int)((rng >> 11) % (uint64_t)n);
}

static void random_cluster(int nodes)
{
    struct cdb_txn *t = cdb_txn_new();
    int disks = 0;
    for (int i = 0; i < nodes; i++) {
        char id[8];
        put_node(t, i);
        snprintf(id, sizeof id, "n%d", i);
        for (int k = rnd(3); k >= 0; k--) {
            char d[16];
            snprintf(d, sizeof d, "d%02d", disks++);
            put_disk(t, d, i, (50 + rnd(100)) * GIB, "up");
        }
    }
    commit(t);
    t = cdb_txn_new();
    for (int i = 0; i < 8; i++) {
        char id[8], owner[8];
        int replicas = 1 + rnd(3);
        snprintf(id, sizeof id, "v%d", i);
        snprintf(owner, sizeof owner, "n%d", rnd(nodes));
        put_volume(t, id, replicas, owner);
        for (int s = 0; s < 4; s++) {
            const char *on[3];
            int n = 0;
            for (int tries = 0; n < replicas && tries < 100; tries++) { /* crowded at the front */
                const struct cdb_disk *d = cdb_disk_at(view(), (size_t)rnd(1 + rnd((int)cdb_disk_count(view()))));
                bool clash = false;
                for (int k = 0; k < n; k++)
                    clash = clash || !strcmp(cdb_disk_get(view(), on[k])->node, d->node);
                if (!clash)
                    on[n++] = d->id;
            }
            put_shard(t, id, s, n, on);
        }
    }
    commit(t);
}

static void check_whole(const char *when)
{
    for (size_t i = 0; i < cdb_shard_count(view()); i++) {
        const struct cdb_shard *s = cdb_shard_at(view(), i);
        const struct cdb_volume *vol = cdb_volume_get(view(), s->volume);
        if (!cdb_shard_in_sync_count(view(), s))
            continue; /* its only copy is on the dead node */
        bool whole = (int64_t)s->replicas.n == vol->replicas && cdb_shard_in_sync_count(view(), s) == vol->replicas;
        for (size_t k = 0; k < s->replicas.n; k++)
            for (size_t j = 0; j < k; j++)
                whole = whole && strcmp(cdb_disk_get(view(), s->replicas.v[k])->node, cdb_disk_get(view(), s->replicas.v[j])->node);
        if (!whole)
            fail_msg("%s: shard %s has %zu copies, %d in sync, of %d", when, s->id, s->replicas.n,
                     cdb_shard_in_sync_count(view(), s), (int)vol->replicas);
    }
}

/* No step may leave a shard with fewer good copies than it had, unless it keeps all it wants. */
static void check_step_safe(const struct repair_step *s)
{
    if (!s->remove || !s->shard || !cdb_shard_in_sync(view(), s->shard, s->remove))
        return;
    int left = 0;
    for (size_t k = 0; k < s->shard->replicas.n; k++) {
        const char *d = s->shard->replicas.v[k];
        left += strcmp(d, s->remove) && cdb_shard_in_sync(view(), s->shard, d) &&
                copies_worth(view(), d, conf.wall_ms, conf.absent_ms) == COPIES_KEPT;
    }
    assert_true(left >= cdb_volume_get(view(), s->shard->volume)->replicas);
}

static void settle(const char *when)
{
    struct repair_step s[REPAIR_STEPS_MAX];
    for (int round = 0; ; round++) {
        int n = plan(s);
        if (!n)
            break;
        if (round > 500)
            fail_msg("%s: does not come to an end", when);
        for (int i = 0; i < n; i++)
            check_step_safe(&s[i]);
        carry_out(s, n);
        if (rnd(3))
            catch_up();
    }
    catch_up();
    if (plan(s))
        settle(when);
}

static int copies_on(const char *disk)
{
    int n = 0;
    for (size_t i = 0; i < cdb_shard_count(view()); i++)
        n += cdb_strs_has(&cdb_shard_at(view(), i)->replicas, disk);
    return n;
}

/* Steps until the coordinator wants to repair, the others being there, and carries that out: how many copies have left d2. Refused: 0. */
static int coordinate(struct coord *c, bool refused)
{
    static uint64_t now = 1000;
    for (int i = 0; i < 100; i++) {
        struct coord_action a[COORD_ACTIONS_MAX];
        now += 500;
        coord_heartbeat(c, now, view(), "n1", 0);
        coord_heartbeat(c, now, view(), "n3", 0);
        int n = coord_step(c, now, NOW, view(), true, a, COORD_ACTIONS_MAX), before = copies_on("d2");
        for (int k = 0; k < n; k++) {
            bool repair = a[k].kind == COORD_REPAIR;
            struct cdb_txn *t = coord_txn(view(), &a[k], NOW, "n0");
            assert_non_null(t);
            if (repair && refused)
                cdb_txn_free(t);
            else
                commit(t);
            coord_done(c, now, &a[k], repair && refused ? E_CONFLICT : E_OK);
            if (repair)
                return before - copies_on("d2");
        }
    }
    fail_msg("the coordinator does nothing");
    return -1;
}

/* 2000 copies are lost: placed anew by few transactions. One that is refused, for any of its rows has changed, is not repeated as it
 * was for ever. */
static void test_many_at_once(void **state)
{
    const char *on[] = {"d0", "d1", "d2"};
    struct coord c;
    (void)state;
    for (int k = 0; k < 200; k++) {
        char id[8];
        struct cdb_txn *t = cdb_txn_new();
        snprintf(id, sizeof id, "w%d", k);
        put_volume(t, id, 3, "n0");
        for (int i = 0; i < 10; i++)
            put_shard(t, id, i, 3, on);
        commit(t);
    }
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_bool(t, CDB_T_NODE, "n0", CDB_NODE_voter, true);
    commit(t);
    kill_node("n2", NOW - 2 * REPAIR_ABSENT_MS);
    coord_init(&c, &(struct coord_conf){.self = "n0", .margin_ms = 2000, .hear_ms = 1500});
    assert_int_equal(coordinate(&c, false), REPAIR_STEPS_MAX);
    assert_int_equal(coordinate(&c, true), 0);
    assert_int_equal(coordinate(&c, false), REPAIR_STEPS_MAX / 4);
    assert_int_equal(coordinate(&c, false), REPAIR_STEPS_MAX / 2);
    for (int i = 0; i < 5; i++)
        assert_int_equal(coordinate(&c, true), 0);
    assert_int_equal(coordinate(&c, false), REPAIR_STEPS_MIN);
    int more = 0;
    for (; copies_on("d2"); more++)
        assert_true(coordinate(&c, false) > 0);
    assert_in_range(more, 1, 10);
}

static void test_any_cluster_settles(void **state)
{
    (void)state;
    for (int seed = 1; seed <= 60; seed++) {
        char when[64];
        rng = (uint64_t)seed * 0x9e3779b97f4a7c15u;
        open_db();
        int nodes = 4 + rnd(4);
        random_cluster(nodes);
        snprintf(when, sizeof when, "seed %d, balancing", seed);
        settle(when);
        check_whole(when);
        set_str(CDB_T_DISK, cdb_disk_at(view(), (size_t)rnd((int)cdb_disk_count(view())))->id, CDB_DISK_state, "draining");
        snprintf(when, sizeof when, "seed %d, draining", seed);
        settle(when);
        check_whole(when);
        for (size_t i = 0; i < cdb_shard_count(view()); i++)
            for (size_t k = 0; k < cdb_shard_at(view(), i)->replicas.n; k++)
                assert_string_not_equal(cdb_disk_get(view(), cdb_shard_at(view(), i)->replicas.v[k])->state, "draining");
        char dead[8];
        snprintf(dead, sizeof dead, "n%d", rnd(nodes));
        kill_node(dead, 1);
        snprintf(when, sizeof when, "seed %d, node dead", seed);
        settle(when);
        check_whole(when);
        close_db();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_healthy_needs_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dead_node_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_maintenance_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_setting_shortens_the_wait, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_copy_left_comes_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_good_copy_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copy_follows_the_guest_only, setup, teardown),
        cmocka_unit_test_setup_teardown(test_spare_comes_in, setup, teardown),
        cmocka_unit_test_setup_teardown(test_classes_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_balance_within_a_medium, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_domains, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_at_once, setup, teardown),
        cmocka_unit_test(test_any_cluster_settles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
