/* Guests' ports on br-int (local.h): a wanted list against the rows of the local Open vSwitch database. */
#include <config.h>

#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include "ovsdb-idl.h"
#include "smap.h"
#include "vswitch-idl.h"

#include "base/buf.h"
#include "base/log.h"
#include "cluster/dbthread.h"
#include "net/anet/local_priv.h"

LOG_MODULE("anet")

#define PORT_MARK "cohort-port"

static struct local_port *find_want(const struct local *l, const char *id)
{
    for (size_t i = 0; i < l->n_want; i++)
        if (!strcmp(l->want[i].id, id))
            return &l->want[i];
    return NULL;
}

static bool is_gone(const struct local *l, const char *id)
{
    for (size_t i = 0; i < l->n_gone; i++)
        if (!strcmp(l->gone[i], id))
            return true;
    return false;
}

/* Is this row of ours to be removed? */
static bool is_surplus(const struct local *l, const struct ovsrec_port *port, const char *id)
{
    const struct local_port *w = find_want(l, id);
    if (w)
        return strcmp(w->name, port->name) != 0; /* plugged anew with another tap */
    if (is_gone(l, id))
        return true;
    bool internal = port->n_interfaces && !strcmp(port->interfaces[0]->type, "internal");
    return !l->pruned && !internal && !if_nametoindex(port->name);
}

static bool remove_surplus(struct local *l, const struct ovsrec_bridge *br)
{
    bool any = false;
    for (size_t i = 0; i < br->n_ports; i++) {
        const char *id = smap_get(&br->ports[i]->external_ids, PORT_MARK);
        if (id && is_surplus(l, br->ports[i], id)) {
            log_info("port %s: %s unplugged", id, br->ports[i]->name);
            ovsrec_bridge_update_ports_delvalue(br, br->ports[i]);
            any = true;
        }
    }
    l->pruned = true;
    return any;
}

static bool fill_port(struct local *l, const struct ovsrec_bridge *br, const struct local_port *w)
{
    const struct ovsrec_port *port = NULL;
    for (size_t i = 0; i < br->n_ports; i++)
        if (!strcmp(br->ports[i]->name, w->name))
            port = br->ports[i];
    bool any = !port;
    if (!port) {
        port = local_insert_port(l, br, w->name, w->internal ? "internal" : "");
        struct smap mark = SMAP_CONST1(&mark, PORT_MARK, w->id), iface = SMAP_CONST1(&iface, "iface-id", w->id);
        ovsrec_port_set_external_ids(port, &mark);
        ovsrec_interface_set_external_ids(port->interfaces[0], &iface);
        log_info("port %s: %s plugged", w->id, w->name);
        return true;
    }
    const char *mark = smap_get(&port->external_ids, PORT_MARK);
    if (!mark || strcmp(mark, w->id)) {
        ovsrec_port_update_external_ids_setkey(port, PORT_MARK, w->id);
        any = true;
    }
    if (!port->n_interfaces)
        return any;
    const char *iface_id = smap_get(&port->interfaces[0]->external_ids, "iface-id");
    if (!iface_id || strcmp(iface_id, w->id)) {
        ovsrec_interface_update_external_ids_setkey(port->interfaces[0], "iface-id", w->id);
        any = true;
    }
    return any;
}

bool ports_fill(struct local *l, const struct ovsrec_bridge *br)
{
    bool removing = remove_surplus(l, br), any = removing;
    for (size_t i = 0; i < l->n_want; i++)
        any |= fill_port(l, br, &l->want[i]);
    if (!removing) { /* nothing of them is left in the database */
        for (size_t i = 0; i < l->n_gone; i++)
            free(l->gone[i]);
        l->n_gone = 0;
    }
    return any;
}

void ports_look(struct local *l)
{
    for (size_t i = 0; i < l->n_want; i++) {
        struct local_port *w = &l->want[i];
        bool up = false;
        const struct ovsrec_interface *iface;
        OVSREC_INTERFACE_FOR_EACH (iface, l->idl) {
            const char *id = smap_get(&iface->external_ids, "iface-id");
            if (id && !strcmp(id, w->id) && !strcmp(iface->name, w->name))
                up = iface->n_ofport && *iface->ofport > 0 && smap_get_bool(&iface->external_ids, "ovn-installed", false);
        }
        l->changed |= up != w->up;
        w->up = up;
    }
}

