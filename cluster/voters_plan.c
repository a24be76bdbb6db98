/* Who should be a voter. Pure. See voters.h. */
#include <string.h>
#include <stdio.h>
#include "cluster/voters.h"

int voters_wanted(int n)
{
    return n >= VOTERS_MAX ? VOTERS_MAX : n == 4 ? 3 : n;
}

static bool usable(const struct cdb_node *n)
{
    return !strcmp(n->state, "up");
}

static bool counts(const struct cdb_node *n) /* it will be back, as far as we know */
{
    return strcmp(n->state, "leaving") != 0;
}

bool voters_join(const struct cdb_view *v)
{
    int nodes = 1, voters = 0;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        nodes += counts(n);
        voters += n->voter;
    }
    return voters < voters_wanted(nodes);
}

/* One step at a time: every change of members is a change of RAFT's configuration, and only a settled one is judged again.
 * 1. A voter that leaves, or is dead for long, hands over to a usable non-voter; one that leaves goes in any case.
 * 2. Too few voters: promote. Too many (the cluster shrank): demote. */
void voters_plan(const struct cdb_view *v, int64_t (*dead_ms)(const char *node_id, void *arg), void *arg,
                 struct voters_plan *ret_plan)
{
    const struct cdb_node *candidate = NULL, *gone = NULL, *spare = NULL;
    int nodes = 0, voters = 0;
    *ret_plan = (struct voters_plan){0};
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        nodes += counts(n);
        voters += n->voter;
        if (!n->voter && !strcmp(n->state, "up") && (!candidate || n->joined_ms < candidate->joined_ms))
            candidate = n; /* the longest member: it has proved itself */
        if (n->voter && !counts(n))
            gone = n;
        if (n->voter && !gone && dead_ms(n->id, arg) >= VOTERS_REPLACE_MS)
            gone = n;
        if (n->voter && counts(n) && (!spare || usable(spare)) &&
            (!spare || !usable(n) || n->joined_ms > spare->joined_ms))
            spare = n; /* one that is not there, else the youngest */
    }
    if (gone && (candidate || !counts(gone)) && (voters > 1 || candidate)) {
        snprintf(ret_plan->demote, sizeof ret_plan->demote, "%s", gone->id);
        if (candidate && voters <= voters_wanted(nodes))
            snprintf(ret_plan->promote, sizeof ret_plan->promote, "%s", candidate->id);
        return;
    }
    if (candidate && voters < voters_wanted(nodes))
        snprintf(ret_plan->promote, sizeof ret_plan->promote, "%s", candidate->id);
    else if (spare && voters > voters_wanted(nodes))
        snprintf(ret_plan->demote, sizeof ret_plan->demote, "%s", spare->id);
}
