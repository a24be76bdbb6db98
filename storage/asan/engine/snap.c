/* Snapshots: a point in time of one volume, or of several at once, becomes sealed volumes.
 *
 * Asked for by a Task of kind "snapshot" whose `node` is this one: result = {name, volumes: "<id> <id> …"}, after an import
 * also {content: identity of what it holds}. The cut is one
 * database transaction; nothing is written to any disk for it:
 *
 *   waiting for ownership -> holding new requests of all volumes, letting those under way end -> the transaction -> over
 *
 *   per volume V: a sealed row S takes V's data (the id its replicas know), V's parent and V's shards with their in-sync
 *                 sets; V gets a new, empty layer over S and the next epoch
 *   the task is "done", if it was "running" still
 *
 * Whole or nothing: the transaction requires every volume's owner and epoch and the task's state. If this node dies before
 * it, the task is declared failed by others (fail_orphans); after it, the snapshots are there. Consistency: while held,
 * nothing is under way in any core, so all in-sync replicas of all volumes hold exactly the acknowledged writes. Nobody
 * else can write: the epoch is ours. A joining replica is out of the set and catches up with S like with any volume.
 *
 * An unknown outcome: the volumes are closed and opened again under a new epoch, by a transaction that fails if the cut
 * happened, and after which it cannot happen any more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define SNAP_VOLUMES 16
#define LIMIT_MS 15000 /* until then every volume must have become quiet: it may wait for a replica that never answers */

struct member {
    struct snap *snap;
    struct claim_wait wait;
    char id[ID_LEN + 1], data[ID_LEN + 1]; /* data: before the cut */
    bool claimed;                          /* counted in v->claims */
};

struct snap {
    struct asan *a;
    char task[ID_LEN + 1], name[64];
    enum { SNAP_CLAIM, SNAP_HOLD, SNAP_COMMIT, SNAP_OVER } state;
    int n, missing;             /* members; claims to come */
    uint64_t until_ms, held_ms;
    struct err err;
    struct member m[SNAP_VOLUMES];
    LIST_ENTRY(snap) entry;
};

/* ---- the end ---- */

static void reported(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status && status != E_CONFLICT)
        log_warn("end of a snapshot's task: %s", e ? e->msg : err_code_name(status));
}

static void task_failed(struct asan *a, const char *task, const char *why)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_TASK, task, CDB_TASK_state, "running");
    cdb_txn_set_str(t, CDB_T_TASK, task, CDB_TASK_state, "failed");
    cdb_txn_set_str(t, CDB_T_TASK, task, CDB_TASK_message, why);
    cdb_txn_set_int(t, CDB_T_TASK, task, CDB_TASK_updated_ms, clock_wall_ms());
    cdb_txn_commit(a->link, t, "snapshot failed", reported, a);
}

/* Lets go of the volumes. `close`: what became of them is not certain, or their data are another's now. */
static void let_go(struct snap *s, bool close)
{
    bool held = s->state == SNAP_HOLD || s->state == SNAP_COMMIT;
    s->state = SNAP_OVER;
    for (int i = 0; i < s->n; i++) {
        struct member *m = &s->m[i];
        struct volume *v = volume_find(s->a, m->id);
        if (!v)
            continue;
        if (held) {
            if (close || strcmp(v->data, m->data) == 0)
                own_close(v);
            v->held--;
            if (v->open && !v->held)
                volume_unpark(v);
        }
        if (m->claimed && v->claims)
            own_release(v);
        else if (m->wait.done)
            own_claim_cancel(v, &m->wait);
        own_update(v);
    }
}

static void give_up(struct snap *s, const char *why)
{
    log_warn("snapshot %s: %s", s->name, why);
    task_failed(s->a, s->task, why);
    let_go(s, false);
}

/* ---- the transaction ---- */

static void committed(void *arg, int status, const struct err *e)
{
    struct snap *s = arg;
    if (!status)
        log_info("snapshot %s of %d volume(s): requests were held for %llu ms", s->name, s->n,
                 (unsigned long long)(now_ms() - s->held_ms));
    else if (status != E_UNKNOWN)
        task_failed(s->a, s->task, e && *e->msg ? e->msg : err_code_name(status));
    let_go(s, status != 0);
}

