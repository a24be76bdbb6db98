/* REST client on libcurl. See api.h. */
#include "cli/api.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/buf.h"

#define CONNECT_S 10L
#define CALL_S 150L  /* the daemon gives up after 20 s without a quorum; founding a cluster takes longer */
#define STALL_S 120L /* an upload that moves nothing for so long: the volume waits for its copies */
#define ANSWER_MAX (64u << 20)

struct api {
    CURL *curl;
    char *base, *socket, *bearer, *ca;
    char curl_error[CURL_ERROR_SIZE];
};

void answer_free(struct answer *a)
{
    json_decref(a->json);
    free(a->text);
    *a = (struct answer){0};
}

int api_url_check(const char *url, struct fail *f)
{
    const char *host = url + 8;
    if (strncmp(url, "https://", 8) != 0 || host[strcspn(host, "/?#@")] == '?' || host[strcspn(host, "/?#@")] == '#' || strchr(host, '@') ||
        strcspn(host, "/:") == 0) {
        fail_set(f, EXIT_USAGE, "API address \"%.200s\" is not usable", url);
        fail_hint(f, "write https://ADDRESS:7443; plain http would show the token to everyone on the way");
        return EXIT_USAGE;
    }
    return EXIT_DONE;
}

int api_open(const struct api_conf *conf, struct api **ret_api, struct fail *f)
{
    bool remote = conf->url && *conf->url;
    if (remote && api_url_check(conf->url, f) != EXIT_DONE)
        return EXIT_USAGE;
    struct api *a = xcalloc(1, sizeof *a);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    a->curl = curl_easy_init();
    if (!a->curl) {
        free(a);
        return fail_set(f, EXIT_REFUSED, "libcurl does not start");
    }
    if (remote) {
        size_t len = strlen(conf->url);
        while (len && conf->url[len - 1] == '/')
            len--;
        a->base = xasprintf("%.*s/api/v1", (int)len, conf->url);
        a->ca = conf->ca && *conf->ca ? xstrdup(conf->ca) : NULL;
        a->bearer = conf->token && *conf->token ? xasprintf("Authorization: Bearer %s", conf->token) : NULL;
    } else {
        a->base = xstrdup("http://localhost/api/v1");
        a->socket = xstrdup(conf->socket);
    }
    *ret_api = a;
    return EXIT_DONE;
}

void api_close(struct api *a)
{
    if (!a)
        return;
    curl_easy_cleanup(a->curl);
    free(a->base);
    free(a->socket);
    free(a->bearer);
    free(a->ca);
    free(a);
    curl_global_cleanup();
}

static bool plain(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

char *api_path(const char *collection, const char *name, const char *suffix, struct fail *f)
{
    struct buf b;
    /* "x/start" would be another route, and "." the collection: the server decodes before it splits */
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, "..")) {
        fail_set(f, EXIT_USAGE, "\"%.80s\" is not a name", name);
        fail_hint(f, "names are made of a-z A-Z 0-9 . _ -");
        return NULL;
    }
    buf_init(&b);
    buf_printf(&b, "%s/", collection);
    for (const unsigned char *p = (const unsigned char *)name; *p; p++)
        buf_printf(&b, plain(*p) ? "%c" : "%%%02X", *p);
    buf_printf(&b, "%s", suffix);
    return buf_take(&b);
}

void api_fail_of(int status, const char *text, struct fail *f)
{
    json_t *o = json_loads(text ? text : "", 0, NULL);
    const char *code = json_string_value(json_object_get(o, "code")), *message = json_string_value(json_object_get(o, "message"));
    const char *hint = json_string_value(json_object_get(o, "hint"));
    static const char *const unsettled[] = {"timeout", "unknown_outcome", "disconnected"};
    int exit = EXIT_REFUSED;
    for (size_t i = 0; code && i < sizeof unsettled / sizeof *unsettled; i++)
        if (strcmp(code, unsettled[i]) == 0)
            exit = EXIT_TIMEOUT;
    if (message && *message) {
        fail_set(f, exit, "%s", message);
        fail_hint(f, "%s", hint ? hint : "");
        snprintf(f->code, sizeof f->code, "%s", code ? code : "");
    } else {
        fail_set(f, exit, "HTTP status %d without an explanation", status);
        fail_hint(f, "is this a Cohort node's API?");
    }
    json_decref(o);
}

