/* Control connections to the other nodes: opened when a node appears in the database, replaced when its address changes. */
#include "daemon/nodelinks.h"
#include <stdlib.h>
#include <string.h>
#include "base/log.h"

LOG_MODULE("daemon");

struct link {
    char id[ID_LEN + 1], address[64];
    int64_t port;
    struct rpc_peer *rpc;
    bool seen;
    LIST_ENTRY(link) entry;
};

struct nodelinks {
    struct rpc_env *env;
    char self[ID_LEN + 1];
    LIST_HEAD(, link) links;
};

struct nodelinks *nodelinks_open(struct rpc_env *env, const char *self)
{
    struct nodelinks *p = xcalloc(1, sizeof *p);
    p->env = env;
    snprintf(p->self, sizeof p->self, "%s", self);
    return p;
}

static void drop(struct link *l)
{
    rpc_peer_close(l->rpc);
    LIST_REMOVE(l, entry);
    free(l);
}

void nodelinks_close(struct nodelinks *p)
{
    struct link *l;
    while (p && (l = LIST_FIRST(&p->links)))
        drop(l);
    free(p);
}

static struct link *find(struct nodelinks *p, const char *node)
{
    struct link *l;
    LIST_FOREACH (l, &p->links, entry)
        if (!strcmp(l->id, node))
            return l;
    return NULL;
}

static void add(struct nodelinks *p, const struct cdb_node *n)
{
    struct err e = {0};
    struct link *l = xcalloc(1, sizeof *l);
    snprintf(l->id, sizeof l->id, "%s", n->id);
    snprintf(l->address, sizeof l->address, "%s", n->addresses.v[0]);
    l->port = n->control_port;
    l->seen = true;
    if (rpc_peer_open(p->env, n->id, l->address, (uint16_t)l->port, NULL, NULL, &l->rpc, &e)) {
        log_err("node %s: %s", n->name, e.msg);
        free(l);
        return;
    }
    LIST_INSERT_HEAD(&p->links, l, entry);
}

void nodelinks_update(struct nodelinks *p, const struct cdb_view *v)
{
    struct link *l;
    LIST_FOREACH (l, &p->links, entry)
        l->seen = false;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (!strcmp(n->id, p->self) || !n->addresses.n)
            continue;
        l = find(p, n->id);
        if (l && (strcmp(l->address, n->addresses.v[0]) || l->port != n->control_port)) {
            drop(l);
            l = NULL;
        }
        if (l)
            l->seen = true;
        else
            add(p, n);
    }
    for (struct link *next, *x = LIST_FIRST(&p->links); x; x = next) {
        next = LIST_NEXT(x, entry);
        if (!x->seen)
            drop(x);
    }
}

struct rpc_peer *nodelinks_get(struct nodelinks *p, const char *node)
{
    struct link *l = find(p, node);
    return l ? l->rpc : NULL;
}
