/* Text tables: columns aligned by what a terminal shows (UTF-8 characters), numbers to the right. Control characters in
 * cells, which may come from a guest or a peer, are shown as '?': they could steer the terminal. One thread. */
#ifndef COHORT_CLI_TABLE_H
#define COHORT_CLI_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include "base/buf.h"

struct table;

/* `heads`: n texts that outlive the table; one that begins with '>' makes a right-aligned column. */
struct table *table_new(const char *const *heads, size_t n);
void table_free(struct table *t); /* NULL is fine */
/* Next cell, row by row; copied. */
void table_cell(struct table *t, const char *text);
/* Appends head and rows; no trailing spaces. Every begun row must be complete. */
void table_print(const struct table *t, struct buf *out);

/* Copies `text` with control characters replaced; for anything that goes to the terminal. `width` (may be NULL): its
 * characters. Caller frees. */
char *text_clean(const char *text, size_t *ret_width);

#endif
