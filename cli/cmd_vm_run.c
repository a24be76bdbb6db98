/* cohort vm start, stop, kill, migrate: the API records what is wanted; --wait looks until it is so. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmd_vm.h"
#include "cli/progress.h"
#include "cli/wait.h"

static enum waited gone(struct cli *c)
{
    fail_set(&c->fail, EXIT_REFUSED, "vm %s was deleted meanwhile", c->pos[0]);
    return WAIT_FAILED;
}

static enum waited is_running(struct cli *c, const json_t *vm, void *arg)
{
    if (!vm)
        return gone(c);
    const char *state = text_of(vm, "state"), *message = text_of(vm, "message");
    if (strcmp(state, "running") == 0)
        return WAIT_OK;
    if (strcmp(state, "failed") != 0 && strcmp(text_of(vm, "desired"), "running") == 0)
        return WAIT_ON;
    fail_set(&c->fail, EXIT_REFUSED, "vm %s is %s%s%s", c->pos[0], state, *message ? ": " : "", message);
    fail_hint(&c->fail, "see: cohort vm show %s", c->pos[0]);
    return WAIT_FAILED;
}

static enum waited is_stopped(struct cli *c, const json_t *vm, void *arg)
{
    if (!vm)
        return gone(c);
    if (!*text_of(vm, "host") && strcmp(text_of(vm, "state"), "stopped") == 0)
        return WAIT_OK;
    if (strcmp(text_of(vm, "desired"), "stopped") == 0)
        return WAIT_ON;
    fail_set(&c->fail, EXIT_REFUSED, "vm %s was started again meanwhile", c->pos[0]);
    return WAIT_FAILED;
}

static int wait_vm(struct cli *c, wait_judge *judge, const char *what, void *arg, struct answer *ret)
{
    char text[120], *path = api_path(c->cmd->path, c->pos[0], "", &c->fail);
    if (!path)
        return c->fail.exit;
    snprintf(text, sizeof text, "vm %.60s to %s", c->pos[0], what);
    int rc = wait_for(c, path, judge, arg, text, ret);
    free(path);
    return rc;
}

/* Asks, and with --wait replaces the answer by the vm's row at the end. */
static int act(struct cli *c, const char *suffix, json_t *body, wait_judge *judge, const char *what, const char *asked, const char *done)
{
    struct answer a;
    bool wait = args_has(c, "wait");
    int64_t unused;
    if (args_duration(c, "timeout", &unused) != EXIT_DONE) { /* before anything is changed */
        json_decref(body);
        return EXIT_USAGE;
    }
    int rc = cli_call_on(c, "POST", suffix, body, &a);
    if (rc == EXIT_DONE && wait) {
        answer_free(&a);
        rc = wait_vm(c, judge, what, NULL, &a);
    }
    if (rc != EXIT_DONE)
        return rc;
    const char *host = text_of(a.json, "host");
    return cli_finish(c, &a, "vm %s %s%s%s", c->pos[0], wait ? done : asked, wait && *host ? " on node " : "", wait ? host : "");
}

int vm_start(struct cli *c)
{
    const char *to = args_get(c, "to");
    return act(c, "/start", to ? json_pack("{s:s}", "to", to) : NULL, is_running, "run", "starts; see cohort vm show", "runs");
}

int vm_stop(struct cli *c) { return act(c, "/stop", NULL, is_stopped, "stop", "was asked to power down", "is stopped"); }
int vm_kill(struct cli *c) { return act(c, "/kill", NULL, is_stopped, "end", "is being ended", "is stopped"); }

/* ---- migrate ---- */

/* The move's own task tells its end; which one that is: the first of this vm that was not there before. */
struct move {
    json_t *before;  /* ids of tasks that were there, as keys */
    char object[200];
    bool seen;       /* migrate_to was seen set, so that its absence means the end */
    int quiet;       /* looks at which nothing of the move was to be seen */
    char task_message[400];
    struct progress progress;
};

