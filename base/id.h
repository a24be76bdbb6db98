/* Ids: random UUIDs as 36 lower-case characters (RFC 4122 version 4) everywhere a person, the database or JSON sees
 * them, as 16 raw bytes in frames and on disk. */
#ifndef COHORT_BASE_ID_H
#define COHORT_BASE_ID_H

#include <stdbool.h>
#include <stdint.h>

#define ID_LEN 36
struct id { uint8_t b[16]; };

void id_new(char ret_text[ID_LEN + 1]);            /* from getrandom(2); aborts if the kernel has none */
bool id_parse(const char *text, struct id *ret_id); /* exactly the 36-character form, either case */
void id_format(const struct id *id, char ret_text[ID_LEN + 1]);
bool id_equal(const struct id *a, const struct id *b);
uint64_t id_hash(const struct id *id);
/* `bytes` random bytes as 2*bytes hex digits plus NUL: tokens, nonces. */
void id_random_hex(char *ret_text, unsigned bytes);

#endif
