/* A progress line on the terminal (stderr): bar, share, rate, time left. Nothing when stderr is no terminal, so that logs
 * and pipes stay clean. One at a time, one thread. */
#ifndef COHORT_CLI_PROGRESS_H
#define COHORT_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *label; /* borrowed */
    bool on, shown;
    uint64_t began_ms, drawn_ms;
    int64_t first; /* where it stood when it began: the rate is of what was seen */
    bool has_first;
};

void progress_begin(struct progress *p, const char *label);
/* `total` 0: not known. Redraws ten times a second at most. */
void progress_step(struct progress *p, int64_t done, int64_t total, bool bytes);
void progress_end(struct progress *p); /* removes the line */

#define PROGRESS_LINE 160
/* The line's text, for tests: `elapsed_ms` since it began at `first`. Into at least PROGRESS_LINE bytes. */
void progress_format(const char *label, int64_t first, int64_t done, int64_t total, bool bytes, int64_t elapsed_ms, char *out);

#endif
