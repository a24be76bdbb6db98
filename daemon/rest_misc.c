/* REST: status page, metrics, debugging. */
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/log.h"
#include "base/metric.h"
#include "daemon/rest.h"
#include "daemon/web/web.h"
#include "storage/asan/engine/asan.h"
#include "storage/asan/engine/asan.h"

static void send_file(struct rest_req *rq, const char *type, const unsigned char *data, size_t len)
{
    char *copy = xmalloc(len);
    memcpy(copy, data, len);
    if (rq->http) {
        http_reply_header(rq->http, "Content-Security-Policy",
                          "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
                          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
        http_reply_header(rq->http, "Referrer-Policy", "no-referrer");
    }
    rest_text(rq, 200, type, copy, len);
}

void rest_page(struct rest_req *rq) { send_file(rq, "text/html; charset=utf-8", web_index_html, web_index_html_len); }
void rest_page_css(struct rest_req *rq) { send_file(rq, "text/css; charset=utf-8", web_app_css, web_app_css_len); }
void rest_page_js(struct rest_req *rq) { send_file(rq, "text/javascript; charset=utf-8", web_app_js, web_app_js_len); }

void rest_metrics(struct rest_req *rq)
{
    struct buf b;
    buf_init(&b);
    metric_print_all(&b);
    size_t len = b.len;
    rest_text(rq, 200, "text/plain; version=0.0.4; charset=utf-8", buf_take(&b), len);
}

/* All that goes on, or one volume. */
void rest_debug_asan(struct rest_req *rq)
{
    struct err e;
    const struct cdb_volume *vol = NULL;
    if (rq->arg[0]) {
        const struct cdb_view *v = rest_view(rq);
        vol = v ? rest_find(rq, v, CDB_T_VOLUME, "volume", rq->arg[0]) : NULL;
        if (!vol)
            return;
    }
    struct asan *a = rq->r->d->asan;
    char *text = a ? asan_dump_json(a, vol ? vol->id : NULL) : NULL;
    if (text) {
        rest_text(rq, 200, "application/json", text, strlen(text));
        return;
    }
    if (a && vol)
        err_set(&e, E_UNAVAIL, "the storage of this node has not heard of volume %s yet\nask again", vol->name);
    else
        err_set(&e, E_UNAVAIL, "the storage of this node is not running");
    rest_fail(rq, &e);
}

void rest_debug_log(struct rest_req *rq)
{
    const char *module = NULL, *level = NULL;
    enum log_level l;
    struct err e;
    const struct jin_field f[] = {{"module", JIN_STR, true, &module}, {"level", JIN_STR, true, &level}};
    if (!rest_read(rq, f, 2))
        return;
    if (!log_level_parse(level, &l)) {
        err_set(&e, E_INVAL, "level \"%.40s\" is not allowed\nerr, warn, info or dbg", level);
        rest_fail(rq, &e);
    } else if (!log_set_level(module, l)) {
        err_set(&e, E_NOTFOUND, "no log module \"%.40s\"\n* means all", module);
        rest_fail(rq, &e);
    } else {
        rest_ok(rq, 200, NULL);
    }
}
