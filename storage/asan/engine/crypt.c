/* Encryption of sectors. See crypt.h. */
#include "storage/asan/engine/crypt.h"
#include <endian.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

struct crypt { EVP_CIPHER_CTX *on, *off; };

int crypt_new(const uint8_t key[CRYPT_KEY], struct crypt **ret_crypt, struct err *e)
{
    struct crypt *c = xcalloc(1, sizeof *c);
    c->on = EVP_CIPHER_CTX_new();
    c->off = EVP_CIPHER_CTX_new();
    if (EVP_EncryptInit_ex(c->on, EVP_aes_256_xts(), NULL, key, NULL) != 1 || EVP_DecryptInit_ex(c->off, EVP_aes_256_xts(), NULL, key, NULL) != 1) {
        crypt_free(c);
        return err_set(e, E_INVAL, "no AES-256-XTS key");
    }
    *ret_crypt = c;
    return E_OK;
}

void crypt_free(struct crypt *c)
{
    if (!c)
        return;
    EVP_CIPHER_CTX_free(c->on);
    EVP_CIPHER_CTX_free(c->off);
    free(c);
}

/* The library cannot fail here for a reason of its input; if it does all the same, wrong bytes must not go on. */
static void must(int ok)
{
    if (ok != 1)
        abort();
}

static void tweak_of(uint64_t sector, uint64_t ret[2])
{
    ret[0] = htole64(sector);
    ret[1] = 0;
}

void crypt_encrypt(struct crypt *c, uint64_t sector, uint8_t *data, size_t len)
{
    uint64_t tweak[2];
    int n;
    for (size_t at = 0; at < len; at += CRYPT_SECTOR, sector++) {
        tweak_of(sector, tweak);
        must(EVP_EncryptInit_ex(c->on, NULL, NULL, NULL, (const uint8_t *)tweak));
        must(EVP_EncryptUpdate(c->on, data + at, &n, data + at, CRYPT_SECTOR));
    }
}

static int is_hole(const uint8_t *p)
{
    return p[0] == 0 && memcmp(p, p + 1, CRYPT_SECTOR - 1) == 0;
}

void crypt_decrypt(struct crypt *c, uint64_t sector, uint8_t *data, size_t len)
{
    uint64_t tweak[2];
    int n;
    for (size_t at = 0; at < len; at += CRYPT_SECTOR, sector++) {
        if (is_hole(data + at))
            continue;
        tweak_of(sector, tweak);
        must(EVP_DecryptInit_ex(c->off, NULL, NULL, NULL, (const uint8_t *)tweak));
        must(EVP_DecryptUpdate(c->off, data + at, &n, data + at, CRYPT_SECTOR));
    }
}
