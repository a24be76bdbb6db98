/* The value of `vm create --disk`. See disk_arg.h. */
#include "cli/disk_arg.h"

#include <string.h>
#include "cli/size.h"

static const char *take_part(json_t *o, const char *key, const char *value)
{
    int64_t n;
    if (strcmp(key, "volume") == 0) {
        if (!*value)
            return "needs the name of a volume";
        return json_object_set_new(o, "volume", json_string(value)) == 0 ? NULL : "is not valid text";
    }
    if (strcmp(key, "size") == 0) {
        if (!size_parse(value, &n))
            return "is no size; write 512M, 1G or 2T";
        json_object_set_new(o, "size_bytes", json_integer(n));
        return NULL;
    }
    if (strcmp(key, "replicas") == 0) {
        if (!int_parse(value, &n) || n < 1 || n > 3)
            return "must be 1, 2 or 3";
        json_object_set_new(o, "replicas", json_integer(n));
        return NULL;
    }
    return "is not known; there are size, replicas and volume";
}

static json_t *refuse(json_t *o, struct fail *f, const char *part, const char *why)
{
    fail_set(f, EXIT_USAGE, "--disk: \"%.80s\" %s", part, why);
    fail_hint(f, "write --disk size=1G,replicas=3 for a new disk or --disk volume=NAME for an existing one");
    json_decref(o);
    return NULL;
}

json_t *disk_arg_parse(const char *text, struct fail *f)
{
    json_t *o = json_object();
    const char *p = text;
    for (;;) {
        char part[160], key[20];
        size_t len = strcspn(p, ",");
        if (len >= sizeof part)
            return refuse(o, f, p, "is too long");
        memcpy(part, p, len);
        part[len] = '\0';
        char *eq = strchr(part, '=');
        if (!eq || (size_t)(eq - part) >= sizeof key)
            return refuse(o, f, part, "is not KEY=VALUE");
        memcpy(key, part, (size_t)(eq - part));
        key[eq - part] = '\0';
        if (json_object_get(o, strcmp(key, "size") ? key : "size_bytes"))
            return refuse(o, f, part, "is given twice");
        const char *why = take_part(o, key, eq + 1);
        if (why)
            return refuse(o, f, part, why);
        p += len;
        if (!*p++)
            break;
    }
    bool volume = json_object_get(o, "volume"), size = json_object_get(o, "size_bytes");
    if (volume == size)
        return refuse(o, f, text, volume ? "has a size, but the volume exists already" : "needs a size or a volume");
    if (volume && json_object_get(o, "replicas"))
        return refuse(o, f, text, "has replicas, but the volume has its own");
    return o;
}
