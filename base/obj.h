/* Objects that live as long as a request: many, small, all the time. Freed ones wait per thread for the next of their size, so that
 * steady traffic does not go through malloc; what a thread keeps is bounded and goes when it ends.
 *
 * Threading: any thread may free what another made; it is then the freeing thread's to reuse. */
#ifndef COHORT_BASE_OBJ_H
#define COHORT_BASE_OBJ_H

#include <stddef.h>

void *obj_new(size_t bytes);            /* zeroed; aborts on out of memory, as xcalloc() */
void obj_free(void *p, size_t bytes);   /* NULL is fine; `bytes` as it was made with */

#define OBJ_NEW(TYPE) ((TYPE *)obj_new(sizeof(TYPE)))
#define OBJ_FREE(P) obj_free((P), sizeof *(P))

#endif
