/* This node's disks: opening their stores, and telling the database when what is on one is not to be believed.
 *
 * A store that was formatted now is in sync with nothing, so the disk's incarnation is raised before it serves. The file
 * "announced" beside the data, written after that transaction, is the memory of it: a crash in between repeats the raise,
 * and a disk that lost its content lost the file too (it is removed before formatting).
 *
 * A disk of medium memory is the same on a tmpfs that is mounted here: after a power cut it comes up empty, and is formatted anew. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "cluster/copies.h"
#include "storage/asan/engine/memory.h"
#include "storage/asan/engine/priv.h"
#include "storage/asan/store/tier.h"

LOG_MODULE("asan");

#define RETRY_MS 500
#define VOLUMES_NAMED 10u /* in the event of a disk's failure */

/* A raw device has no place for files: what belongs to it is beside its journal. What is not there is to become a directory. */
static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) || S_ISDIR(st.st_mode);
}

static void marker_path(const struct ldisk *d, char *ret, size_t size)
{
    snprintf(ret, size, "%s/announced", is_dir(d->capacity) ? d->capacity : d->fast);
}

static void fail(struct ldisk *d, const struct err *e)
{
    if (d->state == LD_FAILED)
        return;
    d->state = LD_FAILED;
    d->failure = *e;
    log_err("disk %s: %s", d->name, e->msg);
    disk_conn(d->a, d->a->node_id, false);
}

static void store_failed(void *arg, const struct err *e)
{
    struct ldisk *d = arg;
    fail(d, e);
    disks_tick(d->a);
}

/* Sizes that the configuration leaves open follow from what the two paths lie on. */
static void use_devices(const struct ldisk *d, struct store_conf *conf)
{
    const struct asan *a = d->a;
    struct tier t;
    unsigned sharing = 0;
    if (d->memory_bytes) {
        conf->in_memory = conf->direct = true;
        conf->journal_bytes = MEMORY_JOURNAL_BYTES;
        return;
    }
    for (int i = 0; i < a->n_disks; i++)
        sharing += &a->disk[i] == d || tier_same_device(a->disk[i].fast, d->fast);
    tier_of(d->fast, d->capacity, sharing, &t);
    conf->journal_bytes = a->journal_bytes ? a->journal_bytes : t.journal_bytes;
    conf->direct = !t.separate; /* platters behind flash: the journal is faster */
    conf->cache_bytes = a->cache_bytes == ASAN_BY_DEVICE ? t.cache_bytes : a->cache_bytes;
}

static int open_store(struct ldisk *d, struct err *e)
{
    char marker[512], *text;
    size_t len;
    struct store_conf conf = {.fast_path = d->fast, .capacity_path = d->capacity, .disk_id = d->id,
                              .cluster_uuid = d->a->cluster_uuid, .limit_bytes = d->limit_bytes};
    marker_path(d, marker, sizeof marker);
    int rc = d->memory_bytes ? memory_mount(d->fast, d->memory_bytes, e) : file_mkdirs(d->fast, 0700, e);
    if (!rc && is_dir(d->capacity))
        rc = file_mkdirs(d->capacity, 0700, e);
    if (rc)
        return rc;
    use_devices(d, &conf);
    rc = store_open(&d->a->loop, &conf, &d->store, e);
    if (rc == E_NOTFOUND) {
        if (unlink(marker) && errno != ENOENT)
            return err_sys(e, errno, "remove %s", marker);
        conf.create = true;
        rc = store_open(&d->a->loop, &conf, &d->store, e);
    }
    if (rc)
        return rc;
    rc = file_read(marker, 64, &text, &len, NULL);
    if (!rc)
        free(text);
    d->fresh = rc != 0;
    store_on_failure(d->store, store_failed, d);
    return 0;
}

static void open_disk(struct ldisk *d)
{
    struct err e = {0};
    htab_init(&d->shards);
    htab_init(&d->leftovers);
    d->state = LD_WAIT_ROW;
    d->announced = false;
    if (open_store(d, &e)) {
        err_wrap(&e, "open");
        fail(d, &e);
    } else {
        d->a->open_stores++;
    }
}

void disks_open(struct asan *a)
{
    for (int i = 0; i < a->n_disks; i++)
        open_disk(&a->disk[i]);
}

static bool in_memory(const struct cdb_disk *row) { return !strcmp(row->medium, CLASS_MEMORY); }

/* Has the row what is needed to open it? */
static bool usable(const struct asan *a, const struct cdb_disk *row)
{
    return in_memory(row) ? a->memory_dir && row->memory_bytes > 0 : row->capacity_path[0] && row->fast_path[0];
}

