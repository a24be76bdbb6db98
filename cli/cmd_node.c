/* cohort node, event, token: mostly lists. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/size.h"

/* ---- nodes ---- */

static char *cell_memory(const json_t *o)
{
    char used[SIZE_TEXT], all[SIZE_TEXT];
    return xasprintf("%s of %s", size_format(int_of(o, "memory_used_bytes"), used), size_format(int_of(o, "memory_bytes"), all));
}

static char *cell_roles(const json_t *o)
{
    bool voter = json_is_true(json_object_get(o, "voter")), coordinator = json_is_true(json_object_get(o, "coordinator"));
    return xstrdup(coordinator ? "voter, coordinator" : voter ? "voter" : "-");
}

static char *cell_state(const json_t *o)
{
    return xasprintf("%s%s", text_of(o, "state"), json_is_true(json_object_get(o, "maintenance")) ? ", maintenance" : "");
}

/* As the node that answers sees them: "2 of 2 up", "1 of 2 up: 198.51.100.12 down". */
static char *cell_links(const json_t *o)
{
    const json_t *links = json_object_get(o, "storage_links"), *l;
    size_t i, n = 0, up = 0;
    char down[256] = "", *at = down;
    json_array_foreach (links, i, l) {
        const char *state = text_of(l, "state");
        if (json_is_true(json_object_get(l, "standby")))
            continue;
        n++;
        up += strcmp(state, "down") != 0;
        if (!strcmp(state, "down"))
            at += snprintf(at, sizeof down - (size_t)(at - down), "%s %s down", *down ? "," : ":", text_of(l, "address"));
        if (at >= down + sizeof down - 1)
            break;
    }
    return n ? xasprintf("%zu of %zu up%s", up, n, down) : xstrdup("-");
}

static const struct field node_fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"STATE", .fn = cell_state}, {"ADDRESS", "addresses", F_LIST}, {"STORAGE LINKS", .fn = cell_links}, {"ROLES", .fn = cell_roles},
    {"CPUS", "cpus", F_NUMBER}, {"MEMORY USED", .fn = cell_memory}, {"VMS", "vms", F_NUMBER}, {"ACCEL", "accel"}, {"WHY", "accel_reason"},
    {"VERSION", "version", F_ONE}, {"API PORT", "api_port", F_ONE}, {"EPOCH", "epoch", F_ONE}, {"JOINED", "joined_ms", F_TIME | F_ONE}, {0},
};

static int run_node_remove(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "DELETE", "", NULL, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "node %s removed from the cluster", c->pos[0]) : rc;
}

static int run_maintenance(struct cli *c)
{
    struct answer a;
    bool on = !strcmp(c->pos[1], "on");
    if (!on && strcmp(c->pos[1], "off"))
        return fail_set(&c->fail, EXIT_USAGE, "say on or off, not \"%s\"", c->pos[1]);
    int rc = cli_call_on(c, "POST", "/maintenance", json_pack("{s:b}", "on", on), &a);
    if (rc != EXIT_DONE)
        return rc;
    return on ? cli_finish(c, &a, "node %s is in maintenance: its guests move away one by one (cohort vm list); its copies stay and are not "
                           "replaced while it is off", c->pos[0])
              : cli_finish(c, &a, "node %s takes guests and copies again", c->pos[0]);
}

const struct cmd cmds_node[] = {
    {"node", "list", "", run_list, NULL, "nodes with state, load and kind of virtualisation", .path = "/nodes", .fields = node_fields},
    {"node", "show", "NODE", run_show, NULL, "everything about one node", .path = "/nodes", .fields = node_fields},
    {"node", "maintenance", "NODE on|off", run_maintenance, NULL, "prepare a node for being switched off, or end that", .path = "/nodes"},
    {"node", "remove", "NODE", run_node_remove, NULL, "take a node out of the cluster for good", .path = "/nodes",
     .more = "The node must be without guests, and no volume may have its only good copy there."},
    {0},
};

/* ---- events ---- */

static const struct field event_fields[] = {
    {"TIME", "time_ms", F_TIME}, {"SEVERITY", "severity"}, {"NODE", "node"}, {"OBJECT", "object"}, {"MESSAGE", "message"}, {0},
};

static int run_event_list(struct cli *c)
{
    struct cmd with_limit = *c->cmd;
    int64_t limit = 50;
    char path[64];
    if (args_int(c, "limit", 1, 100000, &limit) != EXIT_DONE)
        return EXIT_USAGE;
    snprintf(path, sizeof path, "/events?limit=%" PRId64, limit);
    with_limit.path = path;
    c->cmd = &with_limit;
    return run_list(c);
}

static const struct opt event_opts[] = {{"limit", "N", 0, "the newest N (default 50)"}, {0}};

const struct cmd cmds_event[] = {
    {"event", "list", "", run_event_list, event_opts, "the newest events, newest first", .fields = event_fields},
    {0},
};

/* ---- tokens ---- */

static const struct field token_fields[] = {
    {"NAME", "name"}, {"ROLE", "role"}, {"EXPIRES IN", "expires_ms", F_UNTIL}, {"CREATOR", "creator"}, {0},
};

static int run_token_create(struct cli *c)
{
    struct answer a;
    int64_t ttl_s = 0;
    const char *role = args_get(c, "role");
    int rc = args_word(c, "role", "viewer|operator|admin");
    if (rc == EXIT_DONE)
        rc = args_duration(c, "ttl", &ttl_s);
    if (rc != EXIT_DONE)
        return rc;
    json_t *body = json_pack("{s:s, s:s}", "name", c->pos[0], "role", role ? role : "viewer");
    if (body && ttl_s)
        json_object_set_new(body, "ttl_s", json_integer(ttl_s));
    rc = cli_call(c, "POST", "/tokens", body, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        puts(text_of(a.json, "token"));
        fprintf(stderr, "shown only now; use it as COHORT_TOKEN or as Authorization: Bearer TOKEN\n");
    }
    answer_free(&a);
    return EXIT_DONE;
}

static const struct opt token_opts[] = {
    {"role", "ROLE", 0, "viewer (reads, the default), operator (also vms, volumes, networks) or admin"},
    {"ttl", "TIME", 0, "how long it is valid (default: for ever)"},
    {0},
};

const struct cmd cmds_token[] = {
    {"token", "create", "NAME", run_token_create, token_opts, "make a token for the API", .path = "/tokens"},
    {"token", "list", "", run_list, NULL, "tokens (never their secrets)", .path = "/tokens", .fields = token_fields},
    {"token", "delete", "NAME", run_delete, NULL, "end a token at once", .path = "/tokens"},
    {0},
};
