/* Waiting for long work. See wait.h. */
#include "cli/wait.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "cli/progress.h"
#include "cli/size.h"

#define POLL_MS 200
#define DEFAULT_S 300

static void pause_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        ;
}

/* One look. Only what may pass by itself counts as "not yet". */
static enum waited look(struct cli *c, const char *path, wait_judge *judge, void *arg, struct answer *a)
{
    int rc = cli_call(c, "GET", path, NULL, a);
    if (rc == EXIT_DONE)
        return judge(c, a->json, arg);
    if (strcmp(c->fail.code, "not_found") == 0)
        return judge(c, NULL, arg);
    return rc == EXIT_UNREACHABLE || rc == EXIT_TIMEOUT || strcmp(c->fail.code, "unavailable") == 0 ? WAIT_ON : WAIT_FAILED;
}

int wait_for(struct cli *c, const char *path, wait_judge *judge, void *arg, const char *what, struct answer *ret)
{
    int64_t limit_s = DEFAULT_S;
    char t[SIZE_TEXT];
    if (args_duration(c, "timeout", &limit_s) != EXIT_DONE)
        return EXIT_USAGE;
    uint64_t began = clock_boot_ms();
    for (;;) {
        struct answer a = {0};
        c->fail = (struct fail){0};
        enum waited w = look(c, path, judge, arg, &a);
        if (w == WAIT_OK && ret)
            *ret = a;
        else
            answer_free(&a);
        if (w != WAIT_ON)
            return w == WAIT_OK ? EXIT_DONE : c->fail.exit;
        if ((int64_t)(clock_boot_ms() - began) / 1000 >= limit_s)
            break;
        pause_ms(POLL_MS);
    }
    struct fail last = c->fail;
    fail_set(&c->fail, EXIT_TIMEOUT, "waited %s for %s", duration_format((int64_t)(clock_boot_ms() - began), t), what);
    fail_hint(&c->fail, "%s", last.exit ? last.message : "it goes on; wait longer with --timeout, or look at cohort task list and cohort event list");
    return EXIT_TIMEOUT;
}

static enum waited is_gone(struct cli *c, const json_t *row, void *arg) { return row ? WAIT_ON : WAIT_OK; }

int wait_gone(struct cli *c, const char *collection, const char *name)
{
    char what[120], *path = api_path(collection, name, "", &c->fail);
    if (!path)
        return c->fail.exit;
    snprintf(what, sizeof what, "%s to be gone", name);
    int rc = wait_for(c, path, is_gone, NULL, what, NULL);
    free(path);
    return rc;
}

static enum waited task_ended(struct cli *c, const json_t *row, void *arg)
{
    const char *state = text_of(row, "state"), *message = text_of(row, "message");
    if (!row) {
        fail_set(&c->fail, EXIT_REFUSED, "the task is gone");
        return WAIT_FAILED;
    }
    if (strcmp(state, "running") == 0) {
        progress_step(arg, int_of(row, "done"), int_of(row, "total"), strcmp(text_of(row, "unit"), "bytes") == 0);
        return WAIT_ON;
    }
    if (strcmp(state, "done") == 0)
        return WAIT_OK;
    fail_set(&c->fail, EXIT_REFUSED, "%s %s: %s%s%s", text_of(row, "kind"), text_of(row, "object"), state, *message ? ": " : "", message);
    return WAIT_FAILED;
}

int wait_task(struct cli *c, const char *id, struct answer *ret)
{
    char what[120], *path = api_path("/tasks", id, "", &c->fail);
    if (!path)
        return c->fail.exit;
    struct progress p;
    progress_begin(&p, "");
    snprintf(what, sizeof what, "task %s", id);
    int rc = wait_for(c, path, task_ended, &p, what, ret);
    progress_end(&p);
    free(path);
    return rc;
}

int wait_answer(struct cli *c, struct answer *a)
{
    int rc = wait_task(c, text_of(a->json, "id"), NULL);
    if (rc != EXIT_DONE)
        answer_free(a);
    return rc;
}
