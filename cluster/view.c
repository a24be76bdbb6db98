/* Immutable views: lookup, the helpers of cdb.h, and edits that share everything unchanged. See view.h. */
#include "cluster/view.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "cluster/row.h"

struct chunk {
    unsigned refs;
    size_t n;
    const void *rows[]; /* sorted by id; each one reference */
};

struct table {
    unsigned refs;
    size_t n_rows, n_chunks;
    struct { size_t start; struct chunk *chunk; } c[]; /* start: rows before this chunk */
};

struct cdb_view {
    unsigned refs;
    struct table *t[CDB_N_TABLES]; /* NULL = empty */
};

static void chunk_unref(struct chunk *c)
{
    if (__atomic_sub_fetch(&c->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    for (size_t i = 0; i < c->n; i++)
        row_unref(c->rows[i]);
    free(c);
}

static void table_unref(struct table *t)
{
    if (!t || __atomic_sub_fetch(&t->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    for (size_t i = 0; i < t->n_chunks; i++)
        chunk_unref(t->c[i].chunk);
    free(t);
}

const struct cdb_view *cdb_view_ref(const struct cdb_view *v)
{
    __atomic_add_fetch(&((struct cdb_view *)(uintptr_t)v)->refs, 1, __ATOMIC_RELAXED);
    return v;
}

void cdb_view_unref(const struct cdb_view *cv)
{
    struct cdb_view *v = (struct cdb_view *)(uintptr_t)cv;
    if (!v || __atomic_sub_fetch(&v->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    for (int i = 0; i < CDB_N_TABLES; i++)
        table_unref(v->t[i]);
    free(v);
}

const struct cdb_view *view_empty(void)
{
    struct cdb_view *v = xcalloc(1, sizeof *v);
    v->refs = 1;
    return v;
}

/* ---- reading ---- */

size_t cdb_count(const struct cdb_view *v, enum cdb_table t)
{
    return v->t[t] ? v->t[t]->n_rows : 0;
}

const void *cdb_at(const struct cdb_view *v, enum cdb_table tb, size_t i)
{
    const struct table *t = v->t[tb];
    assert(t && i < t->n_rows);
    size_t lo = 0, hi = t->n_chunks; /* the chunk is in [lo, hi) */
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (t->c[mid].start <= i)
            lo = mid;
        else
            hi = mid;
    }
    return t->c[lo].chunk->rows[i - t->c[lo].start];
}

const void *cdb_get(const struct cdb_view *v, enum cdb_table tb, const char *id)
{
    const struct table *t = v->t[tb];
    if (!t)
        return NULL;
    size_t lo = 0, hi = t->n_chunks;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (strcmp(row_id(t->c[mid].chunk->rows[0]), id) <= 0)
            lo = mid;
        else
            hi = mid;
    }
    const struct chunk *c = t->c[lo].chunk;
    for (lo = 0, hi = c->n; lo < hi;) {
        size_t mid = (lo + hi) / 2;
        int cmp = strcmp(row_id(c->rows[mid]), id);
        if (!cmp)
            return c->rows[mid];
        if (cmp < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

const void *cdb_find_name(const struct cdb_view *v, enum cdb_table tb, const char *name)
{
    const struct cdb_table_desc *d = &cdb_tables[tb];
    const struct cdb_column *col = NULL;
    for (int i = 0; i < d->n_columns; i++)
        if (d->columns[i].type == CDB_STR && !strcmp(d->columns[i].name, "name"))
            col = &d->columns[i];
    assert(col);
    const struct table *t = v->t[tb];
    for (size_t i = 0; t && i < t->n_chunks; i++) {
        const struct chunk *c = t->c[i].chunk;
        for (size_t j = 0; j < c->n; j++)
            if (!strcmp(*(char *const *)row_cell_const(c->rows[j], col), name))
                return c->rows[j];
    }
    return NULL;
}

/* Position of `key` among `n` sorted texts, or -1. */
static ssize_t text_find(size_t n, char *const *v, const char *key)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int cmp = strcmp(v[mid], key);
        if (!cmp)
            return (ssize_t)mid;
        if (cmp < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

bool cdb_strs_has(const struct cdb_strs *s, const char *text)
{
    return text_find(s->n, s->v, text) >= 0;
}

int64_t cdb_setting(const struct cdb_view *v, const char *key, int64_t min, int64_t max, int64_t otherwise)
{
    const struct cdb_cluster *cl = v ? cdb_cluster_get(v, "cluster") : NULL;
    const char *text = cl ? cdb_smap_get(&cl->settings, key) : NULL;
    char *end;
    if (!text || !*text)
        return otherwise;
    long long n = strtoll(text, &end, 10);
    return *end || n < min || n > max ? otherwise : n;
}

const char *cdb_smap_get(const struct cdb_smap *m, const char *key)
{
    ssize_t i = text_find(m->n, m->k, key);
    return i < 0 ? NULL : m->v[i];
}

bool cdb_imap_get(const struct cdb_imap *m, const char *key, int64_t *ret_value)
{
    ssize_t i = text_find(m->n, m->k, key);
    if (i >= 0)
        *ret_value = m->v[i];
    return i >= 0;
}

bool cdb_shard_in_sync(const struct cdb_view *v, const struct cdb_shard *s, const char *disk)
{
    int64_t incarnation;
    if (!cdb_imap_get(&s->in_sync, disk, &incarnation))
        return false;
    const struct cdb_disk *d = cdb_disk_get(v, disk);
    return d && d->incarnation == incarnation;
}

int cdb_shard_in_sync_count(const struct cdb_view *v, const struct cdb_shard *s)
{
    int n = 0;
    for (size_t i = 0; i < s->in_sync.n; i++)
        n += cdb_shard_in_sync(v, s, s->in_sync.k[i]);
    return n;
}

/* ---- comparing ---- */

struct cursor { const struct table *t; size_t chunk, row; };

static const void *cursor_row(const struct cursor *c)
{
    return c->t && c->chunk < c->t->n_chunks ? c->t->c[c->chunk].chunk->rows[c->row] : NULL;
}

static void cursor_next(struct cursor *c)
{
    if (++c->row == c->t->c[c->chunk].chunk->n) {
        c->row = 0;
        c->chunk++;
    }
}

bool cdb_same(const struct cdb_view *was, const struct cdb_view *is, enum cdb_table t)
{
    return was && was->t[t] == is->t[t];
}

void cdb_diff(const struct cdb_view *was, const struct cdb_view *is, enum cdb_table tb, cdb_diff_fn *fn, void *arg)
{
    struct cursor a = {was ? was->t[tb] : NULL, 0, 0}, b = {is->t[tb], 0, 0};
    const void *x, *y;
    if (a.t == b.t)
        return;
    while ((x = cursor_row(&a)), (y = cursor_row(&b)), x || y) {
        if (x && y && !a.row && !b.row && a.t->c[a.chunk].chunk == b.t->c[b.chunk].chunk) {
            a.chunk++;
            b.chunk++;
            continue;
        }
        int cmp = !x ? 1 : !y ? -1 : strcmp(row_id(x), row_id(y));
        if (cmp <= 0)
            cursor_next(&a);
        if (cmp >= 0)
            cursor_next(&b);
        if (x != y)
            fn(arg, cmp <= 0 ? x : NULL, cmp >= 0 ? y : NULL);
    }
}

/* ---- editing ---- */

struct change {
    struct htab_node node;
    char *id;
    const void *row; /* NULL = delete */
};

struct view_edit {
    const struct cdb_view *base;
    struct htab changes[CDB_N_TABLES]; /* of struct change, by id */
};

struct view_edit *view_edit_new(const struct cdb_view *base)
{
    struct view_edit *e = xcalloc(1, sizeof *e);
    e->base = cdb_view_ref(base);
    for (int i = 0; i < CDB_N_TABLES; i++)
        htab_init(&e->changes[i]);
    return e;
}

static struct change *change_find(const struct view_edit *e, enum cdb_table t, const char *id)
{
    struct htab_node *n;
    HTAB_FOR_EACH_WITH_HASH (n, hash_str(id), &e->changes[t]) {
        struct change *c = container_of(n, struct change, node);
        if (!strcmp(c->id, id))
            return c;
    }
    return NULL;
}

const void *view_edit_get(const struct view_edit *e, enum cdb_table t, const char *id)
{
    const struct change *c = change_find(e, t, id);
    return c ? c->row : cdb_get(e->base, t, id);
}

static void change_set(struct view_edit *e, enum cdb_table t, const char *id, const void *row)
{
    struct change *c = change_find(e, t, id);
    if (!c) {
        c = xcalloc(1, sizeof *c);
        c->id = xstrdup(id);
        htab_insert(&e->changes[t], &c->node, hash_str(id));
    }
    row_unref(c->row);
    c->row = row;
}

void view_edit_put(struct view_edit *e, enum cdb_table t, const void *row)
{
    change_set(e, t, row_id(row), row);
}

void view_edit_delete(struct view_edit *e, enum cdb_table t, const char *id)
{
    change_set(e, t, id, NULL);
}

void view_edit_each_put(const struct view_edit *e, void (*fn)(enum cdb_table t, const void *row, void *arg), void *arg)
{
    for (enum cdb_table t = 0; t < CDB_N_TABLES; t++) {
        struct htab_node *n;
        HTAB_FOR_EACH (n, &e->changes[t]) {
            const struct change *c = container_of(n, struct change, node);
            if (c->row)
                fn(t, c->row, arg);
        }
    }
}

static int change_cmp(const void *a, const void *b)
{
    return strcmp((*(struct change *const *)a)->id, (*(struct change *const *)b)->id);
}

/* A table under construction: whole chunks, and rows that are not yet in one. */
struct builder {
    struct chunk **chunks;
    size_t n_chunks, cap_chunks;
    const void **rows;
    size_t n_rows, cap_rows;
};

static void builder_add_row(struct builder *b, const void *row)
{
    if (b->n_rows == b->cap_rows)
        b->rows = xrealloc(b->rows, (b->cap_rows = b->cap_rows ? 2 * b->cap_rows : VIEW_CHUNK_MAX) * sizeof *b->rows);
    b->rows[b->n_rows++] = row;
}

static void builder_add_chunk(struct builder *b, struct chunk *c)
{
    if (b->n_chunks == b->cap_chunks)
        b->chunks = xrealloc(b->chunks, (b->cap_chunks = b->cap_chunks ? 2 * b->cap_chunks : 16) * sizeof *b->chunks);
    b->chunks[b->n_chunks++] = c;
}

/* Makes chunks of equal size of the loose rows. */
static void builder_flush(struct builder *b)
{
    size_t parts = (b->n_rows + VIEW_CHUNK_MAX - 1) / VIEW_CHUNK_MAX, from = 0;
    for (size_t p = 0; p < parts; p++) {
        size_t n = (b->n_rows - from) / (parts - p);
        struct chunk *c = xmalloc(sizeof *c + n * sizeof *c->rows);
        c->refs = 1;
        c->n = n;
        memcpy(c->rows, b->rows + from, n * sizeof *c->rows);
        builder_add_chunk(b, c);
        from += n;
    }
    b->n_rows = 0;
}

static struct table *builder_end(struct builder *b)
{
    builder_flush(b);
    struct table *t = NULL;
    if (b->n_chunks) {
        t = xmalloc(sizeof *t + b->n_chunks * sizeof t->c[0]);
        *t = (struct table){.refs = 1, .n_chunks = b->n_chunks};
        for (size_t i = 0; i < b->n_chunks; i++) {
            t->c[i].start = t->n_rows;
            t->c[i].chunk = b->chunks[i];
            t->n_rows += b->chunks[i]->n;
        }
    }
    free(b->chunks);
    free(b->rows);
    return t;
}

/* Merges one chunk's rows (NULL: none) with the sorted changes [*i, n) that are below `limit` (NULL: no limit). */
static void merge_chunk(struct builder *b, const struct chunk *c, struct change **ch, size_t *i, size_t n, const char *limit)
{
    size_t j = 0, rows = c ? c->n : 0;
    for (;;) {
        bool have_change = *i < n && (!limit || strcmp(ch[*i]->id, limit) < 0);
        if (!have_change && j == rows)
            return;
        int cmp = !have_change ? -1 : j == rows ? 1 : strcmp(row_id(c->rows[j]), ch[*i]->id);
        if (cmp < 0) {
            builder_add_row(b, row_ref(c->rows[j++]));
            continue;
        }
        if (cmp == 0)
            j++;
        if (ch[*i]->row)
            builder_add_row(b, row_ref(ch[*i]->row));
        ++*i;
    }
}

static struct table *table_apply(const struct table *t, struct change **ch, size_t n)
{
    struct builder b = {0};
    size_t i = 0, n_chunks = t ? t->n_chunks : 0;
    for (size_t k = 0; k < n_chunks; k++) {
        struct chunk *c = t->c[k].chunk;
        const char *limit = k + 1 < n_chunks ? row_id(t->c[k + 1].chunk->rows[0]) : NULL;
        bool touched = i < n && (!limit || strcmp(ch[i]->id, limit) < 0);
        if (!touched && !b.n_rows) {
            __atomic_add_fetch(&c->refs, 1, __ATOMIC_RELAXED);
            builder_add_chunk(&b, c);
            continue;
        }
        merge_chunk(&b, c, ch, &i, n, limit);
        if (b.n_rows >= VIEW_CHUNK_MIN) /* otherwise the next chunk's rows join */
            builder_flush(&b);
    }
    merge_chunk(&b, NULL, ch, &i, n, NULL);
    return builder_end(&b);
}

static void changes_free(struct htab *h)
{
    struct htab_node *n, *next;
    HTAB_FOR_EACH_SAFE (n, next, h) {
        struct change *c = container_of(n, struct change, node);
        htab_remove(h, n);
        row_unref(c->row);
        free(c->id);
        free(c);
    }
    htab_destroy(h);
}

void view_edit_abort(struct view_edit *e)
{
    for (int i = 0; i < CDB_N_TABLES; i++)
        changes_free(&e->changes[i]);
    cdb_view_unref(e->base);
    free(e);
}

const struct cdb_view *view_edit_end(struct view_edit *e)
{
    bool any = false;
    for (int i = 0; i < CDB_N_TABLES; i++)
        any |= e->changes[i].n > 0;
    if (!any) {
        const struct cdb_view *same = cdb_view_ref(e->base);
        view_edit_abort(e);
        return same;
    }
    struct cdb_view *v = xcalloc(1, sizeof *v);
    v->refs = 1;
    for (int i = 0; i < CDB_N_TABLES; i++) {
        struct htab *h = &e->changes[i];
        if (!h->n) {
            if ((v->t[i] = e->base->t[i]))
                __atomic_add_fetch(&v->t[i]->refs, 1, __ATOMIC_RELAXED);
            continue;
        }
        struct change **ch = xmalloc(h->n * sizeof *ch);
        size_t n = 0;
        struct htab_node *node;
        HTAB_FOR_EACH (node, h)
            ch[n++] = container_of(node, struct change, node);
        qsort(ch, n, sizeof *ch, change_cmp);
        v->t[i] = table_apply(e->base->t[i], ch, n);
        free(ch);
    }
    view_edit_abort(e);
    return v;
}
