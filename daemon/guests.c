/* The guests' reconciler. One pass per wake-up: for every guest that runs here or should, compare and act. */
#include "daemon/guests.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/htab.h"
#include "base/log.h"
#include "daemon/facts.h"
#include "daemon/guest_txn.h"
#include "daemon/images.h"
#include "daemon/moves.h"
#include "ha/ha.h"
#include "net/anet/anet.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("guests");

#define LOOK_MS 500           /* also looks this often, for what no event tells (a lease that came back) */
#define STOP_GRACE_MS 30000
#define RETRY_MIN_MS 1000
#define RETRY_MAX_MS 30000

struct guest {
    char id[ID_LEN + 1];
    struct guests *all;
    bool busy;         /* a transaction or monitor command of ours is under way: wait for it */
    bool attached;     /* disks served, ports plugged in this life of the daemon */
    bool stopping;
    bool adopted;      /* ran before this life of the daemon: a migration of that life may be half done */
    uint64_t retry_at_ms;
    unsigned retry_ms;
    int n_sockets, n_ports;
    char socket[MACHINE_DISKS_MAX][MACHINE_SOCK_MAX], port[MACHINE_NICS_MAX][80];
    char told[400];    /* last problem logged, so that a repetition is logged once */
    LIST_ENTRY(guest) entry;
};

struct guests {
    struct daemon *d;
    struct machines *machines;
    struct images *images;
    LIST_HEAD(, guest) list;
    uv_timer_t timer;
    uv_idle_t soon;
    bool closing;
    int handles;
};

static void look(struct guests *g);

static struct guest *guest_find(struct guests *g, const char *id)
{
    struct guest *x;
    LIST_FOREACH (x, &g->list, entry)
        if (!strcmp(x->id, id))
            return x;
    return NULL;
}

static struct guest *guest_get(struct guests *g, const char *id)
{
    struct guest *x = guest_find(g, id);
    if (x)
        return x;
    x = xcalloc(1, sizeof *x);
    x->all = g;
    snprintf(x->id, sizeof x->id, "%s", id);
    LIST_INSERT_HEAD(&g->list, x, entry);
    return x;
}

bool guests_settled(struct guests *g, const char *id)
{
    const struct guest *x = guest_find(g, id);
    return x && x->attached && !x->adopted && !x->busy;
}

struct machines *guests_machines(struct guests *g)
{
    return g->machines;
}

/* ---- what a guest needs on this node ---- */

static const struct cdb_view *view(const struct guests *g)
{
    return cdb_link_view(g->d->link);
}

static int attach_disks(struct guest *x, const struct cdb_machine *m, struct machine_spec *spec, struct err *e)
{
    struct daemon *d = x->all->d;
    for (size_t i = 0; i < m->disks.n; i++) {
        const char *colon = strchr(m->disks.v[i], ':');
        int slot = atoi(m->disks.v[i]);
        if (!colon || slot < 0 || slot >= MACHINE_DISKS_MAX || i >= MACHINE_DISKS_MAX)
            return err_set(e, E_CORRUPT, "disk entry '%s' in the database is damaged", m->disks.v[i]);
        struct machine_disk *disk = &spec->disks[spec->n_disks++];
        disk->slot = slot;
        int n = snprintf(disk->socket, sizeof disk->socket, "%s/vm/%s/disk%d.sock", d->conf.run_dir, m->id, slot);
        if (n >= (int)sizeof disk->socket)
            return err_set(e, E_INVAL, "run_dir %s is too long for a socket path", d->conf.run_dir);
        int rc = asan_vhost_serve(d->asan, colon + 1, disk->socket, e);
        if (rc && rc != E_EXISTS) {
            err_wrap(e, "disk %d", slot);
            return rc;
        }
        memcpy(x->socket[x->n_sockets++], disk->socket, sizeof disk->socket);
    }
    return 0;
}

static int attach_ports(struct guest *x, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *spec,
                        struct err *e)
{
    for (size_t i = 0; i < m->ports.n; i++) {
        const char *colon = strchr(m->ports.v[i], ':');
        const struct cdb_port *p = colon ? cdb_port_get(v, colon + 1) : NULL;
        const struct cdb_network *net = p ? cdb_network_get(v, p->network) : NULL;
        if (!net || i >= MACHINE_NICS_MAX)
            return err_set(e, E_CORRUPT, "port entry '%s': no such port or network in the database", m->ports.v[i]);
        struct machine_nic *nic = &spec->nics[spec->n_nics++];
        nic->slot = atoi(m->ports.v[i]);
        snprintf(nic->tap, sizeof nic->tap, "ct%08x", (unsigned)hash_str(p->id));
        snprintf(nic->mac, sizeof nic->mac, "%s", p->mac);
        nic->mtu = net->mtu ? (int)net->mtu : anet_guest_mtu(1500);
        int rc = anet_plug(x->all->d->anet, p->id, nic->tap, e);
        if (rc) {
            err_wrap(e, "port %s", p->id);
            return rc;
        }
        snprintf(x->port[x->n_ports++], sizeof x->port[0], "%s", p->id);
    }
    return 0;
}

