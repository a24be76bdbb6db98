/* cohort volume changed: where a volume may differ from a snapshot. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmd_volume.h"
#include "cli/size.h"
#include "cli/table.h"

/* SNAP of volume VOL[@…]: "monday" stands for "VOL@monday"; a name with an @, or an id, for itself. Caller frees. */
static char *snapshot_of(const char *volume, const char *snap)
{
    if (strchr(snap, '@'))
        return xstrdup(snap);
    return xasprintf("%.*s@%s", (int)strcspn(volume, "@"), volume, snap);
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
    int rc = EXIT_DONE;
    if (!*from || from[strspn(from, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")])
        rc = fail_set(&c->fail, EXIT_USAGE, "\"%.80s\" is not a snapshot's name", from);
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
