/* cohort snapshot. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/wait.h"

static const struct field fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"VOLUME", "snapshot_of"}, {"SIZE", "size_bytes", F_SIZE}, {"TAKEN", "created_ms", F_TIME},
    {"COPIES", "replicas", F_NUMBER}, {"HEALTH", "health"}, {"ON", "parent", F_ONE}, {"WHY", "health_reason"}, {0},
};

static int run_create(struct cli *c)
{
    struct answer a;
    char name[40];
    const char *given = args_get(c, "name"), *more;
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(name, sizeof name, "%Y%m%d-%H%M%S", &tm);
    json_t *volumes = json_array();
    json_array_append_new(volumes, json_string(c->pos[0]));
    for (int i = 0; (more = args_get_n(c, "with", i)); i++)
        json_array_append_new(volumes, json_string(more));
    int rc = cli_call(c, "POST", "/snapshots", json_pack("{s:s, s:o}", "name", given ? given : name, "volumes", volumes), &a);
    if (rc == EXIT_DONE)
        rc = wait_answer(c, &a);
    if (rc != EXIT_DONE)
        return rc;
    return cli_finish(c, &a, "snapshot %s@%s taken", c->pos[0], given ? given : name);
}

static int run_revert(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/revert", NULL, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "reverted to %s", c->pos[0]) : rc;
}

static const struct opt create_opts[] = {
    {"name", "NAME", 0, "its name behind the @ (default: date and time, UTC)"},
    {"with", "VOLUME", OPT_MANY, "another volume of the same instant: all are taken or none; may be repeated"},
    {"timeout", "TIME", 0, "give up waiting after this (default 5m; exit status 4)"},
    {0},
};

const struct cmd cmds_snapshot[] = {
    {"snapshot", "create", "VOLUME", run_create, create_opts, "keep what a volume holds now, while it goes on",
     .more = "Example: cohort snapshot create db1 --with db1-log --name before-upgrade", .path = "/snapshots"},
    {"snapshot", "list", "", run_list, NULL, "snapshots", .path = "/snapshots", .fields = fields},
    {"snapshot", "show", "SNAPSHOT", run_show, NULL, "one snapshot, named VOLUME@NAME", .path = "/snapshots", .fields = fields},
    {"snapshot", "delete", "SNAPSHOT", run_delete, NULL, "delete a snapshot; its space is freed in the background", .path = "/snapshots"},
    {"snapshot", "revert", "SNAPSHOT", run_revert, NULL, "make the volume what it was; what was written since is lost. The vm must be stopped",
     .path = "/snapshots"},
    {0},
};