static void detach(struct guest *x)
{
    for (int i = 0; i < x->n_sockets; i++)
        asan_vhost_unserve(x->all->d->asan, x->socket[i]);
    for (int i = 0; i < x->n_ports; i++)
        anet_unplug(x->all->d->anet, x->port[i]);
    x->n_sockets = x->n_ports = 0;
    x->attached = false;
}

static int attach(struct guest *x, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *spec, struct err *e)
{
    char dir[MACHINE_PATH_MAX];
    x->n_sockets = x->n_ports = 0;
    snprintf(dir, sizeof dir, "%s/vm/%s", x->all->d->conf.run_dir, m->id);
    int rc = file_mkdirs(dir, 0700, e);
    if (!rc)
        rc = attach_disks(x, m, spec, e);
    if (!rc)
        rc = attach_ports(x, v, m, spec, e);
    x->attached = rc == 0;
    return rc;
}

bool guests_image_ready(struct guests *g, const struct cdb_view *v, const struct cdb_machine *m)
{
    return !m->image[0] || images_ready(g->images, m->image);
}

static int fill(struct guests *g, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *s, struct err *e)
{
    const struct cdb_node *self = cdb_node_get(v, g->d->node_id);
    const char *accel = strcmp(m->accel, "auto") ? m->accel : self ? self->accel : "tcg";
    *s = (struct machine_spec){.generation = m->generation, .vcpus = (int)m->vcpus, .memory_bytes = m->memory_bytes};
    snprintf(s->id, sizeof s->id, "%s", m->id);
    snprintf(s->name, sizeof s->name, "%s", m->name);
    if (!machine_type_parse(m->type, &s->type) || !machine_accel_parse(accel, &s->accel))
        return err_set(e, E_CORRUPT, "machine type '%s' or accel '%s' is unknown to this node", m->type, accel);
    if (s->accel == MACHINE_KVM)
        snprintf(s->cpu, sizeof s->cpu, "%s", facts_accel()->kvm_cpu);
    return m->image[0] ? images_spec(g->images, v, m, s, e) : 0;
}

int guests_prepare(struct guests *g, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *ret_spec,
                   struct err *e)
{
    struct guest *x = guest_get(g, m->id);
    int rc = fill(g, v, m, ret_spec, e);
    if (!rc)
        rc = attach(x, v, m, ret_spec, e);
    if (rc)
        detach(x);
    return rc;
}

/* ---- acting ---- */

static void problem(struct guest *x, const struct cdb_machine *m, const struct err *e)
{
    if (strcmp(x->told, e->msg)) {
        snprintf(x->told, sizeof x->told, "%.399s", e->msg);
        log_err("vm %s: %s; trying again", m ? m->name : x->id, e->msg);
    }
    x->retry_ms = x->retry_ms ? x->retry_ms * 2 : RETRY_MIN_MS;
    if (x->retry_ms > RETRY_MAX_MS)
        x->retry_ms = RETRY_MAX_MS;
    x->retry_at_ms = clock_boot_ms() + x->retry_ms;
}

static void on_txn(void *arg, int status, const struct err *e)
{
    struct guest *x = arg;
    x->busy = false;
    if (status && status != E_CONFLICT) {
        log_warn("vm %s: %s", x->id, e->msg);
        x->retry_at_ms = clock_boot_ms() + RETRY_MIN_MS;
    }
    guests_wake(x->all);
}

static void commit(struct guest *x, struct cdb_txn *t, const char *note)
{
    x->busy = true;
    cdb_txn_commit(x->all->d->link, t, note, on_txn, x);
}

static bool lease_valid(const struct guests *g)
{
    return clock_boot_ns() < ha_lease_until_ns(g->d->ha);
}

