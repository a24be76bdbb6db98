/* Facts about this node. */
#include "daemon/facts.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "compute/hostcheck/hostcheck.h"

LOG_MODULE("daemon");

int64_t facts_cpus(void)
{
    return sysconf(_SC_NPROCESSORS_ONLN);
}

int64_t facts_memory_bytes(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

int64_t facts_disk_bytes(const char *capacity_path)
{
    struct statvfs s;
    int fd = open(capacity_path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    off_t raw = fd >= 0 && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) ? lseek(fd, 0, SEEK_END) : 0;
    if (fd >= 0)
        close(fd);
    if (raw > 0)
        return raw;
    return statvfs(capacity_path, &s) ? 0 : (int64_t)(s.f_blocks * s.f_frsize);
}

static void measure(struct facts_accel *ret)
{
    struct hostcheck h;
    hostcheck_run(NULL, &h);
    snprintf(ret->accel, sizeof ret->accel, "%s", machine_accel_name(h.accel));
    snprintf(ret->reason, sizeof ret->reason, "%s", h.reason);
    snprintf(ret->kvm_cpu, sizeof ret->kvm_cpu, "%s", h.kvm_cpu);
}

const struct facts_accel *facts_accel(void)
{
    static struct facts_accel a;
    static bool measured;
    if (!measured)
        measure(&a);
    measured = true;
    return &a;
}

struct publish {
    uv_work_t work;
    struct daemon *d;
    struct facts_accel accel;
};

static void measure_work(uv_work_t *w)
{
    measure(&container_of(w, struct publish, work)->accel);
}

static void on_txn(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status && status != E_CONFLICT)
        log_warn("this node's row: %s", e->msg);
}

/* Storage links may come and go with the configuration file; the others learn of it from our row. */
static bool links_differ(const struct conf *c, const struct cdb_node *n)
{
    if (n->storage_addresses.n != (size_t)c->n_storage_addresses)
        return true;
    for (int i = 0; i < c->n_storage_addresses; i++)
        if (!cdb_strs_has(&n->storage_addresses, c->storage_addresses[i]))
            return true;
    return false;
}

static void measured(uv_work_t *w, int status)
{
    struct publish *p = container_of(w, struct publish, work);
    struct daemon *d = p->d;
    const struct cdb_view *v = status == 0 && d->link ? cdb_link_view(d->link) : NULL;
    const struct cdb_node *n = v ? cdb_node_get(v, d->node_id) : NULL;
    if (n && (strcmp(n->accel, p->accel.accel) || strcmp(n->accel_reason, p->accel.reason) || strcmp(n->version, COHORT_VERSION) ||
              n->memory_bytes != facts_memory_bytes() || n->cpus != facts_cpus() || links_differ(&d->conf, n))) {
        struct cdb_txn *t = cdb_txn_new();
        cdb_txn_require_exists(t, CDB_T_NODE, n->id);
        cdb_txn_set_str(t, CDB_T_NODE, n->id, CDB_NODE_accel, p->accel.accel);
        cdb_txn_set_str(t, CDB_T_NODE, n->id, CDB_NODE_accel_reason, p->accel.reason);
        cdb_txn_set_str(t, CDB_T_NODE, n->id, CDB_NODE_version, COHORT_VERSION);
        cdb_txn_set_int(t, CDB_T_NODE, n->id, CDB_NODE_memory_bytes, facts_memory_bytes());
        cdb_txn_set_int(t, CDB_T_NODE, n->id, CDB_NODE_cpus, facts_cpus());
        cdb_txn_set_strs(t, CDB_T_NODE, n->id, CDB_NODE_storage_addresses, (size_t)d->conf.n_storage_addresses,
                         (const char *const *)d->conf.storage_addresses);
        cdb_txn_commit(d->link, t, "node facts", on_txn, d);
    }
    free(p);
}

void facts_publish(struct daemon *d)
{
    struct publish *p = xcalloc(1, sizeof *p);
    p->d = d;
    if (uv_queue_work(d->loop, &p->work, measure_work, measured))
        free(p);
}
