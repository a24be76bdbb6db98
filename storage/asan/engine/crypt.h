/* Encryption of a volume's sectors: AES-256-XTS (IEEE 1619) by OpenSSL, the tweak being the sector's number in the volume, as
 * dm-crypt's "plain64". It happens at the owner, between the front end and the shards' cores: replicas, journals, caches and the
 * network hold ciphertext, and checksums cover ciphertext.
 *
 * Holes: what was never written, and what was zeroed or discarded, is stored as zeroes, not as their ciphertext. A sector of
 * 512 zero bytes is therefore taken for a hole and read as zeroes. No real sector looks like that: ciphertext of 4096 bits is all
 * zero with probability 2^-4096, and who writes cannot aim at it without the key. So no record of what is allocated is needed, thin
 * provisioning, write-zeroes, copy-on-write and 512-byte writes work as without encryption. What it gives away: which sectors
 * are holes (as any disk encryption with discard). XTS does not notice changed ciphertext; the checksums do, where it is damage.
 *
 * Threading: one context per thread that uses it. */
#ifndef COHORT_STORAGE_ENGINE_CRYPT_H
#define COHORT_STORAGE_ENGINE_CRYPT_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define CRYPT_KEY 64   /* two AES-256 keys; they must differ */
#define CRYPT_SECTOR 512u

struct crypt;
/* E_INVAL: both halves of the key are the same. The key is copied, and wiped by crypt_free(). */
MUST_CHECK int crypt_new(const uint8_t key[CRYPT_KEY], struct crypt **ret_crypt, struct err *e);
void crypt_free(struct crypt *c); /* NULL is fine */

/* In place. `len`: a multiple of CRYPT_SECTOR; `sector`: number of the first. */
void crypt_encrypt(struct crypt *c, uint64_t sector, uint8_t *data, size_t len);
void crypt_decrypt(struct crypt *c, uint64_t sector, uint8_t *data, size_t len); /* leaves sectors of zeroes alone */

#endif