static void start(struct guest *x, const struct cdb_view *v, const struct cdb_machine *m)
{
    struct guests *g = x->all;
    struct machine_spec spec;
    struct machine *started;
    struct err e = {0};
    if (clock_boot_ms() < x->retry_at_ms || !lease_valid(g) || !guests_image_ready(g, v, m))
        return;
    int rc = guests_prepare(g, v, m, &spec, &e);
    if (!rc)
        rc = machine_start(g->machines, &spec, &started, &e);
    if (rc) {
        detach(x);
        problem(x, m, &e);
        if (strcmp(m->message, x->told))
            commit(x, guest_txn_state(g->d, m, "starting", x->told), "guest cannot start");
        return;
    }
    x->stopping = false;
    log_info("vm %s: started (generation %lld)", m->name, (long long)m->generation);
}

static void on_resumed(struct machine *m, int status, const struct err *e, void *arg)
{
    struct guest *x = arg;
    x->busy = false;
    if (status && status != E_CANCELED)
        log_warn("vm %s: cannot go on yet: %s", machine_spec(m)->name, e->msg);
    x->retry_at_ms = status ? clock_boot_ms() + RETRY_MIN_MS : 0;
    guests_wake(x->all);
}

/* The process is gone: clean up, and say in the database what follows. */
static void ended(struct guest *x, const struct cdb_machine *row, struct machine *m)
{
    struct guests *g = x->all;
    bool current = row && !strcmp(row->host, g->d->node_id) && row->generation == machine_spec(m)->generation;
    enum machine_end how = machine_end(m);
    char why[300];
    snprintf(why, sizeof why, "%.299s", machine_message(m));
    log_info("vm %s: ended%s%s", machine_spec(m)->name, why[0] ? ": " : "", why);
    machine_free(m);
    detach(x);
    x->stopping = false;
    if (!current || strcmp(row->desired, "running"))
        return; /* the next look goes on from the row alone */
    if (how == MACHINE_END_GUEST) {
        commit(x, guest_txn_stopped(g->d, view(g), row, "the guest switched itself off", false), "guest switched itself off");
        return;
    }
    struct err e;
    err_set(&e, E_IO, "%s", why[0] ? why : "its process ended");
    problem(x, row, &e);
    if (!strcmp(row->ha_policy, "restart"))
        commit(x, guest_txn_again(g->d, row, why), "restart guest here");
    else
        commit(x, guest_txn_stopped(g->d, view(g), row, why, true), "guest failed");
}

/* It stands still, by its guard when the lease ran out or by a migration that did not happen. */
static void go_on(struct guest *x, const struct cdb_machine *row, struct machine *m)
{
    if (!lease_valid(x->all) || clock_boot_ms() < x->retry_at_ms)
        return;
    log_info("vm %s: goes on here", row->name);
    x->busy = true;
    machine_resume(m, on_resumed, x);
}

static void on_cancelled(struct machine *m, int status, const struct err *e, void *arg)
{
    (void)arg;
    if (status && status != E_CANCELED)
        log_warn("vm %s: cancelling the old migration: %s", machine_spec(m)->name, e->msg);
}

/* It runs here and should. */
static void keep(struct guest *x, const struct cdb_view *v, const struct cdb_machine *row, struct machine *m)
{
    struct guests *g = x->all;
    struct err e = {0};
    if (!x->attached) { /* adopted */
        struct machine_spec again;
        if (guests_prepare(g, v, row, &again, &e)) {
            problem(x, row, &e);
            return;
        }
        x->adopted = true;
    }
    if (x->adopted && machine_state(m) != MACHINE_STARTING && !row->migrate_to[0])
        x->adopted = false;
    if (x->adopted && machine_state(m) != MACHINE_STARTING) {
        /* A migration whose driver was our previous life: only once the wish for it is withdrawn can no stray switchover
         * transaction succeed any more (migrate/migrate.h). */
        machine_migrate_cancel(m, on_cancelled, x);
        x->adopted = false;
        commit(x, guest_txn_not_moved(g->d, row, "the migration ended with a restart of the node's daemon"), "migration withdrawn");
        return;
    }
    switch (machine_state(m)) {
    case MACHINE_RUNNING:
        if (machine_frozen(m)) {
            go_on(x, row, m);
            break;
        }
        x->retry_ms = 0;
        x->told[0] = 0;
        if (strcmp(row->state, "running"))
            commit(x, guest_txn_state(g->d, row, "running", ""), "guest runs");
        break;
    case MACHINE_PAUSED:
    case MACHINE_MOVED: /* the database says that it did not move */
        go_on(x, row, m);
        break;
    case MACHINE_INCOMING: /* no migration knows of it: a left-over of one that failed while we were away */
        machine_kill(m);
        break;
    default:
        break;
    }
}