/* A place of one that was removed, or a new one; NULL: there are too many. */
static struct ldisk *free_place(struct asan *a)
{
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        if (*d->id || d->reopening)
            continue;
        free(d->name);
        free(d->fast);
        free(d->capacity);
        memset(d, 0, sizeof *d);
        return d;
    }
    return a->n_disks < ASAN_DISKS_MAX ? &a->disk[a->n_disks++] : NULL;
}

/* Rows of this node's disks that came after the start (`disk add`, and at the next start those are all there is of them: the
 * configuration names the disks the node joined with). Opening blocks the I/O thread for as long as formatting takes. */
static void adopt(struct asan *a, const struct cdb_view *v)
{
    for (size_t i = 0; i < cdb_disk_count(v); i++) {
        const struct cdb_disk *row = cdb_disk_at(v, i);
        bool known = strcmp(row->node, a->node_id) || !usable(a, row);
        for (int k = 0; k < a->n_disks; k++)
            known = known || !strcmp(a->disk[k].id, row->id);
        struct ldisk *d = known ? NULL : free_place(a);
        if (!d)
            continue;
        d->a = a;
        strncpy(d->id, row->id, ID_LEN);
        d->name = xstrdup(row->name);
        d->memory_bytes = in_memory(row) ? (uint64_t)row->memory_bytes : 0;
        d->fast = d->memory_bytes ? xasprintf("%s/%s", a->memory_dir, d->id) : xstrdup(row->fast_path);
        d->capacity = xstrdup(d->memory_bytes ? d->fast : row->capacity_path);
        gdisk_get(a, d->id)->local = d;
        log_info("disk %s: added at %s", d->name, d->capacity);
        open_disk(d);
    }
}

static void reopen_closed(void *arg)
{
    struct ldisk *d = arg;
    struct asan *a = d->a;
    host_close(d);
    d->store = NULL;
    d->reopening = false;
    a->open_stores--;
    if (d->memory_bytes) /* removed, or to begin empty as an exchanged disk does */
        memory_unmount(d->fast);
    if (d->retiring) {
        memset(d->id, 0, sizeof d->id);
        htab_init(&d->shards);
        htab_init(&d->leftovers);
    }
    if (a->stop_stage)
        asan_closed_one(a);
    else if (!a->stopping && !d->retiring)
        open_disk(d);
}

static void close_disk(struct ldisk *d)
{
    d->reopening = true;
    scrub_stop(d);
    if (d->store)
        store_close(d->store, reopen_closed, d);
    else {
        d->a->open_stores++;
        reopen_closed(d);
    }
}

/* The row of a disk that failed here says "up" again: someone exchanged it. */
static void reopen(struct ldisk *d)
{
    log_info("disk %s: opened anew", d->name);
    close_disk(d);
}

/* Its row is gone: a disk in memory gives the memory back. (What is on others was never ours to touch; they stay open till the end.) */
static void retire(struct ldisk *d)
{
    struct gdisk *g = gdisk_find(d->a, d->id);
    log_info("disk %s: removed, its memory is free", d->name);
    if (g)
        g->local = NULL;
    if (d->state != LD_FAILED)
        err_set(&d->failure, E_NOTFOUND, "the disk was removed");
    d->state = LD_FAILED; /* to whom still asks for it */
    d->announced = d->retiring = true;
    close_disk(d);
}

static void sized(void *arg, int status, const struct err *e)
{
    struct ldisk *d = arg;
    (void)status;
    (void)e;
    d->txn_busy = false;
    d->retry_ms = now_ms() + RETRY_MS;
}

static void publish_size(struct ldisk *d)
{
    struct store_usage u;
    store_usage(d->store, &u);
    struct cdb_txn *t = cdb_txn_new();
    d->txn_busy = true;
    cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_size_bytes, 0);
    cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_size_bytes, (int64_t)u.size_bytes);
    cdb_txn_commit(d->a->link, t, "size of disk", sized, d);
}

static void ready(struct ldisk *d)
{
    d->state = LD_READY;
    log_info("disk %s: in service", d->name);
    disk_conn(d->a, d->a->node_id, true);
}

static void raised(void *arg, int status, const struct err *e)
{
    struct ldisk *d = arg;
    struct err err;
    char marker[512];
    (void)e;
    d->txn_busy = false;
    if (d->state == LD_FAILED)
        return;
    d->state = LD_WAIT_ROW;
    d->retry_ms = now_ms() + RETRY_MS;
    if (status)
        return; /* an unknown outcome is repeated: one raise too many does no harm */
    marker_path(d, marker, sizeof marker);
    if (file_write(marker, "1\n", 2, 0600, &err)) {
        fail(d, &err);
        return;
    }
    d->fresh = false;
    ready(d);
}

