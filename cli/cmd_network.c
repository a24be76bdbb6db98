/* cohort network, port. */
#include <stdio.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/show.h"

static const struct field network_fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"CIDR", "cidr"}, {"GATEWAY", "gateway"}, {"DNS", "dns", F_LIST}, {"MTU", "mtu", F_NUMBER},
    {"PORTS", "ports", F_NUMBER}, {0},
};

static int run_network_create(struct cli *c)
{
    struct answer a;
    int64_t mtu = 0;
    const char *gateway = args_get(c, "gateway"), *dns;
    if (args_int(c, "mtu", 0, 9000, &mtu) != EXIT_DONE)
        return EXIT_USAGE;
    json_t *body = json_pack("{s:s, s:s}", "name", c->pos[0], "cidr", args_get(c, "cidr"));
    if (gateway)
        json_object_set_new(body, "gateway", json_string(gateway));
    if (mtu)
        json_object_set_new(body, "mtu", json_integer(mtu));
    if (args_has(c, "dns"))
        json_object_set_new(body, "dns", json_array());
    for (int i = 0; (dns = args_get_n(c, "dns", i)); i++)
        json_array_append_new(json_object_get(body, "dns"), json_string(dns));
    int rc = cli_call(c, "POST", c->cmd->path, body, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "network %s created (%s)", c->pos[0], args_get(c, "cidr")) : rc;
}

static const struct opt network_opts[] = {
    {"cidr", "CIDR", OPT_REQUIRED, "IPv4 range, such as 198.18.1.0/24"},
    {"gateway", "IP", 0, "the network's own address (default: the first)"},
    {"dns", "IP", OPT_MANY, "name server told to guests"},
    {"mtu", "BYTES", 0, "guests' MTU (default: what fits the tunnel)"},
    {0},
};

const struct cmd cmds_network[] = {
    {"network", "create", "NAME", run_network_create, network_opts, "make a network",
     .more = "Example: cohort network create web --cidr 198.18.1.0/24 --dns 9.9.9.9", .path = "/networks"},
    {"network", "list", "", run_list, NULL, "networks", .path = "/networks", .fields = network_fields},
    {"network", "show", "NETWORK", run_show, NULL, "one network", .path = "/networks", .fields = network_fields},
    {"network", "delete", "NETWORK", run_delete, NULL, "delete a network that no vm uses", .path = "/networks"},
    {0},
};

/* ---- ports ---- */

static const struct field port_fields[] = {
    {"NETWORK", "network"}, {"IP", "ip"}, {"MAC", "mac"}, {"VM", "vm"}, {"NODE", "node"}, {"UP", "up"}, {"NAME", "name"}, {"ID", "id"}, {0},
};

static int run_port_create(struct cli *c)
{
    struct answer a;
    const char *name = args_get(c, "name");
    int rc = cli_call(c, "POST", "/ports", json_pack("{s:s, s:s}", "name", name, "network", c->pos[0]), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "port %s created on network %s; its address and id: cohort port list", name, c->pos[0]) : rc;
}

static const struct opt port_opts[] = {{"name", "NAME", OPT_REQUIRED, "the port's name"}, {0}};

const struct cmd cmds_port[] = {
    {"port", "list", "", run_list, NULL, "ports of vms, and those without one", .path = "/ports", .fields = port_fields},
    {"port", "create", "NETWORK", run_port_create, port_opts, "make a port for something that is no vm", .path = "/ports"},
    {"port", "delete", "PORT", run_delete, NULL, "delete a port without a vm, by its name", .path = "/ports"},
    {0},
};
