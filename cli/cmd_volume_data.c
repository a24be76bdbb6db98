/* cohort volume changed, export, import: what a volume holds and where it differs, for backups. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "cli/cmd_volume.h"
#include "cli/progress.h"
#include "cli/size.h"
#include "cli/table.h"
#include "cli/wait.h"

/* SNAP of volume VOL[@…]: "monday" stands for "VOL@monday"; a name with an @, or an id, for itself. Caller frees. */
static char *snapshot_of(const char *volume, const char *snap)
{
    if (strchr(snap, '@'))
        return xstrdup(snap);
    return xasprintf("%.*s@%s", (int)strcspn(volume, "@"), volume, snap);
}

/* It goes into a query as it is. */
static int check_name(struct cli *c, const char *name)
{
    if (*name && !name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")])
        return EXIT_DONE;
    return fail_set(&c->fail, EXIT_USAGE, "\"%.80s\" is not a name", name);
}

static char *page_path(struct cli *c, const char *of, const char *from, int64_t offset)
{
    char *suffix = xasprintf("/changed?from=%s&offset=%" PRId64, from, offset);
    char *path = api_path("/volumes", of, suffix, &c->fail);
    free(suffix);
    return path;
}

/* A page behind the ones that are there; an extent that goes on over the border becomes one. */
static void add_page(json_t *all, const json_t *page)
{
    json_t *extents = json_object_get(all, "extents"), *e;
    size_t i;
    json_array_foreach (json_object_get(page, "extents"), i, e) {
        json_t *last = json_array_get(extents, json_array_size(extents) - 1);
        json_int_t at = json_integer_value(json_array_get(e, 0)), length = json_integer_value(json_array_get(e, 1));
        json_int_t end = json_integer_value(json_array_get(last, 0)) + json_integer_value(json_array_get(last, 1));
        if (last && end == at)
            json_array_set_new(last, 1, json_integer(json_integer_value(json_array_get(last, 1)) + length));
        else
            json_array_append(extents, e);
    }
    json_object_set_new(all, "changed_bytes", json_integer(int_of(all, "changed_bytes") + int_of(page, "changed_bytes")));
}

static int read_pages(struct cli *c, const char *of, const char *from, json_t **ret)
{
    json_t *all = NULL;
    for (int64_t offset = 0; offset >= 0;) {
        struct answer a;
        char *path = page_path(c, of, from, offset);
        int rc = path ? cli_call(c, "GET", path, NULL, &a) : c->fail.exit;
        free(path);
        if (rc != EXIT_DONE) {
            json_decref(all);
            return rc;
        }
        const json_t *next = json_object_get(a.json, "next_offset");
        int64_t at = json_is_integer(next) ? (int64_t)json_integer_value(next) : -1;
        if (!all) {
            all = json_incref(a.json);
            json_object_del(all, "next_offset");
        } else {
            add_page(all, a.json);
        }
        answer_free(&a);
        if (at >= 0 && at <= offset) {
            json_decref(all);
            return fail_set(&c->fail, EXIT_REFUSED, "the answer does not go on");
        }
        offset = at;
    }
    *ret = all;
    return EXIT_DONE;
}

static void put_extents(const json_t *all)
{
    static const char *const heads[] = {">OFFSET", ">LENGTH"};
    struct table *t = table_new(heads, 2);
    const json_t *e;
    struct buf out;
    size_t i;
    char a[SIZE_TEXT], b[SIZE_TEXT];
    buf_init(&out);
    json_array_foreach (json_object_get(all, "extents"), i, e)
        for (size_t k = 0; k < 2; k++) {
            char n[24];
            snprintf(n, sizeof n, "%" PRId64, (int64_t)json_integer_value(json_array_get(e, k)));
            table_cell(t, n);
        }
    if (i)
        table_print(t, &out);
    table_free(t);
    buf_printf(&out, "%s of %s may differ between %s and %s\n", size_format(int_of(all, "changed_bytes"), a),
               size_format(int_of(all, "size_bytes"), b), text_of(all, "from"), text_of(all, "volume"));
    cli_put(&out);
}

int volume_changed(struct cli *c)
{
    const char *to = args_get(c, "to");
    char *from = snapshot_of(c->pos[0], args_get(c, "from")), *of = to ? snapshot_of(c->pos[0], to) : xstrdup(c->pos[0]);
    json_t *all = NULL;
    int rc = check_name(c, from);
    if (rc == EXIT_DONE)
        rc = read_pages(c, of, from, &all);
    free(from);
    free(of);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        char *text = json_dumps(all, JSON_COMPACT);
        puts(text ? text : "null");
        free(text);
    } else {
        put_extents(all);
    }
    json_decref(all);
    return EXIT_DONE;
}

/* ---- export ---- */

/* A volume can be written; what is exported is a snapshot. Returns its name; caller frees. NULL: c->fail. */
static char *snapshot_for_export(struct cli *c)
{
    struct answer a;
    char name[40];
    time_t now = time(NULL);
    struct tm tm;
    if (strchr(c->pos[0], '@'))
        return xstrdup(c->pos[0]);
    gmtime_r(&now, &tm);
    strftime(name, sizeof name, "export-%Y%m%d-%H%M%S", &tm);
    if (cli_call(c, "POST", "/snapshots", json_pack("{s:s, s:[s]}", "name", name, "volumes", c->pos[0]), &a) != EXIT_DONE ||
        wait_answer(c, &a) != EXIT_DONE)
        return NULL;
    answer_free(&a);
    return xasprintf("%s@%s", c->pos[0], name);
}

