/* Machines: create and delete, with their disks and ports in the same transaction. See ops.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "daemon/jin.h"
#include "daemon/op.h"

#define MIB (INT64_C(1) << 20)

struct create {
    struct op op;
    const struct vm_spec *spec;
    char disk_id[VM_DISKS_MAX][ID_LEN + 1]; /* of new volumes; fixed, so that a repetition makes the same rows */
    char mac[VM_NETWORKS_MAX][18];
};

static bool one_of(const char *s, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(s, *list) == 0)
            return true;
    return false;
}

static int check(const struct vm_spec *s, struct err *e)
{
    static const char *const types[] = {"q35", "microvm", NULL}, *const accels[] = {"auto", "kvm", "tcg", NULL},
                            *const policies[] = {"restart", "none", NULL};
    int rc = jin_name_check("vm", s->name, e);
    if (rc != E_OK)
        return rc;
    if (s->vcpus < 1 || s->vcpus > 64)
        return err_set(e, E_INVAL, "vcpus must be from 1 to 64, is %" PRId64, s->vcpus);
    if (s->memory_bytes < 32 * MIB || s->memory_bytes > (INT64_C(1) << 40) || s->memory_bytes % 4096)
        return err_set(e, E_INVAL, "memory_bytes %" PRId64 " is not allowed\na multiple of 4096 from 32 MiB to 1 TiB", s->memory_bytes);
    if (!one_of(s->type, types))
        return err_set(e, E_INVAL, "type \"%.40s\" is not allowed\nq35 or microvm", s->type);
    if (!one_of(s->accel, accels))
        return err_set(e, E_INVAL, "accel \"%.40s\" is not allowed\nauto, kvm or tcg", s->accel);
    if (!one_of(s->ha_policy, policies))
        return err_set(e, E_INVAL, "ha_policy \"%.40s\" is not allowed\nrestart or none", s->ha_policy);
    if (s->priority < 0 || s->priority > 100)
        return err_set(e, E_INVAL, "priority must be from 0 to 100, is %" PRId64, s->priority);
    if (strcmp(s->affinity, "none") != 0 && (strncmp(s->affinity, "anti:", 5) != 0 || !s->affinity[5] || strlen(s->affinity) > 68))
        return err_set(e, E_INVAL, "affinity \"%.80s\" is not allowed\nnone or anti:GROUP", s->affinity);
    if (strlen(s->cmdline) > 1024 || strpbrk(s->cmdline, "\n\r"))
        return err_set(e, E_INVAL, "cmdline is longer than 1024 characters or has a line break");
    if (!*s->image && s->n_disks == 0)
        return err_set(e, E_INVAL, "vm %s has nothing to boot from\ngive it an image (direct kernel boot) or a disk", s->name);
    return E_OK;
}

static int check_image(const struct cdb_view *v, const struct vm_spec *s, const struct cdb_image **ret_image, struct err *e)
{
    *ret_image = NULL;
    if (!*s->image)
        return E_OK;
    const struct cdb_image *img = ops_find(v, CDB_T_IMAGE, "image", s->image, e);
    if (!img)
        return E_NOTFOUND;
    if (strcmp(img->kind, "kernel") != 0)
        return err_set(e, E_INVAL, "image %s is a disk, not a kernel\nimport it as a volume's content and attach that volume", img->name);
    if (strcmp(img->state, "ready") != 0)
        return err_set(e, E_BUSY, "image %s is %s%s%s", img->name, img->state, *img->message ? ": " : "", img->message);
    *ret_image = img;
    return E_OK;
}

