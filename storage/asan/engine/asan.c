/* The engine's thread: start, stop, time, and calls from other threads. See asan.h and priv.h. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

uint64_t now_ms(void)
{
    return clock_boot_ms();
}

/* ---- later ---- */

#define LATER_ROUNDS 8 /* of callbacks that add callbacks, in one turn: they must not keep the loop from its descriptors */

/* After the loop has polled, so that what arrived is through before it polls again: a turn costs system calls. */
static void run_laters(uv_check_t *check)
{
    struct asan *a = check->data;
    struct later *l;
    for (int round = 0; round < LATER_ROUNDS && !TAILQ_EMPTY(&a->laters); round++) {
        TAILQ_HEAD(, later) now = TAILQ_HEAD_INITIALIZER(now);
        TAILQ_CONCAT(&now, &a->laters, entry);
        while ((l = TAILQ_FIRST(&now))) {
            TAILQ_REMOVE(&now, l, entry);
            l->run(l);
        }
    }
    if (TAILQ_EMPTY(&a->laters))
        uv_idle_stop(&a->idle);
}

/* Its being active keeps the loop from sleeping while there are laters. */
static void stay_awake(uv_idle_t *idle) { (void)idle; }

void later(struct asan *a, struct later *l, void (*run)(struct later *l))
{
    l->run = run;
    if (TAILQ_EMPTY(&a->laters))
        uv_idle_start(&a->idle, stay_awake);
    TAILQ_INSERT_TAIL(&a->laters, l, entry);
}

/* ---- time ---- */

/* Views reach threads one after the other: the lease of a node that came back must not let the cores of the old view serve. */
static bool view_is_of_lease(const struct asan *a)
{
    return a->self_epoch >= __atomic_load_n(&a->lease_epoch, __ATOMIC_ACQUIRE);
}

bool lease_check(struct asan *a)
{
    bool on = clock_boot_ns() < __atomic_load_n(&a->lease_until_ns, __ATOMIC_ACQUIRE) && view_is_of_lease(a);
    if (on == a->lease)
        return on;
    a->lease = on;
    log_info("node lease %s", on ? "granted: serving" : "over: requests wait");
    struct htab_node *n;
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        for (uint32_t i = 0; v->open && i < v->n_shards; i++)
            if (v->shard[i] && v->shard[i]->core) {
                owner_lease(v->shard[i]->core, on, now_ms());
                shard_after(v->shard[i]);
            }
    }
    return on;
}

static void on_tick(uv_timer_t *t)
{
    struct asan *a = t->data;
    if (a->stopping)
        return;
    lease_check(a);
    view_barrier(a);
    disks_tick(a);
    peers_tick(a);
    host_tick(a);
    own_tick(a);
    resync_tick(a);
    keys_tick(a);
    check_tick(a);
    lost_tick(a);
    scrub_tick(a);
    tidy_tick(a);
    disk_health_tick(a);
    snap_tick(a);
    reclaim_tick(a);
    front_tick(a);
    const struct cdb_view *view = view_of(a);
    usage_tick(a, view);
    struct htab_node *n, *next;
    bool recheck = a->recheck, here;
    a->recheck = false;
    HTAB_FOR_EACH_SAFE (n, next, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        if (!view || !a->view_seen || !v->seen)
            continue;
        if (v->deleting)
            drop_update(v, view);
        else if (recheck)
            v->maintain = resync_wanted(a, view, v, &here) && here;
        resync_orphan(v, view, now_ms());
    }
}

/* ---- calls that wait ---- */

struct sync {
    struct mail mail;
    struct asan *a;
    void (*fn)(struct sync *s); /* on the I/O thread; ends with sync_done(), now or later */
    bool done;
    const char *volume_id, *path;
    int status;
    struct err *e;
    char *text;
};

static void sync_done(void *arg)
{
    struct sync *s = arg;
    pthread_mutex_lock(&s->a->lock);
    s->done = true;
    pthread_cond_broadcast(&s->a->cond);
    pthread_mutex_unlock(&s->a->lock);
}

static void sync_run(struct mail *m)
{
    struct sync *s = container_of(m, struct sync, mail);
    s->fn(s);
}

static void sync_call(struct asan *a, struct sync *s, void (*fn)(struct sync *s))
{
    s->a = a;
    s->fn = fn;
    s->mail.run = sync_run;
    mailbox_post(&a->mailbox, &s->mail);
    pthread_mutex_lock(&a->lock);
    while (!s->done)
        pthread_cond_wait(&a->cond, &a->lock);
    pthread_mutex_unlock(&a->lock);
}

static void do_serve(struct sync *s)
{
    if (front_wait_volume(s->a, s->volume_id, &s->mail))
        return;
    s->status = front_vhost_serve(s->a, s->volume_id, s->path, s->e);
    sync_done(s);
}