static void cut_volume(struct snap *s, struct cdb_txn *t, const struct cdb_view *view, const struct cdb_volume *row, const struct volume *v)
{
    const char *content = cdb_smap_get(&cdb_task_get(view, s->task)->result, "content");
    char id[ID_LEN + 1], data[ID_LEN + 1], name[256];
    id_new(id);
    id_new(data);
    snprintf(name, sizeof name, "%s@%s", row->name, s->name);
    cdb_txn_require_str(t, CDB_T_VOLUME, row->id, CDB_VOLUME_owner, s->a->node_id);
    cdb_txn_require_int(t, CDB_T_VOLUME, row->id, CDB_VOLUME_epoch, (int64_t)v->used_epoch);
    cdb_txn_require_str(t, CDB_T_VOLUME, row->id, CDB_VOLUME_state, "ready");
    cdb_txn_insert(t, CDB_T_VOLUME, id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_name, name);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_size_bytes, row->size_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_shard_bytes, row->shard_bytes);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_replicas, row->replicas);
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_epoch, row->epoch);
    cdb_txn_set_bool(t, CDB_T_VOLUME, id, CDB_VOLUME_sealed, true);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_purpose, "snapshot");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_state, "ready");
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_data, v->data);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_parent, row->parent);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_origin, row->id);
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_content, content ? content : "");
    cdb_txn_set_int(t, CDB_T_VOLUME, id, CDB_VOLUME_created_ms, clock_wall_ms());
    cdb_txn_set_str(t, CDB_T_VOLUME, id, CDB_VOLUME_key, row->key);
    cdb_txn_set_smap(t, CDB_T_VOLUME, id, CDB_VOLUME_policy, &row->policy);
    for (uint32_t i = 0; i < v->n_shards; i++) {
        const struct cdb_shard *shard = shard_row(view, v, i);
        if (shard)
            cdb_txn_set_str(t, CDB_T_SHARD, shard->id, CDB_SHARD_volume, id);
    }
    cdb_txn_set_str(t, CDB_T_VOLUME, row->id, CDB_VOLUME_data, data);
    cdb_txn_set_str(t, CDB_T_VOLUME, row->id, CDB_VOLUME_parent, id);
    cdb_txn_set_int(t, CDB_T_VOLUME, row->id, CDB_VOLUME_epoch, row->epoch + 1);
}

static void add_event(struct snap *s, struct cdb_txn *t, const struct cdb_task *task)
{
    char text[512];
    snprintf(text, sizeof text, "snapshot %s of %s taken", s->name, task->object);
    cdb_txn_event(t, clock_wall_ms(), "info", task->object, text, s->a->node_id);
}

static void commit(struct snap *s)
{
    const struct cdb_view *view = view_of(s->a);
    const struct cdb_task *task = cdb_task_get(view, s->task);
    if (!task) {
        give_up(s, "its task is gone");
        return;
    }
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_TASK, s->task, CDB_TASK_state, "running");
    cdb_txn_set_str(t, CDB_T_TASK, s->task, CDB_TASK_state, "done");
    cdb_txn_set_int(t, CDB_T_TASK, s->task, CDB_TASK_done, s->n);
    cdb_txn_set_int(t, CDB_T_TASK, s->task, CDB_TASK_updated_ms, clock_wall_ms());
    for (int i = 0; i < s->n; i++) {
        const struct volume *v = volume_find(s->a, s->m[i].id);
        cut_volume(s, t, view, cdb_volume_get(view, s->m[i].id), v);
    }
    add_event(s, t, task);
    s->state = SNAP_COMMIT;
    cdb_txn_commit(s->a->link, t, "snapshot", committed, s);
}

/* ---- holding ---- */

static bool usable(struct snap *s)
{
    const struct cdb_view *view = view_of(s->a);
    for (int i = 0; i < s->n; i++) {
        const struct volume *v = volume_find(s->a, s->m[i].id);
        const struct cdb_volume *row = view ? cdb_volume_get(view, s->m[i].id) : NULL;
        if (!v || v->gone || v->deleting || !row || v->sealed)
            return false;
    }
    return true;
}

static void step_hold(struct snap *s)
{
    for (int i = 0; i < s->n; i++) {
        struct volume *v = volume_find(s->a, s->m[i].id);
        if (!v->open || !v->mine || (uint64_t)v->epoch != v->used_epoch || !LIST_EMPTY(&v->cows) || !own_quiet(v))
            return;
    }
    if (s->state == SNAP_HOLD)
        commit(s);
}

static void hold(struct snap *s)
{
    s->state = SNAP_HOLD;
    s->held_ms = now_ms();
    for (int i = 0; i < s->n; i++) {
        struct volume *v = volume_find(s->a, s->m[i].id);
        v->held++;
        memcpy(s->m[i].data, v->data, sizeof s->m[i].data);
    }
}

