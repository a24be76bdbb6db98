/* REST: images, and the upload of their files into the volume.
 *
 * An upload: body -> 1 MiB blocks -> volume, at most 4 writes in flight (then the connection is suspended), sha256 on the
 * way, content looked at in the first block; the end waits for every write and records the checksum.
 * A client that leaves, or a daemon that restarts, loses only the file under way: sending it again continues the import. */
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/htab.h"
#include "base/log.h"
#include "compute/image.h"
#include "daemon/image_io.h"
#include "daemon/rest.h"

LOG_MODULE("image")

#define N(a) (sizeof(a) / sizeof *(a))
#define BLOCK (1u << 20)
#define IN_FLIGHT 4
#define PROGRESS_MS 1000

_Static_assert(BLOCK >= IMAGE_HEAD, "the first block must hold what the content check looks at");

struct upload {
    struct rest_req *rq;
    char image_id[ID_LEN + 1], volume_id[ID_LEN + 1], file[16], expected[65], sha256[65];
    int64_t offset, length, received, before; /* `before`: bytes of the image's other files that are done */
    EVP_MD_CTX *md;
    struct iobuf *block;
    size_t fill;
    int64_t written; /* of this file, given to the volume */
    int in_flight;
    uint64_t reported_ms;
    bool failed, ending;
    struct err err;
    char why[ERR_MSG_MAX]; /* its first line, for the image's row */
    LIST_ENTRY(upload) entry;
};

struct imports { /* uploads of this node */
    LIST_HEAD(, upload) list;
};

/* ---- rows ---- */

struct create_req {
    struct image_spec spec;
};

