/* The cluster key and the volume keys that it wraps.
 *
 * The cluster key (256 bit, random) never touches a disk in clear: the cluster's row holds it locked by a passphrase (or the
 * bytes of a key file): "scrypt1:<salt>:<wrapped>:<check>", hex; the lock is scrypt (RFC 7914) and AES-256 key wrap (RFC 3394),
 * whose integrity check tells a wrong passphrase; <check> is
 * the beginning of the key's SHA-256, by which a key from a peer is known to be the right one. Volume keys (two AES-256 keys for XTS) lie in their volumes' rows, wrapped
 * by the cluster key in the same way. A node has the cluster key in memory only, from `cohort cluster key set` or `unlock`,
 * or from a peer that has it (storage connections, TLS both ways); after a power cut of all nodes someone must unlock once.
 *
 * One keyring per process (a node is a member of one cluster). Threading: any thread. */
#ifndef COHORT_CLUSTER_KEYRING_H
#define COHORT_CLUSTER_KEYRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define KEYRING_KEY 32
#define KEYRING_VOLUME_KEY 64
#define KEYRING_TEXT 256     /* enough for both texts, with the NUL */
#define KEYRING_PASS_MIN 8
#define KEYRING_PASS_MAX 65536

/* Locks the cluster key by a passphrase; makes it if there is none in memory. Takes about 50 ms and 16 MiB. `ret_text`
 * (KEYRING_TEXT) goes into the cluster's row; the key counts here after keyring_put(). E_INVAL: passphrase too short or long. */
MUST_CHECK int keyring_lock(const void *pass, size_t len, uint8_t ret_key[KEYRING_KEY], char *ret_text, struct err *e);
/* Likewise. E_AUTH: not the passphrase. E_CORRUPT: the text is none of ours. */
MUST_CHECK int keyring_unlock(const char *text, const void *pass, size_t len, uint8_t ret_key[KEYRING_KEY], struct err *e);
/* Is it the key that `text` locks? */
bool keyring_fits(const char *text, const uint8_t key[KEYRING_KEY]);

void keyring_put(const uint8_t key[KEYRING_KEY]);
bool keyring_get(uint8_t ret_key[KEYRING_KEY]); /* false: locked */
bool keyring_has(void);
void keyring_forget(void);

/* A fresh volume key, wrapped, as text (KEYRING_TEXT). E_UNAVAIL while there is no cluster key here. */
MUST_CHECK int keyring_volume_new(char *ret_text, struct err *e);
/* E_UNAVAIL: likewise; E_CORRUPT: damaged, or wrapped by another cluster key. */
MUST_CHECK int keyring_volume_open(const char *text, uint8_t ret_key[KEYRING_VOLUME_KEY], struct err *e);

#endif
