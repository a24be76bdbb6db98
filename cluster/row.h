/* Rows and cells, generic over the column descriptors of schema.h. Private to cluster/.
 *
 * A row is a `struct cdb_<table>` behind a hidden header that counts references (atomically). It is written only by the
 * one that made it, before it gets into a view; from then on it is immutable and may be read by every thread.
 * A "cell" is a pointer to one column's field inside such a struct (or to a value of that field's type).
 */
#ifndef COHORT_CLUSTER_ROW_H
#define COHORT_CLUSTER_ROW_H

#include "base/err.h"
#include "cluster/schema.h"

#define CDB_INDEX_COLS_MAX 2
struct cdb_index { enum cdb_table table; int cols[CDB_INDEX_COLS_MAX]; int n; };
extern const struct cdb_index cdb_indexes[]; /* schema.c */
extern const size_t cdb_n_indexes;

/* Any column's value with its type. */
struct cdb_value {
    enum cdb_type type;
    union {
        char *s;
        int64_t i;
        bool b;
        struct cdb_strs strs;
        struct cdb_imap imap;
        struct cdb_smap smap;
    } u; /* every member at offset 0: &u is a cell */
};

void *row_new(enum cdb_table t, const char *id);        /* one reference; columns at their defaults */
void *row_clone(const void *row);                       /* one reference to a deep copy */
const void *row_ref(const void *row);
void row_unref(const void *row);                        /* NULL is fine */
static inline const char *row_id(const void *row) { return *(char *const *)row; }

static inline const struct cdb_column *row_column(enum cdb_table t, int col) { return &cdb_tables[t].columns[col]; }
static inline void *row_cell(void *row, const struct cdb_column *c) { return (char *)row + c->offset; }
static inline const void *row_cell_const(const void *row, const struct cdb_column *c) { return (const char *)row + c->offset; }

void cell_init(enum cdb_type type, void *cell);                      /* default value */
void cell_free(enum cdb_type type, void *cell);                      /* leaves garbage */
void cell_copy(enum cdb_type type, void *dst, const void *src);      /* dst is uninitialised before; deep */
void cell_assign(enum cdb_type type, void *dst, const void *src);    /* frees what dst held */
bool cell_equal(enum cdb_type type, const void *a, const void *b);
bool cell_valid(enum cdb_type type, const void *cell);               /* all text is UTF-8 without NUL, as OVSDB wants */

/* Deep copies that sort and drop duplicates (of a key: the last one stays). */
void strs_copy_sorted(struct cdb_strs *ret, size_t n, const char *const *v);
void imap_copy_sorted(struct cdb_imap *ret, const struct cdb_imap *src);
void smap_copy_sorted(struct cdb_smap *ret, const struct cdb_smap *src);

bool text_is_utf8(const char *s);

#endif
