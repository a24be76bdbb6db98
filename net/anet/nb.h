/* OVN's northbound database: the writer's side. Keeps our rows equal to the model that was last given to it.
 *
 * Runs in the database thread; the functions here are for the main thread and return at once. Happy path: the database
 * changed or a model came -> read our rows into a model -> plan -> one transaction -> (its own change) -> empty plan.
 * Failures: a transaction that lost a race or whose outcome is unknown is not repeated; the next plan, made from what
 * the database then holds, decides. One that the database refuses is tried again after a second and shown in the status.
 *
 * Fence: NB_Global.external_ids:cohort-term. Every transaction verifies it, and sets it when ours is higher; a writer
 * that finds a higher one writes nothing.
 */
#ifndef COHORT_NET_ANET_NB_H
#define COHORT_NET_ANET_NB_H

#include <stdbool.h>
#include <stdint.h>
#include "net/anet/model.h"

struct nb;

struct nb_status {
    bool connected, deposed;  /* deposed: a higher term than ours is in NB */
    int64_t term;
    size_t wanted, pending;   /* objects; operations of the last plan, 0 = in agreement */
    uint64_t commits, failures;
    char error[256];          /* last refusal, "" since a success */
};

struct nb *nb_open(void);
void nb_close(struct nb *nb);
void nb_set_remote(struct nb *nb, const char *remote);        /* comma-separated; "" = none yet */
void nb_set_term(struct nb *nb, int64_t term);                /* 0 = only read */
void nb_set_model(struct nb *nb, struct nb_model *m);         /* takes it */
void nb_get_status(struct nb *nb, struct nb_status *ret);

#endif
