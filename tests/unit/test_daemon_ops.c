/* daemon: operations against the in-memory database. */
#include "tests/lib/twin.h"

#include "base/clock.h"
#include "cluster/pki.h"
#include "daemon/jin.h"

#define MIB (INT64_C(1) << 20)
#define GIB (INT64_C(1) << 30)

static struct twin w;

static int setup(void **s)
{
    twin_open(&w);
    return 0;
}

static int teardown(void **s)
{
    twin_close(&w);
    return 0;
}

static int make_volume(const char *name, int64_t size, int64_t replicas)
{
    struct volume_spec v = {.name = name, .size_bytes = size, .replicas = replicas, .purpose = "disk"};
    return twin_end(&w, op_volume_create(w.ops, &v, twin_done, &w, &w.err));
}

static int make_network(const char *name, const char *cidr, const char *gateway)
{
    struct network_spec n = {.name = name, .cidr = cidr, .gateway = gateway};
    return twin_end(&w, op_network_create(w.ops, &n, twin_done, &w, &w.err));
}

static struct vm_spec vm(const char *name)
{
    return (struct vm_spec){.name = name, .type = "q35", .accel = "auto", .image = "", .cmdline = "", .ha_policy = "restart", .affinity = "none",
                            .vcpus = 1, .memory_bytes = 512 * MIB, .priority = 50, .n_disks = 1, .disks = {{.size_bytes = GIB}}};
}

static int make_vm(const struct vm_spec *s) { return twin_end(&w, op_vm_create(w.ops, s, twin_done, &w, &w.err)); }
static int start(const char *name, const char *to) { return twin_end(&w, op_vm_start(w.ops, name, to, twin_done, &w, &w.err)); }

static const struct cdb_machine *machine(const char *name) { return cdb_find_name(twin_view(&w), CDB_T_MACHINE, name); }
static const struct cdb_volume *volume(const char *name) { return cdb_find_name(twin_view(&w), CDB_T_VOLUME, name); }

static void set_machine(const char *name, int col, const char *v)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_MACHINE, machine(name)->id, col, v);
    twin_commit(&w, t);
}

static void volumes(void **s)
{
    assert_int_equal(make_volume("db1", 10 * GIB, 0), E_OK);
    assert_int_equal(volume("db1")->replicas, 3);
    assert_int_equal(volume("db1")->shard_bytes, GIB);
    assert_int_equal(make_volume("db1", GIB, 0), E_EXISTS);
    assert_int_equal(make_volume("a b", GIB, 0), E_INVAL);
    assert_int_equal(make_volume("00000000-0000-4000-8000-000000000000", GIB, 0), E_INVAL);
    assert_int_equal(make_volume("x", GIB + 1, 0), E_INVAL);
    assert_int_equal(make_volume("x", 4096, 0), E_INVAL);
    assert_int_equal(make_volume("x", VOLUME_MAX_BYTES + 4096, 0), E_INVAL);
    assert_int_equal(make_volume("x", GIB, 4), E_INVAL);
    assert_int_equal(ops_shard_bytes(64 * GIB), GIB);
    assert_int_equal(ops_shard_bytes(64 * GIB + 4096), 2 * GIB);
    assert_int_equal(ops_shard_bytes(VOLUME_MAX_BYTES), 64 * GIB);
    assert_int_equal(twin_end(&w, op_volume_resize(w.ops, "db1", 10 * GIB - 4096, twin_done, &w, &w.err)), E_INVAL);
    assert_int_equal(twin_end(&w, op_volume_resize(w.ops, "db1", 10 * GIB + 512, twin_done, &w, &w.err)), E_INVAL);
    assert_int_equal(twin_end(&w, op_volume_resize(w.ops, "db1", 64 * GIB + 4096, twin_done, &w, &w.err)), E_INVAL); /* a 65th shard */
    assert_int_equal(volume("db1")->size_bytes, 10 * GIB);
    assert_int_equal(twin_end(&w, op_volume_resize(w.ops, "db1", 12 * GIB, twin_done, &w, &w.err)), E_OK);
    assert_int_equal(twin_end(&w, op_volume_resize(w.ops, "db1", 12 * GIB, twin_done, &w, &w.err)), E_OK);
    assert_int_equal(volume("db1")->size_bytes, 12 * GIB);
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "db1", twin_done, &w, &w.err)), E_OK);
    assert_null(volume("db1"));
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "db1", twin_done, &w, &w.err)), E_NOTFOUND);
}

static void too_many_replicas(void **s)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_DISK, w.disk[2], CDB_DISK_state, "failed");
    twin_commit(&w, t);
    assert_int_equal(make_volume("v", GIB, 3), E_NOSPC);
    assert_int_equal(make_volume("v", GIB, 0), E_OK);
    assert_int_equal(volume("v")->replicas, 2);
}

