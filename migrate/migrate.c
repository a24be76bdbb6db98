/* Live migration: the parts that source and destination share. See migrate.h. */
#include <stdlib.h>
#include "base/buf.h"
#include "migrate/migrate_int.h"

struct tick {
    uv_timer_t timer;
    tick_fn *fn;
    void *arg;
};

static void on_tick(uv_timer_t *t)
{
    struct tick *k = t->data;
    k->fn(k->arg);
}

struct tick *tick_start(uv_loop_t *loop, unsigned every_ms, tick_fn *fn, void *arg)
{
    struct tick *k = xcalloc(1, sizeof *k);
    k->fn = fn;
    k->arg = arg;
    k->timer.data = k;
    uv_timer_init(loop, &k->timer);
    uv_timer_start(&k->timer, on_tick, every_ms, every_ms);
    return k;
}

static void on_closed(uv_handle_t *h) { free(h->data); }

void tick_stop(struct tick *t)
{
    if (t)
        uv_close((uv_handle_t *)&t->timer, on_closed);
}

int migrate_open(const struct migrate_conf *conf, struct migrate **ret_mg, struct err *e)
{
    if (conf->first_port == 0)
        return err_set(e, E_INVAL, "migration: port 0");
    struct migrate *mg = xcalloc(1, sizeof *mg);
    mg->conf = *conf;
    mg->address = xstrdup(conf->address);
    mg->self = rpc_env_self(conf->rpc);
    TAILQ_INIT(&mg->jobs);
    TAILQ_INIT(&mg->incomings);
    dest_open(mg);
    *ret_mg = mg;
    return E_OK;
}

void migrate_close(struct migrate *mg)
{
    if (!mg)
        return;
    source_close(mg);
    dest_close(mg);
    free(mg->address);
    free(mg);
}

bool migrate_owns(const struct migrate *mg, const char *machine) { return source_owns(mg, machine) || dest_owns(mg, machine); }

void migrate_db_changed(struct migrate *mg)
{
    source_db_changed(mg);
    dest_db_changed(mg);
}

void migrate_machine_changed(struct migrate *mg, struct machine *m)
{
    source_machine_changed(mg, m);
    dest_machine_changed(mg, m);
}
