/* Private to migrate/. */
#ifndef COHORT_MIGRATE_INT_H
#define COHORT_MIGRATE_INT_H

#include <sys/queue.h>
#include "base/sm.h"
#include "migrate/migrate.h"

struct job;      /* source.c: one migration out */
struct incoming; /* dest.c: one migration in */
TAILQ_HEAD(jobs, job);
TAILQ_HEAD(incomings, incoming);

struct migrate {
    struct migrate_conf conf;
    char *address;
    const char *self; /* node id */
    struct jobs jobs;
    struct incomings incomings;
};

/* A timer that frees itself, so that its owner may go at any time. */
struct tick;
typedef void tick_fn(void *arg);
struct tick *tick_start(uv_loop_t *loop, unsigned every_ms, tick_fn *fn, void *arg);
void tick_stop(struct tick *t); /* NULL is fine */

/* source.c */
bool source_owns(const struct migrate *mg, const char *machine);
void source_machine_changed(struct migrate *mg, struct machine *m);
void source_db_changed(struct migrate *mg);
void source_close(struct migrate *mg);

/* dest.c */
void dest_open(struct migrate *mg); /* registers the handlers */
bool dest_owns(const struct migrate *mg, const char *machine);
void dest_machine_changed(struct migrate *mg, struct machine *m);
void dest_db_changed(struct migrate *mg);
void dest_close(struct migrate *mg);

#endif
