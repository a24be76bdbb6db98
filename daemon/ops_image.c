/* Images: a sealed volume that holds the files one behind the other, 4096-aligned. See ops.h.
 *
 *   importing ──(every file's checksum recorded)──> ready      volume.sealed, owner ""
 *       └──(bad content, cancelled)──> failed                  volume kept until the image is deleted */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "compute/image.h"
#include "daemon/jin.h"
#include "daemon/op.h"
#include "daemon/daemon.h"

#define ALIGN INT64_C(4096)

static int64_t align_up(int64_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

struct create {
    struct op op;
    const struct image_spec *spec;
    char volume_id[ID_LEN + 1], task_id[ID_LEN + 1];
};

static const struct image_file_spec *file_of(const struct image_spec *s, const char *name)
{
    for (int i = 0; i < s->n_files; i++)
        if (strcmp(s->files[i].name, name) == 0)
            return &s->files[i];
    return NULL;
}

static int check(const struct image_spec *s, int64_t *ret_total, struct err *e)
{
    bool kernel = strcmp(s->kind, "kernel") == 0, disk = strcmp(s->kind, "disk") == 0;
    int rc = jin_name_check("image", s->name, e);
    if (rc != E_OK)
        return rc;
    if (!kernel && !disk)
        return err_set(e, E_INVAL, "kind \"%.40s\" is not allowed\nkernel or disk", s->kind);
    int64_t total = 0;
    for (int i = 0; i < s->n_files; i++) {
        const struct image_file_spec *f = &s->files[i];
        bool known = kernel ? !strcmp(f->name, "kernel") || !strcmp(f->name, "initrd") || !strcmp(f->name, "cmdline") : !strcmp(f->name, "disk");
        if (!known || file_of(s, f->name) != f)
            return err_set(e, E_INVAL, "file \"%.40s\" is not allowed here, or named twice\n%s", f->name,
                           kernel ? "a kernel image has kernel, initrd and optionally cmdline" : "a disk image has the one file disk");
        int64_t max = !strcmp(f->name, "cmdline") ? 4096 : kernel ? INT64_C(1) << 30 : VOLUME_MAX_BYTES;
        if (f->size_bytes < 1 || f->size_bytes > max)
            return err_set(e, E_INVAL, "file %s: size_bytes must be from 1 to %" PRId64 ", is %" PRId64, f->name, max, f->size_bytes);
        if (f->sha256 && (strlen(f->sha256) != 64 || strspn(f->sha256, "0123456789abcdef") != 64))
            return err_set(e, E_INVAL, "file %s: sha256 must be 64 lower-case hex digits", f->name);
        total += align_up(f->size_bytes);
    }
    if (kernel && (!file_of(s, "kernel") || !file_of(s, "initrd")))
        return err_set(e, E_INVAL, "a kernel image needs the files kernel and initrd");
    if (disk && s->n_files != 1)
        return err_set(e, E_INVAL, "a disk image needs the file disk");
    if (disk && s->files[0].size_bytes % 512)
        return err_set(e, E_INVAL, "file disk: %" PRId64 " bytes is not a multiple of 512: not a raw disk", s->files[0].size_bytes);
    *ret_total = total < VOLUME_MIN_BYTES ? VOLUME_MIN_BYTES : total;
    return E_OK;
}

static void insert_task(const struct create *c, struct cdb_txn *t, int64_t total)
{
    char object[80];
    snprintf(object, sizeof object, "image %s", c->spec->name);
    cdb_txn_insert(t, CDB_T_TASK, c->task_id);
    cdb_txn_set_str(t, CDB_T_TASK, c->task_id, CDB_TASK_kind, "image-import");
    cdb_txn_set_str(t, CDB_T_TASK, c->task_id, CDB_TASK_object, object);
    cdb_txn_set_str(t, CDB_T_TASK, c->task_id, CDB_TASK_node, ops_daemon(c->op.ops)->node_id);
    cdb_txn_set_str(t, CDB_T_TASK, c->task_id, CDB_TASK_state, "running");
    cdb_txn_set_str(t, CDB_T_TASK, c->task_id, CDB_TASK_unit, "bytes");
    cdb_txn_set_int(t, CDB_T_TASK, c->task_id, CDB_TASK_total, total);
    cdb_txn_set_int(t, CDB_T_TASK, c->task_id, CDB_TASK_started_ms, clock_wall_ms());
    cdb_txn_set_int(t, CDB_T_TASK, c->task_id, CDB_TASK_updated_ms, clock_wall_ms());
}

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    struct create *c = (struct create *)op;
    const struct image_spec *s = c->spec;
    int64_t total = 0, at = 0, payload = 0;
    char vol_name[80], text[IMAGE_FILES_MAX][112];
    char *keys[IMAGE_FILES_MAX], *values[IMAGE_FILES_MAX];
    int rc = check(s, &total, e);
    if (rc != E_OK)
        return rc;
    if (cdb_find_name(v, CDB_T_IMAGE, s->name))
        return err_set(e, E_EXISTS, "image \"%s\" exists already", s->name);
    snprintf(vol_name, sizeof vol_name, "image-%.8s-%.40s", c->op.id, s->name);
    struct volume_spec vs = {.name = vol_name, .size_bytes = total, .purpose = "image"};
    rc = volume_insert(v, t, c->volume_id, &vs, ops_daemon(op->ops)->node_id, e);
    if (rc != E_OK)
        return rc;
    for (int i = 0; i < s->n_files; i++) {
        struct image_file f = {.offset = (uint64_t)at, .length = (uint64_t)s->files[i].size_bytes};
        snprintf(f.sha256, sizeof f.sha256, "%s", s->files[i].sha256 ? s->files[i].sha256 : "");
        image_file_format(&f, text[i]);
        keys[i] = (char *)(uintptr_t)s->files[i].name;
        values[i] = text[i];
        at += align_up(s->files[i].size_bytes);
        payload += s->files[i].size_bytes;
    }
    struct cdb_smap files = {.n = (size_t)s->n_files, .k = keys, .v = values};
    cdb_txn_require_absent(t, CDB_T_IMAGE, op->id);
    cdb_txn_insert(t, CDB_T_IMAGE, op->id);
    cdb_txn_set_str(t, CDB_T_IMAGE, op->id, CDB_IMAGE_name, s->name);
    cdb_txn_set_str(t, CDB_T_IMAGE, op->id, CDB_IMAGE_kind, s->kind);
    cdb_txn_set_str(t, CDB_T_IMAGE, op->id, CDB_IMAGE_volume, c->volume_id);
    cdb_txn_set_str(t, CDB_T_IMAGE, op->id, CDB_IMAGE_state, "importing");
    cdb_txn_set_smap(t, CDB_T_IMAGE, op->id, CDB_IMAGE_files, &files);
    insert_task(c, t, payload);
    return E_OK;
}

