/* All guests of this node. See machine.h. The life of one: machine_run.c, machine_status.c, machine_op.c. */
#include "compute/machine.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "compute/machine_int.h"

LOG_MODULE("asv");

#define LONGEST_SOCKET "/vm/00000000-0000-0000-0000-000000000000/console.sock"
#define SPEC_MAX_BYTES (64u << 10)

/* Rate of the time stamp counter in kHz, by 5 ms of comparison with the system's clock; QEMU passes it to guests that
 * cannot measure it themselves (qemu/args.c). */
static unsigned measure_tsc_khz(void)
{
    struct timespec a, b;
    uint64_t t0 = __builtin_ia32_rdtsc(), t1, ns;
    clock_gettime(CLOCK_MONOTONIC_RAW, &a);
    do {
        t1 = __builtin_ia32_rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &b);
        ns = (uint64_t)(b.tv_sec - a.tv_sec) * 1000000000u + (uint64_t)b.tv_nsec - (uint64_t)a.tv_nsec;
    } while (ns < 5000000);
    return (unsigned)((t1 - t0) * 1000000 / ns);
}

int machines_open(const struct machines_conf *conf, struct machines **ret_ms, struct err *e)
{
    if (strlen(conf->run_dir) + sizeof LONGEST_SOCKET > MACHINE_SOCK_MAX)
        return err_set(e, E_INVAL, "run directory %s: too long for the sockets in it", conf->run_dir);
    struct machines *ms = xcalloc(1, sizeof *ms);
    ms->conf = *conf;
    ms->run_dir = xstrdup(conf->run_dir);
    ms->lease_path = xstrdup(conf->lease_path);
    ms->qemu_path = conf->qemu_path ? xstrdup(conf->qemu_path) : NULL;
    ms->guard_path = xstrdup(conf->guard_path);
    htab_init(&ms->all);
    char dir[MACHINE_PATH_MAX];
    snprintf(dir, sizeof dir, "%s/vm", conf->run_dir);
    int rc = file_mkdirs(dir, 0755, e);
    if (rc == E_OK)
        rc = lease_create(ms->lease_path, &ms->lease, e);
    if (rc != E_OK) {
        machines_close(ms);
        return rc;
    }
    cgroups_open(&ms->cgroups, conf->cgroup);
    if (ms->cgroups.n == 0 && conf->cgroup)
        log_warn("guests run without resource limits: %s", ms->cgroups.why_not);
    ms->tsc_khz = measure_tsc_khz();
    *ret_ms = ms;
    return E_OK;
}

void machines_close(struct machines *ms)
{
    if (!ms)
        return;
    struct htab_node *n;
    while ((n = htab_first(&ms->all))) {
        struct machine *m = container_of(n, struct machine, node);
        machine_detach(m, E_CANCELED);
        machine_delete(m);
    }
    htab_destroy(&ms->all);
    cgroups_close(&ms->cgroups); /* the parent group, if no guest is left in it */
    lease_close(&ms->lease);
    free(ms->run_dir);
    free(ms->lease_path);
    free(ms->qemu_path);
    free(ms->guard_path);
    free(ms);
}

