/* REST API: sockets, routing, identity, answers. See rest.h for what a handler does. */
#include "daemon/rest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/metric.h"
#include "cluster/pki.h"

LOG_MODULE("rest")
METRIC_COUNTER(m_requests, "cohort_api_requests_total", "REST requests answered")
METRIC_COUNTER(m_errors, "cohort_api_errors_total", "REST requests answered with an error")

#define SMALL (16u << 10) /* enough for every JSON body but a join request, which carries a CSR */
#define API "/api/v1"

static const struct rest_route routes[] = {
    {"GET", "/", ROLE_NONE, rest_page, 0, 0},
    {"GET", "/app.css", ROLE_NONE, rest_page_css, 0, 0},
    {"GET", "/app.js", ROLE_NONE, rest_page_js, 0, 0},
    {"GET", "/metrics", ROLE_VIEWER, rest_metrics, 0, 0},
    {"GET", API "/metrics", ROLE_VIEWER, rest_metrics, 0, 0},
    {"GET", API "/cluster", ROLE_VIEWER, rest_cluster_get, 0, 0},
    {"GET", API "/cluster/ca", ROLE_NONE, rest_cluster_ca, 0, 0},
    {"POST", API "/cluster/init", ROLE_ADMIN, rest_cluster_init, SMALL, ROUTE_LOCAL},
    {"POST", API "/cluster/join", ROLE_ADMIN, rest_cluster_join, SMALL, ROUTE_LOCAL},
    {"POST", API "/cluster/key", ROLE_ADMIN, rest_key_set, 70000, 0},
    {"POST", API "/cluster/key/unlock", ROLE_ADMIN, rest_key_unlock, 70000, 0},
    {"POST", API "/cluster/tokens", ROLE_ADMIN, rest_cluster_token, SMALL, 0},
    {"POST", API "/cluster/join-requests", ROLE_NONE, rest_join_request, 4 * SMALL, 0},
    {"GET", API "/nodes", ROLE_VIEWER, rest_node_list, 0, 0},
    {"GET", API "/nodes/*", ROLE_VIEWER, rest_node_get, 0, 0},
    {"DELETE", API "/nodes/*", ROLE_ADMIN, rest_node_delete, 0, 0},
    {"POST", API "/nodes/*/maintenance", ROLE_ADMIN, rest_node_maintenance, SMALL, 0},
    {"PUT", API "/settings/*", ROLE_ADMIN, rest_setting_put, SMALL, 0},
    {"GET", API "/repair", ROLE_VIEWER, rest_repair_get, 0, 0},
    {"GET", API "/disks", ROLE_VIEWER, rest_disk_list, 0, 0},
    {"POST", API "/disks", ROLE_ADMIN, rest_disk_add, SMALL, 0},
    {"GET", API "/disks/*", ROLE_VIEWER, rest_disk_get, 0, 0},
    {"DELETE", API "/disks/*", ROLE_ADMIN, rest_disk_delete, 0, 0},
    {"POST", API "/disks/*/drain", ROLE_ADMIN, rest_disk_drain, SMALL, 0},
    {"POST", API "/disks/*/spare", ROLE_ADMIN, rest_disk_spare, SMALL, 0},
    {"POST", API "/disks/*/use", ROLE_ADMIN, rest_disk_use, SMALL, 0},
    {"POST", API "/disks/*/replace", ROLE_ADMIN, rest_disk_replace, SMALL, 0},
    {"GET", API "/volumes", ROLE_VIEWER, rest_volume_list, 0, 0},
    {"POST", API "/volumes", ROLE_OPERATOR, rest_volume_create, SMALL, 0},
    {"GET", API "/volumes/*", ROLE_VIEWER, rest_volume_get, 0, 0},
    {"DELETE", API "/volumes/*", ROLE_OPERATOR, rest_volume_delete, 0, 0},
    {"POST", API "/volumes/*/resize", ROLE_OPERATOR, rest_volume_resize, SMALL, 0},
    {"POST", API "/volumes/*/check", ROLE_OPERATOR, rest_volume_check, SMALL, 0},
    {"POST", API "/volumes/*/give-up", ROLE_ADMIN, rest_volume_give_up, SMALL, 0},
    {"POST", API "/volumes/*/reset", ROLE_OPERATOR, rest_volume_reset, SMALL, 0},
    {"POST", API "/volumes/*/limits", ROLE_OPERATOR, rest_volume_limits, SMALL, 0},
    {"POST", API "/volumes/*/clone", ROLE_OPERATOR, rest_volume_clone, SMALL, 0},
    {"POST", API "/volumes/*/flatten", ROLE_OPERATOR, rest_volume_flatten, SMALL, 0},
    {"GET", API "/volumes/*/changed", ROLE_VIEWER, rest_volume_changed, 0, 0},
    {"GET", API "/volumes/*/export", ROLE_OPERATOR, rest_volume_export, 0, 0},
    {"PUT", API "/imports", ROLE_OPERATOR, rest_import, 0, ROUTE_STREAM},
    {"GET", API "/snapshots", ROLE_VIEWER, rest_snapshot_list, 0, 0},
    {"POST", API "/snapshots", ROLE_OPERATOR, rest_snapshot_create, SMALL, 0},
    {"GET", API "/snapshots/*", ROLE_VIEWER, rest_snapshot_get, 0, 0},
    {"DELETE", API "/snapshots/*", ROLE_OPERATOR, rest_snapshot_delete, 0, 0},
    {"POST", API "/snapshots/*/revert", ROLE_OPERATOR, rest_snapshot_revert, SMALL, 0},
    {"GET", API "/images", ROLE_VIEWER, rest_image_list, 0, 0},
    {"POST", API "/images", ROLE_OPERATOR, rest_image_create, SMALL, 0},
    {"GET", API "/images/*", ROLE_VIEWER, rest_image_get, 0, 0},
    {"PUT", API "/images/*/files/*", ROLE_OPERATOR, rest_image_put, 0, ROUTE_STREAM},
    {"DELETE", API "/images/*", ROLE_OPERATOR, rest_image_delete, 0, 0},
    {"GET", API "/vms", ROLE_VIEWER, rest_vm_list, 0, 0},
    {"POST", API "/vms", ROLE_OPERATOR, rest_vm_create, SMALL, 0},
    {"GET", API "/vms/*", ROLE_VIEWER, rest_vm_get, 0, 0},
    {"DELETE", API "/vms/*", ROLE_OPERATOR, rest_vm_delete, 0, 0},
    {"POST", API "/vms/*/start", ROLE_OPERATOR, rest_vm_start, SMALL, 0},
    {"POST", API "/vms/*/stop", ROLE_OPERATOR, rest_vm_stop, SMALL, 0},
    {"POST", API "/vms/*/kill", ROLE_OPERATOR, rest_vm_kill, SMALL, 0},
    {"POST", API "/vms/*/migrate", ROLE_OPERATOR, rest_vm_migrate, SMALL, 0},
    {"GET", API "/networks", ROLE_VIEWER, rest_network_list, 0, 0},
    {"POST", API "/networks", ROLE_OPERATOR, rest_network_create, SMALL, 0},
    {"GET", API "/networks/*", ROLE_VIEWER, rest_network_get, 0, 0},
    {"DELETE", API "/networks/*", ROLE_OPERATOR, rest_network_delete, 0, 0},
    {"GET", API "/ports", ROLE_VIEWER, rest_port_list, 0, 0},
    {"POST", API "/ports", ROLE_OPERATOR, rest_port_create, SMALL, 0},
    {"DELETE", API "/ports/*", ROLE_OPERATOR, rest_port_delete, 0, 0},
    {"GET", API "/tasks", ROLE_VIEWER, rest_task_list, 0, 0},
    {"GET", API "/tasks/*", ROLE_VIEWER, rest_task_get, 0, 0},
    {"POST", API "/tasks/*/cancel", ROLE_OPERATOR, rest_task_cancel, SMALL, 0},
    {"GET", API "/events", ROLE_VIEWER, rest_event_list, 0, 0},
    {"GET", API "/tokens", ROLE_ADMIN, rest_token_list, 0, 0},
    {"POST", API "/tokens", ROLE_ADMIN, rest_token_create, SMALL, 0},
    {"DELETE", API "/tokens/*", ROLE_ADMIN, rest_token_delete, 0, 0},
    {"GET", API "/nbd-clients", ROLE_OPERATOR, rest_nbd_client_list, 0, 0},
    {"POST", API "/nbd-clients", ROLE_ADMIN, rest_nbd_client_create, SMALL, 0},
    {"GET", API "/nbd-clients/*", ROLE_OPERATOR, rest_nbd_client_get, 0, 0},
    {"DELETE", API "/nbd-clients/*", ROLE_ADMIN, rest_nbd_client_delete, 0, 0},
    {"POST", API "/nbd-clients/*/access", ROLE_ADMIN, rest_nbd_client_access, SMALL, 0},
    {"GET", API "/debug/asan", ROLE_OPERATOR, rest_debug_asan, 0, 0},
    {"GET", API "/debug/asan/*", ROLE_OPERATOR, rest_debug_asan, 0, 0},
    {"POST", API "/debug/log", ROLE_ADMIN, rest_debug_log, SMALL, 0},
};