static void announced(void *arg, int status, const struct err *e)
{
    struct ldisk *d = arg;
    (void)e;
    d->txn_busy = false;
    d->announced = status == 0;
    d->retry_ms = now_ms() + RETRY_MS;
}

/* "<why>; it held copies of volumes a, b: …": whom the loss of the disk touches. */
static void name_volumes(const struct ldisk *d, const struct cdb_view *view, char *ret, size_t size)
{
    const char *last = "";
    size_t n = (size_t)snprintf(ret, size, "%s", d->failure.msg), count = 0;
    for (size_t i = 0; i < cdb_shard_count(view); i++) { /* rows are sorted by id: a volume's are together */
        const struct cdb_shard *s = cdb_shard_at(view, i);
        const struct cdb_volume *v = cdb_volume_get(view, s->volume);
        if (!v || !strcmp(s->volume, last) || !cdb_strs_has(&s->replicas, d->id))
            continue;
        last = s->volume;
        if (++count <= VOLUMES_NAMED && n < size)
            n += (size_t)snprintf(ret + n, size - n, "%s%s", count == 1 ? "; it held copies of volumes " : ", ", v->name);
    }
    if (count > VOLUMES_NAMED && n < size)
        n += (size_t)snprintf(ret + n, size - n, " and %zu more", count - VOLUMES_NAMED);
    if (count && n < size)
        snprintf(ret + n, size - n, "; their other copies serve them and are copied anew where there is room. %s cohort disk replace",
                 d->memory_bytes ? "To begin empty:" : "Exchange the disk, then:");
}

/* The failure goes to the database: out of every in-sync set by its incarnation, and a line for people. */
static void announce(struct ldisk *d, const struct cdb_disk *row)
{
    char object[128], message[ERR_MSG_MAX + 1024];
    snprintf(object, sizeof object, "disk %s", row->name);
    name_volumes(d, view_of(d->a), message, sizeof message);
    log_err("disk %s: %s", d->name, message);
    struct cdb_txn *t = cdb_txn_new();
    d->txn_busy = true;
    cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, row->incarnation);
    cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, row->incarnation + 1);
    cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_state, "failed");
    cdb_txn_set_str(t, CDB_T_DISK, d->id, CDB_DISK_message, d->failure.msg);
    cdb_txn_event(t, clock_wall_ms(), "alarm", object, message, d->a->node_id);
    cdb_txn_commit(d->a->link, t, "disk failed", announced, d);
}

static void raise_incarnation(struct ldisk *d, const struct cdb_disk *row)
{
    struct cdb_txn *t = cdb_txn_new();
    d->txn_busy = true;
    d->state = LD_RAISING;
    cdb_txn_require_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, row->incarnation);
    cdb_txn_set_int(t, CDB_T_DISK, d->id, CDB_DISK_incarnation, row->incarnation + 1);
    cdb_txn_commit(d->a->link, t, "new content on disk", raised, d);
}

void disks_update(struct asan *a, const struct cdb_view *v)
{
    if (a->view_seen && a->memory_dir && !a->memory_swept) {
        a->memory_swept = true;
        memory_sweep(a->memory_dir, v, a->node_id);
    }
    if (a->view_seen)
        adopt(a, v);
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        const struct cdb_disk *row = cdb_disk_get(v, d->id);
        if (!row && d->memory_bytes && *d->id && !d->txn_busy && !d->health_busy && !d->reopening && a->view_seen)
            retire(d);
        if (!row || d->txn_busy || d->reopening || now_ms() < d->retry_ms || !a->view_seen)
            continue;
        if (d->state == LD_FAILED && !d->announced) {
            if (!strcmp(row->state, "failed") && !strcmp(row->message, d->failure.msg))
                d->announced = true; /* by an earlier life: the incarnation was raised then */
            else
                announce(d, row);
        } else if (d->state == LD_WAIT_ROW) {
            if (d->fresh)
                raise_incarnation(d, row);
            else
                ready(d);
        } else if (d->state == LD_FAILED && !strcmp(row->state, "up")) {
            reopen(d);
        } else if (d->state == LD_READY && !row->size_bytes) {
            publish_size(d);
        }
    }
}

void disks_tick(struct asan *a)
{
    const struct cdb_view *v = view_of(a);
    if (v && !a->stopping)
        disks_update(a, v);
}

static void closed(void *arg)
{
    struct ldisk *d = arg;
    host_close(d);
    d->store = NULL;
    d->a->open_stores--;
    asan_closed_one(d->a);
}

void disks_close(struct asan *a)
{
    for (int i = 0; i < a->n_disks; i++)
        scrub_stop(&a->disk[i]);
    for (int i = 0; i < a->n_disks; i++)
        if (a->disk[i].store && !a->disk[i].reopening)
            store_close(a->disk[i].store, closed, &a->disk[i]);
}
