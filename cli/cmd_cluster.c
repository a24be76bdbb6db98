/* cohort cluster: found, join, status, join tokens. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "cli/cmds.h"
#include "cli/show.h"
#include "cli/size.h"

static int run_init(struct cli *c)
{
    struct answer a;
    int rc = cli_call(c, "POST", "/cluster/init", json_pack("{s:s}", "name", c->pos[0]), &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        printf("cluster %s founded; this node is its first member\n"
               "admin token (shown only now): %s\n"
               "next, for every other node: cohort cluster token here, then on the node: cohort cluster join TOKEN\n",
               text_of(a.json, "cluster"), text_of(a.json, "admin_token"));
    }
    answer_free(&a);
    return EXIT_DONE;
}

/* The token's text: the argument, or a line of standard input for "-" (arguments are seen by every user of a machine). */
static int read_token(struct cli *c, char *out, size_t size)
{
    if (strcmp(c->pos[0], "-") != 0) {
        snprintf(out, size, "%s", c->pos[0]);
        return EXIT_DONE;
    }
    if (!fgets(out, (int)size, stdin))
        return fail_set(&c->fail, EXIT_USAGE, "no token came by standard input");
    out[strcspn(out, "\r\n")] = '\0';
    return EXIT_DONE;
}

static int run_join(struct cli *c)
{
    struct answer a;
    char token[4096];
    int rc = read_token(c, token, sizeof token);
    if (rc == EXIT_DONE)
        rc = cli_call(c, "POST", "/cluster/join", json_pack("{s:s}", "token", token), &a);
    if (rc != EXIT_DONE)
        return rc;
    const char *name = text_of(a.json, "cluster");
    return cli_finish(c, &a, "joined%s%s; see: cohort cluster status", *name ? " cluster " : "", name);
}

static int run_token(struct cli *c)
{
    struct answer a;
    int64_t ttl_s = 3600;
    char t[SIZE_TEXT];
    const char *role = args_get(c, "role");
    int rc = args_word(c, "role", "join");
    if (rc == EXIT_DONE)
        rc = args_duration(c, "ttl", &ttl_s);
    if (rc == EXIT_DONE)
        rc = cli_call(c, "POST", "/cluster/tokens", json_pack("{s:s, s:I}", "role", role ? role : "join", "ttl_s", (json_int_t)ttl_s), &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else {
        puts(text_of(a.json, "token"));
        fprintf(stderr, "valid for %s and for one node; on it: cohort cluster join TOKEN\n", duration_format(ttl_s * 1000, t));
    }
    answer_free(&a);
    return EXIT_DONE;
}

/* ---- status ---- */

static char *cell_nodes(const json_t *o)
{
    const json_t *n = json_object_get(o, "nodes");
    return xasprintf("%" PRId64 " of %" PRId64 " up%s", int_of(n, "up"), int_of(n, "total"), int_of(n, "dead") ? ", some dead" : "");
}

static char *cell_database(const json_t *o)
{
    static const struct field voters = {"", "voters", F_LIST};
    const json_t *d = json_object_get(o, "database");
    char *list = field_text(&voters, d);
    char *out = xasprintf("%s, voters %s", json_is_true(json_object_get(d, "connected")) ? "connected" : "NOT CONNECTED", list);
    free(list);
    return out;
}

static char *cell_volumes(const json_t *o)
{
    static const char *const states[] = {"healthy", "resyncing", "degraded", "parked", "lost"};
    const json_t *v = json_object_get(o, "volumes");
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < sizeof states / sizeof *states; i++)
        if (int_of(v, states[i]))
            buf_printf(&b, "%s%" PRId64 " %s", b.len ? ", " : "", int_of(v, states[i]), states[i]);
    return b.len ? buf_take(&b) : xstrdup("none");
}

static char *cell_vms(const json_t *o)
{
    const json_t *v = json_object_get(o, "vms");
    return xasprintf("%" PRId64 " of %" PRId64 " running", int_of(v, "running"), int_of(v, "total"));
}

static const struct field status_fields[] = {
    {"CLUSTER", "name"},   {"UUID", "uuid"},       {"THIS NODE", "this_node"},   {"COORDINATOR", "coordinator"},
    {"NODES", .fn = cell_nodes}, {"DATABASE", .fn = cell_database}, {"VOLUMES", .fn = cell_volumes}, {"VMS", .fn = cell_vms},
    {"VERSION", "version"}, {"KEY", "key"}, {0},
};
static const struct field alarm_fields[] = {
    {"SEVERITY", "severity"}, {"OBJECT", "object"}, {"MESSAGE", "message"}, {"NEXT", "next"}, {0},
};

