/* Placement of one guest. */
#include "ha/plan.h"
#include <string.h>

int64_t plan_disk_memory(const struct cdb_view *v, const char *node)
{
    int64_t sum = 0;
    for (size_t i = 0; i < cdb_disk_count(v); i++)
        if (!strcmp(cdb_disk_at(v, i)->node, node))
            sum += cdb_disk_at(v, i)->memory_bytes;
    return sum;
}

int64_t plan_promised_bytes(const struct cdb_view *v, const char *node)
{
    int64_t sum = 0;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        if (!strcmp(m->host, node) || !strcmp(m->migrate_to, node))
            sum += m->memory_bytes;
    }
    return sum + plan_disk_memory(v, node);
}

static bool repelled(const struct cdb_view *v, const struct cdb_machine *m, const char *node)
{
    if (strncmp(m->affinity, "anti:", 5))
        return false;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *o = cdb_machine_at(v, i);
        if (o != m && !strcmp(o->host, node) && !strcmp(o->affinity, m->affinity))
            return true;
    }
    return false;
}

/* Replicas of m's volumes on disks of `node`. */
static int local_replicas(const struct cdb_view *v, const struct cdb_machine *m, const char *node)
{
    int n = 0;
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        bool mine = false;
        for (size_t d = 0; d < m->disks.n && !mine; d++) {
            const char *colon = strchr(m->disks.v[d], ':');
            mine = colon && !strcmp(colon + 1, s->volume);
        }
        for (size_t r = 0; mine && r < s->replicas.n; r++) {
            const struct cdb_disk *d = cdb_disk_get(v, s->replicas.v[r]);
            n += d && !strcmp(d->node, node) && cdb_shard_in_sync(v, s, d->id);
        }
    }
    return n;
}

const char *plan_host(const struct cdb_view *v, const struct cdb_machine *m, const struct plan_usable *usable,
                      const char *not_node, struct err *e)
{
    const struct cdb_node *best = NULL;
    int best_local = 0, up = 0, repelling = 0;
    int64_t best_left = 0;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (strcmp(n->state, "up") || n->maintenance || (not_node && !strcmp(n->id, not_node)) || (usable && !usable->ok(n->id, usable->arg)))
            continue;
        up++;
        if (repelled(v, m, n->id)) {
            repelling++;
            continue;
        }
        int64_t own = strcmp(m->host, n->id) ? 0 : m->memory_bytes;
        int64_t left = n->memory_bytes - PLAN_RESERVE_BYTES - plan_promised_bytes(v, n->id) + own - m->memory_bytes;
        if (left < 0)
            continue;
        int local = local_replicas(v, m, n->id);
        if (!best || local > best_local || (local == best_local && left > best_left)) {
            best = n;
            best_local = local;
            best_left = left;
        }
    }
    if (best)
        return best->id;
    if (!up)
        err_set(e, E_UNAVAIL, "no other node is up");
    else if (repelling == up)
        err_set(e, E_UNAVAIL, "every node that is up already runs a guest of %s", m->affinity);
    else
        err_set(e, E_UNAVAIL, "no node that is up has %lld MiB of memory left", (long long)(m->memory_bytes >> 20));
    return NULL;
}