static int fail_of_curl(const struct api *a, CURLcode rc, struct fail *f)
{
    const char *why = *a->curl_error ? a->curl_error : curl_easy_strerror(rc);
    switch (rc) {
    case CURLE_COULDNT_CONNECT: case CURLE_COULDNT_RESOLVE_HOST:
        if (a->socket) {
            long no = 0;
            curl_easy_getinfo(a->curl, CURLINFO_OS_ERRNO, &no);
            fail_set(f, EXIT_UNREACHABLE, "the daemon cannot be reached at %s%s%s", a->socket, no ? ": " : "", no ? strerror((int)no) : "");
            if (no == EACCES || no == EPERM)
                fail_hint(f, "only root may use the socket: try sudo, or https with --api and COHORT_TOKEN");
            else
                fail_hint(f, "is cohortd running here? systemctl status cohortd; for another node: --api https://ADDRESS:7443");
        } else {
            fail_set(f, EXIT_UNREACHABLE, "%s cannot be reached: %s", a->base, why);
            fail_hint(f, "check the address, or try another node");
        }
        return EXIT_UNREACHABLE;
    case CURLE_PEER_FAILED_VERIFICATION: case CURLE_SSL_CACERT_BADFILE: case CURLE_SSL_CONNECT_ERROR:
        fail_set(f, EXIT_UNREACHABLE, "%s is not trusted: %s", a->base, why);
        fail_hint(f, "give the cluster's CA certificate by --ca FILE or COHORT_CA; it is /var/lib/cohort/pki/ca.pem on every node");
        return EXIT_UNREACHABLE;
    case CURLE_OPERATION_TIMEDOUT:
        fail_set(f, EXIT_TIMEOUT, "the daemon did not answer in time (%s)", why);
        fail_hint(f, "it may still do what was asked: look before trying again; see cohort cluster status");
        return EXIT_TIMEOUT;
    case CURLE_READ_ERROR: case CURLE_ABORTED_BY_CALLBACK:
        return fail_set(f, EXIT_REFUSED, "the file could not be read to its end");
    default:
        fail_set(f, EXIT_UNREACHABLE, "the connection broke: %s", why);
        fail_hint(f, "what was asked may have been done: look before trying again");
        return EXIT_UNREACHABLE;
    }
}

static size_t on_answer(char *data, size_t size, size_t n, void *arg)
{
    struct buf *b = arg;
    if (b->len + size * n > ANSWER_MAX)
        return 0;
    buf_append(b, data, size * n);
    return size * n;
}

static void prepare(struct api *a, const char *method, const char *url, struct curl_slist *headers, struct buf *out)
{
    CURL *c = a->curl;
    curl_easy_reset(c); /* keeps the connection */
    a->curl_error[0] = '\0';
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*"); /* a proxy has no business between an administrator and a node */
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, a->socket ? "http" : "https");
    if (a->socket)
        curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, a->socket);
    if (a->ca)
        curl_easy_setopt(c, CURLOPT_CAINFO, a->ca);
    curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2L);
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, a->curl_error);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, CONNECT_S);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_answer);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, out);
}

static struct curl_slist *add_header(struct curl_slist *list, const char *text)
{
    struct curl_slist *more = curl_slist_append(list, text);
    if (!more)
        abort();
    return more;
}

/* Runs the prepared transfer and judges what came back. Takes `out`'s text. */
static int perform(struct api *a, struct buf *out, struct answer *ret, struct fail *f)
{
    long status = 0;
    CURLcode rc = curl_easy_perform(a->curl);
    curl_easy_getinfo(a->curl, CURLINFO_RESPONSE_CODE, &status);
    if (rc != CURLE_OK && status < 400) { /* an early refusal of an upload may end in a broken pipe */
        buf_free(out);
        return fail_of_curl(a, rc, f);
    }
    size_t len = out->len;
    char *text = buf_take(out);
    if (status < 200 || status >= 300) {
        api_fail_of((int)status, text, f);
        free(text);
        return f->exit;
    }
    *ret = (struct answer){(int)status, text, len, json_loadb(text, len, JSON_DECODE_ANY, NULL)};
    return EXIT_DONE;
}

