/* JSON objects as tables and lists, described by rows of `struct field`; and commands that need nothing else. */
#ifndef COHORT_CLI_SHOW_H
#define COHORT_CLI_SHOW_H

#include <jansson.h>
#include "base/buf.h"
#include "cli/api.h"
#include "cli/cli.h"

enum field_kind {
    F_TEXT,     /* text, number or boolean (yes/no) as it is; "" as "-" */
    F_SIZE,     /* bytes */
    F_AGE,      /* wall-clock ms as time since then */
    F_UNTIL,    /* wall-clock ms as time until then; 0 "never" */
    F_TIME,     /* wall-clock ms as date and time */
    F_LIST,     /* array of texts, comma-separated */
    F_NUMBER,   /* right-aligned */
};
#define F_ONE 0x100u /* only in the list of one object, not in the table */

struct field {
    const char *label; /* "HOST"; the list of one object shows it in lower case */
    const char *key;
    unsigned kind;
    char *(*fn)(const json_t *row); /* instead of key and kind; caller frees */
};

/* Cell text of one field; caller frees. */
char *field_text(const struct field *f, const json_t *row);
/* Appends a table of the array's objects, or "label: value" lines of one object. `fields` ends with a NULL label. */
void show_table(const json_t *rows, const struct field *fields, struct buf *out);
void show_object(const json_t *row, const struct field *fields, struct buf *out);
/* Table of row's array `key` under the title, nothing if it is empty. */
void show_part(const json_t *row, const char *key, const char *title, const struct field *fields, struct buf *out);

/* Texts of a row's members for people: "" when absent. */
const char *text_of(const json_t *row, const char *key);
int64_t int_of(const json_t *row, const char *key);

/* ---- generic.c ---- */

/* The API of this command line's address, opened at the first use; NULL after having set c->fail. */
struct api *api_of(struct cli *c);
/* As api_call on it. */
int cli_call(struct cli *c, const char *method, const char *path, json_t *body, struct answer *ret);
/* As call, on cmd->path + "/" + pos[0] + suffix. */
int cli_call_on(struct cli *c, const char *method, const char *suffix, json_t *body, struct answer *ret);
/* Writes to stdout: all of `out` (freed), or the answer as it is. */
void cli_put(struct buf *out);
void cli_put_answer(const struct answer *a);
/* With --json the answer, else the sentence. Frees the answer. EXIT_DONE. */
int cli_finish(struct cli *c, struct answer *a, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* GET cmd->path: a table sorted by name. GET, DELETE cmd->path/pos[0]: one object; "x deleted". */
int run_list(struct cli *c);
int run_show(struct cli *c);
int run_delete(struct cli *c);

#endif
