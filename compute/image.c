/* Copies one file of an image out of its volume. See image.h.
 *
 *   (there already?) -> read chunk -> [worker: sum + write] -> … -> [worker: compare, fsync, rename] -> done
 *
 * The mark "<dir>/.<name>.<sha256>" is a hard link of the finished file: that it is there says which content `name` has. */
#include "compute/image.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"

#define CHUNK_BYTES (1u << 20)
#define SECTOR 512u

int image_file_parse(const char *text, struct image_file *ret_file, struct err *e)
{
    struct image_file f;
    char *end;
    int rc = err_set(e, E_INVAL, "image file \"%.80s\": must be offset,length,sha256 or offset,length,?sha256", text);
    if (!isdigit((unsigned char)text[0]))
        return rc;
    errno = 0;
    f.offset = strtoull(text, &end, 10);
    if (*end != ',' || !isdigit((unsigned char)end[1]))
        return rc;
    f.length = strtoull(end + 1, &end, 10);
    if (errno || *end != ',')
        return rc;
    f.complete = *++end != '?';
    end += !f.complete;
    size_t digits = strlen(end);
    if ((digits != 64 && (f.complete || digits)) || strspn(end, "0123456789abcdef") != digits)
        return rc;
    if (f.offset % SECTOR != 0 || f.length > UINT64_MAX - f.offset - SECTOR)
        return err_set(e, E_INVAL, "image file \"%.80s\": offset is no multiple of %u, or too long", text, SECTOR);
    memcpy(f.sha256, end, digits + 1);
    if (e)
        *e = (struct err){0};
    *ret_file = f;
    return E_OK;
}

void image_file_format(const struct image_file *f, char ret_text[112])
{
    snprintf(ret_text, 112, "%llu,%llu,%s%s", (unsigned long long)f->offset, (unsigned long long)f->length, f->complete ? "" : "?", f->sha256);
}

struct image_fetch {
    uv_loop_t *loop;
    uv_work_t work;
    struct image_reader reader;
    struct image_file f;
    char *dir, *path, *tmp, *mark;
    image_fetched *fn;
    void *arg;
    int fd, rc;
    struct err e;
    EVP_MD_CTX *sum;
    uint8_t *chunk;
    uint64_t done; /* bytes read so far */
    size_t n;      /* bytes of the file in `chunk` */
    bool present;
};

static void finish(struct image_fetch *x)
{
    if (x->fd >= 0)
        close(x->fd);
    if (x->rc != E_OK && x->tmp)
        (void)unlink(x->tmp);
    x->fn(x->arg, x->rc, x->rc == E_OK ? x->path : NULL, &x->e);
    EVP_MD_CTX_free(x->sum);
    free(x->chunk);
    free(x->dir);
    free(x->path);
    free(x->tmp);
    free(x->mark);
    free(x);
}

static void work(struct image_fetch *x, uv_work_cb run, uv_after_work_cb after)
{
    x->work.data = x;
    if (uv_queue_work(x->loop, &x->work, run, after) != 0)
        abort(); /* only for a NULL callback */
}

/* ---- end: worker compares and publishes ---- */

