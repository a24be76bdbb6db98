/* Strict reading of JSON objects that come from outside: every field is declared; what is unknown, missing, of the
 * wrong type or out of range is refused by name. Strings are borrowed from the JSON value. Pure. */
#ifndef COHORT_DAEMON_JIN_H
#define COHORT_DAEMON_JIN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

enum jin_type { JIN_STR, JIN_INT, JIN_BOOL, JIN_ARRAY, JIN_OBJECT };

struct jin_field {
    const char *name;
    enum jin_type type;
    bool required;
    void *out;             /* const char **, int64_t *, bool *, json_t **: untouched when the field is absent */
    int64_t min, max;      /* INT: range; STR, ARRAY: length; both 0 = unchecked */
};

/* Reads `obj`. E_INVAL with "field \"x\": …" otherwise; `what` names the object ("disks[1]") or is "". */
MUST_CHECK int jin_read(const json_t *obj, const char *what, const struct jin_field *f, size_t n, struct err *e);
/* Parses text that must be one JSON object, nothing after it, no duplicate keys; "" counts as {}. Caller json_decref()s. */
MUST_CHECK int jin_parse(const char *text, size_t len, json_t **ret_obj, struct err *e);

/* Names of objects: 1..63 of a-z A-Z 0-9 . _ -, first a letter or digit, not shaped like an id. */
MUST_CHECK int jin_name_check(const char *what, const char *name, struct err *e);

#endif