static void step(struct snap *s)
{
    if (s->state != SNAP_CLAIM && s->state != SNAP_HOLD)
        return;
    if (!usable(s)) {
        give_up(s, "a volume is deleted or cannot be written");
        return;
    }
    if (now_ms() >= s->until_ms) {
        give_up(s, *s->err.msg ? s->err.msg : s->state == SNAP_CLAIM ? "a volume could not be opened in time; see cohort volume show"
                                          : "writes under way did not end in time: too few copies answer; see cohort volume show");
        return;
    }
    if (s->state == SNAP_CLAIM && !s->missing)
        hold(s);
    if (s->state == SNAP_HOLD)
        step_hold(s);
}

/* ---- the beginning ---- */

static void claimed(struct claim_wait *w, int status, const char *why)
{
    struct member *m = w->arg;
    struct snap *s = m->snap;
    w->done = NULL;
    m->claimed = !status;
    s->missing--;
    if (status && s->state == SNAP_CLAIM) {
        s->until_ms = 0;
        err_set(&s->err, status, "%s", why);
    }
}

static void begin(struct asan *a, const struct cdb_task *task)
{
    const char *name = cdb_smap_get(&task->result, "name"), *list = cdb_smap_get(&task->result, "volumes");
    struct snap *s = xcalloc(1, sizeof *s);
    s->a = a;
    s->until_ms = now_ms() + LIMIT_MS;
    snprintf(s->task, sizeof s->task, "%.36s", task->id);
    snprintf(s->name, sizeof s->name, "%.63s", name ? name : "");
    for (const char *p = list; p && *p && s->n < SNAP_VOLUMES; p += strcspn(p, " "), p += *p == ' ') {
        struct member *m = &s->m[s->n++];
        snprintf(m->id, sizeof m->id, "%.*s", (int)strcspn(p, " "), p);
        m->snap = s;
    }
    LIST_INSERT_HEAD(&a->snaps, s, entry);
    if (!s->n || !*s->name || !usable(s)) {
        give_up(s, "it names no volume that can be cut");
        return;
    }
    s->missing = s->n;
    for (int i = 0; i < s->n; i++) {
        struct member *m = &s->m[i];
        m->wait.done = claimed;
        m->wait.arg = m;
        own_claim(volume_find(a, m->id), &m->wait);
    }
}

static struct snap *find(struct asan *a, const char *task)
{
    struct snap *s;
    LIST_FOREACH (s, &a->snaps, entry)
        if (!strcmp(s->task, task))
            return s;
    return NULL;
}

/* A snapshot whose node died before the cut: it is not taken later, when nobody expects it. */
static void fail_orphans(struct asan *a, const struct cdb_view *view, const struct cdb_task *task)
{
    const struct cdb_node *n = cdb_node_get(view, task->node);
    if ((!n || !strcmp(n->state, "dead")) && first_up(a, view))
        task_failed(a, task->id, "the node that was to take it is dead; nothing was taken, ask again");
}

void snap_update(struct asan *a, const struct cdb_view *view)
{
    for (size_t i = 0; i < cdb_task_count(view); i++) {
        const struct cdb_task *t = cdb_task_at(view, i);
        if (strcmp(t->kind, "snapshot") || strcmp(t->state, "running"))
            continue;
        if (strcmp(t->node, a->node_id))
            fail_orphans(a, view, t);
        else if (!find(a, t->id))
            begin(a, t);
    }
    snap_poke(a);
}

void snap_tick(struct asan *a)
{
    const struct cdb_view *view = view_of(a);
    struct snap *s, *next;
    for (s = LIST_FIRST(&a->snaps); s; s = next) {
        next = LIST_NEXT(s, entry);
        const struct cdb_task *t = view ? cdb_task_get(view, s->task) : NULL;
        if (s->state != SNAP_OVER) {
            step(s);
        } else if (!t || strcmp(t->state, "running")) { /* else it would begin again */
            LIST_REMOVE(s, entry);
            free(s);
        }
    }
}

static void poked(struct later *l)
{
    struct asan *a = container_of(l, struct asan, snap_later);
    a->snap_poked = false;
    if (!a->stopping)
        snap_tick(a);
}

void snap_poke(struct asan *a)
{
    if (a->snap_poked || LIST_EMPTY(&a->snaps))
        return;
    a->snap_poked = true;
    later(a, &a->snap_later, poked);
}

void snap_close(struct asan *a)
{
    struct snap *s;
    while ((s = LIST_FIRST(&a->snaps))) {
        if (s->state == SNAP_COMMIT)
            cdb_txn_cancel(a->link, s);
        if (s->state != SNAP_OVER)
            let_go(s, true);
        LIST_REMOVE(s, entry);
        free(s);
    }
}
