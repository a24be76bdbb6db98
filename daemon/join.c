/* Joining a cluster, client side. See join.h. */
#include "daemon/join.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/file.h"
#include "daemon/jin.h"

#define ANSWER_MAX (256u << 10)
#define VOTERS_MAX_ANSWER 16

static size_t collect(char *data, size_t size, size_t n, void *arg)
{
    struct buf *b = arg;
    if (n > ANSWER_MAX - b->len)
        return 0; /* ends the transfer */
    buf_append(b, data, size * n);
    return size * n;
}

/* The member's own words if it gave any. */
static int refused(long status, const struct buf *answer, struct err *e)
{
    json_t *j = answer->data ? json_loadb(answer->data, answer->len, 0, NULL) : NULL;
    const char *message = json_string_value(json_object_get(j, "message")), *hint = json_string_value(json_object_get(j, "hint"));
    int code = status == 401 ? E_AUTH : status == 409 ? E_EXISTS : status == 503 || status == 504 ? E_UNAVAIL : status == 400 ? E_INVAL : E_PROTO;
    if (message)
        err_set(e, code, "the cluster refused: %.200s%s%.200s", message, hint && *hint ? "\n" : "", hint ? hint : "");
    else
        err_set(e, code, "the member answered with HTTP status %ld", status);
    json_decref(j);
    return code;
}

/* GET, or POST of `body`. `ca_file` NULL: the peer is not checked (only for fetching the CA that is then compared). */
static int ask(const struct join_token *t, const char *path, const char *ca_file, const char *body, json_t **ret_answer, struct err *e)
{
    struct buf answer;
    char why[CURL_ERROR_SIZE] = "";
    long status = 0;
    bool v6 = strchr(t->address, ':') != NULL;
    char *url = xasprintf("https://%s%s%s:%u/api/v1%s", v6 ? "[" : "", t->address, v6 ? "]" : "", t->port, path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    CURL *c = curl_easy_init();
    int rc = E_OK;
    buf_init(&answer);
    if (!c || !headers) {
        rc = err_set(e, E_NOMEM, "libcurl");
        goto out;
    }
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "https");
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 40L);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, collect);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &answer);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    if (ca_file) {
        curl_easy_setopt(c, CURLOPT_CAINFO, ca_file);
    } else {
        curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    if (body)
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    CURLcode cc = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    if (cc == CURLE_PEER_FAILED_VERIFICATION)
        rc = err_set(e, E_AUTH, "%s does not have a certificate of the token's cluster: %s", t->address, why);
    else if (cc != CURLE_OK)
        rc = err_set(e, E_UNAVAIL, "no answer from the member %s port %u: %s\nis cohortd running there, and is the port reachable from here?",
                     t->address, t->port, *why ? why : curl_easy_strerror(cc));
    else if (status != 200)
        rc = refused(status, &answer, e);
    else if (jin_parse(answer.data ? answer.data : "", answer.len, ret_answer, e) != E_OK)
        rc = err_set(e, E_PROTO, "the member's answer is not JSON");
out:
    curl_slist_free_all(headers);
    curl_easy_cleanup(c);
    buf_free(&answer);
    free(url);
    return rc;
}

/* Fetches the CA, believes it by the token's fingerprint, and leaves it in a file for libcurl. */
static int pin_ca(const struct join_token *t, const char *file, struct err *e)
{
    json_t *answer = NULL;
    const char *pem = NULL;
    char hex[PKI_HEX_SHA256 + 1];
    int rc = ask(t, "/cluster/ca", NULL, NULL, &answer, e);
    if (rc != E_OK)
        return rc;
    const struct jin_field f[] = {{"ca_pem", JIN_STR, true, &pem, 1, 65536}};
    rc = jin_read(answer, "", f, 1, e);
    if (rc == E_OK)
        rc = pki_fingerprint(pem, hex, e);
    if (rc == E_OK && strcmp(hex, t->ca_sha256) != 0)
        rc = err_set(e, E_AUTH, "%s belongs to another cluster than the token: its CA has another fingerprint\nget a new token from the cluster you want to join", t->address);
    if (rc == E_OK)
        rc = file_write(file, pem, strlen(pem), 0644, e);
    json_decref(answer);
    return rc;
}

static char *request_body(const struct member_conf *c, const struct join_token *t, const struct member_request *r)
{
    json_t *disks = json_array();
    for (size_t i = 0; i < c->n_disks; i++)
        json_array_append_new(disks, json_pack("{s:s, s:s, s:s, s:I}", "name", c->disks[i].name, "fast_path", c->disks[i].fast_path,
                                               "capacity_path", c->disks[i].capacity_path, "size_bytes", (json_int_t)c->disks[i].size_bytes));
    json_t *links = json_array();
    for (size_t i = 0; i < c->n_storage_addresses; i++)
        json_array_append_new(links, json_string(c->storage_addresses[i]));
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:s, s:s, s:s, s:o, s:o}",
                          "secret", t->secret, "node_id", r->node_id, "csr_pem", r->csr_pem, "name", c->node_name, "address", c->address,
                          "control_port", c->control_port, "storage_port", c->storage_port, "migrate_port", c->migrate_port, "api_port", c->api_port,
                          "cpus", (json_int_t)c->cpus, "memory_bytes", (json_int_t)c->memory_bytes, "accel", c->accel, "accel_reason", c->accel_reason,
                          "version", c->version, "disks", disks, "storage_addresses", links);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

static int accept_answer(const struct member_conf *c, const struct join_token *t, const char *node_id, const json_t *answer,
                         struct member_id *ret_id, struct err *e)
{
    struct member_answer a = {0};
    json_t *voters = NULL;
    const char *list[VOTERS_MAX_ANSWER];
    const struct jin_field f[] = {
        {"ca_pem", JIN_STR, true, &a.ca_pem}, {"cert_pem", JIN_STR, true, &a.cert_pem}, {"cluster_uuid", JIN_STR, true, &a.cluster_uuid},
        {"voter", JIN_BOOL, true, &a.voter},  {"voters", JIN_ARRAY, true, &voters, 1, VOTERS_MAX_ANSWER},
    };
    int rc = jin_read(answer, "answer", f, sizeof f / sizeof *f, e);
    for (size_t i = 0; rc == E_OK && i < json_array_size(voters); i++) {
        list[a.n_voters] = json_string_value(json_array_get(voters, i));
        if (!list[a.n_voters++])
            rc = err_set(e, E_PROTO, "answer.voters: not a list of texts");
    }
    a.voters = list;
    return rc == E_OK ? member_join_accept(c, node_id, t->ca_sha256, &a, ret_id, e) : rc;
}

int join_cluster(const struct member_conf *c, const struct join_token *t, struct member_id *ret_id, struct err *e)
{
    struct member_request r = {0};
    json_t *answer = NULL;
    char *body = NULL, *ca = xasprintf("%s/pki/joining-ca.pem", c->state_dir);
    int rc = member_join_prepare(c, &r, e);
    if (rc == E_OK)
        rc = pin_ca(t, ca, e);
    if (rc == E_OK && !(body = request_body(c, t, &r)))
        rc = err_set(e, E_INVAL, "this node's names or paths are not UTF-8");
    if (rc == E_OK)
        rc = ask(t, "/cluster/join-requests", ca, body, &answer, e);
    if (rc == E_OK)
        rc = accept_answer(c, t, r.node_id, answer, ret_id, e);
    json_decref(answer);
    free(body);
    free(ca);
    member_request_free(&r);
    return rc;
}