#define QUIET_MAX 50 /* x 200 ms: a move that never shows up anywhere has ended */

static const char *member(const json_t *o, const char *a, const char *b)
{
    const char *x = text_of(o, a);
    return *x ? x : text_of(o, b);
}

static int list_tasks(struct cli *c, struct answer *a)
{
    struct fail saved = c->fail;
    int rc = cli_call(c, "GET", "/tasks", NULL, a);
    if (rc != EXIT_DONE)
        c->fail = saved; /* the vm's row decides; progress is a courtesy */
    return rc;
}

static void note_task(struct move *m, const json_t *tasks)
{
    for (size_t i = 0; i < json_array_size(tasks); i++) {
        const json_t *t = json_array_get(tasks, i);
        const char *object = text_of(t, "object");
        size_t len = strlen(m->object);
        if (strcmp(text_of(t, "kind"), "migrate") != 0 || strncmp(object, m->object, len) != 0 || (object[len] && object[len] != ' '))
            continue;
        if (json_object_get(m->before, text_of(t, "id")))
            continue;
        m->seen = true;
        snprintf(m->task_message, sizeof m->task_message, "%s", text_of(t, "message"));
        if (strcmp(text_of(t, "state"), "running") == 0)
            progress_step(&m->progress, int_of(t, "done"), int_of(t, "total"), true);
    }
}

static enum waited has_moved(struct cli *c, const json_t *vm, void *arg)
{
    struct move *m = arg;
    struct answer tasks;
    const char *to = args_get(c, "to");
    if (!vm)
        return gone(c);
    bool moving = *text_of(vm, "migrate_to"), there = !strcmp(text_of(vm, "host"), to) || !strcmp(text_of(vm, "host_id"), to);
    if (list_tasks(c, &tasks) == EXIT_DONE) {
        note_task(m, tasks.json);
        answer_free(&tasks);
    }
    m->seen = m->seen || moving;
    if (there && !moving && strcmp(text_of(vm, "state"), "running") == 0)
        return WAIT_OK;
    if (moving || there || (!m->seen && m->quiet++ < QUIET_MAX))
        return WAIT_ON;
    const char *why = *m->task_message ? m->task_message : member(vm, "message", "state");
    fail_set(&c->fail, EXIT_REFUSED, "vm %s did not move to node %s: %s", c->pos[0], to, why);
    fail_hint(&c->fail, "it is on node %s; see: cohort vm show %s", member(vm, "host", "state"), c->pos[0]);
    return WAIT_FAILED;
}

static void remember_tasks(struct cli *c, struct move *m)
{
    struct answer a;
    if (list_tasks(c, &a) != EXIT_DONE)
        return;
    for (size_t i = 0; i < json_array_size(a.json); i++)
        json_object_set_new(m->before, text_of(json_array_get(a.json, i), "id"), json_true());
    answer_free(&a);
}

int vm_migrate(struct cli *c)
{
    struct answer a;
    const char *to = args_get(c, "to");
    bool wait = args_has(c, "wait");
    int64_t unused;
    if (args_duration(c, "timeout", &unused) != EXIT_DONE)
        return EXIT_USAGE;
    struct move m = {.before = json_object()};
    snprintf(m.object, sizeof m.object, "vm %.80s", c->pos[0]);
    if (wait)
        remember_tasks(c, &m);
    int rc = cli_call_on(c, "POST", "/migrate", json_pack("{s:s}", "to", to), &a);
    if (rc == EXIT_DONE && wait) {
        answer_free(&a);
        progress_begin(&m.progress, "memory");
        rc = wait_vm(c, has_moved, "move", &m, &a);
        progress_end(&m.progress);
    }
    json_decref(m.before);
    if (rc != EXIT_DONE)
        return rc;
    if (wait)
        return cli_finish(c, &a, "vm %s runs on node %s%s%s", c->pos[0], to, *m.task_message ? ": " : "", m.task_message);
    return cli_finish(c, &a, "vm %s moves to node %s; see: cohort task list", c->pos[0], to);
}
