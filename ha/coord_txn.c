/* The coordinator's transactions. Each requires the coordinator's term and what it was decided on. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cluster/copies.h"
#include "ha/coord.h"
#include "ha/repair.h"

static struct cdb_txn *begin(const struct coord_action *a)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_int(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_coordinator_term, a->term);
    return t;
}

static struct cdb_txn *take_office(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_node *n = cdb_node_get(v, self);
    char object[160];
    struct cdb_txn *t = begin(a);
    cdb_txn_set_str(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_coordinator, self);
    cdb_txn_set_int(t, CDB_T_CLUSTER, "cluster", CDB_CLUSTER_coordinator_term, a->term + 1);
    snprintf(object, sizeof object, "node %s", n ? n->name : self);
    cdb_txn_event(t, wall_ms, "info", object, "coordinates the cluster now", self);
    return t;
}

static struct cdb_txn *declare_dead(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_node *n = cdb_node_get(v, a->subject);
    if (!n || !strcmp(n->state, "dead"))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_int(t, CDB_T_NODE, n->id, CDB_NODE_epoch, n->epoch);
    cdb_txn_set_int(t, CDB_T_NODE, n->id, CDB_NODE_epoch, n->epoch + 1);
    cdb_txn_set_str(t, CDB_T_NODE, n->id, CDB_NODE_state, "dead");
    cdb_txn_set_int(t, CDB_T_NODE, n->id, CDB_NODE_state_ms, wall_ms);
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        if (strcmp(d->node, n->id) || !copies_may_lose(v, d->id))
            continue;
        copies_require_may_lose(t, v, d->id);
        copies_distrust(t, d);
    }
    char object[160];
    snprintf(object, sizeof object, "node %s", n->name);
    cdb_txn_event(t, wall_ms, "alarm", object,
          "not heard for longer than its lease: declared dead; its guests restart on other nodes, its copies of data catch "
          "up when it returns",
          self);
    return t;
}

static struct cdb_txn *mark_up(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_node *n = cdb_node_get(v, a->subject);
    if (!n || (strcmp(n->state, "dead") && strcmp(n->state, "joining")))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_int(t, CDB_T_NODE, n->id, CDB_NODE_epoch, n->epoch);
    cdb_txn_set_str(t, CDB_T_NODE, n->id, CDB_NODE_state, "up");
    cdb_txn_set_int(t, CDB_T_NODE, n->id, CDB_NODE_state_ms, wall_ms);
    char object[160];
    snprintf(object, sizeof object, "node %s", n->name);
    cdb_txn_event(t, wall_ms, "info", object, strcmp(n->state, "dead") ? "joined the cluster" : "is back", self);
    return t;
}

static struct cdb_txn *move(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_machine *m = cdb_machine_get(v, a->subject);
    const struct cdb_node *to = cdb_node_get(v, a->to), *from = m ? cdb_node_get(v, m->host) : NULL;
    if (!m || !to || strcmp(m->desired, "running") || (from && strcmp(from->state, "dead")))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, m->host);
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "running");
    cdb_txn_require_str(t, CDB_T_NODE, to->id, CDB_NODE_state, "up");
    if (from) /* it may have come back: then its guest stays where it is */
        cdb_txn_require_str(t, CDB_T_NODE, from->id, CDB_NODE_state, "dead");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, to->id);
    cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "starting");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    char message[300], object[160];
    snprintf(message, sizeof message, "restarted on node %s: node %s died", to->name, from ? from->name : "(none)");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_message, from ? message : "");
    for (size_t i = 0; i < m->disks.n; i++) {
        const char *colon = strchr(m->disks.v[i], ':');
        const struct cdb_volume *vol = colon ? cdb_volume_get(v, colon + 1) : NULL;
        if (!vol)
            continue;
        cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
        cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, to->id);
        cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch + 1);
    }
    snprintf(object, sizeof object, "vm %s", m->name);
    cdb_txn_event(t, wall_ms, "warning", object, from ? message : "started by the coordinator: it had no host", self);
    return t;
}

