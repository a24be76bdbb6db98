/* cohort vm: list, show, create, delete. Starting, stopping and moving are in cmd_vm_run.c. */
#include "cli/cmd_vm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/disk_arg.h"
#include "cli/wait.h"

/* ---- list and show ---- */

static char *cell_ips(const json_t *vm)
{
    const json_t *list = json_object_get(vm, "networks");
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < json_array_size(list); i++)
        buf_printf(&b, "%s%s", i ? ", " : "", text_of(json_array_get(list, i), "ip"));
    return b.len ? buf_take(&b) : xstrdup("-");
}

/* What is, and what is wanted where that differs: "running", "starting (stop asked)". */
static char *cell_state(const json_t *vm)
{
    const char *state = text_of(vm, "state"), *desired = text_of(vm, "desired"), *to = text_of(vm, "migrate_to");
    if (*to)
        return xasprintf("%s, moving to %s", state, to);
    if (strcmp(desired, "stopped") == 0 && strcmp(state, "stopped") != 0)
        return xasprintf("%s, to stop", state);
    if (strcmp(desired, "running") == 0 && strcmp(state, "stopped") == 0)
        return xstrdup("stopped, to run");
    return xstrdup(state);
}

static const struct field vm_fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"STATE", .fn = cell_state}, {"HOST", "host"}, {"CPUS", "vcpus", F_NUMBER},
    {"MEMORY", "memory_bytes", F_SIZE}, {"IP", .fn = cell_ips}, {"IMAGE", "image"}, {"TYPE", "type", F_ONE}, {"ACCEL", "accel", F_ONE},
    {"CMDLINE", "cmdline", F_ONE}, {"HA", "ha_policy"}, {"PRIORITY", "priority", F_NUMBER | F_ONE}, {"AFFINITY", "affinity", F_ONE},
    {"GENERATION", "generation", F_ONE}, {"MESSAGE", "message"}, {0},
};
static const struct field disk_fields[] = {
    {"SLOT", "slot", F_NUMBER}, {"VOLUME", "volume"}, {"SIZE", "size_bytes", F_SIZE}, {"HEALTH", "health"}, {0},
};
static const struct field port_fields[] = {
    {"SLOT", "slot", F_NUMBER}, {"NETWORK", "network"}, {"IP", "ip"}, {"MAC", "mac"}, {"UP", "up"}, {0},
};