static int run_status(struct cli *c)
{
    struct answer a;
    struct buf out;
    int rc = cli_call(c, "GET", "/cluster", NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    if (c->json) {
        cli_put_answer(&a);
    } else if (!json_object_get(a.json, "name")) {
        printf("this node: %s\nin a cluster: %s\n", text_of(a.json, "this_node"), json_is_true(json_object_get(a.json, "member")) ? "yes" : "no");
        printf("%s\n", text_of(a.json, "message"));
        if (*text_of(a.json, "hint"))
            printf("  hint: %s\n", text_of(a.json, "hint"));
    } else {
        buf_init(&out);
        show_object(a.json, status_fields, &out);
        if (json_array_size(json_object_get(a.json, "alarms")) == 0)
            buf_printf(&out, "alarms:       none\n");
        show_part(a.json, "alarms", "Alarms", alarm_fields, &out);
        cli_put(&out);
    }
    answer_free(&a);
    return EXIT_DONE;
}

/* The passphrase: the bytes of a file up to its last line end, or standard input's first line. Never from the command line, which
 * others on this machine can see. */
static int read_passphrase(struct cli *c, char *out, size_t size)
{
    const char *path = args_get(c, "key-file");
    FILE *f = path ? fopen(path, "r") : stdin;
    if (!f)
        return fail_set(&c->fail, EXIT_USAGE, "cannot read %.200s: %s", path, strerror(errno));
    if (!path && isatty(0))
        fprintf(stderr, "passphrase: ");
    size_t n = path ? fread(out, 1, size - 1, f) : fgets(out, (int)size, f) ? strlen(out) : 0;
    if (path)
        fclose(f);
    while (n && (out[n - 1] == '\n' || out[n - 1] == '\r'))
        n--;
    out[n] = '\0';
    if (n == size - 1 || strlen(out) != n || n < 8)
        return fail_set(&c->fail, EXIT_USAGE, "the passphrase must be text of 8 to 65536 bytes");
    return EXIT_DONE;
}

static int run_key(struct cli *c)
{
    static char pass[65538];
    struct answer a;
    bool set = strcmp(c->pos[0], "set") == 0;
    if (!set && strcmp(c->pos[0], "unlock") != 0)
        return fail_set(&c->fail, EXIT_USAGE, "\"%.40s\" is neither set nor unlock", c->pos[0]);
    int rc = read_passphrase(c, pass, sizeof pass);
    if (rc == EXIT_DONE)
        rc = cli_call(c, "POST", set ? "/cluster/key" : "/cluster/key/unlock", json_pack("{s:s}", "passphrase", pass), &a);
    memset(pass, 0, sizeof pass);
    if (rc != EXIT_DONE)
        return rc;
    return set ? cli_finish(c, &a, "the cluster key is locked by this passphrase now. Without it encrypted volumes are lost: keep it safe, elsewhere")
               : cli_finish(c, &a, "unlocked; the other nodes get the key from this one");
}

static const struct opt key_opts[] = {{"key-file", "FILE", 0, "text file instead of a passphrase on standard input"}, {0}};
static const struct opt token_opts[] = {
    {"role", "ROLE", 0, "join, the only one"},
    {"ttl", "TIME", 0, "how long it is valid (default 1h)"},
    {0},
};

static int run_set(struct cli *c)
{
    struct answer a;
    int rc = cli_call_on(c, "PUT", "", json_pack("{s:s}", "value", c->pos[1]), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "%s is %s now", c->pos[0], c->pos[1]) : rc;
}

const struct cmd cmds_cluster[] = {
    {"cluster", "init", "NAME", run_init, NULL, "found a cluster; this node is its first member"},
    {"cluster", "join", "TOKEN", run_join, NULL, "make this node a member; - reads the token from standard input"},
    {"cluster", "set", "SETTING VALUE", run_set, NULL, "change a setting of the cluster", .path = "/settings",
     .more = "repair_absent_s  seconds after which the copies of a node that is gone are made anew elsewhere (600)\n"
             "repair_balance   on, off: move copies from full disks to empty ones (on)\n"
             "rebuild_p99_ms   copying slows down while the guests' requests take longer than this (20)\n"
             "disk_slow_ms     a disk this slow for disk_slow_s of 5 minutes raises an alert (25)\n"
             "disk_isolate_ms  and one this slow is isolated, if other copies are good (125)\n"
             "disk_slow_s      (60)\n"
             "leftover_keep_s  copies of volumes that were deleted while their node was away stay so long after its return (600)"},
    {"cluster", "status", "", run_status, NULL, "members, health, alarms and what to do about them"},
    {"cluster", "key", "set|unlock", run_key, key_opts, "key of encrypted volumes: make it or change its passphrase; unlock it after a power cut"},
    {"cluster", "token", "", run_token, token_opts, "make a token with which one more node joins"},
    {0},
};
