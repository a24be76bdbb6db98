/* JSON of database rows. A reference x appears as the name in "x" and the id in "x_id". */
#include <stdlib.h>
#include <string.h>
#include "compute/image.h"
#include "base/buf.h"
#include "cluster/copies.h"
#include "daemon/rest.h"

static json_t *str(const char *s)
{
    json_t *j = json_string(s);
    return j ? j : json_string("(not UTF-8)");
}

static void put_str(json_t *o, const char *k, const char *s) { json_object_set_new(o, k, str(s)); }
static void put_int(json_t *o, const char *k, int64_t i) { json_object_set_new(o, k, json_integer(i)); }
static void put_bool(json_t *o, const char *k, bool b) { json_object_set_new(o, k, json_boolean(b)); }

static void put_ref(json_t *o, const struct cdb_view *v, enum cdb_table t, const char *k, const char *id)
{
    char key[40];
    put_str(o, k, ops_name(v, t, id));
    snprintf(key, sizeof key, "%s_id", k);
    put_str(o, key, id);
}

static json_t *strs(const struct cdb_strs *s)
{
    json_t *a = json_array();
    for (size_t i = 0; i < s->n; i++)
        json_array_append_new(a, str(s->v[i]));
    return a;
}

static json_t *smap(const struct cdb_smap *m)
{
    json_t *o = json_object();
    for (size_t i = 0; i < m->n; i++)
        json_object_set_new(o, m->k[i], str(m->v[i]));
    return o;
}

json_t *json_node(const struct cdb_view *v, const struct cdb_node *n)
{
    json_t *o = json_object();
    int guests = 0;
    put_str(o, "id", n->id);
    put_str(o, "name", n->name);
    json_object_set_new(o, "addresses", strs(&n->addresses));
    json_object_set_new(o, "storage_addresses", strs(&n->storage_addresses));
    put_str(o, "state", n->state);
    put_int(o, "state_ms", n->state_ms);
    put_bool(o, "maintenance", n->maintenance);
    put_str(o, "domain", n->domain);
    put_bool(o, "voter", n->voter);
    const struct cdb_cluster *c = cdb_cluster_get(v, "cluster");
    put_bool(o, "coordinator", c && strcmp(c->coordinator, n->id) == 0);
    put_int(o, "epoch", n->epoch);
    put_int(o, "cpus", n->cpus);
    put_int(o, "memory_bytes", n->memory_bytes);
    put_int(o, "memory_used_bytes", ops_node_memory_used(v, n->id));
    for (size_t i = 0; i < cdb_machine_count(v); i++)
        guests += strcmp(cdb_machine_at(v, i)->host, n->id) == 0;
    put_int(o, "vms", guests);
    put_str(o, "accel", n->accel);
    put_str(o, "accel_reason", n->accel_reason);
    put_int(o, "control_port", n->control_port);
    put_int(o, "storage_port", n->storage_port);
    put_int(o, "api_port", n->api_port);
    put_int(o, "migrate_port", n->migrate_port);
    put_str(o, "version", n->version);
    put_int(o, "joined_ms", n->joined_ms);
    return o;
}

json_t *json_disk(const struct cdb_view *v, const struct cdb_disk *d)
{
    json_t *o = json_object();
    int64_t copies = 0, in_sync = 0;
    put_str(o, "id", d->id);
    put_ref(o, v, CDB_T_NODE, "node", d->node);
    put_str(o, "name", d->name);
    put_str(o, "medium", *d->medium ? d->medium : "storage");
    put_int(o, "memory_bytes", d->memory_bytes);
    put_str(o, "fast_path", d->fast_path);
    put_str(o, "capacity_path", d->capacity_path);
    put_int(o, "size_bytes", d->size_bytes);
    put_int(o, "used_bytes", d->used_bytes);
    put_bool(o, "full", d->full);
    put_int(o, "incarnation", d->incarnation);
    put_str(o, "state", d->state);
    put_str(o, "smart_state", d->smart_state);
    put_str(o, "smart", d->smart);
    put_str(o, "message", d->message);
    const struct cdb_disk *spare = *d->replaced_by ? cdb_disk_get(v, d->replaced_by) : NULL;
    char *name = spare ? xasprintf("%s:%s", ops_name(v, CDB_T_NODE, spare->node), spare->name) : xstrdup(d->replaced_by);
    put_str(o, "replaced_by", name);
    free(name);
    for (size_t i = 0; i < cdb_shard_count(v); i++) {
        const struct cdb_shard *s = cdb_shard_at(v, i);
        bool here = cdb_strs_has(&s->replicas, d->id);
        copies += here;
        in_sync += here && cdb_shard_in_sync(v, s, d->id);
    }
    put_int(o, "shard_copies", copies);
    put_int(o, "shard_copies_in_sync", in_sync);
    return o;
}

