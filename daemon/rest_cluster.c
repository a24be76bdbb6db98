/* REST: the cluster as a whole: status with alarms. Founding and joining are in rest_join.c. */
#include <inttypes.h>
#include <string.h>
#include "daemon/rest.h"

static void alarm_add(json_t *list, const char *severity, const char *object, const char *message, const char *next)
{
    json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "severity", severity, "object", object, "message", message, "next", next));
}

static void node_alarms(const struct cdb_view *v, json_t *alarms, json_t *nodes)
{
    int up = 0, dead = 0, voters = 0, voters_up = 0;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        bool is_up = strcmp(n->state, "up") == 0, is_dead = strcmp(n->state, "dead") == 0;
        char object[80];
        up += is_up;
        dead += is_dead;
        voters += n->voter;
        voters_up += n->voter && !is_dead;
        snprintf(object, sizeof object, "node %s", n->name);
        if (is_dead)
            alarm_add(alarms, "alarm", object, "it does not answer: declared dead, its vms with ha_policy restart start on other nodes",
                      "power it on or repair its network; it rejoins and catches up by itself. If it is lost for good: cohort node remove");
    }
    if (voters && voters_up <= voters / 2 + 1 && voters_up < voters)
        alarm_add(alarms, "warning", "database", "one more voter lost and the cluster cannot change anything; guests keep running, or pause when their lease ends",
                  "bring the missing voter nodes back");
    json_object_set_new(nodes, "total", json_integer((json_int_t)cdb_node_count(v)));
    json_object_set_new(nodes, "up", json_integer(up));
    json_object_set_new(nodes, "dead", json_integer(dead));
}

static json_t *volume_summary(const struct cdb_view *v, json_t *alarms)
{
    int n[VOLUME_HEALTHS] = {0};
    char why[160], object[96];
    for (size_t i = 0; i < cdb_volume_count(v); i++) {
        const struct cdb_volume *vol = cdb_volume_at(v, i);
        if (strcmp(vol->state, "deleting") == 0)
            continue;
        enum volume_health h = ops_volume_health(v, vol, why);
        n[h]++;
        snprintf(object, sizeof object, "volume %.80s", vol->name);
        if (h != VOLUME_HEALTHY)
            alarm_add(alarms, h == VOLUME_PARKED || h == VOLUME_LOST ? "alarm" : "warning", object, why,
                      h == VOLUME_RESYNCING ? "nothing to do: see cohort task list" : h == VOLUME_LOST ? "empty it for use again, or delete it" : "bring back the node or disk that holds the missing copy: cohort volume show");
    }
    return json_pack("{s:i, s:i, s:i, s:i, s:i}", "healthy", n[VOLUME_HEALTHY], "degraded", n[VOLUME_DEGRADED], "resyncing", n[VOLUME_RESYNCING],
                     "parked", n[VOLUME_PARKED], "lost", n[VOLUME_LOST]);
}

static json_t *vm_summary(const struct cdb_view *v, json_t *alarms)
{
    int total = 0, running = 0;
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *m = cdb_machine_at(v, i);
        char object[80];
        snprintf(object, sizeof object, "vm %s", m->name);
        total++;
        running += strcmp(m->state, "running") == 0;
        if (strcmp(m->state, "failed") == 0)
            alarm_add(alarms, "alarm", object, *m->message ? m->message : "it failed", "read the reason, then: cohort vm stop and cohort vm start");
        else if (strcmp(m->desired, "running") == 0 && !*m->host)
            alarm_add(alarms, "alarm", object, "it should run, but no node has taken it", "make room: see cohort node list; it starts by itself");
        else if (strcmp(m->state, "paused") == 0)
            alarm_add(alarms, "warning", object, "it is paused because its node lost contact with the cluster", "it goes on by itself when contact returns, here or on another node");
    }
    return json_pack("{s:i, s:i}", "total", total, "running", running);
}

static void disk_alarms(const struct cdb_view *v, json_t *alarms)
{
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *d = cdb_disk_at(v, i);
        char object[160];
        snprintf(object, sizeof object, "disk %.60s of node %.60s", d->name, ops_name(v, CDB_T_NODE, d->node));
        if (strcmp(d->state, "failed") == 0)
            alarm_add(alarms, "alarm", object, *d->message ? d->message : "it failed", "replace it; its copies are restored on other disks where there are any");
        else if (strcmp(d->state, "isolated") == 0)
            alarm_add(alarms, "alarm", object, d->message, "look at the drive; when it is well again: cohort disk use, else cohort disk replace");
        if (strcmp(d->smart_state, "failing") == 0)
            alarm_add(alarms, "alarm", object, d->smart, "replace it soon: cohort disk drain moves its copies away first");
        else if (strcmp(d->smart_state, "warning") == 0)
            alarm_add(alarms, "warning", object, d->smart, "have a spare drive at hand; cohort disk drain moves its copies away");
    }
}

static json_t *voters(const struct cdb_view *v)
{
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_node_count(v); i++)
        if (cdb_node_at(v, i)->voter)
            json_array_append_new(a, json_string(cdb_node_at(v, i)->name));
    return a;
}

/* Also answers before this node is in a cluster: the first thing anyone asks. */
void rest_cluster_get(struct rest_req *rq)
{
    struct daemon *d = rq->r->d;
    struct err e;
    json_t *o = json_object();
    json_object_set_new(o, "version", json_string(COHORT_VERSION));
    json_object_set_new(o, "member", json_boolean(d->member || d->link));
    json_object_set_new(o, "this_node", json_string(d->conf.node_name ? d->conf.node_name : ""));
    const struct cdb_view *v = ops_view(rq->r->ops, &e);
    const struct cdb_cluster *c = v ? cdb_cluster_get(v, "cluster") : NULL;
    if (!c) {
        char *nl = v ? NULL : strchr(e.msg, '\n');
        if (nl)
            *nl = '\0';
        json_object_set_new(o, "message", json_string(v ? "the database holds no cluster yet" : e.msg));
        json_object_set_new(o, "hint", json_string(nl ? nl + 1 : ""));
        json_object_set_new(o, "database", json_pack("{s:b}", "connected", v && cdb_link_connected(d->link)));
        rest_ok(rq, 200, o);
        return;
    }
    json_t *alarms = json_array(), *nodes = json_object();
    bool connected = cdb_link_connected(d->link);
    if (!connected)
        alarm_add(alarms, "alarm", "database", "this node has no contact with a majority of voters: what is shown may be old, and nothing can be changed from here",
                  "check the network between the nodes and that most voters are up");
    json_object_set_new(o, "name", json_string(c->name));
    json_object_set_new(o, "key", json_string(ops_key_state(v))); /* of encrypted volumes: none|locked|unlocked on this node */
    json_object_set_new(o, "uuid", json_string(c->uuid));
    json_object_set_new(o, "coordinator", json_string(ops_name(v, CDB_T_NODE, c->coordinator)));
    json_object_set_new(o, "coordinator_term", json_integer(c->coordinator_term));
    json_object_set_new(o, "lease_ms", json_integer(c->lease_ms));
    json_object_set_new(o, "database", json_pack("{s:b, s:b, s:o}", "connected", connected, "leader_here", cdb_link_local_leader(d->link), "voters", voters(v)));
    node_alarms(v, alarms, nodes);
    disk_alarms(v, alarms);
    json_object_set_new(o, "nodes", nodes);
    json_object_set_new(o, "volumes", volume_summary(v, alarms));
    json_object_set_new(o, "vms", vm_summary(v, alarms));
    json_object_set_new(o, "alarms", alarms);
    rest_ok(rq, 200, o);
}
