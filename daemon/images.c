/* Kernel images as files on this node: one fetch per image, file after file, out of its sealed volume. */
#include "daemon/images.h"
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/htab.h"
#include "base/log.h"
#include "compute/image.h"
#include "storage/asan/engine/asan.h"

LOG_MODULE("images");

#define RETRY_MS 5000

static const char *const file_names[] = {"kernel", "initrd", "cmdline"};
enum { N_FILES = 3 };

struct image {
    char id[ID_LEN + 1], volume[ID_LEN + 1];
    struct images *all;
    enum { IDLE, FETCHING, READY } state;
    int at;                  /* file being fetched */
    uint64_t volume_bytes, retry_at_ms;
    LIST_ENTRY(image) entry;
};

struct images {
    struct daemon *d;
    void (*ready)(void *arg);
    void *arg;
    bool closing;
    int busy;                /* fetches under way: they refer to us */
    LIST_HEAD(, image) list;
};

/* ---- reading the volume ---- */

struct reading {
    struct asan_io io;
    image_read_done *done;
    void *arg;
};

static void on_read(struct mail *m)
{
    struct reading *r = container_of(m, struct reading, io.answer);
    r->done(r->arg, r->io.status);
    free(r);
}

static void read_volume(void *ctx, uint64_t offset, void *buf, size_t length, image_read_done *done, void *arg)
{
    struct image *x = ctx;
    struct daemon *d = x->all->d;
    struct reading *r = xcalloc(1, sizeof *r);
    r->done = done;
    r->arg = arg;
    r->io = (struct asan_io){.answer = {.run = on_read}, .answer_to = &d->mailbox, .op = ASAN_READ, .offset = offset,
                             .length = length, .data = buf};
    memcpy(r->io.volume_id, x->volume, sizeof r->io.volume_id);
    asan_io(d->asan, &r->io);
}

/* ---- fetching ---- */

static void fetch_next(struct image *x, const struct cdb_view *v);

static void image_drop(struct image *x)
{
    LIST_REMOVE(x, entry);
    free(x);
}

static void on_fetched(void *arg, int status, const char *path, const struct err *e)
{
    struct image *x = arg;
    struct images *im = x->all;
    im->busy--;
    if (im->closing) {
        image_drop(x);
        if (!im->busy)
            free(im);
        return;
    }
    const struct cdb_view *v = cdb_link_view(im->d->link);
    x->state = IDLE;
    if (status) {
        log_warn("image %s: file %s: %s; trying again in %d s", x->id, file_names[x->at], e->msg, RETRY_MS / 1000);
        x->retry_at_ms = clock_boot_ms() + RETRY_MS;
        im->ready(im->arg);
        return;
    }
    x->at++;
    fetch_next(x, v);
}

static char *image_dir(const struct images *im, const char *id)
{
    return xasprintf("%s/images/%s", im->d->conf.state_dir, id);
}

static void fetch_next(struct image *x, const struct cdb_view *v)
{
    struct images *im = x->all;
    const struct cdb_image *row = cdb_image_get(v, x->id);
    const char *text = NULL;
    struct image_file f;
    struct err e;
    while (row && x->at < N_FILES && !(text = cdb_smap_get(&row->files, file_names[x->at])))
        x->at++; /* initrd and command line are optional */
    if (!row || x->at == N_FILES) {
        x->state = row ? READY : IDLE;
        im->ready(im->arg);
        return;
    }
    if (image_file_parse(text, &f, &e)) {
        log_err("image %s: the database's entry for its %s is damaged: %s", x->id, file_names[x->at], e.msg);
        x->retry_at_ms = clock_boot_ms() + RETRY_MS;
        return;
    }
    char *dir = image_dir(im, x->id);
    struct image_reader reader = {read_volume, x};
    x->state = FETCHING;
    im->busy++;
    image_fetch(im->d->loop, &reader, x->volume_bytes, &f, dir, file_names[x->at], on_fetched, x);
    free(dir);
}

bool images_ready(struct images *im, const char *id)
{
    const struct cdb_view *v = cdb_link_view(im->d->link);
    const struct cdb_image *row = v ? cdb_image_get(v, id) : NULL;
    const struct cdb_volume *vol = row ? cdb_volume_get(v, row->volume) : NULL;
    struct image *x;
    LIST_FOREACH (x, &im->list, entry)
        if (!strcmp(x->id, id))
            break;
    if (x && x->state != IDLE)
        return x->state == READY;
    if (!vol || strcmp(row->state, "ready") || (x && clock_boot_ms() < x->retry_at_ms))
        return false;
    if (!x) {
        x = xcalloc(1, sizeof *x);
        x->all = im;
        snprintf(x->id, sizeof x->id, "%s", id);
        LIST_INSERT_HEAD(&im->list, x, entry);
    }
    snprintf(x->volume, sizeof x->volume, "%s", vol->id);
    x->volume_bytes = (uint64_t)vol->size_bytes;
    x->at = 0;
    fetch_next(x, v);
    return x->state == READY;
}

int images_spec(struct images *im, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *s, struct err *e)
{
    const struct cdb_image *row = cdb_image_get(v, m->image);
    char *dir = image_dir(im, m->image), *text = NULL;
    int rc = 0;
    if (!row || strcmp(row->kind, "kernel")) {
        rc = err_set(e, E_NOTFOUND, "its image is gone or is not a kernel image");
        goto out;
    }
    snprintf(s->kernel, sizeof s->kernel, "%s/kernel", dir);
    if (cdb_smap_get(&row->files, "initrd"))
        snprintf(s->initrd, sizeof s->initrd, "%s/initrd", dir);
    if (cdb_smap_get(&row->files, "cmdline")) {
        char *path = xasprintf("%s/cmdline", dir);
        size_t len;
        rc = file_read(path, sizeof s->cmdline - 1, &text, &len, e);
        free(path);
        if (rc)
            goto out;
        text[strcspn(text, "\r\n")] = 0;
    }
    if (snprintf(s->cmdline, sizeof s->cmdline, "%s%s%s", text ? text : "", text && m->cmdline[0] ? " " : "", m->cmdline) >=
        (int)sizeof s->cmdline)
        rc = err_set(e, E_TOOBIG, "kernel command line is longer than %zu characters", sizeof s->cmdline - 1);
out:
    free(text);
    free(dir);
    return rc;
}

struct images *images_open(struct daemon *d, void (*ready)(void *arg), void *arg)
{
    struct images *im = xcalloc(1, sizeof *im);
    im->d = d;
    im->ready = ready;
    im->arg = arg;
    return im;
}

void images_close(struct images *im)
{
    im->closing = true;
    for (struct image *x = LIST_FIRST(&im->list), *next; x; x = next) {
        next = LIST_NEXT(x, entry);
        if (x->state != FETCHING)
            image_drop(x);
    }
    if (!im->busy)
        free(im);
}
