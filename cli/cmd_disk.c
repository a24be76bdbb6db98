/* cohort disk. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/size.h"

static char *cell_name(const json_t *o)
{
    return xasprintf("%s:%s", text_of(o, "node"), text_of(o, "name"));
}

static char *cell_copies(const json_t *o)
{
    return xasprintf("%" PRId64 " of %" PRId64 " in sync", int_of(o, "shard_copies_in_sync"), int_of(o, "shard_copies"));
}

/* A full disk is up, and yet nothing new may come to it. */
static char *cell_state(const json_t *o)
{
    const char *state = text_of(o, "state");
    return xstrdup(json_is_true(json_object_get(o, "full")) && strcmp(state, "up") == 0 ? "full" : state);
}

static const struct field fields[] = {
    {"DISK", .fn = cell_name}, {"ID", "id", F_ONE}, {"STATE", .fn = cell_state}, {"MEDIUM", "medium"}, {"SIZE", "size_bytes", F_SIZE}, {"USED", "used_bytes", F_SIZE},
    {"COPIES", .fn = cell_copies}, {"SMART", "smart_state"},
    {"FAST", "fast_path"}, {"CAPACITY", "capacity_path"}, {"INCARNATION", "incarnation", F_ONE}, {"REPLACED BY", "replaced_by", F_ONE}, {"MEMORY", "memory_bytes", F_SIZE | F_ONE}, {"DRIVES", "smart", F_ONE},
    {"MESSAGE", "message"}, {0},
};

static int act(struct cli *c, const char *method, const char *suffix, const char *done)
{
    struct answer a;
    int rc = cli_call_on(c, method, suffix, NULL, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "disk %s %s", c->pos[0], done) : rc;
}

static int run_drain(struct cli *c)
{
    return act(c, "POST", "/drain", "is drained: its copies move elsewhere (cohort disk show); when none is left it may be removed");
}
static int run_spare(struct cli *c) { return act(c, "POST", "/spare", "is a spare: it comes into service when a disk fails"); }
static int run_use(struct cli *c) { return act(c, "POST", "/use", "is in service again"); }
static int run_replace(struct cli *c)
{
    return act(c, "POST", "/replace", "will be opened anew by its node, formatted if it is empty; see cohort disk show");
}
static int run_remove(struct cli *c) { return act(c, "DELETE", "", "removed from the cluster; what is on it was not touched (memory is given back)"); }

static int run_add(struct cli *c)
{
    struct answer a;
    const char *colon = strchr(c->pos[0], ':'), *fast = args_get(c, "fast"), *capacity = args_get(c, "capacity");
    int64_t memory = 0;
    int rc = args_size(c, "memory", &memory);
    if (rc != EXIT_DONE)
        return rc;
    if (!colon || colon == c->pos[0] || !colon[1])
        return fail_set(&c->fail, EXIT_USAGE, "name the disk as NODE:DISK, not \"%s\"", c->pos[0]);
    if (!capacity == !args_has(c, "memory") || (fast && !capacity))
        return fail_set(&c->fail, EXIT_USAGE, "give --capacity PATH (and --fast PATH) for a disk on storage, or --memory SIZE for one in memory");
    json_t *body = json_pack("{s:s%, s:s, s:b}", "node", c->pos[0], (size_t)(colon - c->pos[0]), "name", colon + 1, "spare", args_has(c, "spare"));
    if (body && capacity) {
        json_object_set_new(body, "fast_path", json_string(fast ? fast : capacity));
        json_object_set_new(body, "capacity_path", json_string(capacity));
    } else if (body) {
        json_object_set_new(body, "memory_bytes", json_integer(memory));
    }
    rc = cli_call(c, "POST", "/disks", body, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "disk %s added; its node opens it now, see cohort disk list", c->pos[0]) : rc;
}

/* "3 shards have a copy that is not in sync; 2 volumes are being compared and copied: 1 GiB of 4 GiB, 80 MiB/s, 40s left" */
static void put_copying(const json_t *o)
{
    char done[SIZE_TEXT], total[SIZE_TEXT], rate[SIZE_TEXT], eta[SIZE_TEXT];
    if (!int_of(o, "shards_behind"))
        return;
    printf("%" PRId64 " shards have a copy that is not in sync", int_of(o, "shards_behind"));
    if (int_of(o, "volumes"))
        printf("; %" PRId64 " volumes are being compared and copied: %s of %s, %s/s", int_of(o, "volumes"), size_format(int_of(o, "done_bytes"), done),
               size_format(int_of(o, "total_bytes"), total), size_format(int_of(o, "rate"), rate));
    if (json_object_get(o, "eta_ms"))
        printf(", %s left", duration_format(int_of(o, "eta_ms"), eta));
    puts("");
}

static int run_plan(struct cli *c)
{
    struct answer a;
    int rc = cli_call(c, "GET", "/repair", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        const json_t *steps = json_object_get(a.json, "steps");
        for (size_t i = 0; i < json_array_size(steps); i++)
            puts(json_string_value(json_array_get(steps, i)));
        if (!json_array_size(steps))
            puts("nothing to do: every copy is where it should be, or on its way");
        put_copying(json_object_get(a.json, "copying"));
        if (int_of(a.json, "lost_without_place"))
            printf("%" PRId64 " lost copies have no place: add a disk or a node\n", int_of(a.json, "lost_without_place"));
        if (int_of(a.json, "lost_without_copy"))
            printf("%" PRId64 " shards have no good copy on a node that is up: bring their nodes back\n", int_of(a.json, "lost_without_copy"));
    }
    answer_free(&a);
    return EXIT_DONE;
}

static const struct opt add_opts[] = {
    {"capacity", "PATH", 0, "where data goes, on that node"},
    {"fast", "PATH", 0, "where the journal goes (default: the same)"},
    {"memory", "SIZE", 0, "instead: so much of the node's memory, for volumes of class memory; its contents are lost when the node goes down"},
    {"spare", NULL, 0, "keep it as a spare until a disk fails"},
    {0},
};

const struct cmd cmds_disk[] = {
    {"disk", "list", "", run_list, NULL, "disks of all nodes", .path = "/disks", .fields = fields},
    {"disk", "show", "NODE:DISK", run_show, NULL, "one disk", .path = "/disks", .fields = fields},
    {"disk", "add", "NODE:DISK", run_add, add_opts, "put one more disk of a node, or some of its memory, into service",
     .more = "Example: cohort disk add n1:d1 --capacity /srv/d1\n"
             "         cohort disk add n1:ram --memory 4G", .path = "/disks"},
    {"disk", "drain", "NODE:DISK", run_drain, NULL, "move all copies away from a disk", .path = "/disks"},
    {"disk", "use", "NODE:DISK", run_use, NULL, "take back drain, spare or isolation", .path = "/disks"},
    {"disk", "spare", "NODE:DISK", run_spare, NULL, "keep an empty disk for the day another fails", .path = "/disks"},
    {"disk", "replace", "NODE:DISK", run_replace, NULL, "a failed disk has been exchanged: open it anew", .path = "/disks"},
    {"disk", "remove", "NODE:DISK", run_remove, NULL, "take a disk without copies out of the cluster", .path = "/disks"},
    {"disk", "plan", "", run_plan, NULL, "which copies would be made, moved or given up next, and why (dry run)"},
    {0},
};
