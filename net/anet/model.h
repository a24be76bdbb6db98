/* What should be, and what is, in OVN's northbound database, as plain values: the common form that plan.c compares.
 *
 * A model is a sorted list of objects; an object has a kind (one database table), a key (our id for it) and one value
 * per column that we own. Kinds are described by a table (nb_kinds): a further desired kind (router, ACL, load
 * balancer) is a row there plus the code in model.c that fills it; plan.c and nb.c do not change.
 *
 * Our rows carry external_ids owner=cohort and cohort-id=<key>. References are by key. Pure; no libopenvswitch.
 */
#ifndef COHORT_NET_ANET_MODEL_H
#define COHORT_NET_ANET_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"
#include "net/anet/anet.h"

enum nb_kind { NB_SWITCH, NB_DHCP, NB_PORT, NB_N_KINDS };

enum nb_type {
    NB_SET,  /* zero or more texts; a single value is a set of one */
    NB_MAP,  /* text -> text */
    NB_REF,  /* at most one key of kind `ref` */
    NB_REFS, /* keys of kind `ref`; what else a person hung there is left alone */
};

struct nb_column {
    const char *name;
    enum nb_type type;
    enum nb_kind ref;
};

#define NB_COLS_MAX 8

struct nb_kind_desc {
    const char *table;
    bool root;   /* false: rows live as long as an NB_REFS column refers to them */
    int n_cols;
    struct nb_column col[NB_COLS_MAX];
};
extern const struct nb_kind_desc nb_kinds[NB_N_KINDS];

/* Column numbers. */
enum { NB_SWITCH_EXTERNAL_IDS, NB_SWITCH_NAME, NB_SWITCH_PORTS };
enum { NB_DHCP_EXTERNAL_IDS, NB_DHCP_CIDR, NB_DHCP_OPTIONS };
enum { NB_PORT_EXTERNAL_IDS, NB_PORT_NAME, NB_PORT_ADDRESSES, NB_PORT_SECURITY, NB_PORT_OPTIONS, NB_PORT_DHCP };

struct nb_value {
    size_t n;
    char **k; /* sorted, unique */
    char **v; /* maps only */
};

struct nb_obj {
    enum nb_kind kind;
    char *key;
    struct nb_value col[NB_COLS_MAX];
    const void *row; /* nb.c: the database row; NULL in a desired model */
};

struct nb_model {
    size_t n, cap;
    struct nb_obj *obj; /* sorted by (kind, key) after nb_model_sort() */
};

#define NB_OWNER "cohort"

struct nb_model *nb_model_new(void);
void nb_model_free(struct nb_model *m);
/* The new object is valid until the next call. */
struct nb_obj *nb_model_add(struct nb_model *m, enum nb_kind kind, const char *key);
void nb_value_add(struct nb_value *v, const char *key, const char *value); /* value NULL in sets and references */
/* Sorts objects and values. Objects of equal kind and key stay (plan.c removes the surplus ones). */
void nb_model_sort(struct nb_model *m);
/* First object with that kind and key in a sorted model, or NULL. */
const struct nb_obj *nb_model_find(const struct nb_model *m, enum nb_kind kind, const char *key);
bool nb_value_equal(const struct nb_value *a, const struct nb_value *b);

/* The sorted model that `d` asks for. Objects that do not pass anet_check_* (or repeat an id) are left out: E_INVAL
 * with the first reason in that case, and *ret_model is there all the same. *ret_skipped counts them. */
int nb_model_build(const struct anet_desired *d, struct nb_model **ret_model, size_t *ret_skipped, struct err *e);

#endif