static json_t *shard(const struct cdb_view *v, const struct cdb_shard *s)
{
    json_t *o = json_object(), *copies = json_array();
    put_int(o, "index", s->idx);
    put_int(o, "generation", s->generation);
    put_int(o, "used_bytes", s->used_bytes);
    put_int(o, "in_sync", cdb_shard_in_sync_count(v, s));
    for (size_t i = 0; i < s->replicas.n; i++) {
        const struct cdb_disk *d = cdb_disk_get(v, s->replicas.v[i]);
        const struct cdb_node *n = d ? cdb_node_get(v, d->node) : NULL;
        json_t *c = json_object();
        put_str(c, "node", n ? n->name : "");
        put_str(c, "node_state", n ? n->state : "gone");
        put_str(c, "disk", d ? d->name : "");
        put_str(c, "disk_id", s->replicas.v[i]);
        put_bool(c, "in_sync", cdb_shard_in_sync(v, s, s->replicas.v[i]));
        json_array_append_new(copies, c);
    }
    json_object_set_new(o, "replicas", copies);
    return o;
}

static int by_index(const void *a, const void *b)
{
    const struct cdb_shard *x = *(const struct cdb_shard *const *)a, *y = *(const struct cdb_shard *const *)b;
    return x->idx < y->idx ? -1 : x->idx > y->idx;
}

static json_t *shards(const struct cdb_view *v, const struct cdb_volume *vol)
{
    enum { MAX = 64 }; /* a volume has at most that many */
    const struct cdb_shard *list[MAX];
    size_t n = 0;
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_shard_count(v) && n < MAX; i++)
        if (strcmp(cdb_shard_at(v, i)->volume, vol->id) == 0)
            list[n++] = cdb_shard_at(v, i);
    qsort(list, n, sizeof *list, by_index);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, shard(v, list[i]));
    return a;
}

/* The last check, and whether one is wanted or under way. */
static json_t *volume_check_json(const struct cdb_volume *vol)
{
    json_t *o = json_object();
    put_bool(o, "wanted", vol->check_asked_ms > vol->check_done_ms);
    put_int(o, "asked_ms", vol->check_asked_ms);
    put_int(o, "done_ms", vol->check_done_ms);
    for (size_t i = 0; i < vol->check_result.n; i++)
        put_int(o, vol->check_result.k[i], vol->check_result.v[i]);
    json_object_set_new(o, "unrepairable", strs(&vol->check_bad)); /* "<offset>+<length>" in bytes of the volume */
    return o;
}

/* NBD clients that may use it: {"client","client_id","mode"}. */
static json_t *volume_clients(const struct cdb_view *v, const struct cdb_volume *vol)
{
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_nbd_client_count(v); i++) {
        const struct cdb_nbd_client *c = cdb_nbd_client_at(v, i);
        const char *mode = cdb_smap_get(&c->volumes, vol->id);
        if (!mode)
            continue;
        json_t *one = json_object();
        put_ref(one, v, CDB_T_NBD_CLIENT, "client", c->id);
        put_str(one, "mode", mode);
        json_array_append_new(a, one);
    }
    return a;
}

