/* cohort image. An import announces the files, then sends one after the other; the last makes the image ready. An import
 * that was broken off goes on when it is asked for again: what is there is compared by its checksum, not sent again. */
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmds.h"
#include "cli/image_files.h"
#include "cli/progress.h"
#include "cli/show.h"
#include "cli/size.h"
#include "cli/wait.h"
#include "base/clock.h"

#define PIECE (1u << 20)

/* ---- list ---- */

static char *cell_files(const json_t *img)
{
    const char *name;
    json_t *v;
    struct buf b;
    buf_init(&b);
    json_object_foreach (json_object_get(img, "files"), name, v)
        buf_printf(&b, "%s%s", b.len ? ", " : "", name);
    return buf_take(&b);
}

static const struct field fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"KIND", "kind"}, {"STATE", "state"}, {"SIZE", "size_bytes", F_SIZE}, {"FILES", .fn = cell_files},
    {"VOLUME", "volume", F_ONE}, {"MESSAGE", "message"}, {0},
};

static int run_image_show(struct cli *c)
{
    struct answer a;
    struct buf out;
    const char *name;
    json_t *v;
    int rc = cli_call_on(c, "GET", "", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        buf_init(&out);
        show_object(a.json, fields, &out);
        buf_printf(&out, "\nFiles\n");
        json_object_foreach (json_object_get(a.json, "files"), name, v) {
            char t[SIZE_TEXT];
            const char *sha = text_of(v, "sha256");
            buf_printf(&out, "%-8s %10s  %s\n", name, size_format(int_of(v, "size_bytes"), t), *sha ? sha : "(not there yet)");
        }
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

/* ---- import ---- */

struct import {
    struct cli *c;
    const char *name;
    struct image_files files;
    int64_t total, before; /* bytes of all files; of those that are done */
    EVP_MD_CTX *md;
    struct progress progress;
};

static void hex_of(EVP_MD_CTX *md, char out[65])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    EVP_DigestFinal_ex(md, sum, NULL);
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", sum[i]);
}

static void on_passing(void *arg, const void *data, size_t len) { EVP_DigestUpdate(((struct import *)arg)->md, data, len); }

static void on_progress(void *arg, int64_t sent)
{
    struct import *m = arg;
    progress_step(&m->progress, m->before + sent, m->total, true);
}

static int open_file(struct import *m, const struct image_file *file, FILE **ret)
{
    *ret = fopen(file->path, "rb");
    if (*ret)
        return EXIT_DONE;
    return fail_set(&m->c->fail, EXIT_USAGE, "%s: %s", file->path, strerror(errno));
}

static int changed(struct import *m, const struct image_file *file)
{
    fail_set(&m->c->fail, EXIT_REFUSED, "what image %s holds as %s is not what %s holds", m->name, file->name, file->path);
    fail_hint(&m->c->fail, "it changed since, or was damaged: cohort image delete %s, then import again", m->name);
    return EXIT_REFUSED;
}

/* The file is there from an earlier attempt: the same? */
static int compare_file(struct import *m, const struct image_file *file, const char *sha)
{
    static char piece[PIECE];
    char mine[65];
    FILE *in;
    int rc = open_file(m, file, &in);
    if (rc != EXIT_DONE)
        return rc;
    EVP_DigestInit_ex(m->md, EVP_sha256(), NULL);
    for (size_t n; (n = fread(piece, 1, sizeof piece, in)) > 0;)
        EVP_DigestUpdate(m->md, piece, n);
    fclose(in);
    hex_of(m->md, mine);
    return strcmp(mine, sha) == 0 ? EXIT_DONE : changed(m, file);
}

static int send_file(struct import *m, const struct image_file *file)
{
    struct answer a;
    char suffix[40], mine[65];
    FILE *in;
    snprintf(suffix, sizeof suffix, "/files/%s", file->name);
    int rc = open_file(m, file, &in);
    if (rc != EXIT_DONE)
        return rc;
    char *path = api_path("/images", m->name, suffix, &m->c->fail);
    if (!path) {
        fclose(in);
        return m->c->fail.exit;
    }
    EVP_DigestInit_ex(m->md, EVP_sha256(), NULL);
    m->progress.label = file->name;
    struct upload_spec u = {path, in, file->size, on_passing, on_progress, m};
    rc = api_put_file(m->c->api, &u, &a, &m->c->fail);
    free(path);
    fclose(in);
    if (rc != EXIT_DONE)
        return rc;
    hex_of(m->md, mine);
    rc = strcmp(text_of(a.json, "sha256"), mine) == 0 ? EXIT_DONE : changed(m, file);
    answer_free(&a);
    return rc;
}

/* An image of that name exists: the rest of this very import, or something else? *ret gets its row. */
static int resume(struct import *m, struct answer *ret)
{
    struct cli *c = m->c;
    struct fail exists = c->fail;
    char *path = api_path("/images", m->name, "", &c->fail);
    if (!path)
        return c->fail.exit;
    int rc = cli_call(c, "GET", path, NULL, ret);
    free(path);
    if (rc != EXIT_DONE)
        return rc;
    const json_t *files = json_object_get(ret->json, "files");
    bool same = !strcmp(text_of(ret->json, "state"), "importing") && json_object_size(files) == (size_t)m->files.n;
    for (int i = 0; same && i < m->files.n; i++)
        same = int_of(json_object_get(files, m->files.file[i].name), "size_bytes") == m->files.file[i].size;
    if (same)
        return EXIT_DONE;
    c->fail = exists;
    fail_hint(&c->fail, "it is %s; to import anew: cohort image delete %s", text_of(ret->json, "state"), m->name);
    answer_free(ret);
    return c->fail.exit;
}

/* Announces the image. *ret_row: the existing one that is to be completed, or empty. */
static int announce(struct import *m, struct answer *ret_row)
{
    struct answer a;
    json_t *list = json_array();
    for (int i = 0; i < m->files.n; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "name", m->files.file[i].name, "size_bytes", (json_int_t)m->files.file[i].size));
    int rc = cli_call(m->c, "POST", "/images", json_pack("{s:s, s:s, s:o}", "name", m->name, "kind", m->files.kind, "files", list), &a);
    if (rc == EXIT_DONE)
        answer_free(&a);
    else if (strcmp(m->c->fail.code, "exists") == 0)
        rc = resume(m, ret_row);
    return rc;
}

