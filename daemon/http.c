/* HTTP server on the main loop. See http.h.
 *
 * libmicrohttpd (0.9.75) rules that shape this file: an answer may be queued only in the first call of the access
 * handler or after the whole body was read; a suspended connection is not looked at, so a client that left is noticed
 * after the answer; MHD_stop_daemon() must not meet a suspended connection; MHD_resume_connection() takes effect in the
 * next MHD_run(), and without threads of its own the library does not ask for one. */
#include "daemon/http.h"

#include <assert.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"

LOG_MODULE("http")

#define MAX_CONNECTIONS 128
#define MAX_PER_ADDRESS 32
#define IDLE_S 60
#define POOL_BYTES (256u << 10)        /* per connection; half of it is the read buffer: size of an upload's pieces */
#define DROP_MAX (64u << 20)           /* of an unwanted body, read to deliver the answer; then cut off */
#define REPLY_HEADERS 8
#define STREAM_BLOCK (128u << 10)

struct request {
    struct http_req pub;
    struct http *http;
    struct MHD_Connection *conn;
    char *method, *path;
    struct buf body;
    struct MHD_Response *response;
    http_source *source;
    int status;
    bool suspended, queued, requested, in_handler, too_large;
    uint64_t dropped;
    int n_headers;
    struct { char *name, *value; } headers[REPLY_HEADERS];
    LIST_ENTRY(request) entry;
};

struct http {
    uv_loop_t *loop;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;
    uv_timer_t timer;
    struct http_handler handler;
    bool local, stopping, closing, resumed;
    int open_handles, fd;
    LIST_HEAD(, request) requests;
};

static struct request *of(const struct http_req *r) { return container_of((struct http_req *)(uintptr_t)r, struct request, pub); }

static void run(struct http *h);

static void on_timer(uv_timer_t *t) { run(t->data); }
static void on_poll(uv_poll_t *p, int status, int events) { run(p->data); }

static void run(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms;
    if (h->closing)
        return;
    h->resumed = false;
    MHD_run(h->mhd);
    if (h->resumed)
        uv_timer_start(&h->timer, on_timer, 0, 0);
    else if (MHD_get_timeout(h->mhd, &ms) == MHD_YES)
        uv_timer_start(&h->timer, on_timer, ms, 0);
    else
        uv_timer_stop(&h->timer);
}

static void add_headers(struct request *r, const char *content_type)
{
    assert(r->response);
    if (content_type)
        MHD_add_response_header(r->response, "Content-Type", content_type);
    MHD_add_response_header(r->response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r->response, "Cache-Control", "no-store");
    for (int i = 0; i < r->n_headers; i++)
        MHD_add_response_header(r->response, r->headers[i].name, r->headers[i].value);
}

static void set_response(struct request *r, int status, const char *content_type, char *body, size_t len)
{
    assert(!r->response);
    r->status = status;
    r->response = MHD_create_response_from_buffer(len, body ? body : (char *)"", body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    add_headers(r, content_type);
}

static void wake(struct request *r)
{
    if (r->suspended) {
        r->suspended = false;
        MHD_resume_connection(r->conn);
        r->http->resumed = true;
        uv_timer_start(&r->http->timer, on_timer, 0, 0);
    }
}

void http_reply(struct http_req *pub, int status, const char *content_type, char *body, size_t len)
{
    struct request *r = of(pub);
    set_response(r, status, content_type, body, len);
    wake(r);
}

static ssize_t draw(void *arg, uint64_t pos, char *to, size_t max)
{
    struct request *r = arg;
    ssize_t n = r->http->stopping ? HTTP_SOURCE_BROKEN : r->source(&r->pub, to, max);
    if (n == HTTP_SOURCE_END)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == HTTP_SOURCE_BROKEN)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0) { /* or the library would ask again at once */
        r->suspended = true;
        MHD_suspend_connection(r->conn);
    }
    return n;
}

void http_stream(struct http_req *pub, const char *content_type, http_source *source)
{
    struct request *r = of(pub);
    assert(!r->response);
    r->status = MHD_HTTP_OK;
    r->source = source;
    r->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, draw, r, NULL);
    add_headers(r, content_type);
    wake(r);
}

void http_reply_header(struct http_req *pub, const char *name, const char *value)
{
    struct request *r = of(pub);
    assert(!r->response && r->n_headers < REPLY_HEADERS);
    r->headers[r->n_headers].name = xstrdup(name);
    r->headers[r->n_headers++].value = xstrdup(value);
}

void http_continue(struct http_req *pub)
{
    struct request *r = of(pub);
    wake(r);
}

const char *http_header(const struct http_req *r, const char *name)
{
    return MHD_lookup_connection_value(of(r)->conn, MHD_HEADER_KIND, name);
}

const char *http_query(const struct http_req *r, const char *name)
{
    const char *value = NULL;
    size_t len;
    if (MHD_lookup_connection_value_n(of(r)->conn, MHD_GET_ARGUMENT_KIND, name, strlen(name), &value, &len) != MHD_YES)
        return NULL;
    return value ? value : "";
}

static struct request *request_new(struct http *h, struct MHD_Connection *conn, const char *url, const char *method)
{
    struct request *r = xcalloc(1, sizeof *r);
    r->http = h;
    r->conn = conn;
    r->method = xstrdup(method);
    r->path = xstrdup(url);
    r->pub.method = r->method;
    r->pub.path = r->path;
    r->pub.local = h->local;
    r->pub.content_length = -1;
    const char *len = http_header(&r->pub, "Content-Length");
    if (len) {
        char *end;
        long long v = strtoll(len, &end, 10);
        r->pub.content_length = *len && !*end && v >= 0 ? v : INT64_MAX; /* nonsense counts as too large */
    }
    LIST_INSERT_HEAD(&h->requests, r, entry);
    return r;
}

