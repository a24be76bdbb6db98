/* Making views. Private to cluster/; reading them is in cdb.h.
 *
 * A table of a view is a sorted sequence of rows cut into chunks of at most VIEW_CHUNK_MAX. Views share chunks and rows:
 * a change of k rows costs O(k * chunk + chunks), whatever the size of the table, so a view per change is affordable
 * with 10^5 shards. All parts are immutable and reference-counted; the last owner frees them on whatever thread it runs.
 */
#ifndef COHORT_CLUSTER_VIEW_H
#define COHORT_CLUSTER_VIEW_H

#include "cluster/cdb.h"

#define VIEW_CHUNK_MAX 256
#define VIEW_CHUNK_MIN 64

struct view_edit;

const struct cdb_view *view_empty(void);                       /* caller's reference */
struct view_edit *view_edit_new(const struct cdb_view *base);  /* holds a reference to `base` */
/* The row as it is after the changes so far; NULL if absent. Borrowed. */
const void *view_edit_get(const struct view_edit *e, enum cdb_table t, const char *id);
void view_edit_put(struct view_edit *e, enum cdb_table t, const void *row); /* inserts or replaces; takes the caller's reference */
void view_edit_delete(struct view_edit *e, enum cdb_table t, const char *id);
/* The new view (the base itself if nothing changed), caller's reference; the edit is gone. */
const struct cdb_view *view_edit_end(struct view_edit *e);
void view_edit_abort(struct view_edit *e);

/* Visits the rows that the edit put (not those it deleted). */
void view_edit_each_put(const struct view_edit *e, void (*fn)(enum cdb_table t, const void *row, void *arg), void *arg);

#endif
