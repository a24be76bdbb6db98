/* The coordinator's step function. Its transactions are in coord_txn.c. */
#include "ha/coord.h"
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "cluster/copies.h"
#include "ha/plan.h"
#include "ha/repair.h"

void coord_init(struct coord *c, const struct coord_conf *conf)
{
    assert(conf->margin_ms > conf->hear_ms);
    memset(c, 0, sizeof *c);
    c->conf = *conf;
    c->repair_steps = REPAIR_STEPS_MAX;
}

int64_t coord_lease_ms(const struct cdb_view *v)
{
    const struct cdb_cluster *cl = cdb_cluster_get(v, "cluster");
    int64_t ms = cl ? cl->lease_ms : 0;
    return ms < 1000 || ms > 60000 ? 5000 : ms;
}

static struct coord_peer *peer_get(struct coord *c, const char *id)
{
    for (int i = 0; i < c->n_peers; i++)
        if (!strcmp(c->peer[i].id, id))
            return &c->peer[i];
    return NULL;
}

static struct coord_peer *peer_make(struct coord *c, const struct cdb_view *v, const char *id)
{
    struct coord_peer *p = peer_get(c, id);
    if (p)
        return p;
    if (c->n_peers == COORD_NODES_MAX) /* make room: a node that is no longer in the cluster */
        for (int i = 0; i < c->n_peers; i++)
            if (!cdb_node_get(v, c->peer[i].id)) {
                c->peer[i] = c->peer[--c->n_peers];
                break;
            }
    if (c->n_peers == COORD_NODES_MAX)
        return NULL;
    p = &c->peer[c->n_peers++];
    memset(p, 0, sizeof *p);
    snprintf(p->id, sizeof p->id, "%s", id);
    return p;
}

static bool pending(const struct coord *c, enum coord_action_kind kind, const char *subject)
{
    for (int i = 0; i < c->n_pending; i++)
        if (c->pending[i].kind == kind && !strcmp(c->pending[i].subject, subject))
            return true;
    return false;
}

/* Do we hear a majority of the voters (ourselves counted)? */
static bool majority(const struct coord *c, uint64_t now_ms, const struct cdb_view *v)
{
    int voters = 0, heard = 0;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (!n->voter)
            continue;
        voters++;
        const struct coord_peer *p = peer_get((struct coord *)c, n->id);
        heard += !strcmp(n->id, c->conf.self) || (p && p->heard_ms && now_ms - p->heard_ms < c->conf.hear_ms);
    }
    return voters > 0 && heard * 2 > voters;
}

bool coord_granting(const struct coord *c, uint64_t now_ms)
{
    return (c->state == COORD_WAITING || c->state == COORD_ACTING) && c->quorate_ms && now_ms >= c->quorate_ms;
}

bool coord_heartbeat(struct coord *c, uint64_t now_ms, const struct cdb_view *v, const char *node, int64_t node_epoch)
{
    const struct cdb_node *row = cdb_node_get(v, node);
    struct coord_peer *p = row ? peer_make(c, v, node) : NULL;
    if (!p)
        return false;
    p->heard_ms = now_ms;
    p->epoch = node_epoch;
    if (c->quorate_ms && !majority(c, now_ms, v))
        c->quorate_ms = 0; /* do not wait for the next step to notice */
    if (!coord_granting(c, now_ms) || node_epoch != row->epoch || !strcmp(row->state, "dead") ||
        pending(c, COORD_DECLARE_DEAD, node))
        return false;
    p->lease_until_ms = now_ms + (uint64_t)coord_lease_ms(v);
    return true;
}

struct out {
    struct coord *c;
    struct coord_action *a;
    int n, max;
};

static void act(struct out *o, enum coord_action_kind kind, const char *subject, const char *to)
{
    struct coord *c = o->c;
    if (o->n == o->max || c->n_pending == COORD_ACTIONS_MAX || pending(c, kind, subject))
        return;
    struct coord_action *a = &o->a[o->n++];
    *a = (struct coord_action){.kind = kind, .term = c->term, .steps = c->repair_steps};
    snprintf(a->subject, sizeof a->subject, "%s", subject);
    snprintf(a->to, sizeof a->to, "%s", to ? to : "");
    c->pending[c->n_pending++] = *a;
}

