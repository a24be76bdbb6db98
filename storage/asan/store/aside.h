/* Setting records aside: what is not committed must not hold the journal.
 *
 * The ring is trimmed from its front. A record of a write that some replica never answers, or of a volume that stands still for
 * want of a quorum, would stay there, and with it everything behind it: once the ring is full no other volume of the disk can
 * write, and what would settle that record (an owner's reconcile is a write, too) can come no more. So what destage cannot take
 * and is half a ring old gets a key in the metadata, and its data a place on the capacity device. It goes on as before in the
 * index: read from there, part of its shard's tail, destaged when it is committed.
 *
 *   in a batch -> (a round of destage: data, sync, key) -> set aside -> settled, or destaged (key goes with that round) -> gone
 *
 * Order at replay: records set aside come first, by arrival, then the journal. That is right because they were older than all
 * that stays in the ring; a key whose batch is not trimmed yet is ignored, its record is found in the journal (and the key is
 * gone before that batch is trimmed: a trim follows a round, and at close there is none while keys wait to go). And because what
 * is newer of a chunk never reaches the extent before the key says that the record has no part in it any more: a round tells the
 * metadata, in its one batch, of every record that was covered altogether (hide: it is in the tail only) or settled (forget)
 * before the round was chosen.
 *
 * Threading: the loop's thread, plus store_open(); aside_copy() in merge.c runs in the worker.
 */
#ifndef COHORT_STORAGE_STORE_ASIDE_H
#define COHORT_STORAGE_STORE_ASIDE_H

#include "storage/asan/store/merge.h"
#include "storage/asan/store/priv.h"

struct aside { /* a place of the capacity device with data of records set aside, several or the parts of a large write */
    TAILQ_ENTRY(aside) entry;
    uint64_t place;
    unsigned recs;      /* that are not gone */
    bool in_journal;    /* a large write's record that names the place is not trimmed yet */
};

/* index.c tells: `r` lost its last segment; `r`, in no batch, is needed no more. */
void aside_hidden(struct index *x, struct rec *r);
void aside_settled(struct index *x, struct rec *r);
void aside_free_all(struct index *x); /* all shards are gone */

/* At open: the data of `r` are at `data_at`. E_CORRUPT if that is an extent's place. */
MUST_CHECK int aside_open(struct store *s, struct rec *r, uint64_t data_at, struct err *e);
/* Adds to a round, whose items are chosen, what it is to do here; then the round has happened, or has not. */
void aside_choose(struct store *s, struct merge_round *round);
void aside_apply(struct store *s, struct merge_round *round);
void aside_undo(struct store *s, struct merge_round *round);
void aside_only(struct store *s, struct aside *a); /* the large write's record is trimmed */

#endif
