/* Rows and cells: allocation, copies, comparison. See row.h. */
#include "cluster/row.h"
#include <assert.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

struct row_head {
    alignas(max_align_t) unsigned refs;
    enum cdb_table table;
};

static struct row_head *head_of(const void *row)
{
    return (struct row_head *)((char *)(uintptr_t)row - sizeof(struct row_head));
}

static void *row_alloc(enum cdb_table t)
{
    struct row_head *h = xcalloc(1, sizeof *h + cdb_tables[t].row_size);
    h->refs = 1;
    h->table = t;
    return h + 1;
}

void *row_new(enum cdb_table t, const char *id)
{
    void *row = row_alloc(t);
    *(char **)row = xstrdup(id);
    for (int i = 0; i < cdb_tables[t].n_columns; i++) {
        const struct cdb_column *c = row_column(t, i);
        cell_init(c->type, row_cell(row, c));
    }
    return row;
}

void *row_clone(const void *src)
{
    enum cdb_table t = head_of(src)->table;
    void *row = row_alloc(t);
    *(char **)row = xstrdup(row_id(src));
    for (int i = 0; i < cdb_tables[t].n_columns; i++) {
        const struct cdb_column *c = row_column(t, i);
        cell_copy(c->type, row_cell(row, c), row_cell_const(src, c));
    }
    return row;
}

const void *row_ref(const void *row)
{
    __atomic_add_fetch(&head_of(row)->refs, 1, __ATOMIC_RELAXED);
    return row;
}

void row_unref(const void *row)
{
    if (!row)
        return;
    struct row_head *h = head_of(row);
    if (__atomic_sub_fetch(&h->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    void *mine = h + 1;
    for (int i = 0; i < cdb_tables[h->table].n_columns; i++) {
        const struct cdb_column *c = row_column(h->table, i);
        cell_free(c->type, row_cell(mine, c));
    }
    free(*(char **)mine);
    free(h);
}

/* ---- cells ---- */

void cell_init(enum cdb_type type, void *cell)
{
    switch (type) {
    case CDB_STR: *(char **)cell = xstrdup(""); break;
    case CDB_INT: *(int64_t *)cell = 0; break;
    case CDB_BOOL: *(bool *)cell = false; break;
    case CDB_STRS: memset(cell, 0, sizeof(struct cdb_strs)); break;
    case CDB_IMAP: memset(cell, 0, sizeof(struct cdb_imap)); break;
    case CDB_SMAP: memset(cell, 0, sizeof(struct cdb_smap)); break;
    }
}

static void texts_free(size_t n, char **v)
{
    for (size_t i = 0; i < n; i++)
        free(v[i]);
    free(v);
}

void cell_free(enum cdb_type type, void *cell)
{
    switch (type) {
    case CDB_STR: free(*(char **)cell); break;
    case CDB_INT: case CDB_BOOL: break;
    case CDB_STRS: { struct cdb_strs *s = cell; texts_free(s->n, s->v); break; }
    case CDB_IMAP: { struct cdb_imap *m = cell; texts_free(m->n, m->k); free(m->v); break; }
    case CDB_SMAP: { struct cdb_smap *m = cell; texts_free(m->n, m->k); texts_free(m->n, m->v); break; }
    }
}

static char **texts_copy(size_t n, char *const *v)
{
    char **r = n ? xmalloc(n * sizeof *r) : NULL;
    for (size_t i = 0; i < n; i++)
        r[i] = xstrdup(v[i]);
    return r;
}

void cell_copy(enum cdb_type type, void *dst, const void *src)
{
    switch (type) {
    case CDB_STR: *(char **)dst = xstrdup(*(char *const *)src); break;
    case CDB_INT: *(int64_t *)dst = *(const int64_t *)src; break;
    case CDB_BOOL: *(bool *)dst = *(const bool *)src; break;
    case CDB_STRS: {
        const struct cdb_strs *s = src;
        *(struct cdb_strs *)dst = (struct cdb_strs){s->n, texts_copy(s->n, s->v)};
        break;
    }
    case CDB_IMAP: {
        const struct cdb_imap *m = src;
        struct cdb_imap r = {m->n, texts_copy(m->n, m->k), m->n ? xmalloc(m->n * sizeof *r.v) : NULL};
        if (m->n)
            memcpy(r.v, m->v, m->n * sizeof *r.v);
        *(struct cdb_imap *)dst = r;
        break;
    }
    case CDB_SMAP: {
        const struct cdb_smap *m = src;
        *(struct cdb_smap *)dst = (struct cdb_smap){m->n, texts_copy(m->n, m->k), texts_copy(m->n, m->v)};
        break;
    }
    }
}

void cell_assign(enum cdb_type type, void *dst, const void *src)
{
    cell_free(type, dst);
    cell_copy(type, dst, src);
}

static bool texts_equal(size_t n, char *const *a, char *const *b)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(a[i], b[i]))
            return false;
    return true;
}

