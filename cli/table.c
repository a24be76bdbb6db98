/* Text tables. See table.h. */
#include "cli/table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct cell {
    char *text;
    size_t width;
};

struct table {
    const char *const *heads;
    size_t cols, n_cells, cap;
    struct cell *cells;
};

char *text_clean(const char *text, size_t *ret_width)
{
    char *copy = xstrdup(text);
    size_t width = 0;
    for (unsigned char *p = (unsigned char *)copy; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = '?';
        else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
            p[0] = p[1] = '?'; /* C1 controls as UTF-8 */
        width += (*p & 0xc0) != 0x80;
    }
    if (ret_width)
        *ret_width = width;
    return copy;
}

struct table *table_new(const char *const *heads, size_t n)
{
    assert(n > 0);
    struct table *t = xcalloc(1, sizeof *t);
    t->heads = heads;
    t->cols = n;
    return t;
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cells[i].text);
    free(t->cells);
    free(t);
}

void table_cell(struct table *t, const char *text)
{
    if (t->n_cells == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        t->cells = xrealloc(t->cells, t->cap * sizeof *t->cells);
    }
    struct cell *c = &t->cells[t->n_cells++];
    c->text = text_clean(text, &c->width);
}

static void print_cell(struct buf *out, const char *text, size_t width, size_t column, bool right, bool last)
{
    size_t pad = column - width;
    if (right)
        buf_printf(out, "%*s", (int)pad, "");
    buf_append(out, text, strlen(text));
    if (!last)
        buf_printf(out, "%*s", (int)(right ? 2 : pad + 2), "");
}

/* An empty last cell must not leave the spaces of the cells before it. */
static void end_line(struct buf *out)
{
    while (out->len && out->data[out->len - 1] == ' ')
        out->len--;
    buf_append(out, "\n", 1);
}

void table_print(const struct table *t, struct buf *out)
{
    assert(t->n_cells % t->cols == 0);
    size_t *width = xcalloc(t->cols, sizeof *width);
    for (size_t c = 0; c < t->cols; c++)
        width[c] = strlen(t->heads[c]) - (*t->heads[c] == '>');
    for (size_t i = 0; i < t->n_cells; i++)
        if (t->cells[i].width > width[i % t->cols])
            width[i % t->cols] = t->cells[i].width;
    for (size_t c = 0; c < t->cols; c++) {
        bool right = *t->heads[c] == '>';
        const char *head = t->heads[c] + right;
        print_cell(out, head, strlen(head), width[c], right, c + 1 == t->cols);
    }
    end_line(out);
    for (size_t i = 0; i < t->n_cells; i++) {
        size_t c = i % t->cols;
        print_cell(out, t->cells[i].text, t->cells[i].width, width[c], *t->heads[c] == '>', c + 1 == t->cols);
        if (c + 1 == t->cols)
            end_line(out);
    }
    free(width);
}