int api_call(struct api *a, const char *method, const char *path, json_t *body, struct answer *ret, struct fail *f)
{
    struct buf out;
    char *url = xasprintf("%s%s", a->base, path), *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct curl_slist *headers = add_header(NULL, "Accept: application/json");
    if (body && !text) { /* jansson refuses what is not UTF-8 */
        free(url);
        curl_slist_free_all(headers);
        json_decref(body);
        return fail_set(f, EXIT_USAGE, "an argument is not valid UTF-8 text");
    }
    if (a->bearer)
        headers = add_header(headers, a->bearer);
    if (text)
        headers = add_header(headers, "Content-Type: application/json");
    buf_init(&out);
    prepare(a, method, url, headers, &out);
    curl_easy_setopt(a->curl, CURLOPT_TIMEOUT, CALL_S);
    if (text || strcmp(method, "POST") == 0)
        curl_easy_setopt(a->curl, CURLOPT_COPYPOSTFIELDS, text ? text : "");
    int rc = perform(a, &out, ret, f);
    curl_slist_free_all(headers);
    json_decref(body);
    free(text);
    free(url);
    return rc;
}

struct upload {
    const struct upload_spec *spec;
    int64_t sent;
};

static size_t on_read(char *out, size_t size, size_t n, void *arg)
{
    struct upload *u = arg;
    int64_t want = u->spec->size - u->sent;
    if (want > (int64_t)(size * n))
        want = (int64_t)(size * n);
    size_t got = fread(out, 1, (size_t)want, u->spec->file);
    if (got < (size_t)want)
        return CURL_READFUNC_ABORT; /* unreadable, or shorter than it was announced */
    u->spec->passing(u->spec->arg, out, got);
    u->sent += (int64_t)got;
    return got;
}

static int on_transfer(void *arg, curl_off_t dl_total, curl_off_t dl, curl_off_t ul_total, curl_off_t ul)
{
    struct upload *u = arg;
    u->spec->progress(u->spec->arg, ul);
    return 0;
}

int api_put_file(struct api *a, const struct upload_spec *spec, struct answer *ret, struct fail *f)
{
    struct upload u = {spec};
    struct buf out;
    char *url = xasprintf("%s%s", a->base, spec->path);
    struct curl_slist *headers = add_header(NULL, "Content-Type: application/octet-stream");
    if (a->bearer)
        headers = add_header(headers, a->bearer);
    buf_init(&out);
    prepare(a, "PUT", url, headers, &out);
    CURL *c = a->curl;
    curl_easy_setopt(c, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(c, CURLOPT_READFUNCTION, on_read);
    curl_easy_setopt(c, CURLOPT_READDATA, &u);
    curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)spec->size);
    curl_easy_setopt(c, CURLOPT_UPLOAD_BUFFERSIZE, 1L << 20);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, STALL_S);
    if (spec->progress) {
        curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_transfer);
        curl_easy_setopt(c, CURLOPT_XFERINFODATA, &u);
    }
    int rc = perform(a, &out, ret, f);
    curl_slist_free_all(headers);
    free(url);
    return rc;
}

struct download {
    struct api *api;
    struct download_spec *spec;
    struct buf refusal; /* the answer, if it is not the file */
    bool unwritable;
};

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct download *d = arg;
    long status = 0;
    curl_easy_getinfo(d->api->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return on_answer(data, size, n, &d->refusal);
    d->unwritable = fwrite(data, 1, size * n, d->spec->file) != size * n;
    d->spec->received += (int64_t)(size * n);
    if (d->spec->progress)
        d->spec->progress(d->spec->arg, d->spec->received);
    return d->unwritable ? 0 : size * n;
}

static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    static const char name[] = "X-Cohort-Task: ";
    struct download *d = arg;
    size_t len = size * n, skip = sizeof name - 1;
    if (len > skip && strncasecmp(data, name, skip) == 0)
        snprintf(d->spec->task, sizeof d->spec->task, "%.*s", (int)strcspn(data + skip, "\r\n"), data + skip);
    return len;
}

int api_get_file(struct api *a, struct download_spec *spec, struct fail *f)
{
    struct download d = {a, spec};
    struct answer answer;
    char *url = xasprintf("%s%s", a->base, spec->path);
    struct curl_slist *headers = a->bearer ? add_header(NULL, a->bearer) : NULL;
    buf_init(&d.refusal);
    prepare(a, "GET", url, headers, NULL);
    curl_easy_setopt(a->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(a->curl, CURLOPT_WRITEDATA, &d);
    curl_easy_setopt(a->curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(a->curl, CURLOPT_HEADERDATA, &d);
    curl_easy_setopt(a->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(a->curl, CURLOPT_LOW_SPEED_TIME, STALL_S);
    int rc = perform(a, &d.refusal, &answer, f);
    if (rc == EXIT_DONE)
        answer_free(&answer);
    if (d.unwritable)
        rc = fail_set(f, EXIT_REFUSED, "the file cannot be written: %s", strerror(errno));
    curl_slist_free_all(headers);
    free(url);
    return rc;
}