static enum MHD_Result queue(struct request *r)
{
    assert(!r->queued);
    r->queued = true;
    return MHD_queue_response(r->conn, (unsigned)r->status, r->response);
}

static void refuse_large(struct request *r)
{
    static const char text[] = "{\"code\":\"too_large\",\"message\":\"the request body is larger than this call allows\",\"hint\":\"\"}";
    if (!r->response)
        set_response(r, 413, "application/json", xstrdup(text), sizeof text - 1);
}

/* Is a body on its way that should be read before the answer? Closing with unread data resets the connection, and most
 * clients then report that instead of the answer. Not for huge ones, nor for clients that ask first. */
static bool body_follows(const struct request *r)
{
    bool chunked = http_header(&r->pub, "Transfer-Encoding") != NULL;
    return (chunked || (r->pub.content_length > 0 && r->pub.content_length <= DROP_MAX)) && !http_header(&r->pub, "Expect");
}

/* A piece of the body; false cuts the connection. */
static bool take_body(struct request *r, const char *data, size_t len)
{
    if (r->response) { /* answered already: the client reads it after it has sent all */
        r->dropped += len;
        return r->pub.sink || r->dropped <= DROP_MAX;
    }
    if (r->pub.sink) {
        r->in_handler = true;
        bool more = r->pub.sink(&r->pub, data, len);
        r->in_handler = false;
        if (!more && !r->response) {
            r->suspended = true;
            MHD_suspend_connection(r->conn);
        }
        return true;
    }
    if (len > r->pub.body_max - r->body.len) {
        refuse_large(r);
        return true;
    }
    buf_append(&r->body, data, len);
    return true;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
                                 const char *version, const char *data, size_t *len, void **state)
{
    struct http *h = cls;
    struct request *r = *state;
    if (!r) {
        *state = r = request_new(h, conn, url, method);
        h->handler.begin(&r->pub, h->handler.arg);
        if (!r->response && !r->pub.sink && r->pub.content_length > (int64_t)r->pub.body_max)
            refuse_large(r);
        return r->response && !body_follows(r) ? queue(r) : MHD_YES;
    }
    if (*len > 0) {
        size_t n = *len;
        *len = 0;
        return take_body(r, data, n) ? MHD_YES : MHD_NO;
    }
    if (!r->requested && !r->response) {
        r->requested = true;
        if (r->body.data) {
            r->pub.body = r->body.data;
            r->pub.body_len = r->body.len;
        }
        h->handler.request(&r->pub, h->handler.arg);
    }
    if (r->response)
        return queue(r);
    r->suspended = true;
    MHD_suspend_connection(conn);
    return MHD_YES;
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode code)
{
    struct http *h = cls;
    struct request *r = *state;
    if (!r)
        return;
    *state = NULL;
    h->handler.gone(&r->pub, h->handler.arg);
    LIST_REMOVE(r, entry);
    if (r->response)
        MHD_destroy_response(r->response);
    for (int i = 0; i < r->n_headers; i++) {
        free(r->headers[i].name);
        free(r->headers[i].value);
    }
    buf_free(&r->body);
    free(r->method);
    free(r->path);
    free(r);
}

static void on_mhd_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    struct buf b;
    buf_init(&b);
    buf_vprintf(&b, fmt, ap);
    log_dbg("%s", b.data); /* handshakes that scanners break off and the like */
    buf_free(&b);
}

int http_open(uv_loop_t *loop, int fd, bool local, const char *cert_pem, const char *key_pem,
              const struct http_handler *handler, struct http **ret_http, struct err *e)
{
    struct http *h = xcalloc(1, sizeof *h);
    h->loop = loop;
    h->handler = *handler;
    h->local = local;
    h->fd = fd;
    LIST_INIT(&h->requests);
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)cert_pem},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)key_pem},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"},
        {MHD_OPTION_END, 0, NULL},
    };
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | (cert_pem ? MHD_USE_TLS : 0);
    h->mhd = MHD_start_daemon(flags, 0, NULL, NULL, on_access, h,
                              MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
                              MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd,
                              MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
                              MHD_OPTION_CONNECTION_LIMIT, (unsigned)MAX_CONNECTIONS,
                              MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)(local ? 0 : MAX_PER_ADDRESS),
                              MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                              MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
                              MHD_OPTION_ARRAY, cert_pem ? tls : tls + 3, MHD_OPTION_END);
    if (!h->mhd) {
        close(fd);
        free(h);
        return err_set(e, E_IO, "start the HTTP server: %s", cert_pem ? "certificate or key unusable?" : "libmicrohttpd refused");
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    assert(info);
    uv_poll_init(loop, &h->poll, info->epoll_fd);
    uv_timer_init(loop, &h->timer);
    h->poll.data = h->timer.data = h;
    h->open_handles = 2;
    uv_poll_start(&h->poll, UV_READABLE, on_poll);
    *ret_http = h;
    return E_OK;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct http *h = handle->data;
    if (--h->open_handles == 0)
        free(h);
}

void http_close(struct http *h)
{
    if (!h)
        return;
    struct request *r;
    h->stopping = true;
    LIST_FOREACH (r, &h->requests, entry) {
        if (!r->response)
            set_response(r, 503, NULL, NULL, 0);
        wake(r);
    }
    MHD_run(h->mhd); /* sends those answers as far as the sockets take them, and un-suspends */
    h->closing = true;
    uv_poll_stop(&h->poll);
    uv_close((uv_handle_t *)&h->poll, on_handle_closed);
    uv_close((uv_handle_t *)&h->timer, on_handle_closed);
    MHD_stop_daemon(h->mhd); /* closes the listening socket too */
}
