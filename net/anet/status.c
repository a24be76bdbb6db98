/* The JSON dump of aNet's state (anet_status_json). */
#include <jansson.h>
#include <stdlib.h>
#include "net/anet/anet_priv.h"

static json_t *nb_json(struct anet *a)
{
    struct nb_status s;
    nb_get_status(a->nb, &s);
    return json_pack("{s:b, s:b, s:I, s:b, s:I, s:I, s:I, s:I, s:s, s:I, s:s}", "connected", s.connected, "writer",
                     s.term > 0, "term", (json_int_t)s.term, "deposed", s.deposed, "wanted", (json_int_t)s.wanted,
                     "pending", (json_int_t)s.pending, "commits", (json_int_t)s.commits, "failures",
                     (json_int_t)s.failures, "error", s.error, "skipped", (json_int_t)a->skipped, "skipped_why",
                     a->skipped_why);
}

static json_t *sb_json(struct anet *a)
{
    struct sb_status s;
    sb_get_status(a->sb, &s);
    json_t *chassis = json_array();
    for (size_t i = 0; i < s.n_chassis; i++)
        json_array_append_new(chassis, json_string(s.chassis[i]));
    json_t *j = json_pack("{s:b, s:b, s:b, s:b, s:o}", "connected", s.connected, "ready", s.ready, "nb_leader_here",
                          s.nb_leader, "sb_leader_here", s.sb_leader, "chassis", chassis);
    sb_status_free(&s);
    return j;
}

static json_t *local_json(struct anet *a)
{
    struct local_status s;
    local_get_status(a->local, &s);
    json_t *ports = json_array();
    for (size_t i = 0; i < s.n_ports; i++)
        json_array_append_new(ports, json_pack("{s:s, s:s, s:b, s:b}", "id", s.ports[i].id, "interface", s.ports[i].name,
                                               "internal", s.ports[i].internal, "up", s.ports[i].up));
    json_t *j = json_pack("{s:b, s:b, s:s, s:s, s:s, s:I, s:I, s:s, s:o}", "connected", s.connected, "ready", s.ready,
                          "datapath", s.datapath, "br_phy", s.phy, "br_phy_error", s.phy_error, "commits",
                          (json_int_t)s.commits, "failures", (json_int_t)s.failures, "error", s.error, "ports", ports);
    local_status_free(&s);
    return j;
}

static json_t *service_json(const struct service *sv)
{
    struct service_status s;
    service_get_status(sv, &s);
    return json_pack("{s:s, s:i, s:I, s:I, s:s}", "state", s.state, "pid", (int)s.pid, "starts", (json_int_t)s.starts,
                     "deaths", (json_int_t)s.deaths, "error", s.error);
}

char *anet_status_json(struct anet *a)
{
    json_t *j = json_pack("{s:s, s:o, s:o, s:o, s:{s:o, s:o}}", "node", a->node_id, "northbound", nb_json(a), "southbound",
                          sb_json(a), "local", local_json(a), "services", "ovn-northd", service_json(a->northd),
                          "ovn-controller", service_json(a->controller));
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return text;
}
