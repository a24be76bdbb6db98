/* Strict reading of JSON objects. See jin.h. */
#include "daemon/jin.h"

#include <inttypes.h>
#include <string.h>
#include "base/buf.h"
#include "base/id.h"

static const char *type_name(enum jin_type t)
{
    static const char *const names[] = {"a text", "a whole number", "true or false", "a list", "an object"};
    return names[t];
}

static int check_length(const struct jin_field *f, const char *prefix, size_t len, const char *unit, struct err *e)
{
    if (!f->min && !f->max)
        return E_OK;
    if ((int64_t)len < f->min || (int64_t)len > f->max)
        return err_set(e, E_INVAL, "field \"%s%s\": must have %" PRId64 " to %" PRId64 " %s, has %zu", prefix, f->name, f->min, f->max, unit, len);
    return E_OK;
}

static int read_one(const struct jin_field *f, const char *prefix, json_t *v, struct err *e)
{
    switch (f->type) {
    case JIN_STR:
        if (!json_is_string(v))
            break;
        if (strlen(json_string_value(v)) != json_string_length(v))
            return err_set(e, E_INVAL, "field \"%s%s\": contains a NUL character", prefix, f->name);
        *(const char **)f->out = json_string_value(v);
        return check_length(f, prefix, json_string_length(v), "characters", e);
    case JIN_INT: {
        if (!json_is_integer(v))
            break;
        int64_t i = json_integer_value(v);
        if ((f->min || f->max) && (i < f->min || i > f->max))
            return err_set(e, E_INVAL, "field \"%s%s\": must be from %" PRId64 " to %" PRId64 ", is %" PRId64, prefix, f->name, f->min, f->max, i);
        *(int64_t *)f->out = i;
        return E_OK;
    }
    case JIN_BOOL:
        if (!json_is_boolean(v))
            break;
        *(bool *)f->out = json_is_true(v);
        return E_OK;
    case JIN_ARRAY:
        if (!json_is_array(v))
            break;
        *(json_t **)f->out = v;
        return check_length(f, prefix, json_array_size(v), "entries", e);
    case JIN_OBJECT:
        if (!json_is_object(v))
            break;
        *(json_t **)f->out = v;
        return E_OK;
    }
    return err_set(e, E_INVAL, "field \"%s%s\": must be %s", prefix, f->name, type_name(f->type));
}

static int unknown_field(const char *prefix, const char *key, const struct jin_field *f, size_t n, struct err *e)
{
    struct buf known;
    buf_init(&known);
    for (size_t i = 0; i < n; i++)
        buf_printf(&known, "%s%s", i ? ", " : "", f[i].name);
    int rc = err_set(e, E_INVAL, "unknown field \"%s%.80s\"\nknown here: %s", prefix, key, n ? known.data : "none");
    buf_free(&known);
    return rc;
}

int jin_read(const json_t *obj, const char *what, const struct jin_field *f, size_t n, struct err *e)
{
    char prefix[80] = "";
    if (what[0])
        snprintf(prefix, sizeof prefix, "%.70s.", what);
    if (!json_is_object(obj))
        return err_set(e, E_INVAL, "%s: must be an object", what[0] ? what : "the request body");
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)obj, key, v)
    {
        size_t i = 0;
        while (i < n && strcmp(f[i].name, key) != 0)
            i++;
        if (i == n)
            return unknown_field(prefix, key, f, n, e);
        int rc = read_one(&f[i], prefix, v, e);
        if (rc != E_OK)
            return rc;
    }
    for (size_t i = 0; i < n; i++)
        if (f[i].required && !json_object_get(obj, f[i].name))
            return err_set(e, E_INVAL, "field \"%s%s\" is missing (%s)", prefix, f[i].name, type_name(f[i].type));
    return E_OK;
}

int jin_parse(const char *text, size_t len, json_t **ret_obj, struct err *e)
{
    json_error_t je;
    json_t *v = len == 0 ? json_object() : json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!v)
        return err_set(e, E_INVAL, "the request body is not valid JSON: line %d, column %d: %.200s", je.line, je.column, je.text);
    if (!json_is_object(v)) {
        json_decref(v);
        return err_set(e, E_INVAL, "the request body must be a JSON object");
    }
    *ret_obj = v;
    return E_OK;
}

int jin_name_check(const char *what, const char *name, struct err *e)
{
    static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    struct id id;
    size_t len = strlen(name);
    if (len == 0 || len > 63 || strspn(name, chars) != len || strchr("._-", name[0]))
        return err_set(e, E_INVAL, "%s name \"%.80s\" is not allowed\n1 to 63 of a-z A-Z 0-9 . _ - and first a letter or digit", what, name);
    if (id_parse(name, &id))
        return err_set(e, E_INVAL, "%s name \"%s\" has the form of an id\nchoose a name", what, name);
    return E_OK;
}