static void publish(uv_work_t *w)
{
    struct image_fetch *x = w->data;
    uint8_t md[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
    unsigned n = 0;
    EVP_DigestFinal_ex(x->sum, md, &n);
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", md[i]);
    if (strcmp(hex, x->f.sha256) != 0) {
        x->rc = err_set(&x->e, E_CORRUPT, "image file %s: its sha256 is %.16s… instead of %.16s…", x->path, hex, x->f.sha256);
        return;
    }
    int dir = open(x->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    (void)unlink(x->mark);
    if (dir < 0 || fsync(x->fd) < 0 || rename(x->tmp, x->path) < 0 || link(x->path, x->mark) < 0 || fsync(dir) < 0)
        x->rc = err_sys(&x->e, errno, "image file %s", x->path);
    if (dir >= 0)
        close(dir);
}

static void published(uv_work_t *w, int status) { finish(w->data); }

/* ---- middle: chunks ---- */

static void next_chunk(struct image_fetch *x);

static void store_chunk(uv_work_t *w)
{
    struct image_fetch *x = w->data;
    if (EVP_DigestUpdate(x->sum, x->chunk, x->n) != 1)
        x->rc = err_set(&x->e, E_NOMEM, "image file %s: sha256", x->path);
    for (size_t at = 0; x->rc == E_OK && at < x->n;) {
        ssize_t n = write(x->fd, x->chunk + at, x->n - at);
        if (n < 0 && errno != EINTR)
            x->rc = err_sys(&x->e, errno, "image file %s", x->path);
        at += n > 0 ? (size_t)n : 0;
    }
}

static void stored_chunk(uv_work_t *w, int status)
{
    struct image_fetch *x = w->data;
    if (x->rc != E_OK)
        finish(x);
    else if (x->done == x->f.length)
        work(x, publish, published);
    else
        next_chunk(x);
}

static void on_read(void *arg, int status)
{
    struct image_fetch *x = arg;
    if (status != E_OK) {
        x->rc = err_set(&x->e, status, "image file %s: reading its volume: %s", x->path, err_code_name(status));
        finish(x);
        return;
    }
    x->done += x->n;
    work(x, store_chunk, stored_chunk);
}

static void next_chunk(struct image_fetch *x)
{
    uint64_t left = x->f.length - x->done;
    x->n = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
    size_t whole = (x->n + SECTOR - 1) / SECTOR * SECTOR;
    x->reader.read(x->reader.ctx, x->f.offset + x->done, x->chunk, whole, on_read, x);
}

/* ---- begin: worker looks and opens ---- */

static bool same_file(const char *a, const char *b, uint64_t length)
{
    struct stat s, t;
    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_ino == t.st_ino && s.st_dev == t.st_dev && (uint64_t)s.st_size == length;
}

static void begin(uv_work_t *w)
{
    struct image_fetch *x = w->data;
    if (x->rc != E_OK)
        return;
    if (same_file(x->path, x->mark, x->f.length)) {
        x->present = true;
        return;
    }
    x->rc = file_mkdirs(x->dir, 0755, &x->e);
    if (x->rc != E_OK)
        return;
    x->fd = open(x->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (x->fd < 0) {
        x->rc = err_sys(&x->e, errno, "image file %s", x->tmp);
        return;
    }
    x->sum = EVP_MD_CTX_new();
    if (!x->sum || EVP_DigestInit_ex(x->sum, EVP_sha256(), NULL) != 1)
        x->rc = err_set(&x->e, E_NOMEM, "image file %s: sha256", x->path);
}

static void begun(uv_work_t *w, int status)
{
    struct image_fetch *x = w->data;
    if (x->rc != E_OK || x->present)
        finish(x);
    else if (x->f.length == 0)
        work(x, publish, published);
    else
        next_chunk(x);
}

void image_fetch(uv_loop_t *loop, const struct image_reader *reader, uint64_t volume_bytes, const struct image_file *f,
                 const char *dir, const char *name, image_fetched *fn, void *arg)
{
    struct image_fetch *x = xcalloc(1, sizeof *x);
    *x = (struct image_fetch){.loop = loop, .reader = *reader, .f = *f, .fn = fn, .arg = arg, .fd = -1};
    x->dir = xstrdup(dir);
    x->path = xasprintf("%s/%s", dir, name);
    x->tmp = xasprintf("%s/.%s.tmp", dir, name);
    x->mark = xasprintf("%s/.%s.%s", dir, name, f->sha256);
    x->chunk = xmalloc(CHUNK_BYTES);
    if (!name[0] || strchr(name, '/') || name[0] == '.')
        x->rc = err_set(&x->e, E_INVAL, "image file: \"%.40s\" is no file name", name);
    else if (f->offset % SECTOR != 0 || f->length > volume_bytes || f->offset > volume_bytes - f->length)
        x->rc = err_set(&x->e, E_INVAL, "image file %s: outside its volume", name);
    work(x, begin, begun);
}