json_t *json_volume(const struct cdb_view *v, const struct cdb_volume *vol, bool with_shards)
{
    json_t *o = json_object();
    char why[160];
    const struct cdb_machine *user = ops_volume_user(v, vol->id, NULL);
    enum volume_health h = ops_volume_health(v, vol, why);
    put_str(o, "id", vol->id);
    put_str(o, "name", vol->name);
    put_int(o, "size_bytes", vol->size_bytes);
    put_int(o, "used_bytes", ops_volume_used(v, vol));
    put_int(o, "shard_bytes", vol->shard_bytes);
    put_int(o, "replicas", vol->replicas);
    put_ref(o, v, CDB_T_NODE, "owner", vol->owner);
    put_int(o, "epoch", vol->epoch);
    put_bool(o, "sealed", vol->sealed);
    put_str(o, "purpose", vol->purpose);
    put_str(o, "class", *copies_class(vol) ? copies_class(vol) : "storage");
    put_str(o, "state", h == VOLUME_LOST && strcmp(vol->state, "ready") == 0 ? "lost" : vol->state);
    put_int(o, "lost_ms", vol->lost_ms);
    put_str(o, "health", volume_health_name(h));
    put_str(o, "health_reason", why);
    put_str(o, "vm", user ? user->name : "");
    put_bool(o, "encrypted", *vol->key != '\0');
    put_int(o, "iops", vol->iops);
    put_int(o, "bandwidth_bytes", vol->bandwidth_bytes);
    put_int(o, "burst_ms", vol->burst_ms);
    json_object_set_new(o, "check", volume_check_json(vol));
    json_object_set_new(o, "unreadable", strs(&vol->unreadable)); /* "<offset>+<length>": no copy in sync can read it */
    json_object_set_new(o, "given_up", strs(&vol->given_up));
    put_ref(o, v, CDB_T_VOLUME, "parent", vol->parent);
    put_bool(o, "flatten", vol->flatten);
    if (strcmp(vol->purpose, "snapshot") == 0)
        put_str(o, "content", ops_content(vol));
    put_ref(o, v, CDB_T_VOLUME, "snapshot_of", vol->origin);
    put_int(o, "created_ms", vol->created_ms);
    if (with_shards) {
        json_object_set_new(o, "shards", shards(v, vol));
        json_object_set_new(o, "nbd_clients", volume_clients(v, vol));
    }
    return o;
}

json_t *json_image(const struct cdb_view *v, const struct cdb_image *img)
{
    json_t *o = json_object(), *files = json_object();
    int64_t total = 0;
    put_str(o, "id", img->id);
    put_str(o, "name", img->name);
    put_str(o, "kind", img->kind);
    put_str(o, "state", img->state);
    put_str(o, "message", img->message);
    for (size_t i = 0; i < img->files.n; i++) {
        struct image_file at;
        struct err e;
        if (image_file_parse(img->files.v[i], &at, &e))
            continue;
        json_t *f = json_object();
        put_int(f, "size_bytes", (int64_t)at.length);
        put_str(f, "sha256", at.complete ? at.sha256 : "");
        json_object_set_new(files, img->files.k[i], f);
        total += (int64_t)at.length;
    }
    put_int(o, "size_bytes", total);
    json_object_set_new(o, "files", files);
    put_ref(o, v, CDB_T_VOLUME, "volume", img->volume);
    return o;
}

static json_t *vm_disks(const struct cdb_view *v, const struct cdb_machine *m)
{
    json_t *a = json_array();
    char why[160];
    for (size_t i = 0; i < m->disks.n; i++) {
        const char *colon = strchr(m->disks.v[i], ':'), *id = colon ? colon + 1 : m->disks.v[i];
        const struct cdb_volume *vol = cdb_volume_get(v, id);
        json_t *d = json_object();
        put_int(d, "slot", atoi(m->disks.v[i]));
        put_ref(d, v, CDB_T_VOLUME, "volume", id);
        put_int(d, "size_bytes", vol ? vol->size_bytes : 0);
        put_str(d, "health", vol ? volume_health_name(ops_volume_health(v, vol, why)) : "gone");
        json_array_append_new(a, d);
    }
    return a;
}

static json_t *vm_ports(const struct cdb_view *v, const struct cdb_machine *m)
{
    json_t *a = json_array();
    for (size_t i = 0; i < m->ports.n; i++) {
        const char *colon = strchr(m->ports.v[i], ':');
        const struct cdb_port *p = colon ? cdb_port_get(v, colon + 1) : NULL;
        if (!p)
            continue;
        json_t *o = json_object();
        put_int(o, "slot", atoi(m->ports.v[i]));
        put_str(o, "port_id", p->id);
        put_ref(o, v, CDB_T_NETWORK, "network", p->network);
        put_str(o, "mac", p->mac);
        put_str(o, "ip", p->ip);
        put_bool(o, "up", p->up);
        json_array_append_new(a, o);
    }
    return a;
}

json_t *json_vm(const struct cdb_view *v, const struct cdb_machine *m)
{
    json_t *o = json_object();
    put_str(o, "id", m->id);
    put_str(o, "name", m->name);
    put_int(o, "vcpus", m->vcpus);
    put_int(o, "memory_bytes", m->memory_bytes);
    put_str(o, "type", m->type);
    put_str(o, "accel", m->accel);
    put_ref(o, v, CDB_T_IMAGE, "image", m->image);
    put_str(o, "cmdline", m->cmdline);
    json_object_set_new(o, "disks", vm_disks(v, m));
    json_object_set_new(o, "networks", vm_ports(v, m));
    put_ref(o, v, CDB_T_NODE, "host", m->host);
    put_int(o, "generation", m->generation);
    put_str(o, "desired", m->desired);
    put_str(o, "state", m->state);
    put_str(o, "message", m->message);
    put_ref(o, v, CDB_T_NODE, "migrate_to", m->migrate_to);
    put_str(o, "ha_policy", m->ha_policy);
    put_int(o, "priority", m->priority);
    put_str(o, "affinity", m->affinity);
    return o;
}