/* ---- answers ---- */

static void req_free(struct rest_req *rq)
{
    if (!rq->answered || !rq->http_gone)
        return; /* both the operation and the connection must have let go */
    LIST_REMOVE(rq, entry);
    if (rq->free_priv)
        rq->free_priv(rq->priv);
    json_decref(rq->body);
    free(rq->path_copy);
    free(rq);
}

void rest_text(struct rest_req *rq, int status, const char *type, char *text, size_t len)
{
    metric_add(&m_requests, 1);
    if (status >= 400)
        metric_add(&m_errors, 1);
    rq->answered = true;
    if (rq->http) {
        http_reply(rq->http, status, type, text, len);
    } else {
        free(text);
        req_free(rq);
    }
}

void rest_ok(struct rest_req *rq, int status, json_t *out)
{
    char *text = out ? json_dumps(out, JSON_COMPACT | JSON_ENCODE_ANY) : xstrdup("{}");
    json_decref(out);
    if (!text)
        text = xstrdup("null");
    rest_text(rq, status, "application/json", text, strlen(text));
}

void rest_stream(struct rest_req *rq, const char *type, http_source *source)
{
    metric_add(&m_requests, 1);
    rq->answered = true;
    http_stream(rq->http, type, source);
}

static int status_of(int code)
{
    switch (code) {
    case E_INVAL: case E_CORRUPT: return 400;
    case E_AUTH: return 401;
    case E_PERM: return 403;
    case E_NOTFOUND: return 404;
    case E_EXISTS: case E_CONFLICT: case E_BUSY: case E_STALE: case E_CANCELED: return 409;
    case E_TOOBIG: return 413;
    case E_NOSPC: return 507;
    case E_UNAVAIL: case E_NOMEM: return 503;
    case E_TIMEOUT: case E_UNKNOWN: case E_DISCONN: return 504;
    default: return 500;
    }
}