static void shard(const char *vol, int idx, int n_in_sync)
{
    char id[64];
    const char *disks[] = {w.disk[0], w.disk[1], w.disk[2]};
    char *keys[3];
    int64_t inc[3] = {1, 1, 1};
    struct cdb_imap m = {.n = (size_t)n_in_sync, .k = keys, .v = inc};
    for (int i = 0; i < n_in_sync; i++)
        keys[i] = w.disk[i];
    snprintf(id, sizeof id, "%.36s/%d", vol, idx);
    struct cdb_txn *t = cdb_txn_new();
    if (!cdb_shard_get(twin_view(&w), id))
        cdb_txn_insert(t, CDB_T_SHARD, id);
    cdb_txn_set_str(t, CDB_T_SHARD, id, CDB_SHARD_volume, vol);
    cdb_txn_set_int(t, CDB_T_SHARD, id, CDB_SHARD_idx, idx);
    cdb_txn_set_strs(t, CDB_T_SHARD, id, CDB_SHARD_replicas, 3, disks);
    cdb_txn_set_imap(t, CDB_T_SHARD, id, CDB_SHARD_in_sync, &m);
    twin_commit(&w, t);
}

static void health(void **s)
{
    char why[160];
    assert_int_equal(make_volume("v", GIB, 3), E_OK);
    char id[64];
    snprintf(id, sizeof id, "%s", volume("v")->id);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_HEALTHY);
    shard(id, 0, 3);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_HEALTHY);
    shard(id, 0, 2);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_DEGRADED);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_TASK, "t1");
    cdb_txn_set_str(t, CDB_T_TASK, "t1", CDB_TASK_kind, "resync");
    cdb_txn_set_str(t, CDB_T_TASK, "t1", CDB_TASK_object, "volume v");
    cdb_txn_set_str(t, CDB_T_TASK, "t1", CDB_TASK_state, "running");
    twin_commit(&w, t);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_RESYNCING);
    shard(id, 1, 1);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_PARKED);
    assert_non_null(strstr(why, "1 of 3"));
    /* written: the row stays until the engine freed the space, its name is free at once */
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "v", twin_done, &w, &w.err)), E_OK);
    assert_string_equal(cdb_volume_get(twin_view(&w), id)->state, "deleting");
    assert_int_equal(make_volume("v", GIB, 3), E_OK);
}

static void networks(void **s)
{
    assert_int_equal(make_network("net1", "198.18.1.0/29", ""), E_OK);
    assert_int_equal(make_network("net1", "198.18.2.0/29", ""), E_EXISTS);
    static const char *const bad[] = {"", "198.18.1.0", "198.18.1.0/", "198.18.1.0/30", "198.18.1.0/7", "198.18.1.1/24", "198.18.1.0/024", "1.2.3/24",
                                      "198.18.1.0/24x", "2001:db8::/64"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(make_network("n", bad[i], ""), E_INVAL);
    assert_int_equal(make_network("n", "198.18.1.0/24", "198.18.2.1"), E_INVAL);
    assert_int_equal(make_network("n", "198.18.1.0/24", "198.18.1.255"), E_INVAL);
}

static void addresses_run_out(void **s)
{
    assert_int_equal(make_network("net1", "198.18.1.0/29", ""), E_OK); /* .1 gateway, .2-.6 hosts */
    char name[16], macs[6][18];
    struct vm_spec v = vm(name);
    v.networks[0] = "net1";
    v.n_networks = 1;
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "vm%d", i);
        assert_int_equal(make_vm(&v), E_OK);
        const struct cdb_port *p = cdb_port_get(twin_view(&w), strchr(machine(name)->ports.v[0], ':') + 1);
        char want[16];
        snprintf(want, sizeof want, "198.18.1.%d", i + 2);
        assert_string_equal(p->ip, want);
        assert_int_equal(strncmp(p->mac, "02:", 3), 0);
        snprintf(macs[i], sizeof macs[i], "%s", p->mac);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(macs[i], macs[k]);
    }
    snprintf(name, sizeof name, "vm5");
    assert_int_equal(make_vm(&v), E_NOSPC);
    assert_null(machine("vm5"));
    assert_null(volume("vm5-disk0")); /* all or nothing */
    assert_int_equal(twin_end(&w, op_network_delete(w.ops, "net1", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_vm_delete(w.ops, "vm2", true, twin_done, &w, &w.err)), E_OK);
    assert_null(volume("vm2-disk0"));
    assert_int_equal(make_vm(&v), E_OK);
    assert_string_equal(cdb_port_get(twin_view(&w), strchr(machine("vm5")->ports.v[0], ':') + 1)->ip, "198.18.1.4");
}

/* Two creations built on the same view: the same address is picked twice, one transaction loses and picks again. */
static void address_race(void **s)
{
    assert_int_equal(make_network("net1", "198.18.1.0/24", ""), E_OK);
    struct vm_spec a = vm("a"), b = vm("b");
    a.networks[0] = b.networks[0] = "net1";
    a.n_networks = b.n_networks = 1;
    assert_int_equal(op_vm_create(w.ops, &a, twin_done, &w, &w.err), E_OK);
    assert_int_equal(op_vm_create(w.ops, &b, twin_done, &w, &w.err), E_OK);
    while (w.calls < 3)
        uv_run(&w.loop, UV_RUN_ONCE);
    assert_int_equal(w.status, E_OK);
    assert_int_equal(cdb_port_count(twin_view(&w)), 2);
    assert_string_not_equal(cdb_port_at(twin_view(&w), 0)->ip, cdb_port_at(twin_view(&w), 1)->ip);
}

