/* The cluster key and volume keys. See keyring.h. */
#include "cluster/keyring.h"
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define SALT 16
#define CHECK 8
#define WRAP_EXTRA 8           /* RFC 3394 adds one 64-bit block */
#define SCRYPT_N (1u << 14)
#define SCRYPT_R 8
#define SCRYPT_P 1
#define PREFIX "scrypt1:"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t cluster_key[KEYRING_KEY];
static bool have;

/* ---- in memory ---- */

void keyring_put(const uint8_t key[KEYRING_KEY])
{
    pthread_mutex_lock(&lock);
    memcpy(cluster_key, key, KEYRING_KEY);
    have = true;
    pthread_mutex_unlock(&lock);
}

bool keyring_get(uint8_t ret_key[KEYRING_KEY])
{
    pthread_mutex_lock(&lock);
    bool ok = have;
    if (ok)
        memcpy(ret_key, cluster_key, KEYRING_KEY);
    pthread_mutex_unlock(&lock);
    return ok;
}

bool keyring_has(void)
{
    pthread_mutex_lock(&lock);
    bool ok = have;
    pthread_mutex_unlock(&lock);
    return ok;
}

void keyring_forget(void)
{
    pthread_mutex_lock(&lock);
    OPENSSL_cleanse(cluster_key, sizeof cluster_key);
    have = false;
    pthread_mutex_unlock(&lock);
}

/* ---- text ---- */

static char *put_hex(char *to, const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to += sprintf(to, "%02x", b[i]);
    return to;
}

/* Exactly `n` bytes from lower-case hex digits; NULL otherwise. */
static const char *take_hex(const char *from, uint8_t *ret, size_t n)
{
    for (size_t i = 0; i < 2 * n; i++) {
        char c = from[i];
        int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (v < 0)
            return NULL;
        ret[i / 2] = (uint8_t)(i % 2 ? ret[i / 2] | v : v << 4);
    }
    return from + 2 * n;
}

/* ---- primitives ---- */

