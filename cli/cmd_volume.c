/* cohort volume. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cmd_volume.h"
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/size.h"
#include "cli/wait.h"

static char *cell_check(const json_t *o)
{
    static const struct field when = {"", "done_ms", F_TIME};
    const json_t *check = json_object_get(o, "check");
    if (!int_of(check, "done_ms"))
        return xstrdup(json_is_true(json_object_get(check, "wanted")) ? "under way" : "never");
    char *t = field_text(&when, check), u[SIZE_TEXT];
    char *text = xasprintf("%s, %s repaired%s%s", t, size_format(int_of(check, "repaired_bytes"), u),
                           int_of(check, "unrepairable_bytes") ? ", DATA LOST: see --json" : "",
                           json_is_true(json_object_get(check, "wanted")) ? "; under way again" : "");
    free(t);
    return text;
}

static char *cell_iops(const json_t *o)
{
    int64_t n = int_of(o, "iops");
    return n ? xasprintf("%" PRId64 "/s, burst %.3g s", n, (double)int_of(o, "burst_ms") / 1000) : xstrdup("none");
}

static char *cell_bandwidth(const json_t *o)
{
    char t[SIZE_TEXT];
    int64_t n = int_of(o, "bandwidth_bytes");
    return n ? xasprintf("%s/s, burst %.3g s", size_format(n, t), (double)int_of(o, "burst_ms") / 1000) : xstrdup("none");
}

static const struct field fields[] = {
    {"NAME", "name"}, {"ID", "id", F_ONE}, {"SIZE", "size_bytes", F_SIZE}, {"USED", "used_bytes", F_SIZE}, {"COPIES", "replicas", F_NUMBER}, {"HEALTH", "health"},
    {"VM", "vm"}, {"OWNER", "owner"}, {"STATE", "state"}, {"PURPOSE", "purpose"}, {"CLASS", "class", F_ONE}, {"SEALED", "sealed", F_ONE}, {"EPOCH", "epoch", F_ONE},
    {"SHARD SIZE", "shard_bytes", F_SIZE | F_ONE}, {"ON", "parent", F_ONE}, {"WHY", "health_reason"},
    {"ENCRYPTED", "encrypted", F_ONE}, {"CHECKED", .kind = F_ONE, .fn = cell_check}, {"IOPS LIMIT", .kind = F_ONE, .fn = cell_iops}, {"RATE LIMIT", .kind = F_ONE, .fn = cell_bandwidth}, {0},
};

/* "n1/d0, n2/d0 (behind; node dead)" */
static char *cell_replicas(const json_t *shard)
{
    const json_t *list = json_object_get(shard, "replicas");
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *r = json_array_get(list, i);
        bool in_sync = json_is_true(json_object_get(r, "in_sync"));
        const char *state = text_of(r, "node_state");
        buf_printf(&b, "%s%s/%s", i ? ", " : "", text_of(r, "node"), text_of(r, "disk"));
        if (!in_sync)
            buf_printf(&b, " (behind; node %s)", state);
    }
    return buf_take(&b);
}

static const struct field shard_fields[] = {
    {"SHARD", "index", F_NUMBER}, {"GENERATION", "generation", F_NUMBER}, {"IN SYNC", "in_sync", F_NUMBER}, {"USED", "used_bytes", F_SIZE}, {"COPIES", .fn = cell_replicas}, {0},
};

static const struct field client_fields[] = {{"CLIENT", "client"}, {"MODE", "mode"}, {0}};

static int run_volume_show(struct cli *c)
{
    struct answer a;
    struct buf out;
    int rc = cli_call_on(c, "GET", "", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        buf_init(&out);
        show_object(a.json, fields, &out);
        show_part(a.json, "shards", "Shards", shard_fields, &out);
        show_part(a.json, "nbd_clients", "NBD clients", client_fields, &out);
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

static int run_create(struct cli *c)
{
    struct answer a;
    int64_t size = 0, replicas = 0;
    char t[SIZE_TEXT];
    int rc = args_size(c, "size", &size);
    if (rc == EXIT_DONE)
        rc = args_int(c, "replicas", 1, 3, &replicas);
    if (rc != EXIT_DONE)
        return rc;
    json_t *body = json_pack("{s:s, s:I}", "name", c->pos[0], "size_bytes", (json_int_t)size);
    if (body && args_has(c, "encrypted"))
        json_object_set_new(body, "encrypted", json_true());
    if (body && replicas)
        json_object_set_new(body, "replicas", json_integer(replicas));
    const char *class = args_get(c, "class");
    if (body && class)
        json_object_set_new(body, "class", json_string(class));
    rc = cli_call(c, "POST", c->cmd->path, body, &a);
    bool memory = class && strcmp(class, "memory") == 0;
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s created (%s)%s", c->pos[0], size_format(size, t),
                                        memory ? " in memory: it is lost with its last replica" : "") : rc;
}

static int run_reset(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/reset", NULL, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s is empty and can be used again", c->pos[0]) : rc;
}