json_t *json_network(const struct cdb_view *v, const struct cdb_network *n)
{
    json_t *o = json_object();
    int64_t ports = 0;
    for (size_t i = 0; i < cdb_port_count(v); i++)
        ports += strcmp(cdb_port_at(v, i)->network, n->id) == 0;
    put_str(o, "id", n->id);
    put_str(o, "name", n->name);
    put_str(o, "cidr", n->cidr);
    put_str(o, "gateway", n->gateway);
    json_object_set_new(o, "dns", strs(&n->dns));
    put_int(o, "mtu", n->mtu);
    put_int(o, "ports", ports);
    return o;
}

json_t *json_port(const struct cdb_view *v, const struct cdb_port *p)
{
    json_t *o = json_object();
    const struct cdb_machine *m = cdb_machine_get(v, p->machine);
    put_str(o, "id", p->id);
    put_str(o, "name", p->name);
    put_ref(o, v, CDB_T_NETWORK, "network", p->network);
    put_ref(o, v, CDB_T_MACHINE, "vm", p->machine);
    put_str(o, "mac", p->mac);
    put_str(o, "ip", p->ip);
    put_bool(o, "up", p->up);
    put_ref(o, v, CDB_T_NODE, "node", m ? m->host : "");
    return o;
}

json_t *json_task(const struct cdb_view *v, const struct cdb_task *t)
{
    json_t *o = json_object();
    put_str(o, "id", t->id);
    put_str(o, "kind", t->kind);
    put_str(o, "object", t->object);
    put_ref(o, v, CDB_T_NODE, "node", t->node);
    put_str(o, "state", t->state);
    put_int(o, "done", t->done);
    put_int(o, "total", t->total);
    put_str(o, "unit", t->unit);
    put_int(o, "started_ms", t->started_ms);
    put_int(o, "updated_ms", t->updated_ms);
    int64_t ms = t->updated_ms - t->started_ms;
    if (!strcmp(t->state, "running") && ms > 0 && t->done > 0) { /* per second since the start, and how long it takes yet */
        put_int(o, "rate", t->done * 1000 / ms);
        if (t->total >= t->done)
            put_int(o, "eta_ms", (int64_t)((double)(t->total - t->done) / (double)t->done * (double)ms));
    }
    put_bool(o, "cancel", t->cancel);
    put_str(o, "message", t->message);
    json_object_set_new(o, "result", smap(&t->result));
    return o;
}

json_t *json_token(const struct cdb_token *t)
{
    json_t *o = json_object();
    put_str(o, "id", t->id);
    put_str(o, "name", t->name);
    put_str(o, "role", t->role);
    put_int(o, "expires_ms", t->expires_ms);
    put_str(o, "creator", t->creator);
    return o; /* never the hash: it is of no use to a reader and of some to an attacker */
}

json_t *json_nbd_client(const struct cdb_view *v, const struct cdb_nbd_client *c)
{
    json_t *o = json_object(), *list = json_array();
    put_str(o, "id", c->id);
    put_str(o, "name", c->name);
    put_str(o, "fingerprint", c->fingerprint);
    for (size_t i = 0; i < c->volumes.n; i++) {
        if (!cdb_volume_get(v, c->volumes.k[i]))
            continue; /* deleted since */
        json_t *one = json_object();
        put_ref(one, v, CDB_T_VOLUME, "volume", c->volumes.k[i]);
        put_str(one, "mode", c->volumes.v[i]);
        json_array_append_new(list, one);
    }
    json_object_set_new(o, "volumes", list);
    put_int(o, "expires_ms", c->expires_ms);
    put_str(o, "creator", c->creator);
    return o;
}

json_t *json_event(const struct cdb_view *v, const struct cdb_event *e)
{
    json_t *o = json_object();
    put_str(o, "id", e->id);
    put_int(o, "time_ms", e->time_ms);
    put_str(o, "severity", e->severity);
    put_str(o, "object", e->object);
    put_str(o, "message", e->message);
    put_ref(o, v, CDB_T_NODE, "node", e->node);
    return o;
}