static void look_at(struct guest *x, const struct cdb_view *v)
{
    struct guests *g = x->all;
    const struct cdb_machine *row = cdb_machine_get(v, x->id);
    struct machine *m = machines_find(g->machines, x->id);
    bool ours = row && !strcmp(row->host, g->d->node_id);
    if (x->busy || moves_owns(g->d->moves, x->id))
        return;
    if (m && machine_state(m) == MACHINE_ENDED) {
        ended(x, row, m);
        guests_wake(g);
        return;
    }
    if (m && (!ours || row->generation != machine_spec(m)->generation)) {
        log_info("vm %s: ends here: %s", machine_spec(m)->name,
                 !row ? "it was deleted" : !ours ? "it runs on another node or was stopped" : "a newer life of it is due");
        machine_kill(m);
    } else if (m && strcmp(row->desired, "running")) {
        if (!x->stopping)
            machine_stop(m, STOP_GRACE_MS);
        x->stopping = true;
    } else if (m) {
        keep(x, v, row, m);
    } else if (ours && !strcmp(row->desired, "running")) {
        start(x, v, row);
    } else if (ours) {
        commit(x, guest_txn_stopped(g->d, v, row, "", false), "guest is stopped");
    } else {
        detach(x);
        LIST_REMOVE(x, entry);
        free(x);
    }
}

static void look(struct guests *g)
{
    const struct cdb_view *v = view(g);
    const struct machine *m;
    if (!v || g->closing)
        return;
    for (m = machines_first(g->machines); m; m = machines_next(g->machines, (struct machine *)m))
        guest_get(g, machine_spec(m)->id);
    for (size_t i = 0; i < cdb_machine_count(v); i++) {
        const struct cdb_machine *row = cdb_machine_at(v, i);
        if (!strcmp(row->host, g->d->node_id))
            guest_get(g, row->id);
    }
    for (struct guest *x = LIST_FIRST(&g->list), *next; x; x = next) {
        next = LIST_NEXT(x, entry);
        look_at(x, v);
    }
}

/* ---- life ---- */

static void on_timer(uv_timer_t *t)
{
    look(t->data);
}

static void on_soon(uv_idle_t *i)
{
    uv_idle_stop(i);
    look(i->data);
}

void guests_wake(struct guests *g)
{
    if (g && !g->closing)
        uv_idle_start(&g->soon, on_soon);
}

static void on_machine(struct machine *m, void *arg)
{
    struct guests *g = arg;
    moves_machine_changed(g->d->moves, m);
    guests_wake(g);
}

static void on_image(void *arg)
{
    struct guests *g = arg;
    moves_image_ready(g->d->moves);
    guests_wake(g);
}

/* Programs of ours lie beside the daemon, whether installed or in the build tree. */
static char *beside_us(const char *name)
{
    char self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    return xasprintf("%s/%s", slash ? self : ".", name);
}

int guests_open(struct daemon *d, struct guests **ret_guests, struct err *e)
{
    struct guests *g = xcalloc(1, sizeof *g);
    g->d = d;
    LIST_INIT(&g->list);
    char *lease = xasprintf("%s/lease", d->conf.run_dir), *guard = beside_us("cohort-guard");
    char *cgroup = xasprintf("cohort/%s", d->conf.node_name);
    struct machines_conf mc = {.loop = d->loop, .run_dir = d->conf.run_dir, .lease_path = lease, .guard_path = guard,
                               .cgroup = cgroup, .changed = on_machine, .arg = g};
    int rc = machines_open(&mc, &g->machines, e);
    free(lease);
    free(guard);
    free(cgroup);
    if (rc) {
        free(g);
        return rc;
    }
    g->images = images_open(d, on_image, g);
    uv_timer_init(d->loop, &g->timer);
    uv_idle_init(d->loop, &g->soon);
    g->timer.data = g->soon.data = g;
    g->handles = 2;
    uv_timer_start(&g->timer, on_timer, LOOK_MS, LOOK_MS);
    int n = machines_adopt(g->machines);
    if (n)
        log_info("%d guest%s ran on while the daemon was away", n, n == 1 ? "" : "s");
    *ret_guests = g;
    return 0;
}

static void handle_closed(uv_handle_t *h)
{
    struct guests *g = h->data;
    if (--g->handles == 0)
        free(g);
}

void guests_close(struct guests *g)
{
    if (!g || g->closing)
        return;
    g->closing = true;
    machines_close(g->machines);
    images_close(g->images);
    for (struct guest *x; (x = LIST_FIRST(&g->list));) {
        cdb_txn_cancel(g->d->link, x);
        LIST_REMOVE(x, entry);
        free(x);
    }
    uv_close((uv_handle_t *)&g->timer, handle_closed);
    uv_close((uv_handle_t *)&g->soon, handle_closed);
}