void rest_image_create(struct rest_req *rq)
{
    struct create_req *c = rest_priv(rq, sizeof *c);
    struct image_spec *s = &c->spec;
    json_t *files = NULL;
    struct err e;
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &s->name}, {"kind", JIN_STR, true, &s->kind}, {"files", JIN_ARRAY, true, &files, 1, IMAGE_FILES_MAX},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    for (size_t i = 0; i < json_array_size(files); i++) {
        struct image_file_spec *fs = &s->files[s->n_files++];
        char what[32];
        snprintf(what, sizeof what, "files[%zu]", i);
        const struct jin_field ff[] = {
            {"name", JIN_STR, true, &fs->name, 1, 15}, {"size_bytes", JIN_INT, true, &fs->size_bytes, 1, VOLUME_MAX_BYTES}, {"sha256", JIN_STR, false, &fs->sha256},
        };
        if (jin_read(json_array_get(files, i), what, ff, N(ff), &e) != E_OK) {
            rest_fail(rq, &e);
            return;
        }
    }
    rest_started(rq, op_image_create(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_image_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_image_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

/* ---- upload ---- */

static void upload_free(void *p)
{
    struct upload *u = p;
    if (u->rq) {
        LIST_REMOVE(u, entry);
        u->rq = NULL;
    }
    if (u->in_flight)
        return; /* on_written frees it: the volume still holds the arg */
    EVP_MD_CTX_free(u->md);
    iobuf_unref(u->block);
    free(u);
}

static void answer_failure(void *arg, int status, const struct err *e, const char *id)
{
    struct upload *u = arg;
    rest_fail(u->rq, &u->err);
}

/* `lasting`: sending the file again would not help, so the import ends as failed. */
static void fail(struct upload *u, bool lasting)
{
    u->failed = true;
    snprintf(u->why, sizeof u->why, "%.*s", (int)strcspn(u->err.msg, "\n"), u->err.msg);
    if (!lasting || op_image_fail(u->rq->r->ops, u->image_id, u->why, answer_failure, u, NULL) != E_OK)
        rest_fail(u->rq, &u->err);
}

static void on_recorded(void *arg, int status, const struct err *e, const char *id)
{
    struct upload *u = arg;
    if (status != E_OK) {
        rest_fail(u->rq, e);
        return;
    }
    log_info("image file %s of %s: %" PRId64 " bytes, by %s", u->file, u->image_id, u->length, u->rq->who);
    rest_ok(u->rq, 200, json_pack("{s:s, s:s, s:I, s:s}", "image", u->image_id, "file", u->file, "size_bytes", (json_int_t)u->length, "sha256", u->sha256));
}

static void finish(struct upload *u)
{
    unsigned char md[EVP_MAX_MD_SIZE];
    EVP_DigestFinal_ex(u->md, md, NULL);
    for (int i = 0; i < 32; i++)
        snprintf(u->sha256 + 2 * i, 3, "%02x", md[i]);
    if (*u->expected && strcmp(u->expected, u->sha256) != 0) {
        err_set(&u->err, E_INVAL, "file %s: its sha256 is %s, announced was %s", u->file, u->sha256, u->expected);
        fail(u, true);
        return;
    }
    struct err e;
    int rc = op_image_file_done(u->rq->r->ops, u->image_id, u->file, u->sha256, on_recorded, u, &e);
    rest_started(u->rq, rc, &e);
}

static void on_written(void *arg, int status)
{
    struct upload *u = arg;
    u->in_flight--;
    if (!u->rq) { /* the request is gone */
        if (u->in_flight == 0)
            upload_free(u);
        return;
    }
    if (u->failed)
        return;
    if (u->rq->http_gone && !u->ending) {
        if (u->in_flight == 0)
            rest_fail(u->rq, &u->err); /* ends the request; nobody reads the answer */
        return;
    }
    if (status != E_OK) {
        err_set(&u->err, status, "write to the image's volume failed (%s)\nsend the file again; if it persists see cohort volume show", err_code_name(status));
        fail(u, false);
        return;
    }
    if (u->received == u->length && u->in_flight == 0)
        finish(u);
    else if (u->rq->http)
        http_continue(u->rq->http);
}

static void put_block(struct upload *u)
{
    const struct image_io *io = u->rq->r->image_io;
    size_t len = (u->fill + 4095) / 4096 * 4096;
    memset(u->block->data + u->fill, 0, len - u->fill);
    u->in_flight++;
    io->write(io->ctx, u->volume_id, (uint64_t)(u->offset + u->written), u->block, len, on_written, u);
    u->written += (int64_t)u->fill;
    iobuf_unref(u->block);
    u->block = NULL;
    u->fill = 0;
}

static void report(struct upload *u)
{
    bool cancel;
    uint64_t now = clock_boot_ms();
    if (now - u->reported_ms < PROGRESS_MS)
        return;
    u->reported_ms = now;
    op_image_progress(u->rq->r->ops, u->image_id, u->before + u->received, &cancel);
    if (cancel) {
        err_set(&u->err, E_CANCELED, "the import was cancelled");
        fail(u, true);
    }
}

static bool on_data(struct http_req *h, const void *data, size_t n)
{
    struct rest_req *rq = h->user;
    struct upload *u = rq->priv;
    const uint8_t *p = data;
    if ((int64_t)n > u->length - u->received)
        n = (size_t)(u->length - u->received); /* more than Content-Length cannot come; the server holds that */
    EVP_DigestUpdate(u->md, p, n);
    while (n > 0 && !u->failed) {
        if (!u->block)
            u->block = iobuf_new(BLOCK);
        size_t part = n < BLOCK - u->fill ? n : BLOCK - u->fill;
        memcpy(u->block->data + u->fill, p, part);
        u->fill += part;
        u->received += (int64_t)part;
        p += part;
        n -= part;
        bool last = u->received == u->length;
        if (u->fill < BLOCK && !last)
            continue;
        if (u->written == 0 && image_content_check(u->file, u->block->data, u->fill, &u->err) != E_OK) {
            fail(u, true);
            break;
        }
        u->ending = last;
        put_block(u);
    }
    if (!u->failed)
        report(u);
    return u->failed || u->in_flight < IN_FLIGHT || u->received == u->length;
}

static void on_gone(struct rest_req *rq)
{
    struct upload *u = rq->priv;
    if (u->ending || u->failed)
        return; /* everything is here, or an answer is on its way: it goes on without the client */
    err_set(&u->err, E_DISCONN, "the client left");
    if (u->in_flight == 0)
        rest_fail(rq, &u->err);
}

static int prepare(struct rest_req *rq, struct upload *u, struct err *e)
{
    const struct cdb_view *v = ops_view(rq->r->ops, e);
    const struct cdb_image *img = v ? ops_find(v, CDB_T_IMAGE, "image", rq->arg[0], e) : NULL;
    struct image_file f;
    if (!v || !img)
        return v ? E_NOTFOUND : E_UNAVAIL;
    if (strcmp(img->state, "importing") != 0)
        return err_set(e, E_BUSY, "image %s is %s and takes no more files\nto import anew delete it first: cohort image delete %s", img->name, img->state, img->name);
    const char *text = cdb_smap_get(&img->files, rq->arg[1]);
    if (!text || image_file_parse(text, &f, e))
        return err_set(e, E_NOTFOUND, "image %s has no file \"%.40s\"", img->name, rq->arg[1]);
    if (f.complete)
        return err_set(e, E_EXISTS, "image %s has the file %s already", img->name, rq->arg[1]);
    if (rq->http->content_length != (int64_t)f.length)
        return err_set(e, E_INVAL, "file %s was announced with %" PRId64 " bytes; this request's Content-Length is %" PRId64, rq->arg[1], (int64_t)f.length, rq->http->content_length);
    const struct cdb_volume *vol = cdb_volume_get(v, img->volume);
    if (!vol || strcmp(vol->owner, rq->r->d->node_id) != 0)
        return err_set(e, E_BUSY, "image %s is being imported by node %s\nsend its files there", img->name, vol ? ops_name(v, CDB_T_NODE, vol->owner) : "(gone)");
    if (!rq->r->image_io)
        return err_set(e, E_UNAVAIL, "the storage of this node is not running");
    struct upload *other;
    LIST_FOREACH (other, &rq->r->imports->list, entry)
        if (strcmp(other->image_id, img->id) == 0 && strcmp(other->file, rq->arg[1]) == 0)
            return err_set(e, E_BUSY, "file %s of image %s is being sent already", rq->arg[1], img->name);
    snprintf(u->image_id, sizeof u->image_id, "%.36s", img->id);
    snprintf(u->volume_id, sizeof u->volume_id, "%.36s", vol->id);
    snprintf(u->file, sizeof u->file, "%.15s", rq->arg[1]);
    snprintf(u->expected, sizeof u->expected, "%s", f.sha256);
    u->offset = (int64_t)f.offset;
    u->length = (int64_t)f.length;
    for (size_t i = 0; i < img->files.n; i++)
        if (image_file_parse(img->files.v[i], &f, e) == E_OK && f.complete)
            u->before += (int64_t)f.length;
    return E_OK;
}

void rest_image_put(struct rest_req *rq)
{
    struct err e;
    if (!rq->r->imports) {
        rq->r->imports = xcalloc(1, sizeof *rq->r->imports);
        LIST_INIT(&rq->r->imports->list);
    }
    struct upload *u = xcalloc(1, sizeof *u);
    int rc = prepare(rq, u, &e);
    if (rc != E_OK) {
        free(u);
        rest_fail(rq, &e);
        return;
    }
    u->rq = rq;
    u->md = EVP_MD_CTX_new();
    EVP_DigestInit_ex(u->md, EVP_sha256(), NULL);
    u->reported_ms = clock_boot_ms();
    rq->priv = u;
    rq->free_priv = upload_free;
    rq->on_gone = on_gone;
    rq->http->sink = on_data;
    LIST_INSERT_HEAD(&rq->r->imports->list, u, entry);
}

void imports_close(struct imports *im)
{
    free(im); /* uploads end with their requests, which end with the HTTP server */
}