/* Why did the body end too early? The export's task knows. */
static int explain(struct cli *c, const char *task, int rc)
{
    struct answer a;
    struct fail was = c->fail;
    char *path = *task ? api_path("/tasks", task, "", &c->fail) : NULL;
    c->fail = was;
    if (path && cli_call(c, "GET", path, NULL, &a) == EXIT_DONE) {
        if (strcmp(text_of(a.json, "state"), "running") != 0)
            rc = fail_set(&was, EXIT_REFUSED, "the export is %s: %s", text_of(a.json, "state"), text_of(a.json, "message"));
        answer_free(&a);
    }
    c->fail = was;
    free(path);
    return rc;
}

static void on_received(void *arg, int64_t received) { progress_step(arg, received, 0, true); }

/* Beside the file, and under its name only once it is whole and on the disk. */
static int download(struct cli *c, const char *path, const char *to, struct download_spec *d)
{
    struct progress p;
    char *part = xasprintf("%s.part", to);
    int rc = EXIT_DONE;
    d->path = path;
    d->file = fopen(part, "wb");
    if (!d->file) {
        rc = fail_set(&c->fail, EXIT_USAGE, "%s: %s", part, strerror(errno));
        free(part);
        return rc;
    }
    d->progress = on_received;
    d->arg = &p;
    progress_begin(&p, "");
    rc = api_of(c) ? api_get_file(c->api, d, &c->fail) : c->fail.exit;
    progress_end(&p);
    bool bad = fflush(d->file) || fsync(fileno(d->file));
    bad = fclose(d->file) || bad;
    if (rc == EXIT_DONE && (bad || rename(part, to)))
        rc = fail_set(&c->fail, EXIT_REFUSED, "%s: %s", to, strerror(errno));
    else if (rc == EXIT_UNREACHABLE || rc == EXIT_TIMEOUT)
        rc = explain(c, d->task, rc);
    if (rc != EXIT_DONE)
        unlink(part);
    free(part);
    return rc;
}

int volume_export(struct cli *c)
{
    const char *since = args_get(c, "from");
    char *snap = NULL, *from = since ? snapshot_of(c->pos[0], since) : NULL, *path = NULL, size[SIZE_TEXT];
    struct download_spec d = {0};
    int rc = from ? check_name(c, from) : EXIT_DONE;
    if (rc == EXIT_DONE && !(snap = snapshot_for_export(c)))
        rc = c->fail.exit;
    if (rc == EXIT_DONE) {
        char *suffix = xasprintf("/export%s%s", from ? "?from=" : "", from ? from : "");
        path = api_path("/volumes", snap, suffix, &c->fail);
        free(suffix);
        rc = path ? download(c, path, c->pos[1], &d) : c->fail.exit;
    }
    if (rc == EXIT_DONE) {
        struct answer a = {.json = json_pack("{s:s, s:s?, s:s, s:I}", "snapshot", snap, "from", from, "file", c->pos[1], "bytes", (json_int_t)d.received)};
        a.text = json_dumps(a.json, JSON_COMPACT);
        a.len = strlen(a.text);
        rc = cli_finish(c, &a, "%s%s%s exported to %s (%s)%s%s", snap, from ? " since " : "", from ? from : "", c->pos[1],
                        size_format(d.received, size), strchr(c->pos[0], '@') ? "" : "; keep the snapshot as base of the next: --from ",
                        strchr(c->pos[0], '@') ? "" : strchr(snap, '@') + 1);
    }
    free(path);
    free(snap);
    free(from);
    return rc;
}

/* ---- import ---- */

struct sending { struct progress p; int64_t total; };

static void on_passing(void *arg, const void *data, size_t len) { }

static void on_sent(void *arg, int64_t sent)
{
    struct sending *s = arg;
    progress_step(&s->p, sent, s->total, true);
}

static char *import_path(struct cli *c)
{
    int64_t replicas = 0;
    const char *name = args_get(c, "name");
    if (args_int(c, "replicas", 1, 3, &replicas) != EXIT_DONE || (name && check_name(c, name) != EXIT_DONE))
        return NULL;
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "/imports?replicas=%" PRId64 "%s%s%s", replicas, name ? "&name=" : "", name ? name : "", args_has(c, "encrypted") ? "&encrypted=1" : "");
    return buf_take(&b);
}

int volume_import(struct cli *c)
{
    struct sending s;
    struct stat st;
    struct answer a;
    char size[SIZE_TEXT], *path = import_path(c);
    if (!path)
        return c->fail.exit;
    FILE *in = fopen(c->pos[0], "rb");
    if (!in || fstat(fileno(in), &st) || !S_ISREG(st.st_mode)) {
        fail_set(&c->fail, EXIT_USAGE, "%s: %s", c->pos[0], in && errno == 0 ? "not a file" : strerror(errno));
        if (in)
            fclose(in);
        free(path);
        return EXIT_USAGE;
    }
    struct upload_spec u = {path, in, s.total = st.st_size, on_passing, on_sent, &s};
    progress_begin(&s.p, "");
    int rc = api_of(c) ? api_put_file(c->api, &u, &a, &c->fail) : c->fail.exit;
    progress_end(&s.p);
    fclose(in);
    free(path);
    if (rc == EXIT_DONE)
        rc = wait_answer(c, &a);
    if (rc != EXIT_DONE)
        return rc;
    char *volume = xstrdup(text_of(a.json, "volume")), *snap = xstrdup(text_of(a.json, "snapshot"));
    rc = cli_finish(c, &a, "%s imported into volume %s, which is at %s@%s now", size_format(st.st_size, size), volume, volume, snap);
    free(volume);
    free(snap);
    return rc;
}