static void fail_with(struct rest_req *rq, int status, const struct err *e)
{
    const char *nl = strchr(e->msg, '\n');
    json_t *msg = json_stringn_nocheck(e->msg, nl ? (size_t)(nl - e->msg) : strlen(e->msg));
    json_t *out = json_object();
    json_object_set_new(out, "code", json_string(err_code_name(e->code)));
    json_object_set_new_nocheck(out, "message", msg);
    json_object_set_new_nocheck(out, "hint", json_string_nocheck(nl ? nl + 1 : ""));
    if (status == 401 && rq->http)
        http_reply_header(rq->http, "WWW-Authenticate", "Bearer realm=\"cohort\"");
    rest_ok(rq, status, out);
}

void rest_fail(struct rest_req *rq, const struct err *e) { fail_with(rq, status_of(e->code), e); }

void rest_done(void *arg, int status, const struct err *e, const char *id)
{
    struct rest_req *rq = arg;
    if (status != E_OK) {
        rest_fail(rq, e);
        return;
    }
    log_info("%s %s by %s: done (%s)", rq->route->method, rq->path_copy, rq->who, id);
    rest_ok(rq, 200, json_pack("{s:s}", "id", id));
}

void rest_started(struct rest_req *rq, int rc, const struct err *e)
{
    if (rc != E_OK)
        rest_fail(rq, e);
}