static int transfer(struct import *m)
{
    struct answer row = {0};
    int rc = announce(m, &row);
    for (int i = 0; rc == EXIT_DONE && i < m->files.n; i++) {
        const struct image_file *file = &m->files.file[i];
        const char *sha = text_of(json_object_get(json_object_get(row.json, "files"), file->name), "sha256");
        rc = *sha ? compare_file(m, file, sha) : send_file(m, file);
        m->before += file->size;
    }
    answer_free(&row);
    if (rc == EXIT_UNREACHABLE || rc == EXIT_TIMEOUT)
        fail_hint(&m->c->fail, "the same command goes on where it stopped");
    return rc;
}

static enum waited is_ready(struct cli *c, const json_t *img, void *arg)
{
    if (img && strcmp(text_of(img, "state"), "ready") == 0)
        return WAIT_OK;
    if (img && strcmp(text_of(img, "state"), "importing") == 0)
        return WAIT_ON;
    fail_set(&c->fail, EXIT_REFUSED, "image %s is %s", (const char *)arg, img ? text_of(img, "message") : "gone");
    return WAIT_FAILED;
}

static int run_import(struct cli *c)
{
    struct import m = {.c = c, .name = args_get(c, "name"), .md = EVP_MD_CTX_new()};
    struct answer a;
    char size[SIZE_TEXT], time[SIZE_TEXT], rate[SIZE_TEXT], *path = NULL;
    uint64_t began = clock_boot_ms();
    int rc = image_files_find(c->pos[0], &m.files, &c->fail);
    for (int i = 0; i < m.files.n; i++)
        m.total += m.files.file[i].size;
    if (rc == EXIT_DONE && !(path = api_path("/images", m.name, "", &c->fail)))
        rc = c->fail.exit;
    progress_begin(&m.progress, "");
    if (rc == EXIT_DONE)
        rc = transfer(&m);
    progress_end(&m.progress);
    if (rc == EXIT_DONE)
        rc = wait_for(c, path, is_ready, (void *)(uintptr_t)m.name, "the image to be ready", &a);
    free(path);
    EVP_MD_CTX_free(m.md);
    if (rc != EXIT_DONE)
        return rc;
    int64_t ms = (int64_t)(clock_boot_ms() - began);
    return cli_finish(c, &a, "image %s imported: %s in %s (%s/s)", m.name, size_format(m.total, size), duration_format(ms, time),
                  size_format(m.total * 1000 / (ms > 0 ? ms : 1), rate));
}

static const struct opt import_opts[] = {
    {"name", "NAME", OPT_REQUIRED, "the image's name"},
    {"wait", NULL, 0, "taken for granted: an import returns when the image is ready"},
    {0},
};
static const struct opt delete_opts[] = {WAIT_OPTS, {0}};

const struct cmd cmds_image[] = {
    {"image", "import", "FILE|DIR", run_import, import_opts, "send a raw disk, or a directory with kernel, initrd and cmdline",
     "FILE: a raw disk image (others: qemu-img convert -O raw FILE disk.raw).\n"
     "DIR: kernel or vmlinuz*, initrd*, and cmdline if the kernel needs one; other files are left out.\n"
     "An import that broke off goes on when it is repeated on the same node.\n"
     "Example: cohort image import build/guest --name debian", .path = "/images"},
    {"image", "list", "", run_list, NULL, "images", .path = "/images", .fields = fields},
    {"image", "show", "IMAGE", run_image_show, NULL, "one image with its files' checksums", .path = "/images"},
    {"image", "delete", "IMAGE", run_delete, delete_opts, "delete an image that no vm boots from", .path = "/images"},
    {0},
};
