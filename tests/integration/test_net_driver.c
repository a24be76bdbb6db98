/* One node's aNet for tests/integration/test_net_overlay.py: the configuration as JSON in argv[1], commands as JSON
 * lines on stdin, events and answers as JSON lines on stdout. Ends at end of file. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>
#include "base/buf.h"
#include "net/anet/anet.h"

static struct anet *anet;
static uv_pipe_t in;
static struct buf line;

static const char *text(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static void say(json_t *j)
{
    json_dumpf(j, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(j);
}

static void on_port_up(void *arg, const char *id, bool up)
{
    say(json_pack("{s:s, s:s, s:b}", "event", "port", "id", id, "up", up));
}

static const char **texts(const json_t *list, size_t *ret_n)
{
    *ret_n = json_array_size(list);
    const char **v = xcalloc(*ret_n + 1, sizeof *v);
    for (size_t i = 0; i < *ret_n; i++)
        v[i] = json_string_value(json_array_get(list, i));
    return v;
}

static void set_desired(const json_t *j)
{
    const json_t *nets = json_object_get(j, "networks"), *ports = json_object_get(j, "ports");
    size_t n_nets = json_array_size(nets), n_ports = json_array_size(ports), n_nodes;
    struct anet_network *net = xcalloc(n_nets + 1, sizeof *net);
    struct anet_port *port = xcalloc(n_ports + 1, sizeof *port);
    const char **nodes = texts(json_object_get(j, "nodes"), &n_nodes);
    struct err e = {0};
    for (size_t i = 0; i < n_nets; i++) {
        const json_t *o = json_array_get(nets, i);
        net[i] = (struct anet_network){.id = text(o, "id"), .name = text(o, "name"), .cidr = text(o, "cidr"),
                                       .gateway = text(o, "gateway"),
                                       .mtu = (int)json_integer_value(json_object_get(o, "mtu"))};
        net[i].dns = texts(json_object_get(o, "dns"), &net[i].n_dns);
    }
    for (size_t i = 0; i < n_ports; i++) {
        const json_t *o = json_array_get(ports, i);
        port[i] = (struct anet_port){text(o, "id"), text(o, "network"), text(o, "mac"), text(o, "ip"), text(o, "host"),
                                     text(o, "migrate_to")};
    }
    const struct anet_desired d = {.n_networks = n_nets, .n_ports = n_ports, .n_nodes = n_nodes, .networks = net,
                                   .ports = port, .nodes = nodes};
    int rc = anet_set_desired(anet, &d, &e);
    say(json_pack("{s:s, s:s, s:s}", "answer", "desired", "code", err_code_name(rc), "message", e.msg));
    for (size_t i = 0; i < n_nets; i++)
        free((void *)(uintptr_t)net[i].dns);
    free(net);
    free(port);
    free(nodes);
}

static void command(const json_t *j)
{
    const char *cmd = text(j, "cmd");
    struct err e = {0};
    int rc = 0;
    if (!strcmp(cmd, "remotes")) {
        anet_set_remotes(anet, text(j, "local"), text(j, "voters"));
    } else if (!strcmp(cmd, "writer")) {
        anet_set_writer(anet, json_integer_value(json_object_get(j, "term")));
    } else if (!strcmp(cmd, "desired")) {
        set_desired(j);
        return;
    } else if (!strcmp(cmd, "plug")) {
        rc = anet_plug(anet, text(j, "id"), text(j, "tap"), &e);
    } else if (!strcmp(cmd, "plug_internal")) {
        rc = anet_plug_internal(anet, text(j, "id"), text(j, "tap"), &e);
    } else if (!strcmp(cmd, "unplug")) {
        anet_unplug(anet, text(j, "id"));
    } else if (!strcmp(cmd, "stop")) {
        anet_stop_services(anet);
    } else if (!strcmp(cmd, "status")) {
        char *status = anet_status_json(anet);
        say(json_loads(status, 0, NULL));
        free(status);
        return;
    } else {
        rc = err_set(&e, E_INVAL, "unknown command %s", cmd);
    }
    say(json_pack("{s:s, s:s, s:s}", "answer", cmd, "code", err_code_name(rc), "message", e.msg));
}

static void on_alloc(uv_handle_t *h, size_t size, uv_buf_t *ret)
{
    *ret = uv_buf_init(xmalloc(size), (unsigned)size);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    if (n < 0) {
        uv_close((uv_handle_t *)s, NULL);
        anet_close(anet);
    }
    for (ssize_t i = 0; i < n; i++) {
        if (b->base[i] != '\n') {
            buf_append(&line, &b->base[i], 1);
            continue;
        }
        char *l = buf_take(&line);
        json_t *j = json_loads(l, 0, NULL);
        if (j)
            command(j);
        json_decref(j);
        free(l);
    }
    free(b->base);
}

int main(int argc, char **argv)
{
    json_t *c = argc == 2 ? json_loads(argv[1], 0, NULL) : NULL;
    struct err e = {0};
    if (!c) {
        fprintf(stderr, "usage: test_net_driver '{\"node_id\": …}'\n");
        return 2;
    }
    const struct anet_conf conf = {
        .node_id = text(c, "node_id"), .address = text(c, "address"), .uplink = text(c, "uplink"),
        .run_dir = text(c, "run_dir"), .ovs_db = text(c, "ovs_db"), .ovs_rundir = text(c, "ovs_rundir"),
        .datapath = text(c, "datapath"), .key_pem = text(c, "key_pem"), .cert_pem = text(c, "cert_pem"),
        .ca_pem = text(c, "ca_pem"), .supervise = true};
    const struct anet_events events = {.port_up = on_port_up};
    uv_loop_t *loop = uv_default_loop();
    buf_init(&line);
    if (anet_open(loop, &conf, &events, &anet, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    uv_pipe_init(loop, &in, 0);
    uv_pipe_open(&in, STDIN_FILENO);
    uv_read_start((uv_stream_t *)&in, on_alloc, on_read);
    uv_run(loop, UV_RUN_DEFAULT);
    buf_free(&line);
    json_decref(c);
    return uv_loop_close(loop) ? 3 : 0;
}
