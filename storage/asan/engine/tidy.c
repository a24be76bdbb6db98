/* Copies that this node holds but that the database no longer lists: they were made anew elsewhere while the node was away, or
 * moved. Their space is given back once the shard is whole without them; until then they stay, as the last resort of people.
 *
 * The view may be old: the copy may be listed again by now. So: requests for the shard are refused from here on (the owner
 * tries again), a transaction makes sure that the row still is as we saw it, then the copy is dropped. Should it be listed
 * again meanwhile, the owner finds an empty replica and copies everything. The fence keeps its epoch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/metric.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");
METRIC_COUNTER(m_dropped, "cohort_asan_copies_dropped_total", "Copies dropped because the shard has its copies elsewhere");

#define ROUND_MS 5000

struct tidy {
    struct store_op op;
    struct ldisk *disk;
    struct store_shard_id id;
};

struct search {
    struct ldisk *disk;
    const struct cdb_view *view;
    const struct cdb_shard *found;
    struct store_shard_id id;
};

static void consider(void *arg, const struct store_shard_id *id)
{
    struct search *s = arg;
    char volume[ID_LEN + 1], row_id[ID_LEN + 16];
    if (s->found)
        return;
    id_format(&id->volume, volume);
    snprintf(row_id, sizeof row_id, "%s/%u", volume, id->index);
    const struct cdb_shard *row = cdb_shard_get(s->view, row_id);
    const struct cdb_volume *vol = row ? cdb_volume_get(s->view, row->volume) : NULL;
    if (!vol || cdb_strs_has(&row->replicas, s->disk->id) || cdb_shard_in_sync_count(s->view, row) < vol->replicas ||
        !host_forget(s->disk, id))
        return;
    s->found = row;
    s->id = *id;
}

static void end(struct tidy *t)
{
    t->disk->tidying = false;
    free(t);
}

static void dropped(struct store_op *op, int status, const struct err *e)
{
    struct tidy *t = op->arg;
    if (status && status != E_NOTFOUND) {
        log_warn("disk %s: a copy that moved away cannot be dropped: %s", t->disk->name, e ? e->msg : err_code_name(status));
    } else {
        t->disk->tidy_ms = 0; /* the next one at once */
        metric_add(&m_dropped, 1);
    }
    end(t);
}

static void verified(void *arg, int status, const struct err *e)
{
    struct tidy *t = arg;
    struct store_shard_info info;
    (void)e;
    if (status || t->disk->state != LD_READY || t->disk->reopening || t->disk->a->stopping) {
        end(t);
        return;
    }
    store_shard_info(t->disk->store, &t->id, &info);
    t->op.done = dropped;
    t->op.arg = t;
    store_drop(t->disk->store, &t->op, &t->id, info.epoch);
}

static void tidy(struct ldisk *d, const struct cdb_view *view)
{
    struct search s = {.disk = d, .view = view};
    store_each_shard(d->store, consider, &s);
    if (!s.found)
        return;
    struct tidy *t = xcalloc(1, sizeof *t);
    t->disk = d;
    t->id = s.id;
    d->tidying = true;
    d->tidy_id = s.id;
    log_info("disk %s: volume %s shard %u has its copies elsewhere: this one is dropped", d->name, s.found->volume, s.id.index);
    struct cdb_txn *txn = cdb_txn_new();
    cdb_txn_require_int(txn, CDB_T_SHARD, s.found->id, CDB_SHARD_generation, s.found->generation);
    cdb_txn_commit(d->a->link, txn, "copy is not listed", verified, t);
}

bool tidy_refuses(const struct ldisk *d, const struct store_shard_id *id)
{
    return d->tidying && id_equal(&d->tidy_id.volume, &id->volume) && d->tidy_id.index == id->index;
}

void tidy_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    for (int i = 0; view && a->view_seen && i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        if (d->state != LD_READY || d->reopening || d->tidying || now_ms() < d->tidy_ms)
            continue;
        d->tidy_ms = now_ms() + ROUND_MS;
        tidy(d, view);
    }
}