int asan_vhost_serve(struct asan *a, const char *volume_id, const char *socket_path, struct err *e)
{
    struct sync s = {.volume_id = volume_id, .path = socket_path, .e = e};
    sync_call(a, &s, do_serve);
    return s.status;
}

static void do_unserve(struct sync *s)
{
    front_vhost_unserve(s->a, s->path, sync_done, s);
}

void asan_vhost_unserve(struct asan *a, const char *socket_path)
{
    struct sync s = {.path = socket_path};
    sync_call(a, &s, do_unserve);
}

static void do_dump(struct sync *s)
{
    s->text = dump_json(s->a, s->volume_id);
    sync_done(s);
}

char *asan_dump_json(struct asan *a, const char *volume_id)
{
    struct sync s = {.volume_id = volume_id};
    sync_call(a, &s, do_dump);
    return s.text;
}

/* ---- calls that do not ---- */

void asan_set_lease(struct asan *a, uint64_t until_boot_ns, int64_t node_epoch)
{
    /* In this order: who sees the new end of the lease sees its epoch. Epochs only grow. */
    __atomic_store_n(&a->lease_epoch, node_epoch, __ATOMIC_RELEASE);
    __atomic_store_n(&a->lease_until_ns, until_boot_ns, __ATOMIC_RELEASE);
}

uint16_t asan_port(const struct asan *a)
{
    return a->port;
}

void asan_io(struct asan *a, struct asan_io *io)
{
    io->asan = a;
    io->mail.run = front_io;
    mailbox_post(&a->mailbox, &io->mail);
}

void asan_changed(struct asan *a, struct asan_changed *q)
{
    q->asan = a;
    q->mail.run = changed_ask;
    mailbox_post(&a->mailbox, &q->mail);
}

void asan_claim(struct asan *a, struct asan_claim *c)
{
    c->asan = a;
    c->mail.run = front_claim;
    mailbox_post(&a->mailbox, &c->mail);
}

struct release {
    struct mail mail;
    struct asan *a;
    char volume_id[ID_LEN + 1];
};

static void do_release(struct mail *m)
{
    struct release *r = container_of(m, struct release, mail);
    front_release(r->a, r->volume_id);
    free(r);
}

void asan_release(struct asan *a, const char *volume_id)
{
    struct release *r = xcalloc(1, sizeof *r);
    r->a = a;
    r->mail.run = do_release;
    strncpy(r->volume_id, volume_id, ID_LEN);
    mailbox_post(&a->mailbox, &r->mail);
}

/* ---- stopping: front ends, then volumes and stores, then connections and the database ---- */

static void mailbox_closed(void *arg)
{
    (void)arg;
}

static void stop_connections(struct asan *a)
{
    peers_close(a);
    if (a->rpc)
        rpc_env_close(a->rpc);
    view_forget(a);
    if (a->link)
        cdb_link_close(a->link);
    a->link = NULL;
    a->self_epoch = -1;
    shard_batches_forget(a);
    uv_timer_stop(&a->tick);
    uv_close((uv_handle_t *)&a->tick, NULL);
    uv_timer_stop(&a->throttle);
    uv_close((uv_handle_t *)&a->throttle, NULL);
    mailbox_close(&a->mailbox, mailbox_closed, a);
}

static void stop_stores(struct asan *a)
{
    a->closing = a->open_stores;
    if (!a->closing)
        stop_connections(a);
    else
        disks_close(a);
}

void asan_closed_one(struct asan *a)
{
    if (!a->closing || --a->closing)
        return;
    if (a->stop_stage++ == 0)
        stop_stores(a);
    else
        stop_connections(a);
}

static void stop(struct asan *a)
{
    struct htab_node *n;
    a->stopping = true;
    a->closing = 1;
    snap_close(a);
    reclaim_close(a);
    front_close(a);
    HTAB_FOR_EACH (n, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        own_close(v);
        check_stop(v, "canceled");
        volume_cancel(v);
    }
    asan_closed_one(a);
}

static void do_stop(struct sync *s)
{
    stop(s->a);
    sync_done(s);
}

/* ---- the thread ---- */

static int open_all(struct asan *a, const struct asan_conf *c, struct err *e)
{
    int rc = rpc_env_open(&a->loop, &c->tls, &a->rpc, e);
    if (rc) {
        err_wrap(e, "storage identity");
        return rc;
    }
    server_register(a);
    rc = rpc_listen(a->rpc, c->listen_address, c->port, &a->server, e);
    if (rc) {
        err_wrap(e, "storage port");
        return rc;
    }
    a->port = rpc_server_port(a->server);
    struct rpc_server *also;
    for (int i = 0; i < a->n_links; i++)
        if ((rc = rpc_listen_early(a->rpc, a->link_address[i], a->port, &also, e))) {
            err_wrap(e, "storage link");
            return rc;
        }
    rc = front_open(a, c, e);
    if (rc) {
        err_wrap(e, "NBD");
        return rc;
    }
    disks_open(a);
    a->link = cdb_link_open(c->db, &a->loop, view_changed, a);
    return 0;
}

