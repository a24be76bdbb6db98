/* Linked into every test program: shortly before ctest would kill it without a word, it says where each of its threads stands,
 * and aborts. Addresses without a name are for addr2line -e PROGRAM. */
#ifndef COHORT_TEST_HUNG_H
#define COHORT_TEST_HUNG_H

/* This folder would be left behind by a test that hangs: it is removed then. NULL: none any more. */
void hung_scratch(const char *dir);

#endif
