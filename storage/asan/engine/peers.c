/* Connections to the other nodes' storage ports, as the database lists them: one to each storage address of a node, and one
 * to its cluster address, which carries storage traffic only while none of the others works.
 *
 * Requests are spread over the links that are up: a shard has a home link, so that a thin stream stays in order by itself,
 * and leaves it when much more is under way there than elsewhere. The replica's host puts WRITEs back in order.
 * A link that is cut says nothing. It is given up when no byte came from it for STALL_MS while a ping waits, and another
 * link of the same node has answered a younger ping: the node is alive, the link is not. What was on its way there goes
 * over another link (link.c), long before the replica counts as silent.
 * If all are quiet it is the node's own affair: after SILENT_MS all cores are told at once, so that all shards with a copy there
 * take it out in one transaction, and those that are written to later do not wait for a time-out of their own. A single link is
 * asked only while something is on its way over it. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "proto/control.pb-c.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define PING_MS 250
#define STALL_MS 1000
#define SILENT_MS 1750 /* and up to PING_MS until it is asked: well below the cores' own silent_ms, which is for slow disks */
#define REPORT_MS 3000          /* a link that comes back sooner is not news */
#define SPREAD_BYTES (256u << 10)

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

bool gdisk_silent(struct asan *a, const struct gdisk *g)
{
    const struct peer *p = g->local ? NULL : peer_find(a, g->node);
    return p && p->silent;
}

/* Tells each open core something about each disk of a node. */
static void tell_cores(struct asan *a, const char *node, void (*tell)(struct owner *, uint32_t, bool, uint64_t), bool what)
{
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        for (uint32_t i = 0; v->open && i < v->n_shards; i++) {
            struct shard *s = v->shard[i];
            if (!s || !s->core)
                continue;
            for (uint32_t d = 0; d < a->n_gdisks; d++)
                if (!strcmp(a->gdisk[d]->node, node))
                    tell(s->core, d, what, now_ms());
            shard_after(s);
        }
    }
}

void disk_conn(struct asan *a, const char *node, bool up)
{
    a->recheck = true;
    tell_cores(a, node, owner_conn, up);
}

/* ---- which link ---- */

static int candidates(const struct peer *p, bool standby, struct plink **ret)
{
    int n = 0;
    for (int i = 0; i < p->n_links; i++)
        if (p->link[i]->up && p->link[i]->standby == standby)
            ret[n++] = p->link[i];
    return n;
}

struct plink *plink_pick(const struct peer *p, uint64_t key)
{
    struct plink *up[ASAN_LINKS_MAX + 1];
    int n = candidates(p, false, up);
    if (!n)
        n = candidates(p, true, up);
    if (!n)
        return NULL;
    struct plink *home = up[key % (unsigned)n], *least = home;
    for (int i = 0; i < n; i++)
        if (up[i]->out_bytes < least->out_bytes)
            least = up[i];
    return home->out_bytes > least->out_bytes + SPREAD_BYTES ? least : home;
}

void plink_unref(struct plink *l)
{
    if (--l->refs == 0)
        free(l);
}

/* ---- what people see ---- */

static void publish(struct asan *a)
{
    const struct peer *p;
    size_t n = 0;
    struct asan_link_state *s;
    LIST_FOREACH (p, &a->peers, entry)
        n += (size_t)p->n_links;
    s = xcalloc(n + 1, sizeof *s);
    n = 0;
    LIST_FOREACH (p, &a->peers, entry)
        for (int i = 0; i < p->n_links; i++, n++) {
            memcpy(s[n].node, p->node, sizeof s[n].node);
            memcpy(s[n].address, p->link[i]->address, sizeof s[n].address);
            s[n].standby = p->link[i]->standby;
            s[n].up = p->link[i]->up;
        }
    pthread_mutex_lock(&a->lock);
    struct asan_link_state *old = a->links;
    a->links = s;
    a->n_link_states = n;
    pthread_mutex_unlock(&a->lock);
    free(old);
}

size_t asan_link_states(struct asan *a, const char *node_id, struct asan_link_state *ret, size_t max)
{
    size_t n = 0;
    pthread_mutex_lock(&a->lock);
    for (size_t i = 0; i < a->n_link_states; i++)
        if (!strcmp(a->links[i].node, node_id)) {
            if (n < max)
                ret[n] = a->links[i];
            n++;
        }
    pthread_mutex_unlock(&a->lock);
    return n;
}