/* True if a guest with that directory name lives; otherwise its remains are removed. */
static bool adopt_one(struct machines *ms, const char *id)
{
    char path[MACHINE_PATH_MAX], *text;
    size_t len;
    struct machine_spec spec;
    struct proc proc;
    struct err e;
    machine_path(ms, id, "spec.json", path);
    if (file_read(path, SPEC_MAX_BYTES, &text, &len, NULL) != E_OK)
        return false; /* a directory of disk sockets only: the daemon's */
    int rc = machine_spec_parse(text, len, &spec, &e);
    free(text);
    if (rc != E_OK || strcmp(spec.id, id) != 0) {
        log_err("guest directory %s is damaged, left as it is: %s", path, rc != E_OK ? e.msg : "it names another machine");
        return false;
    }
    machine_path(ms, id, "qemu.pid", path);
    if (proc_adopt(path, &proc, NULL) != E_OK) {
        log_info("machine %s (generation %lld) ended while the daemon was away", spec.name, (long long)spec.generation);
        machine_clean_up(ms, &spec);
        return false;
    }
    struct machine *m = machine_new(ms, &spec);
    m->qemu = proc;
    machine_watch_process(m);
    machine_guard_adopt(m);
    machine_connect(m);
    log_info("machine %s (generation %lld) found running, process %d", spec.name, (long long)spec.generation, (int)proc.pid);
    if (machine_frozen(m)) {
        machine_say(m, "frozen by its guard: the lease had run out");
        machine_move(m, MACHINE_PAUSED);
    }
    return true;
}

int machines_adopt(struct machines *ms)
{
    char dir[MACHINE_PATH_MAX];
    snprintf(dir, sizeof dir, "%s/vm", ms->run_dir);
    DIR *d = opendir(dir);
    struct id id;
    int n = 0;
    for (struct dirent *de; d && (de = readdir(d));)
        if (id_parse(de->d_name, &id) && !machines_find(ms, de->d_name))
            n += adopt_one(ms, de->d_name);
    if (d)
        closedir(d);
    return n;
}

int machine_start(struct machines *ms, const struct machine_spec *spec, struct machine **ret_m, struct err *e)
{
    int rc = machine_spec_check(spec, e);
    if (rc != E_OK)
        return rc;
    if (machines_find(ms, spec->id))
        return err_set(e, E_EXISTS, "machine %s is on this node already", spec->name);
    struct machine *m = machine_new(ms, spec);
    m->fresh = true;
    rc = machine_launch(m, e);
    if (rc != E_OK) {
        machine_delete(m);
        return rc;
    }
    machine_watch_process(m);
    machine_connect(m);
    log_info("machine %s (generation %lld) started, process %d, %lld MiB, %s%s", spec->name, (long long)spec->generation,
             (int)m->qemu.pid, (long long)(machine_ram_bytes(spec) >> 20), machine_accel_name(spec->accel),
             spec->incoming ? ", waits for a migration" : "");
    *ret_m = m;
    return E_OK;
}

void machine_free(struct machine *m)
{
    if (!m)
        return;
    machine_dir_remove(m->ms, m->spec.id); /* if only the sockets of its disks had kept it */
    machine_delete(m);
}

struct machine *machines_find(struct machines *ms, const char *id)
{
    struct htab_node *n;
    HTAB_FOR_EACH_WITH_HASH (n, hash_str(id), &ms->all) {
        struct machine *m = container_of(n, struct machine, node);
        if (strcmp(m->spec.id, id) == 0)
            return m;
    }
    return NULL;
}

static struct machine *of_node(struct htab_node *n) { return n ? container_of(n, struct machine, node) : NULL; }
struct machine *machines_first(struct machines *ms) { return of_node(htab_first(&ms->all)); }
struct machine *machines_next(struct machines *ms, struct machine *m) { return of_node(htab_next(&ms->all, &m->node)); }

const struct machine_spec *machine_spec(const struct machine *m) { return &m->spec; }
enum machine_state machine_state(const struct machine *m) { return (enum machine_state)m->sm.state; }
enum machine_end machine_end(const struct machine *m) { return m->end; }
const char *machine_message(const struct machine *m) { return m->message; }
pid_t machine_pid(const struct machine *m) { return m->qemu.pid; }
void machine_set_priv(struct machine *m, void *priv) { m->priv = priv; }
void *machine_priv(const struct machine *m) { return m->priv; }

void machine_console_path(const struct machine *m, char ret_path[108])
{
    char path[MACHINE_PATH_MAX];
    machine_path(m->ms, m->spec.id, "console.sock", path);
    snprintf(ret_path, 108, "%.107s", path);
}