/* The same for one volume: exactly one machine gets it. */
static void volume_race(void **s)
{
    assert_int_equal(make_volume("v", GIB, 3), E_OK);
    struct vm_spec a = vm("a"), b = vm("b");
    a.disks[0] = b.disks[0] = (struct vm_disk_spec){.volume = "v"};
    assert_int_equal(op_vm_create(w.ops, &a, twin_done, &w, &w.err), E_OK);
    assert_int_equal(op_vm_create(w.ops, &b, twin_done, &w, &w.err), E_OK);
    while (w.calls < 3)
        uv_run(&w.loop, UV_RUN_ONCE);
    assert_int_equal(cdb_machine_count(twin_view(&w)), 1);
    assert_int_equal(w.err.code, E_BUSY);
    assert_non_null(strstr(w.err.msg, "disk of vm a"));
}

static void machines_refused(void **s)
{
    struct vm_spec v = vm("x");
    v.vcpus = 0;
    assert_int_equal(make_vm(&v), E_INVAL);
    v = vm("x");
    v.memory_bytes = 1000;
    assert_int_equal(make_vm(&v), E_INVAL);
    v = vm("x");
    v.type = "pc";
    assert_int_equal(make_vm(&v), E_INVAL);
    v = vm("x");
    v.n_disks = 0;
    assert_int_equal(make_vm(&v), E_INVAL);
    v = vm("x");
    v.image = "none";
    assert_int_equal(make_vm(&v), E_NOTFOUND);
    v = vm("x");
    v.n_networks = 1;
    v.networks[0] = "none";
    assert_int_equal(make_vm(&v), E_NOTFOUND);
    v = vm("x");
    v.cmdline = "a\nb";
    assert_int_equal(make_vm(&v), E_INVAL);
    v = vm("x");
    v.affinity = "anti:";
    assert_int_equal(make_vm(&v), E_INVAL);
    assert_int_equal(cdb_volume_count(twin_view(&w)), 0);
}

