/* One connection to the REST API: this machine's daemon by unix socket, or any node by https with a token.
 *
 * Synchronous, one thread. Certificates are always verified, and a token is never sent without TLS. */
#ifndef COHORT_CLI_API_H
#define COHORT_CLI_API_H

#include <jansson.h>
#include <stdio.h>
#include "cli/cli.h"

struct api_conf {
    const char *url;    /* "https://node1:7443"; NULL or "": the unix socket */
    const char *socket; /* path */
    const char *token, *ca; /* NULL: none; the system's CAs */
};

/* What one call brought. `text` is the answer as it came. */
struct answer {
    int status;
    char *text;
    size_t len;
    json_t *json; /* NULL if it is no JSON */
};
void answer_free(struct answer *a); /* back to zeros */

/* EXIT_USAGE: url unusable. `conf`'s texts are copied. */
int api_open(const struct api_conf *conf, struct api **ret_api, struct fail *f);
void api_close(struct api *a); /* NULL is fine */

/* One call to /api/v1 + `path`. Takes `body` (NULL: none). Not EXIT_DONE: nothing in *ret (an API error is in *f). */
int api_call(struct api *a, const char *method, const char *path, json_t *body, struct answer *ret, struct fail *f);

/* Progress of an upload. */
typedef void api_progress(void *arg, int64_t sent);
/* What is read from the file on its way, for a checksum. */
typedef void api_passing(void *arg, const void *data, size_t len);
struct upload_spec {
    const char *path;
    FILE *file;
    int64_t size; /* bytes that are sent from the file's position; a shorter file is a failure */
    api_passing *passing;
    api_progress *progress; /* may be NULL */
    void *arg;
};
int api_put_file(struct api *a, const struct upload_spec *u, struct answer *ret, struct fail *f);

/* GET whose answer goes to a file. The connection breaks off when the daemon cannot go on: the task (header X-Cohort-Task) tells why. */
struct download_spec {
    const char *path;
    FILE *file;
    api_progress *progress; /* received; may be NULL */
    void *arg;
    int64_t received;
    char task[40];          /* "" = none was named */
};
int api_get_file(struct api *a, struct download_spec *d, struct fail *f);

/* Pure parts, for tests. */

/* Exit status, code, message and hint of an error answer. */
void api_fail_of(int status, const char *text, struct fail *f);
/* "/vms/" + name + suffix with the name percent-encoded; caller frees. NULL and EXIT_USAGE in *f: the name cannot be one. */
char *api_path(const char *collection, const char *name, const char *suffix, struct fail *f);
/* EXIT_USAGE: not https://HOST[:PORT]. */
int api_url_check(const char *url, struct fail *f);

#endif