/* Disk `i`: a new volume, or an existing one that nobody uses. */
static int add_disk(struct create *c, int i, const struct cdb_view *v, struct cdb_txn *t, char ret_entry[64], struct err *e)
{
    const struct vm_disk_spec *d = &c->spec->disks[i];
    if (!d->volume) {
        char name[96];
        snprintf(name, sizeof name, "%s-disk%d", c->spec->name, i);
        struct volume_spec vs = {.name = name, .size_bytes = d->size_bytes, .replicas = d->replicas, .purpose = "disk"};
        int rc = volume_insert(v, t, c->disk_id[i], &vs, "", e);
        if (rc != E_OK) {
            err_wrap(e, "disks[%d]", i);
            return rc;
        }
        snprintf(ret_entry, 64, "%d:%s", i, c->disk_id[i]);
        return E_OK;
    }
    const struct cdb_volume *vol = ops_find(v, CDB_T_VOLUME, "volume", d->volume, e);
    if (!vol)
        return E_NOTFOUND;
    const struct cdb_machine *user = ops_volume_user(v, vol->id, NULL);
    if (user)
        return err_set(e, E_BUSY, "volume %s is a disk of vm %s already", vol->name, user->name);
    if (strcmp(vol->purpose, "disk") != 0 || vol->sealed)
        return err_set(e, E_INVAL, "volume %s holds an image and cannot be a disk", vol->name);
    if (strcmp(vol->state, "ready") != 0 || *vol->owner)
        return err_set(e, E_BUSY, "volume %s is in use%s%s", vol->name, *vol->owner ? " on node " : "", ops_name(v, CDB_T_NODE, vol->owner));
    for (int k = 0; k < i; k++)
        if (c->spec->disks[k].volume && ops_find(v, CDB_T_VOLUME, "volume", c->spec->disks[k].volume, NULL) == vol)
            return err_set(e, E_INVAL, "volume %s is named twice", vol->name);
    volume_hand_over(t, vol, ""); /* raises the epoch: two machines created at once cannot both get it */
    snprintf(ret_entry, 64, "%d:%s", i, vol->id);
    return E_OK;
}

/* Port ids are "<network id>/<ip>": the unique id keeps two allocations of one address apart. */
static int add_port(struct create *c, int i, const struct cdb_view *v, struct cdb_txn *t, char ips[][16], char ret_entry[96], struct err *e)
{
    const struct cdb_network *n = ops_find(v, CDB_T_NETWORK, "network", c->spec->networks[i], e);
    if (!n)
        return E_NOTFOUND;
    const char *taken[VM_NETWORKS_MAX];
    for (int k = 0; k < i; k++)
        taken[k] = ips[k]; /* of this machine on other networks: harmless where they differ, needed where one network is named twice */
    int rc = net_pick_ip(v, n, taken, i, ips[i], e);
    if (rc != E_OK)
        return rc;
    char id[80], name[96];
    snprintf(id, sizeof id, "%.36s/%.15s", n->id, ips[i]);
    snprintf(name, sizeof name, "%s-%d", c->spec->name, i);
    cdb_txn_require_exists(t, CDB_T_NETWORK, n->id);
    cdb_txn_require_absent(t, CDB_T_PORT, id);
    cdb_txn_insert(t, CDB_T_PORT, id);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_name, name);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_network, n->id);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_machine, c->op.id);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_mac, c->mac[i]);
    cdb_txn_set_str(t, CDB_T_PORT, id, CDB_PORT_ip, ips[i]);
    snprintf(ret_entry, 96, "%d:%s", i, id);
    return E_OK;
}

