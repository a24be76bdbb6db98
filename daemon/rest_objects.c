/* REST: nodes, disks, volumes, networks, ports, tasks, events, tokens: reading, and the thin way into ops_*.c. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "cluster/pki.h"
#include "daemon/rest.h"
#include "storage/asan/engine/asan.h"

#define N(a) (sizeof(a) / sizeof *(a))

/* rest_<x>_list and rest_<x>_get of a table. */
#define LIST(FN, S, JSON)                                        \
    void FN(struct rest_req *rq)                                 \
    {                                                            \
        const struct cdb_view *v = rest_view(rq);                \
        if (!v)                                                  \
            return;                                              \
        json_t *a = json_array();                                \
        for (size_t i = 0; i < cdb_##S##_count(v); i++) {        \
            const struct cdb_##S *row = cdb_##S##_at(v, i);      \
            json_array_append_new(a, JSON);                      \
        }                                                        \
        rest_ok(rq, 200, a);                                     \
    }
#define GET(FN, S, T, WORD, JSON)                                               \
    void FN(struct rest_req *rq)                                                \
    {                                                                           \
        const struct cdb_view *v = rest_view(rq);                               \
        const struct cdb_##S *row = v ? rest_find(rq, v, T, WORD, rq->arg[0]) : NULL; \
        if (row)                                                                \
            rest_ok(rq, 200, JSON);                                             \
    }

/* A node's row, and its storage links as this node sees them ("local": its own). */
static json_t *node_with_links(const struct rest_req *rq, const struct cdb_view *v, const struct cdb_node *n)
{
    struct asan_link_state s[ASAN_LINKS_MAX + 1];
    const struct daemon *d = rq->r->d;
    json_t *o = json_node(v, n), *links = json_array();
    size_t k = d->asan ? asan_link_states(d->asan, n->id, s, N(s)) : 0;
    for (size_t i = 0; i < k && i < N(s); i++)
        json_array_append_new(links, json_pack("{s:s, s:s, s:b}", "address", s[i].address, "state", s[i].up ? "up" : "down", "standby", s[i].standby));
    for (size_t i = 0; strcmp(n->id, d->node_id) == 0 && i < n->storage_addresses.n; i++)
        json_array_append_new(links, json_pack("{s:s, s:s, s:b}", "address", n->storage_addresses.v[i], "state", "local", "standby", 0));
    json_object_set_new(o, "storage_links", links);
    return o;
}

LIST(rest_node_list, node, node_with_links(rq, v, row))
GET(rest_node_get, node, CDB_T_NODE, "node", node_with_links(rq, v, row))
GET(rest_volume_get, volume, CDB_T_VOLUME, "volume", json_volume(v, row, true))
LIST(rest_image_list, image, json_image(v, row))
GET(rest_image_get, image, CDB_T_IMAGE, "image", json_image(v, row))
LIST(rest_vm_list, machine, json_vm(v, row))
GET(rest_vm_get, machine, CDB_T_MACHINE, "vm", json_vm(v, row))
LIST(rest_network_list, network, json_network(v, row))
GET(rest_network_get, network, CDB_T_NETWORK, "network", json_network(v, row))
LIST(rest_port_list, port, json_port(v, row))
LIST(rest_task_list, task, json_task(v, row))
GET(rest_task_get, task, CDB_T_TASK, "task", json_task(v, row))
LIST(rest_token_list, token, json_token(row))

static int newest_first(const void *a, const void *b)
{
    const struct cdb_event *x = *(const struct cdb_event *const *)a, *y = *(const struct cdb_event *const *)b;
    return x->time_ms > y->time_ms ? -1 : x->time_ms < y->time_ms;
}

void rest_event_list(struct rest_req *rq)
{
    const struct cdb_view *v = rest_view(rq);
    if (!v)
        return;
    const char *q = http_query(rq->http, "limit");
    size_t n = cdb_event_count(v), limit = q ? strtoul(q, NULL, 10) : 100;
    const struct cdb_event **list = calloc(n ? n : 1, sizeof *list);
    if (!list)
        abort();
    for (size_t i = 0; i < n; i++)
        list[i] = cdb_event_at(v, i);
    qsort(list, n, sizeof *list, newest_first);
    json_t *a = json_array();
    for (size_t i = 0; i < n && i < limit; i++)
        json_array_append_new(a, json_event(v, list[i]));
    free(list);
    rest_ok(rq, 200, a);
}

