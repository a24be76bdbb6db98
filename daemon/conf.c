/* /etc/cohort/cohortd.json: every field checked, every error names the field and the file. */
#include <arpa/inet.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/file.h"
#include "daemon/daemon.h"
#include "daemon/jin.h"

#define CONF_FILE_MAX (64u << 10)

static int check_path(const char *what, const char *path, struct err *e)
{
    return path[0] == '/' ? 0 : err_set(e, E_INVAL, "field \"%s\": '%s' is not an absolute path", what, path);
}

static int read_disk(const json_t *obj, int i, struct conf *c, struct err *e)
{
    const char *name = NULL, *fast = NULL, *capacity = NULL;
    int64_t limit = 0;
    char what[32];
    snprintf(what, sizeof what, "disks[%d]", i);
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &name, 1, 63},
        {"fast", JIN_STR, true, &fast, 1, 200},
        {"capacity", JIN_STR, true, &capacity, 1, 200},
        {"limit_bytes", JIN_INT, false, &limit, 64ll << 20, INT64_MAX},
    };
    int rc = jin_read(obj, what, f, sizeof f / sizeof *f, e);
    if (!rc)
        rc = jin_name_check(what, name, e);
    if (!rc)
        rc = check_path("disks.fast", fast, e);
    if (!rc)
        rc = check_path("disks.capacity", capacity, e);
    if (rc)
        return rc;
    for (int k = 0; k < c->n_disks; k++)
        if (!strcmp(c->disks[k].name, name) || !strcmp(c->disks[k].capacity, capacity))
            return err_set(e, E_INVAL, "%s: the name or the capacity path is that of disks[%d]", what, k);
    c->disks[c->n_disks++] = (struct conf_disk){xstrdup(name), xstrdup(fast), xstrdup(capacity), (uint64_t)limit};
    return 0;
}

static int read_storage_address(const json_t *value, int i, const char *address, struct conf *c, struct err *e)
{
    const char *text = json_string_value(value);
    struct in_addr a4;
    if (!text || inet_pton(AF_INET, text, &a4) != 1 || !a4.s_addr)
        return err_set(e, E_INVAL, "field \"storage_addresses\"[%d]: %s%s%s is not an IPv4 address of this node", i, text ? "'" : "",
                       text ? text : "the value", text ? "'" : "");
    if (!strcmp(text, address))
        return err_set(e, E_INVAL, "field \"storage_addresses\"[%d]: %s is this node's \"address\", which stands by for them anyway", i, text);
    for (int k = 0; k < c->n_storage_addresses; k++)
        if (!strcmp(c->storage_addresses[k], text))
            return err_set(e, E_INVAL, "field \"storage_addresses\"[%d]: %s is there twice", i, text);
    c->storage_addresses[c->n_storage_addresses++] = xstrdup(text);
    return 0;
}

static int read_conf(const json_t *obj, struct conf *c, struct err *e)
{
    const char *name = NULL, *address = NULL, *state = "/var/lib/cohort", *run = "/run/cohort", *uplink = "";
    int64_t control = 7700, storage = 7701, migrate = 7702, api = 7443, journal = 0, cache = -1, election = 1000, nbd = 0;
    json_t *disks = NULL, *links = NULL;
    const struct jin_field f[] = {
        {"node_name", JIN_STR, true, &name, 1, 63},
        {"address", JIN_STR, true, &address, 7, 45},
        {"storage_addresses", JIN_ARRAY, false, &links, 0, CONF_LINKS_MAX},
        {"state_dir", JIN_STR, false, &state, 1, 200},
        {"run_dir", JIN_STR, false, &run, 1, 60},
        {"uplink", JIN_STR, false, &uplink, 0, 15},
        {"control_port", JIN_INT, false, &control, 1, 65535},
        {"storage_port", JIN_INT, false, &storage, 1, 65535},
        {"migrate_port", JIN_INT, false, &migrate, 1, 65000},
        {"api_port", JIN_INT, false, &api, 1, 65535},
        {"nbd_port", JIN_INT, false, &nbd, 0, 65535},
        {"journal_bytes", JIN_INT, false, &journal, 16ll << 20, 1ll << 40},
        {"cache_bytes", JIN_INT, false, &cache, 0, INT64_MAX},
        {"election_ms", JIN_INT, false, &election, 300, 10000},
        {"disks", JIN_ARRAY, false, &disks, 0, CONF_DISKS_MAX},
    };
    int rc = jin_read(obj, "", f, sizeof f / sizeof f[0], e);
    if (!rc)
        rc = jin_name_check("node_name", name, e);
    if (rc)
        return rc;
    struct in_addr a4;
    if (inet_pton(AF_INET, address, &a4) != 1)
        return err_set(e, E_INVAL, "field \"address\": '%s' is not an IPv4 address", address);
    if (journal % (1 << 20))
        return err_set(e, E_INVAL, "field \"journal_bytes\": %lld is not a multiple of 1048576 (1 MiB)", (long long)journal);
    if ((rc = check_path("state_dir", state, e)) || (rc = check_path("run_dir", run, e)))
        return rc;
    c->node_name = xstrdup(name);
    c->address = xstrdup(address);
    c->state_dir = xstrdup(state);
    c->run_dir = xstrdup(run);
    c->uplink = xstrdup(uplink);
    c->control_port = (uint16_t)control;
    c->storage_port = (uint16_t)storage;
    c->migrate_port = (uint16_t)migrate;
    c->api_port = (uint16_t)api;
    c->nbd_port = (uint16_t)nbd;
    c->journal_bytes = journal;
    c->cache_bytes = cache;
    c->election_ms = (int)election;
    for (size_t i = 0; !rc && i < json_array_size(disks); i++)
        rc = read_disk(json_array_get(disks, i), (int)i, c, e);
    for (size_t i = 0; !rc && i < json_array_size(links); i++)
        rc = read_storage_address(json_array_get(links, i), (int)i, address, c, e);
    return rc;
}

int conf_load(const char *path, struct conf *ret_conf, struct err *e)
{
    struct conf c = {0};
    char *text = NULL;
    size_t len;
    json_t *obj = NULL;
    int rc = file_read(path, CONF_FILE_MAX, &text, &len, e);
    if (!rc)
        rc = jin_parse(text, len, &obj, e);
    if (!rc)
        rc = read_conf(obj, &c, e);
    json_decref(obj);
    free(text);
    if (rc) {
        conf_free(&c);
        err_wrap(e, "%s", path);
        return rc;
    }
    *ret_conf = c;
    return 0;
}

void conf_free(struct conf *c)
{
    free(c->node_name);
    free(c->address);
    free(c->state_dir);
    free(c->run_dir);
    free(c->uplink);
    for (int i = 0; i < c->n_storage_addresses; i++)
        free(c->storage_addresses[i]);
    for (int i = 0; i < c->n_disks; i++) {
        free(c->disks[i].name);
        free(c->disks[i].fast);
        free(c->disks[i].capacity);
    }
    *c = (struct conf){0};
}
