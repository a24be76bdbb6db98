/* The file of `cohort volume export`: what a snapshot holds, or what it has that an earlier one (its base) had not.
 *
 * Little-endian. A header of 512 bytes, then records in ascending order of offset, then an end record and nothing behind it:
 *
 *   header   magic "COHRTVOL", version 1, sizes, names, identities of content and base, crc32c of the first 508 bytes
 *   record   type, crc32c of the rest of the record and its payload, offset, length: 24 bytes; then the payload
 *     1 data   `length` bytes (1..1 MiB, multiple of 512) that belong at `offset`
 *     2 zero   `length` bytes at `offset` read as zeroes; no payload
 *     3 end    offset: number of records before it, length: bytes of data in them; no payload
 *
 * What no record covers is as in the base; without base it is zero. Identity: a snapshot's id, or that of the snapshot it is an
 * imported copy of (Volume.content); two snapshots of one identity hold the same bytes. Other versions are refused.
 *
 * Pure: no I/O. The parser takes the file in pieces as they come and hands out whole, verified records only. */
#ifndef COHORT_DAEMON_VOLFILE_H
#define COHORT_DAEMON_VOLFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"

#define VOLFILE_VERSION 1u
#define VOLFILE_HEADER 512u
#define VOLFILE_RECORD 24u
#define VOLFILE_DATA_MAX (1u << 20)
#define VOLFILE_NAME 64

enum volfile_type { VOLFILE_DATA = 1, VOLFILE_ZERO = 2, VOLFILE_END = 3 };

struct volfile_head {
    uint64_t size_bytes;                          /* of the volume */
    uint64_t created_ms;                          /* of the snapshot, wall clock */
    char volume[VOLFILE_NAME], snapshot[VOLFILE_NAME]; /* names; the snapshot's behind the @ */
    char content[ID_LEN + 1];                     /* identity of what it holds once imported */
    char base[ID_LEN + 1], base_name[VOLFILE_NAME]; /* "" = complete */
};

void volfile_put_head(const struct volfile_head *h, uint8_t out[VOLFILE_HEADER]);
/* For `data` (type DATA only) the payload, which follows the record in the file. */
void volfile_put_record(enum volfile_type type, uint64_t offset, uint64_t length, const void *data, uint8_t out[VOLFILE_RECORD]);

struct volfile_sink {
    /* Each may refuse: its error ends the parsing. */
    int (*head)(void *arg, const struct volfile_head *h, struct err *e);
    int (*data)(void *arg, uint64_t offset, const uint8_t *data, uint32_t length, struct err *e); /* `data`: until it returns */
    int (*zero)(void *arg, uint64_t offset, uint64_t length, struct err *e);
    void *arg;
};

struct volfile;
struct volfile *volfile_new(const struct volfile_sink *sink);
void volfile_free(struct volfile *f); /* NULL is fine */
/* The next piece. E_CORRUPT, E_VERSION: what is wrong and where; the file cannot be used. */
MUST_CHECK int volfile_feed(struct volfile *f, const void *data, size_t len, struct err *e);
/* Nothing more comes. E_CORRUPT: it ends before its end record. */
MUST_CHECK int volfile_end(const struct volfile *f, struct err *e);

#endif