static bool created(const struct op *op, const struct cdb_view *v) { return cdb_image_get(v, op->id) != NULL; }

int op_image_create(struct ops *o, const struct image_spec *s, op_done *done, void *arg, struct err *e)
{
    struct create *c = op_new(o, sizeof *c, "create image", done, arg);
    c->spec = s;
    c->op.build = build_create;
    c->op.happened = created;
    id_new(c->volume_id);
    id_new(c->task_id);
    return op_start(&c->op, e);
}

/* ---- progress ---- */

struct step {
    struct op op;
    const char *image_id, *file, *sha256, *why;
};

static const struct cdb_task *task_of(const struct cdb_view *v, const struct cdb_image *img)
{
    char object[80];
    snprintf(object, sizeof object, "image %s", img->name);
    for (size_t i = 0; i < cdb_task_count(v); i++) {
        const struct cdb_task *t = cdb_task_at(v, i);
        if (strcmp(t->kind, "image-import") == 0 && strcmp(t->object, object) == 0 && strcmp(t->state, "running") == 0)
            return t;
    }
    return NULL;
}

static void end_task(const struct cdb_view *v, struct cdb_txn *t, const struct cdb_image *img, const char *state, const char *why)
{
    const struct cdb_task *task = task_of(v, img);
    if (!task)
        return;
    cdb_txn_set_str(t, CDB_T_TASK, task->id, CDB_TASK_state, state);
    cdb_txn_set_str(t, CDB_T_TASK, task->id, CDB_TASK_message, why);
    cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_updated_ms, clock_wall_ms());
    if (strcmp(state, "done") == 0)
        cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_done, task->total);
}

static const struct cdb_image *importing(struct op *op, const struct cdb_view *v, struct err *e)
{
    const struct cdb_image *img = cdb_image_get(v, ((struct step *)op)->image_id);
    if (!img || strcmp(img->state, "importing") != 0) {
        err_set(e, E_CONFLICT, "the image was deleted or ended meanwhile");
        return NULL;
    }
    snprintf(op->id, sizeof op->id, "%s", img->id);
    return img;
}

static int build_file_done(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct step *s = (struct step *)op;
    const struct cdb_image *img = importing(op, v, e);
    if (!img)
        return E_CONFLICT;
    const struct cdb_volume *vol = cdb_volume_get(v, img->volume);
    if (!vol)
        return err_set(e, E_NOTFOUND, "image %s: its volume is gone", img->name);
    char text[IMAGE_FILES_MAX][112];
    char *keys[IMAGE_FILES_MAX], *values[IMAGE_FILES_MAX];
    bool complete = true;
    int64_t done = 0;
    if (img->files.n > IMAGE_FILES_MAX)
        return err_set(e, E_CORRUPT, "image %s: too many files", img->name);
    for (size_t i = 0; i < img->files.n; i++) {
        struct image_file f;
        if (image_file_parse(img->files.v[i], &f, e))
            return E_CORRUPT;
        if (strcmp(img->files.k[i], s->file) == 0) {
            snprintf(f.sha256, sizeof f.sha256, "%.64s", s->sha256);
            f.complete = true;
        }
        complete = complete && f.complete;
        done += f.complete ? (int64_t)f.length : 0;
        image_file_format(&f, text[i]);
        keys[i] = img->files.k[i];
        values[i] = text[i];
    }
    struct cdb_smap files = {.n = img->files.n, .k = keys, .v = values};
    cdb_txn_require_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_state, "importing");
    cdb_txn_require_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, ops_daemon(op->ops)->node_id);
    cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
    cdb_txn_set_smap(t, CDB_T_IMAGE, img->id, CDB_IMAGE_files, &files);
    const struct cdb_task *task = task_of(v, img);
    if (!complete && task) {
        cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_done, done);
        cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_updated_ms, clock_wall_ms());
    }
    if (complete) {
        cdb_txn_set_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_state, "ready");
        volume_hand_over(t, vol, "");
        cdb_txn_set_bool(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_sealed, true);
        end_task(v, t, img, "done", "");
        op_event(op, t, "info", img->name, "image %s imported", img->name);
    }
    return E_OK;
}