static int run_vm_show(struct cli *c)
{
    struct answer a;
    struct buf out;
    int rc = cli_call_on(c, "GET", "", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        buf_init(&out);
        show_object(a.json, vm_fields, &out);
        show_part(a.json, "disks", "Disks", disk_fields, &out);
        show_part(a.json, "networks", "Networks", port_fields, &out);
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

/* ---- create ---- */

static int add_disks(struct cli *c, json_t *body)
{
    const char *text;
    json_t *list = json_array();
    json_object_set_new(body, "disks", list);
    for (int i = 0; (text = args_get_n(c, "disk", i)); i++) {
        json_t *d = disk_arg_parse(text, &c->fail);
        if (!d)
            return EXIT_USAGE;
        json_array_append_new(list, d);
    }
    return EXIT_DONE;
}

static void add_texts(const struct cli *c, json_t *body)
{
    static const char *const pairs[][2] = {{"type", "type"}, {"accel", "accel"}, {"image", "image"}, {"cmdline", "cmdline"}, {"ha", "ha_policy"}, {"affinity", "affinity"}};
    const char *net;
    json_t *networks = json_array();
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (args_has(c, pairs[i][0]))
            json_object_set_new(body, pairs[i][1], json_string(args_get(c, pairs[i][0])));
    for (int i = 0; (net = args_get_n(c, "network", i)); i++)
        json_array_append_new(networks, json_string(net));
    json_object_set_new(body, "networks", networks);
}

/* NULL and c->fail set: an option is wrong. */
static json_t *create_body(struct cli *c)
{
    int64_t cpus = 1, memory = 0, priority = -1;
    if (args_int(c, "cpus", 1, 64, &cpus) != EXIT_DONE || args_size(c, "memory", &memory) != EXIT_DONE ||
        args_int(c, "priority", 0, 100, &priority) != EXIT_DONE || args_word(c, "type", "q35|microvm") != EXIT_DONE ||
        args_word(c, "accel", "auto|kvm|tcg") != EXIT_DONE || args_word(c, "ha", "restart|none") != EXIT_DONE)
        return NULL;
    json_t *body = json_pack("{s:s, s:I, s:I}", "name", c->pos[0], "vcpus", (json_int_t)cpus, "memory_bytes", (json_int_t)memory);
    if (!body) {
        fail_set(&c->fail, EXIT_USAGE, "the name is not valid UTF-8 text");
        return NULL;
    }
    if (priority >= 0)
        json_object_set_new(body, "priority", json_integer(priority));
    add_texts(c, body);
    if (add_disks(c, body) != EXIT_DONE) {
        json_decref(body);
        return NULL;
    }
    return body;
}

static int run_create(struct cli *c)
{
    struct answer a;
    json_t *body = create_body(c);
    if (!body)
        return c->fail.exit;
    int rc = cli_call(c, "POST", c->cmd->path, body, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "vm %s created; start it with: cohort vm start %s", c->pos[0], c->pos[0]) : rc;
}

/* ---- delete ---- */

static int run_vm_delete(struct cli *c)
{
    struct answer a;
    bool disks = args_has(c, "with-disks");
    int rc = cli_call_on(c, "DELETE", disks ? "?disks=true" : "", NULL, &a);
    if (rc == EXIT_DONE && args_has(c, "wait") && (rc = wait_gone(c, c->cmd->path, c->pos[0])) != EXIT_DONE)
        answer_free(&a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "vm %s deleted%s", c->pos[0], disks ? " with its disks" : "; its disks are kept: cohort volume list") : rc;
}

static const struct opt create_opts[] = {
    {"cpus", "N", 0, "virtual CPUs, 1 to 64 (default 1)"},
    {"memory", "SIZE", OPT_REQUIRED, "512M, 4G"},
    {"type", "TYPE", 0, "q35 (default) or microvm"},
    {"accel", "KIND", 0, "auto (default), kvm or tcg"},
    {"image", "IMAGE", 0, "boot its kernel; without: boot from the first disk"},
    {"cmdline", "TEXT", 0, "added to the image's kernel command line"},
    {"disk", "SPEC", OPT_MANY, "size=1G[,replicas=3] makes one, volume=NAME takes an existing one"},
    {"network", "NETWORK", OPT_MANY, "a network card on that network"},
    {"ha", "POLICY", 0, "restart (default): starts elsewhere when its node dies; or none"},
    {"priority", "N", 0, "0 to 100, higher restarts first (default 50)"},
    {"affinity", "GROUP", 0, "anti:GROUP keeps vms of one group on different nodes"},
    {0},
};
static const struct opt start_opts[] = {{"to", "NODE", 0, "start there (default: where there is most room)"}, WAIT_OPTS, {0}};
static const struct opt wait_opts[] = {WAIT_OPTS, {0}};
static const struct opt migrate_opts[] = {{"to", "NODE", OPT_REQUIRED, "where it shall run"}, WAIT_OPTS, {0}};
static const struct opt delete_opts[] = {{"with-disks", NULL, 0, "delete its volumes, too"}, WAIT_OPTS, {0}};

#define VMS .path = "/vms"
const struct cmd cmds_vm[] = {
    {"vm", "create", "NAME", run_create, create_opts, "make a vm", VMS,
     .more = "Example: cohort vm create web1 --cpus 1 --memory 256M --image debian --disk size=1G,replicas=3 --network web-net"},
    {"vm", "list", "", run_list, NULL, "vms with state, host and addresses", VMS, .fields = vm_fields},
    {"vm", "show", "VM", run_vm_show, NULL, "everything about one vm", VMS},
    {"vm", "start", "VM", vm_start, start_opts, "start a vm", VMS},
    {"vm", "stop", "VM", vm_stop, wait_opts, "ask its system to power down", VMS},
    {"vm", "kill", "VM", vm_kill, wait_opts, "end it at once, as a power cut does", VMS},
    {"vm", "migrate", "VM", vm_migrate, migrate_opts, "move it to another node while it runs", VMS},
    {"vm", "delete", "VM", run_vm_delete, delete_opts, "delete a stopped vm", VMS},
    {0},
};
