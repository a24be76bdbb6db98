/* Child processes that outlive us. See proc.h.
 *
 * Pid file: "PID START_TICKS BOOT_ID\n". The boot id is there because start ticks count from boot, and two boots of
 * one machine are much alike. */
#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif

extern char **environ;

static int pidfd_of(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

/* State letter and start time from /proc/PID/stat; false if the process is gone. */
static bool read_stat(pid_t pid, char *ret_state, unsigned long long *ret_start)
{
    char path[48], *text;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (file_read(path, 4096, &text, NULL, NULL) != E_OK)
        return false;
    /* Field 2 is the command in parentheses and may hold anything: count from the last ')'. */
    char *p = strrchr(text, ')');
    bool ok = false;
    if (p && p[1] == ' ' && p[2]) {
        *ret_state = p[2];
        p += 2;
        for (int field = 3; p && field < 22; field++) {
            p = strchr(p, ' ');
            p = p ? p + 1 : NULL;
        }
        ok = p && sscanf(p, "%llu", ret_start) == 1;
    }
    free(text);
    return ok;
}

static void boot_id(char out[64])
{
    char *text;
    out[0] = '-';
    out[1] = '\0';
    if (file_read("/proc/sys/kernel/random/boot_id", 128, &text, NULL, NULL) == E_OK) {
        text[strcspn(text, "\n")] = '\0';
        snprintf(out, 64, "%.63s", text);
        free(text);
    }
}

struct child {
    const struct proc_spec *spec;
    char **env;
    int log_fd, cgroup_fd, report_fd;
};

/* Between fork and exec only async-signal-safe calls: other threads' locks may be held for ever in the child. */
static void __attribute__((noreturn)) run_child(const struct child *c)
{
    sigset_t none;
    sigemptyset(&none);
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (c->cgroup_fd >= 0 && write(c->cgroup_fd, "0", 1) != 1)
        goto fail;
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0)
        goto fail;
    if (c->log_fd >= 0 && (dup2(c->log_fd, STDOUT_FILENO) < 0 || dup2(c->log_fd, STDERR_FILENO) < 0))
        goto fail;
    syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC);
    for (const int *fd = c->spec->keep_fds; fd && *fd >= 0; fd++)
        if (fcntl(*fd, F_SETFD, 0) < 0)
            goto fail;
    execvpe(c->spec->argv[0], (char *const *)c->spec->argv, c->env);
fail:;
    int no = errno;
    if (write(c->report_fd, &no, sizeof no) < 0)
        _exit(126);
    _exit(127);
}

static char **merged_env(const char *const *add)
{
    size_t n = 0, m = 0;
    while (environ[n])
        n++;
    while (add && add[m])
        m++;
    char **env = xcalloc(n + m + 1, sizeof *env);
    size_t k = 0;
    for (size_t i = 0; i < m; i++)
        env[k++] = (char *)(uintptr_t)add[i];
    for (size_t i = 0; i < n; i++) {
        size_t key = strcspn(environ[i], "=") + 1;
        bool replaced = false;
        for (size_t j = 0; j < m && !replaced; j++)
            replaced = strncmp(add[j], environ[i], key) == 0;
        if (!replaced)
            env[k++] = environ[i];
    }
    return env;
}

static int record(const struct proc_spec *spec, const struct proc *p, struct err *e)
{
    char boot[64];
    boot_id(boot);
    char *line = xasprintf("%d %llu %s\n", (int)p->pid, p->start_ticks, boot);
    int rc = file_write(spec->pid_file, line, strlen(line), 0644, e);
    free(line);
    return rc;
}

/* Forks and waits until exec happened; the errno of what failed instead in *ret_errno. */
static pid_t spawn(struct child *c, int *ret_errno)
{
    int report[2];
    *ret_errno = 0;
    if (pipe2(report, O_CLOEXEC) < 0) {
        *ret_errno = errno;
        return -1;
    }
    c->report_fd = report[1];
    pid_t pid = fork();
    if (pid == 0)
        run_child(c);
    if (pid < 0)
        *ret_errno = errno;
    close(report[1]);
    int no = 0;
    ssize_t n = 0;
    if (pid > 0)
        do
            n = read(report[0], &no, sizeof no);
        while (n < 0 && errno == EINTR);
    close(report[0]);
    if (pid > 0 && n == (ssize_t)sizeof no) {
        waitpid(pid, NULL, 0);
        *ret_errno = no;
        return -1;
    }
    return pid;
}

