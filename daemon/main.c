/* cohortd: the node daemon. Starts the loop, REST on the local socket, and, once this node is a member of a cluster, every
 * part of it (wire.c). SIGTERM and SIGINT end the daemon, not the guests nor the database servers. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/file.h"
#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/wire.h"

LOG_MODULE("daemon");

#define STOP_LIMIT_S 10

static struct daemon node;
static uv_signal_t on_term, on_int;

static void give_up(int sig)
{
    static const char text[] = "cohortd: parts did not end in time; exiting anyway\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)ignored;
    _exit(1);
}

static void stop(uv_signal_t *s, int signum)
{
    log_info("stopping on signal %d; guests of this node run on", signum);
    signal(SIGALRM, give_up);
    alarm(STOP_LIMIT_S);
    uv_close((uv_handle_t *)&on_term, NULL);
    uv_close((uv_handle_t *)&on_int, NULL);
    rest_close(node.rest);
    daemon_leave(&node);
    mailbox_close(&node.mailbox, NULL, NULL);
}

static int usage(FILE *to)
{
    fprintf(to, "usage: cohortd [--config FILE] [--log MODULE=LEVEL]… | --version\n"
                "  --config FILE   node configuration, default /etc/cohort/cohortd.json\n"
                "  --log M=L       log level of a module (or *): err, warn, info, dbg\n");
    return to == stdout ? 0 : 2;
}

static int set_level(char *spec)
{
    enum log_level level;
    char *eq = strchr(spec, '=');
    if (!eq || !log_level_parse(eq + 1, &level)) {
        fprintf(stderr, "cohortd: --log %s: expected MODULE=err|warn|info|dbg\n", spec);
        return 2;
    }
    *eq = 0;
    if (!log_set_level(spec, level)) {
        fprintf(stderr, "cohortd: --log: there is no module '%s'\n", spec);
        return 2;
    }
    return 0;
}

static int run(struct err *e)
{
    /* Every disk keeps up to two workers busy (destage, fences); file and database tools need some as well. */
    setenv("UV_THREADPOOL_SIZE", "16", 0);
    struct rlimit files = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &files); /* best effort: the default serves small clusters */
    node.loop = uv_default_loop();
    int rc = file_mkdirs(node.conf.state_dir, 0700, e);
    if (!rc)
        rc = file_mkdirs(node.conf.run_dir, 0755, e);
    if (rc)
        return rc;
    mailbox_open(&node.mailbox, node.loop);
    uv_signal_init(node.loop, &on_term);
    uv_signal_init(node.loop, &on_int);
    uv_signal_start(&on_term, stop, SIGTERM);
    uv_signal_start(&on_int, stop, SIGINT);
    if ((rc = rest_open(&node, &node.rest, e)))
        return rc;
    if ((rc = daemon_resume_membership(&node, e)))
        return rc;
    log_info("node %s: %s", node.conf.node_name,
             node.member ? "member of a cluster" : "not in a cluster yet: `cohort cluster init NAME` or `cohort cluster join TOKEN`");
    uv_run(node.loop, UV_RUN_DEFAULT);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, 0, 'c'}, {"log", required_argument, 0, 'l'}, {"version", no_argument, 0, 'v'},
        {"help", no_argument, 0, 'h'},         {0}};
    const char *config = "/etc/cohort/cohortd.json";
    struct err e = {0};
    for (int o; (o = getopt_long(argc, argv, "c:l:vh", options, NULL)) != -1;) {
        if (o == 'c')
            config = optarg;
        else if (o == 'v')
            return puts("cohortd " COHORT_VERSION) < 0;
        else if (o == 'h')
            return usage(stdout);
        else if (o != 'l')
            return usage(stderr);
        else if (set_level(optarg))
            return 2;
    }
    if (optind < argc)
        return usage(stderr);
    signal(SIGPIPE, SIG_IGN);
    int rc = conf_load(config, &node.conf, &e);
    if (!rc)
        rc = run(&e);
    if (rc)
        log_err("%s", e.msg);
    else
        log_info("stopped");
    conf_free(&node.conf);
    return rc ? 1 : 0;
}
