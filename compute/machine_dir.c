/* A guest's directory <run_dir>/vm/<id>/ and everything else of it on this node that outlives its process. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/log.h"
#include "compute/host/tap.h"
#include "compute/machine_int.h"

LOG_MODULE("asv");

/* Ours; the daemon's disk sockets lie in the same directory and are its own. */
static const char *const files[] = {"spec.json", "qemu.pid", "guard.pid",    "qemu.log",  "guard.log",
                                    "serial.log", "qmp.sock", "guard.sock", "console.sock"};

void machine_path(const struct machines *ms, const char *id, const char *file, char ret_path[MACHINE_PATH_MAX])
{
    snprintf(ret_path, MACHINE_PATH_MAX, "%s/vm/%s%s%s", ms->run_dir, id, file[0] ? "/" : "", file);
}

int machine_dir_make(const struct machines *ms, const struct machine_spec *s, struct err *e)
{
    char path[MACHINE_PATH_MAX];
    machine_path(ms, s->id, "", path);
    int rc = file_mkdirs(path, 0700, e);
    if (rc != E_OK)
        return rc;
    char *text = machine_spec_format(s);
    machine_path(ms, s->id, "spec.json", path);
    rc = file_write(path, text, strlen(text), 0600, e);
    free(text);
    return rc;
}

void machine_dir_remove(const struct machines *ms, const char *id)
{
    char path[MACHINE_PATH_MAX];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        machine_path(ms, id, files[i], path);
        (void)unlink(path);
    }
    machine_path(ms, id, "", path);
    (void)rmdir(path); /* stays while sockets of its disks are in it */
}

void machine_clean_up(struct machines *ms, const struct machine_spec *s)
{
    struct err e;
    for (int i = 0; i < s->n_nics; i++)
        if (tap_remove(s->nics[i].tap, &e) != E_OK)
            log_warn("machine %s: %s", s->name, e.msg);
    cgroup_remove(&ms->cgroups, s->id);
    machine_dir_remove(ms, s->id);
}

void machine_log_tail(const struct machines *ms, const char *id, char *ret_text, size_t size)
{
    char path[MACHINE_PATH_MAX], *text;
    size_t len;
    ret_text[0] = '\0';
    machine_path(ms, id, "qemu.log", path);
    if (file_read(path, 1 << 20, &text, &len, NULL) != E_OK)
        return;
    while (len && (text[len - 1] == '\n' || text[len - 1] == ' '))
        text[--len] = '\0';
    const char *line = strrchr(text, '\n');
    line = line ? line + 1 : text;
    static const char prefix[] = "qemu-system-x86_64: ";
    if (strncmp(line, prefix, sizeof prefix - 1) == 0)
        line += sizeof prefix - 1;
    snprintf(ret_text, size, "%s", line);
    free(text);
}