void coord_done(struct coord *c, uint64_t now_ms, const struct coord_action *a, int status)
{
    for (int i = 0; i < c->n_pending; i++)
        if (c->pending[i].kind == a->kind && !strcmp(c->pending[i].subject, a->subject)) {
            c->pending[i] = c->pending[--c->n_pending];
            break;
        }
    if (a->kind == COORD_REPAIR && !status) {
        c->repair_ms = 0; /* there may be more */
        c->repair_steps = c->repair_steps * 2 < REPAIR_STEPS_MAX ? c->repair_steps * 2 : REPAIR_STEPS_MAX;
    } else if (a->kind == COORD_REPAIR && status == E_CONFLICT) {
        c->repair_steps = c->repair_steps / 4 > REPAIR_STEPS_MIN ? c->repair_steps / 4 : REPAIR_STEPS_MIN;
    }
    if (a->kind != COORD_TAKE_OFFICE || c->state != COORD_TAKING)
        return;
    if (status) {
        c->state = COORD_IDLE; /* E_UNKNOWN too: a term of ours in the database without us in office harms nobody */
        return;
    }
    c->state = COORD_WAITING;
    c->term = a->term + 1;
    c->office_ms = now_ms;
}

static void judge_nodes(struct out *o, uint64_t now_ms, const struct cdb_view *v)
{
    struct coord *c = o->c;
    uint64_t wait = (uint64_t)coord_lease_ms(v) + c->conf.margin_ms;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        const struct coord_peer *p = peer_get(c, n->id);
        bool heard = p && p->heard_ms && now_ms - p->heard_ms < c->conf.hear_ms;
        bool current = heard && p->epoch == n->epoch;
        if ((!strcmp(n->state, "dead") || !strcmp(n->state, "joining")) && current) {
            act(o, COORD_MARK_UP, n->id, NULL);
        } else if (!strcmp(n->state, "up")) {
            /* The lease we granted it must have ended, and whatever a predecessor may have granted. */
            uint64_t since = c->office_ms > c->quorate_ms ? c->office_ms : c->quorate_ms;
            bool theirs_over = now_ms >= since + wait;
            bool ours_over = !p || now_ms >= p->lease_until_ms + (c->conf.margin_ms - c->conf.hear_ms);
            if (!heard && theirs_over && ours_over)
                act(o, COORD_DECLARE_DEAD, n->id, NULL);
        }
    }
}

static int starting_on(const struct coord *c, const struct cdb_view *v, const char *node)
{
    int n = 0;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        n += !strcmp(m->host, node) && !strcmp(m->state, "starting");
    }
    for (int i = 0; i < c->n_pending; i++)
        n += c->pending[i].kind == COORD_MOVE && !strcmp(c->pending[i].to, node);
    return n;
}

static bool node_heard(const char *node, void *arg)
{
    struct { struct coord *c; uint64_t now_ms; const struct cdb_view *v; } *x = arg;
    const struct coord_peer *p = peer_get(x->c, node);
    return p && p->heard_ms && x->now_ms - p->heard_ms < x->c->conf.hear_ms &&
           starting_on(x->c, x->v, node) < COORD_STARTS_PER_NODE;
}

/* The running guest of highest priority that has no living host and no action under way. */
static const struct cdb_machine *next_orphan(const struct coord *c, const struct cdb_view *v, int64_t below)
{
    const struct cdb_machine *best = NULL;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        const struct cdb_node *h = m->host[0] ? cdb_node_get(v, m->host) : NULL;
        bool orphan = !strcmp(m->desired, "running") && (!h || !strcmp(h->state, "dead"));
        if (orphan && m->priority < below && (!best || m->priority > best->priority))
            best = m;
    }
    (void)c;
    return best;
}

static void rescue(struct out *o, uint64_t now_ms, const struct cdb_view *v)
{
    struct { struct coord *c; uint64_t now_ms; const struct cdb_view *v; } x = {o->c, now_ms, v};
    struct plan_usable usable = {node_heard, &x};
    int64_t below = INT64_MAX;
    for (const struct cdb_machine *top; (top = next_orphan(o->c, v, below)); below = top->priority)
        for (size_t i = 0; i < cdb_machine_count(v) && o->n < o->max; i++) { /* all of this priority, by id */
            const struct cdb_machine *m = cdb_machine_at(v, i);
            const struct cdb_node *h = m->host[0] ? cdb_node_get(v, m->host) : NULL;
            if (m->priority != top->priority || strcmp(m->desired, "running") || (h && strcmp(h->state, "dead")))
                continue;
            if (m->host[0] && strcmp(m->ha_policy, "restart")) {
                act(o, COORD_GIVE_UP, m->id, NULL);
                continue;
            }
            const char *to = plan_host(v, m, &usable, NULL, NULL);
            if (to)
                act(o, COORD_MOVE, m->id, to);
        }
}

