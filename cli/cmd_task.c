/* cohort task. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/size.h"
#include "cli/wait.h"

static char *cell_progress(const json_t *o)
{
    int64_t done = int_of(o, "done"), total = int_of(o, "total");
    const char *unit = text_of(o, "unit");
    char a[SIZE_TEXT], b[SIZE_TEXT];
    if (strcmp(unit, "bytes") == 0)
        return total ? xasprintf("%s of %s", size_format(done, a), size_format(total, b)) : xstrdup(size_format(done, a));
    if (strcmp(unit, "percent") == 0)
        return xasprintf("%" PRId64 " %%", done);
    return total ? xasprintf("%" PRId64 " of %" PRId64, done, total) : xasprintf("%" PRId64, done);
}

/* "12 MiB/s, 40s left" of a running task that says so. */
static char *cell_rate(const json_t *o)
{
    char rate[SIZE_TEXT], eta[SIZE_TEXT];
    if (!json_object_get(o, "rate"))
        return xstrdup("");
    if (strcmp(text_of(o, "unit"), "bytes") == 0)
        size_format(int_of(o, "rate"), rate);
    else
        snprintf(rate, sizeof rate, "%" PRId64, int_of(o, "rate"));
    return xasprintf("%s/s%s%s%s", rate, json_object_get(o, "eta_ms") ? ", " : "",
                     json_object_get(o, "eta_ms") ? duration_format(int_of(o, "eta_ms"), eta) : "",
                     json_object_get(o, "eta_ms") ? " left" : "");
}

/* Running: so far; ended: how long it took. */
static char *cell_time(const json_t *o)
{
    static const struct field age = {"", "started_ms", F_AGE};
    char t[SIZE_TEXT];
    if (strcmp(text_of(o, "state"), "running") == 0)
        return field_text(&age, o);
    return xstrdup(duration_format(int_of(o, "updated_ms") - int_of(o, "started_ms"), t));
}

static const struct field fields[] = {
    {"ID", "id"}, {"KIND", "kind"}, {"OBJECT", "object"}, {"NODE", "node"}, {"STATE", "state"}, {"PROGRESS", .fn = cell_progress}, {"RATE", .fn = cell_rate},
    {"TIME", .fn = cell_time}, {"STARTED", "started_ms", F_TIME | F_ONE}, {"CHANGED", "updated_ms", F_TIME | F_ONE},
    {"CANCEL ASKED", "cancel", F_ONE}, {"MESSAGE", "message"}, {0},
};

static int run_cancel(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/cancel", NULL, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "task %s was asked to stop", c->pos[0]) : rc;
}

static int run_wait(struct cli *c)
{
    struct answer a;
    int rc = wait_task(c, c->pos[0], &a);
    if (rc != EXIT_DONE)
        return rc;
    char *message = xasprintf("%s%s", *text_of(a.json, "message") ? ": " : "", text_of(a.json, "message"));
    rc = cli_finish(c, &a, "task %s is done%s", c->pos[0], message);
    free(message);
    return rc;
}

static const struct opt wait_opts[] = {{"timeout", "TIME", 0, "give up after this (default 5m; exit status 4)"}, {0}};

const struct cmd cmds_task[] = {
    {"task", "list", "", run_list, NULL, "migrations, resyncs, imports: running, and ended lately", .path = "/tasks", .fields = fields},
    {"task", "show", "ID", run_show, NULL, "one task", .path = "/tasks", .fields = fields},
    {"task", "cancel", "ID", run_cancel, NULL, "ask a task to stop", .path = "/tasks"},
    {"task", "wait", "ID", run_wait, wait_opts, "wait for a task's end, with progress", .path = "/tasks"},
    {0},
};