static void life(void **s)
{
    struct vm_spec v = vm("web1");
    assert_int_equal(make_vm(&v), E_OK);
    assert_int_equal(twin_end(&w, op_vm_stop(w.ops, "web1", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_vm_migrate(w.ops, "web1", "n2", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(start("web1", "nowhere"), E_NOTFOUND);
    assert_int_equal(start("web1", "n1"), E_OK);
    assert_string_equal(machine("web1")->host, w.node[0]);
    assert_int_equal(machine("web1")->generation, 1);
    assert_string_equal(volume("web1-disk0")->owner, w.node[0]);
    assert_int_equal(volume("web1-disk0")->epoch, 2);
    assert_int_equal(start("web1", NULL), E_BUSY);
    assert_int_equal(twin_end(&w, op_vm_delete(w.ops, "web1", true, twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "web1-disk0", twin_done, &w, &w.err)), E_BUSY);
    set_machine("web1", CDB_MACHINE_state, "running");
    assert_int_equal(twin_end(&w, op_vm_migrate(w.ops, "web1", "n1", twin_done, &w, &w.err)), E_INVAL);
    assert_int_equal(twin_end(&w, op_vm_migrate(w.ops, "web1", "n2", twin_done, &w, &w.err)), E_OK);
    assert_string_equal(machine("web1")->migrate_to, w.node[1]);
    assert_int_equal(twin_end(&w, op_vm_migrate(w.ops, "web1", "n3", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_vm_stop(w.ops, "web1", twin_done, &w, &w.err)), E_BUSY);
    set_machine("web1", CDB_MACHINE_migrate_to, "");
    assert_int_equal(twin_end(&w, op_vm_stop(w.ops, "web1", twin_done, &w, &w.err)), E_OK);
    assert_string_equal(machine("web1")->desired, "stopped");
    assert_int_equal(start("web1", NULL), E_BUSY); /* still on its way down */
    assert_int_equal(twin_end(&w, op_vm_kill(w.ops, "web1", twin_done, &w, &w.err)), E_OK);
    assert_int_equal(machine("web1")->generation, 2);
    set_machine("web1", CDB_MACHINE_host, ""); /* as its host does */
    assert_int_equal(start("web1", NULL), E_OK);
}

static void placement(void **s)
{
    struct vm_spec a = vm("a"), b = vm("b"), c = vm("c");
    a.affinity = b.affinity = "anti:web";
    c.memory_bytes = 16 * GIB;
    assert_int_equal(make_vm(&a), E_OK);
    assert_int_equal(make_vm(&b), E_OK);
    assert_int_equal(make_vm(&c), E_OK);
    assert_int_equal(start("a", "n1"), E_OK);
    assert_int_equal(start("b", "n1"), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "anti-affinity"));
    assert_int_equal(start("b", NULL), E_OK);
    assert_string_not_equal(machine("b")->host, w.node[0]);
    assert_int_equal(start("c", NULL), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "not enough free memory"));
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, w.node[1], CDB_NODE_state, "dead");
    twin_commit(&w, t);
    struct vm_spec d = vm("d");
    assert_int_equal(make_vm(&d), E_OK);
    assert_int_equal(start("d", "n2"), E_UNAVAIL);
}

static void stop_on_dead_host(void **s)
{
    struct vm_spec v = vm("a");
    assert_int_equal(make_vm(&v), E_OK);
    assert_int_equal(start("a", "n2"), E_OK);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, w.node[1], CDB_NODE_state, "dead");
    twin_commit(&w, t);
    assert_int_equal(twin_end(&w, op_vm_stop(w.ops, "a", twin_done, &w, &w.err)), E_OK);
    assert_string_equal(machine("a")->host, "");
    assert_int_equal(machine("a")->generation, 2);
}

static void conflicts_and_unknown(void **s)
{
    cdb_mem_fail_next(w.d.db, 3, E_CONFLICT, false);
    assert_int_equal(make_volume("v", GIB, 3), E_OK);
    cdb_mem_fail_next(w.d.db, 1, E_UNKNOWN, true);
    assert_int_equal(make_volume("w", GIB, 3), E_OK); /* it had happened */
    cdb_mem_fail_next(w.d.db, 1, E_UNKNOWN, false);
    assert_int_equal(make_volume("x", GIB, 3), E_OK); /* it had not: done again */
    assert_int_equal(cdb_volume_count(twin_view(&w)), 3);
    struct vm_spec v = vm("a");
    assert_int_equal(make_vm(&v), E_OK);
    cdb_mem_fail_next(w.d.db, 1, E_UNKNOWN, true);
    assert_int_equal(start("a", "n1"), E_OK);
    assert_int_equal(machine("a")->generation, 1); /* once */
}

static void without_quorum(void **s)
{
    struct volume_spec v = {.name = "v", .size_bytes = GIB, .purpose = "disk"};
    cdb_mem_park(w.d.db, true);
    assert_int_equal(op_volume_create(w.ops, &v, twin_done, &w, &w.err), E_OK);
    for (int i = 0; i < 10; i++)
        uv_run(&w.loop, UV_RUN_NOWAIT);
    assert_int_equal(w.calls, 0);
    cdb_mem_park(w.d.db, false);
    while (w.calls == 0)
        uv_run(&w.loop, UV_RUN_ONCE);
    assert_int_equal(w.status, E_OK);
    cdb_mem_park(w.d.db, true); /* closed with one pending: nobody is called, nothing leaks */
    v.name = "v2";
    assert_int_equal(op_volume_create(w.ops, &v, twin_done, &w, &w.err), E_OK);
}

static void images(void **s)
{
    struct image_spec i = {.name = "deb", .kind = "kernel", .n_files = 2, .files = {{"kernel", 5000000, NULL}, {"initrd", 100, NULL}}};
    char id[ID_LEN + 1], sha_k[65], sha_i[65];
    memset(sha_k, 'a', 64);
    memset(sha_i, 'b', 64);
    sha_k[64] = sha_i[64] = 0;
    assert_int_equal(twin_end(&w, op_image_create(w.ops, &i, twin_done, &w, &w.err)), E_OK);
    snprintf(id, sizeof id, "%.36s", w.id);
    const struct cdb_image *img = cdb_image_get(twin_view(&w), id);
    assert_string_equal(cdb_smap_get(&img->files, "initrd"), "5001216,100,?"); /* next multiple of 4096 */
    assert_string_equal(cdb_volume_get(twin_view(&w), img->volume)->owner, w.node[0]);
    struct vm_spec v = vm("a");
    v.image = "deb";
    assert_int_equal(make_vm(&v), E_BUSY); /* not ready */
    assert_int_equal(twin_end(&w, op_image_file_done(w.ops, id, "kernel", sha_k, twin_done, &w, &w.err)), E_OK);
    assert_string_equal(cdb_image_get(twin_view(&w), id)->state, "importing");
    assert_int_equal(twin_end(&w, op_image_file_done(w.ops, id, "initrd", sha_i, twin_done, &w, &w.err)), E_OK);
    img = cdb_image_get(twin_view(&w), id);
    assert_string_equal(img->state, "ready");
    assert_true(cdb_volume_get(twin_view(&w), img->volume)->sealed);
    assert_string_equal(cdb_volume_get(twin_view(&w), img->volume)->owner, "");
    assert_string_equal(cdb_task_at(twin_view(&w), 0)->state, "done");
    assert_int_equal(make_vm(&v), E_OK);
    assert_int_equal(twin_end(&w, op_image_delete(w.ops, "deb", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_vm_delete(w.ops, "a", true, twin_done, &w, &w.err)), E_OK);
    assert_int_equal(twin_end(&w, op_image_delete(w.ops, "deb", twin_done, &w, &w.err)), E_OK);
    struct image_spec bad[] = {
        {.name = "x", .kind = "tape", .n_files = 1, .files = {{"disk", 512, NULL}}},
        {.name = "x", .kind = "disk", .n_files = 1, .files = {{"disk", 513, NULL}}},
        {.name = "x", .kind = "disk", .n_files = 1, .files = {{"kernel", 512, NULL}}},
        {.name = "x", .kind = "kernel", .n_files = 1, .files = {{"kernel", 512, NULL}}},
        {.name = "x", .kind = "kernel", .n_files = 2, .files = {{"kernel", 512, NULL}, {"kernel", 512, NULL}}},
        {.name = "x", .kind = "kernel", .n_files = 2, .files = {{"kernel", 512, "zz"}, {"initrd", 512, NULL}}},
        {.name = "x", .kind = "kernel", .n_files = 2, .files = {{"kernel", 0, NULL}, {"initrd", 512, NULL}}},
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        assert_int_equal(twin_end(&w, op_image_create(w.ops, &bad[k], twin_done, &w, &w.err)), E_INVAL);
}

static void node_removal(void **s)
{
    assert_int_equal(make_volume("v", GIB, 3), E_OK);
    char id[64], shard_id[80];
    snprintf(id, sizeof id, "%s", volume("v")->id);
    shard(id, 0, 1); /* only n1 has it */
    assert_int_equal(twin_end(&w, op_node_remove(w.ops, "n1", twin_done, &w, &w.err)), E_BUSY); /* itself */
    assert_int_equal(twin_end(&w, op_node_remove(w.ops, "n9", twin_done, &w, &w.err)), E_NOTFOUND);
    memcpy(w.d.node_id, w.node[1], sizeof w.d.node_id);
    assert_int_equal(twin_end(&w, op_node_remove(w.ops, "n1", twin_done, &w, &w.err)), E_BUSY);
    assert_non_null(strstr(w.err.msg, "only good copy"));
    struct vm_spec v = vm("a");
    assert_int_equal(make_vm(&v), E_OK);
    assert_int_equal(start("a", "n3"), E_OK);
    assert_int_equal(twin_end(&w, op_node_remove(w.ops, "n3", twin_done, &w, &w.err)), E_BUSY);
    assert_non_null(strstr(w.err.msg, "runs vm a"));
    shard(id, 0, 2);
    assert_int_equal(twin_end(&w, op_node_remove(w.ops, "n1", twin_done, &w, &w.err)), E_OK);
    assert_null(cdb_node_get(twin_view(&w), w.node[0]));
    assert_null(cdb_disk_get(twin_view(&w), w.disk[0]));
    snprintf(shard_id, sizeof shard_id, "%s/0", id);
    const struct cdb_shard *sh = cdb_shard_get(twin_view(&w), shard_id);
    assert_int_equal(sh->replicas.n, 2);
    assert_int_equal(sh->in_sync.n, 1);
    assert_int_equal(sh->generation, 1);
}

static void joining(void **s)
{
    char hash[65], id[ID_LEN + 1];
    pki_sha256_hex("secret", hash);
    assert_string_equal(hash, "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");
    id_new(id);
    struct join_spec j = {.token_hash = hash, .node_id = id, .name = "n4", .address = "192.0.2.4", .accel = "tcg", .accel_reason = "", .version = "0",
                          .cpus = 2, .memory_bytes = GIB, .n_disks = 1, .disks = {{"d0", "/f", "/c", GIB}}};
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_AUTH);
    struct token_spec t = {.name = "join-1", .role = "join", .hash = hash, .expires_ms = clock_wall_ms() - 1, .creator = "test"};
    assert_int_equal(twin_end(&w, op_token_create(w.ops, &t, twin_done, &w, &w.err)), E_OK);
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_AUTH);
    assert_non_null(strstr(w.err.msg, "expired on"));
    assert_int_equal(twin_end(&w, op_token_delete(w.ops, "join-1", twin_done, &w, &w.err)), E_OK);
    t.expires_ms = 0;
    assert_int_equal(twin_end(&w, op_token_create(w.ops, &t, twin_done, &w, &w.err)), E_OK);
    j.name = "n3";
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_EXISTS);
    j.name = "n4";
    j.address = "192.0.2.3";
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_EXISTS);
    j.address = "192.0.2.4";
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_OK);
    assert_string_equal(cdb_node_get(twin_view(&w), id)->state, "joining");
    assert_int_equal(cdb_disk_count(twin_view(&w)), 4);
    assert_int_equal(cdb_token_count(twin_view(&w)), 0);
    id_new(id);
    j.name = "n5";
    j.address = "192.0.2.5";
    assert_int_equal(twin_end(&w, op_node_join(w.ops, &j, twin_done, &w, &w.err)), E_AUTH); /* one time only */
}