/* RFC 3394. False: (un)wrapping failed; unwrapping: another key, or damage. */
static bool wrap(bool on, const uint8_t kek[KEYRING_KEY], const uint8_t *in, size_t n, uint8_t *out)
{
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    int len = 0, tail = 0;
    EVP_CIPHER_CTX_set_flags(c, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
    bool ok = EVP_CipherInit_ex(c, EVP_aes_256_wrap(), NULL, kek, NULL, on) == 1 && EVP_CipherUpdate(c, out, &len, in, (int)n) == 1 &&
              EVP_CipherFinal_ex(c, out + len, &tail) == 1 && len + tail == (int)(on ? n + WRAP_EXTRA : n - WRAP_EXTRA);
    EVP_CIPHER_CTX_free(c);
    return ok;
}

static int derive(const void *pass, size_t len, const uint8_t salt[SALT], uint8_t ret[KEYRING_KEY], struct err *e)
{
    if (EVP_PBE_scrypt(pass, len, salt, SALT, SCRYPT_N, SCRYPT_R, SCRYPT_P, 64u << 20, ret, KEYRING_KEY) != 1)
        return err_set(e, E_NOMEM, "scrypt failed");
    return E_OK;
}

static void check_of(const uint8_t key[KEYRING_KEY], uint8_t ret[CHECK])
{
    uint8_t sum[SHA256_DIGEST_LENGTH];
    SHA256(key, KEYRING_KEY, sum);
    memcpy(ret, sum, CHECK);
}

static int random_bytes(uint8_t *to, int n, struct err *e)
{
    return RAND_priv_bytes(to, n) == 1 ? E_OK : err_set(e, E_UNAVAIL, "no random numbers");
}

/* ---- the cluster key's lock ---- */

struct box { uint8_t salt[SALT], wrapped[KEYRING_KEY + WRAP_EXTRA], check[CHECK]; };

static bool parse(const char *text, struct box *ret)
{
    const size_t n = strlen(PREFIX);
    if (strncmp(text, PREFIX, n) != 0)
        return false;
    const char *p = take_hex(text + n, ret->salt, SALT);
    p = p && *p == ':' ? take_hex(p + 1, ret->wrapped, sizeof ret->wrapped) : NULL;
    p = p && *p == ':' ? take_hex(p + 1, ret->check, CHECK) : NULL;
    return p && !*p;
}

int keyring_lock(const void *pass, size_t len, uint8_t ret_key[KEYRING_KEY], char *ret_text, struct err *e)
{
    struct box b;
    uint8_t kek[KEYRING_KEY], key[KEYRING_KEY];
    if (len < KEYRING_PASS_MIN || len > KEYRING_PASS_MAX)
        return err_set(e, E_INVAL, "the passphrase or key file must have from %d to %d bytes, has %zu", KEYRING_PASS_MIN, KEYRING_PASS_MAX, len);
    int rc = keyring_get(key) ? E_OK : random_bytes(key, sizeof key, e);
    if (!rc)
        rc = random_bytes(b.salt, SALT, e);
    if (!rc)
        rc = derive(pass, len, b.salt, kek, e);
    if (!rc && !wrap(true, kek, key, sizeof key, b.wrapped))
        rc = err_set(e, E_UNAVAIL, "AES key wrap failed");
    if (!rc) {
        check_of(key, b.check);
        char *p = stpcpy(ret_text, PREFIX);
        p = put_hex(p, b.salt, SALT);
        *p++ = ':';
        p = put_hex(p, b.wrapped, sizeof b.wrapped);
        *p++ = ':';
        *put_hex(p, b.check, CHECK) = '\0';
        memcpy(ret_key, key, sizeof key);
    }
    OPENSSL_cleanse(kek, sizeof kek);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}

bool keyring_fits(const char *text, const uint8_t key[KEYRING_KEY])
{
    struct box b;
    uint8_t check[CHECK];
    check_of(key, check);
    return parse(text, &b) && CRYPTO_memcmp(check, b.check, CHECK) == 0;
}

int keyring_unlock(const char *text, const void *pass, size_t len, uint8_t ret_key[KEYRING_KEY], struct err *e)
{
    struct box b;
    uint8_t kek[KEYRING_KEY], key[KEYRING_KEY];
    if (!parse(text, &b))
        return err_set(e, E_CORRUPT, "the cluster's locked key is damaged");
    int rc = derive(pass, len, b.salt, kek, e);
    if (!rc && (!wrap(false, kek, b.wrapped, sizeof b.wrapped, key) || !keyring_fits(text, key)))
        rc = err_set(e, E_AUTH, "wrong passphrase or key file");
    if (!rc)
        memcpy(ret_key, key, sizeof key);
    OPENSSL_cleanse(kek, sizeof kek);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}

/* ---- volume keys ---- */

static int locked(struct err *e)
{
    return err_set(e, E_UNAVAIL, "the cluster key is not here\nmake one with cohort cluster key set, or after a power cut: cohort cluster key unlock");
}

int keyring_volume_new(char *ret_text, struct err *e)
{
    uint8_t key[KEYRING_VOLUME_KEY], wrapped[KEYRING_VOLUME_KEY + WRAP_EXTRA], cluster[KEYRING_KEY];
    if (!keyring_get(cluster))
        return locked(e);
    int rc = random_bytes(key, sizeof key, e);
    if (!rc && !wrap(true, cluster, key, sizeof key, wrapped))
        rc = err_set(e, E_UNAVAIL, "AES key wrap failed");
    if (!rc)
        *put_hex(ret_text, wrapped, sizeof wrapped) = '\0';
    OPENSSL_cleanse(key, sizeof key);
    OPENSSL_cleanse(cluster, sizeof cluster);
    return rc;
}

int keyring_volume_open(const char *text, uint8_t ret_key[KEYRING_VOLUME_KEY], struct err *e)
{
    uint8_t wrapped[KEYRING_VOLUME_KEY + WRAP_EXTRA], cluster[KEYRING_KEY];
    const char *end = take_hex(text, wrapped, sizeof wrapped);
    if (!end || *end)
        return err_set(e, E_CORRUPT, "the volume's key is damaged");
    if (!keyring_get(cluster))
        return locked(e);
    bool ok = wrap(false, cluster, wrapped, sizeof wrapped, ret_key);
    OPENSSL_cleanse(cluster, sizeof cluster);
    return ok ? E_OK : err_set(e, E_CORRUPT, "the volume's key is damaged, or of another cluster");
}
