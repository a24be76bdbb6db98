/* cohort nbd-client. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"
#include "cli/cmds.h"
#include "cli/show.h"

#define CERT_BYTES_MAX 12000

/* "db1 (ro), db2 (rw)" */
static char *cell_volumes(const json_t *o)
{
    const json_t *list = json_object_get(o, "volumes"), *v;
    struct buf b;
    size_t i;
    buf_init(&b);
    json_array_foreach (list, i, v)
        buf_printf(&b, "%s%s (%s)", i ? ", " : "", text_of(v, "volume"), text_of(v, "mode"));
    if (!b.len)
        buf_printf(&b, "-");
    return buf_take(&b);
}

static const struct field fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"VOLUMES", .fn = cell_volumes}, {"EXPIRES IN", "expires_ms", F_UNTIL}, {"CREATOR", "creator"},
    {"FINGERPRINT", "fingerprint", F_ONE}, {0},
};

/* The files by the names under which libnbd and QEMU look for them. */
static const struct { const char *name, *key; mode_t mode; } files[] = {
    {"ca-cert.pem", "ca", 0644}, {"client-cert.pem", "certificate", 0644}, {"client-key.pem", "key", 0600},
};
#define N_FILES (sizeof files / sizeof *files)

/* Before anything is asked for: what is made can be written only here, and nothing of somebody else's is overwritten. */
static int prepare(struct cli *c, const char *dir)
{
    struct err e;
    if (file_mkdirs(dir, 0700, &e) != E_OK)
        return fail_set(&c->fail, EXIT_USAGE, "%s", e.msg);
    for (size_t i = 0; i < N_FILES; i++) {
        char *path = xasprintf("%s/%s", dir, files[i].name);
        bool there = access(path, F_OK) == 0;
        if (there)
            fail_set(&c->fail, EXIT_USAGE, "%s exists already; name another directory with --dir", path);
        free(path);
        if (there)
            return EXIT_USAGE;
    }
    return access(dir, W_OK) ? fail_set(&c->fail, EXIT_USAGE, "%s: %s", dir, strerror(errno)) : EXIT_DONE;
}

static int write_files(struct cli *c, const char *dir, const json_t *answer)
{
    struct err e;
    for (size_t i = 0; i < N_FILES; i++) {
        char *path = xasprintf("%s/%s", dir, files[i].name);
        const char *text = text_of(answer, files[i].key);
        int rc = *text ? file_write(path, text, strlen(text), files[i].mode, &e) : E_OK; /* a client with its own has no key here */
        free(path);
        if (rc != E_OK) {
            fail_set(&c->fail, EXIT_REFUSED, "%s", e.msg);
            fail_hint(&c->fail, "the client exists but its key is lost: cohort nbd-client delete %s", c->pos[0]);
            return EXIT_REFUSED;
        }
    }
    return EXIT_DONE;
}

static int run_create(struct cli *c)
{
    struct answer a;
    int64_t ttl_s = 0;
    const char *dir = args_get(c, "dir"), *own = args_get(c, "certificate");
    char *pem = NULL;
    size_t len;
    struct err e;
    int rc = args_duration(c, "ttl", &ttl_s);
    if (rc == EXIT_DONE && !dir && !own && !c->json)
        rc = fail_set(&c->fail, EXIT_USAGE, "--dir is needed: the certificate and its key are written there, and kept nowhere else");
    if (rc == EXIT_DONE && dir)
        rc = prepare(c, dir);
    if (rc == EXIT_DONE && own && file_read(own, CERT_BYTES_MAX, &pem, &len, &e) != E_OK)
        rc = fail_set(&c->fail, EXIT_USAGE, "%s", e.msg);
    if (rc != EXIT_DONE)
        return rc;
    json_t *body = json_pack("{s:s}", "name", c->pos[0]);
    if (body && ttl_s)
        json_object_set_new(body, "ttl_s", json_integer(ttl_s));
    if (body && pem)
        json_object_set_new(body, "certificate", json_string(pem));
    free(pem);
    rc = cli_call(c, "POST", c->cmd->path, body, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (dir && (rc = write_files(c, dir, a.json)) != EXIT_DONE) {
        answer_free(&a);
        return rc;
    }
    return cli_finish(c, &a, "NBD client %s made%s%s; it may use nothing yet: cohort nbd-client allow %s VOLUME", c->pos[0],
                      dir ? ", its files are in " : "", dir ? dir : "", c->pos[0]);
}

static int change(struct cli *c, const char *mode, const char *sentence)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/access", json_pack("{s:s, s:s}", "volume", c->pos[1], "mode", mode), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "NBD client %s %s volume %s", c->pos[0], sentence, c->pos[1]) : rc;
}

static int run_allow(struct cli *c)
{
    return args_has(c, "write") ? change(c, "rw", "may read and write") : change(c, "ro", "may read");
}

static int run_deny(struct cli *c)
{
    return change(c, "none", "may no longer use; within a second it is cut off from");
}

static const struct opt create_opts[] = {
    {"dir", "DIR", 0, "where ca-cert.pem, client-cert.pem and client-key.pem go"},
    {"certificate", "FILE", 0, "the client's own certificate (PEM) instead of a new one; its key stays where it is"},
    {"ttl", "TIME", 0, "how long it is valid (default: 10 years)"},
    {0},
};
static const struct opt allow_opts[] = {{"write", NULL, 0, "also write (default: read only)"}, {0}};

const struct cmd cmds_nbd_client[] = {
    {"nbd-client", "create", "NAME", run_create, create_opts, "make a certificate for a client",
     .more = "Nodes serve NBD over TLS at the port nbd_port of their configuration. A client sees and uses only the volumes that are\n"
             "allowed to it, and their snapshots.\n"
             "Example: cohort nbd-client create backup1 --dir /etc/backup/pki\n"
             "         cohort nbd-client allow backup1 db1\n"
             "         nbdcopy 'nbds://NODE:10809/db1?tls-certificates=/etc/backup/pki' db1.raw", .path = "/nbd-clients"},
    {"nbd-client", "list", "", run_list, NULL, "clients and the volumes they may use", .path = "/nbd-clients", .fields = fields},
    {"nbd-client", "show", "CLIENT", run_show, NULL, "one client", .path = "/nbd-clients", .fields = fields},
    {"nbd-client", "allow", "CLIENT VOLUME", run_allow, allow_opts, "let it read a volume and its snapshots",
     .more = "Given again without --write it takes the right to write away.\nExample: cohort nbd-client allow backup1 db1", .path = "/nbd-clients"},
    {"nbd-client", "deny", "CLIENT VOLUME", run_deny, NULL, "take a volume from it", .path = "/nbd-clients"},
    {"nbd-client", "delete", "CLIENT", run_delete, NULL, "end its certificate at once", .path = "/nbd-clients"},
    {0},
};