void *rest_priv(struct rest_req *rq, size_t bytes)
{
    rq->priv = xcalloc(1, bytes);
    rq->free_priv = free;
    return rq->priv;
}

const struct cdb_view *rest_view(struct rest_req *rq)
{
    struct err e;
    const struct cdb_view *v = ops_view(rq->r->ops, &e);
    if (!v)
        rest_fail(rq, &e);
    return v;
}

const void *rest_find(struct rest_req *rq, const struct cdb_view *v, enum cdb_table t, const char *what, const char *key)
{
    struct err e;
    const void *row = ops_find(v, t, what, key, &e);
    if (!row)
        rest_fail(rq, &e);
    return row;
}

bool rest_read(struct rest_req *rq, const struct jin_field *f, size_t n)
{
    struct err e;
    if (jin_read(rq->body, "", f, n, &e) == E_OK)
        return true;
    rest_fail(rq, &e);
    return false;
}

/* ---- identity ---- */

static const struct cdb_token *find_token(const struct cdb_view *v, const char *secret)
{
    char hash[65];
    pki_sha256_hex(secret, hash);
    for (size_t i = 0; i < cdb_token_count(v); i++) {
        const struct cdb_token *t = cdb_token_at(v, i);
        if (strlen(t->hash) == 64 && CRYPTO_memcmp(t->hash, hash, 64) == 0)
            return t;
    }
    return NULL;
}

static enum rest_role role_of(const char *text)
{
    static const char *const names[] = {"", "viewer", "operator", "admin"};
    for (int i = ROLE_VIEWER; i <= ROLE_ADMIN; i++)
        if (strcmp(names[i], text) == 0)
            return (enum rest_role)i;
    return ROLE_NONE;
}

static int identify(struct rest_req *rq, struct err *e)
{
    if (rq->http->local) {
        rq->role = ROLE_ADMIN;
        snprintf(rq->who, sizeof rq->who, "root (unix socket)");
        return E_OK;
    }
    const char *h = http_header(rq->http, "Authorization");
    snprintf(rq->who, sizeof rq->who, "nobody");
    if (!h) {
        if (rq->route->role == ROLE_NONE)
            return E_OK;
        return err_set(e, E_AUTH, "a token is needed\nsend Authorization: Bearer TOKEN; make one with: cohort token create NAME --role viewer");
    }
    if (rq->route->role == ROLE_NONE)
        return E_OK; /* whatever it says, nothing depends on it */
    if (strncasecmp(h, "Bearer ", 7) != 0)
        return err_set(e, E_AUTH, "only Authorization: Bearer TOKEN is understood");
    const struct cdb_view *v = ops_view(rq->r->ops, e);
    if (!v)
        return E_UNAVAIL;
    const struct cdb_token *t = find_token(v, h + 7 + strspn(h + 7, " "));
    char when[32];
    if (!t || role_of(t->role) == ROLE_NONE)
        return err_set(e, E_AUTH, "the token is not known\nit may have been deleted; make one with: cohort token create NAME --role viewer");
    if (t->expires_ms && t->expires_ms <= clock_wall_ms())
        return err_set(e, E_AUTH, "token expired on %s\nmake a new one with: cohort token create NAME", clock_wall_format(t->expires_ms, when));
    rq->role = role_of(t->role);
    snprintf(rq->who, sizeof rq->who, "token %s", t->name);
    if (rq->role < rq->route->role)
        return err_set(e, E_PERM, "token %s has the role %s, which may not do this\nneeded: %s", t->name, t->role,
                       rq->route->role == ROLE_ADMIN ? "admin" : "operator or admin");
    return E_OK;
}

