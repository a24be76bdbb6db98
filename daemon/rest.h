/* Inside of the REST API: a request with its identity, parsed body and answer. Private to daemon/rest*.c.
 *
 * A handler reads (rest_view, jin_read), starts an operation with rest_done (or its own callback) and returns; or answers
 * at once with rest_ok/rest_fail. Exactly one answer per request; a rest_req lives until it was answered, even if the
 * client has left. */
#ifndef COHORT_DAEMON_REST_H
#define COHORT_DAEMON_REST_H

#include <jansson.h>
#include <sys/queue.h>
#include "daemon/daemon.h"
#include "daemon/http.h"
#include "daemon/jin.h"
#include "daemon/ops.h"

enum rest_role { ROLE_NONE, ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN };

struct rest_req;
struct imports;
struct image_io;

struct rest_route {
    const char *method, *path;   /* '*' stands for one segment: rq->arg[] */
    enum rest_role role;         /* ROLE_NONE: no token needed */
    void (*fn)(struct rest_req *rq);
    size_t body_max;             /* 0: takes no body */
    unsigned flags;
};
#define ROUTE_LOCAL 1u           /* unix socket only */
#define ROUTE_STREAM 2u          /* fn is called before the body and sets rq->http->sink */

#define REST_ARGS 3
struct rest_req {
    struct rest *r;
    struct http_req *http;       /* NULL once the client is gone */
    const struct rest_route *route;
    char *path_copy, *arg[REST_ARGS];
    json_t *body;
    enum rest_role role;
    char who[80];                /* for logs and creator columns */
    bool started, answered, http_gone; /* started: fn was called */
    void (*on_gone)(struct rest_req *rq); /* NULL, or: the client left before the answer */
    void *priv;                  /* handler's own */
    void (*free_priv)(void *priv);
    LIST_ENTRY(rest_req) entry;
};

struct rest {
    struct daemon *d;
    struct ops *ops;
    struct http *unix_http, *tls_http;
    struct imports *imports;
    const struct image_io *image_io; /* NULL until there is storage */
    LIST_HEAD(, rest_req) requests;
    struct founding *founding;   /* init or join that is on its way in a worker */
    bool closing;
};

void rest_ok(struct rest_req *rq, int status, json_t *out);          /* takes `out`; NULL = {} */
void rest_text(struct rest_req *rq, int status, const char *type, char *text, size_t len); /* takes `text` */
/* An answer that is drawn by the client until `source` ends it; free_priv comes when the client is gone. */
void rest_stream(struct rest_req *rq, const char *type, http_source *source);
void rest_fail(struct rest_req *rq, const struct err *e);            /* e->msg "message[\nhint]"; status by code */
/* The view, or NULL after having answered. */
const struct cdb_view *rest_view(struct rest_req *rq);
/* As ops_find, or NULL after having answered 404. */
const void *rest_find(struct rest_req *rq, const struct cdb_view *v, enum cdb_table t, const char *what, const char *key);
/* jin_read on the body; false after having answered. */
bool rest_read(struct rest_req *rq, const struct jin_field *f, size_t n);
/* op_done that answers: 200 {"id":…} or the error. */
void rest_done(void *arg, int status, const struct err *e, const char *id);
/* For `rc` of an op_*(): answers if it was refused at once. */
void rest_started(struct rest_req *rq, int rc, const struct err *e);
void *rest_priv(struct rest_req *rq, size_t bytes); /* zeroed, freed with the request */

/* JSON of rows (rest_json.c). References appear as a name and, with _id, as an id. */
json_t *json_node(const struct cdb_view *v, const struct cdb_node *n);
json_t *json_disk(const struct cdb_view *v, const struct cdb_disk *d);
json_t *json_volume(const struct cdb_view *v, const struct cdb_volume *vol, bool with_shards);
json_t *json_image(const struct cdb_view *v, const struct cdb_image *i);
json_t *json_vm(const struct cdb_view *v, const struct cdb_machine *m);
json_t *json_network(const struct cdb_view *v, const struct cdb_network *n);
json_t *json_port(const struct cdb_view *v, const struct cdb_port *p);
json_t *json_task(const struct cdb_view *v, const struct cdb_task *t);
json_t *json_token(const struct cdb_token *t);
json_t *json_nbd_client(const struct cdb_view *v, const struct cdb_nbd_client *c);
json_t *json_event(const struct cdb_view *v, const struct cdb_event *e);