int proc_start(const struct proc_spec *spec, struct proc *ret_proc, struct err *e)
{
    struct child c = {.spec = spec, .log_fd = -1, .cgroup_fd = -1};
    struct proc p = {.pidfd = -1};
    char state;
    int rc = E_OK, no;
    if (spec->log_file && (c.log_fd = open(spec->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640)) < 0)
        return err_sys(e, errno, "start %s: open %s", spec->argv[0], spec->log_file);
    if (spec->cgroup_procs && (c.cgroup_fd = open(spec->cgroup_procs, O_WRONLY | O_CLOEXEC)) < 0) {
        rc = err_sys(e, errno, "start %s: open %s", spec->argv[0], spec->cgroup_procs);
        goto out;
    }
    c.env = merged_env(spec->env);
    p.pid = spawn(&c, &no);
    if (p.pid < 0) {
        rc = err_sys(e, no, "start %s", spec->argv[0]);
        goto out;
    }
    p.pidfd = pidfd_of(p.pid); /* our child, not yet waited for: the pid is its own */
    if (p.pidfd < 0 || !read_stat(p.pid, &state, &p.start_ticks)) {
        rc = err_sys(e, p.pidfd < 0 ? errno : ESRCH, "start %s: watch pid %d", spec->argv[0], (int)p.pid);
    } else if (spec->pid_file) {
        rc = record(spec, &p, e);
    }
    if (rc != E_OK) { /* a process that nobody could find again must not stay */
        kill(p.pid, SIGKILL);
        waitpid(p.pid, NULL, 0);
        if (p.pidfd >= 0)
            close(p.pidfd);
    } else {
        *ret_proc = p;
    }
out:
    free(c.env);
    if (c.log_fd >= 0)
        close(c.log_fd);
    if (c.cgroup_fd >= 0)
        close(c.cgroup_fd);
    return rc;
}

int proc_adopt(const char *pid_file, struct proc *ret_proc, struct err *e)
{
    char *text, boot[64], recorded[64] = "", state;
    int pid;
    unsigned long long start, now_start;
    int rc = file_read(pid_file, 256, &text, NULL, e);
    if (rc != E_OK)
        return rc;
    int fields = sscanf(text, "%d %llu %63s", &pid, &start, recorded);
    free(text);
    if (fields != 3 || pid <= 0)
        return err_set(e, E_NOTFOUND, "%s: damaged pid file", pid_file);
    boot_id(boot);
    if (strcmp(boot, recorded) != 0)
        return err_set(e, E_NOTFOUND, "%s: from before the last boot", pid_file);
    int fd = pidfd_of(pid); /* first the handle, then the check: what is checked is what the handle names */
    if (fd < 0 || !read_stat(pid, &state, &now_start) || now_start != start || state == 'Z' || state == 'X') {
        if (fd >= 0)
            close(fd);
        return err_set(e, E_NOTFOUND, "%s: process %d is gone", pid_file, pid);
    }
    *ret_proc = (struct proc){.pid = pid, .start_ticks = start, .pidfd = fd};
    return E_OK;
}

/* If it was our child and has ended, it leaves the process table here. */
static void reap(const struct proc *p)
{
    siginfo_t info;
    if (p->pidfd >= 0)
        (void)waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG);
}

bool proc_alive(const struct proc *p)
{
    char state;
    unsigned long long start;
    if (p->pid <= 0)
        return false;
    if (!read_stat(p->pid, &state, &start) || start != p->start_ticks)
        return false;
    if (state != 'Z' && state != 'X')
        return true;
    reap(p);
    return false;
}

void proc_signal(const struct proc *p, int sig)
{
    if (p->pid > 0 && p->pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, p->pidfd, sig, NULL, 0);
}

void proc_close(struct proc *p)
{
    if (p->pid > 0 && p->pidfd >= 0) {
        reap(p);
        close(p->pidfd);
    }
    *p = (struct proc){.pidfd = -1};
}
