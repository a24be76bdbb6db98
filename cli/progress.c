/* Progress line on the terminal. See progress.h. */
#include "cli/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "cli/size.h"

#define BAR 24
#define REDRAW_MS 100
#define RATE_AFTER_MS 500 /* before that a rate is noise */

void progress_format(const char *label, int64_t first, int64_t done, int64_t total, bool bytes, int64_t elapsed_ms, char *out)
{
    char bar[BAR + 1], amount[SIZE_TEXT], of[SIZE_TEXT], rate[SIZE_TEXT + 4] = "", left[SIZE_TEXT + 8] = "", t[SIZE_TEXT];
    double share = total > 0 ? (double)done / (double)total : 0;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    int full = (int)(share * BAR);
    memset(bar, '#', (size_t)full);
    memset(bar + full, '.', (size_t)(BAR - full));
    bar[BAR] = '\0';
    if (bytes) {
        size_format(done, amount);
        size_format(total, of);
    } else {
        snprintf(amount, sizeof amount, "%" PRId64, done);
        snprintf(of, sizeof of, "%" PRId64, total);
    }
    if (elapsed_ms >= RATE_AFTER_MS && done > first) {
        double per_ms = (double)(done - first) / (double)elapsed_ms;
        if (bytes)
            snprintf(rate, sizeof rate, "  %s/s", size_format((int64_t)(per_ms * 1000), t));
        if (total > done)
            snprintf(left, sizeof left, "  %s left", duration_format((int64_t)((double)(total - done) / per_ms) / 1000 * 1000, t));
    }
    if (total > 0)
        snprintf(out, PROGRESS_LINE, "%s%s[%s] %3d%%  %s of %s%s%s", label, *label ? " " : "", bar, (int)(share * 100), amount, of, rate, left);
    else
        snprintf(out, PROGRESS_LINE, "%s%s%s%s", label, *label ? " " : "", amount, rate);
}

void progress_begin(struct progress *p, const char *label)
{
    const char *term = getenv("TERM");
    *p = (struct progress){.label = label, .on = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0, .began_ms = clock_boot_ms()};
}

void progress_step(struct progress *p, int64_t done, int64_t total, bool bytes)
{
    char line[PROGRESS_LINE];
    uint64_t now = clock_boot_ms();
    if (!p->has_first) {
        p->has_first = true;
        p->first = done;
    }
    if (!p->on || (p->shown && now - p->drawn_ms < REDRAW_MS && done != total))
        return;
    p->drawn_ms = now;
    p->shown = true;
    progress_format(p->label, p->first, done, total, bytes, (int64_t)(now - p->began_ms), line);
    fprintf(stderr, "\r\033[K%s", line);
    fflush(stderr);
}

void progress_end(struct progress *p)
{
    if (p->shown)
        fprintf(stderr, "\r\033[K");
    p->shown = false;
}
