/* `cohort help`: everything comes from the command tables. */
#include <stdio.h>
#include <string.h>
#include "cli/cli.h"

static void print_opts(const struct opt *o)
{
    for (; o && o->name; o++) {
        char left[80];
        snprintf(left, sizeof left, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-26s %s%s%s\n", left, o->help, o->flags & OPT_REQUIRED ? " (required)" : "", o->flags & OPT_MANY ? " (may be repeated)" : "");
    }
}

static void print_cmd_line(const struct cmd *cmd)
{
    char left[80];
    snprintf(left, sizeof left, "%s %s%s%s", cmd->group, cmd->verb, *cmd->args ? " " : "", cmd->args);
    printf("  %-32s %s\n", left, cmd->help);
}

void help_all(void)
{
    printf("cohort " COHORT_VERSION ": command line of a Cohort cluster\n\n"
           "usage: cohort COMMAND [ARGUMENT…] [--json]        every command explains itself: cohort COMMAND --help\n");
    for (const struct cli_group *g = cli_groups; g->name; g++) {
        printf("\n%s: %s\n", g->name, g->help);
        for (const struct cmd *cmd = g->cmds; cmd->verb; cmd++)
            print_cmd_line(cmd);
    }
    printf("\nOptions of every command:\n");
    print_opts(args_global);
    printf("\nWhere it connects: the daemon of this machine by /run/cohort/api.sock (COHORT_SOCKET names another; needs root), or with\n"
           "--api or COHORT_API any node by https. Then COHORT_TOKEN holds an API token (cohort token create) and COHORT_CA the\n"
           "cluster's CA certificate, /var/lib/cohort/pki/ca.pem on every node. The node's certificate is always verified.\n"
           "\nSizes: 4096, 512M, 1G, 2T (binary). Times: 90s, 30m, 1h, 7d.\n"
           "\nExit status:\n"
           "  0  done\n"
           "  1  refused, or the work failed\n"
           "  2  wrong usage\n"
           "  3  the daemon cannot be reached\n"
           "  4  not done in time; it may still happen\n");
}

void help_group(const struct cli_group *g)
{
    printf("%s: %s\n\n", g->name, g->help);
    for (const struct cmd *cmd = g->cmds; cmd->verb; cmd++)
        print_cmd_line(cmd);
    printf("\nMore: cohort %s COMMAND --help\n", g->name);
}

void help_cmd(const struct cmd *cmd)
{
    printf("usage: cohort %s %s%s%s%s\n\n%s\n", cmd->group, cmd->verb, *cmd->args ? " " : "", cmd->args, cmd->opts ? " [OPTION…]" : "", cmd->help);
    if (cmd->opts) {
        printf("\nOptions:\n");
        print_opts(cmd->opts);
    }
    printf("\nOptions of every command:\n");
    print_opts(args_global);
    if (cmd->more)
        printf("\n%s\n", cmd->more);
}
