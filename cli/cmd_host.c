/* cohort host, debug, log. */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "cli/cmds.h"
#include "cli/show.h"

#define CHECKER "cohort-hostcheck"

/* The one beside this program, as installed and as built. Caller frees; NULL: there is none. */
static char *find_checker(void)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return NULL;
    self[n] = '\0';
    char *path = xasprintf("%s/" CHECKER, dirname(self));
    if (access(path, X_OK) == 0)
        return path;
    free(path);
    return NULL;
}

static int run_check(struct cli *c)
{
    char *path = find_checker(), *argv[] = {(char *)CHECKER, c->json ? (char *)"--json" : NULL, NULL};
    fflush(stdout);
    if (path)
        execv(path, argv);
    else
        execvp(CHECKER, argv);
    fail_set(&c->fail, EXIT_REFUSED, "%s: %s", path ? path : CHECKER, strerror(errno));
    fail_hint(&c->fail, "it belongs beside this program or into the PATH");
    free(path);
    return EXIT_REFUSED;
}

const struct cmd cmds_host[] = {
    {"host", "check", "", run_check, NULL, "what /dev/kvm of this machine really does; status 0: kvm, 1: tcg"},
    {0},
};

/* ---- debug, log ---- */

static int run_dump(struct cli *c)
{
    struct answer a;
    int rc = c->pos[0] ? cli_call_on(c, "GET", "", NULL, &a) : cli_call(c, "GET", c->cmd->path, NULL, &a);
    if (rc != EXIT_DONE)
        return rc;
    char *text = a.json && !c->json ? json_dumps(a.json, JSON_INDENT(2) | JSON_ENCODE_ANY) : NULL;
    if (text)
        puts(text);
    else
        cli_put_answer(&a);
    free(text);
    answer_free(&a);
    return EXIT_DONE;
}

static int run_level(struct cli *c)
{
    struct answer a;
    int rc = cli_call(c, "POST", "/debug/log", json_pack("{s:s, s:s}", "module", c->pos[0], "level", c->pos[1]), &a);
    return rc == EXIT_DONE ? cli_finish(c, &a, "log level of %s is %s until the daemon's next start", c->pos[0], c->pos[1]) : rc;
}

const struct cmd cmds_debug[] = {
    {"debug", "asan", "[VOLUME]", run_dump, NULL, "the storage engine's state on the node that answers",
     .more = "With VOLUME (name or id) only that: requests, in-sync sets and epochs of its shards, which its owner's node knows, and of the copies\n"
             "on this node what they have accepted, and the fill of their disks' journals.", .path = "/debug/asan"},
    {"debug", "metrics", "", run_dump, NULL, "its counters, as Prometheus reads them", .path = "/metrics"},
    {0},
};
const struct cmd cmds_log[] = {
    {"log", "level", "MODULE LEVEL", run_level, NULL, "err, warn, info or dbg for a module of the daemon; * means all",
     .more = "Example: cohort log level asan dbg"},
    {0},
};
