/* Compares models (plan.h): one merge over the sorted objects, and one over each reference set. */
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "net/anet/plan.h"

static struct nb_op *add(struct nb_plan *p, enum nb_verb verb, const struct nb_obj *want, const struct nb_obj *have)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 16;
        p->op = xrealloc(p->op, p->cap * sizeof *p->op);
    }
    struct nb_op *op = &p->op[p->n++];
    *op = (struct nb_op){.verb = verb, .want = want, .have = have};
    return op;
}

static void link_op(struct nb_plan *p, enum nb_verb verb, const struct nb_obj *want, const struct nb_obj *have, int col,
                    const char *ref)
{
    struct nb_op *op = add(p, verb, want, have);
    op->col = col;
    op->ref = ref;
}

static void diff_refs(struct nb_plan *p, const struct nb_obj *want, const struct nb_obj *have, int col)
{
    const struct nb_value *w = &want->col[col], *h = &have->col[col];
    size_t i = 0, j = 0;
    while (i < w->n || j < h->n) {
        int c = i == w->n ? 1 : j == h->n ? -1 : strcmp(w->k[i], h->k[j]);
        if (c < 0)
            link_op(p, NB_LINK, want, have, col, w->k[i++]);
        else if (c > 0)
            link_op(p, NB_UNLINK, want, have, col, h->k[j++]);
        else
            i++, j++;
    }
}

static void diff_object(struct nb_plan *p, const struct nb_obj *want, const struct nb_obj *have)
{
    const struct nb_kind_desc *k = &nb_kinds[want->kind];
    for (int c = 0; c < k->n_cols; c++) {
        if (k->col[c].type == NB_REFS)
            diff_refs(p, want, have, c);
        else if (!nb_value_equal(&want->col[c], &have->col[c]))
            add(p, NB_UPDATE, want, have)->col = c;
    }
}

static void drop(struct nb_plan *p, const struct nb_obj *have)
{
    if (nb_kinds[have->kind].root)
        add(p, NB_DELETE, NULL, have);
}

static int order(const struct nb_obj *a, const struct nb_obj *b)
{
    return a->kind != b->kind ? (int)a->kind - (int)b->kind : strcmp(a->key, b->key);
}

void nb_plan_make(const struct nb_model *want, const struct nb_model *have, struct nb_plan *ret_plan)
{
    struct nb_plan p = {0};
    size_t i = 0, j = 0;
    while (i < want->n || j < have->n) {
        int c = i == want->n ? 1 : j == have->n ? -1 : order(&want->obj[i], &have->obj[j]);
        if (c < 0) {
            add(&p, NB_INSERT, &want->obj[i++], NULL);
        } else if (c > 0) {
            drop(&p, &have->obj[j++]);
        } else {
            diff_object(&p, &want->obj[i++], &have->obj[j]);
            /* A repeated attempt after an unknown outcome may have left two rows with one key: the first stays. */
            for (j++; j < have->n && !order(&have->obj[j - 1], &have->obj[j]); j++)
                drop(&p, &have->obj[j]);
        }
    }
    *ret_plan = p;
}

void nb_plan_free(struct nb_plan *p)
{
    free(p->op);
    *p = (struct nb_plan){0};
}