void rest_node_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_node_remove(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

/* ---- volumes ---- */

void rest_volumes(struct rest_req *rq, bool (*wanted)(const struct cdb_volume *row))
{
    const struct cdb_view *v = rest_view(rq);
    if (!v)
        return;
    json_t *a = json_array();
    for (size_t i = 0; i < cdb_volume_count(v); i++) {
        const struct cdb_volume *row = cdb_volume_at(v, i);
        if (wanted(row))
            json_array_append_new(a, json_volume(v, row, false));
    }
    rest_ok(rq, 200, a);
}

/* Those that people made; snapshots and the layers that are left of them have their own list. */
static bool made_by_people(const struct cdb_volume *row)
{
    return strcmp(row->purpose, "snapshot") && (strcmp(row->purpose, "layer") || !strcmp(row->state, "deleting"));
}

void rest_volume_list(struct rest_req *rq) { rest_volumes(rq, made_by_people); }

void rest_volume_create(struct rest_req *rq)
{
    struct volume_spec *s = rest_priv(rq, sizeof *s);
    struct err e;
    s->purpose = "disk";
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &s->name},
        {"size_bytes", JIN_INT, true, &s->size_bytes, VOLUME_MIN_BYTES, VOLUME_MAX_BYTES},
        {"replicas", JIN_INT, false, &s->replicas, 1, 3},
        {"encrypted", JIN_BOOL, false, &s->encrypted},
        {"class", JIN_STR, false, &s->class, 1, 20},
        {"shard_bytes", JIN_INT, false, &s->shard_bytes, INT64_C(1) << 30, INT64_C(64) << 30},
    };
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_volume_create(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_volume_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_volume_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_volume_resize(struct rest_req *rq)
{
    struct volume_spec *s = rest_priv(rq, sizeof *s);
    struct err e;
    const struct jin_field f[] = {{"size_bytes", JIN_INT, true, &s->size_bytes, VOLUME_MIN_BYTES, VOLUME_MAX_BYTES}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_volume_resize(rq->r->ops, rq->arg[0], s->size_bytes, rest_done, rq, &e), &e);
}

static void key_done(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    ops_key_changed(rq->priv, status);
    rest_done(rq, status, e, id);
}

void rest_key_set(struct rest_req *rq)
{
    struct key_change *k = rest_priv(rq, sizeof *k);
    struct err e;
    const struct jin_field f[] = {{"passphrase", JIN_STR, true, &k->passphrase, 1, KEYRING_PASS_MAX}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_key_set(rq->r->ops, k, key_done, rq, &e), &e);
}

void rest_key_unlock(struct rest_req *rq)
{
    const char *text = NULL;
    struct err e;
    const struct jin_field f[] = {{"passphrase", JIN_STR, true, &text, 1, KEYRING_PASS_MAX}};
    if (!rest_read(rq, f, N(f)))
        return;
    if (op_key_unlock(rq->r->ops, text, &e))
        rest_fail(rq, &e);
    else
        rest_ok(rq, 200, NULL);
}

void rest_volume_check(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_volume_check(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_volume_reset(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_volume_reset(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_volume_give_up(struct rest_req *rq)
{
    bool accepted = false;
    struct err e;
    const struct jin_field f[] = {{"accept_data_loss", JIN_BOOL, true, &accepted}};
    if (!rest_read(rq, f, N(f)))
        return;
    if (!accepted) {
        err_set(&e, E_INVAL, "field \"accept_data_loss\": must be true\nwhat is given up is lost for good");
        rest_fail(rq, &e);
        return;
    }
    rest_started(rq, op_volume_give_up(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_volume_limits(struct rest_req *rq)
{
    struct volume_limits *s = rest_priv(rq, sizeof *s);
    struct err e;
    *s = (struct volume_limits){-1, -1, -1};
    const struct jin_field f[] = {
        {"iops", JIN_INT, false, &s->iops, 0, VOLUME_IOPS_MAX},
        {"bandwidth_bytes", JIN_INT, false, &s->bandwidth_bytes, 0, VOLUME_BANDWIDTH_MAX},
        {"burst_ms", JIN_INT, false, &s->burst_ms, VOLUME_BURST_MIN_MS, VOLUME_BURST_MAX_MS},
    };
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_volume_limits(rq->r->ops, rq->arg[0], s, rest_done, rq, &e), &e);
}

/* ---- networks ---- */

void rest_network_create(struct rest_req *rq)
{
    struct network_spec *s = rest_priv(rq, sizeof *s);
    json_t *dns = NULL;
    struct err e;
    s->gateway = "";
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &s->name}, {"cidr", JIN_STR, true, &s->cidr, 1, 40}, {"gateway", JIN_STR, false, &s->gateway, 0, 40},
        {"mtu", JIN_INT, false, &s->mtu, 0, 9000}, {"dns", JIN_ARRAY, false, &dns, 0, 4},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    for (size_t i = 0; i < json_array_size(dns); i++) {
        if (!json_is_string(json_array_get(dns, i))) {
            err_set(&e, E_INVAL, "field \"dns[%zu]\": must be a text", i);
            rest_fail(rq, &e);
            return;
        }
        s->dns[s->n_dns++] = json_string_value(json_array_get(dns, i));
    }
    rest_started(rq, op_network_create(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_network_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_network_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

/* ---- ports without a machine ---- */

void rest_port_create(struct rest_req *rq)
{
    struct port_spec *s = rest_priv(rq, sizeof *s);
    struct err e;
    const struct jin_field f[] = {{"name", JIN_STR, true, &s->name}, {"network", JIN_STR, true, &s->network}};
    if (rest_read(rq, f, N(f)))
        rest_started(rq, op_port_create(rq->r->ops, s, rest_done, rq, &e), &e);
}

void rest_port_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_port_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

void rest_task_cancel(struct rest_req *rq)
{
    struct err e;
    if (rest_read(rq, NULL, 0))
        rest_started(rq, op_task_cancel(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}

/* ---- tokens ---- */

struct token_req {
    struct token_spec spec;
    char secret[80], hash[65];
};

static void token_made(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    struct token_req *k = rq->priv;
    if (status != E_OK) {
        rest_fail(rq, e);
        return;
    }
    rest_ok(rq, 200, json_pack("{s:s, s:s, s:s, s:s, s:I}", "id", id, "name", k->spec.name, "role", k->spec.role, "token", k->secret,
                               "expires_ms", (json_int_t)k->spec.expires_ms));
}

void rest_token_create(struct rest_req *rq)
{
    struct token_req *k = rest_priv(rq, sizeof *k);
    int64_t ttl_s = 0;
    char random[65];
    struct err e;
    k->spec.role = "viewer";
    const struct jin_field f[] = {
        {"name", JIN_STR, true, &k->spec.name}, {"role", JIN_STR, false, &k->spec.role},
        {"ttl_s", JIN_INT, false, &ttl_s, 0, INT64_C(10) * 366 * 86400},
    };
    if (!rest_read(rq, f, N(f)))
        return;
    if (strcmp(k->spec.role, "admin") && strcmp(k->spec.role, "operator") && strcmp(k->spec.role, "viewer")) {
        err_set(&e, E_INVAL, "role \"%.40s\" is not allowed\nadmin, operator or viewer", k->spec.role);
        rest_fail(rq, &e);
        return;
    }
    id_random_hex(random, 32);
    snprintf(k->secret, sizeof k->secret, "cohort_%s", random);
    pki_sha256_hex(k->secret, k->hash);
    k->spec.hash = k->hash;
    k->spec.creator = rq->who;
    k->spec.expires_ms = ttl_s ? clock_wall_ms() + ttl_s * 1000 : 0;
    rest_started(rq, op_token_create(rq->r->ops, &k->spec, token_made, rq, &e), &e);
}

void rest_token_delete(struct rest_req *rq)
{
    struct err e;
    rest_started(rq, op_token_delete(rq->r->ops, rq->arg[0], rest_done, rq, &e), &e);
}