static void reported(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status)
        log_warn("event of a storage link: %s", e->msg);
}

/* One line for people, per node that sees it. */
static void report(struct plink *l)
{
    struct asan *a = l->p->a;
    const struct cdb_view *v = view_of(a);
    const struct cdb_node *n = v ? cdb_node_get(v, l->p->node) : NULL;
    char object[128], message[256];
    l->reported = !l->up;
    if (!n)
        return;
    snprintf(object, sizeof object, "node %.100s", n->name);
    snprintf(message, sizeof message,
             l->up ? "storage link %s works again" : "storage link %s does not answer; storage traffic takes the other links until it does",
             l->address);
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_event(t, clock_wall_ms(), l->up ? "info" : "warning", object, message, a->node_id);
    cdb_txn_commit(a->link, t, "storage link", reported, NULL);
}

/* ---- up and down ---- */

static void recount(struct peer *p)
{
    bool any = false;
    for (int i = 0; i < p->n_links; i++)
        any |= p->link[i]->up;
    publish(p->a);
    if (any == p->connected)
        return;
    p->connected = any;
    for (int i = 0; i < p->n_links; i++)
        if (any && !p->link[i]->up)
            p->link[i]->down_ms = now_ms(); /* the node was away: its other links get their time to connect */
    log_info("node %s: %s", p->node, any ? "connected" : "connection lost");
    disk_conn(p->a, p->node, any);
}

static void on_up(struct rpc_peer *rpc, bool connected, void *arg)
{
    struct plink *l = arg;
    (void)rpc;
    if (!l->p)
        return;
    l->up = connected;
    l->down_ms = now_ms();
    l->ping_ms = l->answered_ms = 0;
    if (l->p->n_links > 1)
        log_info("node %s: storage link %s %s", l->p->node, l->address, connected ? "up" : "lost");
    recount(l->p);
}

static void pinged(struct rpc_call *c, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct plink *l = c->arg;
    (void)msg, (void)data, (void)len;
    l->pinging = false;
    if (!status)
        l->answered_ms = l->ping_ms;
    plink_unref(l);
}

static void ping(struct plink *l, uint64_t now)
{
    Cohort__Control__Ping m = COHORT__CONTROL__PING__INIT;
    l->pinging = true;
    l->ping_ms = now;
    l->refs++;
    l->ping = (struct rpc_call){.done = pinged, .arg = l};
    rpc_call(l->rpc, &l->ping, RPC_PING, &m.base, NULL, 0, 0);
}

static bool stalled(const struct plink *l, uint64_t now)
{
    uint64_t heard = rpc_peer_heard_ms(l->rpc);
    if (!l->pinging || now - l->ping_ms < STALL_MS || (heard && now - heard < STALL_MS))
        return false;
    for (int i = 0; i < l->p->n_links; i++) {
        const struct plink *o = l->p->link[i];
        if (o != l && o->up && o->answered_ms > l->ping_ms)
            return true;
    }
    return false;
}

static void look_after(struct peer *p, uint64_t now)
{
    for (int i = 0; i < p->n_links; i++) {
        struct plink *l = p->link[i];
        if (l->up && stalled(l, now)) {
            log_warn("node %s: storage link %s does not answer, others do: given up", p->node, l->address);
            rpc_peer_reset(l->rpc);
        } else if (l->up && !l->pinging && (p->n_links > 1 || l->out_bytes)) {
            ping(l, now);
        }
        if (p->connected && l->up == l->reported && now_ms() - l->down_ms >= (l->up ? 0 : REPORT_MS))
            report(l);
    }
}

/* `passed_ms` since the last look. Time in which our own loop stood still tells nothing about the node: what came meanwhile has
 * not been read yet. */