static bool file_recorded(const struct op *op, const struct cdb_view *v)
{
    const struct step *s = (const struct step *)op;
    const struct cdb_image *img = cdb_image_get(v, s->image_id);
    const char *text = img ? cdb_smap_get(&img->files, s->file) : NULL;
    const char *sha = text ? strrchr(text, ',') : NULL;
    return sha && strcmp(sha + 1, s->sha256) == 0;
}

int op_image_file_done(struct ops *o, const char *image_id, const char *file, const char *sha256, op_done *done, void *arg, struct err *e)
{
    struct step *s = op_new(o, sizeof *s, "image file done", done, arg);
    s->image_id = image_id;
    s->file = file;
    s->sha256 = sha256;
    s->op.build = build_file_done;
    s->op.happened = file_recorded;
    return op_start(&s->op, e);
}

static void progress_done(void *arg, int status, const struct err *e) {}

void op_image_progress(struct ops *o, const char *image_id, int64_t done_bytes, bool *ret_cancel)
{
    const struct cdb_view *v = ops_view(o, NULL);
    const struct cdb_image *img = v ? cdb_image_get(v, image_id) : NULL;
    const struct cdb_task *task = img ? task_of(v, img) : NULL;
    *ret_cancel = task && task->cancel;
    if (!task || *ret_cancel)
        return;
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_TASK, task->id, CDB_TASK_state, "running");
    cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_done, done_bytes);
    cdb_txn_set_int(t, CDB_T_TASK, task->id, CDB_TASK_updated_ms, clock_wall_ms());
    cdb_txn_commit(ops_daemon(o)->link, t, "import progress", progress_done, NULL);
}

static int build_fail(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct step *s = (struct step *)op;
    const struct cdb_image *img = importing(op, v, e);
    if (!img)
        return E_CONFLICT;
    const struct cdb_volume *vol = cdb_volume_get(v, img->volume);
    cdb_txn_require_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_state, "importing");
    cdb_txn_set_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_state, "failed");
    cdb_txn_set_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_message, s->why);
    if (vol && *vol->owner)
        volume_hand_over(t, vol, "");
    end_task(v, t, img, "failed", s->why);
    op_event(op, t, "warning", img->name, "image %s: import failed: %s", img->name, s->why);
    return E_OK;
}

int op_image_fail(struct ops *o, const char *image_id, const char *why, op_done *done, void *arg, struct err *e)
{
    struct step *s = op_new(o, sizeof *s, "fail image", done, arg);
    s->image_id = image_id;
    s->why = why;
    s->op.build = build_fail;
    return op_start(&s->op, e);
}

/* ---- delete ---- */

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct cdb_image *img = ops_find(v, CDB_T_IMAGE, "image", ((struct step *)op)->image_id, e);
    if (!img)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", img->id);
    for (size_t i = 0; i < cdb_machine_count(v); i++)
        if (strcmp(cdb_machine_at(v, i)->image, img->id) == 0)
            return err_set(e, E_BUSY, "image %s is what vm %s boots from\ndelete the vm first: cohort vm delete %s", img->name,
                           cdb_machine_at(v, i)->name, cdb_machine_at(v, i)->name);
    const struct cdb_volume *vol = cdb_volume_get(v, img->volume);
    if (vol && strcmp(vol->state, "deleting") != 0)
        volume_remove(v, t, vol);
    end_task(v, t, img, "canceled", "the image was deleted");
    cdb_txn_delete(t, CDB_T_IMAGE, img->id);
    op_event(op, t, "info", img->name, "image %s deleted", img->name);
    return E_OK;
}

static bool removed(const struct op *op, const struct cdb_view *v) { return !cdb_image_get(v, op->id); }

int op_image_delete(struct ops *o, const char *name, op_done *done, void *arg, struct err *e)
{
    struct step *s = op_new(o, sizeof *s, "delete image", done, arg);
    s->image_id = name;
    s->op.build = build_delete;
    s->op.happened = removed;
    return op_start(&s->op, e);
}