/* ---- snapshots: the rows; the cut itself is the engine's (test_repl_snapshot) ---- */

static int take(const char *name, int n, const char *a, const char *b)
{
    struct snapshot_spec s = {.name = name, .n_volumes = n, .volumes = {a, b}};
    return twin_end(&w, op_snapshot_create(w.ops, &s, twin_done, &w, &w.err));
}

static int clone_of(const char *of, const char *name) { return twin_end(&w, op_volume_clone(w.ops, of, name, twin_done, &w, &w.err)); }
static int revert(const char *name) { return twin_end(&w, op_snapshot_revert(w.ops, name, twin_done, &w, &w.err)); }

/* What the engine's transaction leaves behind. */
static void cut(const char *vol, const char *name, const char *id)
{
    char full[100], was[ID_LEN + 1], data[ID_LEN + 1];
    const struct cdb_volume *v = volume(vol);
    struct cdb_txn *t = cdb_txn_new();
    snprintf(full, sizeof full, "%s@%s", vol, name);
    snprintf(was, sizeof was, "%s", *v->data ? v->data : v->id);
    id_new(data);
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, full);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, v->size_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, v->shard_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, v->replicas);
    cdb_txn_set_bool(t, CDB_T_VOLUME, id, CDB_VOLUME_sealed, true);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "snapshot");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_data, was);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_parent, v->parent);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_origin, v->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_data, data);
    cdb_txn_set_str(t, CDB_T_VOLUME, v->id, CDB_VOLUME_parent, id);
    cdb_txn_set_int(t, CDB_T_VOLUME, v->id, CDB_VOLUME_epoch, v->epoch + 1);
    twin_commit(&w, t);
}

