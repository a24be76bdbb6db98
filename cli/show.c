/* JSON objects as tables and lists. See show.h. */
#include "cli/show.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "cli/size.h"
#include "cli/table.h"

#define FIELDS_MAX 32

const char *text_of(const json_t *row, const char *key)
{
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}

int64_t int_of(const json_t *row, const char *key) { return json_integer_value(json_object_get(row, key)); }

static char *plain_text(const json_t *v)
{
    if (json_is_boolean(v))
        return xstrdup(json_is_true(v) ? "yes" : "no");
    if (json_is_integer(v))
        return xasprintf("%" JSON_INTEGER_FORMAT, json_integer_value(v));
    const char *s = json_string_value(v);
    return xstrdup(s && *s ? s : "-");
}

static char *list_text(const json_t *a)
{
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < json_array_size(a); i++) {
        const char *s = json_string_value(json_array_get(a, i));
        buf_printf(&b, "%s%s", i ? ", " : "", s ? s : "?");
    }
    return b.len ? buf_take(&b) : xstrdup("-");
}

char *field_text(const struct field *f, const json_t *row)
{
    char t[64];
    if (f->fn)
        return f->fn(row);
    const json_t *v = json_object_get(row, f->key);
    int64_t i = json_integer_value(v);
    switch ((enum field_kind)(f->kind & 0xff)) {
    case F_SIZE: return xstrdup(size_format(i, t));
    case F_AGE: return xstrdup(i ? duration_format(clock_wall_ms() - i, t) : "-");
    case F_UNTIL: return xstrdup(!i ? "never" : i <= clock_wall_ms() ? "expired" : duration_format(i - clock_wall_ms(), t));
    case F_TIME: return xstrdup(i ? clock_wall_format(i, t) : "-");
    case F_LIST: return list_text(v);
    case F_TEXT: case F_NUMBER: break;
    }
    return plain_text(v);
}

void show_table(const json_t *rows, const struct field *fields, struct buf *out)
{
    const char *heads[FIELDS_MAX];
    const struct field *shown[FIELDS_MAX];
    char *right[FIELDS_MAX] = {0};
    size_t n = 0;
    for (const struct field *f = fields; f->label && n < FIELDS_MAX; f++) {
        unsigned kind = f->kind & 0xff;
        if (f->kind & F_ONE)
            continue;
        shown[n] = f;
        heads[n] = f->label;
        if (!f->fn && (kind == F_SIZE || kind == F_NUMBER || kind == F_AGE))
            heads[n] = right[n] = xasprintf(">%s", f->label);
        n++;
    }
    struct table *t = table_new(heads, n);
    for (size_t r = 0; r < json_array_size(rows); r++)
        for (size_t i = 0; i < n; i++) {
            char *text = field_text(shown[i], json_array_get(rows, r));
            table_cell(t, text);
            free(text);
        }
    table_print(t, out);
    table_free(t);
    for (size_t i = 0; i < n; i++)
        free(right[i]);
}

void show_object(const json_t *row, const struct field *fields, struct buf *out)
{
    size_t width = 0;
    for (const struct field *f = fields; f->label; f++)
        width = strlen(f->label) > width ? strlen(f->label) : width;
    for (const struct field *f = fields; f->label; f++) {
        char *raw = field_text(f, row), *text = text_clean(raw, NULL), label[40];
        size_t n = strlen(f->label);
        for (size_t i = 0; i <= n && i < sizeof label; i++)
            label[i] = (char)tolower((unsigned char)f->label[i]);
        buf_printf(out, "%.39s:%*s%s\n", label, (int)(width - n + 2), "", text);
        free(text);
        free(raw);
    }
}

void show_part(const json_t *row, const char *key, const char *title, const struct field *fields, struct buf *out)
{
    const json_t *a = json_object_get(row, key);
    if (json_array_size(a) == 0)
        return;
    buf_printf(out, "\n%s\n", title);
    show_table(a, fields, out);
}