static int run_resize(struct cli *c)
{
    struct answer a;
    int64_t size = 0;
    char t[SIZE_TEXT];
    if (!size_parse(c->pos[1], &size))
        return fail_set(&c->fail, EXIT_USAGE, "\"%.40s\" is no size; write 4096, 512M, 1G or 2T", c->pos[1]);
    int rc = cli_call_on(c, "POST", "/resize", json_pack("{s:I}", "size_bytes", (json_int_t)size), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s has %s; a running guest sees it now", c->pos[0], size_format(size, t)) : rc;
}

static int run_set(struct cli *c)
{
    struct answer a;
    int64_t iops = -1, bandwidth = -1, burst = -1;
    int rc = args_int(c, "iops", 0, INT64_C(10000000), &iops);
    if (rc == EXIT_DONE)
        rc = args_size(c, "bandwidth", &bandwidth);
    if (rc == EXIT_DONE)
        rc = args_duration(c, "burst", &burst);
    if (rc != EXIT_DONE)
        return rc;
    json_t *body = json_object();
    if (iops >= 0)
        json_object_set_new(body, "iops", json_integer(iops));
    if (bandwidth >= 0)
        json_object_set_new(body, "bandwidth_bytes", json_integer(bandwidth));
    if (burst >= 0)
        json_object_set_new(body, "burst_ms", json_integer(burst * 1000));
    rc = cli_call_on(c, "POST", "/limits", body, &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s: limits changed, they hold at once", c->pos[0]) : rc;
}

/* "4.2 GiB compared, 8 KiB wrong, 8 KiB repaired" */
static char *check_text(const json_t *check)
{
    char a[SIZE_TEXT], b[SIZE_TEXT], d[SIZE_TEXT], u[SIZE_TEXT];
    const json_t *list = json_object_get(check, "unrepairable");
    struct buf out;
    buf_init(&out);
    buf_printf(&out, "%s compared, %s wrong, %s repaired", size_format(int_of(check, "checked_bytes"), a),
               size_format(int_of(check, "bad_bytes"), b), size_format(int_of(check, "repaired_bytes"), d));
    if (int_of(check, "unrepairable_bytes"))
        buf_printf(&out, ", %s without a good copy (restore from a backup) at", size_format(int_of(check, "unrepairable_bytes"), u));
    for (size_t i = 0; i < json_array_size(list); i++)
        buf_printf(&out, " %s", json_string_value(json_array_get(list, i)));
    return buf_take(&out);
}

static enum waited judge_check(struct cli *c, const json_t *row, void *arg)
{
    if (!row) {
        fail_set(&c->fail, EXIT_REFUSED, "volume %s was deleted", c->pos[0]);
        return WAIT_FAILED;
    }
    return json_is_true(json_object_get(json_object_get(row, "check"), "wanted")) ? WAIT_ON : WAIT_OK;
}

static int run_check(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/check", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (!args_has(c, "wait"))
        return cli_finish(c, &a, "volume %s: check asked for; see its progress with cohort task list, its result with cohort volume show", c->pos[0]);
    answer_free(&a);
    char *path = xasprintf("/volumes/%s", c->pos[0]), *what = xasprintf("the check of volume %s", c->pos[0]);
    rc = wait_for(c, path, judge_check, NULL, what, &a);
    free(path);
    free(what);
    if (rc != EXIT_DONE)
        return rc;
    const json_t *check = json_object_get(a.json, "check");
    char *text = check_text(check);
    bool lost = int_of(check, "unrepairable_bytes") > 0;
    rc = cli_finish(c, &a, "volume %s: %s", c->pos[0], text);
    free(text);
    return rc == EXIT_DONE && lost ? EXIT_REFUSED : rc;
}

/* Without the flag it says what would be lost, and does nothing. */
static int run_give_up(struct cli *c)
{
    struct answer a;
    struct buf list;
    if (args_has(c, "accept-data-loss")) {
        int rc = cli_call_on(c, "POST", "/give-up", json_pack("{s:b}", "accept_data_loss", 1), &a);
        return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s: given up; copies are made without those blocks now, and reading them fails until they "
                                            "are written again", c->pos[0]) : rc;
    }
    int rc = cli_call_on(c, "GET", "", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    const json_t *blocks = json_object_get(a.json, "unreadable");
    buf_init(&list);
    for (size_t i = 0; i < json_array_size(blocks); i++)
        buf_printf(&list, " %s", json_string_value(json_array_get(blocks, i)));
    char *text = buf_take(&list);
    bool any = json_array_size(blocks) > 0;
    answer_free(&a);
    fail_set(&c->fail, EXIT_USAGE, any ? "nothing was done. No copy in sync of volume %s can read, in bytes (offset+length):%s. Bring back a disk that held a good "
             "copy; if there is none, give them up for good: --accept-data-loss" : "volume %s has no block that keeps copies from being made%s", c->pos[0],
             text ? text : "");
    free(text);
    return EXIT_USAGE;
}

static const struct opt give_up_opts[] = {{"accept-data-loss", NULL, 0, "do it: what no copy can read is lost for good"}, {0}};
static const struct opt check_opts[] = {WAIT_OPTS, {0}};
static const struct opt set_opts[] = {
    {"iops", "N", 0, "most requests per second, reads and writes together; 0 = no limit"},
    {"bandwidth", "SIZE", 0, "most bytes per second (64K at least); 0 = no limit"},
    {"burst", "TIME", 0, "an idle volume saves up so much of its limits, 1s to 10m (default 1s)"},
    {0},
};

static int run_clone(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/clone", json_pack("{s:s}", "name", c->pos[1]), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s made; it shares the data of %s", c->pos[1], c->pos[0]) : rc;
}

static enum waited judge_flatten(struct cli *c, const json_t *row, void *arg)
{
    if (!row || (!json_is_true(json_object_get(row, "flatten")) && *text_of(row, "parent"))) {
        fail_set(&c->fail, EXIT_REFUSED, row ? "it was canceled; volume %s still shares data" : "volume %s was deleted", c->pos[0]);
        return WAIT_FAILED;
    }
    return json_is_true(json_object_get(row, "flatten")) ? WAIT_ON : WAIT_OK;
}

static int run_flatten(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "POST", "/flatten", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (!args_has(c, "wait"))
        return cli_finish(c, &a, "volume %s: copying what it shares; see its progress with cohort task list", c->pos[0]);
    answer_free(&a);
    char *path = xasprintf("/volumes/%s", c->pos[0]), *what = xasprintf("volume %s to stand alone", c->pos[0]);
    rc = wait_for(c, path, judge_flatten, NULL, what, &a);
    free(path);
    free(what);
    return rc == EXIT_DONE ? cli_finish(c, &a, "volume %s shares no data any more", c->pos[0]) : rc;
}

static const struct opt export_opts[] = {
    {"from", "SNAPSHOT", 0, "only what is different from it: VOLUME@NAME, or NAME of this volume's"},
    {"timeout", "TIME", 0, "give up waiting for the snapshot after this (default 5m; exit status 4)"},
    {0},
};
static const struct opt import_opts[] = {
    {"name", "VOLUME", 0, "default: the name in the file"},
    {"replicas", "N", 0, "of a new volume: copies on different nodes, 1 to 3"},
    {"encrypted", NULL, 0, "of a new volume: every copy holds ciphertext only"},
    {"timeout", "TIME", 0, "give up waiting for the snapshot after this (default 5m; exit status 4)"},
    {0},
};
static const struct opt changed_opts[] = {
    {"from", "SNAPSHOT", OPT_REQUIRED, "VOLUME@NAME, or NAME of this volume's"},
    {"to", "SNAPSHOT", 0, "another snapshot (default: what the volume holds now)"},
    {0},
};
static const struct opt create_opts[] = {
    {"size", "SIZE", OPT_REQUIRED, "from 1M to 4T"},
    {"encrypted", NULL, 0, "every copy holds ciphertext only (AES-256-XTS); needs the cluster key: cohort cluster key set"},
    {"replicas", "N", 0, "copies on different nodes, 1 to 3 (default: 3, or as many as there are nodes)"},
    {"class", "CLASS", 0, "storage (the default), or memory: fast, in the nodes' memory only, lost with its last replica"},
    {0},
};
static const struct opt delete_opts[] = {WAIT_OPTS, {0}};

const struct cmd cmds_volume[] = {
    {"volume", "create", "NAME", run_create, create_opts, "make a volume", .more = "Class memory (scratch, swap, tests) needs disks in memory: cohort disk add NODE:DISK --memory SIZE.\n"
             "Example: cohort volume create db1 --size 20G --replicas 3\n"
             "         cohort volume create scratch --size 4G --class memory --replicas 2", .path = "/volumes"},
    {"volume", "clone", "SNAPSHOT NAME", run_clone, NULL, "make a volume that begins as a snapshot, sharing its data",
     .more = "Example: cohort volume clone gold@v1 web1-disk", .path = "/volumes"},
    {"volume", "flatten", "VOLUME", run_flatten, delete_opts, "copy all that a clone shares with others, so that it stands alone",
     .more = "Goes on in the background while the volume is used, by its next owner if a node fails; cohort task cancel ends it.", .path = "/volumes"},
    {"volume", "changed", "VOLUME", volume_changed, changed_opts, "where a volume may differ from a snapshot",
     .more = "In units of 64 KiB; what is not listed is the same in both. NBD tells it as context cohort:changed:SNAPSHOT.\n"
             "Example: cohort volume changed db1 --from monday --to tuesday", .path = "/volumes"},
    {"volume", "export", "VOLUME[@SNAPSHOT] FILE", volume_export, export_opts, "write what a snapshot holds, or what changed since another, to a file",
     .more = "Without @SNAPSHOT one is taken, and kept as the base of the next export. The file holds plain data, also of encrypted volumes.\n"
             "Example: cohort volume export db1@monday db1-full.cohort\n"
             "         cohort volume export db1@tuesday db1-tue.cohort --from monday", .path = "/volumes"},
    {"volume", "import", "FILE", volume_import, import_opts, "make a volume of an exported file, or bring it forward by an incremental one",
     .more = "A complete file makes a new volume. An incremental one needs the volume at the snapshot that the file continues, unchanged since;\n"
             "any other is refused. Each import ends with a snapshot of the exported one's name. One that broke off leaves the volume\n"
             "\"importing\": delete it, or revert it to that snapshot, and import again.\n"
             "Example: cohort volume import db1-full.cohort --name db1-copy", .path = "/imports"},
    {"volume", "list", "", run_list, NULL, "volumes with health", .path = "/volumes", .fields = fields},
    {"volume", "show", "VOLUME", run_volume_show, NULL, "one volume with the place and state of every copy", .path = "/volumes"},
    {"volume", "resize", "VOLUME SIZE", run_resize, NULL, "grow a volume", .more = "Example: cohort volume resize db1 40G. Volumes do not shrink.", .path = "/volumes"},
    {"volume", "check", "VOLUME", run_check, check_opts, "compare all copies of a volume and repair what differs",
     .more = "Goes on while the volume is used; cohort task cancel ends it. Each volume is checked once a week by itself.", .path = "/volumes"},
    {"volume", "give-up", "VOLUME", run_give_up, give_up_opts, "give up blocks that no copy in sync can read, so that copies can be made",
     .more = "Last resort, after an alarm that names them. Reading them fails with an I/O error until they are written again.", .path = "/volumes"},
    {"volume", "set", "VOLUME", run_set, set_opts, "limit what a volume's guest may do",
     .more = "Example: cohort volume set db1 --iops 500 --bandwidth 50M --burst 10s", .path = "/volumes"},
    {"volume", "reset", "VOLUME", run_reset, NULL, "use a volume of class memory again, empty, after its last copy was lost",
     .more = "Refused while a copy is left, and while a vm or another program uses it.", .path = "/volumes"},
    {"volume", "delete", "VOLUME", run_delete, delete_opts, "delete a volume and what is in it", .path = "/volumes"},
    {0},
};
