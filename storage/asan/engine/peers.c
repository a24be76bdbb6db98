/* Connections to the other nodes' storage ports, one each, as the database lists them. */
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

struct peer *peer_find(struct asan *a, const char *node)
{
    struct peer *p;
    LIST_FOREACH (p, &a->peers, entry)
        if (!strcmp(p->node, node))
            return p;
    return NULL;
}

bool gdisk_up(struct asan *a, const struct gdisk *g)
{
    if (g->local)
        return g->local->state == LD_READY;
    const struct peer *p = peer_find(a, g->node);
    return p && p->connected;
}

void disk_conn(struct asan *a, const char *node, bool up)
{
    struct htab_node *n;
    a->recheck = true;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        for (uint32_t i = 0; v->open && i < v->n_shards; i++) {
            struct shard *s = v->shard[i];
            if (!s || !s->core)
                continue;
            for (uint32_t d = 0; d < a->n_gdisks; d++)
                if (!strcmp(a->gdisk[d]->node, node))
                    owner_conn(s->core, d, up, now_ms());
            shard_after(s);
        }
    }
}

static void on_up(struct rpc_peer *rpc, bool connected, void *arg)
{
    struct peer *p = arg;
    (void)rpc;
    p->connected = connected;
    log_info("node %s: %s", p->node, connected ? "connected" : "connection lost");
    disk_conn(p->a, p->node, connected);
}

static void peer_close(struct peer *p)
{
    LIST_REMOVE(p, entry);
    if (p->connected)
        disk_conn(p->a, p->node, false);
    rpc_peer_close(p->rpc);
    free(p);
}

static void peer_open(struct asan *a, const struct cdb_node *n, const char *address)
{
    struct peer *p = xcalloc(1, sizeof *p);
    struct err e;
    p->a = a;
    memcpy(p->node, n->id, strlen(n->id) + 1);
    memcpy(p->address, address, strlen(address) + 1);
    p->port = (uint16_t)n->storage_port;
    p->seen = true;
    LIST_INSERT_HEAD(&a->peers, p, entry);
    int rc = rpc_peer_open(a->rpc, p->node, p->address, p->port, on_up, p, &p->rpc, &e);
    if (rc) {
        log_err("node %s: %s", p->node, e.msg);
        LIST_REMOVE(p, entry);
        free(p);
    }
}

void peers_update(struct asan *a, const struct cdb_view *v)
{
    struct peer *p, *next;
    LIST_FOREACH (p, &a->peers, entry)
        p->seen = false;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        const char *address = n->addresses.n ? n->addresses.v[0] : "";
        if (!strcmp(n->id, a->node_id) || strlen(n->id) != ID_LEN || !*address || strlen(address) >= sizeof p->address ||
            n->storage_port <= 0 || n->storage_port > 65535)
            continue;
        p = peer_find(a, n->id);
        if (p && (strcmp(p->address, address) || p->port != n->storage_port)) {
            peer_close(p);
            p = NULL;
        }
        if (p)
            p->seen = true;
        else
            peer_open(a, n, address);
    }
    for (p = LIST_FIRST(&a->peers); p; p = next) {
        next = LIST_NEXT(p, entry);
        if (!p->seen)
            peer_close(p);
    }
}

void peers_close(struct asan *a)
{
    struct peer *p;
    while ((p = LIST_FIRST(&a->peers)))
        peer_close(p);
}