static void *thread(void *arg)
{
    struct asan *a = arg;
    struct htab_node *n, *next;
    uv_loop_init(&a->loop);
    uv_timer_init(&a->loop, &a->tick);
    a->tick.data = a;
    uv_timer_init(&a->loop, &a->throttle);
    a->throttle.data = a;
    uv_idle_init(&a->loop, &a->idle);
    uv_check_init(&a->loop, &a->check);
    a->check.data = a;
    uv_check_start(&a->check, run_laters);
    uv_unref((uv_handle_t *)&a->check);
    mailbox_open(&a->mailbox, &a->loop);
    mailbox_keep_alive(&a->mailbox, true);
    int rc = open_all(a, a->start_conf, &a->start_err);
    if (rc)
        stop(a);
    else
        uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
    pthread_mutex_lock(&a->lock);
    a->start_status = rc;
    a->started = true;
    pthread_cond_broadcast(&a->cond);
    pthread_mutex_unlock(&a->lock);
    uv_run(&a->loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&a->idle, NULL);
    uv_close((uv_handle_t *)&a->check, NULL);
    HTAB_FOR_EACH_SAFE (n, next, &a->volumes) {
        struct volume *v = container_of(n, struct volume, node);
        volume_free(v);
    }
    uv_run(&a->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&a->loop))
        log_err("storage loop still has handles at its end");
    return NULL;
}

static void free_asan(struct asan *a)
{
    for (int i = 0; i < a->n_disks; i++) {
        free(a->disk[i].name);
        free(a->disk[i].fast);
        free(a->disk[i].capacity);
    }
    for (uint32_t i = 0; i < a->n_gdisks; i++)
        free(a->gdisk[i]);
    free(a->gdisk);
    htab_destroy(&a->volumes);
    htab_destroy(&a->volumes_by_data);
    free(a->reclaim); /* whatever it waited for was given up */
    free(a->cluster_uuid);
    free(a->memory_dir);
    for (int i = 0; i < a->n_links; i++)
        free(a->link_address[i]);
    free(a->links);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->cond);
    free(a);
}

int asan_start(const struct asan_conf *conf, struct asan **ret_asan, struct err *e)
{
    if (conf->n_disks > ASAN_DISKS_MAX || conf->n_links > ASAN_LINKS_MAX || strlen(conf->node_id) != ID_LEN)
        return err_set(e, E_INVAL, "storage: bad node id or more than %d disks", ASAN_DISKS_MAX);
    struct asan *a = xcalloc(1, sizeof *a);
    a->self_epoch = -1;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->cond, NULL);
    TAILQ_INIT(&a->laters);
    TAILQ_INIT(&a->unknown);
    TAILQ_INIT(&a->dirty);
    TAILQ_INIT(&a->throttled);
    TAILQ_INIT(&a->earlies);
    htab_init(&a->volumes);
    pace_init(&a->pace, now_ms());
    htab_init(&a->volumes_by_data);
    LIST_INIT(&a->snaps);
    memcpy(a->node_id, conf->node_id, ID_LEN + 1);
    a->cluster_uuid = xstrdup(conf->cluster_uuid);
    a->memory_dir = conf->memory_dir ? xstrdup(conf->memory_dir) : NULL;
    a->journal_bytes = conf->journal_bytes;
    a->cache_bytes = conf->cache_bytes;
    a->n_links = conf->n_links;
    for (int i = 0; i < a->n_links; i++)
        a->link_address[i] = xstrdup(conf->links[i]);
    a->n_disks = conf->n_disks;
    for (int i = 0; i < conf->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        d->a = a;
        strncpy(d->id, conf->disks[i].id, ID_LEN);
        d->name = xstrdup(conf->disks[i].name);
        d->fast = xstrdup(conf->disks[i].fast);
        d->capacity = xstrdup(conf->disks[i].capacity);
        d->limit_bytes = conf->disks[i].limit_bytes;
    }
    a->start_conf = conf;
    int rc = pthread_create(&a->thread, NULL, thread, a);
    if (rc) {
        free_asan(a);
        return err_sys(e, rc, "storage thread");
    }
    pthread_mutex_lock(&a->lock);
    while (!a->started)
        pthread_cond_wait(&a->cond, &a->lock);
    pthread_mutex_unlock(&a->lock);
    if (a->start_status) {
        rc = err_set(e, a->start_status, "%s", a->start_err.msg);
        pthread_join(a->thread, NULL);
        free_asan(a);
        return rc;
    }
    *ret_asan = a;
    return 0;
}

void asan_stop(struct asan *a)
{
    if (!a)
        return;
    struct sync s = {0};
    sync_call(a, &s, do_stop);
    pthread_join(a->thread, NULL);
    free_asan(a);
}
