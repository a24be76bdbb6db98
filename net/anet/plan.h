/* The difference between two models as a list of operations. Pure: the heart of the reconciler, tested without any
 * database. Applying the plan to `have` gives `want` in everything that is ours; an empty plan means they agree. */
#ifndef COHORT_NET_ANET_PLAN_H
#define COHORT_NET_ANET_PLAN_H

#include "net/anet/model.h"

enum nb_verb {
    NB_INSERT,  /* `want`, with all its columns */
    NB_UPDATE,  /* column `col` of `have` becomes that of `want` */
    NB_LINK,    /* reference `ref` is added to column `col` (NB_REFS) of `have` */
    NB_UNLINK,  /* … taken out */
    NB_DELETE,  /* `have`: not wanted, or a surplus row with the same key */
};

struct nb_op {
    enum nb_verb verb;
    const struct nb_obj *want, *have;
    int col;
    const char *ref; /* key of kind nb_kinds[].col[].ref; lives in `want` or `have` */
};

struct nb_plan {
    size_t n, cap;
    struct nb_op *op; /* in the order of kinds and keys; who applies it makes all inserted rows first */
};

/* Both models sorted; they must outlive the plan. Rows of kinds that are not root are never in NB_DELETE: unlinked,
 * they go by themselves. */
void nb_plan_make(const struct nb_model *want, const struct nb_model *have, struct nb_plan *ret_plan);
void nb_plan_free(struct nb_plan *p);

#endif
