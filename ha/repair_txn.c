/* Repair of copies: the transaction that carries a plan out, and its words. See repair.h. */
#include <string.h>
#include "cluster/copies.h"
#include "ha/repair.h"

#define COPIES_MAX 8

static void spare_in(struct cdb_txn *t, const struct repair_step *s)
{
    cdb_txn_require_str(t, CDB_T_DISK, s->add->id, CDB_DISK_state, "spare");
    cdb_txn_set_str(t, CDB_T_DISK, s->add->id, CDB_DISK_state, "up");
    cdb_txn_require_str(t, CDB_T_DISK, s->remove, CDB_DISK_replaced_by, "");
    cdb_txn_set_str(t, CDB_T_DISK, s->remove, CDB_DISK_replaced_by, s->add->id);
}

/* Many of a plan's copies go to few disks: what is required of those is said once. */
static void require_usable(struct cdb_txn *t, const struct repair_step *s, int i)
{
    const struct cdb_disk *to = s[i].add;
    for (int k = 0; k < i; k++)
        if (s[k].add == to && s[k].why != REPAIR_SPARE)
            return;
    cdb_txn_require_str(t, CDB_T_DISK, to->id, CDB_DISK_state, "up");
    cdb_txn_require_str(t, CDB_T_NODE, to->node, CDB_NODE_state, "up");
}

static void change_copies(const struct cdb_view *v, struct cdb_txn *t, const struct repair_step *s)
{
    const struct cdb_shard *row = s->shard;
    const char *replicas[COPIES_MAX + 1];
    char *k[COPIES_MAX];
    int64_t val[COPIES_MAX];
    struct cdb_imap in_sync = {.k = k, .v = val};
    size_t n = 0;
    for (size_t i = 0; i < row->replicas.n && n < COPIES_MAX; i++)
        if (!s->remove || strcmp(row->replicas.v[i], s->remove))
            replicas[n++] = row->replicas.v[i];
    for (size_t i = 0; i < row->in_sync.n && in_sync.n < COPIES_MAX; i++)
        if (!s->remove || strcmp(row->in_sync.k[i], s->remove)) {
            k[in_sync.n] = row->in_sync.k[i];
            val[in_sync.n++] = row->in_sync.v[i];
        }
    if (s->add)
        replicas[n++] = s->add->id;
    cdb_txn_require_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation);
    cdb_txn_set_int(t, CDB_T_SHARD, row->id, CDB_SHARD_generation, row->generation + 1);
    cdb_txn_set_strs(t, CDB_T_SHARD, row->id, CDB_SHARD_replicas, n, replicas);
    cdb_txn_set_imap(t, CDB_T_SHARD, row->id, CDB_SHARD_in_sync, &in_sync);
    if (!s->remove || !cdb_shard_in_sync(v, row, s->remove))
        return;
    /* An in-sync copy goes: those it leaves were counted as good with these incarnations. */
    const struct cdb_volume *vol = cdb_volume_get(v, row->volume);
    const char *left[COPIES_MAX];
    int n_left = 0;
    for (size_t i = 0; i < in_sync.n; i++) {
        const struct cdb_disk *d = cdb_disk_get(v, k[i]);
        if (!d || d->incarnation != val[i])
            continue;
        cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, d->incarnation);
        left[n_left++] = d->id;
    }
    copies_critical(t, vol ? vol->replicas : 0, n_left, left);
}

void repair_txn(const struct cdb_view *v, struct cdb_txn *t, const struct repair_step *s, int n)
{
    for (int i = 0; i < n; i++) {
        if (s[i].why == REPAIR_SPARE) {
            spare_in(t, &s[i]);
            continue;
        }
        if (s[i].add)
            require_usable(t, s, i);
        change_copies(v, t, &s[i]);
    }
}

static void disk_name(const struct cdb_view *v, const char *disk, struct buf *out)
{
    const struct cdb_disk *d = cdb_disk_get(v, disk);
    const struct cdb_node *n = d ? cdb_node_get(v, d->node) : NULL;
    if (d)
        buf_printf(out, "%s/%s", n ? n->name : "?", d->name);
    else
        buf_printf(out, "%s (removed)", disk);
}

void repair_describe(const struct cdb_view *v, const struct repair_step *s, struct buf *out)
{
    static const char *const why[] = {[REPAIR_LOST] = "its copy is lost", [REPAIR_SHORT] = "too few copies",
                                      [REPAIR_EXTRA] = "one copy too many", [REPAIR_DRAIN] = "the disk is drained",
                                      [REPAIR_LOCAL] = "follows the guest", [REPAIR_BALANCE] = "balances the disks",
                                      [REPAIR_SPARE] = "stands in for a disk that failed"};
    if (s->why == REPAIR_SPARE) {
        buf_printf(out, "spare disk ");
        disk_name(v, s->add->id, out);
        buf_printf(out, " comes into service for ");
        disk_name(v, s->remove, out);
        return;
    }
    const struct cdb_volume *vol = cdb_volume_get(v, s->shard->volume);
    buf_printf(out, "volume %s shard %lld: ", vol ? vol->name : s->shard->volume, (long long)s->shard->idx);
    if (s->add) {
        buf_printf(out, "new copy on ");
        disk_name(v, s->add->id, out);
    }
    if (s->remove) {
        buf_printf(out, s->add ? " in place of " : "copy given up on ");
        disk_name(v, s->remove, out);
    }
    buf_printf(out, " (%s)", why[s->why]);
}