static struct cdb_txn *give_up(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_machine *m = cdb_machine_get(v, a->subject);
    const struct cdb_node *from = m ? cdb_node_get(v, m->host) : NULL;
    if (!m || strcmp(m->desired, "running") || (from && strcmp(from->state, "dead")))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, m->host);
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, "");
    cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "stopped");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_state, "stopped");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    char message[300], object[160];
    snprintf(message, sizeof message, "its node %s died and its policy is not to restart it: start it by hand",
             from ? from->name : "");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_message, message);
    snprintf(object, sizeof object, "vm %s", m->name);
    cdb_txn_event(t, wall_ms, "alarm", object, message, self);
    return t;
}

static struct cdb_txn *evacuate(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_machine *m = cdb_machine_get(v, a->subject);
    const struct cdb_node *to = cdb_node_get(v, a->to), *from = m ? cdb_node_get(v, m->host) : NULL;
    char message[300], object[160];
    if (!m || !to || !from || !from->maintenance || m->migrate_to[0] || strcmp(m->desired, "running"))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, "");
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, "running");
    cdb_txn_require_str(t, CDB_T_NODE, to->id, CDB_NODE_state, "up");
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, to->id);
    snprintf(object, sizeof object, "vm %s", m->name);
    snprintf(message, sizeof message, "moves to node %s: node %s is in maintenance", to->name, from->name);
    cdb_txn_event(t, wall_ms, "info", object, message, self);
    return t;
}

/* The same plan again, on the same view, in full; a line for people about the first of it. */
static struct cdb_txn *repair(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    struct repair_step step[REPAIR_STEPS_MAX];
    struct repair_conf conf;
    struct buf text;
    repair_conf_of(v, wall_ms, &conf);
    assert(a->steps > 0 && a->steps <= REPAIR_STEPS_MAX);
    int n = repair_plan(v, &conf, step, a->steps);
    if (!n)
        return NULL;
    struct cdb_txn *t = begin(a);
    repair_txn(v, t, step, n);
    buf_init(&text);
    repair_describe(v, &step[0], &text);
    if (n > 1)
        buf_printf(&text, "; and %d more like it", n - 1);
    cdb_txn_event(t, wall_ms, "info", "copies", text.data, self);
    buf_free(&text);
    return t;
}

static struct cdb_txn *lost(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    const struct cdb_volume *vol = cdb_volume_get(v, a->subject);
    char object[160], message[400];
    bool is_lost = vol && copies_volume_lost(v, vol);
    if (!vol || is_lost == (vol->lost_ms != 0))
        return NULL;
    struct cdb_txn *t = begin(a);
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_lost_ms, vol->lost_ms);
    cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_lost_ms, is_lost ? wall_ms : 0);
    if (!is_lost || !strcmp(vol->purpose, "layer"))
        return t;
    bool snapshot = !strcmp(vol->purpose, "snapshot");
    snprintf(object, sizeof object, "volume %s", vol->name);
    snprintf(message, sizeof message, "lost: it lived in memory only, and its last copy is gone. %s: cohort %s %s",
             snapshot ? "Delete it" : "Its I/O waits until it is emptied for use again (or deleted)", snapshot ? "snapshot delete" : "volume reset",
             vol->name);
    cdb_txn_event(t, wall_ms, "alarm", object, message, self);
    return t;
}

struct cdb_txn *coord_txn(const struct cdb_view *v, const struct coord_action *a, int64_t wall_ms, const char *self)
{
    switch (a->kind) {
    case COORD_TAKE_OFFICE:
        return take_office(v, a, wall_ms, self);
    case COORD_DECLARE_DEAD:
        return declare_dead(v, a, wall_ms, self);
    case COORD_MARK_UP:
        return mark_up(v, a, wall_ms, self);
    case COORD_MOVE:
        return move(v, a, wall_ms, self);
    case COORD_REPAIR:
        return repair(v, a, wall_ms, self);
    case COORD_EVACUATE:
        return evacuate(v, a, wall_ms, self);
    case COORD_LOST:
        return lost(v, a, wall_ms, self);
    case COORD_GIVE_UP:
        return give_up(v, a, wall_ms, self);
    }
    return NULL;
}
