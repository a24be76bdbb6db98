/* Join tokens. See token.h. */
#include "cluster/token.h"
#include <ctype.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/id.h"

#define PREFIX "COHORT1."

void token_new_secret(char ret_secret[2 * TOKEN_SECRET_BYTES + 1])
{
    id_random_hex(ret_secret, TOKEN_SECRET_BYTES);
}

char *token_format(const struct join_token *t)
{
    json_t *j = json_pack("{s:s, s:i, s:s, s:s, s:s}", "a", t->address, "p", (int)t->port, "f", t->ca_sha256, "s", t->secret,
                          "c", t->cluster);
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    size_t n = strlen(text);
    char *b64 = xmalloc(4 * ((n + 2) / 3) + 1);
    EVP_EncodeBlock((unsigned char *)b64, (const unsigned char *)text, (int)n);
    free(text);
    for (char *p = b64; *p; p++)
        *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
    b64[strcspn(b64, "=")] = '\0';
    char *r = xasprintf(PREFIX "%s", b64);
    free(b64);
    return r;
}

/* NUL-terminated bytes or NULL; caller frees. */
static char *base64url_decode(const char *text)
{
    size_t n = strlen(text), padded = (n + 3) / 4 * 4;
    char *b64 = xmalloc(padded + 1);
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)text[i]) && text[i] != '-' && text[i] != '_') {
            free(b64);
            return NULL;
        }
        b64[i] = text[i] == '-' ? '+' : text[i] == '_' ? '/' : text[i];
    }
    memset(b64 + n, '=', padded - n);
    b64[padded] = '\0';
    unsigned char *out = xmalloc(padded / 4 * 3 + 1);
    int len = padded - n > 2 ? -1 : EVP_DecodeBlock(out, (const unsigned char *)b64, (int)padded);
    free(b64);
    if (len < (int)(padded - n)) {
        free(out);
        return NULL;
    }
    out[len - (int)(padded - n)] = '\0';
    return (char *)out;
}

static bool copy_text(const json_t *j, const char *key, char *out, size_t size)
{
    const char *s = json_string_value(json_object_get(j, key));
    if (!s || !s[0] || strlen(s) >= size)
        return false;
    memcpy(out, s, strlen(s) + 1);
    return true;
}

static bool is_hex(const char *s, size_t n)
{
    return strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

int token_parse(const char *text, struct join_token *ret_token, struct err *e)
{
    text += strspn(text, " \t\r\n");
    size_t n = strcspn(text, " \t\r\n");
    if (strncmp(text, "COHORT", 6))
        return err_set(e, E_INVAL, "this is not a join token (it begins with \"" PREFIX "\")");
    if (strncmp(text, PREFIX, strlen(PREFIX)))
        return err_set(e, E_VERSION, "this join token is of another version of Cohort");
    if (n > TOKEN_TEXT_MAX || text[n + strspn(text + n, " \t\r\n")])
        return err_set(e, E_INVAL, "the join token is damaged: there is more behind it");
    char *b64 = xmalloc(n + 1);
    memcpy(b64, text, n);
    b64[n] = '\0';
    char *json = base64url_decode(b64 + strlen(PREFIX));
    free(b64);
    json_t *j = json ? json_loads(json, JSON_REJECT_DUPLICATES, NULL) : NULL;
    free(json);
    struct join_token t = {0};
    json_int_t port = json_integer_value(json_object_get(j, "p"));
    bool ok = copy_text(j, "a", t.address, sizeof t.address) && copy_text(j, "f", t.ca_sha256, sizeof t.ca_sha256) &&
              copy_text(j, "s", t.secret, sizeof t.secret) && copy_text(j, "c", t.cluster, sizeof t.cluster) &&
              port > 0 && port < 65536 && is_hex(t.ca_sha256, PKI_HEX_SHA256) && is_hex(t.secret, 2 * TOKEN_SECRET_BYTES);
    json_decref(j);
    if (!ok)
        return err_set(e, E_INVAL, "the join token is damaged: copy the whole of it, in one line");
    t.port = (uint16_t)port;
    *ret_token = t;
    return 0;
}