/* Handlers, by resource; the table is in rest.c. */
void rest_cluster_get(struct rest_req *rq);
void rest_cluster_init(struct rest_req *rq);
void rest_cluster_join(struct rest_req *rq);
void rest_cluster_token(struct rest_req *rq);
void rest_cluster_ca(struct rest_req *rq);
void rest_join_request(struct rest_req *rq);
void rest_node_list(struct rest_req *rq);
void rest_node_get(struct rest_req *rq);
void rest_node_delete(struct rest_req *rq);
void rest_node_maintenance(struct rest_req *rq);
void rest_setting_put(struct rest_req *rq);
void rest_repair_get(struct rest_req *rq);
void rest_disk_list(struct rest_req *rq);
void rest_disk_get(struct rest_req *rq);
void rest_disk_add(struct rest_req *rq);
void rest_disk_drain(struct rest_req *rq);
void rest_disk_spare(struct rest_req *rq);
void rest_disk_use(struct rest_req *rq);
void rest_disk_replace(struct rest_req *rq);
void rest_disk_delete(struct rest_req *rq);
/* Answers with the volumes that are `wanted`. */
void rest_volumes(struct rest_req *rq, bool (*wanted)(const struct cdb_volume *row));
void rest_volume_list(struct rest_req *rq);
void rest_volume_get(struct rest_req *rq);
void rest_volume_create(struct rest_req *rq);
void rest_volume_delete(struct rest_req *rq);
void rest_volume_resize(struct rest_req *rq);
void rest_key_set(struct rest_req *rq);
void rest_key_unlock(struct rest_req *rq);
void rest_volume_check(struct rest_req *rq);
void rest_volume_give_up(struct rest_req *rq);
void rest_volume_reset(struct rest_req *rq);
void rest_volume_limits(struct rest_req *rq);
void rest_volume_clone(struct rest_req *rq);
void rest_volume_flatten(struct rest_req *rq);
void rest_volume_changed(struct rest_req *rq);
void rest_volume_export(struct rest_req *rq);
void rest_import(struct rest_req *rq);
void rest_snapshot_list(struct rest_req *rq);
void rest_snapshot_create(struct rest_req *rq);
void rest_snapshot_get(struct rest_req *rq);
void rest_snapshot_delete(struct rest_req *rq);
void rest_snapshot_revert(struct rest_req *rq);
void rest_image_list(struct rest_req *rq);
void rest_image_get(struct rest_req *rq);
void rest_image_create(struct rest_req *rq);
void rest_image_put(struct rest_req *rq);
void rest_image_delete(struct rest_req *rq);
void rest_vm_list(struct rest_req *rq);
void rest_vm_get(struct rest_req *rq);
void rest_vm_create(struct rest_req *rq);
void rest_vm_delete(struct rest_req *rq);
void rest_vm_start(struct rest_req *rq);
void rest_vm_stop(struct rest_req *rq);
void rest_vm_kill(struct rest_req *rq);
void rest_vm_migrate(struct rest_req *rq);
void rest_network_list(struct rest_req *rq);
void rest_network_get(struct rest_req *rq);
void rest_network_create(struct rest_req *rq);
void rest_network_delete(struct rest_req *rq);
void rest_port_list(struct rest_req *rq);
void rest_port_create(struct rest_req *rq);
void rest_port_delete(struct rest_req *rq);
void rest_task_list(struct rest_req *rq);
void rest_task_get(struct rest_req *rq);
void rest_task_cancel(struct rest_req *rq);
void rest_event_list(struct rest_req *rq);
void rest_token_list(struct rest_req *rq);
void rest_token_create(struct rest_req *rq);
void rest_token_delete(struct rest_req *rq);
void rest_nbd_client_list(struct rest_req *rq);
void rest_nbd_client_get(struct rest_req *rq);
void rest_nbd_client_create(struct rest_req *rq);
void rest_nbd_client_delete(struct rest_req *rq);
void rest_nbd_client_access(struct rest_req *rq);
void rest_metrics(struct rest_req *rq);
void rest_debug_asan(struct rest_req *rq);
void rest_debug_log(struct rest_req *rq);
void rest_page(struct rest_req *rq);
void rest_page_css(struct rest_req *rq);
void rest_page_js(struct rest_req *rq);

void founding_forget(struct founding *f); /* its result will reach nobody; NULL is fine */
void imports_close(struct imports *im); /* NULL is fine */

#endif