/* ---- routing ---- */

/* Does `path` (modified: '/' of captured segments become NUL) match? */
static bool match(const char *pattern, char *path, char *arg[REST_ARGS])
{
    int n = 0;
    while (*pattern) {
        if (*pattern == '*') {
            size_t len = strcspn(path, "/");
            if (len == 0 || n == REST_ARGS)
                return false;
            arg[n++] = path;
            path += len;
            pattern++;
            continue;
        }
        if (*pattern++ != *path++)
            return false;
    }
    if (*path)
        return false;
    for (int i = 0; i < n; i++)
        arg[i][strcspn(arg[i], "/")] = '\0';
    return true;
}

static int find_route(struct rest_req *rq, char allow[64], struct err *e)
{
    const char *path = rq->http->path;
    allow[0] = '\0';
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        char *copy = xstrdup(path);
        if (!match(routes[i].path, copy, rq->arg)) {
            free(copy);
            continue;
        }
        if (strcmp(routes[i].method, rq->http->method) == 0) {
            rq->route = &routes[i];
            rq->path_copy = copy;
            return E_OK;
        }
        size_t n = strlen(allow);
        snprintf(allow + n, 64 - n, "%s%s", n ? ", " : "", routes[i].method);
        free(copy);
    }
    if (*allow)
        return err_set(e, E_INVAL, "%.16s is not possible on %.200s\npossible: %s", rq->http->method, path, allow);
    return err_set(e, E_NOTFOUND, "nothing is at %.200s\nthe API begins at " API "/cluster", path);
}

static void on_begin(struct http_req *h, void *arg)
{
    struct rest_req *rq = xcalloc(1, sizeof *rq);
    struct err e;
    char allow[64];
    rq->r = arg;
    rq->http = h;
    h->user = rq;
    LIST_INSERT_HEAD(&rq->r->requests, rq, entry);
    int rc = find_route(rq, allow, &e);
    if (rc != E_OK) {
        if (*allow)
            http_reply_header(h, "Allow", allow);
        fail_with(rq, *allow ? 405 : 404, &e);
        return;
    }
    rc = identify(rq, &e);
    if (rc == E_OK && (rq->route->flags & ROUTE_LOCAL) && !h->local)
        rc = err_set(&e, E_PERM, "this works only on the node itself, as root, through its unix socket");
    if (rc != E_OK) {
        rest_fail(rq, &e);
        return;
    }
    h->body_max = rq->route->body_max;
    if (rq->route->flags & ROUTE_STREAM) {
        rq->started = true;
        rq->route->fn(rq);
    }
}

static void on_request(struct http_req *h, void *arg)
{
    struct rest_req *rq = h->user;
    struct err e;
    if (rq->route->flags & ROUTE_STREAM)
        return; /* its sink sees the end by counting */
    if (jin_parse(h->body ? h->body : "", h->body_len, &rq->body, &e) != E_OK) {
        rest_fail(rq, &e);
        return;
    }
    rq->started = true;
    rq->route->fn(rq);
}

static void on_gone(struct http_req *h, void *arg)
{
    struct rest_req *rq = h->user;
    rq->http = NULL;
    rq->http_gone = true;
    if (!rq->started || rq->r->closing)
        rq->answered = true; /* no handler runs (any more) that would answer */
    else if (!rq->answered && rq->on_gone) {
        rq->on_gone(rq); /* may answer, which frees it: do not look again */
        return;
    }
    req_free(rq);
}

/* ---- sockets ---- */

