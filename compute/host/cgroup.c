/* Control groups. See cgroup.h. */
#include "compute/host/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"

#define CPU_PERIOD_US 100000

static int put(const char *dir, const char *file, const char *text)
{
    char path[640];
    if (snprintf(path, sizeof path, "%s/%s", dir, file) >= (int)sizeof path)
        return ENAMETOOLONG;
    int fd = open(path, O_WRONLY | O_CLOEXEC), rc = 0;
    if (fd < 0)
        return errno;
    if (write(fd, text, strlen(text)) < 0)
        rc = errno;
    close(fd);
    return rc;
}

/* v2 needs its controllers handed down: at the root for the parent, at the parent for the guests. */
static bool usable(struct cgroups *g, const char *root, bool v2)
{
    char dir[512];
    snprintf(dir, sizeof dir, "%s/%s", root, g->parent);
    if (v2 && put(root, "cgroup.subtree_control", "+memory +cpu") != 0)
        return false;
    if (file_mkdirs(dir, 0755, NULL) != E_OK)
        return false;
    if (!v2)
        return true;
    for (char *p = dir + strlen(root) + 1; p; p = strchr(p, '/')) { /* every level of the parent's path */
        if (*p == '/')
            p++;
        char *end = strchr(p, '/'), keep = end ? *end : '\0';
        if (end)
            *end = '\0';
        int no = put(dir, "cgroup.subtree_control", "+memory +cpu");
        if (end)
            *end = keep;
        if (no != 0)
            return false;
    }
    return true;
}

static void try_root(struct cgroups *g, const char *root, bool v2)
{
    if (g->n == CGROUP_ROOTS_MAX || strlen(root) >= sizeof g->root[0] || (g->n > 0 && (v2 || g->v2)))
        return;
    for (int i = 0; i < g->n; i++)
        if (strcmp(g->root[i], root) == 0) /* memory and cpu mounted together */
            return;
    if (!usable(g, root, v2))
        return;
    snprintf(g->root[g->n++], sizeof g->root[0], "%s", root);
    g->v2 = v2;
}

static void scan(struct cgroups *g, bool v2)
{
    FILE *f = setmntent("/proc/self/mounts", "re");
    struct mntent m;
    char line[2048];
    if (!f)
        return;
    while (getmntent_r(f, &m, line, sizeof line)) {
        if (v2 && strcmp(m.mnt_type, "cgroup2") == 0)
            try_root(g, m.mnt_dir, true);
        else if (!v2 && strcmp(m.mnt_type, "cgroup") == 0 && (hasmntopt(&m, "memory") || hasmntopt(&m, "cpu")))
            try_root(g, m.mnt_dir, false);
    }
    endmntent(f);
}

void cgroups_open(struct cgroups *g, const char *parent)
{
    *g = (struct cgroups){0};
    if (!parent || !parent[0]) {
        snprintf(g->why_not, sizeof g->why_not, "not configured");
        return;
    }
    snprintf(g->parent, sizeof g->parent, "%s", parent);
    scan(g, true); /* v2 first; on hybrid hosts it has no controllers and is passed over */
    if (g->n == 0)
        scan(g, false);
    if (g->n == 0)
        snprintf(g->why_not, sizeof g->why_not, "no writable cgroup hierarchy with the memory and cpu controllers");
}

static void group_dir(const struct cgroups *g, int i, const char *id, char *ret_dir, size_t size)
{
    snprintf(ret_dir, size, "%s/%s/vm-%s", g->root[i], g->parent, id);
}

/* First failure's errno, 0 if none. Files of the other hierarchy of v1 are absent: that is no failure. */
static int limit(const struct cgroups *g, const char *dir, const struct cgroup_limits *l)
{
    char text[64];
    int no = 0, r;
    if (l->memory_max_bytes) {
        snprintf(text, sizeof text, "%lld", (long long)l->memory_max_bytes);
        r = put(dir, g->v2 ? "memory.max" : "memory.limit_in_bytes", text);
        no = r != 0 && r != ENOENT ? r : no;
    }
    if (l->cpu_max_permille) {
        long long quota = (long long)l->cpu_max_permille * CPU_PERIOD_US / 1000;
        snprintf(text, sizeof text, g->v2 ? "%lld %d" : "%lld", quota, CPU_PERIOD_US);
        r = put(dir, g->v2 ? "cpu.max" : "cpu.cfs_quota_us", text);
        no = r != 0 && r != ENOENT ? r : no;
    }
    int weight = l->vcpus * (g->v2 ? 100 : 1024), most = g->v2 ? 10000 : 262144;
    snprintf(text, sizeof text, "%d", weight < most ? weight : most);
    r = put(dir, g->v2 ? "cpu.weight" : "cpu.shares", text);
    return r != 0 && r != ENOENT ? r : no;
}

int cgroup_enter(const struct cgroups *g, const char *id, pid_t pid, const struct cgroup_limits *l, struct err *e)
{
    char dir[640], text[24];
    snprintf(text, sizeof text, "%d", (int)pid);
    for (int i = 0; i < g->n; i++) {
        group_dir(g, i, id, dir, sizeof dir);
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            return err_sys(e, errno, "cgroup %s", dir);
        int no = limit(g, dir, l);
        if (no == 0)
            no = put(dir, "cgroup.procs", text);
        if (no != 0)
            return err_sys(e, no, "cgroup %s", dir);
    }
    return E_OK;
}

void cgroup_remove(const struct cgroups *g, const char *id)
{
    char dir[640];
    for (int i = 0; i < g->n; i++) {
        group_dir(g, i, id, dir, sizeof dir);
        (void)rmdir(dir);
    }
}

void cgroups_close(struct cgroups *g)
{
    char dir[512];
    for (int i = 0; i < g->n; i++) {
        snprintf(dir, sizeof dir, "%s/%s", g->root[i], g->parent);
        (void)rmdir(dir);
        char *slash = strrchr(dir, '/'); /* "cohort/<node>": the upper one too, if this was the last node on the host */
        if (slash > dir + strlen(g->root[i])) {
            *slash = '\0';
            (void)rmdir(dir);
        }
    }
    *g = (struct cgroups){0};
}
