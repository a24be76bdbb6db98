/* Finds the command, parses its arguments, runs it, reports its failure. */
#include "cli/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "cli/api.h"
#include "cli/cmds.h"
#include "cli/table.h"

const struct cli_group cli_groups[] = {
    {"cluster", "found a cluster, join one, see how it is", cmds_cluster},
    {"node", "the machines of the cluster", cmds_node},
    {"disk", "the nodes' disks", cmds_disk},
    {"volume", "replicated virtual disks", cmds_volume},
    {"snapshot", "what volumes were at one moment", cmds_snapshot},
    {"image", "what vms boot from", cmds_image},
    {"vm", "virtual machines", cmds_vm},
    {"network", "virtual networks", cmds_network},
    {"port", "places on virtual networks", cmds_port},
    {"task", "long work", cmds_task},
    {"event", "what happened", cmds_event},
    {"token", "access to the API", cmds_token},
    {"nbd-client", "access to volumes by NBD over TLS", cmds_nbd_client},
    {"host", "this machine", cmds_host},
    {"debug", "a look inside", cmds_debug},
    {"log", "the daemon's log", cmds_log},
    {0},
};

static const struct cli_group *find_group(const char *name)
{
    for (const struct cli_group *g = cli_groups; g->name; g++)
        if (strcmp(g->name, name) == 0)
            return g;
    return NULL;
}

static const struct cmd *find_cmd(const struct cli_group *g, const char *verb)
{
    for (const struct cmd *cmd = g->cmds; cmd->verb; cmd++)
        if (strcmp(cmd->verb, verb) == 0)
            return cmd;
    return NULL;
}

static int report(const struct fail *f)
{
    char *message = text_clean(f->message, NULL), *hint = text_clean(f->hint, NULL);
    fflush(stdout); /* in order, when both go to one place */
    fprintf(stderr, "cohort: %s\n", message);
    if (*hint)
        fprintf(stderr, "  hint: %s\n", hint);
    free(message);
    free(hint);
    return f->exit;
}

static int unknown(const char *what, const char *word, const char *see)
{
    struct fail f;
    fail_set(&f, EXIT_USAGE, "unknown %s \"%.60s\"", what, word);
    fail_hint(&f, "see: cohort %s", see);
    return report(&f);
}

static bool is_help(const char *w) { return !strcmp(w, "help") || !strcmp(w, "--help") || !strcmp(w, "-h"); }

/* cohort help [GROUP [VERB]] */
static int help(int n, char **words)
{
    const struct cli_group *g = n > 0 ? find_group(words[0]) : NULL;
    const struct cmd *cmd = g && n > 1 ? find_cmd(g, words[1]) : NULL;
    if (n > 0 && !g)
        return unknown("command", words[0], "help");
    if (n > 1 && !cmd)
        return unknown("command", words[1], g->name);
    if (cmd)
        help_cmd(cmd);
    else if (g)
        help_group(g);
    else
        help_all();
    return EXIT_DONE;
}

/* JSON carries nothing else, and jansson would drop such a text without a word. */
static int check_utf8(struct cli *c, int n, char **words)
{
    for (int i = 0; i < n; i++) {
        json_t *text = json_string(words[i]);
        if (!text)
            return fail_set(&c->fail, EXIT_USAGE, "argument %d is not valid UTF-8", i + 1);
        json_decref(text);
    }
    return EXIT_DONE;
}

static int run_cmd(const struct cmd *cmd, int n, char **words)
{
    struct cli c = {.cmd = cmd};
    int rc = check_utf8(&c, n, words);
    if (rc == EXIT_DONE)
        rc = args_parse(&c, n, words);
    if (rc == EXIT_DONE && c.help)
        help_cmd(cmd);
    else if (rc == EXIT_DONE)
        rc = cmd->run(&c);
    api_close(c.api);
    if (rc == EXIT_DONE && fflush(stdout) != 0)
        rc = fail_set(&c.fail, EXIT_REFUSED, "the output could not be written");
    return rc == EXIT_DONE || !c.fail.exit ? rc : report(&c.fail);
}

/* Number of words that the options of every command take at the beginning ("cohort --json vm list"). */
static int leading_options(int n, char **words)
{
    int i = 0;
    while (i < n && strncmp(words[i], "--", 2) == 0) {
        const struct opt *o = args_global;
        size_t len = strcspn(words[i] + 2, "=");
        while (o->name && (strlen(o->name) != len || memcmp(o->name, words[i] + 2, len) != 0))
            o++;
        if (!o->name || strcmp(o->name, "help") == 0)
            break;
        i += o->arg && !words[i][2 + len] ? 2 : 1;
    }
    return i < n ? i : 0;
}

static int run_in_order(int n, char **words);

int cli_run(int argc, char **argv)
{
    int n = argc - 1, lead = leading_options(n, argv + 1);
    if (lead == 0 || lead + 2 > n)
        return run_in_order(n, argv + 1);
    /* group and verb first, then the options */
    char **words = xcalloc((size_t)n, sizeof *words);
    words[0] = argv[1 + lead];
    words[1] = argv[2 + lead];
    memcpy(words + 2, argv + 1, (size_t)lead * sizeof *words);
    memcpy(words + 2 + lead, argv + 3 + lead, (size_t)(n - lead - 2) * sizeof *words);
    int rc = run_in_order(n, words);
    free(words);
    return rc;
}

static int run_in_order(int n, char **words)
{
    if (n == 0 || is_help(words[0]))
        return help(n > 0 ? n - 1 : 0, words + 1);
    if (strcmp(words[0], "--version") == 0) {
        printf("cohort " COHORT_VERSION "\n");
        return EXIT_DONE;
    }
    const struct cli_group *g = find_group(words[0]);
    if (!g)
        return unknown("command", words[0], "help");
    if (n == 1 || is_help(words[1])) {
        help_group(g);
        return n == 1 ? EXIT_USAGE : EXIT_DONE;
    }
    const struct cmd *cmd = find_cmd(g, words[1]);
    return cmd ? run_cmd(cmd, n - 2, words + 2) : unknown("command", words[1], g->name);
}
