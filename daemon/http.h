/* An HTTP server on the main loop: libmicrohttpd without threads of its own, its epoll descriptor watched by libuv.
 *
 * A request's life: begin (headers are there; may answer at once, choose a body limit or a sink) -> body -> request
 * (body complete) -> http_reply(), at once or later (the connection is suspended meanwhile) -> gone.
 * Threading: the loop's thread. Ownership: http_req belongs to the server; the user must forget it in `gone`, which is
 * called exactly once, also when the client left. Limits: 128 connections, 32 per address, 60 s idle. */
#ifndef COHORT_DAEMON_HTTP_H
#define COHORT_DAEMON_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>
#include "base/err.h"

struct http;
struct http_req;

/* Takes all of `data`. False: enough for now, http_continue() follows. A sink that failed answers with http_reply(); the rest of the body is then read
 * and dropped, because HTTP clients look for the answer only after sending. */
typedef bool http_sink(struct http_req *r, const void *data, size_t len);

struct http_handler {
    void (*begin)(struct http_req *r, void *arg);
    void (*request)(struct http_req *r, void *arg);
    void (*gone)(struct http_req *r, void *arg);
    void *arg;
};

struct http_req {
    const char *method, *path; /* path percent-decoded by segments later; valid until gone */
    bool local;                /* came by the unix socket */
    int64_t content_length;    /* -1: none given (chunked or no body) */
    size_t body_max;           /* set in begin; default 0: no body allowed */
    http_sink *sink;           /* set in begin instead: the body goes here */
    char *body;                /* NUL-terminated, in request; NULL if there was none */
    size_t body_len;
    void *user;
};

/* `fd`: a listening socket, closed by http_close(). `cert_pem`/`key_pem`: texts, NULL for plain HTTP. */
MUST_CHECK int http_open(uv_loop_t *loop, int fd, bool local, const char *cert_pem, const char *key_pem,
                         const struct http_handler *h, struct http **ret_http, struct err *e);
/* Ends every request (`gone` for each); memory goes when the loop has run. */
void http_close(struct http *h);

/* Exactly once per request. `body` (malloc'ed, may be NULL when len is 0) is taken over. */
void http_reply(struct http_req *r, int status, const char *content_type, char *body, size_t len);
/* Adds a header to the coming answer; before http_reply(). At most 8. `value` is copied. */
void http_reply_header(struct http_req *r, const char *name, const char *value);
void http_continue(struct http_req *r); /* the sink wants more; the source has more */

/* Instead of http_reply(): a body of unknown length, drawn by the client. The source fills `to` and returns how much; 0: nothing yet,
 * http_continue() follows; or one of those below. */
typedef ssize_t http_source(struct http_req *r, void *to, size_t max);
#define HTTP_SOURCE_END (-1)
#define HTTP_SOURCE_BROKEN (-2) /* the connection is cut, so that the client knows that it is not whole */
void http_stream(struct http_req *r, const char *content_type, http_source *source);

const char *http_header(const struct http_req *r, const char *name); /* NULL if absent */
const char *http_query(const struct http_req *r, const char *name);  /* NULL if absent; "" without value */

#endif
