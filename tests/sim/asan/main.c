/* Simulation of aSAN's replication: the real owner and replica cores in a cluster where anything goes wrong at any moment,
 * judged by what a guest may see of its disk and by the protocol's invariants. See sim.h and README.md.
 *
 *   asan --seed N [-v]            one seed; -v: a trace of what happened
 *   asan --seeds N [--from F]     seeds F (1) .. F + N - 1, over --jobs J processes (all CPUs)
 *   asan --mutation M ...         with a planted fault; --mutations lists them
 *   asan --prove                  every planted fault must be found within --seeds N seeds (4000)
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "tests/sim/asan/sim.h"

#define JOBS_MAX 64

enum repl_mutant repl_mutant;

#define MUTANT_INFO(ID, NAME, TEXT) [MUTANT_##ID] = {NAME, TEXT},
const struct mutant_info mutant_info[MUTANT_N] = {[MUTANT_NONE] = {"none", ""}, REPL_MUTANT_LIST(MUTANT_INFO)};

static struct worker { uint64_t seed; struct stats stats; } *workers; /* shared with the children */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static pid_t start(int i, int jobs, uint64_t from, uint64_t n, bool quiet)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(2);
    }
    if (pid)
        return pid;
    if (quiet && !freopen("/dev/null", "w", stderr))
        _exit(2);
    for (uint64_t s = from + (uint64_t)i; s < from + n; s += (uint64_t)jobs) {
        workers[i].seed = s;
        run_seed(s);
        workers[i].stats = stats;
    }
    _exit(0);
}

/* Runs seeds in children; 0 if all passed, else a seed that did not (the others are stopped). */
static uint64_t run_many(uint64_t from, uint64_t n, int jobs, bool quiet, struct stats *ret)
{
    pid_t pid[JOBS_MAX];
    uint64_t failed = 0;
    memset(workers, 0, JOBS_MAX * sizeof *workers);
    for (int i = 0; i < jobs; i++)
        pid[i] = start(i, jobs, from, n, quiet);
    for (int left = jobs; left; left--) {
        int status;
        pid_t p = wait(&status);
        int i = 0;
        while (i < jobs && pid[i] != p)
            i++;
        if (i == jobs)
            continue;
        pid[i] = 0;
        bool killed_by_us = WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM;
        if ((!WIFEXITED(status) || WEXITSTATUS(status)) && !killed_by_us && !failed) {
            failed = workers[i].seed;
            if (WIFSIGNALED(status) && !quiet)
                fprintf(stderr, "seed %" PRIu64 ": %s\n", failed, strsignal(WTERMSIG(status)));
            for (int k = 0; k < jobs; k++)
                if (pid[k])
                    kill(pid[k], SIGTERM);
        }
    }
    memset(ret, 0, sizeof *ret);
    for (int i = 0; i < jobs; i++) {
        const struct stats *s = &workers[i].stats;
        *ret = (struct stats){ret->seeds + s->seeds, ret->reads + s->reads, ret->writes + s->writes, ret->late + s->late,
                              ret->adds + s->adds, ret->epochs + s->epochs, ret->crashes + s->crashes, ret->checks + s->checks};
    }
    return failed;
}

static int prove(uint64_t from, uint64_t seeds, int jobs)
{
    int missed = 0;
    for (int m = 1; m < MUTANT_N; m++) {
        struct stats st;
        repl_mutant = (enum repl_mutant)m;
        uint64_t found = run_many(from, seeds, jobs, true, &st);
        if (found)
            printf("%-28s found, seed %" PRIu64 " (%" PRIu64 " seeds passed before)\n", mutant_info[m].name, found, st.seeds);
        else
            printf("%-28s NOT FOUND in %" PRIu64 " seeds: %s\n", mutant_info[m].name, st.seeds, mutant_info[m].text);
        missed += !found;
    }
    printf("%d planted faults, %d found\n", MUTANT_N - 1, MUTANT_N - 1 - missed);
    return missed ? 1 : 0;
}

static int run(uint64_t from, uint64_t seeds, int jobs)
{
    struct stats st;
    double start_s = now_s();
    uint64_t failed = run_many(from, seeds, jobs, false, &st);
    double took = now_s() - start_s;
    if (failed) {
        printf("seed %" PRIu64 " failed; again with a trace: asan --seed %" PRIu64 "%s%s -v\n", failed, failed,
               repl_mutant ? " --mutation " : "", repl_mutant ? mutant_info[repl_mutant].name : "");
        return 1;
    }
    printf("seeds %" PRIu64 "..%" PRIu64 " passed in %.1f s (%.0f/s, %d processes): %" PRIu64 " reads, %" PRIu64
           " writes, %" PRIu64 " late answers, %" PRIu64 " owners, %" PRIu64 " replicas added, %" PRIu64 " power cuts, %" PRIu64
           " checks of the whole cluster\n",
           from, from + seeds - 1, took, (double)seeds / took, jobs, st.reads, st.writes, st.late, st.epochs, st.adds, st.crashes,
           st.checks);
    return 0;
}

static int mutation(const char *name)
{
    for (int m = 1; m < MUTANT_N; m++)
        if (!strcmp(mutant_info[m].name, name))
            return m;
    fprintf(stderr, "no planted fault is called %s; --mutations lists them\n", name);
    exit(2);
}

static _Noreturn void usage(void)
{
    fprintf(stderr, "usage: asan --seed N [-v] | --seeds N [--from F] | --prove [--seeds N] | --mutations\n"
                    "       [--mutation M] [--jobs J]\n");
    exit(2);
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t v = strtoull(text ? text : "", &end, 10);
    if (!v || *end)
        usage();
    return v;
}

int main(int argc, char **argv)
{
    uint64_t from = 1, seeds = 0;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int jobs = cpus > JOBS_MAX ? JOBS_MAX : cpus > 0 ? (int)cpus : 1;
    bool single = false, proving = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seed")) {
            from = number(argv[++i]);
            single = true;
        } else if (!strcmp(argv[i], "--seeds")) {
            seeds = number(argv[++i]);
        } else if (!strcmp(argv[i], "--from")) {
            from = number(argv[++i]);
        } else if (!strcmp(argv[i], "--jobs")) {
            uint64_t n = number(argv[++i]);
            jobs = n > JOBS_MAX ? JOBS_MAX : (int)n;
        } else if (!strcmp(argv[i], "--mutation") && i + 1 < argc) {
            repl_mutant = (enum repl_mutant)mutation(argv[++i]);
        } else if (!strcmp(argv[i], "--mutations")) {
            for (int m = 1; m < MUTANT_N; m++)
                printf("%-28s %s\n", mutant_info[m].name, mutant_info[m].text);
            return 0;
        } else if (!strcmp(argv[i], "--prove")) {
            proving = true;
        } else if (!strcmp(argv[i], "-v")) {
            trace_on = true;
        } else {
            usage();
        }
    }
    if (single) {
        run_seed(from);
        printf("seed %" PRIu64 " passed\n", from);
        return 0;
    }
    if (!seeds && !proving)
        usage();
    workers = mmap(NULL, JOBS_MAX * sizeof *workers, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (workers == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    return proving ? prove(from, seeds ? seeds : 4000, jobs) : run(from, seeds, jobs);
}
