/* What all commands share: the connection, output, and list/show/delete of a collection. See show.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/show.h"
#include "cli/table.h"
#include "cli/wait.h"

#define SOCKET "/run/cohort/api.sock"

static const char *or_env(const char *given, const char *variable) { return given ? given : getenv(variable); }

struct api *api_of(struct cli *c)
{
    const char *path = getenv("COHORT_SOCKET");
    struct api_conf conf = {
        .url = or_env(c->url, "COHORT_API"),
        .socket = path && *path ? path : SOCKET,
        .token = getenv("COHORT_TOKEN"),
        .ca = or_env(c->ca, "COHORT_CA"),
    };
    if (!c->api && api_open(&conf, &c->api, &c->fail) != EXIT_DONE)
        return NULL;
    return c->api;
}

int cli_call(struct cli *c, const char *method, const char *path, json_t *body, struct answer *ret)
{
    struct api *a = api_of(c);
    if (!a) {
        json_decref(body);
        return c->fail.exit;
    }
    return api_call(a, method, path, body, ret, &c->fail);
}

int cli_call_on(struct cli *c, const char *method, const char *suffix, json_t *body, struct answer *ret)
{
    char *path = api_path(c->cmd->path, c->pos[0], suffix, &c->fail);
    if (!path) {
        json_decref(body);
        return c->fail.exit;
    }
    int rc = cli_call(c, method, path, body, ret);
    free(path);
    return rc;
}

void cli_put(struct buf *out)
{
    if (out->len)
        fwrite(out->data, 1, out->len, stdout);
    buf_free(out);
}

void cli_put_answer(const struct answer *a)
{
    fwrite(a->text, 1, a->len, stdout);
    if (a->len && a->text[a->len - 1] != '\n')
        putchar('\n');
}

int cli_finish(struct cli *c, struct answer *a, const char *fmt, ...)
{
    if (c->json) {
        cli_put_answer(a);
    } else {
        va_list ap;
        struct buf b;
        buf_init(&b);
        va_start(ap, fmt);
        buf_vprintf(&b, fmt, ap);
        va_end(ap);
        char *text = text_clean(b.len ? b.data : "", NULL);
        puts(text);
        free(text);
        buf_free(&b);
    }
    answer_free(a);
    return EXIT_DONE;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(text_of(*(json_t *const *)a, "name"), text_of(*(json_t *const *)b, "name"));
}

static int by_start(const void *a, const void *b)
{
    int64_t x = int_of(*(json_t *const *)a, "started_ms"), y = int_of(*(json_t *const *)b, "started_ms");
    return (x > y) - (x < y);
}

/* The database has no order of its own: by name; tasks by their start; events come sorted. */
static json_t *sorted(const json_t *rows)
{
    size_t n = json_array_size(rows);
    json_t *out = json_array(), **list = xcalloc(n ? n : 1, sizeof *list);
    for (size_t i = 0; i < n; i++)
        list[i] = json_array_get(rows, i);
    if (n && json_object_get(list[0], "name"))
        qsort(list, n, sizeof *list, by_name);
    else if (n && json_object_get(list[0], "started_ms"))
        qsort(list, n, sizeof *list, by_start);
    for (size_t i = 0; i < n; i++)
        json_array_append(out, list[i]);
    free(list);
    return out;
}

int run_list(struct cli *c)
{
    struct answer a;
    int rc = cli_call(c, "GET", c->cmd->path, NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else if (json_array_size(a.json) == 0) {
        printf("none\n");
    } else {
        struct buf out;
        json_t *rows = sorted(a.json);
        buf_init(&out);
        show_table(rows, c->cmd->fields, &out);
        json_decref(rows);
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

int run_show(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "GET", "", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        struct buf out;
        buf_init(&out);
        show_object(a.json, c->cmd->fields, &out);
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

int run_delete(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "DELETE", "", NULL, &a);
    if (rc == EXIT_DONE && args_has(c, "wait") && (rc = wait_gone(c, c->cmd->path, c->pos[0])) != EXIT_DONE)
        answer_free(&a);
    if (rc != EXIT_DONE)
        return rc;
    return cli_finish(c, &a, "%s %s deleted", c->cmd->group, c->pos[0]);
}