static void look_for_silence(struct peer *p, uint64_t passed_ms)
{
    bool asked = p->connected;
    uint64_t heard = p->heard_ms;
    for (int i = 0; i < p->n_links; i++) {
        const struct plink *l = p->link[i];
        uint64_t at = l->up ? rpc_peer_heard_ms(l->rpc) : 0;
        asked = asked && (!l->up || l->pinging);
        heard = at > heard ? at : heard;
    }
    if (!p->connected)
        return; /* what was said of it holds until it answers */
    p->quiet_ms = asked && heard == p->heard_ms ? p->quiet_ms + (passed_ms < 2 * TICK_MS ? passed_ms : 2 * TICK_MS) : 0;
    p->heard_ms = heard;
    if (p->silent == (p->quiet_ms >= SILENT_MS))
        return;
    p->silent = !p->silent;
    log_info("node %s: %s", p->node, p->silent ? "does not answer" : "answers again");
    tell_cores(p->a, p->node, owner_silent, p->silent);
}

void peers_tick(struct asan *a)
{
    struct peer *p;
    uint64_t now = uv_now(&a->loop);
    LIST_FOREACH (p, &a->peers, entry)
        look_for_silence(p, now - a->peers_ms);
    a->peers_ms = now;
    if (now - a->links_ms < PING_MS)
        return;
    a->links_ms = now;
    LIST_FOREACH (p, &a->peers, entry)
        look_after(p, now);
}

/* ---- as the database lists them ---- */

static void plink_close(struct peer *p, int i)
{
    struct plink *l = p->link[i];
    p->link[i] = p->link[--p->n_links];
    l->p = NULL;
    l->up = false;
    rpc_peer_close(l->rpc);
    plink_unref(l);
}

static bool want_link(struct peer *p, const char *address, bool standby)
{
    struct err e;
    for (int i = 0; i < p->n_links; i++)
        if (!strcmp(p->link[i]->address, address)) {
            p->link[i]->standby = standby;
            return false;
        }
    if (strlen(address) >= sizeof p->link[0]->address)
        return false;
    struct plink *l = xcalloc(1, sizeof *l);
    *l = (struct plink){.p = p, .standby = standby, .refs = 1, .down_ms = now_ms()};
    memcpy(l->address, address, strlen(address) + 1);
    if (rpc_peer_open(p->a->rpc, p->node, l->address, p->port, on_up, l, &l->rpc, &e)) {
        log_err("node %s: %s", p->node, e.msg);
        free(l);
        return false;
    }
    p->link[p->n_links++] = l;
    return true;
}

static void update_links(struct peer *p, const struct cdb_node *n)
{
    if (p->port != n->storage_port)
        while (p->n_links)
            plink_close(p, p->n_links - 1);
    p->port = (uint16_t)n->storage_port;
    size_t links = n->storage_addresses.n < ASAN_LINKS_MAX ? n->storage_addresses.n : ASAN_LINKS_MAX;
    bool changed = false;
    for (int i = 0; i < p->n_links;) { /* those that go make room first */
        const char *address = p->link[i]->address;
        bool stays = !strcmp(address, n->addresses.v[0]);
        for (size_t k = 0; k < links; k++)
            stays |= !strcmp(address, n->storage_addresses.v[k]);
        if (stays) {
            i++;
        } else {
            plink_close(p, i);
            changed = true;
        }
    }
    for (size_t k = 0; k < links; k++)
        changed |= want_link(p, n->storage_addresses.v[k], false);
    changed |= want_link(p, n->addresses.v[0], links > 0);
    if (changed)
        recount(p);
}

static void peer_close(struct peer *p)
{
    LIST_REMOVE(p, entry);
    if (p->connected)
        disk_conn(p->a, p->node, false);
    while (p->n_links)
        plink_close(p, 0);
    publish(p->a);
    free(p);
}

static struct peer *peer_new(struct asan *a, const char *node)
{
    struct peer *p = xcalloc(1, sizeof *p);
    p->a = a;
    memcpy(p->node, node, strlen(node) + 1);
    LIST_INSERT_HEAD(&a->peers, p, entry);
    return p;
}

void peers_update(struct asan *a, const struct cdb_view *v)
{
    struct peer *p, *next;
    LIST_FOREACH (p, &a->peers, entry)
        p->seen = false;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (!strcmp(n->id, a->node_id) || strlen(n->id) != ID_LEN || !n->addresses.n || !n->addresses.v[0][0] ||
            n->storage_port <= 0 || n->storage_port > 65535)
            continue;
        p = peer_find(a, n->id);
        if (!p)
            p = peer_new(a, n->id);
        p->seen = true;
        update_links(p, n);
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