static void insert_machine(const struct create *c, struct cdb_txn *t, const struct cdb_image *img, const char *const *disks,
                           const char *const *ports)
{
    const struct vm_spec *s = c->spec;
    const char *id = c->op.id;
    cdb_txn_require_absent(t, CDB_T_MACHINE, id);
    cdb_txn_insert(t, CDB_T_MACHINE, id);
    const struct { int col; const char *v; } texts[] = {
        {CDB_MACHINE_name, s->name}, {CDB_MACHINE_type, s->type}, {CDB_MACHINE_accel, s->accel},
        {CDB_MACHINE_image, img ? img->id : ""}, {CDB_MACHINE_cmdline, s->cmdline}, {CDB_MACHINE_desired, "stopped"},
        {CDB_MACHINE_state, "stopped"}, {CDB_MACHINE_ha_policy, s->ha_policy}, {CDB_MACHINE_affinity, s->affinity},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        cdb_txn_set_str(t, CDB_T_MACHINE, id, texts[i].col, texts[i].v);
    cdb_txn_set_int(t, CDB_T_MACHINE, id, CDB_MACHINE_vcpus, s->vcpus);
    cdb_txn_set_int(t, CDB_T_MACHINE, id, CDB_MACHINE_memory_bytes, s->memory_bytes);
    cdb_txn_set_int(t, CDB_T_MACHINE, id, CDB_MACHINE_priority, s->priority);
    cdb_txn_set_strs(t, CDB_T_MACHINE, id, CDB_MACHINE_disks, (size_t)s->n_disks, disks);
    cdb_txn_set_strs(t, CDB_T_MACHINE, id, CDB_MACHINE_ports, (size_t)s->n_networks, ports);
}

static int build_create(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    struct create *c = (struct create *)op;
    const struct cdb_image *img;
    char disk[VM_DISKS_MAX][64], port[VM_NETWORKS_MAX][96], ips[VM_NETWORKS_MAX][16];
    const char *disks[VM_DISKS_MAX], *ports[VM_NETWORKS_MAX];
    int rc = check(c->spec, e);
    if (rc == E_OK && cdb_find_name(v, CDB_T_MACHINE, c->spec->name))
        rc = err_set(e, E_EXISTS, "vm \"%s\" exists already", c->spec->name);
    if (rc == E_OK)
        rc = check_image(v, c->spec, &img, e);
    for (int i = 0; rc == E_OK && i < c->spec->n_disks; i++) {
        rc = add_disk(c, i, v, t, disk[i], e);
        disks[i] = disk[i];
    }
    for (int i = 0; rc == E_OK && i < c->spec->n_networks; i++) {
        rc = add_port(c, i, v, t, ips, port[i], e);
        ports[i] = port[i];
    }
    if (rc != E_OK)
        return rc;
    if (img)
        cdb_txn_require_str(t, CDB_T_IMAGE, img->id, CDB_IMAGE_state, "ready");
    insert_machine(c, t, img, disks, ports);
    op_event(op, t, "info", c->spec->name, "vm %s created", c->spec->name);
    return E_OK;
}

static bool created(const struct op *op, const struct cdb_view *v) { return cdb_machine_get(v, op->id) != NULL; }

int op_vm_create(struct ops *o, const struct vm_spec *s, op_done *done, void *arg, struct err *e)
{
    struct create *c = op_new(o, sizeof *c, "create vm", done, arg);
    c->spec = s;
    c->op.build = build_create;
    c->op.happened = created;
    for (int i = 0; i < s->n_disks; i++)
        id_new(c->disk_id[i]);
    for (int i = 0; i < s->n_networks; i++) {
        char h[11];
        id_random_hex(h, 5);
        snprintf(c->mac[i], sizeof c->mac[i], "02:%.2s:%.2s:%.2s:%.2s:%.2s", h, h + 2, h + 4, h + 6, h + 8);
    }
    return op_start(&c->op, e);
}

/* ---- delete ---- */

struct removal {
    struct op op;
    const char *name;
    bool with_disks;
};

static int build_delete(struct op *op, const struct cdb_view *v, struct cdb_txn *t, struct err *e)
{
    const struct removal *r = (struct removal *)op;
    const struct cdb_machine *m = ops_find(v, CDB_T_MACHINE, "vm", r->name, e);
    if (!m)
        return E_NOTFOUND;
    snprintf(op->id, sizeof op->id, "%s", m->id);
    if (*m->host || strcmp(m->desired, "stopped") != 0)
        return err_set(e, E_BUSY, "vm %s is %s on node %s\nstop it first: cohort vm stop %s", m->name, m->state,
                       ops_name(v, CDB_T_NODE, m->host), m->name);
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, "");
    for (size_t i = 0; i < m->disks.n; i++) {
        const struct cdb_volume *vol = disk_volume(v, m->disks.v[i]);
        if (!vol)
            continue;
        int rc = r->with_disks ? volume_deletable(v, vol, m, e) : E_OK;
        if (rc != E_OK)
            return rc;
        if (r->with_disks)
            volume_remove(v, t, vol);
        else if (*vol->owner)
            volume_hand_over(t, vol, "");
    }
    for (size_t i = 0; i < m->ports.n; i++)
        if (cdb_port_get(v, slot_value(m->ports.v[i])))
            cdb_txn_delete(t, CDB_T_PORT, slot_value(m->ports.v[i]));
    cdb_txn_delete(t, CDB_T_MACHINE, m->id);
    op_event(op, t, "info", m->name, "vm %s deleted%s", m->name, r->with_disks ? " with its disks" : "; its disks are kept");
    return E_OK;
}

static bool removed(const struct op *op, const struct cdb_view *v) { return !cdb_machine_get(v, op->id); }

int op_vm_delete(struct ops *o, const char *name, bool with_disks, op_done *done, void *arg, struct err *e)
{
    struct removal *r = op_new(o, sizeof *r, "delete vm", done, arg);
    r->name = name;
    r->with_disks = with_disks;
    r->op.build = build_delete;
    r->op.happened = removed;
    return op_start(&r->op, e);
}