static int listen_unix(const char *path, int *ret_fd, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sa.sun_path)
        return err_set(e, E_INVAL, "%s: too long for a unix socket", path);
    memcpy(sa.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(e, errno, "unix socket");
    unlink(path); /* of an earlier run: two daemons on one run directory are excluded elsewhere */
    mode_t old = umask(0177); /* 0600 from the first moment: the socket is the root's key */
    int rc = bind(fd, (struct sockaddr *)&sa, sizeof sa);
    int no = errno;
    umask(old);
    if (rc < 0 || listen(fd, 64) < 0) {
        rc = err_sys(e, rc < 0 ? no : errno, "listen on %s", path);
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    return E_OK;
}

static int listen_tcp(const char *address, uint16_t port, int *ret_fd, struct err *e)
{
    struct sockaddr_storage ss = {0};
    socklen_t len;
    struct sockaddr_in *in = (struct sockaddr_in *)&ss;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;
    if (inet_pton(AF_INET, address, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        len = sizeof *in;
    } else if (inet_pton(AF_INET6, address, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        len = sizeof *in6;
    } else {
        return err_set(e, E_INVAL, "\"%s\" is not an IP address", address);
    }
    int one = 1, fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(e, errno, "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&ss, len) < 0 || listen(fd, 128) < 0) {
        int rc = err_sys(e, errno, "listen on %s port %u", address, port);
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    return E_OK;
}

int rest_open(struct daemon *d, struct rest **ret_rest, struct err *e)
{
    struct rest *r = xcalloc(1, sizeof *r);
    struct http_handler h = {on_begin, on_request, on_gone, r};
    char *path = xasprintf("%s/api.sock", d->conf.run_dir);
    int fd = -1;
    r->d = d;
    int rc = listen_unix(path, &fd, e);
    if (rc == E_OK)
        rc = http_open(d->loop, fd, true, NULL, NULL, &h, &r->unix_http, e);
    free(path);
    if (rc != E_OK) {
        free(r);
        err_wrap(e, "REST");
        return rc;
    }
    r->ops = ops_open(d);
    *ret_rest = r;
    return E_OK;
}

int rest_listen_tls(struct rest *r, struct err *e)
{
    struct http_handler h = {on_begin, on_request, on_gone, r};
    char *cert_path = xasprintf("%s/pki/node.pem", r->d->conf.state_dir), *key_path = xasprintf("%s/pki/node.key", r->d->conf.state_dir);
    char *cert = NULL, *key = NULL;
    int fd = -1;
    int rc = file_read(cert_path, 1u << 20, &cert, NULL, e);
    if (rc == E_OK)
        rc = file_read(key_path, 1u << 20, &key, NULL, e);
    if (rc == E_OK)
        rc = listen_tcp(r->d->conf.address, r->d->conf.api_port, &fd, e);
    if (rc == E_OK)
        rc = http_open(r->d->loop, fd, false, cert, key, &h, &r->tls_http, e);
    if (rc == E_OK)
        log_info("REST API on https://%s:%u", r->d->conf.address, r->d->conf.api_port);
    else
        err_wrap(e, "REST over TLS");
    if (key)
        OPENSSL_cleanse(key, strlen(key));
    free(key);
    free(cert);
    free(cert_path);
    free(key_path);
    return rc;
}

void rest_close(struct rest *r)
{
    if (!r)
        return;
    r->closing = true;
    founding_forget(r->founding);
    ops_close(r->ops);
    http_close(r->tls_http);
    http_close(r->unix_http);
    char *path = xasprintf("%s/api.sock", r->d->conf.run_dir);
    unlink(path);
    free(path);
    struct rest_req *rq, *next;
    for (rq = LIST_FIRST(&r->requests); rq; rq = next) { /* clients that left while an operation ran */
        next = LIST_NEXT(rq, entry);
        rq->answered = rq->http_gone = true;
        req_free(rq);
    }
    imports_close(r->imports);
    free(r);
}
