/* Large writes past the journal. See direct.c. Threading: the loop's thread. */
#ifndef COHORT_STORAGE_STORE_DIRECT_H
#define COHORT_STORAGE_STORE_DIRECT_H

#include "storage/asan/store/priv.h"

#define DIRECT_PLACES_MAX 2048u /* 512 MiB: so many places may wait for their records to be trimmed; then the journal it is */
#define DIRECT_EXTENTS (STORE_WRITE_MAX / STORE_EXTENT)

struct direct_plan {
    uint64_t first;                  /* extent of the shard */
    unsigned n;                      /* 0: all of the write goes through the journal */
    uint64_t place[DIRECT_EXTENTS];  /* taken; PLACE_NONE: the extent is all zeroes and needs none */
};

void direct_init(struct store *s, bool on);
/* Which extents of a (checked) write go past the journal; takes their places. */
void direct_choose(struct store *s, const struct store_write *w, struct direct_plan *ret);
void direct_give_back(struct store *s, struct direct_plan *plan); /* the write is refused after all */
/* The records of a large write of extent `t`; returns the first, which stands for all in the journal's queue. */
struct rec *placed_new(struct store *s, struct shard *sh, struct ext *t, struct store_version v, uint64_t place,
                       const uint32_t crc[EXT_BLOCKS]);
/* Hands an operation's records to the journal, when large writes among them are durable and after those of the shard that came
 * before. Takes the records. `bytes` (in `data`): of shard offset `offset`; both may be NULL if none is a large write. */
void direct_append(struct store *s, struct shard *sh, struct rec_list *recs, struct iobuf *data, uint8_t *bytes, uint64_t offset);
void direct_kick(struct store *s); /* once per turn of the loop: syncs what was written */
void direct_fail(struct store *s); /* the store has failed: so do operations that wait here and have no device write under way */
bool direct_idle(const struct store *s);

/* Extent `t` gives `place` up, durably: free, or free when the record that names it is trimmed. */
void direct_let_go(struct store *s, struct ext *t, uint64_t place);
void direct_adopted(struct ext *t, struct placed *p); /* the extent's place is now that of `p`, durably */
void direct_trimmed(struct store *s);                 /* the journal's trim is durable */
bool direct_wants_destage(const struct store *s);     /* too many places wait */

#endif