static void snapshots(void **s)
{
    char id[ID_LEN + 1], before[ID_LEN + 1];
    struct cdb_txn *t = cdb_txn_new();
    id_new(id);
    assert_int_equal(make_volume("a", GIB, 0), E_OK);
    assert_int_equal(make_volume("b", GIB, 0), E_OK);
    assert_int_equal(take("s", 1, "none", NULL), E_NOTFOUND);
    assert_int_equal(take("a@s", 1, "a", NULL), E_INVAL);
    assert_int_equal(take("s", 2, "a", "a"), E_INVAL);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("a")->id, CDB_VOLUME_owner, w.node[0]);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("b")->id, CDB_VOLUME_owner, w.node[1]);
    twin_commit(&w, t);
    assert_int_equal(take("s", 2, "a", "b"), E_BUSY); /* written on two nodes */
    assert_int_equal(take("s", 1, "b", NULL), E_OK);
    const struct cdb_task *task = cdb_task_at(twin_view(&w), 0);
    assert_string_equal(task->kind, "snapshot");
    assert_string_equal(task->node, w.node[1]); /* who writes it takes it */
    assert_string_equal(cdb_smap_get(&task->result, "volumes"), volume("b")->id);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("a")->id, CDB_VOLUME_owner, "");
    twin_commit(&w, t);

    cut("a", "s", id);
    assert_int_equal(take("s", 1, "a", NULL), E_EXISTS);
    assert_int_equal(clone_of("a", "c"), E_INVAL); /* it is still written */
    assert_int_equal(clone_of("a@s", "b"), E_EXISTS);
    assert_int_equal(clone_of("a@s", "c"), E_OK);
    assert_string_equal(volume("c")->parent, id);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_key, "wrapped");
    twin_commit(&w, t);
    assert_int_equal(clone_of("a@s", "locked"), E_OK);
    assert_int_equal(twin_end(&w, op_volume_flatten(w.ops, "a@s", twin_done, &w, &w.err)), E_INVAL);
    assert_int_equal(twin_end(&w, op_volume_flatten(w.ops, "b", twin_done, &w, &w.err)), E_INVAL); /* stands alone */
    assert_int_equal(twin_end(&w, op_volume_flatten(w.ops, "locked", twin_done, &w, &w.err)), E_OK);
    assert_true(volume("locked")->flatten);
    assert_string_equal(volume("locked")->key, "wrapped");
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "locked", twin_done, &w, &w.err)), E_OK);
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "a", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "a@s", twin_done, &w, &w.err)), E_BUSY);
    assert_int_equal(revert("a"), E_NOTFOUND);
    snprintf(before, sizeof before, "%s", volume("a")->data);
    int64_t epoch = volume("a")->epoch;
    assert_int_equal(revert("a@s"), E_OK);
    assert_string_not_equal(volume("a")->data, before);
    assert_string_equal(volume("a")->parent, id);
    assert_int_equal(volume("a")->epoch, epoch + 1);
    assert_int_equal(twin_end(&w, op_snapshot_delete(w.ops, "a@s", twin_done, &w, &w.err)), E_OK);
    assert_null(volume("a@s"));
    assert_string_equal(cdb_volume_get(twin_view(&w), id)->purpose, "layer"); /* a and c build on it */
    assert_int_equal(revert("a@s"), E_NOTFOUND);
    assert_int_equal(clone_of(id, "d"), E_INVAL);
    assert_int_equal(twin_end(&w, op_volume_delete(w.ops, "a", twin_done, &w, &w.err)), E_OK);
}

/* ---- import: what a file may be brought into ---- */

static int import_begin(const char *name, const char *snapshot, const char *base, int64_t size)
{
    struct import_spec s = {.name = name, .snapshot = snapshot, .content = "c", .base = base, .base_name = "s", .size_bytes = size};
    return twin_end(&w, op_import_begin(w.ops, &s, twin_done, &w, &w.err));
}

static void imports(void **state)
{
    char id[ID_LEN + 1];
    id_new(id);
    assert_int_equal(import_begin("new", "s", "some-base", GIB), E_NOTFOUND); /* nothing that it could continue */
    assert_int_equal(import_begin("new", "bad name", "", GIB), E_INVAL);
    assert_int_equal(import_begin("new", "s", "", GIB), E_OK);
    assert_string_equal(volume("new")->state, "importing");
    assert_int_equal(take("t", 1, "new", NULL), E_INVAL); /* incomplete */
    assert_int_equal(import_begin("new", "s2", "some-base", GIB), E_CONFLICT);
    struct import_spec s = {.name = "new", .snapshot = "s", .content = "from-elsewhere", .size_bytes = GIB};
    snprintf(s.volume_id, sizeof s.volume_id, "%s", volume("new")->id);
    assert_int_equal(twin_end(&w, op_import_end(w.ops, &s, twin_done, &w, &w.err)), E_OK);
    assert_string_equal(volume("new")->state, "ready");
    const struct cdb_task *task = cdb_task_at(twin_view(&w), 0);
    assert_string_equal(cdb_smap_get(&task->result, "content"), "from-elsewhere");
    assert_int_equal(twin_end(&w, op_import_end(w.ops, &s, twin_done, &w, &w.err)), E_CONFLICT);

    cut("new", "s", id);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_content, "from-elsewhere");
    twin_commit(&w, t);
    assert_int_equal(import_begin("new", "s", "from-elsewhere", GIB), E_EXISTS); /* that snapshot is there */
    assert_int_equal(import_begin("new", "s2", "", GIB), E_EXISTS);             /* a complete file makes a new volume */
    assert_int_equal(import_begin("new", "s2", id, GIB), E_CONFLICT);           /* another base */
    assert_int_equal(import_begin("new", "s2", "from-elsewhere", GIB / 2), E_CONFLICT);
    char shard[80];
    snprintf(shard, sizeof shard, "%s/0", volume("new")->data);
    t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_SHARD, shard);
    cdb_txn_set_str(t, CDB_T_SHARD, shard, CDB_SHARD_volume, volume("new")->id);
    twin_commit(&w, t);
    assert_int_equal(import_begin("new", "s2", "from-elsewhere", GIB), E_CONFLICT); /* written since */
    t = cdb_txn_new();
    cdb_txn_delete(t, CDB_T_SHARD, shard);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("new")->id, CDB_VOLUME_owner, w.node[0]);
    twin_commit(&w, t);
    assert_int_equal(import_begin("new", "s2", "from-elsewhere", GIB), E_BUSY);
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("new")->id, CDB_VOLUME_owner, "");
    twin_commit(&w, t);
    assert_int_equal(import_begin("new", "s2", "from-elsewhere", 2 * GIB), E_OK);
    assert_int_equal(volume("new")->size_bytes, 2 * GIB);
    assert_int_equal(revert("new@s"), E_OK); /* one that broke off is undone */
    assert_string_equal(volume("new")->state, "ready");
}

