/* REST: machines (/vms). */
#include <stdlib.h>
#include <string.h>
#include "daemon/rest.h"

#define N(a) (sizeof(a) / sizeof *(a))

static int read_disks(const json_t *list, struct vm_spec *s, struct err *e)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct vm_disk_spec *d = &s->disks[s->n_disks++];
        char what[32];
        snprintf(what, sizeof what, "disks[%zu]", i);
        const struct jin_field f[] = {
            {"volume", JIN_STR, false, &d->volume, 1, 64},
            {"size_bytes", JIN_INT, false, &d->size_bytes, VOLUME_MIN_BYTES, VOLUME_MAX_BYTES},
            {"replicas", JIN_INT, false, &d->replicas, 1, 3},
        };
        int rc = jin_read(json_array_get(list, i), what, f, N(f), e);
        if (rc != E_OK)
            return rc;
        if ((d->volume != NULL) == (d->size_bytes != 0))
            return err_set(e, E_INVAL, "field \"%s\": give either volume (an existing one) or size_bytes (a new one)", what);
        if (d->volume && d->replicas)
            return err_set(e, E_INVAL, "field \"%s.replicas\": an existing volume keeps its own", what);
    }
    return E_OK;
}

static int read_networks(const json_t *list, struct vm_spec *s, struct err *e)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *n = json_array_get(list, i);
        if (!json_is_string(n))
            return err_set(e, E_INVAL, "field \"networks[%zu]\": must be a text", i);
        s->networks[s->n_networks++] = json_string_value(n);
    }
    return E_OK;
}

void rest_vm_create(struct rest_req *rq)
{
    struct vm_spec *s = rest_priv(rq, sizeof *s);
    json_t *disks = NULL, *networks = NULL;
    struct err e;
    *s = (struct vm_spec){.type = "q35", .accel = "auto", .image = "", .cmdline = "", .ha_policy = "restart", .affinity = "none", .vcpus = 1, .priority = 50};
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &s->name},
        {"vcpus", JIN_INT, false, &s->vcpus, 1, 64},
        {"memory_bytes", JIN_INT, true, &s->memory_bytes},
        {"type", JIN_STR, false, &s->type},
        {"accel", JIN_STR, false, &s->accel},
        {"image", JIN_STR, false, &s->image, 0, 64},
        {"cmdline", JIN_STR, false, &s->cmdline, 0, 1024},
        {"disks", JIN_ARRAY, false, &disks, 0, VM_DISKS_MAX},
        {"networks", JIN_ARRAY, false, &networks, 0, VM_NETWORKS_MAX},
        {"ha_policy", JIN_STR, false, &s->ha_policy},
        {"priority", JIN_INT, false, &s->priority, 0, 100},
        {"affinity", JIN_STR, false, &s->affinity},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    int rc = read_disks(disks, s, &e);
    if (rc == E_OK)
        rc = read_networks(networks, s, &e);
    if (rc == E_OK)
        rc = op_vm_create(rq->r->ops, s, rest_done, rq, &e);
    rest_started(rq, rc, &e);
}

void rest_vm_delete(struct rest_req *rq)
{
    struct err e;
    const char *with = http_query(rq->http, "disks");
    if (with && strcmp(with, "true") != 0 && strcmp(with, "false") != 0) {
        err_set(&e, E_INVAL, "query \"disks\": must be true or false");
        rest_fail(rq, &e);
        return;
    }
    rest_started(rq, op_vm_delete(rq->r->ops, rq->arg[0], with && strcmp(with, "true") == 0, rest_done, rq, &e), &e);
}

void rest_vm_start(struct rest_req *rq)
{
    const char *to = NULL;
    struct err e;
    const struct jin_field f[] = {{"to", JIN_STR, false, &to, 1, 64}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_vm_start(rq->r->ops, rq->arg[0], to, rest_done, rq, &e), &e);
}

void rest_vm_stop(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_vm_stop(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_vm_kill(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_vm_kill(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_vm_migrate(struct rest_req *rq)
{
    const char *to = NULL;
    struct err e;
    const struct jin_field f[] = {{"to", JIN_STR, true, &to, 1, 64}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_vm_migrate(rq->r->ops, rq->arg[0], to, rest_done, rq, &e), &e);
}