static void forget(struct local_port *p)
{
    free(p->id);
    free(p->name);
}

void ports_free(struct local *l)
{
    for (size_t i = 0; i < l->n_want; i++)
        forget(&l->want[i]);
    free(l->want);
    for (size_t i = 0; i < l->n_gone; i++)
        free(l->gone[i]);
    free(l->gone);
}

/* ---- main thread ---- */

void local_plug(struct local *l, const char *id, const char *name, bool internal)
{
    pthread_mutex_lock(&l->lock);
    for (size_t i = 0; i < l->n_want; i++)
        if (!strcmp(l->want[i].name, name) && strcmp(l->want[i].id, id)) { /* the tap changed hands */
            forget(&l->want[i]);
            l->want[i--] = l->want[--l->n_want];
        }
    struct local_port *w = find_want(l, id);
    if (!w) {
        l->want = xrealloc(l->want, (l->n_want + 1) * sizeof *l->want);
        w = &l->want[l->n_want++];
        *w = (struct local_port){.id = xstrdup(id)};
    }
    if (!w->name || strcmp(w->name, name) || w->internal != internal) {
        free(w->name);
        w->name = xstrdup(name);
        w->internal = internal;
        w->up = false;
    }
    for (size_t i = 0; i < l->n_gone; i++)
        if (!strcmp(l->gone[i], id)) {
            free(l->gone[i]);
            l->gone[i--] = l->gone[--l->n_gone];
        }
    l->dirty = true;
    l->look = true; /* the port may have been there, and up, all along */
    pthread_mutex_unlock(&l->lock);
    dbthread_wake();
}

void local_unplug(struct local *l, const char *id)
{
    pthread_mutex_lock(&l->lock);
    struct local_port *w = find_want(l, id);
    if (w) {
        forget(w);
        *w = l->want[--l->n_want];
    }
    if (!is_gone(l, id)) {
        l->gone = xrealloc(l->gone, (l->n_gone + 1) * sizeof *l->gone);
        l->gone[l->n_gone++] = xstrdup(id);
    }
    l->dirty = true;
    pthread_mutex_unlock(&l->lock);
    dbthread_wake();
}

bool local_port_is_up(struct local *l, const char *id)
{
    pthread_mutex_lock(&l->lock);
    const struct local_port *w = find_want(l, id);
    bool up = w && w->up;
    pthread_mutex_unlock(&l->lock);
    return up;
}

void local_take_news(struct local *l, void (*fn)(void *arg, const char *id, bool up), void *arg)
{
    struct { char *id; bool up; } *news;
    size_t n = 0;
    pthread_mutex_lock(&l->lock);
    news = xcalloc(l->n_want + 1, sizeof *news);
    for (size_t i = 0; i < l->n_want; i++) {
        struct local_port *w = &l->want[i];
        if (w->up == w->reported)
            continue;
        w->reported = w->up;
        news[n].id = xstrdup(w->id);
        news[n++].up = w->up;
    }
    pthread_mutex_unlock(&l->lock);
    for (size_t i = 0; i < n; i++) {
        fn(arg, news[i].id, news[i].up);
        free(news[i].id);
    }
    free(news);
}

void local_get_status(struct local *l, struct local_status *ret)
{
    pthread_mutex_lock(&l->lock);
    *ret = l->status;
    ret->n_ports = l->n_want;
    ret->ports = xcalloc(l->n_want + 1, sizeof *ret->ports);
    for (size_t i = 0; i < l->n_want; i++) {
        ret->ports[i] = l->want[i];
        ret->ports[i].id = xstrdup(l->want[i].id);
        ret->ports[i].name = xstrdup(l->want[i].name);
    }
    pthread_mutex_unlock(&l->lock);
}

void local_status_free(struct local_status *s)
{
    for (size_t i = 0; i < s->n_ports; i++)
        forget(&s->ports[i]);
    free(s->ports);
    *s = (struct local_status){0};
}