/* What no copy can read is given up once, exactly what the row names, and is remembered. */
static void give_up(void **s)
{
    const char *first[] = {"0+4096", "65536+8192"}, *second[] = {"131072+4096", "65536+8192"};
    char why[160];
    assert_int_equal(make_volume("v", GIB, 0), E_OK);
    assert_int_equal(twin_end(&w, op_volume_give_up(w.ops, "v", twin_done, &w, &w.err)), E_CONFLICT);
    assert_int_equal(twin_end(&w, op_volume_give_up(w.ops, "none", twin_done, &w, &w.err)), E_NOTFOUND);
    for (int round = 0; round < 2; round++) {
        struct cdb_txn *t = cdb_txn_new();
        cdb_txn_set_strs(t, CDB_T_VOLUME, volume("v")->id, CDB_VOLUME_unreadable, 2, round ? second : first);
        twin_commit(&w, t);
        shard(volume("v")->id, 0, 1);
        assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_PARKED);
        assert_non_null(strstr(why, "cohort volume give-up v"));
        assert_int_equal(twin_end(&w, op_volume_give_up(w.ops, "v", twin_done, &w, &w.err)), E_OK);
        assert_int_equal(volume("v")->unreadable.n, 0);
        assert_int_equal(volume("v")->given_up.n, 2 + round);
        assert_true(cdb_strs_has(&volume("v")->given_up, "65536+8192"));
    }
    assert_true(cdb_strs_has(&volume("v")->given_up, "0+4096") && cdb_strs_has(&volume("v")->given_up, "131072+4096"));
}

/* ---- class memory ---- */

static int add_memory(const char *name, int64_t mib)
{
    struct disk_spec d = {.node = "n1", .name = name, .fast = "", .capacity = "", .memory_bytes = mib * MIB};
    return twin_end(&w, op_disk_add(w.ops, &d, twin_done, &w, &w.err));
}

static int make_in_memory(const char *name, int64_t replicas)
{
    struct volume_spec v = {.name = name, .size_bytes = GIB, .replicas = replicas, .purpose = "disk", .class = "memory"};
    return twin_end(&w, op_volume_create(w.ops, &v, twin_done, &w, &w.err));
}

static int reset(const char *name) { return twin_end(&w, op_volume_reset(w.ops, name, twin_done, &w, &w.err)); }

/* Of 8 GiB a node may give 4, if its guests leave them. */
static void memory_disks(void **s)
{
    assert_int_equal(add_memory("ram", 255), E_INVAL);
    assert_non_null(strstr(w.err.msg, "at least 256 MiB"));
    assert_int_equal(add_memory("ram", 4097), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "at most 4096 MiB more"));
    assert_int_equal(add_memory("ram", INT64_C(1) << 40), E_NOSPC);
    assert_int_equal(add_memory("ram", 3072), E_OK);
    const struct cdb_disk *d = cdb_disk_get(twin_view(&w), w.id);
    assert_string_equal(d->medium, "memory");
    assert_int_equal(d->memory_bytes, 3072 * MIB);
    assert_int_equal(ops_node_memory_used(twin_view(&w), w.node[0]), 3072 * MIB); /* guests do not get it, too */
    assert_int_equal(add_memory("ram", 256), E_EXISTS);
    assert_int_equal(add_memory("ram2", 1280), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "at most 1024 MiB more"));
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_insert(t, CDB_T_MACHINE, "m");
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_host, w.node[0]);
    cdb_txn_set_int(t, CDB_T_MACHINE, "m", CDB_MACHINE_memory_bytes, 3584 * MIB);
    twin_commit(&w, t);
    assert_int_equal(add_memory("ram2", 1024), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "promised to nobody"));
    assert_int_equal(add_memory("ram2", 512), E_OK);
    struct disk_spec both = {.node = "n1", .name = "x", .fast = "/f", .capacity = "/c", .memory_bytes = 256 * MIB};
    assert_int_equal(twin_end(&w, op_disk_add(w.ops, &both, twin_done, &w, &w.err)), E_INVAL);
    assert_int_equal(twin_end(&w, op_disk_change(w.ops, "n1:ram2", DISK_REMOVE, twin_done, &w, &w.err)), E_OK);
}

