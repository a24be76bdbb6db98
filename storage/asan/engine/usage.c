/* What the disks of this node hold, told to the database for people, for placement and for the owners of volumes.
 *
 * A disk that becomes full (store.h: little room left) is told at once, with an alarm, and owners then send it no new data:
 * guests' writes wait, discards go on. When there is space again that is told, too, and they go on by themselves. Sizes are
 * told every TELL_MS if they have changed, in one transaction per node: the database's load follows nodes, not volumes. */
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");
METRIC_GAUGE(m_size, "cohort_store_size_bytes", "What the disks of this node may hold in extents, all disks");
METRIC_GAUGE(m_used, "cohort_store_used_bytes", "What extents take on the disks of this node");
METRIC_GAUGE(m_journal, "cohort_store_journal_size_bytes", "Size of the journals of this node");
METRIC_GAUGE(m_journal_used, "cohort_store_journal_used_bytes", "Journal space that is not free, all disks");
METRIC_GAUGE(m_dirty, "cohort_store_dirty_bytes", "Written and not yet destaged to the capacity device, all disks");
METRIC_GAUGE(m_full, "cohort_store_full_disks", "Disks of this node that take no new data for want of space");

#define TELL_MS 10000u
#define CHECK_MS 500u

static void set_gauges(const struct asan *a)
{
    struct store_usage u, sum = {0};
    int full = 0;
    for (int i = 0; i < a->n_disks; i++) {
        if (!a->disk[i].store)
            continue;
        store_usage(a->disk[i].store, &u);
        sum.size_bytes += u.size_bytes;
        sum.used_bytes += u.used_bytes;
        sum.journal_bytes += u.journal_bytes;
        sum.journal_used_bytes += u.journal_used_bytes;
        sum.dirty_bytes += u.dirty_bytes;
        full += u.full;
    }
    metric_set(&m_size, (int64_t)sum.size_bytes);
    metric_set(&m_used, (int64_t)sum.used_bytes);
    metric_set(&m_journal, (int64_t)sum.journal_bytes);
    metric_set(&m_journal_used, (int64_t)sum.journal_used_bytes);
    metric_set(&m_dirty, (int64_t)sum.dirty_bytes);
    metric_set(&m_full, full);
}

static void add_event(struct cdb_txn *t, const struct ldisk *d, const struct store_usage *u)
{
    char object[128], text[256];
    snprintf(object, sizeof object, "disk %s", d->name);
    snprintf(text, sizeof text, u->full ? "full: %llu MiB of %llu MiB used; writes to volumes with a copy here wait until there is space: delete "
                                          "or discard data, or add disks"
                                        : "has space again: %llu MiB of %llu MiB used; what waited goes on",
             (unsigned long long)(u->used_bytes >> 20), (unsigned long long)(u->size_bytes >> 20));
    log_warn("disk %s: %s", d->name, text);
    cdb_txn_event(t, clock_wall_ms(), u->full ? "alarm" : "info", object, text, d->a->node_id);
}

/* Adds what of `d` has changed; false if nothing has. */
static bool tell_disk(struct cdb_txn *t, struct ldisk *d, const struct cdb_disk *row, bool sizes)
{
    struct store_usage u;
    bool any = false;
    store_usage(d->store, &u);
    if (u.full != row->full) {
        cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, row->incarnation);
        cdb_txn_set_bool(t, CDB_T_DISK, d->id, CDB_DISK_full, u.full);
        add_event(t, d, &u);
        any = sizes = true;
    }
    if (sizes && (int64_t)u.used_bytes != row->used_bytes) {
        cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_used_bytes, (int64_t)u.used_bytes);
        any = true;
    }
    /* The size moves with what others put on the same file system: small steps are no news. */
    int64_t by = (int64_t)u.size_bytes - row->size_bytes;
    if (sizes && (by < 0 ? -by : by) > row->size_bytes / 100) {
        cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_size_bytes, (int64_t)u.size_bytes);
        any = true;
    }
    return any;
}

static bool tell_shard(struct asan *a, struct cdb_txn *t, const struct cdb_view *view, const struct cdb_shard *row)
{
    struct store_shard_id id = {.index = (uint32_t)row->idx};
    const struct gdisk *g = NULL;
    for (size_t k = 0; k < row->replicas.n; k++) { /* the first that is there and has all of it tells */
        g = gdisk_get(a, row->replicas.v[k]);
        if (g->usable && cdb_shard_in_sync(view, row, g->id))
            break;
        g = NULL;
    }
    if (!g || !g->local || g->local->state != LD_READY || !id_parse(row->volume, &id.volume))
        return false;
    int64_t used = (int64_t)store_shard_used(g->local->store, &id);
    if (used == row->used_bytes)
        return false;
    cdb_txn_set_int(t, CDB_T_SHARD, row->id, CDB_SHARD_used_bytes, used);
    return true;
}

static void told(void *arg, int status, const struct err *e)
{
    struct asan *a = arg;
    (void)e;
    a->usage_busy = false;
    if (status) /* a row was gone, or there is no quorum */
        a->usage_ms = now_ms() + 1000;
}

void usage_tick(struct asan *a, const struct cdb_view *view)
{
    uint64_t now = now_ms();
    if (!view || !a->view_seen || a->usage_busy || a->stopping || now < a->usage_ms)
        return;
    a->usage_ms = now + CHECK_MS;
    set_gauges(a);
    bool sizes = now - a->usage_told_ms >= TELL_MS, any = false;
    struct cdb_txn *t = cdb_txn_new();
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        const struct cdb_disk *row = cdb_disk_get(view, d->id);
        if (row && d->state == LD_READY && tell_disk(t, d, row, sizes))
            any = true;
    }
    for (size_t i = 0; sizes && i < cdb_shard_count(view); i++)
        if (tell_shard(a, t, view, cdb_shard_at(view, i)))
            any = true;
    if (sizes)
        a->usage_told_ms = now;
    if (!any) {
        cdb_txn_free(t);
        return;
    }
    a->usage_busy = true;
    cdb_txn_commit(a->link, t, "usage of disks", told, a);
}