bool cell_equal(enum cdb_type type, const void *a, const void *b)
{
    switch (type) {
    case CDB_STR: return !strcmp(*(char *const *)a, *(char *const *)b);
    case CDB_INT: return *(const int64_t *)a == *(const int64_t *)b;
    case CDB_BOOL: return *(const bool *)a == *(const bool *)b;
    case CDB_STRS: {
        const struct cdb_strs *x = a, *y = b;
        return x->n == y->n && texts_equal(x->n, x->v, y->v);
    }
    case CDB_IMAP: {
        const struct cdb_imap *x = a, *y = b;
        return x->n == y->n && texts_equal(x->n, x->k, y->k) && (!x->n || !memcmp(x->v, y->v, x->n * sizeof *x->v));
    }
    case CDB_SMAP: {
        const struct cdb_smap *x = a, *y = b;
        return x->n == y->n && texts_equal(x->n, x->k, y->k) && texts_equal(x->n, x->v, y->v);
    }
    }
    assert(!"column type");
    return false;
}

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool text_is_utf8(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        if (*s < 0x80) {
            s++;
            continue;
        }
        int more = *s >= 0xf0 ? 3 : *s >= 0xe0 ? 2 : 1;
        if (*s < 0xc2 || *s > 0xf4)
            return false;
        unsigned char lo = 0x80, hi = 0xbf;
        if (*s == 0xe0)
            lo = 0xa0;
        else if (*s == 0xed)
            hi = 0x9f;
        else if (*s == 0xf0)
            lo = 0x90;
        else if (*s == 0xf4)
            hi = 0x8f;
        if (s[1] < lo || s[1] > hi)
            return false;
        for (int i = 2; i <= more; i++)
            if ((s[i] & 0xc0) != 0x80)
                return false;
        s += more + 1;
    }
    return true;
}

static bool texts_valid(size_t n, char *const *v)
{
    for (size_t i = 0; i < n; i++)
        if (!text_is_utf8(v[i]))
            return false;
    return true;
}

bool cell_valid(enum cdb_type type, const void *cell)
{
    switch (type) {
    case CDB_STR: return text_is_utf8(*(char *const *)cell);
    case CDB_INT: case CDB_BOOL: return true;
    case CDB_STRS: { const struct cdb_strs *s = cell; return texts_valid(s->n, s->v); }
    case CDB_IMAP: { const struct cdb_imap *m = cell; return texts_valid(m->n, m->k); }
    case CDB_SMAP: { const struct cdb_smap *m = cell; return texts_valid(m->n, m->k) && texts_valid(m->n, m->v); }
    }
    return false;
}

/* ---- sorted copies ---- */

struct key_pos { const char *key; size_t pos; };

static int key_pos_cmp(const void *a, const void *b)
{
    const struct key_pos *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : (x->pos > y->pos) - (x->pos < y->pos);
}

/* The positions of `n` keys in sorted order, of equal keys only the last; caller frees. NULL if n is 0. */
static size_t *order_of(size_t n, const char *const *keys, size_t *ret_n)
{
    *ret_n = 0;
    if (!n)
        return NULL;
    struct key_pos *p = xmalloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = (struct key_pos){keys[i], i};
    qsort(p, n, sizeof *p, key_pos_cmp);
    size_t *order = xmalloc(n * sizeof *order), m = 0;
    for (size_t i = 0; i < n; i++)
        if (i + 1 == n || strcmp(p[i].key, p[i + 1].key))
            order[m++] = p[i].pos;
    free(p);
    *ret_n = m;
    return order;
}

void strs_copy_sorted(struct cdb_strs *ret, size_t n, const char *const *v)
{
    size_t m, *order = order_of(n, v, &m);
    *ret = (struct cdb_strs){m, m ? xmalloc(m * sizeof *ret->v) : NULL};
    for (size_t i = 0; i < m; i++)
        ret->v[i] = xstrdup(v[order[i]]);
    free(order);
}

void imap_copy_sorted(struct cdb_imap *ret, const struct cdb_imap *src)
{
    size_t m, *order = order_of(src->n, (const char *const *)src->k, &m);
    struct cdb_imap r = {m, m ? xmalloc(m * sizeof *r.k) : NULL, m ? xmalloc(m * sizeof *r.v) : NULL};
    for (size_t i = 0; i < m; i++) {
        r.k[i] = xstrdup(src->k[order[i]]);
        r.v[i] = src->v[order[i]];
    }
    free(order);
    *ret = r;
}

void smap_copy_sorted(struct cdb_smap *ret, const struct cdb_smap *src)
{
    size_t m, *order = order_of(src->n, (const char *const *)src->k, &m);
    struct cdb_smap r = {m, m ? xmalloc(m * sizeof *r.k) : NULL, m ? xmalloc(m * sizeof *r.v) : NULL};
    for (size_t i = 0; i < m; i++) {
        r.k[i] = xstrdup(src->k[order[i]]);
        r.v[i] = xstrdup(src->v[order[i]]);
    }
    free(order);
    *ret = r;
}
