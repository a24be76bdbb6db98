/* See hung.h. */
#include "tests/lib/hung.h"

#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAIT_MS 200 /* for a thread's answer; those that block all signals give none */

static int answers[2]; /* a pipe: a byte per thread that has answered */
static char scratch[256];

static void say(const char *text) { (void)!write(STDERR_FILENO, text, strlen(text)); }

static void say_file(int tid, const char *what)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", tid, what);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (n > 0)
        (void)!write(STDERR_FILENO, text, (size_t)n);
    if (fd >= 0)
        close(fd);
}

static void on_ask(int sig)
{
    void *at[64];
    backtrace_symbols_fd(at, backtrace(at, 64), STDERR_FILENO);
    (void)!write(answers[1], "", 1);
}

static void wait_answer(void)
{
    struct pollfd p = {.fd = answers[0], .events = POLLIN};
    char byte;
    int n;
    while ((n = poll(&p, 1, WAIT_MS)) < 0 && errno == EINTR)
        ;
    if (n > 0)
        (void)!read(answers[0], &byte, 1);
}

static void on_alarm(int sig)
{
    struct dirent *d;
    DIR *dir = opendir("/proc/self/task");
    say("the test hangs; its threads (what the kernel waits for, stacks in the kernel and in the program):\n");
    while (dir && (d = readdir(dir))) {
        int tid = atoi(d->d_name);
        if (tid <= 0)
            continue;
        say("---- ");
        say_file(tid, "comm");
        say_file(tid, "syscall");
        say_file(tid, "stack");
        syscall(SYS_tgkill, getpid(), tid, SIGRTMAX);
        wait_answer();
    }
    pid_t pid = *scratch ? _Fork() : -1;
    if (pid == 0) {
        execl("/bin/rm", "rm", "-rf", scratch, (char *)NULL);
        _exit(1);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
    abort();
}

void hung_scratch(const char *dir)
{
    *scratch = 0;
    if (dir)
        snprintf(scratch, sizeof scratch, "%s", dir);
}

__attribute__((constructor)) static void watch(void)
{
    const char *seconds = getenv("COHORT_TEST_SECONDS"); /* of ctest; run by hand, a test may take its time */
    void *at[1];
    if (!seconds || pipe2(answers, O_CLOEXEC) < 0)
        return;
    (void)backtrace(at, 1); /* loads what it needs now, not in a handler */
    sigaction(SIGRTMAX, &(struct sigaction){.sa_handler = on_ask, .sa_flags = SA_RESTART}, NULL);
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_alarm, .sa_flags = SA_RESTART}, NULL);
    alarm((unsigned)atoi(seconds));
}
