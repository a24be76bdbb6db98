/* Watches this node's disks for being slow or frozen (health.h) and acts: an alert, or isolation. A disk is isolated only if
 * every shard keeps enough in-sync copies without it; until then its own copies are worth more than speed, and the
 * alert says so. Isolated: its incarnation is raised, so no write waits for it any more, and the coordinator makes its
 * copies anew elsewhere. Someone who trusts it again says `cohort disk use`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "cluster/copies.h"
#include "storage/asan/engine/priv.h"

LOG_MODULE("asan");

#define STEP_MS 1000
#define REPEAT_MS 10000 /* between attempts to isolate */

static void conf_of(const struct cdb_view *v, struct health_conf *c)
{
    *c = (struct health_conf)HEALTH_CONF_DEFAULT;
    c->slow_us = (uint64_t)cdb_setting(v, "disk_slow_ms", 1, 10000, (int64_t)c->slow_us / 1000) * 1000;
    c->bad_us = (uint64_t)cdb_setting(v, "disk_isolate_ms", 1, 60000, (int64_t)c->bad_us / 1000) * 1000;
    c->seconds = (int)cdb_setting(v, "disk_slow_s", 1, HEALTH_WINDOW_S, c->seconds);
}

static void done(void *arg, int status, const struct err *e)
{
    struct ldisk *d = arg;
    (void)e;
    d->health_busy = false;
    if (!status)
        d->health_told = d->health_telling;
}

static void event(struct cdb_txn *t, const struct ldisk *d, const char *severity, const char *message)
{
    char object[128];
    snprintf(object, sizeof object, "disk %s", d->name);
    cdb_txn_event(t, clock_wall_ms(), severity, object, message, d->a->node_id);
    log_warn("%s: %s", object, message);
}

static void commit(struct ldisk *d, struct cdb_txn *t, enum health_verdict verdict)
{
    d->health_busy = true;
    d->health_telling = verdict;
    d->health_retry_ms = now_ms() + REPEAT_MS;
    cdb_txn_commit(d->a->link, t, "health of disk", done, d);
}

static void what(enum health_verdict verdict, const struct health_conf *c, char *ret, size_t size)
{
    if (verdict == HEALTH_FROZEN)
        snprintf(ret, size, "has not answered for %llu s", (unsigned long long)c->frozen_ms / 1000);
    else
        snprintf(ret, size, "took %llu ms and more per request for %d s within 5 minutes",
                 (unsigned long long)(verdict == HEALTH_BAD ? c->bad_us : c->slow_us) / 1000, c->seconds);
}

static void isolate(struct ldisk *d, const struct cdb_view *v, const struct cdb_disk *row, const struct health_conf *c)
{
    char why[128], message[300];
    what(d->health.verdict, c, why, sizeof why);
    struct cdb_txn *t = cdb_txn_new();
    if (!copies_may_lose(v, d->id)) {
        snprintf(message, sizeof message, "%s; not isolated, because shards have too few other good copies: tried again every %d s", why,
                 REPEAT_MS / 1000);
        if (d->health_told == d->health.verdict) {
            cdb_txn_free(t); /* said before */
            d->health_retry_ms = now_ms() + REPEAT_MS;
            return;
        }
        event(t, d, "alarm", message);
        commit(d, t, d->health.verdict);
        return;
    }
    snprintf(message, sizeof message, "%s: isolated; its copies are made anew on other disks. When it is well again: cohort disk use", why);
    copies_require_may_lose(t, v, d->id);
    copies_distrust(t, row);
    cdb_txn_require_str(t, CDB_T_DISK, d->id, CDB_DISK_state, row->state);
    cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_state, "isolated");
    cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_message, message);
    event(t, d, "alarm", message);
    commit(d, t, d->health.verdict);
}

static void step(struct ldisk *d, const struct cdb_view *v, const struct cdb_disk *row, const struct health_conf *c)
{
    struct health_sample s;
    char why[128], message[300];
    store_io_stats(d->store, &s.n, &s.sum_us, &s.oldest_ms);
    bool isolated = !strcmp(row->state, "isolated");
    if (d->was_isolated && !isolated) /* someone trusts it again: from the beginning */
        health_reset(&d->health);
    d->was_isolated = isolated;
    enum health_verdict verdict = health_step(&d->health, c, &s);
    if (d->health_busy || isolated || now_ms() < d->health_retry_ms)
        return;
    if (verdict >= HEALTH_BAD) {
        isolate(d, v, row, c);
    } else if (verdict != d->health_told) {
        struct cdb_txn *t = cdb_txn_new();
        what(verdict, c, why, sizeof why);
        snprintf(message, sizeof message, verdict == HEALTH_SLOW ? "%s: watch it, or replace it (cohort disk drain)" : "answers in time again", why);
        event(t, d, verdict == HEALTH_SLOW ? "warning" : "info", message);
        commit(d, t, verdict);
    }
}

void disk_health_tick(struct asan *a)
{
    const struct cdb_view *v = view_of(a);
    struct health_conf c;
    if (!v || !a->view_seen || now_ms() < a->health_ms)
        return;
    a->health_ms = now_ms() + STEP_MS;
    conf_of(v, &c);
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        const struct cdb_disk *row = cdb_disk_get(v, d->id);
        if (row && d->state == LD_READY && !d->reopening)
            step(d, v, row, &c);
    }
}