static void memory_volumes(void **s)
{
    struct volume_spec odd = {.name = "v", .size_bytes = GIB, .purpose = "disk", .class = "tape"};
    assert_int_equal(twin_end(&w, op_volume_create(w.ops, &odd, twin_done, &w, &w.err)), E_INVAL);
    assert_non_null(strstr(w.err.msg, "storage or memory"));
    assert_int_equal(make_in_memory("v", 0), E_NOSPC);
    assert_non_null(strstr(w.err.msg, "cohort disk add NODE:DISK --memory SIZE"));
    assert_int_equal(add_memory("ram", 1024), E_OK);
    assert_int_equal(make_in_memory("v", 2), E_NOSPC); /* there are three nodes with storage, but only one with memory */
    assert_int_equal(make_in_memory("v", 0), E_OK);
    assert_int_equal(volume("v")->replicas, 1);
    assert_string_equal(cdb_smap_get(&volume("v")->policy, "class"), "memory");
    assert_int_equal(make_volume("s", GIB, 0), E_OK);
    assert_int_equal(volume("s")->replicas, 3);
    assert_int_equal(volume("s")->policy.n, 0);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_bool(t, CDB_T_VOLUME, volume("v")->id, CDB_VOLUME_sealed, true);
    twin_commit(&w, t);
    assert_int_equal(twin_end(&w, op_volume_clone(w.ops, "v", "c", twin_done, &w, &w.err)), E_OK);
    assert_string_equal(cdb_smap_get(&volume("c")->policy, "class"), "memory");
}

static void reset_lost(void **s)
{
    char why[160], data[ID_LEN + 1];
    for (int i = 0; i < 3; i++) {
        struct cdb_txn *t = cdb_txn_new();
        cdb_txn_set_str(t, CDB_T_DISK, w.disk[i], CDB_DISK_medium, "memory");
        twin_commit(&w, t);
    }
    assert_int_equal(make_in_memory("v", 3), E_OK);
    assert_int_equal(reset("v"), E_CONFLICT); /* nothing of it is lost */
    shard(volume("v")->id, 0, 1);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_PARKED);
    assert_int_equal(reset("v"), E_CONFLICT);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_set_int(t, CDB_T_DISK, w.disk[0], CDB_DISK_incarnation, 2);
    cdb_txn_set_str(t, CDB_T_VOLUME, volume("v")->id, CDB_VOLUME_owner, w.node[1]);
    cdb_txn_set_int(t, CDB_T_VOLUME, volume("v")->id, CDB_VOLUME_lost_ms, 5);
    twin_commit(&w, t);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_LOST);
    assert_non_null(strstr(why, "cohort volume reset v"));
    assert_int_equal(reset("v"), E_BUSY); /* something there uses it */
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_NODE, w.node[1], CDB_NODE_state, "dead");
    cdb_txn_insert(t, CDB_T_MACHINE, "m");
    const char *disks[] = {"0:x"};
    char disk[48];
    snprintf(disk, sizeof disk, "0:%s", volume("v")->id);
    disks[0] = disk;
    cdb_txn_set_strs(t, CDB_T_MACHINE, "m", CDB_MACHINE_disks, 1, disks);
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_name, "web");
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_desired, "running");
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_state, "running");
    twin_commit(&w, t);
    assert_int_equal(reset("v"), E_BUSY);
    assert_non_null(strstr(w.err.msg, "cohort vm stop web"));
    t = cdb_txn_new();
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_desired, "stopped");
    cdb_txn_set_str(t, CDB_T_MACHINE, "m", CDB_MACHINE_state, "stopped");
    twin_commit(&w, t);
    int64_t epoch = volume("v")->epoch;
    snprintf(data, sizeof data, "%s", volume("v")->data);
    assert_int_equal(reset("v"), E_OK);
    assert_int_equal(volume("v")->epoch, epoch + 1);
    assert_string_not_equal(volume("v")->data, data);
    assert_int_equal(volume("v")->lost_ms, 0);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("v"), why), VOLUME_HEALTHY);
    assert_string_equal(cdb_volume_get(twin_view(&w), cdb_shard_at(twin_view(&w), 0)->volume)->state, "deleting"); /* what was left of it */
    t = cdb_txn_new();
    for (int i = 0; i < 3; i++)
        cdb_txn_set_str(t, CDB_T_DISK, w.disk[i], CDB_DISK_medium, "");
    cdb_txn_set_str(t, CDB_T_NODE, w.node[1], CDB_NODE_state, "up");
    twin_commit(&w, t);
    assert_int_equal(make_volume("s", GIB, 3), E_OK);
    shard(volume("s")->id, 0, 0);
    assert_int_equal(ops_volume_health(twin_view(&w), volume("s"), why), VOLUME_PARKED); /* storage is never lost */
    assert_int_equal(reset("s"), E_INVAL);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(volumes), T(give_up),   T(too_many_replicas), T(health),    T(networks),          T(addresses_run_out),     T(address_race),   T(volume_race),
        T(machines_refused), T(life),       T(placement), T(stop_on_dead_host), T(conflicts_and_unknown), T(without_quorum), T(images),
        T(node_removal),     T(joining),    T(snapshots), T(imports), T(memory_disks), T(memory_volumes), T(reset_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