/* Guests of nodes in maintenance move to other nodes, one at a time, in the order of their ids; one for which there is no
 * place, or whose migration failed, has its turn again in the next round. */
static void evacuate(struct out *o, uint64_t now_ms, const struct cdb_view *v)
{
    struct { struct coord *c; uint64_t now_ms; const struct cdb_view *v; } x = {o->c, now_ms, v};
    struct plan_usable usable = {node_heard, &x};
    struct coord *c = o->c;
    if (c->state != COORD_ACTING || now_ms < c->evacuate_ms)
        return;
    c->evacuate_ms = now_ms + COORD_EVACUATE_MS;
    for (size_t i = 0; i < cdb_machine_count(v); i++)
        if (cdb_machine_at(v, i)->migrate_to[0])
            return;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        const struct cdb_node *n = m->host[0] ? cdb_node_get(v, m->host) : NULL;
        if (!n || !n->maintenance || strcmp(n->state, "up") || strcmp(m->desired, "running") || strcmp(m->state, "running") ||
            strcmp(m->id, c->evacuated) <= 0)
            continue;
        const char *to = plan_host(v, m, &usable, m->host, NULL);
        if (!to)
            continue;
        snprintf(c->evacuated, sizeof c->evacuated, "%s", m->id);
        act(o, COORD_EVACUATE, m->id, to);
        return;
    }
    c->evacuated[0] = 0;
}

/* One transaction of repairs at a time; the next look once its result is in the view. */
static void repair(struct out *o, uint64_t now_ms, int64_t wall_ms, const struct cdb_view *v)
{
    struct coord *c = o->c;
    struct repair_step step;
    struct repair_conf conf;
    if (c->state != COORD_ACTING || now_ms < c->repair_ms || pending(c, COORD_REPAIR, ""))
        return;
    repair_conf_of(v, wall_ms, &conf);
    c->repair_ms = now_ms + COORD_REPAIR_MS;
    if (repair_plan(v, &conf, &step, 1))
        act(o, COORD_REPAIR, "", NULL);
}

/* Volumes in memory whose last copy is gone, and those that are whole again after a reset or revert. */
static void judge_lost(struct out *o, uint64_t now_ms, const struct cdb_view *v)
{
    struct coord *c = o->c;
    if (c->state != COORD_ACTING || now_ms < c->lost_ms)
        return;
    c->lost_ms = now_ms + COORD_REPAIR_MS;
    for (size_t i = 0; i < cdb_volume_count(v); i++) {
        const struct cdb_volume *vol = cdb_volume_at(v, i);
        if (!strcmp(vol->state, "ready") && copies_volume_lost(v, vol) != (vol->lost_ms != 0))
            act(o, COORD_LOST, vol->id, NULL);
    }
}

int coord_step(struct coord *c, uint64_t now_ms, int64_t wall_ms, const struct cdb_view *v, bool local_leader,
               struct coord_action *ret_actions, int max)
{
    struct out o = {c, ret_actions, 0, max};
    const struct cdb_cluster *cl = v ? cdb_cluster_get(v, "cluster") : NULL;
    if (!cl)
        return 0;
    bool deposed = c->state >= COORD_WAITING && (cl->coordinator_term != c->term || strcmp(cl->coordinator, c->conf.self));
    if (!local_leader || deposed) {
        if (c->state != COORD_TAKING)
            c->state = COORD_IDLE;
        if (!local_leader)
            c->quorate_ms = 0;
    }
    if (!local_leader)
        return 0;
    if (!majority(c, now_ms, v))
        c->quorate_ms = 0;
    else if (!c->quorate_ms)
        c->quorate_ms = now_ms ? now_ms : 1;
    if (c->state == COORD_IDLE) {
        c->term = cl->coordinator_term; /* TAKE_OFFICE requires this one and sets the next */
        c->state = COORD_TAKING;
        act(&o, COORD_TAKE_OFFICE, c->conf.self, NULL);
        return o.n;
    }
    if (c->state == COORD_TAKING || !c->quorate_ms)
        return 0;
    if (c->state == COORD_WAITING && now_ms >= c->office_ms + (uint64_t)coord_lease_ms(v) + c->conf.margin_ms)
        c->state = COORD_ACTING;
    judge_nodes(&o, now_ms, v);
    rescue(&o, now_ms, v);
    evacuate(&o, now_ms, v);
    repair(&o, now_ms, wall_ms, v);
    judge_lost(&o, now_ms, v);
    return o.n;
}
